package verify_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// userClaims are those of an access token of an identity provider.
func (a *authority) userClaims(now time.Time) map[string]any {
	return map[string]any{
		"iss": a.URL, "sub": "ana", "aud": []string{"shop-web", "other"}, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix(),
		"scope": "shop.read shop.write", "client_id": "app", "jti": "j1", "sid": "s1", "email": "ana@shop.example",
	}
}

func newExternal(t *testing.T, change func(*verify.Config)) *bench {
	t.Helper()
	b := &bench{authority: newAuthority(), now: time.Unix(1_800_000_000, 0)}
	t.Cleanup(b.Close)
	cfg := verify.Config{
		Issuer: b.URL, Audience: "shop", Audiences: []string{"shop-web"}, Roots: b.roots(), Now: func() time.Time { return b.now }, Leeway: time.Second,
	}
	if change != nil {
		change(&cfg)
	}
	v, err := verify.NewExternal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Verifier = v
	return b
}

func TestExternal(t *testing.T) {
	b := newExternal(t, nil)
	got, err := b.Verify(t.Context(), b.sign(t, "at+jwt", b.userClaims(b.now)))
	if err != nil {
		t.Fatal(err)
	}
	want := &verify.Claims{
		Issuer: b.URL, Subject: "ana", ClientID: "app", Audience: "shop-web", ID: "j1", SessionID: "s1", Scopes: []string{"shop.read", "shop.write"},
		Expires: b.now.Add(time.Minute), IssuedAt: b.now, Extra: map[string]any{"email": "ana@shop.example"},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Error(diff)
	}
	if got.User() != "ana" || got.Actor() != "" {
		t.Error(got.User(), got.Actor())
	}
	if keys, revocations := b.Fetched(); keys.IsZero() || !revocations.IsZero() {
		t.Error(keys, revocations)
	}
}

// TestExternalClaims changes one claim of a good token each; nil takes it away.
func TestExternalClaims(t *testing.T) {
	b := newExternal(t, nil)
	for _, tt := range []struct {
		claim string
		value any
		want  verify.Reason
	}{
		{"aud", "shop", ""},
		{"aud", []string{"shop-web"}, ""},
		{"aud", "other", verify.ReasonAudience},
		{"aud", []string{"shop-web-admin", "SHOP-WEB"}, verify.ReasonAudience},
		{"aud", []string{}, verify.ReasonAudience},
		{"aud", nil, verify.ReasonAudience},
		{"aud", 7, "claim"},
		{"iss", "https://evil.example", verify.ReasonIssuer},
		{"sub", nil, "claim"},
		{"sub", "", "claim"},
		{"sub", 7, "claim"},
		{"sub", "spiffe://shop.internal/orders", "claim"},
		{"sub", "SPIFFE://shop.internal/orders", "claim"},
		{"sub", "a\nb", "claim"},
		{"sub", strings.Repeat("x", 256), "claim"},
		{"sub", strings.Repeat("x", 255), ""},
		{"exp", nil, "claim"},
		{"exp", b.now.Unix() - 1, "exp"},
		{"iat", nil, "claim"},
		{"iat", b.now.Unix() + 2, "iat"},
		{"scope", nil, ""},
		{"scope", []string{"shop.read"}, ""},
		{"scope", []string{"shop read"}, "claim"},
		{"scope", map[string]any{}, "claim"},
		{"jti", 1, "claim"},
		{"jti", nil, ""},
		{"typ", "Bearer", ""},
		{"typ", "Refresh", verify.ReasonType},
		{"typ", "offline", verify.ReasonType},
		{"typ", 1, "claim"},
		{"events", map[string]any{}, verify.ReasonType},
		{"nonce", "n", ""}, // it says at+jwt
		{"act", map[string]any{"sub": orders}, ""},
		{"cnf", map[string]any{"jkt": "abc"}, verify.ReasonBinding},
		{"cnf", map[string]any{"x5t#S256": "abc"}, verify.ReasonBinding},
		{"cnf", map[string]any{"jkt": ""}, "claim"},
		{"cnf", map[string]any{"jwk": map[string]any{}}, "claim"},
		{"cnf", map[string]any{}, "claim"},
	} {
		t.Run(fmt.Sprintf("%s=%.40v", tt.claim, tt.value), func(t *testing.T) {
			c := b.userClaims(b.now)
			c[tt.claim] = tt.value
			if tt.value == nil {
				delete(c, tt.claim)
			}
			got, err := b.Verify(t.Context(), b.sign(t, "at+jwt", c))
			if tt.want != "" {
				wantReason(t, err, tt.want)
			} else if err != nil || got.Act != nil {
				t.Error(got, err)
			}
		})
	}
}

// TestExternalKinds: what an issuer signs besides access tokens is none (RFC 8725 3.11).
func TestExternalKinds(t *testing.T) {
	b := newExternal(t, nil)
	for _, tt := range []struct {
		typ, claim string
		want       verify.Reason
	}{
		{"JWT", "", ""},
		{"JWT", "nonce", verify.ReasonType},
		{"JWT", "at_hash", verify.ReasonType},
		{"JWT", "c_hash", verify.ReasonType},
		{"application/at+jwt", "at_hash", ""},
		{"logout+jwt", "", verify.ReasonType},
		{"dpop+jwt", "", verify.ReasonType},
		{"secevent+jwt", "", verify.ReasonType},
	} {
		c := b.userClaims(b.now)
		if tt.claim != "" {
			c[tt.claim] = "x"
		}
		_, err := b.Verify(t.Context(), b.sign(t, tt.typ, c))
		if tt.want != "" {
			wantReason(t, err, tt.want)
		} else if err != nil {
			t.Error(tt, err)
		}
	}
	c := b.userClaims(b.now)
	c["typ"] = "ID"
	_, err := b.Verify(t.Context(), b.sign(t, "JWT", c))
	wantReason(t, err, verify.ReasonType)
	strict := newExternal(t, func(cfg *verify.Config) { cfg.Types = []string{"at+jwt"} })
	_, err = strict.Verify(t.Context(), strict.sign(t, "JWT", strict.userClaims(strict.now)))
	wantReason(t, err, verify.ReasonType)
	_, err = strict.Verify(t.Context(), forgeES256(t, strict.key, `{"alg":"ES256","kid":"k1"}`, strict.userClaims(strict.now)))
	wantReason(t, err, verify.ReasonType)
	if _, err = b.Verify(t.Context(), forgeES256(t, b.key, `{"alg":"ES256","kid":"k1"}`, b.userClaims(b.now))); err != nil {
		t.Error("a token without typ:", err)
	}
}

func TestExternalScopeClaim(t *testing.T) {
	b := newExternal(t, func(cfg *verify.Config) { cfg.ScopeClaim = "scp" })
	c := b.userClaims(b.now)
	c["scp"] = []string{"a", "b"}
	got, err := b.Verify(t.Context(), b.sign(t, "at+jwt", c))
	if err != nil || !cmp.Equal(got.Scopes, []string{"a", "b"}) {
		t.Error(got, err)
	}
}

// TestExternalCertificate: a token of another issuer has no successor rule: its client_id names nothing of ours.
func TestExternalCertificate(t *testing.T) {
	b := newExternal(t, nil)
	p := newPKI()
	own, next := p.client(b.now, orders), p.client(b.now.Add(time.Second), orders)
	c := b.userClaims(b.now)
	c["client_id"], c["cnf"] = orders, map[string]any{"x5t#S256": thumbprint(own)}
	token := b.sign(t, "at+jwt", c)
	if _, err := b.VerifyPeer(t.Context(), token, own.Leaf); err != nil {
		t.Error(err)
	}
	_, err := b.VerifyPeer(t.Context(), token, next.Leaf)
	wantReason(t, err, verify.ReasonBinding)
}

func TestNewExternalRefuses(t *testing.T) {
	good := verify.Config{Issuer: "https://idp.shop.example", Audience: "shop-web", URL: "https://shop.example", Nonces: true, ScopeClaim: "scp"}
	if _, err := verify.NewExternal(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*verify.Config){
		"no issuer":             func(c *verify.Config) { c.Issuer = "" },
		"no audience":           func(c *verify.Config) { c.Audience = "" },
		"an empty audience":     func(c *verify.Config) { c.Audiences = []string{""} },
		"a claim for scopes":    func(c *verify.Config) { c.ScopeClaim = "roles" },
		"nonces without URL":    func(c *verify.Config) { c.URL = "" },
		"HS256":                 func(c *verify.Config) { c.Algorithms = []string{"HS256"} },
		"revocations":           func(c *verify.Config) { c.RevocationsURI = "https://idp.shop.example/revoked" },
		"staleness":             func(c *verify.Config) { c.MaxStale = time.Minute },
		"http URL":              func(c *verify.Config) { c.URL = "http://shop.example" },
		"URL with query":        func(c *verify.Config) { c.URL = "https://shop.example?x" },
		"URL with fragment":     func(c *verify.Config) { c.URL = "https://shop.example#x" },
		"URL with user":         func(c *verify.Config) { c.URL = "https://a@shop.example" },
		"scopes that are none":  func(c *verify.Config) { c.Scopes = []string{"a b"} },
		"scopes with an escape": func(c *verify.Config) { c.Scopes = []string{`a"b`} },
	} {
		cfg := good
		change(&cfg)
		if _, err := verify.NewExternal(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// TestParsersShareNothing: a proof is no token and a token no proof.
func TestParsersShareNothing(t *testing.T) {
	b := newExternal(t, nil)
	token := b.sign(t, "at+jwt", b.userClaims(b.now))
	if _, err := jwt.ParseProof(token, []string{"ES256"}); err == nil {
		t.Error("an access token is taken as a proof")
	}
	if _, err := jwt.Parse(newProof(token).sign(t)); err == nil {
		t.Error("a proof is taken as a token")
	}
}
