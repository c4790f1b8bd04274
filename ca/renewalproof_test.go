package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// What is taken for a proof has all that one needs, and whatever is refused has a code that may be shown.
func FuzzProof(f *testing.F) {
	const audience, serial = "https://ca.internal", "00112233445566778899aabbccddeeff"
	now := time.Unix(1_800_000_000, 0)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	signer, err := jwt.NewSigner(key, "ES256", serial, ProofType)
	if err != nil {
		f.Fatal(err)
	}
	for _, exp := range []string{"1800000060", "1900000000", `"soon"`} {
		text, err := signer.Sign([]byte(`{"iss":"spiffe://a.b/c","sub":"spiffe://a.b/c","aud":"` + audience + `","jti":"1","exp":` + exp +
			`,"spki":"` + strings.Repeat("0a", 32) + `"}`))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add("..")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseProof(text, audience, now)
		if err != nil {
			if countersign.AsError(err).Code == countersign.CodeInternal {
				t.Errorf("an error without a code: %v", err)
			}
			return
		}
		if !IsProof(text) || p.token == nil || p.serial == "" || p.id.IsZero() || p.jti == "" || len(p.spki) != 64 || p.exp.Before(now.Add(-proofSkew)) || p.exp.After(now.Add(ProofLife+proofSkew)) {
			t.Errorf("accepted %+v", p)
		}
	})
}
