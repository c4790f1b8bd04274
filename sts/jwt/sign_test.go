package jwt

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// go-jose, which has no part in the signing, takes every signature: also those, one in 128, whose r or s begins with a
// zero byte.
func TestSignaturesByGoJose(t *testing.T) {
	for _, tt := range []struct {
		alg   string
		key   crypto.Signer
		times int
	}{{"ES256", p256(), 600}, {"ES384", p384(), 20}, {"ES512", p521(), 20}, {"EdDSA", ed(), 2}, {"RS256", r2k(), 2}, {"RS512", r2k(), 2}} {
		signer := must(NewSigner(tt.key, tt.alg, "k1", "at+jwt"))
		for range tt.times {
			payload := []byte(`{"sub":"ana"}`)
			compact, err := signer.Sign(payload)
			if err != nil {
				t.Fatal(err)
			}
			jws, err := jose.ParseSignedCompact(compact, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(tt.alg)})
			if err != nil {
				t.Fatal(tt.alg, err)
			}
			if got, err := jws.Verify(tt.key.Public()); err != nil || !bytes.Equal(got, payload) {
				t.Fatalf("%s: %s, %v", tt.alg, got, err)
			}
		}
	}
}

func TestFixedECDSA(t *testing.T) {
	der := func(v any) []byte { return must(asn1.Marshal(v)) }
	type pair struct{ R, S *big.Int }
	small := pair{big.NewInt(1), new(big.Int).Lsh(big.NewInt(1), 255)}
	got, err := fixedECDSA(der(small), 32)
	want := append(append(make([]byte, 31), 1), append([]byte{0x80}, make([]byte, 31)...)...)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v; want %x", got, err, want)
	}
	for name, bad := range map[string][]byte{
		"nothing":       nil,
		"no sequence":   der(big.NewInt(1)),
		"one number":    der(struct{ R *big.Int }{big.NewInt(1)}),
		"three numbers": der(struct{ R, S, T *big.Int }{big.NewInt(1), big.NewInt(1), big.NewInt(1)}),
		"negative":      der(pair{big.NewInt(-1), big.NewInt(1)}),
		"too long":      der(pair{new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1)}),
		"trailing":      append(der(small), 0),
	} {
		if got, err := fixedECDSA(bad, 32); err == nil {
			t.Errorf("%s: %x", name, got)
		}
	}
}
