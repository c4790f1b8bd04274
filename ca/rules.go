package ca

import (
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
)

// rules are what a profile, or of a service the policy, allows the certificates of one order. They are judged twice: of the
// request, for an answer that helps, and of the exact bytes before they are signed.
type rules struct {
	keyTypes []string
	most     time.Duration // the longest lifetime
}

// KeyTypes are the types of keys that may be certified at all, as policies and configurations name them.
func KeyTypes() []string { return allKeyTypes() }

// KeyType names a public key as policies do, or says what it is if it is none of theirs.
func KeyType(key crypto.PublicKey) string { return keyType(key) }

// CheckKeyTypes tells why a list can't be the key types of a profile: each is one of [KeyTypes], once, and there is one.
func CheckKeyTypes(list []string) error {
	if len(list) == 0 {
		return fmt.Errorf("at least one key type is needed, of %s", strings.Join(allKeyTypes(), ", "))
	}
	for i, alg := range list {
		if !slices.Contains(allKeyTypes(), alg) {
			return fmt.Errorf("%.40q is no key type: use %s", alg, strings.Join(allKeyTypes(), ", "))
		}
		if slices.Contains(list[:i], alg) {
			return fmt.Errorf("%q stands twice", alg)
		}
	}
	return nil
}

// KeyTypeError is the cause of an error of CodeKeyType: with a key of one of Allowed the same request would be right.
type KeyTypeError struct{ Allowed []string }

// Error names them.
func (e *KeyTypeError) Error() string { return "allowed are " + strings.Join(e.Allowed, ", ") }

func errKeyType(alg string, allowed []string) error {
	return countersign.Errorf(countersign.CodeKeyType, "the key is of type %s; a certificate here may have one of %s", alg, strings.Join(allowed, ", ")).
		WithHint("make a new key: --key %s", allowed[0]).Because(&KeyTypeError{Allowed: slices.Clone(allowed)})
}

// checkRules holds the key and the interval in the bytes against what is allowed. An authority's key is of P-256.
func checkRules(p Profile, s Subject, c *x509.Certificate) error {
	allowed := s.KeyTypes
	if p.signs() {
		allowed = []string{"P-256"}
	}
	alg := keyType(c.PublicKey)
	switch {
	case !slices.Contains(allowed, alg):
		return fmt.Errorf("a key of type %s", alg)
	case p == ProfileRoot || p == ProfileIntermediate:
		return nil
	case c.NotAfter.Sub(c.NotBefore)+time.Second > s.Most:
		return fmt.Errorf("a lifetime of %s, and %s is allowed", c.NotAfter.Sub(c.NotBefore)+time.Second, s.Most)
	}
	return nil
}
