package ca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
)

const domain = "shop.internal"

// clock is the time of a test, in every part.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// house is an authority on its real parts.
type house struct {
	*Authority
	t      *testing.T
	dir    string
	clock  *clock
	kek    []byte
	bolt   *bolt.Store
	wrap   func(storage.Store) storage.Store
	adjust func(*Config)
	init   func(Config) error // nil: Init
	log    *audit.Log
	mu     sync.Mutex
	policy *countersign.Policy
}

func newHouse(t *testing.T, adjust func(*Config)) *house {
	t.Helper()
	h := &house{
		t: t, dir: t.TempDir(), kek: keyring.NewKEK(), adjust: adjust,
		clock: &clock{at: time.Date(2026, 11, 24, 12, 0, 0, 123456789, time.UTC)},
	}
	h.apply(1, service("orders", "orders.shop.internal"), service("gateway", "gateway.shop.internal", "www.shop.internal"), service("inventory"))
	h.open(true)
	t.Cleanup(func() { h.close() })
	return h
}

func service(name string, dns ...string) countersign.Service {
	id, err := countersign.NewServiceID(domain, name)
	if err != nil {
		panic(err)
	}
	return countersign.Service{ID: id, Name: name, DNS: dns, KeyTypes: allKeyTypes()}
}

func (h *house) apply(version int, services ...countersign.Service) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.policy = countersign.NewPolicy(version, domain, nil, services, nil)
}

func (h *house) current() *countersign.Policy {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.policy
}

func (h *house) open(first bool) {
	h.t.Helper()
	ctx := h.t.Context()
	var err error
	if h.bolt, err = bolt.Open(bolt.Config{Path: filepath.Join(h.dir, "db"), Now: h.clock.now}); err != nil {
		h.t.Fatal(err)
	}
	h.log, err = audit.Open(ctx, audit.Config{
		Dir: filepath.Join(h.dir, "audit"), Store: h.bolt, Now: h.clock.now, Segment: 1 << 20, Reserve: -1,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ring, err := keyring.Open(ctx, keyring.Config{Store: h.bolt, Audit: h.log, KEK: h.kek, Now: h.clock.now})
	if err != nil {
		h.t.Fatal(err)
	}
	var store storage.Store = h.bolt
	if h.wrap != nil {
		store = h.wrap(store)
	}
	cfg := Config{
		Store: store, Audit: h.log, Keys: ring, Policy: h.current, TrustDomain: domain, Now: h.clock.now,
		DNS: []string{"localhost", "127.0.0.1", "ca.shop.internal"}, Grace: 3 * day,
	}
	if h.adjust != nil {
		h.adjust(&cfg)
	}
	if first && h.init != nil {
		if err := h.init(cfg); err != nil {
			h.t.Fatal(err)
		}
	} else if first {
		if err := Init(ctx, cfg, countersign.Daemon("init")); err != nil {
			h.t.Fatal(err)
		}
	}
	if h.Authority, err = Open(ctx, cfg); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) close() {
	h.t.Helper()
	if err := h.log.Close(); err != nil {
		h.t.Error(err)
	}
	if err := h.bolt.Close(); err != nil {
		h.t.Error(err)
	}
}

func (h *house) reopen() {
	h.t.Helper()
	h.close()
	h.open(false)
}

func admin() countersign.Caller {
	return countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin, Name: "uid 0"}
}

func newKey(t *testing.T, alg string) crypto.Signer {
	t.Helper()
	key, err := identity.NewKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	b, err := identity.CSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func asking(t *testing.T, key crypto.Signer, template *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// joiner is a caller with a new join token for the service.
func (h *house) joiner(service string) countersign.Caller {
	h.t.Helper()
	token, err := h.CreateJoinToken(h.t.Context(), admin(), service, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	by, err := h.JoinCaller(h.t.Context(), token.Secret, countersign.Caller{})
	if err != nil {
		h.t.Fatal(err)
	}
	return by
}

// join enrols the service with the key.
func (h *house) join(service string, key crypto.Signer) *Certificate {
	h.t.Helper()
	cert, err := h.Issue(h.t.Context(), h.joiner(service), IssueRequest{CSR: request(h.t, key)})
	if err != nil {
		h.t.Fatal(err)
	}
	return cert
}

func (h *house) peer(c *Certificate) countersign.Caller {
	h.t.Helper()
	by, err := h.PeerCaller(h.t.Context(), c.Chain[0], countersign.Caller{})
	if err != nil {
		h.t.Fatal(err)
	}
	return by
}

// events are the audit records of the given type.
func (h *house) events(kind string) []audit.Record {
	h.t.Helper()
	var found []audit.Record
	for r, err := range h.log.Records(h.t.Context(), 1) {
		if err != nil {
			h.t.Fatal(err)
		}
		if r.Type == kind {
			found = append(found, r)
		}
	}
	return found
}

func wantCode(t *testing.T, err error, code countersign.Code) {
	t.Helper()
	var e *countersign.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v, want %s (%s)", err, code, code.Info().Title)
	}
}

// lintRegistry holds the RFC 5280, RFC 5480 and community sources: CA/B Forum's rules are for the public web.
var lintRegistry = sync.OnceValues(func() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC6962, lint.Community},
	})
})

// checkLint fails the test for each finding of zlint.
func checkLint(t *testing.T, c *x509.Certificate) {
	t.Helper()
	registry, err := lintRegistry()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := zx509.ParseCertificate(c.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range zlint.LintCertificateEx(parsed, registry).Results {
		if r.Status > lint.Notice {
			t.Errorf("%s: zlint %s: %s %s", c.Subject, name, r.Status, r.Details)
		}
	}
}
