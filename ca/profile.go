package ca

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"

	"go.step.sm/crypto/x509util"

	"github.com/countersign/countersign"
)

// Profile is a kind of certificate: its usages and what names it carries.
type Profile string

// The profiles of standards.md, "Certificates".
const (
	ProfileService      Profile = "service"      // serverAuth and clientAuth
	ProfileOperator     Profile = "operator"     // clientAuth
	ProfileAuthority    Profile = "authority"    // the daemon's own: serverAuth
	ProfileRoot         Profile = "root"         // signs intermediates
	ProfileIntermediate Profile = "intermediate" // signs leaves (pathlen 0)

	profileResponder Profile = "ocsp" // signs OCSP responses for its issuer; see responder.go
)

// Subject is what a certificate is made from. Nothing of it comes from a certificate request but Key.
type Subject struct {
	ID          countersign.ID // of leaves
	TrustDomain string         // of signing certificates
	DNS         []string
	IPs         []net.IP
	Key         crypto.PublicKey
	Serial      *big.Int          // see newSerial
	NotBefore   time.Time         // whole seconds
	NotAfter    time.Time         // whole seconds, inclusive
	Issuer      *x509.Certificate // nil: signs itself
	PKI         string            // the address that leaves point to, as in [Config]; "": they point nowhere
	Permit      []string          // as in [Config]: name constraints of signing certificates, which leaves must fit
	KeyTypes    []string          // that a leaf may have, as policies name them
	Most        time.Duration     // the longest lifetime of a leaf
}

const maxCN = 64 // ub-common-name, RFC 5280 appendix A.1

// Template makes the template of a certificate of profile p. It is pure: the same Subject gives the same template. The
// fields are smallstep's; its text templates are not used, because they would let a name write more than a name.
func (p Profile) Template(s Subject) (*x509.Certificate, error) {
	keyID, err := subjectKeyID(s.Key)
	if err != nil {
		return nil, err
	}
	usages, ok := p.extKeyUsages()
	if !ok {
		return nil, fmt.Errorf("there is no profile %q", string(p))
	}
	t := &x509util.Certificate{
		SerialNumber: x509util.SerialNumber{Int: s.Serial}, NotBefore: s.NotBefore, NotAfter: s.NotAfter,
		BasicConstraints: &x509util.BasicConstraints{}, SubjectKeyID: keyID, AuthorityKeyID: keyID,
		DNSNames: s.DNS, IPAddresses: s.IPs, ExtKeyUsage: usages,
	}
	issuerKey := s.Key
	if s.Issuer != nil {
		t.AuthorityKeyID, issuerKey = s.Issuer.SubjectKeyId, s.Issuer.PublicKey
	}
	by, err := algorithmOf(issuerKey)
	if err != nil {
		return nil, err
	}
	t.SignatureAlgorithm = x509util.SignatureAlgorithm(by.x509)
	switch {
	case p.signs():
		err = p.signingTemplate(t, s)
	case p == profileResponder:
		responderTemplate(t, s)
	default:
		err = p.leafTemplate(t, s)
	}
	made := t.GetCertificate()
	if p.signs() {
		constrain(made, s.Permit)
	}
	return made, err
}

// signs tells whether certificates of p sign certificates.
func (p Profile) signs() bool { return p == ProfileRoot || p == ProfileIntermediate }

// extKeyUsages are the purposes of p; ok is false if there is no such profile.
func (p Profile) extKeyUsages() (usages []x509.ExtKeyUsage, ok bool) {
	switch p {
	case ProfileService:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, true
	case ProfileOperator:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, true
	case ProfileAuthority:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, true
	case profileResponder:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}, true
	case ProfileRoot, ProfileIntermediate:
		return nil, true
	}
	return nil, false
}

// idKind is the kind of ID that leaves of p carry.
func (p Profile) idKind() countersign.IDKind {
	switch p {
	case ProfileService:
		return countersign.ServiceID
	case ProfileOperator:
		return countersign.OperatorID
	case ProfileAuthority:
		return countersign.AuthorityID
	}
	return countersign.NoID
}

func (p Profile) leafTemplate(t *x509util.Certificate, s Subject) error {
	if s.ID.Kind() != p.idKind() {
		return fmt.Errorf("the ID %s is none of a %s", s.ID, p)
	}
	id, err := url.Parse(s.ID.String())
	if err != nil {
		return fmt.Errorf("the ID as a URI: %w", err)
	}
	t.URIs = []*url.URL{id}
	t.Subject = x509util.Subject{CommonName: s.ID.Name()}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := s.Key.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment
	}
	t.KeyUsage = x509util.KeyUsage(usage)
	if s.PKI != "" && s.Issuer != nil && p != ProfileAuthority {
		authority := hex.EncodeToString(s.Issuer.SubjectKeyId)
		t.CRLDistributionPoints = []string{crlURL(s.PKI, authority, shardOf(s.Serial))}
		t.OCSPServer = []string{s.PKI + "/ocsp"}
		t.IssuingCertificateURL = []string{s.PKI + "/ca/" + authority + ".cer"}
	}
	return nil
}

// signingTemplate leaves the root's path length open: only what hangs below the intermediate is closed (pathlen 0).
func (p Profile) signingTemplate(t *x509util.Certificate, s Subject) error {
	id, err := trustDomainURI(s.TrustDomain)
	if err != nil {
		return err
	}
	t.URIs = []*url.URL{id}
	t.Subject = x509util.Subject{CommonName: signingName(s.TrustDomain, p, t.SubjectKeyID)}
	t.BasicConstraints = &x509util.BasicConstraints{IsCA: true, MaxPathLen: -1}
	if p == ProfileIntermediate {
		t.BasicConstraints.MaxPathLen = 0
	}
	t.KeyUsage = x509util.KeyUsage(x509.KeyUsageCertSign | x509.KeyUsageCRLSign)
	return nil
}

// trustDomainURI is the ID of a trust domain itself, which signing certificates carry (X509-SVID 3.2).
func trustDomainURI(trustDomain string) (*url.URL, error) {
	if err := countersign.CheckTrustDomain(trustDomain); err != nil {
		return nil, err
	}
	return &url.URL{Scheme: "spiffe", Host: trustDomain}, nil
}

// signingName tells two generations of the same authority apart by the key. A long trust domain is cut.
func signingName(trustDomain string, p Profile, keyID []byte) string {
	end := " " + string(p) + " " + hex.EncodeToString(keyID[:4])
	return trustDomain[:min(len(trustDomain), maxCN-len(end))] + end
}

// subjectKeyID is method 1 of RFC 7093 section 2: the leftmost 160 bits of the SHA-256 of the key's bits.
func subjectKeyID(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("decode the public key: %w", err)
	}
	sum := sha256.Sum256(spki.Key.Bytes)
	return sum[:20], nil
}

// spkiHash is the lower-case hex SHA-256 of the key's SubjectPublicKeyInfo: the key's name in our tables.
func spkiHash(key crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("encode the public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}
