package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// hostileIssuer is a real OIDC issuer with two keys, and what can be made with them by hand: tokens of shapes that no
// library would write. It counts who fetches what.
type hostileIssuer struct {
	*httptest.Server
	t   *testing.T
	ec  *ecdsa.PrivateKey // kid ec
	rsa *rsa.PrivateKey   // kid rsa

	mu   sync.Mutex
	hits map[string]int // by path
}

func newHostileIssuer(t *testing.T) *hostileIssuer {
	t.Helper()
	i := &hostileIssuer{t: t, hits: map[string]int{}}
	var err error
	if i.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if i.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	keys, err := jwt.NewSet(jwt.PublicKey{KID: "ec", Alg: "ES256", Key: i.ec.Public()}, jwt.PublicKey{KID: "rsa", Alg: "RS256", Key: i.rsa.Public()})
	if err != nil {
		t.Fatal(err)
	}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, rq *http.Request) {
		i.mu.Lock()
		i.hits[rq.URL.Path]++
		i.mu.Unlock()
		switch rq.URL.Path {
		case "/.well-known/openid-configuration":
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"})
		case "/jwks":
			w.Header().Set("Content-Type", "application/jwk-set+json")
			_, _ = w.Write(keys.JSON())
		default:
			http.NotFound(w, rq)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

// strangeHits are the fetches of anything but the issuer's documents.
func (i *hostileIssuer) strangeHits() map[string]int {
	i.mu.Lock()
	defer i.mu.Unlock()
	strange := maps.Clone(i.hits)
	for _, path := range []string{"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server", "/jwks"} {
		delete(strange, path)
	}
	return strange
}

// claims are those of a good token, with changes; nil removes a claim.
func (i *hostileIssuer) claims(changes ...any) map[string]any {
	now := time.Now()
	c := map[string]any{
		"iss": i.URL, "sub": "ana", "aud": "shop-web", "scope": "shop.read shop.write orders:read",
		"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "email": "ana@shop.example",
	}
	for n := 0; n+1 < len(changes); n += 2 {
		name := changes[n].(string)
		if c[name] = changes[n+1]; changes[n+1] == nil {
			delete(c, name)
		}
	}
	return c
}

func (i *hostileIssuer) good() string { return i.token() }

// token is well made and signed; its claims are those of claims.
func (i *hostileIssuer) token(changes ...any) string {
	return i.es256(`{"alg":"ES256","kid":"ec","typ":"at+jwt"}`, i.json(i.claims(changes...)))
}

func (i *hostileIssuer) json(v any) string {
	i.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(b)
}

// base64 is base64url without padding, as every part of a token is written.
func (i *hostileIssuer) base64(s string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(s))
}

// signed puts a token together: header and payload as they are, and what sign makes of them.
func (i *hostileIssuer) signed(header, payload string, sign func(input string) []byte) string {
	input := i.base64(header) + "." + i.base64(payload)
	return input + "." + i.base64(string(sign(input)))
}

func (i *hostileIssuer) es256(header, payload string) string {
	return i.signed(header, payload, i.signES256)
}

func (i *hostileIssuer) signES256(input string) []byte {
	i.t.Helper()
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, i.ec, sum[:])
	if err != nil {
		i.t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// signDER is the form of an ECDSA signature that X.509 uses, and JOSE does not.
func (i *hostileIssuer) signDER(input string) []byte {
	i.t.Helper()
	sum := sha256.Sum256([]byte(input))
	sig, err := ecdsa.SignASN1(rand.Reader, i.ec, sum[:])
	if err != nil {
		i.t.Fatal(err)
	}
	return sig
}

func (i *hostileIssuer) signRSA(pss bool) func(string) []byte {
	return func(input string) []byte {
		i.t.Helper()
		sum := sha256.Sum256([]byte(input))
		var opts crypto.SignerOpts = crypto.SHA256
		if pss {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
		}
		sig, err := i.rsa.Sign(rand.Reader, sum[:], opts)
		if err != nil {
			i.t.Fatal(err)
		}
		return sig
	}
}

// signHMAC is HS256 with a secret that everybody knows.
func signHMAC(secret []byte) func(string) []byte {
	return func(input string) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return mac.Sum(nil)
	}
}
