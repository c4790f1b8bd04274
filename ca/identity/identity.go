// Package identity reads and writes identity directories (interfaces.md): the files with which a service, an operator or
// the daemon proves who it is.
//
// A directory D holds the links tls.crt, tls.key, ca.crt, combined.pem, keystore.p12, truststore.p12 and identity.json,
// each to the file of the same name below D/..data; ..data itself links to D/..<time>-<serial>. A renewal writes a new
// such version, makes it durable, and renames the one link ..data: whoever reads sees the old pair or the new one, also
// after a crash. A reader that wants several files of one version resolves ..data once, as [Load] does.
//
// The package never writes a key that does not fit its certificate, never takes over a directory that holds something
// else, never fetches anything, and never judges whether a certificate is in time or revoked.
package identity

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign"
)

// The files of an identity directory.
const (
	CertFile       = "tls.crt"        // the leaf, then the intermediates; PEM
	KeyFile        = "tls.key"        // PKCS#8, PEM
	RootsFile      = "ca.crt"         // the roots; PEM
	CombinedFile   = "combined.pem"   // the key, then the chain: for who needs both in one read
	KeyStoreFile   = "keystore.p12"   // PKCS#12 as Java 17 loads it
	TrustStoreFile = "truststore.p12" // PKCS#12, one entry per root
	InfoFile       = "identity.json"
)

// Bundle is what [Write] writes. Key, Chain and Roots are required.
type Bundle struct {
	Key         crypto.Signer
	Chain       []*x509.Certificate // the leaf, then the intermediates
	Roots       []*x509.Certificate
	Server      string    // where it was issued: the URL of the daemon
	RenewAfter  time.Time // the window in which to renew; zero: not told
	RenewBefore time.Time
	Password    string // of the PKCS#12 files; "": changeit. An empty one would make Java load nothing, without an error
}

// Identity is what [Load] read: Key fits Chain[0], Chain leads to one of Roots, ID is the leaf's only URI SAN.
type Identity struct {
	ID          countersign.ID
	Serial      string // lower-case hex
	Server      string
	NotBefore   time.Time
	NotAfter    time.Time
	RenewAfter  time.Time // zero: not told
	RenewBefore time.Time
	Key         crypto.Signer
	Chain       []*x509.Certificate
	Roots       []*x509.Certificate
}

// New makes an identity of a bundle, in memory: what Write would write, and with the same checks.
func New(b Bundle) (*Identity, error) {
	id, err := check(b.Key, b.Chain, b.Roots)
	if err != nil {
		return nil, err
	}
	leaf := b.Chain[0]
	return &Identity{
		ID: id, Serial: serialText(leaf), Server: b.Server, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		RenewAfter: b.RenewAfter, RenewBefore: b.RenewBefore, Key: b.Key, Chain: slices.Clone(b.Chain), Roots: sortRoots(b.Roots),
	}, nil
}

// Bundle is what Write makes this identity of again.
func (i *Identity) Bundle() Bundle {
	return Bundle{
		Key: i.Key, Chain: i.Chain, Roots: i.Roots, Server: i.Server, RenewAfter: i.RenewAfter, RenewBefore: i.RenewBefore,
	}
}

// TLS is the identity as crypto/tls takes it, for servers and clients.
func (i *Identity) TLS() tls.Certificate {
	c := tls.Certificate{PrivateKey: i.Key, Leaf: i.Chain[0]}
	for _, cert := range i.Chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// Pool holds the roots.
func (i *Identity) Pool() *x509.CertPool { return pool(i.Roots) }

func pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// check tells the ID of the leaf, or why key, chain and roots are no identity. Times are not judged: an expired identity
// is still the one with which a renewal begins.
func check(key crypto.Signer, chain, roots []*x509.Certificate) (countersign.ID, error) {
	switch {
	case key == nil:
		return countersign.ID{}, errors.New("the key is missing")
	case len(chain) == 0:
		return countersign.ID{}, errors.New("the certificate is missing")
	case len(roots) == 0:
		return countersign.ID{}, errors.New("the roots are missing")
	}
	leaf := chain[0]
	if !samePublic(key.Public(), leaf.PublicKey) {
		return countersign.ID{}, errors.New("the key is not the certificate's")
	}
	if leaf.IsCA {
		return countersign.ID{}, errors.New("the certificate is one of an authority")
	}
	if len(leaf.URIs) != 1 {
		return countersign.ID{}, fmt.Errorf("the certificate has %d URI names; an identity has one", len(leaf.URIs))
	}
	id, err := countersign.ParseID(leaf.URIs[0].String())
	if err != nil {
		return countersign.ID{}, err
	}
	// No link of a chain of ours outlives the link above it, so at the leaf's own end the whole chain is in time.
	_, err = leaf.Verify(x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(chain[1:]), CurrentTime: leaf.NotAfter,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return countersign.ID{}, fmt.Errorf("the chain does not lead to the roots: %w", err)
	}
	return id, nil
}

// samePublic compares the keys by their encoding, which every kind of key has.
func samePublic(a, b crypto.PublicKey) bool {
	x, err := x509.MarshalPKIXPublicKey(a)
	if err != nil {
		return false
	}
	y, err := x509.MarshalPKIXPublicKey(b)
	return err == nil && bytes.Equal(x, y)
}

func serialText(c *x509.Certificate) string {
	if c.SerialNumber == nil || c.SerialNumber.Sign() <= 0 {
		return "0"
	}
	return fmt.Sprintf("%032x", c.SerialNumber)
}
