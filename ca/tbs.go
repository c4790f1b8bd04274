package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// checkedBytes are exact bytes that were checked for one issuer: a TBSCertificate (RFC 5280 4.1.1.1) by [checkTBS], a
// TBSCertList (5.1.1.1) by checkList, a ResponseData (RFC 6960 4.2.1) by checkResponse, or an intermediate's request by
// checkRequest. Only prepare, prepareList, prepareResponse and prepareRequest make them, and their signature is the only code
// of this package that uses a key of the authority (TestOneWayToSign holds both): so nothing is signed without a check.
type checkedBytes struct {
	raw []byte
	key crypto.PublicKey // that will sign: the issuer's, or its responder's
}

// checkedTBS is a certificate that may be signed.
type checkedTBS struct {
	checkedBytes
	serial string
	draft  *x509.Certificate // as it was read and checked, without its signature
}

// digest names the TBS in the audit log: lower-case hex SHA-256.
func (t checkedTBS) digest() string {
	sum := sha256.Sum256(t.raw)
	return hex.EncodeToString(sum[:])
}

// errTaken ends the making of a certificate or list when the bytes to be signed are there.
var errTaken = errors.New("the bytes are taken")

// taker stands in for the issuer's key where crypto/x509 makes what is to be signed: it takes the bytes and signs nothing.
type taker struct {
	key   crypto.PublicKey
	taken []byte
}

// Public is the issuer's key.
func (t *taker) Public() crypto.PublicKey { return t.key }

// Sign is not asked: [taker.SignMessage] comes first.
func (t *taker) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("nothing is signed here")
}

// SignMessage implements [crypto.MessageSigner].
func (t *taker) SignMessage(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	t.taken = bytes.Clone(message)
	return nil, errTaken
}

// take gives the exact bytes that draw would have had signed with the key of an issuer.
func take(issuerKey crypto.PublicKey, draw func(crypto.Signer) ([]byte, error)) ([]byte, error) {
	t := &taker{key: issuerKey}
	if _, err := draw(t); !errors.Is(err, errTaken) || t.taken == nil {
		return nil, fmt.Errorf("nothing was to be signed: %w", err)
	}
	return t.taken, nil
}

// prepare makes the exact bytes of a certificate that the key will sign, and checks them. issuerKey is the public key that
// will sign.
func prepare(p Profile, s Subject, issuerKey crypto.PublicKey) (checkedTBS, error) {
	template, err := p.Template(s)
	if err != nil {
		return checkedTBS{}, err
	}
	parent := template
	if s.Issuer != nil {
		// CreateCertificate demands that the parent's key be the signing one, and takes only names from the rest.
		parent = &x509.Certificate{RawSubject: s.Issuer.RawSubject, SubjectKeyId: s.Issuer.SubjectKeyId, PublicKey: issuerKey}
	}
	by, err := algorithmOf(issuerKey)
	if err != nil {
		return checkedTBS{}, err
	}
	raw, err := take(issuerKey, func(signer crypto.Signer) ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, template, parent, s.Key, signer)
	})
	if err != nil {
		return checkedTBS{}, fmt.Errorf("make the certificate's bytes: %w", err)
	}
	unsigned, err := by.assemble(raw, nil)
	if err != nil {
		return checkedTBS{}, err
	}
	draft, err := x509.ParseCertificate(unsigned)
	if err != nil {
		return checkedTBS{}, fmt.Errorf("read the certificate's bytes: %w", err)
	}
	if err := checkTBS(p, s, draft); err != nil {
		return checkedTBS{}, fmt.Errorf("the certificate is not what was decided: %w", err)
	}
	if !bytes.Equal(draft.RawTBSCertificate, raw) {
		return checkedTBS{}, errors.New("other bytes were checked than were made")
	}
	return checkedTBS{checkedBytes{raw: raw, key: issuerKey}, serialText(s.Serial), draft}, nil
}

// sign signs a certificate and hands it out: what was read and checked, whose bytes these are, with the signature.
func sign(t checkedTBS, key crypto.Signer) (*x509.Certificate, error) {
	der, err := t.checkedBytes.sign(key)
	if err != nil {
		return nil, err
	}
	whole := cryptobyte.String(der)
	var certificate, tbs, algorithm cryptobyte.String
	var signature asn1.BitString
	if !whole.ReadASN1(&certificate, cbasn1.SEQUENCE) || !whole.Empty() || !certificate.ReadASN1Element(&tbs, cbasn1.SEQUENCE) ||
		!certificate.ReadASN1(&algorithm, cbasn1.SEQUENCE) || !certificate.ReadASN1BitString(&signature) || !certificate.Empty() {
		return nil, errors.New("what was signed is no certificate")
	}
	if !bytes.Equal(tbs, t.raw) || !bytes.Equal(t.draft.RawTBSCertificate, t.raw) {
		return nil, errors.New("the certificate holds other bytes than were checked")
	}
	cert := *t.draft
	cert.Raw, cert.Signature = der, signature.RightAlign()
	return &cert, nil
}

// signature signs exactly the checked bytes, and gives the signature only if it fits the key that was to sign.
func (t checkedBytes) signature(key crypto.Signer) ([]byte, error) {
	if len(t.raw) == 0 || t.key == nil { // nobody checked it: the zero value
		return nil, errors.New("there are no checked bytes to sign")
	}
	by, err := algorithmOf(t.key)
	if err != nil {
		return nil, err
	}
	hash := by.hash.New()
	hash.Write(t.raw)
	digest := hash.Sum(nil)
	signature, err := key.Sign(rand.Reader, digest, by.hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if !by.verify(digest, signature) {
		return nil, errors.New("the signature does not fit the issuer's key")
	}
	return signature, nil
}

// sign gives the whole.
func (t checkedBytes) sign(key crypto.Signer) ([]byte, error) {
	signature, err := t.signature(key)
	if err != nil {
		return nil, err
	}
	by, err := algorithmOf(t.key)
	if err != nil {
		return nil, err
	}
	return by.assemble(t.raw, signature)
}

// assemble puts a signature to what it signs: certificates and lists have one form (RFC 5280 4.1 and 5.1).
func (by algorithm) assemble(raw, signature []byte) ([]byte, error) {
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: raw},
		by.id,
		asn1.BitString{Bytes: signature, BitLength: len(signature) * 8},
	})
	if err != nil {
		return nil, fmt.Errorf("assemble what is signed: %w", err)
	}
	return der, nil
}

var (
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidDistribution     = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidAuthorityInfo    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
)

// checkTBS holds the parsed certificate against what was decided. It shares no code with [Profile.Template]: what it
// demands is written down a second time, on purpose.
func checkTBS(p Profile, s Subject, c *x509.Certificate) error {
	for _, check := range []func(Profile, Subject, *x509.Certificate) error{
		checkFrame, checkNames, checkUsages, checkRules, checkConstraints, checkPointers, checkExtensions,
	} {
		if err := check(p, s, c); err != nil {
			return err
		}
	}
	return nil
}

// checkFrame: version, serial, algorithm, key, key identifiers, issuer and interval.
func checkFrame(_ Profile, s Subject, c *x509.Certificate) error {
	issuerName, issuerKeyID, issuerKey := c.RawSubject, c.SubjectKeyId, s.Key
	if s.Issuer != nil {
		issuerName, issuerKeyID, issuerKey = s.Issuer.RawSubject, s.Issuer.SubjectKeyId, s.Issuer.PublicKey
	}
	by, err := algorithmOf(issuerKey)
	if err != nil {
		return err
	}
	spki, err := x509.MarshalPKIXPublicKey(s.Key)
	if err != nil {
		return err
	}
	keyID, err := subjectKeyID(s.Key)
	if err != nil {
		return err
	}
	switch {
	case c.Version != 3:
		return errors.New("version")
	case c.SerialNumber.Cmp(s.Serial) != 0 || c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 128:
		return errors.New("serial")
	case c.SignatureAlgorithm != by.x509:
		return errors.New("signature algorithm")
	case !bytes.Equal(c.RawSubjectPublicKeyInfo, spki):
		return errors.New("public key")
	case !bytes.Equal(c.SubjectKeyId, keyID) || !bytes.Equal(c.AuthorityKeyId, issuerKeyID):
		return errors.New("key identifiers")
	case !bytes.Equal(c.RawIssuer, issuerName):
		return errors.New("issuer")
	case !c.NotBefore.Equal(s.NotBefore) || !c.NotAfter.Equal(s.NotAfter) || !c.NotAfter.After(c.NotBefore):
		return errors.New("interval")
	case s.Issuer != nil && (c.NotAfter.After(s.Issuer.NotAfter) || c.NotBefore.Before(s.Issuer.NotBefore)):
		return errors.New("interval outside the issuer's")
	}
	return nil
}

// checkNames: the one common name, exactly one URI, and the DNS names and addresses of the policy, each once.
func checkNames(p Profile, s Subject, c *x509.Certificate) error {
	uris, cn := []string{s.ID.String()}, s.ID.Name()
	if p.signs() || p == profileResponder {
		uris, cn = []string{"spiffe://" + s.TrustDomain}, signingName(s.TrustDomain, p, c.SubjectKeyId)
		if p == profileResponder { // it is nobody in the trust domain
			uris = nil
		}
		if len(s.DNS)+len(s.IPs) > 0 {
			return errors.New("an authority has host names")
		}
	}
	switch {
	case len(c.Subject.Names) != 1 || c.Subject.CommonName != cn || cn == "" || len(cn) > maxCN:
		return errors.New("subject")
	case len(c.URIs) != len(uris) || len(uris) == 1 && c.URIs[0].String() != uris[0]:
		return errors.New("URI name")
	case !slices.Equal(c.DNSNames, s.DNS):
		return errors.New("DNS names")
	case len(c.EmailAddresses) != 0:
		return errors.New("e-mail addresses")
	case len(c.IPAddresses) != len(s.IPs):
		return errors.New("IP addresses")
	}
	for i, ip := range c.IPAddresses {
		if !ip.Equal(s.IPs[i]) {
			return errors.New("IP addresses")
		}
	}
	return nil
}

// checkUsages: what the key may be used for, from the algorithm of the key in the bytes themselves.
func checkUsages(p Profile, _ Subject, c *x509.Certificate) error {
	var usage x509.KeyUsage
	var extended []x509.ExtKeyUsage
	pathLen, pathLenZero := -1, false
	switch p {
	case ProfileRoot:
		usage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	case ProfileIntermediate:
		usage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		pathLen, pathLenZero = 0, true
	case ProfileService:
		usage = x509.KeyUsageDigitalSignature
		extended = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	case ProfileOperator:
		usage = x509.KeyUsageDigitalSignature
		extended = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case ProfileAuthority:
		usage = x509.KeyUsageDigitalSignature
		extended = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	case profileResponder:
		usage = x509.KeyUsageDigitalSignature
		extended = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	default:
		return fmt.Errorf("there is no profile %q", string(p))
	}
	if !p.signs() && c.PublicKeyAlgorithm == x509.RSA {
		usage |= x509.KeyUsageKeyEncipherment
	}
	switch {
	case c.KeyUsage != usage:
		return errors.New("key usage")
	case !slices.Equal(c.ExtKeyUsage, extended) || len(c.UnknownExtKeyUsage) != 0:
		return errors.New("extended key usage")
	case !c.BasicConstraintsValid || c.IsCA != p.signs():
		return errors.New("basic constraints")
	case p.signs() && (c.MaxPathLen != pathLen || c.MaxPathLenZero != pathLenZero):
		return errors.New("path length")
	}
	return nil
}

// checkPointers: the list that may name this very serial, the issuer's certificate, and the responder; none without an address, and none in
// what the authority holds itself.
func checkPointers(p Profile, s Subject, c *x509.Certificate) error {
	var list, issuer, responder []string
	if pointsSomewhere(p, s) {
		if s.Issuer == nil || !strings.HasPrefix(s.PKI, "http://") {
			return errors.New("pointers without an issuer, or not plain")
		}
		list = []string{fmt.Sprintf("%s/crl/%x/%.2s.crl", s.PKI, s.Issuer.SubjectKeyId, fmt.Sprintf("%032x", c.SerialNumber))}
		issuer = []string{fmt.Sprintf("%s/ca/%x.cer", s.PKI, s.Issuer.SubjectKeyId)}
		responder = []string{s.PKI + "/ocsp"}
	}
	switch {
	case !slices.Equal(c.CRLDistributionPoints, list):
		return errors.New("CRL distribution points")
	case !slices.Equal(c.IssuingCertificateURL, issuer):
		return errors.New("issuer's address")
	case !slices.Equal(c.OCSPServer, responder):
		return errors.New("OCSP responder")
	}
	return nil
}

// pointsSomewhere tells whether a certificate of p must have pointers: those of who is not the authority.
func pointsSomewhere(p Profile, s Subject) bool {
	return s.PKI != "" && (p == ProfileService || p == ProfileOperator)
}

// checkExtensions: each extension of the profile once, critical where it must be, and no other.
func checkExtensions(p Profile, s Subject, c *x509.Certificate) error {
	type row struct {
		id       asn1.ObjectIdentifier
		critical bool
	}
	want := []row{
		{oidKeyUsage, true}, {oidBasicConstraints, true},
		{oidSubjectKeyID, false}, {oidAuthorityKeyID, false},
	}
	if p == profileResponder {
		want = append(want, row{oidOCSPNoCheck, false})
	} else {
		want = append(want, row{oidSubjectAltName, false})
	}
	if !p.signs() {
		want = append(want, row{oidExtKeyUsage, false})
	}
	if p.signs() && len(s.Permit) > 0 {
		want = append(want, row{oidNameConstraints, true})
	}
	if pointsSomewhere(p, s) {
		want = append(want, row{oidDistribution, false}, row{oidAuthorityInfo, false})
	}
	if len(c.Extensions) != len(want) {
		return fmt.Errorf("it has %d extensions and not %d", len(c.Extensions), len(want))
	}
	for _, w := range want {
		if !slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(w.id) && e.Critical == w.critical }) {
			return fmt.Errorf("extension %s", w.id)
		}
	}
	return nil
}
