package sts

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

// fetchLimit is how long one fetch may take (sts/jwt), which bounds what a request waits for an issuer.
const fetchLimit = 3 * time.Second

// upstream is an issuer that answers as a test says: a real HTTP server at the other end of pipes. In a bubble of synctest
// its hanging costs nothing and is measured to the nanosecond.
type upstream struct {
	url   string
	key   *ecdsa.PrivateKey
	conns chan net.Conn

	mu     sync.Mutex
	answer http.HandlerFunc // nil: nobody listens
	asked  int              // connections that were tried
}

func startUpstream(t *testing.T, url string) *upstream {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{url: url, key: key, conns: make(chan net.Conn)}
	u.publish("k1")
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		answer := u.answer
		u.mu.Unlock()
		answer(w, r)
	})}
	go func() { _ = server.Serve(u) }()
	t.Cleanup(func() { _ = server.Close() })
	return u
}

// Accept, Close and Addr make it a net.Listener.
func (u *upstream) Accept() (net.Conn, error) {
	c, ok := <-u.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (u *upstream) Close() error { close(u.conns); return nil }

func (u *upstream) Addr() net.Addr { return &net.UnixAddr{Name: u.url, Net: "unix"} }

// dial takes the place of TCP and TLS.
func (u *upstream) dial() (net.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked++
	if u.answer == nil {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	u.conns <- theirs
	return ours, nil
}

func (u *upstream) serve(answer http.HandlerFunc) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

func (u *upstream) publish(kids ...string) { u.serve(body(keySetOf(u.key, kids...))) }

func (u *upstream) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked
}

func body(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

func keySetOf(key *ecdsa.PrivateKey, kids ...string) string {
	var keys []jwt.PublicKey
	for _, kid := range kids {
		keys = append(keys, jwt.PublicKey{KID: kid, Alg: "ES256", Key: key.Public()})
	}
	set, err := jwt.NewSet(keys...)
	if err != nil {
		panic(err)
	}
	return string(set.JSON())
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// world is the token service between two issuers, of which hr misbehaves and idp does not.
type world struct {
	*Service
	t        *testing.T
	idp, hr  *upstream
	log      *bytes.Buffer
	registry *prometheus.Registry
}

// inWorld runs f in a bubble of its own. Everything has ended when it returns.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, idp: startUpstream(t, idpURL), hr: startUpstream(t, hrURL), log: new(bytes.Buffer), registry: prometheus.NewRegistry()}
		dir := t.TempDir()
		store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "db")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		history, err := audit.Open(t.Context(), audit.Config{Dir: filepath.Join(dir, "audit"), Store: store, Reserve: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = history.Close() })
		ring, err := keyring.Open(t.Context(), keyring.Config{
			Store: store, Audit: history, KEK: keyring.NewKEK(), Lead: time.Minute, MaxTTL: time.Hour, RotateEvery: 30 * 24 * time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ring.Create(t.Context(), countersign.Daemon("test"), keyring.NewKey{Purpose: keyring.Token, Alg: "ES256"}); err != nil {
			t.Fatal(err)
		}
		policy := w.graph().policy()
		w.Service, err = New(t.Context(), Config{
			Issuer: us, Policy: func() *countersign.Policy { return policy }, Keys: ring, Audit: history, Store: store, Registerer: w.registry,
			Logger: slog.New(slog.NewTextHandler(w.log, nil)), Transport: w.transport(),
		})
		if err != nil {
			t.Fatal(err)
		}
		f(w)
		time.Sleep(2 * fetchLimit) // fetches in flight belong to nobody and end by themselves
	})
}

func (w *world) graph() *graph {
	g := shop()
	for i := range g.issuers {
		g.issuers[i].JWKSURI = g.issuers[i].URL + "/jwks"
	}
	g.service("orders").Alg, g.service("orders").Typ = "ES256", "at+jwt"
	return g
}

func (w *world) transport() *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialTLSContext: func(_ context.Context, _, address string) (net.Conn, error) {
		if strings.HasPrefix(hrURL, "https://"+strings.TrimSuffix(address, ":443")) {
			return w.hr.dial()
		}
		return w.idp.dial()
	}}
}

// user is a token of hr, signed by key under kid.
func (w *world) user(key *ecdsa.PrivateKey, kid string) string {
	return w.tokenOf(hrURL, "hr-portal", key, kid)
}

func (w *world) tokenOf(issuer, audience string, key *ecdsa.PrivateKey, kid string) string {
	now := time.Now().Unix()
	compact, err := jwt.Sign(key, "ES256", kid, "at+jwt", map[string]any{
		"iss": issuer, "sub": "alice", "aud": audience, "iat": now, "exp": now + 3600, "scope": "orders:read", "scp": "orders:read",
	})
	if err != nil {
		panic(err)
	}
	return compact
}

// answers demands the code for a token at the gateway, "" for a new token, within a time.
func (w *world) answers(what, token string, code countersign.Code, within time.Duration) {
	w.t.Helper()
	started := time.Now()
	response, err := w.Token(context.Background(), as("gateway"), exchangeOf(token, "orders"))
	if codeOf(err) != code || (err == nil) != (code == "") || (response.AccessToken == "") != (code != "") {
		w.t.Errorf("%s: %v, want %q", what, err, code)
	}
	if took := time.Since(started); took > within {
		w.t.Errorf("%s: answered after %s, want %s at most", what, took, within)
	}
	if err == nil {
		return
	}
	e := countersign.AsError(err)
	want, kind := "invalid_request", countersign.Invalid
	if code == countersign.CodeIssuerDown {
		want, kind = "temporarily_unavailable", countersign.Unavailable
	}
	if got := e.Code.Info().OAuth; got != want || e.Kind != kind || (e.RetryAfter > 0) != (kind == countersign.Unavailable) {
		w.t.Errorf("%s: the answer is %s of kind %d, Retry-After %s; want %s", what, got, e.Kind, e.RetryAfter, want)
	}
}

// works demands that good tokens of both issuers work at once.
func (w *world) works(what string) {
	w.t.Helper()
	w.answers(what+": a good token", w.user(w.hr.key, "k1"), "", 0)
	w.neighbour(what)
}

// neighbour demands that tokens of the issuer that does nothing wrong work, at once.
func (w *world) neighbour(what string) {
	w.t.Helper()
	w.answers(what+": a token of another issuer", w.tokenOf(idpURL, "shop-web", w.idp.key, "k1"), "", 0)
}

// metric is the value of a metric for the issuer hr.
func (w *world) metric(name, result string) float64 {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if family.GetName() == name && labels["issuer"] == "hr" && labels["result"] == result {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() // it is one of them
			}
		}
	}
	w.t.Fatalf("there is no metric %s with result %q", name, result)
	return 0
}

func (w *world) wantMetrics(what string, age time.Duration, good, failed int) {
	w.t.Helper()
	synctest.Wait()
	seconds := w.metric("countersign_issuer_keys_age_seconds", "")
	g, f := w.metric("countersign_issuer_fetches_total", "good"), w.metric("countersign_issuer_fetches_total", "failed")
	if age < 0 && !math.IsInf(seconds, 1) || age >= 0 && seconds != age.Seconds() || int(g) != good || int(f) != failed {
		w.t.Errorf("%s: the metrics say age %v, %v good and %v failed fetches; want %s, %d and %d", what, seconds, g, f, age, good, failed)
	}
}
