package relay_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/relay"
)

const gatewayRelay = `
identity: {dir: DIR/gateway, readonly: true}
app: {socket: DIR/gateway.sock}
public:
  listen: 127.0.0.1:0
  users: {issuer: "IDP", audiences: [shop-web]}
  limits: {stall: 1s}
  rate: {key: address, replenish_rate: 100000}
  routes:
    - {name: app, methods: [GET, POST], path: /app, scopes: [shop.read]}
    - {name: api, methods: [GET, POST], path: "/api/{rest...}", strip: /api, to: orders, scopes: ["orders:read"], timeout: 500ms, idle: 1s}
    - {name: few, methods: [GET], path: /few, scopes: [], rate: {key: user, replenish_rate: 1, burst: 2}}
outbound:
  - {name: orders, url: "https://orders.shop.internal", address: "ORDERS", listen: "unix:DIR/orders-out.sock"}
`

const shop = "https://gateway.shop.internal"

// shopFront is the gateway before orders; the applications are the test's.
type shopFront struct {
	*world
	gateway, orders *running
	app, ordersApp  *application
	users           *http.Client
	token           string
}

func newShop(t *testing.T) *shopFront {
	s := &shopFront{world: newWorld(t)}
	s.ordersApp = s.world.app("orders", nil)
	s.app = s.world.app("gateway", nil)
	s.identity("orders")
	s.identity("gateway")
	s.orders = s.relay(strings.Replace(ordersRelay, "methods: [GET], path: /any,", `methods: [GET, POST], path: "/{rest...}",`, 1))
	s.gateway = s.relay(strings.NewReplacer("IDP", s.world.users.URL, "ORDERS", s.orders.at("internal")).Replace(gatewayRelay))
	s.users = s.anyone(s.gateway.at("public"))
	s.token = s.world.users.token(t, nil)
	return s
}

func (s *shopFront) serving(do http.HandlerFunc) {
	s.ordersApp.mu.Lock()
	defer s.ordersApp.mu.Unlock()
	s.ordersApp.do = do
}

func TestGateway(t *testing.T) {
	s := newShop(t)
	t.Run("to the application", func(t *testing.T) {
		get(t, s.users, shop+"/app", bearer(s.token), "Cookie: a=b", "Traceparent: 00-11111111111111111111111111111111-2222222222222222-01").want(t, 200, "")
		h := s.app.last(t).Header
		if h.Get(relay.UserHeader) != "ana" || h.Get(relay.SubjectIssuerHeader) != s.world.users.URL || h.Get(relay.ClientHeader) != "shop-spa" || h.Get("Cookie") != "a=b" ||
			h.Get("Authorization") != "" || h.Get(relay.ChainHeader) != "" || h.Get("Traceparent") == "" || strings.Contains(h.Get("Traceparent"), "1111111111") {
			t.Errorf("%v", h)
		}
	})
	t.Run("on to a service", func(t *testing.T) {
		got := get(t, s.users, shop+"/api/orders/7?x=%20y", bearer(s.token), "Cookie: session=secret")
		got.want(t, 200, "")
		rq := s.ordersApp.last(t)
		if rq.Header.Get(relay.UserHeader) != "ana" || rq.Header.Get(relay.ChainHeader) != "spiffe://shop.internal/gateway" || rq.Header.Get("Cookie") != "" || rq.URL.String() != "/orders/7?x=%20y" {
			t.Errorf("orders got %s %v", rq.URL, rq.Header)
		}
		if rq.Header.Get(relay.IDHeader) != got.Header.Get("X-Request-Id") {
			t.Error("the request id is another at the next hop")
		}
	})
	t.Run("refused", func(t *testing.T) { s.refusals(t) })
	t.Run("rate", func(t *testing.T) {
		for _, want := range []int{200, 200, 429} {
			if got := get(t, s.users, shop+"/few", bearer(s.token)); got.StatusCode != want || got.Header.Get("X-RateLimit-Burst-Capacity") != "2" {
				t.Errorf("got %d, want %d: %v", got.StatusCode, want, got.Header)
			}
		}
	})
	t.Run("upstream", func(t *testing.T) { s.upstream(t) })
	t.Run("streams", func(t *testing.T) { s.streams(t) })
	t.Run("web sockets", func(t *testing.T) { s.sockets(t) })
	t.Run("smuggling", func(t *testing.T) { s.smuggling(t) })
}

func (s *shopFront) refusals(t *testing.T) {
	n := len(s.app.requests()) + len(s.ordersApp.requests())
	now := time.Now()
	get(t, s.users, shop+"/nothing").want(t, 401, "CS7001") // who is nobody does not learn the routes
	get(t, s.users, shop+"/nothing", bearer(s.token)).want(t, 404, "CS7030")
	get(t, s.users, shop+"/app").want(t, 401, "CS7001")
	for name, changes := range map[string]map[string]any{
		"expired":          {"exp": now.Add(-2 * time.Minute).Unix(), "iat": now.Add(-time.Hour).Unix()},
		"another audience": {"aud": "other"},
		"another issuer":   {"iss": "https://evil.example"},
		"an ID token":      {"nonce": "x"},
		"a service's name": {"sub": "spiffe://shop.internal/orders"},
	} {
		if changes["nonce"] != nil {
			continue // at+jwt with a nonce is one; the verifier's own tests know ID tokens
		}
		t.Run(name, func(t *testing.T) {
			get(t, s.users, shop+"/app", bearer(s.world.users.token(t, changes))).want(t, 401, "CS7002")
		})
	}
	get(t, s.users, shop+"/app", bearer(s.world.users.token(t, map[string]any{"scope": "other"}))).want(t, 403, "CS7004")
	get(t, s.users, shop+"/app", bearer(s.exchanged(s.token, "gateway", "orders"))).want(t, 401, "CS7002") // a relay token is no user's
	if got := len(s.app.requests()) + len(s.ordersApp.requests()); got != n {
		t.Error("a refused request reached an application")
	}
	if resp, err := http.Get("http://" + s.gateway.at("public") + "/app"); err == nil {
		resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("plain HTTP got %s", resp.Status)
		}
	}
}

// upstream: slow, dead, closing early. The gateway's own relay sees orders' relay; that of orders sees the application.
func (s *shopFront) upstream(t *testing.T) {
	s.serving(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	begun := time.Now()
	get(t, s.users, shop+"/api/slow", bearer(s.token)).want(t, 504, "CS7021")
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("504 took %s", took)
	}
	var posts atomic.Int64
	s.serving(func(w http.ResponseWriter, r *http.Request) {
		posts.Add(1)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	})
	got := send(t, s.users, "POST", shop+"/api/early", strings.NewReader("x"), bearer(s.token))
	if got.StatusCode != 502 || posts.Load() != 1 { // orders' relay says so, and the gateway hands it on
		t.Errorf("closing early: %d after %d requests", got.StatusCode, posts.Load())
	}
	s.serving(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		time.Sleep(50 * time.Millisecond) // so that the half is on its way
		panic(http.ErrAbortHandler)
	})
	resp, err := s.users.Do(s.request(t, "/api/half"))
	s.must(err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err == nil {
		t.Errorf("an answer that broke off was taken for whole: %q", body)
	}
	s.serving(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	resp, err = s.users.Do(s.request(t, "/api/stuck"))
	s.must(err)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("an answer that got stuck was taken for whole")
	}
	resp.Body.Close()
	s.serving(nil)
}

func (s *shopFront) request(t *testing.T, path string) *http.Request {
	rq, err := http.NewRequestWithContext(t.Context(), "GET", shop+path, nil)
	s.must(err)
	rq.Header.Set("Authorization", "Bearer "+s.token)
	return rq
}

// streams: each piece of an answer arrives before the next is written, over HTTP/2 and HTTP/1.1; trailers come too.
func (s *shopFront) streams(t *testing.T) {
	next := make(chan struct{})
	s.serving(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set(relay.HandleHeader, r.Header.Get(relay.HandleHeader))
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			<-next
		}
		w.Header().Set("Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+relay.UserHeader, "evil")
	})
	defer s.serving(nil)
	for name, c := range map[string]*http.Client{"HTTP/2.0": s.users, "HTTP/1.1": http1(s.anyone(s.gateway.at("public")))} {
		resp, err := c.Do(s.request(t, "/api/events"))
		s.must(err)
		lines := bufio.NewReader(resp.Body)
		for i := range 3 {
			line, err := lines.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Errorf("%s: %q %v", name, line, err)
			}
			_, _ = lines.ReadString('\n')
			next <- struct{}{}
		}
		_, _ = io.Copy(io.Discard, lines)
		resp.Body.Close()
		if resp.Proto != name || resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get(relay.UserHeader) != "" || resp.Header.Get("Set-Cookie") != "" || resp.Header.Get(relay.HandleHeader) != "" {
			t.Errorf("%s: %s %v %v", name, resp.Proto, resp.Header, resp.Trailer)
		}
	}
}

// sockets: a connection that changes its protocol works in both directions, through both relays.
func (s *shopFront) sockets(t *testing.T) {
	s.serving(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			http.Error(w, "no upgrade", 400)
			return
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, rw) // an echo
	})
	defer s.serving(nil)
	rq := s.request(t, "/api/socket")
	rq.Header.Set("Connection", "Upgrade")
	rq.Header.Set("Upgrade", "websocket")
	c := http1(s.anyone(s.gateway.at("public")))
	c.Timeout = 0
	resp, err := c.Do(rq)
	s.must(err)
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != 101 || !ok {
		t.Fatalf("got %s", resp.Status)
	}
	defer conn.Close()
	for _, word := range []string{"one", "another"} {
		_, err := io.WriteString(conn, word)
		s.must(err)
		got := make([]byte, len(word))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != word {
			t.Errorf("%q came back as %q: %v", word, got, err)
		}
	}
}

// smuggling: what two servers could read as one request or two is refused by the first.
func (s *shopFront) smuggling(t *testing.T) {
	n := len(s.ordersApp.requests())
	for name, head := range map[string]string{
		"two lengths":            "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
		"length and chunks":      "Content-Length: 4\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		"chunks twice":           "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"a strange encoding":     "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"a space before a colon": "Content-Length : 4\r\n\r\nabcd",
		"two hosts":              "Host: evil.example\r\n\r\n",
		"a bare return":          "X-A: b\rX-Countersign-User: evil\r\n\r\n",
	} {
		conn := s.tls(t)
		fmt.Fprintf(conn, "POST /api/x HTTP/1.1\r\nHost: gateway.shop.internal\r\n%s\r\n%s", bearer(s.token), head)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, " 400 ") && !strings.Contains(line, " 501 ") {
			t.Errorf("%s: %q %v", name, line, err)
		}
		conn.Close()
	}
	if got := len(s.ordersApp.requests()); got != n {
		t.Errorf("%d of them reached orders", got-n)
	}
}

func (s *shopFront) tls(t *testing.T) net.Conn {
	transport := s.anyone(s.gateway.at("public")).Transport.(*http.Transport)
	config := transport.TLSClientConfig.Clone()
	config.ServerName = "gateway.shop.internal"
	return dialTLS(t, s.gateway.at("public"), config)
}

// TestLoopbackApplication: an application on a port is proved by the secret of each start.
func TestLoopbackApplication(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	app := w.appAt(l, nil)
	w.identity("orders")
	config := strings.Replace(ordersRelay, "{socket: DIR/orders.sock}", fmt.Sprintf(`{url: "http://%s", secret_file: DIR/relay.env}`, l.Addr()), 1)
	var secrets []string
	for range 2 {
		r := w.relay(config)
		get(t, w.as("reports", "orders", r.at("internal")), ordersURL+"/bare", relay.SecretHeader+": evil").want(t, 200, "")
		file := filepath.Join(w.dir, "relay.env")
		body, err := os.ReadFile(file)
		w.must(err)
		info, err := os.Stat(file)
		w.must(err)
		secret := app.last(t).Header.Get(relay.SecretHeader)
		if len(secret) != 43 || !strings.Contains(string(body), "\nCOUNTERSIGN_RELAY_SECRET="+secret+"\n") || info.Mode().Perm() != 0o600 {
			t.Errorf("secret %q, mode %s, file %s", secret, info.Mode(), body)
		}
		secrets = append(secrets, secret)
		r.end()
	}
	if secrets[0] == secrets[1] {
		t.Error("the secret is that of the start before")
	}
}

// TestReloadAndDrain: a configuration with a fault changes nothing, another one takes over without a lost request, and what is in
// flight at the end may end.
func TestReloadAndDrain(t *testing.T) {
	s := newShop(t)
	base := strings.NewReplacer("IDP", s.world.users.URL, "ORDERS", s.orders.at("internal"), "DIR", s.dir).Replace(gatewayRelay)
	parse := func(doc string) *relay.Config {
		cfg, err := relay.ParseConfig("relay.yaml", []byte(doc+"ops: {listen: \"127.0.0.1:0\"}\n"))
		s.must(err)
		return cfg
	}
	if err := s.gateway.Reload(parse(strings.Replace(base, "app: {socket: ", "app: {socket: /x", 1))); err == nil || !strings.Contains(err.Error(), "app") {
		t.Errorf("a change that needs a restart: %v", err)
	}
	get(t, s.users, shop+"/app", bearer(s.token)).want(t, 200, "")
	s.must(s.gateway.Reload(parse(strings.Replace(base, "path: /app,", "path: /other,", 1))))
	get(t, s.users, shop+"/app", bearer(s.token)).want(t, 404, "CS7030")
	get(t, s.users, shop+"/other", bearer(s.token)).want(t, 200, "")
	entered, leave := make(chan struct{}), make(chan struct{})
	s.app.mu.Lock()
	s.app.do = func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-leave
		_, _ = io.WriteString(w, "whole")
	}
	s.app.mu.Unlock()
	answers := make(chan answer, 1)
	go func() { answers <- get(t, s.users, shop+"/other", bearer(s.token)) }()
	<-entered
	go s.gateway.end()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", s.gateway.at("public"), time.Second)
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(until) {
			t.Fatal("the relay goes on listening")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	close(leave)
	select {
	case got := <-answers:
		if got.body != "whole" || got.StatusCode != 200 {
			t.Errorf("the request in flight got %d %q", got.StatusCode, got.body)
		}
	case <-ctx.Done():
		t.Error("the request in flight got no answer")
	}
	s.gateway.end()
}
