package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
)

// algorithm is how a key of the authority signs.
type algorithm struct {
	x509   x509.SignatureAlgorithm
	hash   crypto.Hash
	id     pkix.AlgorithmIdentifier            // RFC 5758 3.2: none of ECDSA has parameters; RFC 4055 5: RSA's are NULL
	verify func(digest, signature []byte) bool // with the key itself
}

var (
	oidECDSAWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	oidECDSAWithSHA384 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}
	oidSHA256WithRSA   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
)

// algorithmOf is how the key with this public half signs. The authority makes keys of P-256; roots that somebody brings may
// have others.
func algorithmOf(key crypto.PublicKey) (algorithm, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		a := algorithm{
			x509: x509.ECDSAWithSHA256, hash: crypto.SHA256, id: pkix.AlgorithmIdentifier{Algorithm: oidECDSAWithSHA256},
			verify: func(digest, signature []byte) bool { return ecdsa.VerifyASN1(key, digest, signature) },
		}
		switch key.Curve {
		case elliptic.P256():
			return a, nil
		case elliptic.P384():
			a.x509, a.hash, a.id.Algorithm = x509.ECDSAWithSHA384, crypto.SHA384, oidECDSAWithSHA384
			return a, nil
		}
	case *rsa.PublicKey:
		if key.N.BitLen() >= 2048 {
			return algorithm{
				x509: x509.SHA256WithRSA, hash: crypto.SHA256,
				id: pkix.AlgorithmIdentifier{Algorithm: oidSHA256WithRSA, Parameters: asn1.NullRawValue},
				verify: func(digest, signature []byte) bool {
					return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, signature) == nil
				},
			}, nil
		}
	}
	return algorithm{}, errors.New("the issuer's key is not of P-256, P-384 or RSA of 2048 bits")
}
