package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/keyring"
)

// names of the daemon that each certificate above its own must permit.
func (c Config) namesBelow() constrained {
	n := constrained{uri: c.TrustDomain}
	for _, name := range c.DNS {
		if ip := net.ParseIP(name); ip != nil {
			n.ips = append(n.ips, ip)
			continue
		}
		n.dns = append(n.dns, strings.ToLower(name))
	}
	return n
}

// constrained are names that constraints are held against.
type constrained struct {
	uri string // the host of all IDs
	dns []string
	ips []net.IP
}

// forbidden says which of the names the constraints of c forbid (RFC 5280 4.2.1.10); "" if none. Where implementations differ
// it takes the strictest: a URI constraint without a period at its begin is that host alone.
func (n constrained) forbidden(c *x509.Certificate) string {
	host := func(name, constraint string) bool {
		name, constraint = strings.ToLower(name), strings.ToLower(constraint)
		return name == constraint || strings.HasPrefix(constraint, ".") && strings.HasSuffix(name, constraint)
	}
	domain := func(name, constraint string) bool {
		return constraint == "" || under(strings.ToLower(name), strings.ToLower(constraint))
	}
	within := func(name string, in []string, match func(string, string) bool) bool {
		return slices.ContainsFunc(in, func(c string) bool { return match(name, c) })
	}
	if len(c.PermittedURIDomains) > 0 && !within(n.uri, c.PermittedURIDomains, host) || within(n.uri, c.ExcludedURIDomains, domain) {
		return "spiffe://" + n.uri
	}
	for _, name := range n.dns {
		if len(c.PermittedDNSDomains) > 0 && !within(name, c.PermittedDNSDomains, domain) || within(name, c.ExcludedDNSDomains, domain) {
			return name
		}
	}
	for _, ip := range n.ips {
		contains := func(r *net.IPNet) bool { return r.Contains(ip) }
		if len(c.PermittedIPRanges) > 0 && !slices.ContainsFunc(c.PermittedIPRanges, contains) || slices.ContainsFunc(c.ExcludedIPRanges, contains) {
			return ip.String()
		}
	}
	return ""
}

// ownFault says why a certificate that was made elsewhere can sign nothing here, whatever its place; "" if it can.
func ownFault(c *x509.Certificate, below constrained, now time.Time) string {
	switch {
	case c.Version != 3 || !c.BasicConstraintsValid || !c.IsCA:
		return "it is no certificate of a CA (basicConstraints CA:TRUE)"
	case c.KeyUsage&x509.KeyUsageCertSign == 0:
		return "its keyUsage does not allow keyCertSign"
	case !signatureAllowed(c.SignatureAlgorithm):
		return fmt.Sprintf("it is signed with %s; SHA-256 is the least", c.SignatureAlgorithm)
	case len(c.UnhandledCriticalExtensions) > 0:
		return fmt.Sprintf("it has the critical extension %s, which nobody here understands", c.UnhandledCriticalExtensions[0])
	case len(c.SubjectKeyId) == 0 || len(c.SubjectKeyId) > 64:
		return "it has no subject key identifier (RFC 5280 4.2.1.2), by which issuers are told apart here"
	case len(c.Subject.Names) == 0:
		return "its subject is empty"
	case c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 160:
		return "its serial is not positive, or longer than 20 octets"
	case now.After(c.NotAfter):
		return "it expired at " + c.NotAfter.UTC().Format(time.RFC3339)
	case now.Before(c.NotBefore):
		return "it is valid from " + c.NotBefore.UTC().Format(time.RFC3339) + " only"
	}
	if !anyUsage(c, x509.ExtKeyUsageServerAuth) || !anyUsage(c, x509.ExtKeyUsageClientAuth) {
		return "its extendedKeyUsage does not allow serverAuth and clientAuth below it"
	}
	if name := below.forbidden(c); name != "" {
		return "its name constraints forbid " + name
	}
	return weakSigner(c.PublicKey)
}

// anyUsage tells whether certificates below c may be used for u: c says nothing, or everything, or u.
func anyUsage(c *x509.Certificate, u x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) || slices.Contains(c.ExtKeyUsage, u)
}

// weakSigner says why nobody should believe what a key of that kind signs; "" if it is sound.
func weakSigner(key crypto.PublicKey) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, key.Curve) {
			return ""
		}
	case ed25519.PublicKey:
		return ""
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Sprintf("its RSA key has %d bits; 2048 to 8192 may sign", bits)
		}
		if why := weakRSA(key); why != "" {
			return "its RSA key is weak: " + why
		}
		return ""
	}
	return fmt.Sprintf("its key is a %T; P-256, P-384, P-521, Ed25519 and RSA may sign", key)
}

// CheckRoot tells why cert can't be the root of the authority of cfg (CodeOwnRoot). key is its private half, nil for a root
// that stays offline: such a one may have keys of more kinds, because it signs elsewhere.
func CheckRoot(cfg Config, cert *x509.Certificate, key crypto.Signer, now time.Time) error {
	fault := ownFault(cert, cfg.namesBelow(), now)
	switch {
	case fault != "":
	case !bytes.Equal(cert.RawSubject, cert.RawIssuer) || cert.CheckSignatureFrom(cert) != nil:
		fault = "it is not signed by itself: a root is, and an intermediate is brought by its request (--root without --root-key)"
	case len(cert.AuthorityKeyId) > 0 && !bytes.Equal(cert.AuthorityKeyId, cert.SubjectKeyId):
		fault = "its authority key identifier is not its subject key identifier"
	case cert.MaxPathLen == 0 && cert.MaxPathLenZero:
		fault = "its path length is 0: it may sign no intermediate"
	case key != nil && !samePublic(key.Public(), cert.PublicKey):
		fault = "the key is not the certificate's"
	case key != nil && cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		fault = "its keyUsage does not allow cRLSign, and revocation lists are signed with its key"
	case key != nil:
		if err := keyring.Importable(key.Public()); err != nil {
			fault = "its key can't be kept here: " + err.Error()
		}
	}
	if fault == "" {
		return nil
	}
	return countersign.Errorf(countersign.CodeOwnRoot, "%q can't be the root: %s", cert.Subject.String(), fault)
}

func samePublic(a, b crypto.PublicKey) bool {
	own, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(b)
}

// checkIntermediate tells why cert can't be an intermediate for the public key, under root (CodeOwnIntermediate). least is for
// how long it must still be valid.
func checkIntermediate(cfg Config, cert *x509.Certificate, key crypto.PublicKey, root *x509.Certificate, now time.Time, least time.Duration) error {
	refuse := func(format string, args ...any) error {
		return countersign.Errorf(countersign.CodeOwnIntermediate, "the certificate can't be the intermediate: "+format, args...)
	}
	if !samePublic(cert.PublicKey, key) {
		return refuse("its key is not that of the open request; `countersign ca csr` prints it")
	}
	if fault := ownFault(cert, cfg.namesBelow(), now); fault != "" {
		return refuse("%s", fault)
	}
	switch {
	case cert.CheckSignatureFrom(root) != nil:
		return refuse("the root %q did not sign it", root.Subject.String())
	case !bytes.Equal(cert.RawIssuer, root.RawSubject):
		return refuse("its issuer's name is not the root's subject")
	case cert.MaxPathLen != 0 || !cert.MaxPathLenZero:
		return refuse("its path length must be 0 (basicConstraints CA:TRUE, pathlen:0): no authority belongs below it")
	case cert.KeyUsage&x509.KeyUsageCRLSign == 0:
		return refuse("its keyUsage does not allow cRLSign, and revocation lists are signed with its key")
	case cert.NotAfter.After(root.NotAfter):
		return refuse("it would outlive the root, which ends at %s", root.NotAfter.UTC().Format(time.RFC3339))
	case cert.NotAfter.Sub(now) < least:
		return refuse("it ends at %s, in less than %s, as long as a certificate under it may live", cert.NotAfter.UTC().Format(time.RFC3339), least)
	}
	if len(cfg.Permit) > 0 && !boundBy(cert, cfg.Permit) {
		return refuse("ca.permit binds this authority to %s, and its name constraints do not: it must have them, critical, with these DNS names or some under them",
			strings.Join(cfg.Permit, ", "))
	}
	return checkDomain(cert, cfg.TrustDomain, refuse)
}

// boundBy tells whether the certificate itself binds what is below it to the suffixes, or to less: from a root Java takes no
// constraint, so that the intermediate must have it.
func boundBy(cert *x509.Certificate, permit []string) bool {
	return len(cert.PermittedDNSDomains) > 0 && cert.PermittedDNSDomainsCritical &&
		!slices.ContainsFunc(cert.PermittedDNSDomains, func(s string) bool { return !Permits(permit, strings.TrimPrefix(s, ".")) })
}

// checkDomain: a signing certificate names its trust domain or none (X509-SVID 3.2 wants it, and openssl drops it easily).
func checkDomain(cert *x509.Certificate, domain string, refuse func(string, ...any) error) error {
	if len(cert.URIs) == 0 || len(cert.URIs) == 1 && cert.URIs[0].String() == "spiffe://"+domain {
		return nil
	}
	return refuse("it names %s, which is not spiffe://%s", cert.URIs[0], domain)
}

// PinnedRoot is the oldest root to which a chain of the daemon leads: itself signed what signs now, or a cross certificate of
// what did. Join strings name it.
func (a *Authority) PinnedRoot() *x509.Certificate {
	s := a.issuers.Load()
	signing, _ := s.signing(a.cfg.Now())
	for _, root := range s.published(ProfileRoot) {
		for _, above := range s.chain(signing) {
			if bytes.Equal(above.AuthorityKeyId, root.cert.SubjectKeyId) {
				return root.cert
			}
		}
	}
	return a.Roots()[0]
}

// online tells whether the key of an issuer is in the keyring, sealed or not, or in a token of it.
func (a *Authority) online(i issuer) bool {
	_, ok := a.cfg.Keys.Key(i.KeyID)
	return ok
}

// needKey is why nothing can be signed by root: its key is elsewhere.
func (a *Authority) needKey(root issuer) error {
	if a.online(root) {
		return nil
	}
	return countersign.Errorf(countersign.CodeRootOffline, "the key of the root %s is offline", root.serial).
		WithHint("`countersign ca csr` prints a request for that root, `countersign ca import FILE` takes what it signed")
}

// ParseCertificatePEM reads one certificate of at most 64 KiB of PEM. What follows is ignored if it is a certificate too: tools
// print the issuer after what it signed.
func ParseCertificatePEM(text []byte) (*x509.Certificate, error) {
	if len(text) > 64<<10 {
		return nil, errors.New("it is longer than 64 KiB")
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("it begins with no PEM block CERTIFICATE")
	}
	for more, rest := pem.Decode(rest); more != nil; more, rest = pem.Decode(rest) {
		if more.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a PEM block %.40q besides", more.Type)
		}
	}
	return x509.ParseCertificate(block.Bytes)
}

// ownRecord is the record of a root that was brought.
func ownRecord(cfg Config, root *x509.Certificate) (issuer, storage.Op, error) {
	id, err := keyring.Thumbprint(root.PublicKey)
	if err != nil {
		return issuer{}, storage.Op{}, err
	}
	i := issuer{cert: root, serial: serialText(root.SerialNumber), authorityRecord: authorityRecord{
		Role: ProfileRoot, PEM: certPEM(root), KeyID: id, Made: cfg.Now().UTC(), Own: true,
	}}
	op, err := authoritiesTable().Put(i.serial, i.authorityRecord, time.Time{}, storage.Cond{Absent: true})
	return i, op, err
}

// InitOwn is [Init] with a root that somebody brings, whose key goes into the keyring (CodeOwnRoot).
func InitOwn(ctx context.Context, cfg Config, by countersign.Caller, root *x509.Certificate, key crypto.Signer) error {
	cfg, err := cfg.forInit(ctx)
	if err != nil {
		return err
	}
	if err := CheckRoot(cfg, root, key, cfg.Now()); err != nil {
		return err
	}
	parent, op, err := ownRecord(cfg, root)
	if err != nil {
		return err
	}
	if _, err := cfg.Keys.Import(ctx, by, key); err != nil {
		return fmt.Errorf("seal the root's key: %w", err)
	}
	keys, err := cfg.Keys.Create(ctx, by, keyring.NewKey{Purpose: keyring.CA, Alg: "ES256", SignsFrom: cfg.Now()})
	if err != nil {
		return fmt.Errorf("make the intermediate's key: %w", err)
	}
	m := maker{cfg: cfg, by: by, how: howInit}
	if _, err := m.make(ctx, ProfileIntermediate, keys[0], cfg.IntermediateTTL, &parent); err != nil {
		return err
	}
	// Crash point: as in Init, both become real in one step.
	if _, err := cfg.Store.Apply(ctx, append(m.ops, op)...); err != nil {
		return fmt.Errorf("record the authority: %w", err)
	}
	return cfg.Audit.AppendAll(ctx, append(m.events(), broughtEvent(by, parent))...)
}
