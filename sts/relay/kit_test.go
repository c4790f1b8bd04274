package relay_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shopPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: [shop.read, "orders:read", "orders:write"], carry: [email]}
services:
  - {name: gateway, dns: [gateway.shop.internal], accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.shop.internal], token: {bind: mtls}}
  - {name: inventory, dns: [inventory.shop.internal], token: {bind: mtls}}
  - {name: reports}
  - {name: stranger}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read", "orders:write"]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}], machine: ["stock:read"]}
  - {from: reports, to: orders, scopes: ["orders:read"], machine: ["orders:read"]}
`

// world is a daemon, an identity provider and the services of shopPolicy, all in process and with real TLS.
type world struct {
	testing.TB
	dir    string
	daemon *process
	admin  *client.Client
	server string
	users  *idp

	mu   sync.Mutex
	srcs map[string]*mtls.Source
}

// process is what runs until it is stopped.
type process struct {
	stop context.CancelFunc
	done chan struct{}
	once sync.Once
}

func run(t testing.TB, f func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		if err := f(ctx); err != nil {
			t.Errorf("ended with %v", err)
		}
	}()
	t.Cleanup(p.end)
	return p
}

func (p *process) end() { p.once.Do(func() { p.stop(); <-p.done }) }

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, srcs: map[string]*mtls.Source{}, users: newIDP(t)}
	dir, err := os.MkdirTemp("", "cs") // sockets have short paths
	w.must(err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.dir = dir
	public := free(t)
	var cfg daemon.Config
	_, err = daemon.Init(t.Context(), daemon.InitOptions{
		Dir: daemon.Dir(filepath.Join(dir, "ca")), Domain: "shop.internal", Listen: public, OpsListen: "127.0.0.1:0",
		Config: func(c *daemon.Config) { c.Audit.Segment, c.Audit.Reserve = 1<<20, 0; cfg = *c },
	})
	w.must(err)
	w.server = cfg.Issuer
	d, err := daemon.Start(t.Context(), daemon.Options{Dir: daemon.Dir(filepath.Join(dir, "ca")), Config: cfg, Version: "test"})
	w.must(err)
	w.daemon = run(t, d.Run)
	w.admin, err = client.New(client.Config{Socket: d.Addr("admin").String()})
	w.must(err)
	t.Cleanup(w.admin.Close)
	w.apply(strings.ReplaceAll(shopPolicy, "IDP", w.users.URL))
	return w
}

func (w *world) apply(document string) {
	w.Helper()
	_, err := w.admin.ApplyPolicy(context.Background(), []byte(document), client.ApplyOptions{})
	w.must(err)
}

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// identity joins a service once, and gives its directory.
func (w *world) identity(name string) string {
	w.Helper()
	dir := filepath.Join(w.dir, name)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	token, err := w.admin.CreateJoinToken(context.Background(), wire.JoinTokenRequest{Service: name})
	w.must(err)
	src, err := mtls.Open(context.Background(), mtls.Config{Dir: dir, Join: token.Join})
	w.must(err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	w.must(src.Wait(ctx))
	w.must(src.Close())
	return dir
}

// source is a service's own, for tests that are that service.
func (w *world) source(name string) *mtls.Source {
	w.Helper()
	dir := w.identity(name)
	w.mu.Lock()
	defer w.mu.Unlock()
	if src, ok := w.srcs[name]; ok {
		return src
	}
	src, err := mtls.Open(context.Background(), mtls.Config{Dir: dir, ReadOnly: true})
	w.must(err)
	w.Cleanup(func() { src.Close() })
	w.srcs[name] = src
	return src
}

// as is an HTTP client that calls every name at one address, as the service.
func (w *world) as(name, server, at string) *http.Client {
	w.Helper()
	src := w.source(name)
	id, err := countersign.NewServiceID("shop.internal", server)
	w.must(err)
	return w.client(mtls.Client(src, mtls.Only(id)), at)
}

func (w *world) client(config *tls.Config, at string) *http.Client {
	transport := &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", at)
		},
	}
	w.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// http1 is the client without HTTP/2.
func http1(c *http.Client) *http.Client {
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	return c
}

// anyone is a client from outside, who trusts the authority's roots.
func (w *world) anyone(at string) *http.Client {
	id, err := w.source("gateway").Identity()
	w.must(err)
	pool := x509.NewCertPool()
	for _, root := range id.Roots {
		pool.AddCert(root)
	}
	return w.client(&tls.Config{RootCAs: pool}, at)
}

// machine is a token of a service without a user.
func (w *world) machine(from, to string) string {
	w.Helper()
	token, err := mtls.NewTokens(w.source(from)).Machine(w.Context(), to)
	w.must(err)
	return token.Value
}

// exchanged is a user's token, exchanged by from for to.
func (w *world) exchanged(user, from, to string) string {
	w.Helper()
	token, err := mtls.NewTokens(w.source(from)).Exchange(w.Context(), user, to)
	w.must(err)
	return token.Value
}

// relay starts one from its configuration, in which DIR is the world's directory.
func (w *world) relay(config string) *running {
	w.Helper()
	r, err := w.tryRelay(config)
	w.must(err)
	return r
}

type running struct {
	*relay.Relay
	*process
	log *logged
}

func (w *world) tryRelay(config string) (*running, error) {
	w.Helper()
	if !strings.Contains(config, "ops:") {
		config += "ops: {listen: \"127.0.0.1:0\"}\n"
	}
	file := filepath.Join(w.dir, "relay.yaml")
	cfg, err := relay.ParseConfig(file, []byte(strings.ReplaceAll(config, "DIR", w.dir)))
	if err != nil {
		return nil, err
	}
	out := &running{log: &logged{}}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out.Relay, err = relay.Start(ctx, relay.Options{Config: cfg, Log: slog.New(slog.NewTextHandler(out.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		return nil, err
	}
	out.process = run(w, out.Relay.Run)
	w.Cleanup(func() {
		if w.Failed() {
			w.Logf("the log of a relay:\n%s", out.log.String())
		}
	})
	return out, nil
}

func (r *running) at(name string) string { return r.Addr(name).String() }

type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// application is what stands behind a relay, at the Unix socket DIR/NAME.sock.
type application struct {
	*http.Server
	mu   sync.Mutex
	seen []*http.Request
	do   http.HandlerFunc
}

func (w *world) app(name string, do http.HandlerFunc) *application {
	w.Helper()
	l, err := net.Listen("unix", filepath.Join(w.dir, name+".sock"))
	w.must(err)
	return w.appAt(l, do)
}

func (w *world) appAt(l net.Listener, do http.HandlerFunc) *application {
	a := &application{do: do}
	a.Server = &http.Server{Handler: a, Protocols: &http.Protocols{}}
	a.Protocols.SetHTTP1(true)
	a.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { defer close(done); _ = a.Serve(l) }()
	w.Cleanup(func() { a.Close(); <-done })
	return a
}

func (a *application) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.seen = append(a.seen, r)
	do := a.do
	a.mu.Unlock()
	if do != nil {
		do(w, r)
		return
	}
	fmt.Fprint(w, "hello")
}

func (a *application) requests() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*http.Request(nil), a.seen...)
}

// last is the request that reached the application last.
func (a *application) last(t testing.TB) *http.Request {
	t.Helper()
	all := a.requests()
	if len(all) == 0 {
		t.Fatal("no request reached the application")
	}
	return all[len(all)-1]
}

// answer is what came back, read whole.
type answer struct {
	*http.Response
	body string
}

// code is the relay's own code, "" if it did not refuse.
func (a answer) code() string { return a.Header.Get(relay.ErrorHeader) }

func send(t testing.TB, c *http.Client, method, url string, body io.Reader, headers ...string) answer {
	t.Helper()
	rq, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			rq.Host = value
			continue
		}
		rq.Header[name] = append(rq.Header[name], value) // as it is written
	}
	resp, err := c.Do(rq)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v after %q", method, url, err, read)
	}
	return answer{resp, string(read)}
}

func get(t testing.TB, c *http.Client, url string, headers ...string) answer {
	t.Helper()
	return send(t, c, http.MethodGet, url, nil, headers...)
}

func (a answer) want(t testing.TB, status int, code string) {
	t.Helper()
	if a.StatusCode != status || a.code() != code {
		t.Errorf("got %d %q, want %d %q: %s", a.StatusCode, a.code(), status, code, a.body)
	}
	if code == "" {
		return
	}
	var problem struct {
		Type, Title, Code, Detail, Hint string
		Status                          int
		RequestID                       string `json:"request_id"`
	}
	if err := json.Unmarshal([]byte(a.body), &problem); err != nil || a.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d is no problem+json: %v %q", a.StatusCode, err, a.body)
	}
	if problem.Code != code || problem.Status != status || problem.RequestID == "" || problem.RequestID != a.Header.Get("X-Request-Id") || problem.Detail == "" || problem.Hint == "" {
		t.Errorf("the problem is not whole: %s", a.body)
	}
}

func bearer(token string) string { return "Authorization: Bearer " + token }

func dialTLS(t testing.TB, at string, config *tls.Config) net.Conn {
	t.Helper()
	config.NextProtos = nil
	conn, err := tls.Dial("tcp", at, config)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// idp is a real issuer on loopback: discovery, keys, and tokens of any shape.
type idp struct {
	*httptest.Server
	key crypto.Signer
}

func newIDP(t testing.TB) *idp {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	i := &idp{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(keys.JSON())
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

// token is a user's access token; changes take members away (nil) or set them.
func (i *idp) token(t testing.TB, changes map[string]any) string {
	t.Helper()
	now := time.Now()
	claims := map[string]any{
		"iss": i.URL, "sub": "ana", "aud": "shop-web", "scope": "shop.read orders:read orders:write", "client_id": "shop-spa",
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "email": "ana@shop.example",
	}
	for name, value := range changes {
		if value == nil {
			delete(claims, name)
		} else {
			claims[name] = value
		}
	}
	token, err := jwt.Sign(i.key, "ES256", "k1", "at+jwt", claims)
	if err != nil {
		t.Fatal(err)
	}
	return token
}
