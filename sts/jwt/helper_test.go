package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// The keys of these tests, made once.
var (
	p256 = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	twin = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384 = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	p521 = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) })
	r2k  = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	ed   = sync.OnceValue(func() ed25519.PrivateKey { _, k, err := ed25519.GenerateKey(rand.Reader); return must(k, err) })
)

// now is when these tests take place.
func now() time.Time { return time.Unix(1_800_000_000, 0) }

const goodPayload = `{"iss":"https://idp.example","sub":"alice","aud":"orders","exp":1800000300,"iat":1800000000}`

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// forge signs any header and payload with ES256, without go-jose and without our own Sign, so that both are tested.
func forge(header, payload string) string {
	return forgeWith(header, payload, func(input string) []byte { return es256(p256(), input) })
}

func forgeWith(header, payload string, sign func(input string) []byte) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign(input))
}

func es256(key *ecdsa.PrivateKey, input string) []byte {
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		panic(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

func hs256(secret []byte) func(string) []byte {
	return func(input string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(input))
		return m.Sum(nil)
	}
}

func rs256(input string) []byte {
	sum := sha256.Sum256([]byte(input))
	return must(rsa.SignPKCS1v15(nil, r2k(), crypto.SHA256, sum[:]))
}

func ps256(input string) []byte {
	sum := sha256.Sum256([]byte(input))
	return must(rsa.SignPSS(rand.Reader, r2k(), crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}))
}

// issuerSet is what the issuer of these tests publishes.
func issuerSet(t testing.TB) *Set {
	t.Helper()
	s, err := NewSet(
		PublicKey{KID: "e", Alg: "ES256", Key: p256().Public()},
		PublicKey{KID: "r", Alg: "RS256", Key: r2k().Public()},
		PublicKey{KID: "r-any", Key: r2k().Public()},
		PublicKey{KID: "d", Alg: "EdDSA", Key: ed().Public()},
	)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// judge does what every user of the package does with a token.
func judge(token string, keys *Set, algs ...string) error {
	t, err := Parse(token)
	if err != nil {
		return err
	}
	if err := t.Verify(keys, algs); err != nil {
		return err
	}
	return t.Claims.CheckTimes(now(), 0)
}

func wantReason(t *testing.T, err error, want Reason) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want a refusal because of %q", err, err, want)
	}
	if e.Reason != want {
		t.Fatalf("refused because of %q (%v), want %q", e.Reason, err, want)
	}
}
