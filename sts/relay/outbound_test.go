package relay_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts/relay"
)

const inventoryRelay = `
identity: {dir: DIR/inventory, readonly: true}
app: {socket: DIR/inventory.sock}
internal:
  listen: 127.0.0.1:0
  routes: [{name: all, methods: [GET, POST], path: "/{rest...}", scopes: ["stock:read"]}]
`

// pair are the relays of orders and of inventory, whose applications are the test's.
type pair struct {
	*world
	orders, inventory       *running
	ordersApp, inventoryApp *application
	gateway                 *http.Client // calls orders as gateway
	token                   string       // a user's, for orders
}

// newPair starts them. extra goes into the outbound of orders, app into its app.
func newPair(t *testing.T, extra, app string) *pair {
	p := &pair{world: newWorld(t)}
	p.inventoryApp = p.app("inventory", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "stock for %s via %s", r.Header.Get(relay.UserHeader), r.Header.Get(relay.ChainHeader))
	})
	p.identity("inventory")
	p.identity("orders")
	p.inventory = p.relay(inventoryRelay)
	config := strings.Replace(ordersRelay, "orders.sock}", "orders.sock"+app+"}", 1)
	p.orders = p.relay(config + fmt.Sprintf(`
outbound:
  - {name: inventory, url: "https://inventory.shop.internal", address: "%s", listen: "127.0.0.1:0"%s}
`, p.inventory.at("internal"), extra))
	// The application calls what it is told to, with what it was given.
	p.ordersApp = p.app("orders", func(w http.ResponseWriter, r *http.Request) {
		got := p.call(t, r.Header.Get("X-Call"), relay.HandleHeader+": "+r.Header.Get(relay.HandleHeader))
		w.Header().Set("X-Code", got.Header.Get(relay.ErrorHeader))
		w.WriteHeader(got.StatusCode)
		_, _ = io.WriteString(w, got.body)
	})
	p.gateway = p.as("gateway", "orders", p.orders.at("internal"))
	p.token = p.exchanged(p.users.token(t, nil), "gateway", "orders")
	return p
}

// call calls inventory as the application of orders does.
func (p *pair) call(t testing.TB, path string, headers ...string) answer {
	t.Helper()
	return get(t, plain, "http://"+p.orders.at("outbound.inventory")+path, headers...)
}

// held runs f while a request to the application of orders is being served, with the header that it got.
func (p *pair) held(t *testing.T, f func(http.Header)) {
	t.Helper()
	var header http.Header
	p.ordersApp.mu.Lock()
	before := p.ordersApp.do
	p.ordersApp.do = func(_ http.ResponseWriter, r *http.Request) { header = r.Header; f(r.Header) }
	p.ordersApp.mu.Unlock()
	get(t, p.gateway, ordersURL+"/any", bearer(p.token)).want(t, 200, "")
	p.ordersApp.mu.Lock()
	p.ordersApp.do = before
	p.ordersApp.mu.Unlock()
	if header == nil {
		t.Error("the application was not reached")
	}
}

var plain = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second} //nolint:gochecknoglobals // a test's client

func TestOutbound(t *testing.T) {
	p := newPair(t, "", "")
	t.Run("the user arrives with the chain", func(t *testing.T) {
		got := get(t, p.gateway, ordersURL+"/any", bearer(p.token), "X-Call: /stock/7?a=b", "Cookie: session=1")
		got.want(t, 200, "")
		if want := "stock for ana via spiffe://shop.internal/orders,spiffe://shop.internal/gateway"; got.body != want {
			t.Errorf("got %q, want %q", got.body, want)
		}
		rq := p.inventoryApp.last(t)
		if rq.URL.String() != "/stock/7?a=b" || rq.Header.Get(relay.ScopesHeader) != "stock:read" || rq.Host != "inventory.shop.internal" {
			t.Errorf("inventory got %s %s %v", rq.Host, rq.URL, rq.Header)
		}
		if rq.Header.Get(relay.TransactionHeader) != p.ordersApp.last(t).Header.Get(relay.TransactionHeader) {
			t.Error("the transaction is another")
		}
	})
	n := len(p.inventoryApp.requests())
	t.Run("refused", func(t *testing.T) { p.refusals(t) })
	if len(p.inventoryApp.requests()) != n {
		t.Error("a refused call reached inventory")
	}
	t.Run("what does not pass", func(t *testing.T) { p.notPassed(t) })
	t.Run("the daemon is down", func(t *testing.T) { p.authorityDown(t) })
}

func (p *pair) refusals(t *testing.T) {
	var over string
	p.held(t, func(h http.Header) { over = h.Get(relay.HandleHeader) })
	p.call(t, "/").want(t, 401, "CS7010")
	p.call(t, "/", relay.HandleHeader+": "+over).want(t, 401, "CS7011") // its request is over
	p.call(t, "/", relay.HandleHeader+": "+strings.Repeat("A", 22)).want(t, 401, "CS7011")
	p.call(t, "/", relay.HandleHeader+": ").want(t, 401, "CS7011")
	p.call(t, "/", bearer(p.token)).want(t, 401, "CS7011") // good, and not of a request that is being served
	p.call(t, "/", bearer(p.users.token(t, nil))).want(t, 401, "CS7011")
	p.call(t, "/", bearer("")).want(t, 401, "CS7011")
	p.call(t, "/", "Authorization: Basic YTpi").want(t, 400, "CS7003")
	p.held(t, func(h http.Header) {
		handle := h.Get(relay.HandleHeader)
		p.call(t, "/", relay.HandleHeader+": "+handle, relay.HandleHeader+": "+handle).want(t, 400, "CS7003")
		p.call(t, "/", relay.HandleHeader+": "+handle, bearer(p.token+"x")).want(t, 401, "CS7011")
		p.call(t, "/", relay.HandleHeader+": "+strings.ToLower(handle)+"x").want(t, 401, "CS7011")
		p.call(t, "/", relay.HandleHeader+": "+handle, "Host: evil.example").want(t, 403, "CS7015")
		p.call(t, "/", relay.HandleHeader+": "+handle, "Sec-Fetch-Site: cross-site").want(t, 403, "CS7015")
		got := p.call(t, "/", "X_Countersign_Handle: "+handle)
		got.want(t, 401, "CS7010")
	})
	// A user who may not: orders:write alone needs nothing that inventory gives.
	token := p.exchanged(p.users.token(t, map[string]any{"scope": "orders:write"}), "gateway", "orders")
	got := get(t, p.gateway, ordersURL+"/any", bearer(token), "X-Call: /")
	if got.StatusCode != 403 || got.Header.Get("X-Code") != "CS7012" || !strings.Contains(got.body, "invalid_scope") || !strings.Contains(got.body, "its request ") {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
}

func (p *pair) notPassed(t *testing.T) {
	p.held(t, func(h http.Header) {
		p.call(t, "/", relay.HandleHeader+": "+h.Get(relay.HandleHeader), "Cookie: session=secret", "X-Countersign-User: evil", "X-Forwarded-For: evil",
			"Proxy-Authorization: Basic evil", "Dpop: evil", "Forwarded: for=evil").want(t, 200, "")
	})
	for name, values := range p.inventoryApp.last(t).Header {
		if text := strings.Join(values, " "); strings.Contains(text, "evil") || strings.Contains(text, "secret") || strings.Contains(text, p.token) {
			t.Errorf("%s: %s reached inventory", name, text)
		}
	}
}

// authorityDown: without a daemon no call without a kept token goes out, least of all with the token that came in.
func (p *pair) authorityDown(t *testing.T) {
	n := len(p.inventoryApp.requests())
	fresh := p.exchanged(p.users.token(t, map[string]any{"sub": "ben"}), "gateway", "orders")
	p.daemon.end()
	got := get(t, p.gateway, ordersURL+"/any", bearer(fresh), "X-Call: /")
	if got.StatusCode != 503 || got.Header.Get("X-Code") != "CS7013" || got.Header.Get("Retry-After") == "" && !strings.Contains(got.body, "can't be asked") {
		t.Errorf("got %d %q %s", got.StatusCode, got.Header.Get("X-Code"), got.body)
	}
	if len(p.inventoryApp.requests()) != n {
		t.Error("a call went out without a token that was exchanged for it")
	}
	// Those whose token is kept go on.
	if got := get(t, p.gateway, ordersURL+"/any", bearer(p.token), "X-Call: /"); got.StatusCode != 200 {
		t.Errorf("a kept token: %d %s", got.StatusCode, got.body)
	}
}

// TestMachine: only an outbound that says so calls as the service itself, and never in place of a credential that is bad.
func TestMachine(t *testing.T) {
	p := newPair(t, ", machine: true", "")
	p.call(t, "/").want(t, 200, "")
	if h := p.inventoryApp.last(t).Header; h.Get(relay.UserHeader) != "" || h.Get(relay.ClientHeader) != "spiffe://shop.internal/orders" {
		t.Errorf("%v", h)
	}
	n := len(p.inventoryApp.requests())
	p.call(t, "/", relay.HandleHeader+": "+strings.Repeat("A", 22)).want(t, 401, "CS7011")
	p.call(t, "/", bearer(p.token)).want(t, 401, "CS7011")
	p.call(t, "/", "Origin: https://evil.example").want(t, 403, "CS7015")
	if len(p.inventoryApp.requests()) != n {
		t.Error("a call with a bad credential went out as the service itself")
	}
}

// TestTokenToTheApplication: with token: authorization the application gets the token and sends it back; with linger for a while
// after its answer too, and several requests with one token do not end each other's.
func TestTokenToTheApplication(t *testing.T) {
	p := newPair(t, "", ", token: authorization, linger: 300ms")
	var token, handle string
	p.held(t, func(h http.Header) {
		token, handle = h.Get("Authorization"), h.Get(relay.HandleHeader)
		p.call(t, "/", "Authorization: "+token).want(t, 200, "")
		p.call(t, "/", "Authorization: "+token, relay.HandleHeader+": "+handle).want(t, 200, "")
	})
	if token != "Bearer "+p.token {
		t.Errorf("the application got %.20q", token)
	}
	p.call(t, "/", relay.HandleHeader+": "+handle).want(t, 200, "") // it lingers
	for until := time.Now().Add(10 * time.Second); p.call(t, "/", relay.HandleHeader+": "+handle).StatusCode != 401; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the handle is good for ever")
		}
	}
	p.held(t, func(h http.Header) {
		inner := h.Get("Authorization")
		// Another request with the same token comes and goes.
		p.ordersApp.mu.Lock()
		p.ordersApp.do = nil
		p.ordersApp.mu.Unlock()
		get(t, p.gateway, ordersURL+"/any", bearer(p.token)).want(t, 200, "")
		time.Sleep(time.Second) // its handle does not linger any more
		p.call(t, "/", "Authorization: "+inner).want(t, 200, "")
	})
}

// TestRevoked: a transaction that is revoked ends what is being served, and the handle with it.
func TestRevoked(t *testing.T) {
	p := newPair(t, "", "")
	get(t, p.gateway, ordersURL+"/any", bearer(p.token), "X-Call: /").want(t, 200, "")
	calls := make(chan answer, 1)
	p.ordersApp.mu.Lock()
	p.ordersApp.do = func(_ http.ResponseWriter, r *http.Request) {
		_, err := p.admin.RevokeTokens(context.Background(), wire.TokenRevocationRequest{Transaction: r.Header.Get(relay.TransactionHeader)})
		p.must(err)
		got := p.call(t, "/", relay.HandleHeader+": "+r.Header.Get(relay.HandleHeader))
		for until := time.Now().Add(15 * time.Second); got.StatusCode == 200 && time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
			got = p.call(t, "/", relay.HandleHeader+": "+r.Header.Get(relay.HandleHeader))
		}
		<-r.Context().Done() // the request itself is cut too
		calls <- got
	}
	p.ordersApp.mu.Unlock()
	get(t, p.gateway, ordersURL+"/any", bearer(p.token)).want(t, 401, "CS7002")
	if got := <-calls; got.StatusCode != 401 {
		t.Errorf("15 s after the revocation a call got %d %s", got.StatusCode, got.body)
	}
	get(t, p.gateway, ordersURL+"/any", bearer(p.token)).want(t, 401, "CS7002")
}
