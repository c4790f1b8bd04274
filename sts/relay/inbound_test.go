package relay_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/countersign/countersign/sts/relay"
)

const ordersRelay = `
identity: {dir: DIR/orders, readonly: true}
app: {socket: DIR/orders.sock}
internal:
  listen: 127.0.0.1:0
  routes:
    - {name: read, methods: [GET, POST], path: "/orders/{rest...}", scopes: ["orders:read"]}
    - {name: write, methods: [PUT], path: "/lines/{id}", scopes: ["orders:read", "orders:write"]}
    - {name: any, methods: [GET], path: /any, scopes: []}
    - {name: bare, methods: [GET], path: /bare, token: none}
`

const ordersURL = "https://orders.shop.internal"

func TestInbound(t *testing.T) {
	w := newWorld(t)
	app := w.app("orders", nil)
	w.identity("orders")
	r := w.relay(ordersRelay)
	gateway, reports := w.as("gateway", "orders", r.at("internal")), w.as("reports", "orders", r.at("internal"))
	user := w.users.token(t, nil)
	token := w.exchanged(user, "gateway", "orders")

	t.Run("identity", func(t *testing.T) {
		got := get(t, gateway, ordersURL+"/orders/7?x=1", bearer(token), "Cookie: a=b")
		got.want(t, 200, "")
		rq := app.last(t)
		for name, want := range map[string]string{
			relay.UserHeader: "ana", relay.SubjectIssuerHeader: w.users.URL, relay.ClientHeader: "spiffe://shop.internal/gateway",
			relay.ChainHeader: "spiffe://shop.internal/gateway", relay.ScopesHeader: "orders:read orders:write",
			"X-Forwarded-Proto": "https", "X-Forwarded-Host": "orders.shop.internal", "X-Forwarded-For": "127.0.0.1", "Cookie": "a=b",
			"Authorization": "", relay.IDHeader: got.Header.Get("X-Request-Id"),
		} {
			if rq.Header.Get(name) != want {
				t.Errorf("%s is %q, want %q", name, rq.Header.Get(name), want)
			}
		}
		if len(rq.Header.Get(relay.HandleHeader)) != 22 || rq.Header.Get(relay.TransactionHeader) == "" || rq.URL.String() != "/orders/7?x=1" || rq.Host != "orders.shop.internal" {
			t.Errorf("the application got %s %s %v", rq.Host, rq.URL, rq.Header)
		}
	})
	t.Run("machine has no user", func(t *testing.T) {
		get(t, reports, ordersURL+"/orders/7", bearer(w.machine("reports", "orders"))).want(t, 200, "")
		if h := app.last(t).Header; h.Get(relay.UserHeader) != "" || h.Get(relay.SubjectIssuerHeader) != "" || h.Get(relay.ClientHeader) != "spiffe://shop.internal/reports" {
			t.Errorf("%v", h)
		}
	})
	t.Run("spoofed headers are stripped", func(t *testing.T) {
		spoofed(t, gateway, token, app)
		spoofed(t, http1(w.as("gateway", "orders", r.at("internal"))), token, app, "Connection: "+relay.UserHeader+", "+relay.ScopesHeader+", X-Request-Id")
	})
	t.Run("refused", func(t *testing.T) { inboundRefusals(t, w, gateway, token, app) })
	t.Run("certificate alone", func(t *testing.T) {
		get(t, reports, ordersURL+"/bare", bearer("nonsense")).want(t, 200, "")
		if h := app.last(t).Header; h.Get(relay.ClientHeader) != "spiffe://shop.internal/reports" || h.Get("Authorization") != "" || h.Get(relay.HandleHeader) != "" {
			t.Errorf("%v", h)
		}
	})
	t.Run("another caller's token that is bound to nothing", func(t *testing.T) {
		w.apply(strings.ReplaceAll(strings.ReplaceAll(shopPolicy, "IDP", w.users.URL), "token: {bind: mtls}", "token: {}"))
		token := w.machine("reports", "orders")
		get(t, reports, ordersURL+"/any", bearer(token)).want(t, 200, "")
		get(t, gateway, ordersURL+"/any", bearer(token)).want(t, 401, "CS7006")
	})
	t.Run("outside the graph", func(t *testing.T) {
		n := len(app.requests())
		stranger := w.as("stranger", "orders", r.at("internal"))
		if resp, err := stranger.Get(ordersURL + "/bare"); err == nil {
			t.Errorf("a caller outside the graph got %s", resp.Status)
		}
		if resp, err := w.anyone(r.at("internal")).Get(ordersURL + "/bare"); err == nil {
			t.Errorf("a caller without a certificate got %s", resp.Status)
		}
		if len(app.requests()) != n {
			t.Error("the application was reached")
		}
	})
	if text := r.log.String(); strings.Contains(text, token) || strings.Contains(text, user) {
		t.Error("a token stands in the log")
	}
}

// spoofed sends every spelling of the relay's headers that a server might take for the real one.
func spoofed(t *testing.T, c *http.Client, token string, app *application, headers ...string) {
	for _, name := range []string{"User", "Subject-Issuer", "Client", "Chain", "Scopes", "Txn", "Request-Id", "Handle", "Secret", "Error", "Anything"} {
		headers = append(headers, "X-Countersign-"+name+": evil", "x-countersign-"+strings.ToLower(name)+": evil",
			"X_Countersign_"+strings.ReplaceAll(name, "-", "_")+": evil", "X-Countersign_"+name+": evil", "X.Countersign."+name+": evil")
	}
	headers = append(headers, "Forwarded: for=evil", "X-Forwarded-For: evil", "X-Forwarded-User: evil", "X-Forwarded-Client-Cert: evil", "X-Real-Ip: evil",
		"Client-Cert: :evil:", "X-Forwarded-Port: evil", "X_Forwarded_For: evil", "Remote-User: evil")
	get(t, c, ordersURL+"/any", append(headers, bearer(token))...).want(t, 200, "")
	h := app.last(t).Header
	for name, values := range h {
		if strings.Contains(strings.Join(values, " "), "evil") {
			t.Errorf("%s: %q reached the application", name, values)
		}
	}
	if h.Get(relay.UserHeader) != "ana" || h.Get(relay.ScopesHeader) == "" || len(h.Values(relay.UserHeader)) != 1 {
		t.Errorf("the caller had the relay's own headers removed: %v", h)
	}
}

func inboundRefusals(t *testing.T, w *world, gateway *http.Client, token string, app *application) {
	n := len(app.requests())
	readOnly := w.exchanged(w.users.token(t, map[string]any{"scope": "orders:read"}), "gateway", "orders")
	for name, c := range map[string]struct {
		method, path string
		headers      []string
		status       int
		code         string
		challenge    string
	}{
		"no token":                   {"GET", "/any", nil, 401, "CS7001", "Bearer"},
		"two Authorizations":         {"GET", "/any", []string{bearer(token), bearer(token)}, 400, "CS7003", `Bearer error="invalid_request"`},
		"another spelling":           {"GET", "/any", []string{"Authorization_: Bearer " + token}, 401, "CS7001", "Bearer"},
		"two tokens in one":          {"GET", "/any", []string{bearer(token + ", Bearer " + token)}, 400, "CS7003", `Bearer error="invalid_request"`},
		"token in the query":         {"GET", "/any?access_token=" + token, nil, 401, "CS7001", "Bearer"},
		"user's token":               {"GET", "/any", []string{bearer(w.users.token(t, nil))}, 401, "CS7002", `Bearer error="invalid_token"`},
		"another audience":           {"GET", "/any", []string{bearer(w.machine("orders", "inventory"))}, 401, "CS7002", `Bearer error="invalid_token"`},
		"another caller's token":     {"GET", "/any", []string{bearer(w.machine("reports", "orders"))}, 401, "CS7002", `Bearer error="invalid_token"`}, // it is bound
		"broken signature":           {"GET", "/any", []string{bearer(token[:len(token)-4] + "AAAA")}, 401, "CS7002", `Bearer error="invalid_token"`},
		"lacks a scope":              {"PUT", "/lines/7", []string{bearer(readOnly)}, 403, "CS7004", `Bearer error="insufficient_scope", scope="orders:read orders:write"`},
		"no route":                   {"GET", "/other", []string{bearer(token)}, 404, "CS7030", ""},
		"no method":                  {"DELETE", "/any", []string{bearer(token)}, 405, "CS7031", ""},
		"dot segments":               {"GET", "/any/../other", []string{bearer(token)}, 400, "CS7032", ""},
		"another method in disguise": {"GET", "/any", []string{bearer(token), "X-Http-Method-Override: DELETE"}, 400, "CS7032", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := send(t, gateway, c.method, ordersURL+c.path, nil, c.headers...)
			got.want(t, c.status, c.code)
			if got.Header.Get("Www-Authenticate") != c.challenge {
				t.Errorf("WWW-Authenticate is %q, want %q", got.Header.Get("Www-Authenticate"), c.challenge)
			}
		})
	}
	if len(app.requests()) != n {
		t.Error("a refused request reached the application")
	}
}
