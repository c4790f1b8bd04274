package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/ca/identity"
)

// serverCertificate is what the public listener serves.
type serverCertificate struct {
	own      *tls.Certificate // leaf, intermediate, root: the chain ends with its root so that `join` can pin it
	renewAt  time.Time
	notAfter time.Time
	issuer   *x509.Certificate
	public   *tls.Certificate // tls.cert, for its own names; nil if not configured
}

// loadServer reads the daemon's own identity from its directory, and the files for public names.
func (p *parts) loadServer() error {
	public, err := p.loadPublic()
	if err != nil {
		return err
	}
	return p.loadOwn(public)
}

// loadPublic reads the certificate for public names; nil if there is none.
func (p *parts) loadPublic() (*tls.Certificate, error) {
	if p.cfg.TLS.Cert == "" {
		return nil, nil
	}
	public, err := tls.LoadX509KeyPair(p.cfg.TLS.Cert, p.cfg.TLS.Key)
	if err != nil {
		return nil, &ConfigError{[]Problem{{Key: "tls.cert", Msg: "it can't be served with tls.key: " + err.Error()}}}
	}
	return &public, nil
}

// loadOwn reads the daemon's own identity and serves it beside public.
func (p *parts) loadOwn(public *tls.Certificate) error {
	own, err := identity.Load(p.dir.server())
	if err != nil {
		return fmt.Errorf("read the daemon's own certificate: %w", err)
	}
	cert := own.TLS()
	for _, root := range own.Roots {
		cert.Certificate = append(slices.Clip(cert.Certificate), root.Raw)
	}
	next := &serverCertificate{own: &cert, notAfter: own.NotAfter, renewAt: own.NotBefore.Add(own.NotAfter.Sub(own.NotBefore) / 2)}
	if !slices.Equal(certificateNames(own), slices.Sorted(slices.Values(p.cfg.DNS))) {
		next.renewAt = time.Time{} // the configured names changed
	}
	if !slices.Contains(p.cfg.KeyTypes.Server, ca.KeyType(own.Chain[0].PublicKey)) {
		next.renewAt = time.Time{} // or the key types
	}
	next.issuer = own.Chain[min(1, len(own.Chain)-1)]
	next.public = public
	p.server.Store(next)
	return nil
}

// certificateNames are the DNS names and addresses of an identity, sorted.
func certificateNames(i *identity.Identity) []string {
	names := slices.Clone(i.Chain[0].DNSNames)
	for _, ip := range i.Chain[0].IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	return names
}

// certificate chooses by the name that the client asks for: the public certificate for exactly its own names, the
// daemon's own for all others.
func (p *parts) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	current := p.server.Load()
	if current.public != nil && hello.ServerName != "" && hello.SupportsCertificate(current.public) == nil &&
		current.public.Leaf.VerifyHostname(hello.ServerName) == nil && !slices.Contains(p.cfg.DNS, hello.ServerName) {
		return current.public, nil
	}
	return current.own, nil
}

// ensureServer makes sure that there is a certificate to serve: the one on disk, renewed when it is time and possible.
func (p *parts) ensureServer(ctx context.Context) error {
	public, err := p.loadPublic()
	if err != nil {
		return err
	}
	return p.ensureOwn(ctx, public)
}

func (p *parts) ensureOwn(ctx context.Context, public *tls.Certificate) error {
	err := p.loadOwn(public)
	if err == nil && p.now().Before(p.server.Load().renewAt) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // never replace a key that can't be read
	}
	missing := err != nil
	if err := p.renewServer(ctx, public); err != nil {
		if missing {
			return err
		}
		p.log.Warn("the daemon's own certificate can't be renewed yet", "err", err, "not_after", p.server.Load().notAfter)
	}
	return nil
}

// renewServer issues the daemon's own certificate with a new key, and serves it beside public: the files of that one may
// be gone or half replaced by now, which must not keep the new one from being served, or each look would issue another.
func (p *parts) renewServer(ctx context.Context, public *tls.Certificate) error {
	key, err := identity.NewKey(p.cfg.KeyTypes.Server[0])
	if err != nil {
		return err
	}
	csr, err := identity.CSR(key)
	if err != nil {
		return err
	}
	cert, err := p.ca.IssueServer(ctx, csr)
	if err != nil {
		return err
	}
	err = identity.Write(p.dir.server(), identity.Bundle{Key: key, Chain: cert.Chain, Roots: p.ca.Roots(), Server: p.serverURL()})
	if err != nil {
		return err
	}
	p.log.Info("the daemon's own certificate is issued", "serial", cert.Serial, "not_after", cert.NotAfter)
	return p.loadOwn(public)
}

// keepServer renews the daemon's own certificate in time. It looks at the wall clock every 30 s, so that a machine that
// slept is noticed.
func (p *parts) keepServer(ctx context.Context) error {
	tick := time.NewTicker(serverCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p.renewDue(ctx)
	}
}

// renewDue renews the daemon's own certificate when it is time and possible.
func (p *parts) renewDue(ctx context.Context) {
	if !p.serverDue() || p.keys.Sealed() || p.clock.Guard() != nil {
		return
	}
	if err := p.renewServer(ctx, p.server.Load().public); err != nil && ctx.Err() == nil {
		p.log.Error("renew the daemon's own certificate", "err", err, "not_after", p.server.Load().notAfter)
	}
}

// serverDue tells whether the daemon's own certificate is to be renewed: it is time, or another intermediate signs now, so
// that the old one can be retired.
func (p *parts) serverDue() bool {
	current := p.server.Load()
	return !p.now().Before(current.renewAt) || !p.ca.Signing().Equal(current.issuer)
}

const serverCheck = 30 * time.Second
