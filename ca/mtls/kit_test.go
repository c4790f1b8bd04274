package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/sts"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testDomain = "shop.internal"
	testPolicy = `trust_domain: shop.internal
services:
  - {name: gateway, dns: [gateway.shop.internal]}
  - {name: orders, dns: [orders.shop.internal, localhost.shop.internal]}
  - {name: inventory, dns: [inventory.shop.internal]}
  - {name: reports}
calls:
  - from: gateway
    to: orders
    scopes: [{name: "orders:read"}]
    machine: ["orders:read"]
  - from: orders
    to: inventory
    scopes: [{name: "stock:read", needs: ["orders:read"]}, {name: "stock:list", needs: ["orders:read"]}]
    machine: ["stock:read", "stock:list"]
`
)

// kit is a daemon of real parts with its listener on loopback, which can be taken away and come back.
type kit struct {
	testing.TB
	now   func() time.Time
	store storage.Store
	audit *audit.Log
	ring  *keyring.Ring
	book  *policy.Book
	ca    *ca.Authority
	api   *api.Server
	url   string // https://localhost:port

	served *tls.Certificate
	server *http.Server
	done   chan struct{}
	front  atomic.Pointer[func(http.Handler) http.Handler] // before the daemon's handler; nil: nothing
	asked  atomic.Int64                                    // requests that reached the listener
	socket string
	adminC *client.Client
}

func (k *kit) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func newKit(t testing.TB, now func() time.Time) *kit {
	t.Helper()
	if now == nil {
		now = time.Now
	}
	k := &kit{TB: t, now: now}
	k.issuing(testPolicy)
	k.listening()
	return k
}

// issuing opens the parts up to the authority.
func (k *kit) issuing(document string) {
	k.Helper()
	ctx, dir, by := context.Background(), k.TempDir(), countersign.Daemon("test")
	fatal := func(err error) { k.Errorf("fatal: %v", err) }
	var err error
	k.store, err = bolt.Open(bolt.Config{Path: filepath.Join(dir, "countersign.db"), Now: k.now, Fatal: fatal})
	k.must(err)
	k.Cleanup(func() { k.store.Close() })
	k.audit, err = audit.Open(ctx, audit.Config{
		Dir: filepath.Join(dir, "audit"), Store: k.store, Now: k.now, Segment: 16 << 20, Reserve: -1, Fatal: fatal,
	})
	k.must(err)
	k.Cleanup(func() { k.audit.Close() })
	k.ring, err = keyring.Open(ctx, keyring.Config{
		Store: k.store, Audit: k.audit, KEK: keyring.NewKEK(), Now: k.now, Lead: time.Hour, RotateEvery: 720 * time.Hour, MaxTTL: time.Hour,
	})
	k.must(err)
	now := k.now()
	_, err = k.ring.Create(ctx, by,
		keyring.NewKey{Purpose: keyring.Token, Alg: "ES256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.Token, Alg: "RS256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.Audit, Alg: "ES256", SignsFrom: now})
	k.must(err)
	k.book, err = policy.Open(ctx, policy.Config{
		Store: k.store, Audit: k.audit, Env: policy.Env{TrustDomain: testDomain, Issuer: "https://localhost:8443", ReservedDNS: []string{"localhost"}}, Now: k.now,
	})
	k.must(err)
	k.apply(document)
	authority := ca.Config{
		Store: k.store, Audit: k.audit, Keys: k.ring, Policy: k.book.Current, TrustDomain: testDomain,
		DNS: []string{"localhost", "127.0.0.1"}, Now: k.now,
	}
	k.must(ca.Init(ctx, authority, by))
	k.ca, err = ca.Open(ctx, authority)
	k.must(err)
}

func (k *kit) apply(document string) {
	k.Helper()
	_, err := k.book.Apply(context.Background(), countersign.Daemon("test"), []byte(document), policy.ApplyOptions{IfVersion: -1})
	k.must(err)
}

// listening puts the API before them.
func (k *kit) listening() {
	k.Helper()
	tokens, err := sts.New(context.Background(), sts.Config{
		Issuer: "https://localhost:8443", Policy: k.book.Current, Keys: k.ring, Audit: k.audit, Store: k.store, Now: k.now,
		Logger: slog.New(slog.DiscardHandler),
	})
	k.must(err)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	k.must(err)
	address := inner.Addr().String()
	k.url = "https://localhost:" + address[strings.LastIndexByte(address, ':')+1:]
	k.api, err = api.New(api.Config{
		CA: k.ca, STS: tokens, Policy: k.book, Keys: k.ring, Audit: k.audit, Issuer: "https://localhost:8443", TrustDomain: testDomain,
		URL: k.url, Version: "test", Logger: slog.New(slog.DiscardHandler), Now: k.now,
	})
	k.must(err)
	key, err := identity.NewKey("")
	k.must(err)
	csr, err := identity.CSR(key)
	k.must(err)
	issued, err := k.ca.IssueServer(context.Background(), csr)
	k.must(err)
	k.served = &tls.Certificate{PrivateKey: key}
	for _, cert := range append(issued.Chain, k.ca.Roots()...) {
		k.served.Certificate = append(k.served.Certificate, cert.Raw)
	}
	k.serve(inner)
	k.socket = filepath.Join(k.TempDir(), "admin.sock")
	socket, err := net.Listen("unix", k.socket)
	k.must(err)
	admin := api.NewServer(api.ServerConfig{Handler: k.api.Admin(), ConnContext: api.PeerCred})
	done := make(chan struct{})
	go func() { defer close(done); _ = admin.Serve(socket) }()
	k.adminC, err = client.New(client.Config{Socket: k.socket})
	k.must(err)
	k.Cleanup(func() {
		k.adminC.Close()
		k.api.Stop()
		admin.Close()
		<-done
		k.gone()
	})
}

func (k *kit) serve(l net.Listener) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.asked.Add(1)
		var h http.Handler = k.api.Public()
		if front := k.front.Load(); front != nil {
			h = (*front)(h)
		}
		h.ServeHTTP(w, r)
	})
	k.server = api.NewServer(api.ServerConfig{
		Handler: handler, TLS: api.TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return k.served, nil }),
	})
	done, server := make(chan struct{}), k.server
	k.done = done
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }()
}

// gone takes the listener away with all its connections.
func (k *kit) gone() {
	if k.server != nil {
		k.server.Close()
		<-k.done
		k.server = nil
	}
}

// back brings it back at the same address.
func (k *kit) back() {
	k.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+k.url[strings.LastIndexByte(k.url, ':')+1:])
	k.must(err)
	k.serve(l)
}

// before puts a handler before the daemon's; nil takes it away.
func (k *kit) before(f func(http.Handler) http.Handler) {
	if f == nil {
		k.front.Store(nil)
		return
	}
	k.front.Store(&f)
}

// joinString makes a join token for a service.
func (k *kit) joinString(service string) string {
	k.Helper()
	made, err := k.adminC.CreateJoinToken(context.Background(), wire.JoinTokenRequest{Service: service})
	k.must(err)
	return made.Join
}

func (k *kit) id(service string) countersign.ID {
	k.Helper()
	id, err := countersign.NewServiceID(testDomain, service)
	k.must(err)
	return id
}

// dir is an identity directory of the service, made by the authority without the API.
func (k *kit) dir(service string, ttl time.Duration) string {
	k.Helper()
	dir := filepath.Join(k.TempDir(), service)
	k.must(identity.Write(dir, k.bundle(service, ttl)))
	return dir
}

func (k *kit) bundle(service string, ttl time.Duration) identity.Bundle {
	k.Helper()
	key, err := identity.NewKey("")
	k.must(err)
	csr, err := identity.CSR(key)
	k.must(err)
	by, err := k.joiner(service)
	k.must(err)
	c, err := k.ca.Issue(context.Background(), by, ca.IssueRequest{CSR: csr, TTL: ttl})
	k.must(err)
	return identity.Bundle{Key: key, Chain: c.Chain, Roots: k.ca.Roots(), Server: k.url, RenewAfter: c.RenewAfter, RenewBefore: c.RenewBefore}
}

// joiner is a caller with a join token of the service, made for it.
func (k *kit) joiner(service string) (countersign.Caller, error) {
	operator := countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin, Name: "test"}
	made, err := k.ca.CreateJoinToken(context.Background(), operator, service, time.Minute)
	if err != nil {
		return operator, err
	}
	return k.ca.JoinCaller(context.Background(), made.Secret, countersign.Caller{})
}

// source opens a source, and closes it when the test is over.
func (k *kit) source(cfg Config) *Source {
	k.Helper()
	if cfg.Now == nil {
		cfg.Now = k.now
	}
	s, err := Open(context.Background(), cfg)
	k.must(err)
	k.Cleanup(func() { s.Close() })
	return s
}

// ready is a source with a good identity of the service.
func (k *kit) ready(service string) *Source {
	k.Helper()
	s := k.source(Config{Dir: k.dir(service, 0)})
	k.wait(s)
	return s
}

func (k *kit) wait(s *Source) *identity.Identity {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	k.must(s.Wait(ctx))
	i, err := s.Identity()
	k.must(err)
	return i
}

// eventually asks until it is so. The limit is one for a hung test, not what is tested.
func (k *kit) eventually(what string, is func() bool) {
	k.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
	}
	k.Fatalf("%s: it never came", what)
}

// echo is a server of the service src that admits by a, at a name that resolves nowhere: clients dial its address.
type echo struct {
	name, address string
	server        *http.Server
}

func (k *kit) serveAs(src *Source, a Authorizer, name string, h http.Handler) *echo {
	k.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	k.must(err)
	if h == nil {
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, _ := Peer(r.TLS)
			_, _ = w.Write([]byte(id.String()))
		})
	}
	e := &echo{name: name, address: l.Addr().String(), server: &http.Server{Handler: h, TLSConfig: Server(src, a), ErrorLog: discard()}}
	done := make(chan struct{})
	go func() { defer close(done); _ = e.server.ServeTLS(l, "", "") }()
	k.Cleanup(func() { e.server.Close(); <-done })
	return e
}

// dial leads a name to where it is.
func (e *echo) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, e.address)
}

func (e *echo) url() string { return "https://" + e.name + "/" }

// client is an HTTP client over a config.
func (k *kit) client(e *echo, config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, DialContext: e.dial, ForceAttemptHTTP2: true}
	k.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func fileNames(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

func pemOf(certs []*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}) // a Builder takes everything
	}
	return b.String()
}

func encode64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
