package verify_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// bareHeader and bareClaims are what somebody who checks nothing but the signature would decode a relay token into.
type bareHeader struct {
	Alg string `json:"alg"`
	KID string `json:"kid"`
	Typ string `json:"typ"`
}

type bareActor struct {
	Sub string     `json:"sub"`
	Act *bareActor `json:"act"`
}

type bareClaims struct {
	Iss      string     `json:"iss"`
	Sub      string     `json:"sub"`
	SubIss   string     `json:"sub_iss"`
	Aud      string     `json:"aud"`
	ClientID string     `json:"client_id"`
	Exp      float64    `json:"exp"`
	Nbf      float64    `json:"nbf"`
	Iat      float64    `json:"iat"`
	JTI      string     `json:"jti"`
	Txn      string     `json:"txn"`
	SID      string     `json:"sid"`
	Scope    string     `json:"scope"`
	Act      *bareActor `json:"act"`
	Email    string     `json:"email"`
	Level    float64    `json:"level"`
	AMR      []string   `json:"amr"`
}

// bare is the least that a verification can be: three parts, base64url, encoding/json into structs of just the claims that
// are there, the hash and the signature. It makes no other check.
func bare(key crypto.PublicKey, token string) (*bareClaims, error) {
	parts := strings.Split(token, ".")
	var decoded [3][]byte
	for i, part := range parts {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			return nil, err
		}
		decoded[i] = b
	}
	var h bareHeader
	if err := json.Unmarshal(decoded[0], &h); err != nil {
		return nil, err
	}
	var c bareClaims
	if err := json.Unmarshal(decoded[1], &c); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(token[:len(parts[0])+1+len(parts[1])]))
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		r, s := new(big.Int).SetBytes(decoded[2][:32]), new(big.Int).SetBytes(decoded[2][32:])
		if !ecdsa.Verify(k, sum[:], r, s) {
			return nil, errors.New("signature")
		}
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], decoded[2]); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

type tokenOf struct {
	alg    string
	signer crypto.Signer
	kid    string
}

// BenchmarkVerify and BenchmarkBare are read together: issue 4 allows 1.15 times.
func BenchmarkVerify(b *testing.B) {
	a := newAuthority()
	defer a.Close()
	v, err := verify.New(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: a.roots()})
	if err != nil {
		b.Fatal(err)
	}
	for _, o := range []tokenOf{{"ES256", a.key, "k1"}, {"RS256", rsaKey(), "k2"}} {
		token, err := jwt.Sign(o.signer, o.alg, o.kid, "at+jwt", a.claims(time.Now()))
		if err != nil {
			b.Fatal(err)
		}
		b.Run("verify/"+o.alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("bare/"+o.alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bare(o.signer.Public(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
