package jwt

import (
	"crypto"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// MaxProof is the most bytes that a DPoP proof may have: it holds a key, a URL and three short claims.
const MaxProof = 8 << 10

// Proof is a DPoP proof (RFC 9449 4.2) that whoever made it signed with the key that it names. That proves the possession of
// this key and nothing else: to whom the key belongs, and for which request and when the proof was made, is the caller's to
// judge, from Thumbprint and Claims.
type Proof struct {
	Alg        string
	Thumbprint string // RFC 7638, SHA-256, base64url: what `cnf.jkt` of a bound token is compared with
	Claims     Claims
}

// ParseProof reads a DPoP proof and judges checks 2 and 4 to 7 of RFC 9449 4.3: one well-formed JWS in compact serialization of at
// most [MaxProof] bytes, typ dpop+jwt, an alg of algs, a jwk that is a public key and nothing more, and the signature by it.
//
// It is a parser of its own. The key that a proof names is the point of it, and what makes any other token worthless; so it
// shares no option with [Parse], and neither reads what is for the other: [Parse] refuses a header with jwk, ParseProof one
// without. Errors are of type [*Error].
func ParseProof(compact string, algs []string) (*Proof, error) {
	if len(compact) > MaxProof {
		return nil, refuse(ReasonSize, "the proof has more than %d bytes", MaxProof)
	}
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return nil, refuse(ReasonParts, "not a JWS in compact serialization: there are not exactly three parts")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = decodeBase64(part); err != nil {
			return nil, err
		}
	}
	header, err := parseObject(decoded[0])
	if err != nil {
		return nil, err
	}
	alg, err := proofAlgorithm(header, algs)
	if err != nil {
		return nil, err
	}
	key, err := proofKey(header, alg)
	if err != nil {
		return nil, err
	}
	claims, err := parseObject(decoded[1])
	if err != nil {
		return nil, err
	}
	if err := checkSignature(key, decoded[2]); err != nil {
		return nil, err
	}
	if !alg.verify(key, []byte(parts[0]+"."+parts[1]), decoded[2]) {
		return nil, refuse(ReasonSignature, "the signature is not that of the proof's key")
	}
	thumbprint, err := thumbprintOf(key)
	if err != nil {
		return nil, err
	}
	return &Proof{Alg: alg.name, Thumbprint: thumbprint, Claims: claims}, nil
}

func proofAlgorithm(header Claims, algs []string) (algorithm, error) {
	for _, name := range []string{"jku", "x5u", "x5c", "crit", "b64", "zip", "enc"} {
		if header.Has(name) {
			return algorithm{}, refuse(ReasonHeader, "the header parameter %q is not taken in a proof", name)
		}
	}
	typ, err := headerText(header, "typ", maxTyp)
	if err != nil {
		return algorithm{}, err
	}
	if !(&Token{Typ: typ}).HasType("dpop+jwt") {
		return algorithm{}, refuse(ReasonHeader, "the typ %q is not dpop+jwt", typ)
	}
	name, err := headerText(header, "alg", maxTyp)
	if err != nil {
		return algorithm{}, err
	}
	alg, known := algorithmOf(name)
	if !known || !slices.Contains(algs, name) {
		return algorithm{}, refuse(ReasonAlg, "the algorithm %.20q is not taken in a proof", name)
	}
	return alg, nil
}

// proofKey reads the jwk. A private member in it refuses the proof (check 7), whatever else is right.
func proofKey(header Claims, alg algorithm) (crypto.PublicKey, error) {
	jwk, ok, err := header.Object("jwk")
	if err != nil || !ok {
		return nil, refuse(ReasonKey, "the proof's jwk is missing or not an object")
	}
	key, use, err := readKey(jwk)
	if err != nil {
		return nil, err
	}
	if !use {
		return nil, refuse(ReasonKey, "the proof's jwk is not a key for signatures")
	}
	if err := checkKey(key.Key); err != nil {
		return nil, err
	}
	if !alg.fits(key.Key) || key.Alg != "" && key.Alg != alg.name {
		return nil, refuse(ReasonAlg, "the proof's jwk is not for the algorithm %q", alg.name)
	}
	return key.Key, nil
}

// thumbprintOf is RFC 7638's, of the key and not of how it was written.
func thumbprintOf(key crypto.PublicKey) (string, error) {
	sum, err := (&jose.JSONWebKey{Key: key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return "", refuse(ReasonKey, "the key has no thumbprint")
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}
