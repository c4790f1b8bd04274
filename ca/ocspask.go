package ca

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// MaxOCSP bounds a request in bytes: the certificates of a signed one are in it.
const MaxOCSP = 8 << 10

const (
	maxAsked  = 8   // certificates in one request
	maxNonce  = 128 // octets (RFC 9654 2.1)
	maxSerial = 160 // bits (RFC 5280 4.1.2.2)
)

// idHash is an algorithm with which a CertID names the issuer. It names, and protects nothing.
type idHash uint8

const (
	otherHash idHash = iota // well-formed, and none of ours
	sha1Hash
	sha256Hash
)

// certID is one certificate that is asked about (RFC 6960 4.1.1).
type certID struct {
	raw      string // as it was sent: the answer repeats it
	hash     idHash
	name     string // hash of the issuer's name
	key      string // hash of the issuer's key
	serial   *big.Int
	possible bool // it may be a serial of ours: positive and at most 128 bits
}

// ocspRequest is what a request asks. Requestor, signature and what is not critical are nobody's concern here: everybody
// gets the same answer.
type ocspRequest struct {
	asked []certID
	nonce []byte // the extension's value as it was sent; nil: none
}

var (
	oidOCSPNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidSHA1      = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

var errMalformed = errors.New("it is no OCSP request")

// parseOCSP reads a request (RFC 6960 4.1): DER, to the last byte, of 1 to maxAsked certificates. golang.org/x/crypto/ocsp
// would drop all but the first of them, and the nonce. Each error means malformedRequest. It is pure.
func parseOCSP(der []byte) (ocspRequest, error) {
	var r ocspRequest
	explicit := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).Constructed().ContextSpecific() }
	whole := cryptobyte.String(der)
	var request, tbs, version, list, extensions cryptobyte.String
	var hasVersion, hasExtensions bool
	if len(der) > MaxOCSP || !whole.ReadASN1(&request, cbasn1.SEQUENCE) || !whole.Empty() ||
		!request.ReadASN1(&tbs, cbasn1.SEQUENCE) || !request.SkipOptionalASN1(explicit(0)) || !request.Empty() ||
		!tbs.ReadOptionalASN1(&version, &hasVersion, explicit(0)) || !tbs.SkipOptionalASN1(explicit(1)) ||
		!tbs.ReadASN1(&list, cbasn1.SEQUENCE) ||
		!tbs.ReadOptionalASN1(&extensions, &hasExtensions, explicit(2)) || !tbs.Empty() {
		return r, errMalformed
	}
	var v int
	if hasVersion && (!version.ReadASN1Integer(&v) || v != 0 || !version.Empty()) {
		return r, errMalformed
	}
	for !list.Empty() {
		var one, single cryptobyte.String
		var hasSingle bool
		if len(r.asked) == maxAsked || !list.ReadASN1(&one, cbasn1.SEQUENCE) {
			return r, errMalformed
		}
		id, err := parseCertID(&one)
		if err != nil || !one.ReadOptionalASN1(&single, &hasSingle, explicit(0)) || !one.Empty() {
			return r, errMalformed
		}
		if hasSingle {
			if nonce, err := parseExtensions(single); err != nil || nonce != nil {
				return r, errMalformed // a nonce is of the whole request
			}
		}
		r.asked = append(r.asked, id)
	}
	if len(r.asked) == 0 {
		return r, errMalformed
	}
	if hasExtensions {
		var err error
		if r.nonce, err = parseExtensions(extensions); err != nil {
			return r, err
		}
	}
	return r, nil
}

// parseCertID reads a CertID off s.
func parseCertID(s *cryptobyte.String) (certID, error) {
	var raw, id, algorithm, name, key cryptobyte.String
	var oid asn1.ObjectIdentifier
	c := certID{serial: new(big.Int)}
	if !s.ReadASN1Element(&raw, cbasn1.SEQUENCE) {
		return c, errMalformed
	}
	c.raw = string(raw)
	if !raw.ReadASN1(&id, cbasn1.SEQUENCE) || !id.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&oid) ||
		!id.ReadASN1(&name, cbasn1.OCTET_STRING) || !id.ReadASN1(&key, cbasn1.OCTET_STRING) ||
		!id.ReadASN1Integer(c.serial) || !id.Empty() || c.serial.BitLen() > maxSerial {
		return c, errMalformed
	}
	length := len(name)
	switch {
	case oid.Equal(oidSHA1):
		c.hash, length = sha1Hash, 20
	case oid.Equal(oidSHA256):
		c.hash, length = sha256Hash, 32
	}
	var null cryptobyte.String
	if c.hash != otherHash && !algorithm.Empty() && (!algorithm.ReadASN1(&null, cbasn1.NULL) || !null.Empty() || !algorithm.Empty()) {
		return c, errMalformed
	}
	if len(name) != length || len(key) != length {
		return c, errMalformed
	}
	c.name, c.key = string(name), string(key)
	c.possible = c.serial.Sign() > 0 && c.serial.BitLen() <= 128
	return c, nil
}

// parseExtensions reads Extensions (RFC 5280 4.1) and gives the value of the nonce. What is not known is passed over, unless
// it is critical (RFC 6960 4.4). A nonce has 1 to 128 octets, else the request is malformed (RFC 9654 2.1).
func parseExtensions(s cryptobyte.String) (nonce []byte, err error) {
	var list cryptobyte.String
	if !s.ReadASN1(&list, cbasn1.SEQUENCE) || !s.Empty() {
		return nil, errMalformed
	}
	for !list.Empty() {
		var extension, value, octets cryptobyte.String
		var oid asn1.ObjectIdentifier
		var critical bool
		if !list.ReadASN1(&extension, cbasn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&oid) ||
			extension.PeekASN1Tag(cbasn1.BOOLEAN) && !extension.ReadASN1Boolean(&critical) ||
			!extension.ReadASN1(&value, cbasn1.OCTET_STRING) || !extension.Empty() {
			return nil, errMalformed
		}
		if !oid.Equal(oidOCSPNonce) {
			if critical {
				return nil, errMalformed
			}
			continue
		}
		whole := bytes.Clone(value)
		if nonce != nil || !value.ReadASN1(&octets, cbasn1.OCTET_STRING) || !value.Empty() || len(octets) < 1 || len(octets) > maxNonce {
			return nil, errMalformed
		}
		nonce = whole
	}
	return nonce, nil
}
