package verify_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority publishes metadata and keys as Countersign does, over TLS, and signs tokens with its key.
type authority struct {
	*httptest.Server
	key       *ecdsa.PrivateKey
	down      atomic.Bool
	fetches   atomic.Int32
	described atomic.Int32                     // how often the metadata was read
	feed      atomic.Pointer[http.HandlerFunc] // of revocations; nil: the metadata names none
	control   atomic.Pointer[string]           // Cache-Control of the keys; nil: none
}

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newAuthority() *authority {
	a := &authority{key: newKey()}
	keys, err := jwt.NewSet(
		jwt.PublicKey{KID: "k1", Alg: "ES256", Key: a.key.Public()},
		jwt.PublicKey{KID: "k2", Alg: "RS256", Key: rsaKey().Public()},
	)
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", func(w http.ResponseWriter, _ *http.Request) {
		a.described.Add(1)
		doc := map[string]string{"issuer": a.URL, "jwks_uri": a.URL + "/oauth2/jwks"}
		if a.feed.Load() != nil {
			doc["revocations_uri"] = a.URL + "/oauth2/revocations"
		}
		_ = json.NewEncoder(w).Encode(doc)
	})
	mux.HandleFunc("GET /oauth2/revocations", func(w http.ResponseWriter, r *http.Request) {
		if feed := a.feed.Load(); feed != nil {
			(*feed)(w, r)
			return
		}
		http.NotFound(w, r)
	})
	mux.HandleFunc("GET /oauth2/jwks", func(w http.ResponseWriter, _ *http.Request) {
		a.fetches.Add(1)
		if a.down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if control := a.control.Load(); control != nil {
			w.Header().Set("Cache-Control", *control)
		}
		_, _ = w.Write(keys.JSON())
	})
	a.Server = httptest.NewUnstartedServer(mux)
	a.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that tests have fail
	a.StartTLS()
	return a
}

func (a *authority) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate())
	return pool
}

const (
	gateway = "spiffe://shop.internal/gateway"
	orders  = "spiffe://shop.internal/orders"
	idp     = "https://idp.shop.example"
)

// claims of a relay token for inventory that orders got in exchange, as policy.md, "The minted token", shows them.
func (a *authority) claims(now time.Time) map[string]any {
	return map[string]any{
		"iss": a.URL, "sub": "alice", "sub_iss": idp, "aud": "inventory", "client_id": orders,
		"exp": now.Add(5 * time.Minute).Unix(), "nbf": now.Unix(), "iat": now.Unix(),
		"jti": "aaaa.bbbb", "txn": "t1", "sid": "s1", "scope": "stock:read stock:write",
		"act":   map[string]any{"sub": orders, "act": map[string]any{"sub": gateway}},
		"email": "alice@shop.example", "level": 3, "amr": []string{"pwd"},
	}
}

func (a *authority) sign(t testing.TB, typ string, claims any) string {
	t.Helper()
	token, err := jwt.Sign(a.key, "ES256", "k1", typ, claims)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

type bench struct {
	*authority
	*verify.Verifier
	now time.Time
}

func newBench(t *testing.T, change func(*verify.Config)) *bench {
	t.Helper()
	b := &bench{authority: newAuthority(), now: time.Unix(1_800_000_000, 0)}
	t.Cleanup(b.Close)
	cfg := verify.Config{
		Issuer: b.URL, Audience: "inventory", Roots: b.roots(), Now: func() time.Time { return b.now }, Leeway: time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	v, err := verify.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Verifier = v
	return b
}

func TestVerify(t *testing.T) {
	b := newBench(t, nil)
	got, err := b.Verify(t.Context(), b.sign(t, "at+jwt", b.claims(b.now)))
	if err != nil {
		t.Fatal(err)
	}
	want := &verify.Claims{
		Issuer: b.URL, Subject: "alice", SubjectIssuer: idp, ClientID: orders, Audience: "inventory", Transaction: "t1", ID: "aaaa.bbbb",
		SessionID: "s1", Scopes: []string{"stock:read", "stock:write"}, Expires: b.now.Add(5 * time.Minute), IssuedAt: b.now,
		Act:   &verify.Actor{Subject: orders, Act: &verify.Actor{Subject: gateway}},
		Extra: map[string]any{"email": "alice@shop.example", "level": 3.0, "amr": []any{"pwd"}},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Error(diff)
	}
	if got.User() != "alice" || got.Actor() != orders || !cmp.Equal(got.Chain(), []string{orders, gateway}) {
		t.Error(got.User(), got.Actor(), got.Chain())
	}
	for scope, want := range map[string]bool{"stock:read": true, "stock": false, "stock:read stock:write": false, "STOCK:READ": false, "": false} {
		if got.HasScope(scope) != want {
			t.Errorf("scope %q: %t", scope, !want)
		}
	}
	if n := b.fetches.Load(); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

func TestMachineToken(t *testing.T) {
	b := newBench(t, nil)
	c := b.claims(b.now)
	c["sub"], c["sub_iss"] = orders, b.URL
	delete(c, "act")
	got, err := b.Verify(t.Context(), b.sign(t, "JWT", c))
	if err != nil {
		t.Fatal(err)
	}
	if got.User() != "" || got.Actor() != "" || got.Chain() != nil || got.ClientID != orders {
		t.Errorf("%+v", got)
	}
}

func TestRS256(t *testing.T) {
	b := newBench(t, nil)
	token, err := jwt.Sign(rsaKey(), "RS256", "k2", "application/at+jwt", b.claims(b.now))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Verify(t.Context(), token); err != nil {
		t.Error(err)
	}
}

// TestClaims changes one claim of a good token each; nil takes it away.
func TestClaims(t *testing.T) {
	b := newBench(t, nil)
	unix := func(d time.Duration) int64 { return b.now.Add(d).Unix() }
	for _, tt := range []struct {
		claim string
		value any
		want  verify.Reason // "": taken
	}{
		{"iss", nil, verify.ReasonIssuer},
		{"iss", b.URL + "/", verify.ReasonIssuer},
		{"iss", strings.ToUpper(b.URL), verify.ReasonIssuer},
		{"iss", []string{b.URL}, verify.ReasonIssuer},
		{"aud", nil, verify.ReasonAudience},
		{"aud", "", verify.ReasonAudience},
		{"aud", "orders", verify.ReasonAudience},
		{"aud", "Inventory", verify.ReasonAudience},
		{"aud", []string{"inventory"}, verify.ReasonAudience},
		{"aud", []string{"inventory", "orders"}, verify.ReasonAudience},
		{"exp", nil, "claim"},
		{"exp", "1900000000", "claim"},
		{"exp", -1, "claim"},
		{"exp", unix(0), ""},
		{"exp", unix(-time.Second), "exp"},
		{"nbf", nil, ""},
		{"nbf", unix(time.Second), ""},
		{"nbf", unix(2 * time.Second), "nbf"},
		{"iat", nil, "claim"},
		{"iat", unix(2 * time.Second), "iat"},
		{"sub", nil, "claim"},
		{"sub", "", "claim"},
		{"sub", 7, "claim"},
		{"sub", map[string]any{"id": "alice"}, "claim"},
		{"sub_iss", nil, "claim"},
		{"client_id", nil, "claim"},
		{"client_id", "", "claim"},
		{"jti", nil, "claim"},
		{"txn", nil, "claim"},
		{"txn", json.RawMessage("null"), "claim"},
		{"sid", nil, ""},
		{"sid", "", "claim"},
		{"sid", 1, "claim"},
		{"scope", nil, ""},
		{"scope", "", ""},
		{"scope", []string{"stock:read"}, "claim"},
		{"scope", " stock:read", "claim"},
		{"scope", "stock:read  stock:write", "claim"},
		{"scope", "stock:read\tstock:write", "claim"},
		{"scope", "a\"b", "claim"},
		{"act", nil, ""},
		{"act", orders, "claim"},
		{"act", map[string]any{}, "claim"},
		{"act", map[string]any{"sub": ""}, "claim"},
		{"act", map[string]any{"sub": 1}, "claim"},
		{"act", map[string]any{"SUB": orders}, "claim"},
		{"act", map[string]any{"sub": orders, "act": "x"}, "claim"},
		{"act", map[string]any{"sub": orders, "act": map[string]any{}}, "claim"},
		{"act", []any{}, "claim"},
		{"cnf", map[string]any{"x5t#S256": "abc"}, verify.ReasonBinding},
		{"cnf", map[string]any{"x5t#S256": 1}, "claim"},
		{"cnf", nil, ""},
		{"cnf", map[string]any{}, "claim"},
		{"cnf", map[string]any{"jkt": "abc"}, "claim"},
		{"cnf", map[string]any{"x5t#S256": "abc", "jkt": "abc"}, "claim"},
		{"cnf", map[string]any{"x5t#S256": ""}, "claim"},
		{"cnf", "abc", "claim"},
		{"SUB", "admin", ""},
	} {
		t.Run(fmt.Sprint(tt.claim, "=", tt.value), func(t *testing.T) {
			c := maps.Clone(b.claims(b.now))
			c[tt.claim] = tt.value
			if tt.value == nil {
				delete(c, tt.claim)
			}
			got, err := b.Verify(t.Context(), b.sign(t, "at+jwt", c))
			if tt.want != "" {
				wantReason(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Subject != "alice" {
				t.Errorf("%+v", got)
			}
		})
	}
}

func wantReason(t *testing.T, err error, want verify.Reason) {
	t.Helper()
	var e *verify.Error
	if !errors.As(err, &e) || e.Reason != want {
		t.Fatalf("got %v, want a refusal because of %q", err, want)
	}
}

func TestTypes(t *testing.T) {
	for typ, taken := range map[string]bool{
		"at+jwt": true, "AT+JWT": true, "application/at+jwt": true, "JWT": true, "jwt": true,
		"dpop+jwt": false, "logout+jwt": false, "txntoken+jwt": false, "client-authentication+jwt": false, "id_token": false,
	} {
		b := newBench(t, nil)
		_, err := b.Verify(t.Context(), b.sign(t, typ, b.claims(b.now)))
		if taken && err != nil {
			t.Errorf("%s: %v", typ, err)
		} else if !taken {
			wantReason(t, err, verify.ReasonType)
		}
	}
	only := newBench(t, func(cfg *verify.Config) { cfg.Types = []string{"at+jwt"} })
	_, err := only.Verify(t.Context(), only.sign(t, "JWT", only.claims(only.now)))
	wantReason(t, err, verify.ReasonType)
}

// TestStrangersCostNoFetch: a token that can be refused without keys makes no request to the issuer, and one that
// names a URL never makes one there.
func TestStrangersCostNoFetch(t *testing.T) {
	b := newBench(t, nil)
	other := b.claims(b.now)
	other["iss"] = "https://evil.example"
	good := b.sign(t, "at+jwt", b.claims(b.now))
	rs384, err := jwt.Sign(rsaKey(), "RS384", "k2", "at+jwt", b.claims(b.now))
	if err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]verify.Reason{
		"":                              "parts",
		"opaque":                        "parts",
		good + "\n":                     "base64",
		rs384:                           "alg",
		good + "." + good:               "parts",
		strings.Repeat(".", 1<<20):      "size",
		b.sign(t, "at+jwt", other):      verify.ReasonIssuer,
		b.sign(t, "x", b.claims(b.now)): verify.ReasonType,
	} {
		_, err := b.Verify(t.Context(), token)
		wantReason(t, err, want)
	}
	if n := b.fetches.Load(); n != 0 {
		t.Errorf("%d fetches", n)
	}
}

func TestKeys(t *testing.T) {
	t.Run("a key of somebody else under our kid", func(t *testing.T) {
		b := newBench(t, nil)
		token, err := jwt.Sign(newKey(), "ES256", "k1", "at+jwt", b.claims(b.now))
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Verify(t.Context(), token)
		wantReason(t, err, "signature")
	})
	t.Run("a kid that is not published", func(t *testing.T) {
		b := newBench(t, nil)
		token, err := jwt.Sign(b.key, "ES256", "k3", "at+jwt", b.claims(b.now))
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			_, err = b.Verify(t.Context(), token)
			wantReason(t, err, "kid")
		}
		if n := b.fetches.Load(); n > 2 {
			t.Errorf("%d fetches", n)
		}
	})
	t.Run("an algorithm that is not configured", func(t *testing.T) {
		b := newBench(t, func(cfg *verify.Config) { cfg.Algorithms = []string{"RS256"} })
		_, err := b.Verify(t.Context(), b.sign(t, "at+jwt", b.claims(b.now)))
		wantReason(t, err, "alg")
	})
	t.Run("issuer down", func(t *testing.T) {
		b := newBench(t, nil)
		b.down.Store(true)
		token := b.sign(t, "at+jwt", b.claims(b.now))
		_, err := b.Verify(t.Context(), token)
		wantReason(t, err, verify.ReasonKeys)
		var e *verify.Error
		if !errors.As(err, &e) || !e.Temporary() || errors.Unwrap(e) == nil {
			t.Error(err)
		}
		b.down.Store(false)
		b.now = b.now.Add(time.Second)
		if _, err := b.Verify(t.Context(), token); err != nil {
			t.Error(err)
		}
	})
	t.Run("a server that is not under Roots", func(t *testing.T) {
		b := newBench(t, func(cfg *verify.Config) { cfg.Roots = x509.NewCertPool() })
		_, err := b.Verify(t.Context(), b.sign(t, "at+jwt", b.claims(b.now)))
		wantReason(t, err, verify.ReasonKeys)
	})
	t.Run("jwks_uri configured", func(t *testing.T) {
		b := newBench(t, nil)
		v, err := verify.New(verify.Config{
			Issuer: b.URL, JWKSURI: b.URL + "/oauth2/jwks", Audience: "inventory", Client: b.Client(), Now: func() time.Time { return b.now },
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), b.sign(t, "at+jwt", b.claims(b.now))); err != nil {
			t.Error(err)
		}
		b.Client().CloseIdleConnections()
	})
}

func TestNewRefuses(t *testing.T) {
	good := verify.Config{Issuer: "https://cs.shop.internal", Audience: "orders"}
	if _, err := verify.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*verify.Config){
		"no issuer":        func(c *verify.Config) { c.Issuer = "" },
		"no audience":      func(c *verify.Config) { c.Audience = "" },
		"http issuer":      func(c *verify.Config) { c.Issuer = "http://cs.shop.internal" },
		"http jwks_uri":    func(c *verify.Config) { c.JWKSURI = "http://cs.shop.internal/jwks" },
		"roots and client": func(c *verify.Config) { c.Roots, c.Client = x509.NewCertPool(), http.DefaultClient },
		"none":             func(c *verify.Config) { c.Algorithms = []string{"ES256", "none"} },
		"HS256":            func(c *verify.Config) { c.Algorithms = []string{"HS256"} },
		"empty type":       func(c *verify.Config) { c.Types = []string{""} },
		"leeway":           func(c *verify.Config) { c.Leeway = time.Minute + 1 },
		"negative leeway":  func(c *verify.Config) { c.Leeway = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := verify.New(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestKeysAge: our issuer's keys are asked for again after 5 min at the latest, whatever the issuer says, so that one that was
// retired as compromised goes soon; another issuer's word counts up to 1 h.
func TestKeysAge(t *testing.T) {
	for name, tt := range map[string]struct {
		make func(verify.Config) (*verify.Verifier, error)
		want int32
	}{"ours": {verify.New, 2}, "external": {verify.NewExternal, 1}} {
		a := newAuthority()
		t.Cleanup(a.Close)
		control := "public, max-age=1800"
		a.control.Store(&control)
		now := time.Unix(1_800_000_000, 0)
		v, err := tt.make(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: a.roots(), Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		for _, later := range []time.Duration{0, 10 * time.Minute} { // the second waits if the keys should be half as old
			now = now.Add(later)
			if _, err := v.Verify(t.Context(), a.sign(t, "at+jwt", a.claims(now))); err != nil {
				t.Fatal(name, err)
			}
		}
		if n := a.fetches.Load(); n != tt.want {
			t.Errorf("%s: %d fetches, want %d", name, n, tt.want)
		}
	}
}
