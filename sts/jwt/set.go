package jwt

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// The limits of a published key set.
const (
	MaxSet  = 256 << 10 // bytes
	MaxKeys = 64
)

// PublicKey is a key that verifies tokens: *ecdsa.PublicKey, *rsa.PublicKey or ed25519.PublicKey.
type PublicKey struct {
	KID string // "" only where an issuer publishes none
	Alg string // the one algorithm that it is for; "" if the issuer does not say
	Key crypto.PublicKey
}

// Set is an immutable set of public keys of one issuer (RFC 7517 5).
type Set struct {
	keys      []PublicKey
	published int // also those that are not for signatures
}

// NewSet makes a set of our own keys. Each needs a KID of its own and must be one that [ParseSet] would take.
func NewSet(keys ...PublicKey) (*Set, error) {
	s := &Set{keys: slices.Clone(keys), published: len(keys)}
	for _, k := range keys {
		if k.KID == "" {
			return nil, refuse(ReasonKey, "a key has no kid")
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

// ParseSet reads the JWK Set that an issuer publishes. Keys that can't be for tokens here are skipped: other types
// and curves, a "use" other than "sig", "key_ops" without "verify", an "alg" that is none for signatures. Everything
// else that is wrong refuses the whole set: an issuer that publishes a secret or a broken key is not to be guessed
// about. Certificates in the set are not looked at. A set without a usable key is no error. Errors are of type
// [*Error].
func ParseSet(b []byte) (*Set, error) {
	if len(b) > MaxSet {
		return nil, refuse(ReasonSize, "the key set has more than %d bytes", MaxSet)
	}
	doc, err := parseObject(b)
	if err != nil {
		return nil, err
	}
	raw, ok := doc.Raw("keys")
	var entries []json.RawMessage
	if !ok || raw[0] != '[' || json.Unmarshal(raw, &entries) != nil {
		return nil, refuse(ReasonJSON, `the key set has no array "keys"`)
	}
	if len(entries) > MaxKeys {
		return nil, refuse(ReasonSize, "the key set has %d keys; at most %d are taken", len(entries), MaxKeys)
	}
	s := &Set{published: len(entries)}
	for _, entry := range entries {
		if entry[0] != '{' {
			return nil, refuse(ReasonJSON, "a key is not an object")
		}
		jwk, err := parseObject(entry)
		if err != nil {
			return nil, err
		}
		key, use, err := readKey(jwk)
		if err != nil {
			return nil, err
		}
		if use {
			s.keys = append(s.keys, key)
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

// check judges the keys of s: each by itself, its alg against it, and that no two have the same kid.
func (s *Set) check() error {
	if len(s.keys) > MaxKeys {
		return refuse(ReasonSize, "%d keys; at most %d are taken", len(s.keys), MaxKeys)
	}
	seen := make(map[string]bool, len(s.keys))
	for _, k := range s.keys {
		if k.KID != "" && seen[k.KID] {
			return refuse(ReasonDuplicate, "two keys have the kid %.40q", k.KID)
		}
		seen[k.KID] = true
		if len(k.KID) > maxKID || !printable(k.KID) {
			return refuse(ReasonKey, "a kid is not 1 to %d printable characters", maxKID)
		}
		if err := checkKey(k.Key); err != nil {
			return err
		}
		if alg, known := algorithmOf(k.Alg); k.Alg != "" && (!known || !alg.fits(k.Key)) {
			return refuse(ReasonKey, "the key %.40q can't be for the algorithm %.20q", k.KID, k.Alg)
		}
	}
	return nil
}

// Keys are the keys that can verify tokens, in the set's order.
func (s *Set) Keys() []PublicKey { return slices.Clone(s.keys) }

// Skipped is how many of the published keys are not for tokens.
func (s *Set) Skipped() int { return s.published - len(s.keys) }

// Thumbprint is the key's JWK thumbprint (RFC 7638) with SHA-256, in base64url; "" if Key can't be in a [Set].
func (k PublicKey) Thumbprint() string {
	sum, err := (&jose.JSONWebKey{Key: k.Key}).Thumbprint(crypto.SHA256)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// Len is the number of keys that can verify tokens.
func (s *Set) Len() int { return len(s.keys) }

// Has tells whether kid names a key of the set.
func (s *Set) Has(kid string) bool {
	return kid != "" && slices.ContainsFunc(s.keys, func(k PublicKey) bool { return k.KID == kid })
}

// find is the one key that a token with this kid can be signed with. Several keys are never tried.
func (s *Set) find(kid string) (PublicKey, error) {
	if s == nil || len(s.keys) == 0 {
		return PublicKey{}, refuse(ReasonKID, "the issuer has no key for tokens")
	}
	if kid == "" {
		if s.published != 1 {
			return PublicKey{}, refuse(ReasonKID, "the token has no kid, and its issuer publishes %d keys", s.published)
		}
		return s.keys[0], nil
	}
	for _, k := range s.keys {
		if k.KID == kid {
			return k, nil
		}
	}
	return PublicKey{}, refuse(ReasonKID, "the issuer publishes no key %.40q", kid)
}

// JSON is the set as a JWK Set document: public keys with kid, use "sig" and alg.
func (s *Set) JSON() []byte {
	doc := jose.JSONWebKeySet{Keys: make([]jose.JSONWebKey, len(s.keys))}
	for i, k := range s.keys {
		doc.Keys[i] = jose.JSONWebKey{Key: k.Key, KeyID: k.KID, Algorithm: k.Alg, Use: "sig"}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("jwt: a checked key can't be written: %v", err)) // checkKey lets only writable keys in
	}
	return b
}
