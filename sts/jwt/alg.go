package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"math"
	"math/big"
)

// The sizes of RSA moduli in bits. Below the least a key is weak, above the most it is a way to burn our time.
const (
	minRSA = 2048
	maxRSA = 8192
)

// algorithm is a row of the JWS algorithms that are known here (RFC 7518 3.1, RFC 8037 3.1): all are asymmetric.
type algorithm struct {
	name  string
	curve elliptic.Curve // of ES*; nil otherwise
	rsa   bool
	pss   bool        // of rsa
	hash  crypto.Hash // 0: the algorithm hashes by itself
}

func algorithms() [10]algorithm {
	return [...]algorithm{
		{name: "ES256", curve: elliptic.P256(), hash: crypto.SHA256},
		{name: "ES384", curve: elliptic.P384(), hash: crypto.SHA384},
		{name: "ES512", curve: elliptic.P521(), hash: crypto.SHA512},
		{name: "EdDSA"},
		{name: "RS256", rsa: true, hash: crypto.SHA256},
		{name: "RS384", rsa: true, hash: crypto.SHA384},
		{name: "RS512", rsa: true, hash: crypto.SHA512},
		{name: "PS256", rsa: true, pss: true, hash: crypto.SHA256},
		{name: "PS384", rsa: true, pss: true, hash: crypto.SHA384},
		{name: "PS512", rsa: true, pss: true, hash: crypto.SHA512},
	}
}

// Algorithms are the names of all that can be verified here. HMAC and "none" are not among them.
func Algorithms() []string {
	var names []string
	for _, a := range algorithms() {
		names = append(names, a.name)
	}
	return names
}

func algorithmOf(name string) (algorithm, bool) {
	for _, a := range algorithms() {
		if a.name == name {
			return a, true
		}
	}
	return algorithm{}, false
}

// fits tells whether key is of the one type and curve that a is for.
func (a algorithm) fits(key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return a.curve != nil && k.Curve == a.curve
	case *rsa.PublicKey:
		return a.rsa
	case ed25519.PublicKey:
		return a.curve == nil && !a.rsa
	}
	return false
}

// verify tells whether sig is key's for input. The key fits and checkSignature passed the signature.
func (a algorithm) verify(key crypto.PublicKey, input, sig []byte) bool {
	digest := input
	switch a.hash {
	case crypto.SHA256:
		sum := sha256.Sum256(input)
		digest = sum[:]
	case crypto.SHA384:
		sum := sha512.Sum384(input)
		digest = sum[:]
	case crypto.SHA512:
		sum := sha512.Sum512(input)
		digest = sum[:]
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		half := len(sig) / 2
		return ecdsa.Verify(k, digest, new(big.Int).SetBytes(sig[:half]), new(big.Int).SetBytes(sig[half:]))
	case *rsa.PublicKey:
		if a.pss {
			return rsa.VerifyPSS(k, a.hash, digest, sig, nil) == nil
		}
		return rsa.VerifyPKCS1v15(k, a.hash, digest, sig) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(k, input, sig)
	}
	return false
}

// checkSignature judges the size of a signature, and of ECDSA the range of r and s (RFC 7518 3.4), before any
// arithmetic is done with it.
func checkSignature(key crypto.PublicKey, sig []byte) error {
	var size int
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		half := (k.Curve.Params().BitSize + 7) / 8
		size = 2 * half
		if len(sig) != size {
			break
		}
		for _, part := range [][]byte{sig[:half], sig[half:]} {
			if n := new(big.Int).SetBytes(part); n.Sign() == 0 || n.Cmp(k.Curve.Params().N) >= 0 {
				return refuse(ReasonSignature, "r or s of the signature is out of range")
			}
		}
	case *rsa.PublicKey:
		size = k.Size()
	case ed25519.PublicKey:
		size = ed25519.SignatureSize
	}
	if len(sig) != size {
		return refuse(ReasonSignature, "the signature has %d bytes, not %d", len(sig), size)
	}
	return nil
}

// checkKey judges a public key by itself: RSA of 2048 to 8192 bits with an odd exponent of 3 to 2^31-1, a point on
// P-256, P-384 or P-521, or Ed25519.
func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k == nil || k.Curve == nil {
			return refuse(ReasonKey, "an EC key is empty")
		}
		if _, err := k.ECDH(); err != nil {
			return refuse(ReasonKey, "an EC key is not a point on P-256, P-384 or P-521")
		}
	case *rsa.PublicKey:
		if k == nil || k.N == nil || k.N.BitLen() < minRSA || k.N.BitLen() > maxRSA {
			return refuse(ReasonKey, "an RSA key does not have %d to %d bits", minRSA, maxRSA)
		}
		if k.N.Bit(0) == 0 || k.E%2 == 0 || k.E < 3 || k.E > math.MaxInt32 {
			return refuse(ReasonKey, "an RSA key has an even modulus or exponent, or an exponent under 3 or over 31 bits")
		}
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return refuse(ReasonKey, "an Ed25519 key does not have %d bytes", ed25519.PublicKeySize)
		}
	default:
		return refuse(ReasonKey, "a key of type %T can't verify tokens", key)
	}
	return nil
}
