package api

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
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/countersign/countersign"
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
	testIssuer = "https://localhost:8443"
)

const testPolicy = `trust_domain: shop.internal
services:
  - name: reports
  - name: orders
  - name: inventory
calls:
  - from: reports
    to: orders
    scopes: [{name: "orders:read"}]
    machine: ["orders:read"]
  - {from: orders, to: inventory}
`

// clock is a wall clock that a test may turn.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// logBuffer keeps what the daemon logs.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// kit is a daemon of real parts, with its listeners on loopback.
type kit struct {
	*testing.T
	clock  *clock
	logs   *logBuffer
	store  storage.Store
	audit  *audit.Log
	ring   *keyring.Ring
	book   *policy.Book
	ca     *ca.Authority
	api    *Server
	addr   string // of the TLS listener
	url    string
	socket string
}

type kitOptions struct {
	limits Limits
	header time.Duration
	read   time.Duration
	issuer string
	policy string

	proxies map[string]CertHeader // services that forward client certificates
}

func (k *kit) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func newKit(t *testing.T, o kitOptions) *kit {
	t.Helper()
	k := &kit{T: t, clock: &clock{}, logs: &logBuffer{}}
	k.assemble(o)
	k.listen(o)
	return k
}

// assemble opens the parts in the daemon's order; cleanups run in the opposite one.
func (k *kit) assemble(o kitOptions) {
	k.Helper()
	ctx, dir, by := k.Context(), k.TempDir(), countersign.Daemon("test")
	if o.issuer == "" {
		o.issuer = testIssuer
	}
	if o.policy == "" {
		o.policy = testPolicy
	}
	logger := slog.New(slog.NewJSONHandler(k.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	fatal := func(err error) { k.Errorf("fatal: %v", err) }
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "countersign.db"), Now: k.clock.now, Fatal: fatal})
	k.must(err)
	k.Cleanup(func() { store.Close() })
	k.store = store
	k.audit, err = audit.Open(ctx, audit.Config{
		Dir: filepath.Join(dir, "audit"), Store: store, Now: k.clock.now, Segment: 1 << 20, Reserve: -1, Fatal: fatal,
	})
	k.must(err)
	k.Cleanup(func() { k.audit.Close() })
	k.ring, err = keyring.Open(ctx, keyring.Config{
		Store: store, Audit: k.audit, KEK: keyring.NewKEK(), Now: k.clock.now, Lead: time.Hour, RotateEvery: 720 * time.Hour, MaxTTL: time.Hour,
	})
	k.must(err)
	now := k.clock.now()
	_, err = k.ring.Create(ctx, by,
		keyring.NewKey{Purpose: keyring.Token, Alg: "ES256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.Token, Alg: "RS256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.SVID, Alg: "ES256", SignsFrom: now},
		keyring.NewKey{Purpose: keyring.Audit, Alg: "ES256", SignsFrom: now})
	k.must(err)
	k.book, err = policy.Open(ctx, policy.Config{
		Store: store, Audit: k.audit, Env: policy.Env{TrustDomain: testDomain, Issuer: o.issuer, ReservedDNS: []string{"localhost"}}, Now: k.clock.now,
	})
	k.must(err)
	_, err = k.book.Apply(ctx, by, []byte(o.policy), policy.ApplyOptions{IfVersion: -1})
	k.must(err)
	authority := ca.Config{
		Store: store, Audit: k.audit, Keys: k.ring, Policy: k.book.Current, TrustDomain: testDomain,
		DNS: []string{"localhost", "127.0.0.1"}, Now: k.clock.now, Grace: 72 * time.Hour, PKI: "http://pki.shop.internal",
	}
	k.must(ca.Init(ctx, authority, by))
	k.ca, err = ca.Open(ctx, authority)
	k.must(err)
	tokens, err := sts.New(ctx, sts.Config{
		Issuer: o.issuer, Policy: k.book.Current, Keys: k.ring, Audit: k.audit, Store: store, Now: k.clock.now, Logger: logger,
	})
	k.must(err)
	proxies := map[countersign.ID]CertHeader{}
	for name, header := range o.proxies {
		id, err := countersign.NewServiceID(testDomain, name)
		k.must(err)
		proxies[id] = header
	}
	k.api, err = New(Config{TLSProxies: proxies,
		CA: k.ca, STS: tokens, Policy: k.book, Keys: k.ring, Audit: k.audit, Issuer: o.issuer, TrustDomain: testDomain,
		URL: "https://localhost:8443", Version: "test", Limits: o.limits, Logger: logger, Now: k.clock.now,
	})
	k.must(err)
}

// listen serves the TLS listener and the admin socket.
func (k *kit) listen(o kitOptions) {
	k.Helper()
	key, err := identity.NewKey("")
	k.must(err)
	csr, err := identity.CSR(key)
	k.must(err)
	issued, err := k.ca.IssueServer(k.Context(), csr)
	k.must(err)
	served := &tls.Certificate{PrivateKey: key}
	for _, cert := range append(issued.Chain, k.ca.Roots()...) {
		served.Certificate = append(served.Certificate, cert.Raw)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	k.must(err)
	k.addr = inner.Addr().String()
	k.url = "https://localhost:" + k.addr[strings.LastIndexByte(k.addr, ':')+1:]
	public := NewServer(ServerConfig{
		Handler: k.api.Public(), Header: o.header, Read: o.read,
		TLS: TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return served, nil }),
	})
	k.serve(public, func() error { return public.ServeTLS(LimitListener(inner, o.limits, nil), "", "") })

	k.socket = filepath.Join(k.TempDir(), "admin.sock")
	socket, err := net.Listen("unix", k.socket)
	k.must(err)
	admin := NewServer(ServerConfig{Handler: k.api.Admin(), ConnContext: PeerCred})
	k.serve(admin, func() error { return admin.Serve(socket) })
}

func (k *kit) serve(server *http.Server, run func() error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run() // http.ErrServerClosed
	}()
	k.Cleanup(func() {
		k.api.Stop()
		server.Close()
		<-done
	})
}

// root is the pool of the authority's roots.
func (k *kit) root() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, cert := range k.ca.Roots() {
		pool.AddCert(cert)
	}
	return pool
}

// admin is a client over the admin socket.
func (k *kit) admin() *client.Client {
	k.Helper()
	c, err := client.New(client.Config{Socket: k.socket})
	k.must(err)
	k.Cleanup(c.Close)
	return c
}

// over is a client over TLS with an identity, nil for none.
func (k *kit) over(id *identity.Identity) *client.Client {
	k.Helper()
	c, err := client.New(client.Config{URL: k.url, Identity: id, Roots: k.root(), TrustDomain: testDomain})
	k.must(err)
	k.Cleanup(c.Close)
	return c
}

// newCSR makes a key and a certificate request.
func newCSR(t *testing.T) (crypto.Signer, string) {
	t.Helper()
	key, err := identity.NewKey("")
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.CSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(csr)
}

// join enrols a service through the front door.
func (k *kit) join(service string) *identity.Identity {
	k.Helper()
	token, err := k.admin().CreateJoinToken(k.Context(), wire.JoinTokenRequest{Service: service})
	k.must(err)
	key, csr := newCSR(k.T)
	got, err := k.over(nil).Join(k.Context(), token.Token, wire.CertificateRequest{CSR: csr})
	k.must(err)
	return k.identity(key, got)
}

// operator adds an operator over the admin socket.
func (k *kit) operator(name string, role countersign.Role) *identity.Identity {
	k.Helper()
	key, csr := newCSR(k.T)
	got, err := k.admin().AddOperator(k.Context(), wire.OperatorRequest{Name: name, Role: role.String(), CSR: csr})
	k.must(err)
	return k.identity(key, got)
}

func (k *kit) identity(key crypto.Signer, c wire.Certificate) *identity.Identity {
	k.Helper()
	return &identity.Identity{
		ID: c.ID, Serial: c.Serial, Key: key, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		Chain: certs(k.T, c.Certificate), Roots: certs(k.T, c.Roots),
	}
}

func certs(t *testing.T, text string) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, cert)
	}
	return out
}

// foreign is an identity with the right names from a wrong authority.
func foreign(t *testing.T, like *identity.Identity) *identity.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: like.Chain[0].Subject, URIs: like.Chain[0].URIs,
		NotBefore: like.NotBefore, NotAfter: like.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &identity.Identity{ID: like.ID, Key: key, Chain: []*x509.Certificate{cert}, Roots: like.Roots}
}

// raw is a plain HTTP client, for what package client refuses to send. Its connections are kept.
func (k *kit) raw(id *identity.Identity) *http.Client {
	k.Helper()
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: k.root(), ServerName: "localhost", Time: k.clock.now}
	if id != nil {
		config.Certificates = []tls.Certificate{id.TLS()}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	k.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   string
}

// code is the daemon's code in an error of either protocol.
func (r reply) code() countersign.Code {
	var body struct {
		Code countersign.Code `json:"code"`
	}
	_ = json.Unmarshal([]byte(r.body), &body) // no JSON: no code
	return body.Code
}

func (k *kit) send(c *http.Client, method, target, body string, header ...string) reply {
	k.Helper()
	rq, err := http.NewRequestWithContext(k.Context(), method, target, strings.NewReader(body))
	k.must(err)
	for i := 0; i+1 < len(header); i += 2 {
		rq.Header.Add(header[i], header[i+1])
	}
	response, err := c.Do(rq)
	k.must(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	k.must(err)
	return reply{status: response.StatusCode, header: response.Header, body: string(text)}
}

// machineForm asks for a token without a user.
func machineForm() url.Values {
	return url.Values{"grant_type": {"client_credentials"}, "audience": {"orders"}, "scope": {"orders:read"}}
}

// records are the audit records of a type.
func (k *kit) records(kind string) []audit.Record {
	k.Helper()
	found, err := k.audit.Search(context.Background(), audit.Query{Type: kind, Limit: 1000})
	k.must(err)
	return found
}
