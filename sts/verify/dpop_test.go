package verify_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/countersign/countersign/sts/verify"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// forgeES256 signs any header, which no signer of ours would write.
func forgeES256(_ testing.TB, key *ecdsa.PrivateKey, header string, claims any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	input := b64([]byte(header)) + "." + b64(payload)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + b64(sig)
}

// proof is a DPoP proof in the making. The client's key is proofKey.
type proof struct {
	header, claims map[string]any
	key            *ecdsa.PrivateKey
}

var proofKey = sync.OnceValue(newKey)

func jwkOf(key any) map[string]any {
	b, err := json.Marshal(jose.JSONWebKey{Key: key})
	if err != nil {
		panic(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	return m
}

func jkt(key any) string {
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return b64(sum)
}

var proofNumber atomic.Int64

// newProof is a good proof for a GET of https://shop.example/api/orders with token.
func newProof(token string) *proof {
	sum := sha256.Sum256([]byte(token))
	return &proof{
		header: map[string]any{"typ": "dpop+jwt", "alg": "ES256", "jwk": jwkOf(proofKey().Public())},
		claims: map[string]any{
			"jti": fmt.Sprint("p", proofNumber.Add(1)), "htm": "GET", "htu": "https://shop.example/api/orders",
			"iat": time.Now().Unix(), "ath": b64(sum[:]),
		},
		key: proofKey(),
	}
}

func (p *proof) sign(t testing.TB) string {
	header, err := json.Marshal(p.header)
	if err != nil {
		panic(err)
	}
	return forgeES256(t, p.key, string(header), p.claims)
}

// entry is the service at which users' requests enter, behind a proxy that takes "/api" away.
type entry struct {
	*authority
	*verify.Verifier
	server *httptest.Server
	last   atomic.Pointer[verify.Error]
	token  string // bound to proofKey
}

func newEntry(t *testing.T, change func(*verify.Config)) *entry {
	t.Helper()
	e := &entry{authority: newAuthority()}
	t.Cleanup(e.authority.Close)
	cfg := verify.Config{Issuer: e.URL, Audience: "shop-web", Roots: e.roots(), URL: "https://shop.example/api"}
	if change != nil {
		change(&cfg)
	}
	v, err := verify.NewExternal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.Verifier = v
	e.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.last.Store(nil)
		if _, err := e.VerifyRequest(r); err != nil {
			e.last.Store(err.(*verify.Error))
			e.Refuse(w, err)
		}
	}))
	t.Cleanup(e.server.Close)
	e.token = e.bound(t, proofKey().Public())
	return e
}

func (e *entry) bound(t *testing.T, key any) string {
	t.Helper()
	c := e.userClaims(time.Now())
	c["cnf"], c["exp"] = map[string]any{"jkt": jkt(key)}, time.Now().Add(time.Hour).Unix()
	return e.sign(t, "at+jwt", c)
}

// send sends a request with these proofs; the answer's reason is "" if it was let through.
func (e *entry) send(t *testing.T, scheme, token string, proofs ...string) (verify.Reason, *http.Response) {
	t.Helper()
	headers := []string{"Authorization", scheme + " " + token}
	for _, p := range proofs {
		headers = append(headers, "DPoP", p)
	}
	resp := ask(t, e.server.Client(), e.server.URL+"/orders?page=2", headers...)
	if last := e.last.Load(); last != nil {
		return last.Reason, resp
	}
	return "", resp
}

func TestProofIsTaken(t *testing.T) {
	e := newEntry(t, nil)
	for name, change := range map[string]func(p *proof){
		"as it is":                 func(*proof) {},
		"typ as a media type":      func(p *proof) { p.header["typ"] = "application/DPoP+JWT" },
		"htu with query, fragment": func(p *proof) { p.claims["htu"] = "https://shop.example/api/orders?x=1#y" },
		"htu not in normal form":   func(p *proof) { p.claims["htu"] = "HTTPS://SHOP.example:443/x/../%61pi/./orders" },
		"made a minute ago":        func(p *proof) { p.claims["iat"] = time.Now().Unix() - 60 },
		"made in 20 s":             func(p *proof) { p.claims["iat"] = time.Now().Unix() + 20 },
		"a key with use and alg":   func(p *proof) { p.header["jwk"].(map[string]any)["use"] = "sig" },
		"more claims":              func(p *proof) { p.claims["x"] = "y" },
	} {
		p := newProof(e.token)
		change(p)
		if reason, resp := e.send(t, "DPoP", e.token, p.sign(t)); reason != "" || resp.StatusCode != 200 {
			t.Errorf("%s: %s %v", name, resp.Status, e.last.Load())
		}
	}
}

// TestProofChecks are the checks of RFC 9449 4.3, by their numbers: each breaks one thing.
func TestProofChecks(t *testing.T) {
	e := newEntry(t, nil)
	other := newKey()
	claim := func(name string, value any) func(p *proof) {
		return func(p *proof) {
			if p.claims[name] = value; value == nil {
				delete(p.claims, name)
			}
		}
	}
	header := func(name string, value any) func(p *proof) {
		return func(p *proof) {
			if p.header[name] = value; value == nil {
				delete(p.header, name)
			}
		}
	}
	jwk := func(name string, value any) func(p *proof) {
		return func(p *proof) {
			m := maps.Clone(p.header["jwk"].(map[string]any))
			if m[name] = value; value == nil {
				delete(m, name)
			}
			p.header["jwk"] = m
		}
	}
	for _, tt := range []struct {
		name   string
		change func(p *proof)
		says   string // in the error
	}{
		{"3 jti missing", claim("jti", nil), `"jti" is missing`},
		{"3 jti empty", claim("jti", ""), `"jti" is missing`},
		{"3 jti a number", claim("jti", 7), `"jti" is missing`},
		{"3 jti huge", claim("jti", strings.Repeat("x", 257)), "jti has more than"},
		{"3 htm missing", claim("htm", nil), `"htm" is missing`},
		{"3 htu missing", claim("htu", nil), `"htu" is missing`},
		{"3 iat missing", claim("iat", nil), `"iat" is missing`},
		{"3 iat a string", claim("iat", "1"), `"iat" is missing or not`},
		{"3 ath missing", claim("ath", nil), `"ath" is missing`},
		{"4 typ missing", header("typ", nil), "is not dpop+jwt"},
		{"4 typ JWT", header("typ", "JWT"), "is not dpop+jwt"},
		{"4 typ at+jwt", header("typ", "at+jwt"), "is not dpop+jwt"},
		{"5 alg missing", header("alg", nil), "algorithm"},
		{"5 alg none", header("alg", "none"), "algorithm"},
		{"5 alg HS256", header("alg", "HS256"), "algorithm"},
		{"5 alg not taken", header("alg", "ES512"), "algorithm"},
		{"5 alg of another kind of key", header("alg", "RS256"), "not for the algorithm"},
		{"5 alg other than the key's own", jwk("alg", "ES384"), "can't be"},
		{"5 crit", header("crit", []string{"exp"}), `"crit" is not taken`},
		{"5 jku", header("jku", "https://evil.example"), `"jku" is not taken`},
		{"5 x5c", header("x5c", []string{}), `"x5c" is not taken`},
		{"6 signed by another key", func(p *proof) { p.key = other }, "not that of the proof's key"},
		{"7 jwk missing", header("jwk", nil), "jwk is missing"},
		{"7 jwk a string", header("jwk", "x"), "jwk is missing or not"},
		{"7 jwk with the private key", header("jwk", jwkOf(proofKey())), `private member "d"`},
		{"7 jwk with an empty d", jwk("d", ""), `private member "d"`},
		{"7 jwk symmetric", header("jwk", map[string]any{"kty": "oct", "k": "AAAA"}), "symmetric"},
		{"7 jwk not on the curve", jwk("x", b64(make([]byte, 32))), "broken"},
		{"7 jwk for encryption", jwk("use", "enc"), "not a key for signatures"},
		{"8 another method", claim("htm", "POST"), "for the method"},
		{"8 the method in lower case", claim("htm", "get"), "for the method"},
		{"9 another path", claim("htu", "https://shop.example/api/order"), "for the URI"},
		{"9 a longer path", claim("htu", "https://shop.example/api/orders/"), "for the URI"},
		{"9 the path as the handler sees it", claim("htu", "https://shop.example/orders"), "for the URI"},
		{"9 another host", claim("htu", "https://evil.example/api/orders"), "for the URI"},
		{"9 another scheme", claim("htu", "http://shop.example/api/orders"), "for the URI"},
		{"9 another port", claim("htu", "https://shop.example:8443/api/orders"), "for the URI"},
		{"9 with a user", claim("htu", "https://a@shop.example/api/orders"), "for the URI"},
		{"9 the path in another case", claim("htu", "https://shop.example/API/orders"), "for the URI"},
		{"9 an escaped slash", claim("htu", "https://shop.example/api%2Forders"), "for the URI"},
		{"9 relative", claim("htu", "/api/orders"), "for the URI"},
		{"11 too old", claim("iat", time.Now().Unix()-95), "was made at"},
		{"11 in the future", claim("iat", time.Now().Unix()+40), "was made at"},
		{"11 at the beginning of time", claim("iat", 0), "was made at"},
		{"11 before it", claim("iat", -1<<62), `"iat" is missing or not`},
		{"11 never", claim("iat", 1e300), `"iat" is missing or not`},
		{"12a of another token", claim("ath", b64(make([]byte, 32))), "for another token"},
		{"12a the hash in hex", claim("ath", fmt.Sprintf("%x", sha256.Sum256([]byte(e.token)))), "for another token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newProof(e.token)
			tt.change(p)
			reason, resp := e.send(t, "DPoP", e.token, p.sign(t))
			if reason != verify.ReasonProof || !strings.Contains(e.last.Load().Error(), tt.says) {
				t.Errorf("%v, want %q", e.last.Load(), tt.says)
			}
			want := `DPoP error="invalid_dpop_proof", algs="ES256 ES384 EdDSA PS256 RS256", resource_metadata="https://shop.example/.well-known/oauth-protected-resource/api"`
			if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != 401 || got != want {
				t.Errorf("%s %s", resp.Status, got)
			}
		})
	}
	good := func() string { return newProof(e.token).sign(t) }
	for name, proofs := range map[string][]string{
		"1 no header": {}, "1 two headers": {good(), good()}, "1 the same twice": {good(), "x"},
		"2 empty": {""}, "2 no JWT": {"opaque"}, "2 two parts": {"e30.e30"}, "2 more after it": {good() + " x"},
		"2 a list": {good() + "," + good()}, "2 trailing newline escaped": {good() + "%0a"}, "2 padded": {good() + "="},
		"2 huge": {strings.Repeat(".", 9<<10)}, "2 JSON serialization": {`{"payload":"e30","signatures":[]}`},
		"2 a member twice": {forgeES256(t, proofKey(), `{"typ":"dpop+jwt","alg":"none","alg":"ES256","jwk":{}}`, map[string]any{})},
	} {
		t.Run(name, func(t *testing.T) {
			if reason, resp := e.send(t, "DPoP", e.token, proofs...); reason != verify.ReasonProof || resp.StatusCode != 401 {
				t.Error(resp.Status, e.last.Load())
			}
		})
	}
	t.Run("5 signed with the public key as a secret", func(t *testing.T) {
		p := newProof(e.token)
		p.header["alg"] = "HS256"
		h, _ := json.Marshal(p.header)
		c, _ := json.Marshal(p.claims)
		input := b64(h) + "." + b64(c)
		mac := hmac.New(sha256.New, h)
		mac.Write([]byte(input))
		if reason, _ := e.send(t, "DPoP", e.token, input+"."+b64(mac.Sum(nil))); reason != verify.ReasonProof {
			t.Error(e.last.Load())
		}
	})
	t.Run("10 no nonce, another's, an old one", func(t *testing.T) {
		now := time.Now()
		e := newEntry(t, func(cfg *verify.Config) { cfg.Nonces, cfg.Now = true, func() time.Time { return now } })
		reason, resp := e.send(t, "DPoP", e.token, newProof(e.token).sign(t))
		nonce := resp.Header.Get("DPoP-Nonce")
		if reason != verify.ReasonNonce || resp.StatusCode != 401 || nonce == "" || !strings.Contains(resp.Header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
			t.Error(resp.Status, resp.Header)
		}
		with := func(nonce any) verify.Reason {
			p := newProof(e.token)
			p.claims["nonce"], p.claims["iat"] = nonce, now.Unix()
			reason, _ := e.send(t, "DPoP", e.token, p.sign(t))
			return reason
		}
		if reason := with(nonce); reason != "" {
			t.Error(reason)
		}
		for _, bad := range []any{"", "x", nonce + "A", nonce[1:], 7} {
			if reason := with(bad); reason != verify.ReasonNonce {
				t.Error(bad, reason)
			}
		}
		foreign := newEntry(t, func(cfg *verify.Config) { cfg.Nonces = true })
		_, resp = foreign.send(t, "DPoP", foreign.token, newProof(foreign.token).sign(t))
		if reason := with(resp.Header.Get("DPoP-Nonce")); reason != verify.ReasonNonce {
			t.Error("a nonce of another verifier:", reason)
		}
		now = now.Add(time.Minute)
		if reason := with(nonce); reason != "" {
			t.Error("a nonce of the last minute:", reason)
		}
		now = now.Add(time.Minute)
		if reason := with(nonce); reason != verify.ReasonNonce {
			t.Error("an old nonce:", reason)
		}
	})
	t.Run("12b of another key", func(t *testing.T) {
		p := newProof(e.token)
		p.key, p.header["jwk"] = other, jwkOf(other.Public())
		if reason, resp := e.send(t, "DPoP", e.token, p.sign(t)); reason != verify.ReasonBinding || resp.StatusCode != 401 {
			t.Error(resp.Status, e.last.Load())
		}
	})
}

// TestProofOnce: a proof is good for one request (RFC 9449 11.1), also for many at a time, and one that was refused is not
// used up.
func TestProofOnce(t *testing.T) {
	e := newEntry(t, nil)
	p := newProof(e.token)
	proof := p.sign(t)
	wrong := e.bound(t, newKey().Public())
	if reason, _ := e.send(t, "DPoP", wrong, proof); reason != verify.ReasonProof {
		t.Error(reason)
	}
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			r, _ := http.NewRequest(http.MethodGet, "/orders", nil)
			r.Header.Set("Authorization", "DPoP "+e.token)
			r.Header.Set("DPoP", proof)
			if _, err := e.VerifyRequest(r); err == nil {
				taken.Add(1)
			}
		})
	}
	wg.Wait()
	if taken.Load() != 1 {
		t.Errorf("one proof was taken %d times", taken.Load())
	}
	// The same claims signed again are another text and the same proof.
	if reason, _ := e.send(t, "DPoP", e.token, p.sign(t)); reason != verify.ReasonProof {
		t.Error(reason)
	}
}

// TestSchemes: a bound token is refused as Bearer (RFC 9449 7.2), and one that is not bound as DPoP.
func TestSchemes(t *testing.T) {
	e := newEntry(t, nil)
	free := e.sign(t, "at+jwt", e.userClaims(time.Now()))
	for name, tt := range map[string]struct {
		scheme, token string
		want          verify.Reason
	}{
		"bound as Bearer": {"Bearer", e.token, verify.ReasonBinding},
		"free as DPoP":    {"DPoP", free, verify.ReasonBinding},
		"free as Bearer":  {"Bearer", free, ""},
		"bound as DPoP":   {"dpop", e.token, ""},
	} {
		reason, resp := e.send(t, tt.scheme, tt.token, newProof(tt.token).sign(t))
		if reason != tt.want {
			t.Errorf("%s: %v", name, e.last.Load())
		}
		if challenges := resp.Header.Values("WWW-Authenticate"); tt.want != "" && (len(challenges) != 2 ||
			!strings.HasPrefix(challenges[0], `Bearer error="invalid_token"`) || !strings.HasPrefix(challenges[1], `DPoP error="invalid_token"`)) {
			t.Errorf("%s: %q", name, challenges)
		}
	}
	_, err := e.Verify(t.Context(), e.token)
	wantReason(t, err, verify.ReasonBinding)
	without := newEntry(t, func(cfg *verify.Config) { cfg.URL = "" })
	if reason, _ := without.send(t, "DPoP", without.token, newProof(without.token).sign(t)); reason != verify.ReasonCredential {
		t.Error("without URL:", reason)
	}
	if reason, _ := without.send(t, "Bearer", without.token, newProof(without.token).sign(t)); reason != verify.ReasonBinding {
		t.Error("without URL:", reason)
	}
}

// TestHostHeaderHasNoSay: which host a request is for is configured.
func TestHostHeaderHasNoSay(t *testing.T) {
	e := newEntry(t, nil)
	p := newProof(e.token)
	p.claims["htu"] = "https://evil.example/api/orders"
	r := httptest.NewRequest(http.MethodGet, "https://evil.example/orders", nil)
	r.Header.Set("Authorization", "DPoP "+e.token)
	r.Header.Set("DPoP", p.sign(t))
	r.Header.Set("X-Forwarded-Host", "evil.example")
	_, err := e.VerifyRequest(r)
	wantReason(t, err, verify.ReasonProof)
}

// TestProofKeys: each algorithm that the challenge names works with its key.
func TestProofKeys(t *testing.T) {
	e := newEntry(t, nil)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[jose.SignatureAlgorithm]crypto.Signer{
		jose.ES256: newKey(), jose.EdDSA: ed, jose.RS256: rsaKey(), jose.PS256: rsaKey(),
	} {
		token := e.bound(t, key.Public())
		options := (&jose.SignerOptions{EmbedJWK: true}).WithType("dpop+jwt")
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
		if err != nil {
			t.Fatal(err)
		}
		payload, err := json.Marshal(newProof(token).claims)
		if err != nil {
			t.Fatal(err)
		}
		jws, err := signer.Sign(payload)
		if err != nil {
			t.Fatal(err)
		}
		compact, err := jws.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		if reason, _ := e.send(t, "DPoP", token, compact); reason != "" {
			t.Errorf("%s: %v", alg, e.last.Load())
		}
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err == nil {
		p := newProof(e.token)
		p.header["jwk"] = jwkOf(short.Public())
		if reason, _ := e.send(t, "DPoP", e.token, p.sign(t)); reason != verify.ReasonProof {
			t.Error("RSA of 1024 bits:", reason)
		}
	}
}
