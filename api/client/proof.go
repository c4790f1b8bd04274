package client

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	proofType = "countersign-renewal+jwt"
	proofLife = 2 * time.Minute
)

// Proof makes a JWT by which id, whose certificate may have ended, renews itself without a TLS client certificate. It is good
// once, for two minutes, for the key of csr (PEM) and for issuer, the daemon's issuer identifier (`issuer` of its metadata).
func Proof(id *identity.Identity, issuer string, csr []byte, now time.Time) (string, error) {
	block, _ := pem.Decode(csr)
	if block == nil {
		return "", errors.New("the certificate request is not PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("read the certificate request: %w", err)
	}
	sum := sha256.Sum256(request.RawSubjectPublicKeyInfo)
	signer, err := jwt.NewSigner(id.Key, proofAlg(id.Key), id.Serial, proofType)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(map[string]any{
		"iss": id.ID.String(), "sub": id.ID.String(), "aud": issuer, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(proofLife).Unix(), "spki": hex.EncodeToString(sum[:]),
	})
	if err != nil {
		return "", err
	}
	return signer.Sign(payload)
}

func proofAlg(key crypto.Signer) string {
	switch k := key.Public().(type) {
	case *ecdsa.PublicKey:
		return map[int]string{256: "ES256", 384: "ES384"}[k.Curve.Params().BitSize]
	case ed25519.PublicKey:
		return "EdDSA"
	}
	return "RS256"
}

// sawNoCertificate tells whether the daemon did nothing because no credential came to it.
func sawNoCertificate(err error) bool {
	var refused interface{ Code() countersign.Code }
	return errors.As(err, &refused) && refused.Code() == countersign.CodeNoCredential
}

// RenewBy gets the next certificate with a [Proof], where no client certificate reaches the daemon: beside one it is refused.
func (c *Client) RenewBy(ctx context.Context, proof string, rq wire.CertificateRequest) (wire.Certificate, error) {
	return c.Join(ctx, proof, rq)
}
