package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
)

// checkedRequest is a CertificationRequestInfo (RFC 2986 4.1) that may be signed.
type checkedRequest struct{ checkedBytes }

// The extensions that a request of an intermediate asks for, as DER.
var (
	askedConstraints = []byte{0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, 0x00} // CA:TRUE, pathlen:0
	askedUsage       = []byte{0x03, 0x02, 0x01, 0x06}                         // keyCertSign, cRLSign
)

// prepareRequest makes the exact bytes of the request of an intermediate, as prepare makes those of certificates, and checks
// them. key is the one that asks, and that will sign.
func prepareRequest(domain string, key crypto.PublicKey) (checkedRequest, error) {
	by, err := algorithmOf(key)
	if err != nil {
		return checkedRequest{}, err
	}
	uri, err := trustDomainURI(domain)
	if err != nil {
		return checkedRequest{}, err
	}
	keyID, err := subjectKeyID(key)
	if err != nil {
		return checkedRequest{}, err
	}
	raw, err := take(key, func(signer crypto.Signer) ([]byte, error) {
		return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			SignatureAlgorithm: by.x509,
			Subject:            pkix.Name{CommonName: signingName(domain, ProfileIntermediate, keyID)}, URIs: []*url.URL{uri},
			ExtraExtensions: []pkix.Extension{
				{Id: oidBasicConstraints, Critical: true, Value: askedConstraints}, {Id: oidKeyUsage, Critical: true, Value: askedUsage},
			},
		}, signer)
	})
	if err != nil {
		return checkedRequest{}, fmt.Errorf("make the request's bytes: %w", err)
	}
	unsigned, err := by.assemble(raw, nil)
	if err != nil {
		return checkedRequest{}, err
	}
	draft, err := x509.ParseCertificateRequest(unsigned)
	if err != nil {
		return checkedRequest{}, fmt.Errorf("read the request's bytes: %w", err)
	}
	if err := checkRequest(domain, key, draft); err != nil {
		return checkedRequest{}, fmt.Errorf("the request is not what was decided: %w", err)
	}
	if !bytes.Equal(draft.RawTBSCertificateRequest, raw) {
		return checkedRequest{}, errors.New("other bytes were checked than were made")
	}
	return checkedRequest{checkedBytes{raw: raw, key: key}}, nil
}

// checkRequest holds the parsed request against what was decided. It shares no code with prepareRequest.
func checkRequest(domain string, key crypto.PublicKey, r *x509.CertificateRequest) error {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return err
	}
	keyID, err := subjectKeyID(key)
	if err != nil {
		return err
	}
	switch {
	case !bytes.Equal(r.RawSubjectPublicKeyInfo, spki):
		return errors.New("public key")
	case len(r.Subject.Names) != 1 || r.Subject.CommonName != signingName(domain, ProfileIntermediate, keyID):
		return errors.New("subject")
	case len(r.URIs) != 1 || r.URIs[0].String() != "spiffe://"+domain || len(r.DNSNames)+len(r.EmailAddresses)+len(r.IPAddresses) != 0:
		return errors.New("names")
	case len(r.Extensions) != 3:
		return errors.New("extensions")
	}
	for _, e := range r.Extensions {
		switch {
		case e.Id.Equal(oidBasicConstraints) && e.Critical && bytes.Equal(e.Value, []byte("\x30\x06\x01\x01\xff\x02\x01\x00")):
		case e.Id.Equal(oidKeyUsage) && e.Critical && bytes.Equal(e.Value, []byte("\x03\x02\x01\x06")):
		case e.Id.Equal(oidSubjectAltName) && !e.Critical:
		default:
			return fmt.Errorf("extension %s", e.Id)
		}
	}
	return nil
}
