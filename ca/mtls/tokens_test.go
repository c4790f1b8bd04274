package mtls

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/sts/verify"
)

// verifier is that of a service for the daemon's tokens.
func (k *kit) verifier(service string) *verify.Verifier {
	k.Helper()
	v, err := verify.New(verify.Config{
		Issuer: "https://localhost:8443", Audience: service, Roots: poolOf(k.ca.Roots()), Now: k.now,
		JWKSURI: k.url + "/.well-known/jwks.json", RevocationsURI: k.url + "/oauth2/revocations",
	})
	k.must(err)
	return v
}

// incoming is a token for orders, as gateway has it.
func (k *kit) incoming(gateway *Source) string {
	k.Helper()
	token, err := NewTokens(gateway).Machine(context.Background(), "orders", "orders:read")
	k.must(err)
	return token.Value
}

// requestOf is a request to orders with the token that its middleware has passed, or has not.
func (k *kit) requestOf(token string) *http.Request {
	k.Helper()
	var passed *http.Request
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	k.verifier("orders").Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { passed = r })).ServeHTTP(w, r)
	if passed == nil {
		k.Fatalf("the token was refused: %d %v", w.Code, w.Header())
	}
	return passed
}

// counting counts token requests, and may hold them.
func counting(n *atomic.Int64, hold <-chan struct{}) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/oauth2/token" {
				n.Add(1)
				if hold != nil {
					<-hold
				}
			}
			h.ServeHTTP(w, r)
		})
	}
}

func TestExchangeIsKept(t *testing.T) {
	k := newKit(t, nil)
	gateway, orders := k.ready("gateway"), k.ready("orders")
	subject, other := k.incoming(gateway), k.incoming(gateway)
	tokens := NewTokens(orders)
	var n atomic.Int64
	k.before(counting(&n, nil))
	exchange := func(subject, audience string, scopes ...string) string {
		t.Helper()
		token, err := tokens.Exchange(t.Context(), subject, audience, scopes...)
		k.must(err)
		return token.Value
	}
	first := exchange(subject, "inventory", "stock:read", "stock:list")
	claims, err := k.verifier("inventory").Verify(t.Context(), first)
	if err != nil || claims.Actor() != k.id("orders").String() || !slices.Equal(claims.Scopes, []string{"stock:read", "stock:list"}) && !slices.Equal(claims.Scopes, []string{"stock:list", "stock:read"}) {
		t.Fatalf("%+v, %v", claims, err)
	}
	if exchange(subject, "inventory", "stock:list", "stock:read", "stock:read") != first || n.Load() != 1 {
		t.Errorf("the same was asked for %d times", n.Load())
	}
	for name, next := range map[string]string{
		"another subject token": exchange(other, "inventory", "stock:read", "stock:list"),
		"other scopes":          exchange(subject, "inventory", "stock:read"),
		"another spelling":      exchange(subject, k.id("inventory").String(), "stock:read", "stock:list"),
	} {
		if next == first {
			t.Errorf("%s: it got the kept token", name)
		}
	}
	k.must(orders.Renew(t.Context()))
	if exchange(subject, "inventory", "stock:read", "stock:list") == first {
		t.Error("after a renewal the token of the certificate before was given")
	}
}

func TestExchangeIsSingleFlight(t *testing.T) {
	k := newKit(t, nil)
	orders := k.ready("orders")
	subject := k.incoming(k.ready("gateway"))
	tokens := NewTokens(orders)
	var n atomic.Int64
	hold := make(chan struct{})
	k.before(counting(&n, hold))
	given, quit := context.WithCancel(t.Context())
	abandoned := make(chan error, 1)
	go func() { _, err := tokens.Exchange(given, subject, "inventory"); abandoned <- err }()
	k.eventually("the request", func() bool { return n.Load() == 1 })
	var wg sync.WaitGroup
	var got sync.Map
	for range 50 {
		wg.Go(func() {
			token, err := tokens.Exchange(t.Context(), subject, "inventory")
			if err == nil {
				got.Store(token.Value, true)
			}
		})
	}
	quit() // who began it does not take it with him
	if err := <-abandoned; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(hold)
	wg.Wait()
	different := 0
	got.Range(func(any, any) bool { different++; return true })
	if n.Load() != 1 || different != 1 {
		t.Errorf("%d requests, %d different tokens", n.Load(), different)
	}
}

func TestTokensAreNeverGivenPastTheirEnd(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	gateway := k.ready("gateway")
	tokens := NewTokens(gateway)
	var n atomic.Int64
	k.before(counting(&n, nil))
	first, err := tokens.Machine(t.Context(), "orders", "orders:read")
	k.must(err)
	if life := first.Expires.Sub(clock.now()); life < 4*time.Minute || life > 5*time.Minute+time.Second {
		t.Errorf("it lives for %s", life)
	}
	clock.turn(first.Expires.Sub(clock.now()) - 20*time.Second) // a new one is asked for, and the old one given meanwhile
	second, err := tokens.Machine(t.Context(), "orders", "orders:read")
	if err != nil || second.Value != first.Value {
		t.Errorf("it waited for the next although the first is good: %v", err)
	}
	k.eventually("the next", func() bool {
		next, err := tokens.Machine(t.Context(), "orders", "orders:read")
		return err == nil && next.Value != first.Value
	})
	if n.Load() != 2 {
		t.Errorf("%d requests", n.Load())
	}
	// With the authority gone the last one is good to its end, and no longer.
	k.gone()
	last, err := tokens.Machine(t.Context(), "orders", "orders:read")
	k.must(err)
	clock.turn(last.Expires.Sub(clock.now()) - time.Second)
	if token, err := tokens.Machine(t.Context(), "orders", "orders:read"); err == nil {
		t.Errorf("a second before its end, which is %s, %s was given", last.Expires, token.Expires)
	}
}

// What is made of a token ends with it: near the end it is not asked for again and again.
func TestTheSubjectTokensEndIsTheEnd(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	orders := k.ready("orders")
	subject := k.incoming(k.ready("gateway"))
	tokens := NewTokens(orders)
	var n atomic.Int64
	k.before(counting(&n, nil))
	first, err := tokens.Exchange(t.Context(), subject, "inventory")
	k.must(err)
	clock.turn(first.Expires.Sub(clock.now()) - 20*time.Second)
	for range 20 {
		_, err := tokens.Exchange(t.Context(), subject, "inventory")
		k.must(err)
		time.Sleep(5 * time.Millisecond)
	}
	if n.Load() > 2 {
		t.Errorf("it was asked for %d times", n.Load())
	}
}

func TestRefusalsAreNotKept(t *testing.T) {
	k := newKit(t, nil)
	tokens := NewTokens(k.ready("reports"))
	var n atomic.Int64
	k.before(counting(&n, nil))
	var refused *client.OAuthError
	for range 10 {
		if _, err := tokens.Machine(t.Context(), "orders", "orders:read"); !errors.As(err, &refused) {
			t.Fatalf("%v", err)
		}
	}
	if n.Load() != 1 {
		t.Errorf("within a second the refusal was asked for %d times", n.Load())
	}
	k.apply(strings.Replace(testPolicy, "from: gateway", "from: reports", 1))
	k.eventually("the token", func() bool { _, err := tokens.Machine(t.Context(), "orders", "orders:read"); return err == nil })
}

func TestTokensAreBounded(t *testing.T) {
	k := newKit(t, nil)
	tokens := NewTokens(k.ready("orders"))
	tokens.mu.Lock()
	defer tokens.mu.Unlock()
	for i := range 3 * maxTokens {
		tokens.entry(tokenKey{subject: sha256.Sum256(fmt.Append(nil, i))})
	}
	if len(tokens.known) != maxTokens || tokens.used.Len() != maxTokens {
		t.Errorf("%d and %d are kept", len(tokens.known), tokens.used.Len())
	}
}

// stock is inventory: it says what reached it.
func (k *kit) stock(src *Source) (*echo, *atomic.Int64) {
	k.Helper()
	var reached atomic.Int64
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := verify.FromContext(r.Context())
		_, _ = io.WriteString(w, claims.Actor()+" "+strings.Join(claims.Scopes, " "))
	})
	h := k.verifier("inventory").Middleware(inner)
	return k.serveAs(src, Only(k.id("orders")), "inventory.shop.internal", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		h.ServeHTTP(w, r)
	})), &reached
}

func TestTransportExchangesForTheNextHop(t *testing.T) {
	k := newKit(t, nil)
	orders := k.ready("orders")
	e, _ := k.stock(k.ready("inventory"))
	in := k.requestOf(k.incoming(k.ready("gateway")))
	tokens := NewTokens(orders)
	c := &http.Client{Transport: tokens.Transport("inventory", []string{"stock:read"}, &http.Transport{DialContext: e.dial})}
	defer c.CloseIdleConnections()
	ask := func() string {
		t.Helper()
		r, err := http.NewRequestWithContext(in.Context(), http.MethodGet, e.url(), nil)
		k.must(err)
		r.Header.Set("Authorization", in.Header.Get("Authorization")) // as a careless program copies it
		response, err := c.Do(r)
		k.must(err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		k.must(err)
		return string(body)
	}
	if got := ask(); got != "spiffe://shop.internal/orders stock:read" {
		t.Errorf("%q", got)
	}
	k.must(orders.Renew(t.Context())) // token and connection change together
	if got := ask(); got != "spiffe://shop.internal/orders stock:read" {
		t.Errorf("%q", got)
	}
}

// Tokens bound to the certificate go on being good across a renewal: they are asked for anew, and shown over new connections.
func TestBoundTokensOutliveARenewal(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	k.apply(strings.Replace(testPolicy, "{name: inventory, ", "{name: inventory, token: {bind: mtls}, ", 1))
	orders := k.ready("orders")
	e, _ := k.stock(k.ready("inventory"))
	in := k.requestOf(k.incoming(k.ready("gateway")))
	bound, err := NewTokens(orders).Exchange(t.Context(), in.Header.Get("Authorization")[len("Bearer "):], "inventory")
	k.must(err)
	if _, err := k.verifier("inventory").Verify(t.Context(), bound.Value); err == nil {
		t.Fatal("the token is not bound")
	}
	c := &http.Client{Transport: NewTokens(orders).Transport("inventory", nil, &http.Transport{DialContext: e.dial})}
	defer c.CloseIdleConnections()
	for range 2 {
		r, err := http.NewRequestWithContext(in.Context(), http.MethodGet, e.url(), nil)
		k.must(err)
		response, err := c.Do(r)
		k.must(err)
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s", response.Status)
		}
		clock.turn(2 * time.Minute) // a certificate is backdated by one, and one that is younger than the token is taken too
		k.must(orders.Renew(t.Context()))
	}
}

// closer is a body that tells that it was closed.
type closer struct {
	io.Reader
	closed atomic.Bool
}

func (c *closer) Close() error { c.closed.Store(true); return nil }

func TestTransportSendsNothingWithoutRight(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	e, reached := k.stock(k.ready("inventory"))
	impostor := k.serveAs(k.ready("reports"), InDomain(), "inventory.shop.internal", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	other := k.serveAs(gateway, InDomain(), "gateway.shop.internal", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	in := k.requestOf(k.incoming(gateway))
	bare := httptest.NewRequest(http.MethodGet, "/", nil)
	bare.Header = in.Header.Clone() // the header is there, but nobody has verified it
	tokens := NewTokens(orders)
	over := func(e *echo) *http.Transport { return &http.Transport{DialContext: e.dial} }
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	defer plain.Close()
	for name, c := range map[string]struct {
		ctx    context.Context
		url    string
		over   http.RoundTripper
		to     string
		scopes []string
		want   string
	}{
		"no verified token":                {bare.Context(), e.url(), over(e), "inventory", nil, "no verified token"},
		"no token at all":                  {t.Context(), e.url(), over(e), "inventory", nil, "no verified token"},
		"a service of another name":        {in.Context(), impostor.url(), over(impostor), "inventory", nil, ""},
		"a name of another service":        {in.Context(), other.url(), over(other), "inventory", nil, "not admitted"},
		"no edge":                          {in.Context(), e.url(), over(e), "gateway", nil, "no token"},
		"a scope that is not held":         {in.Context(), e.url(), over(e), "inventory", []string{"stock:write"}, "no token"},
		"no TLS":                           {in.Context(), plain.URL, nil, "inventory", nil, "mutual TLS only"},
		"a base that may send it anyhow":   {in.Context(), e.url(), roundTripper{over(e)}, "inventory", nil, "can't be taken"},
		"an audience that is no name":      {in.Context(), e.url(), over(e), "in ventory", nil, "no token"},
		"an audience of another domain":    {in.Context(), e.url(), over(e), "spiffe://other/inventory", nil, "no token"},
		"an operator as audience":          {in.Context(), e.url(), over(e), "spiffe://shop.internal/operator/ann", nil, "no token"},
		"the authority as audience":        {in.Context(), e.url(), over(e), "spiffe://shop.internal/countersign", nil, "no token"},
		"no audience":                      {in.Context(), e.url(), over(e), "", nil, "needs an audience"},
		"a server that nobody vouches for": {in.Context(), strings.Replace(plain.URL, "http://", "https://", 1), nil, "inventory", nil, ""},
	} {
		body := &closer{Reader: strings.NewReader("secret")}
		r, err := http.NewRequestWithContext(c.ctx, http.MethodPost, c.url, body)
		k.must(err)
		transport := tokens.Transport(c.to, c.scopes, c.over)
		response, err := transport.RoundTrip(r)
		if err == nil {
			response.Body.Close()
			t.Errorf("%s: it was sent", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		k.eventually("the end of the body", body.closed.Load)
		if strings.Contains(fmt.Sprint(err), in.Header.Get("Authorization")[len("Bearer "):]) {
			t.Errorf("%s: the error holds the token", name)
		}
	}
	if reached.Load() != 0 {
		t.Errorf("%d requests reached somebody", reached.Load())
	}
}

type roundTripper struct{ http.RoundTripper }

// A redirect leads the client elsewhere, and not the token.
func TestRedirectsDoNotLeadTokensAway(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	var reached atomic.Int64
	away := k.serveAs(gateway, InDomain(), "gateway.shop.internal", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Add(1) }))
	e := k.serveAs(k.ready("inventory"), InDomain(), "inventory.shop.internal", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, away.url(), http.StatusFound)
	}))
	in := k.requestOf(k.incoming(gateway))
	dial := &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		if strings.HasPrefix(address, "gateway.") {
			return away.dial(ctx, network, address)
		}
		return e.dial(ctx, network, address)
	}}
	c := &http.Client{Transport: NewTokens(orders).Transport("inventory", nil, dial)}
	defer c.CloseIdleConnections()
	r, err := http.NewRequestWithContext(in.Context(), http.MethodGet, e.url(), nil)
	k.must(err)
	if response, err := c.Do(r); err == nil {
		response.Body.Close()
		t.Errorf("%s", response.Status)
	}
	if reached.Load() != 0 {
		t.Error("the redirect was followed to another service")
	}
}

func TestExchangeWithoutATokenAsksNobody(t *testing.T) {
	k := newKit(t, nil)
	orders := k.ready("orders")
	var n atomic.Int64
	k.before(counting(&n, nil))
	if _, err := NewTokens(orders).Exchange(t.Context(), "", "inventory"); !errors.Is(err, ErrNoToken) || n.Load() != 0 {
		t.Errorf("%v, %d requests", err, n.Load())
	}
}
