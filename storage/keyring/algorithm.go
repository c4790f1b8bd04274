package keyring

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/go-jose/go-jose/v4"
	"go.step.sm/crypto/keyutil"
	"go.step.sm/crypto/kms/apiv1"
	"go.step.sm/crypto/kms/softkms"
	"go.step.sm/crypto/pemutil"
)

// The algorithms of JWA that the ring makes keys for. RSA keys have 2048 bits: 3072 cost three times as much per token.
const (
	algES256 = "ES256"
	algES384 = "ES384" // of imported keys of purpose ca only, as are RSA keys there
	algRS256 = "RS256"
	rsaBits  = 2048
)

// algsOf are the algorithms that keys of purpose p may have; a purpose that is rotated always holds a key of each. Every
// verifier of JWT-SVIDs knows ES256 (JWT-SVID 2.1), as does who takes our certificates; services choose what relay tokens are signed with.
func algsOf(p Purpose) []string {
	if p == SVID || p == OCSP {
		return []string{algES256}
	}
	return []string{algES256, algRS256}
}

// generate makes a private key for alg.
func generate(alg string) (crypto.Signer, error) {
	switch alg {
	case algES256:
		return keyutil.GenerateSigner("EC", "P-256", 0)
	case algRS256:
		return keyutil.GenerateSigner("RSA", "", rsaBits)
	}
	return nil, fmt.Errorf("the keyring makes no keys for %q: %s and %s are known", alg, algES256, algRS256)
}

// checkPublic tells why pub can't be the public half of a key for alg.
func checkPublic(alg string, pub crypto.PublicKey) error {
	switch key := pub.(type) {
	case *ecdsa.PublicKey:
		if alg == algES256 && key.Curve == elliptic.P256() || alg == algES384 && key.Curve == elliptic.P384() {
			return nil
		}
	case *rsa.PublicKey:
		if alg == algRS256 && key.N.BitLen() >= rsaBits {
			return nil
		}
	}
	return fmt.Errorf("a %T is no key for %q", pub, alg)
}

// algOf is the algorithm of a key that was made elsewhere.
func algOf(pub crypto.PublicKey) (string, error) {
	for _, alg := range []string{algES256, algES384, algRS256} {
		if checkPublic(alg, pub) == nil {
			return alg, nil
		}
	}
	return "", errors.New("keys of P-256, P-384 and RSA of 2048 bits and more can be")
}

// thumbprint is the kid: RFC 7638 with SHA-256, base64url.
func thumbprint(pub crypto.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// pkcs8 is the private key as DER. The caller clears it.
func pkcs8(key crypto.Signer) ([]byte, error) {
	block, err := pemutil.Serialize(key, pemutil.WithPKCS8(true))
	if err != nil {
		// The cause is not wrapped: nothing that has seen a private key speaks.
		return nil, errors.New("encode the private key as PKCS#8")
	}
	return block.Bytes, nil
}

// newSigner makes the signer of an unsealed key. Copies that the parsers make can't be cleared; they hold no more than
// the signer itself does as long as it lives.
func newSigner(der []byte) (crypto.Signer, error) {
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(text)
	kms, err := softkms.New(context.Background(), apiv1.Options{})
	if err != nil {
		return nil, errors.New("open the software key manager")
	}
	key, err := kms.CreateSigner(&apiv1.CreateSignerRequest{SigningKeyPEM: text})
	if err != nil {
		return nil, errors.New("the unsealed key is no PKCS#8 private key")
	}
	return &signer{key: key}, nil
}

// signer hides the private key from type assertions, encoders and format verbs.
type signer struct{ key crypto.Signer }

// Public implements crypto.Signer.
func (s *signer) Public() crypto.PublicKey { return s.key.Public() }

// Sign implements crypto.Signer.
func (s *signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.Sign(rand, digest, opts)
}

// Format keeps the key out of every format verb.
func (s *signer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "keyring signer") }
