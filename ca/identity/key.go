package identity

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/pemutil"
)

// NewKey makes a private key of one of the policy's key types: "P-256" (also for ""), "P-384", "Ed25519", "RSA-2048",
// "RSA-3072", "RSA-4096".
func NewKey(alg string) (crypto.Signer, error) {
	switch alg {
	case "", "P-256":
		return keyutil.GenerateSigner("EC", "P-256", 0)
	case "P-384":
		return keyutil.GenerateSigner("EC", "P-384", 0)
	case "Ed25519":
		return keyutil.GenerateSigner("OKP", "Ed25519", 0)
	case "RSA-2048":
		return keyutil.GenerateSigner("RSA", "", 2048)
	case "RSA-3072":
		return keyutil.GenerateSigner("RSA", "", 3072)
	case "RSA-4096":
		return keyutil.GenerateSigner("RSA", "", 4096)
	}
	return nil, fmt.Errorf("%q is no key type: P-256, P-384, Ed25519, RSA-2048, RSA-3072 and RSA-4096 are", alg)
}

// CSR is a certificate request (RFC 2986, PEM) for key. It names nobody: the authority takes names from its policy.
func CSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	block, err := pemutil.Serialize(request)
	if err != nil {
		return nil, fmt.Errorf("encode the certificate request: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}
