package jwt

import (
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
	if len(v.at) != 0 {
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
	if again := must(v.Parse(compact)); again != must(v.Parse(compact)) {
		t.Error("the token is parsed again")
	}
}

func TestVerifiedIsBounded(t *testing.T) {
	var v Verified
	remember := func(n, size int) {
		for i := range n {
			v.remember(&verified{sum: [32]byte{byte(i), byte(i >> 8), byte(size >> 8)}, token: &Token{compact: strings.Repeat("x", size)}})
		}
	}
	remember(maxVerified+100, 10)
	if len(v.at) != maxVerified || v.order.Len() != maxVerified || v.bytes != 10*maxVerified {
		t.Errorf("%d entries, %d bytes", len(v.at), v.bytes)
	}
	if _, ok := v.at[[32]byte{0, 0, 0}]; ok {
		t.Error("the oldest is still there")
	}
	remember(1000, MaxToken)
	if len(v.at) != v.order.Len() || v.bytes > maxVerifiedBytes || v.bytes < maxVerifiedBytes-MaxToken {
		t.Errorf("%d entries, %d bytes", len(v.at), v.bytes)
	}
	remember(1, MaxToken)
	if len(v.at) != v.order.Len() {
		t.Errorf("%d entries, %d in order", len(v.at), v.order.Len())
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
	if len(v.at) != len(tokens) {
		t.Errorf("%d are remembered", len(v.at))
	}
}
