package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/countersign/countersign"
)

const (
	maxCSR      = 128 << 10 // bytes of PEM
	maxNames    = 100       // that a request may ask for
	maxElements = 1000      // of ASN.1: maxNames, a long subject, and what tools add of their own are about 200
)

// allKeyTypes are those that may be certified at all; a service's policy may allow fewer.
func allKeyTypes() []string {
	return []string{"P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072", "RSA-4096"}
}

// names are what policy gives a certificate. A request may repeat them and ask for nothing else.
type names struct {
	id  countersign.ID
	dns []string
	ips []net.IP
}

// csr is a request that may be granted: its key is of an allowed type, not known to be weak, and has signed the request.
// It holds nothing else, because nothing else of a request is used.
type csr struct {
	key  crypto.PublicKey
	alg  string // the key's type, as in policies
	spki string // see spkiHash
}

// parseCSR reads one PEM certificate request (RFC 2986). Sizes are checked before anything is decoded, the key before
// the signature, because verifying with a key of the requester's choice costs what he chooses.
func parseCSR(body []byte, keyTypes []string, allowed names) (csr, error) {
	req, err := decodeCSR(body)
	if err != nil {
		return csr{}, err
	}
	alg, err := checkKey(req.PublicKey, keyTypes)
	if err != nil {
		return csr{}, err
	}
	if !signatureAllowed(req.SignatureAlgorithm) {
		return csr{}, countersign.Errorf(countersign.CodeCSRSignature, "the request is signed with %s", req.SignatureAlgorithm).
			WithHint("sign it with SHA-256 or better")
	}
	if err := req.CheckSignature(); err != nil {
		return csr{}, countersign.Errorf(countersign.CodeCSRSignature, "the request's signature does not fit its key").Because(err)
	}
	if err := checkAsked(req, allowed); err != nil {
		return csr{}, err
	}
	hash, err := spkiHash(req.PublicKey)
	if err != nil {
		return csr{}, countersign.Errorf(countersign.CodeCSRKey, "the key can't be encoded").Because(err)
	}
	return csr{key: req.PublicKey, alg: alg, spki: hash}, nil
}

func decodeCSR(body []byte) (*x509.CertificateRequest, error) {
	if len(body) > maxCSR {
		return nil, countersign.Errorf(countersign.CodeTooLarge, "the certificate request has %d bytes; at most %d are taken", len(body), maxCSR)
	}
	body = bytes.TrimSpace(body)
	block, rest := pem.Decode(body)
	// keytool writes NEW CERTIFICATE REQUEST.
	if block == nil || !bytes.HasPrefix(body, []byte("-----BEGIN ")) ||
		(block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, countersign.Errorf(countersign.CodeCSR, "this is no PEM block CERTIFICATE REQUEST").
			WithHint("make one with `openssl req -new -key tls.key -subj /`")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, countersign.Errorf(countersign.CodeCSR, "there is something after the certificate request; send one, alone")
	}
	if elements(block.Bytes, maxElements+1) == 0 {
		return nil, countersign.Errorf(countersign.CodeCSR, "the certificate request holds over %d elements; at most %d names are read", maxElements, maxNames).
			WithHint("names come from the policy; send a request without any")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeCSR, "the certificate request can't be parsed").Because(err)
	}
	return req, nil
}

// elements takes from left one for each ASN.1 element in der, those inside of others and of octet strings too, and stops
// at 0. It costs no memory, where crypto/x509 makes of 10,000 names a hundred times what they have as bytes; what it can't
// read it leaves to crypto/x509, which reads no further either.
func elements(der []byte, left int) int {
	for len(der) > 0 && left > 0 {
		var e asn1.RawValue
		rest, err := asn1.Unmarshal(der, &e)
		if err != nil {
			return left
		}
		left--
		if e.IsCompound || e.Class == asn1.ClassUniversal && e.Tag == asn1.TagOctetString {
			left = elements(e.Bytes, left) // not deeper than left
		}
		der = rest
	}
	return left
}

// checkKey tells the key's type if it is one of allowed and not known to be weak.
func checkKey(key crypto.PublicKey, allowed []string) (string, error) {
	alg := keyType(key)
	if !slices.Contains(allKeyTypes(), alg) {
		return "", countersign.Errorf(countersign.CodeCSRKey, "a key of type %s can't be certified", alg).
			WithHint("use one of %s", strings.Join(allowed, ", "))
	}
	if !slices.Contains(allowed, alg) {
		return "", errKeyType(alg, allowed)
	}
	if k, ok := key.(*rsa.PublicKey); ok {
		if why := weakRSA(k); why != "" {
			return "", countersign.Errorf(countersign.CodeCSRKey, "the RSA key is weak: %s", why).
				WithHint("make a new key with a current library")
		}
	}
	return alg, nil
}

// keyType names the key as policies do, or says what it is if it is none of theirs.
func keyType(key crypto.PublicKey) string {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return k.Curve.Params().Name
		}
		return "ECDSA on another curve"
	case ed25519.PublicKey:
		return "Ed25519"
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	}
	return "unknown"
}

func signatureAllowed(alg x509.SignatureAlgorithm) bool {
	switch alg {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519,
		x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return true
	}
	return false
}

// checkAsked refuses a request for what would not be given. Granting less than was asked for without a word would end
// in a certificate that does not work where its owner thinks it does.
func checkAsked(req *x509.CertificateRequest, allowed names) error {
	if err := checkAskedExtensions(req); err != nil {
		return err
	}
	refuse := func(kind, name string) error {
		return countersign.Errorf(countersign.CodeCSR, "the request asks for the %s %.100q, which the policy does not give to %s",
			kind, name, allowed.id.Name()).
			WithHint("names come from the policy; send a request without any")
	}
	for _, name := range req.DNSNames {
		if !slices.Contains(allowed.dns, strings.ToLower(name)) {
			return refuse("DNS name", name)
		}
	}
	for _, ip := range req.IPAddresses {
		if !slices.ContainsFunc(allowed.ips, ip.Equal) {
			return refuse("IP address", ip.String())
		}
	}
	for _, uri := range req.URIs {
		if uri.String() != allowed.id.String() {
			return refuse("URI", uri.String())
		}
	}
	if len(req.EmailAddresses) > 0 {
		return refuse("e-mail address", req.EmailAddresses[0])
	}
	cn := req.Subject.CommonName
	if cn != "" && cn != allowed.id.Name() && !slices.Contains(allowed.dns, strings.ToLower(cn)) {
		return refuse("common name", cn)
	}
	return nil
}

// checkAskedExtensions refuses a request to be an authority, too many names, and names of kinds that crypto/x509 skips.
func checkAskedExtensions(req *x509.CertificateRequest) error {
	for _, e := range req.Extensions {
		switch {
		case e.Id.Equal(oidBasicConstraints):
			var bc struct {
				IsCA       bool `asn1:"optional"`
				MaxPathLen int  `asn1:"optional,default:-1"`
			}
			rest, err := asn1.Unmarshal(e.Value, &bc)
			if err != nil || len(rest) > 0 {
				return countersign.Errorf(countersign.CodeCSR, "the request's basic constraints can't be read")
			}
			if bc.IsCA {
				return countersign.Errorf(countersign.CodeCSR, "the request asks to be a certificate authority").
					WithHint("services get leaf certificates; send a request without extensions")
			}
		case e.Id.Equal(oidSubjectAltName):
			var all []asn1.RawValue
			rest, err := asn1.Unmarshal(e.Value, &all)
			if err != nil || len(rest) > 0 {
				return countersign.Errorf(countersign.CodeCSR, "the request's alternative names can't be read")
			}
			if len(all) > maxNames {
				return countersign.Errorf(countersign.CodeCSR, "the request asks for %d names; at most %d are read", len(all), maxNames)
			}
			if known := len(req.DNSNames) + len(req.IPAddresses) + len(req.URIs) + len(req.EmailAddresses); len(all) != known {
				return countersign.Errorf(countersign.CodeCSR, "the request asks for a kind of name that is not given here").
					WithHint("names come from the policy; send a request without any")
			}
		}
	}
	return nil
}
