package jwt

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
)

// Sign makes a token that [Parse] takes, with a header of exactly alg, kid and typ. alg must be the one of ES256,
// ES384, ES512, EdDSA, or one of RS256, RS384, RS512, that signer's key is for. claims is anything that encoding/json
// writes as an object. Keys that live elsewhere (KMS, PKCS#11) sign through [crypto.Signer].
func Sign(signer crypto.Signer, alg, kid, typ string, claims any) (string, error) {
	if err := checkSigning(signer, alg); err != nil {
		return "", err
	}
	if kid == "" || len(kid) > maxKID || !printable(kid) || typ == "" || len(typ) > maxTyp || !printable(typ) {
		return "", fmt.Errorf("sign a token: kid and typ must be printable and at most %d and %d long", maxKID, maxTyp)
	}
	payload, err := marshal(claims)
	if err != nil {
		return "", fmt.Errorf("sign a token: write its claims: %w", err)
	}
	if _, err := parseObject(payload); err != nil {
		return "", fmt.Errorf("sign a token: its claims: %w", err)
	}
	options := new(jose.SignerOptions).WithType(jose.ContentType(typ)).WithHeader("kid", kid)
	key := jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: signingKey(signer)}
	s, err := jose.NewSigner(key, options)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	if len(compact) > MaxToken {
		return "", fmt.Errorf("sign a token: it would have %d bytes; at most %d are taken", len(compact), MaxToken)
	}
	return compact, nil
}

// checkSigning leaves PS256, PS384 and PS512 out: go-jose makes them with the longest salt, RFC 7518 3.5 demands one
// of the hash's size.
func checkSigning(signer crypto.Signer, alg string) error {
	a, known := algorithmOf(alg)
	if !known || a.rsa && alg[0] == 'P' {
		return fmt.Errorf("sign a token: the algorithm %q is not one that is signed with", alg)
	}
	if err := checkKey(signer.Public()); err != nil {
		return fmt.Errorf("sign a token: %w", err)
	}
	if !a.fits(signer.Public()) {
		return fmt.Errorf("sign a token: the key is not for the algorithm %q", alg)
	}
	return nil
}

// signingKey is what go-jose signs with: keys in memory directly, others through their interface.
func signingKey(signer crypto.Signer) any {
	switch k := signer.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey:
		return k
	}
	return cryptosigner.Opaque(signer)
}

// marshal is json.Marshal without the escapes for HTML, which only make tokens longer.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
