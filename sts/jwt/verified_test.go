package jwt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// A remembered token is judged by the issuer's present keys and algorithms, as any other.
func TestVerifiedAsksTheKeys(t *testing.T) {
	sign := func() string { return must(Sign(p256(), "ES256", "k1", "JWT", map[string]any{"sub": "ana"})) }
	good := must(NewSet(PublicKey{KID: "k1", Alg: "ES256", Key: p256().Public()}))
	for name, tt := range map[string]struct {
		keys *Set
		algs []string
		want Reason
	}{
		"the key was taken back":       {must(NewSet(PublicKey{KID: "k2", Alg: "ES256", Key: p256().Public()})), []string{"ES256"}, ReasonKID},
		"the kid names another key":    {must(NewSet(PublicKey{KID: "k1", Key: ed().Public()})), []string{"ES256"}, ReasonAlg},
		"the algorithm is not allowed": {good, []string{"RS256"}, ReasonAlg},
		"no keys":                      {must(NewSet()), []string{"ES256"}, ReasonKID},
		"the kid names a twin":         {must(NewSet(PublicKey{KID: "k1", Alg: "ES256", Key: twin().Public()})), []string{"ES256"}, ReasonSignature},
	} {
		t.Run(name, func(t *testing.T) {
			var v Verified
			compact := sign()
			for range 2 {
				if err := v.Verify(must(v.Parse(compact)), good, []string{"ES256"}); err != nil {
					t.Fatal(err)
				}
			}
			wantReason(t, v.Verify(must(v.Parse(compact)), tt.keys, tt.algs), tt.want)
			if err := v.Verify(must(v.Parse(compact)), good, []string{"ES256"}); err != nil {
				t.Errorf("and with the good keys again: %v", err)
			}
		})
	}
}

// Only what was verified is remembered, and another text is another token.
func TestVerifiedRemembersTheVerified(t *testing.T) {
	var v Verified
	keys := must(NewSet(PublicKey{KID: "k1", Alg: "ES256", Key: p256().Public()}))
	compact := must(Sign(twin(), "ES256", "k1", "JWT", map[string]any{"sub": "ana"}))
	for range 2 {
		wantReason(t, v.Verify(must(v.Parse(compact)), keys, []string{"ES256"}), ReasonSignature)
	}
	if v.Known(must(v.Parse(compact))) {
		t.Error("a forged token is remembered")
	}
	compact = must(Sign(p256(), "ES256", "k1", "JWT", map[string]any{"sub": "ana"}))
	if err := v.Verify(must(v.Parse(compact)), keys, []string{"ES256"}); err != nil {
		t.Fatal(err)
	}
	dot := strings.LastIndexByte(compact, '.')
	for _, other := range []string{compact + "=", compact + "\n", compact[:dot] + "A" + compact[dot:], compact + "A"} {
		if got, err := v.Parse(other); err == nil && v.Verify(got, keys, []string{"ES256"}) == nil {
			t.Errorf("taken: %q", other)
		}
	}
	if !v.Known(must(v.Parse(compact))) {
		t.Error("the token is not remembered")
	}
}

func TestVerifiedIsBounded(t *testing.T) {
	var v Verified
	digest := func(i int) [32]byte { return [32]byte{byte(i), byte(i >> 8), byte(i >> 16)} }
	for i := range 3 * maxVerified {
		v.put(digest(i), p256().Public())
		if v.by(digest(0)) == nil {
			t.Fatalf("what is asked for again and again is forgotten after %d others", i)
		}
		if len(v.young) > maxVerified || len(v.old) > maxVerified || len(v.keys) != 1 {
			t.Fatalf("%d and %d tokens, %d keys", len(v.young), len(v.old), len(v.keys))
		}
	}
	if v.by(digest(1)) != nil || v.by(digest(3*maxVerified-1)) == nil {
		t.Error("the oldest is still there, or the youngest is not")
	}
	for i := range maxVerifiedKeys + 10 {
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
		v.put(digest(i), key.Public())
		if by := v.by(digest(i)); !key.PublicKey.Equal(by) || len(v.keys) > maxVerifiedKeys {
			t.Fatalf("of %d keys the wrong one", len(v.keys))
		}
	}
}

func TestVerifiedConcurrently(t *testing.T) {
	var v Verified
	keys := must(NewSet(PublicKey{KID: "k1", Alg: "ES256", Key: p256().Public()}))
	tokens := make([]string, 8)
	for i := range tokens {
		tokens[i] = must(Sign(p256(), "ES256", "k1", "JWT", map[string]any{"sub": fmt.Sprint(i)}))
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 100 {
				token, err := v.Parse(tokens[i%len(tokens)])
				if err != nil || v.Verify(token, keys, []string{"ES256"}) != nil {
					t.Errorf("token %d: %v", i, err)
				}
			}
		})
	}
	all.Wait()
	if len(v.young) != len(tokens) {
		t.Errorf("%d are remembered", len(v.young))
	}
}
