package mtls

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

// callTimeout bounds one call, so that an authority that hangs costs no more than a part of a minute.
const callTimeout = 10 * time.Second

// authority is who issues. In life it is the daemon; the simulation of a fleet has it in process.
type authority interface {
	// renew asks as the identity that is had, which may be over.
	renew(ctx context.Context, had *identity.Identity, rq wire.CertificateRequest) (wire.Certificate, error)
	// join asks with a join token, over a connection that is pinned by the join string.
	join(ctx context.Context, j client.JoinString, rq wire.CertificateRequest) (wire.Certificate, error)
	// attest asks with a workload's JWT.
	attest(ctx context.Context, had *identity.Identity, token string, rq wire.CertificateRequest) (wire.Certificate, error)
	// roots gives all roots, and when it is worth asking again.
	roots(ctx context.Context, had *identity.Identity) ([]*x509.Certificate, time.Duration, error)
}

// way is one way to a certificate.
type way struct {
	name string
	kind EventKind
	ask  func(context.Context) (*identity.Identity, error)
}

// obtain tries the ways in their order. An identity that is over is tried first too: the clock here may be wrong, and the
// authority may grant a time of grace. The others are for when it is over, or the authority won't have it.
func (s *Source) obtain(ctx context.Context, had *identity.Identity) (*identity.Identity, EventKind, error) {
	var faults []error
	fresh := &request{alg: s.keyType} // a new key for each attempt
	for _, w := range s.ways(had, fresh) {
		if len(faults) > 0 && !s.goesOn(had, faults[len(faults)-1]) {
			break
		}
		got, err := s.ask(ctx, w)
		if err == nil {
			return got, w.kind, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", w.name, err))
	}
	if len(faults) == 0 {
		return nil, "", fmt.Errorf("%w, and no join string or attestation to get one with", ErrNone)
	}
	return nil, "", errors.Join(faults...)
}

func (s *Source) ask(ctx context.Context, w way) (*identity.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return w.ask(ctx)
}

// goesOn tells whether another way is tried after err. As long as the certificate is good only the authority's own refusal
// of it leads there; when the authority is busy, nothing does.
func (s *Source) goesOn(had *identity.Identity, err error) bool {
	if busyFor(err) > 0 {
		return false
	}
	if had == nil || s.now().After(had.NotAfter) {
		return true
	}
	var refused *client.APIError
	return errors.As(err, &refused) && (refused.Status == 401 || refused.Status == 403)
}

// request is a key and the certificate request for it, made when it is needed first.
type request struct {
	alg string
	key crypto.Signer
	csr []byte
}

func (r *request) make() error {
	if r.csr != nil {
		return nil
	}
	key, err := identity.NewKey(r.alg)
	if err != nil {
		return err
	}
	r.key = key
	r.csr, err = identity.CSR(key)
	return err
}

func (s *Source) ways(had *identity.Identity, fresh *request) []way {
	var ways []way
	if had != nil {
		ways = append(ways, way{"renew", Renewed, func(ctx context.Context) (*identity.Identity, error) {
			return s.fresh(had, s.server(had), fresh, func(rq wire.CertificateRequest) (wire.Certificate, error) {
				return s.from.renew(ctx, had, rq)
			})
		}})
	}
	if s.cfg.Attest != nil {
		ways = append(ways, way{"attest", Enrolled, func(ctx context.Context) (*identity.Identity, error) { return s.attest(ctx, had) }})
	}
	if s.cfg.Join != "" || s.cfg.JoinFile != "" {
		ways = append(ways, way{"join", Enrolled, func(ctx context.Context) (*identity.Identity, error) { return s.join(ctx, had) }})
	}
	return ways
}

// pin is the key that was asked for with a secret, the newest of its kind. A join token is good once, a workload's token for
// one key: an answer that got lost is had by asking again with both, and so is, with a workload's token, a certificate
// after the one that is over.
type pin struct {
	secret [sha256.Size]byte
	rq     request
}

// pinned gives the request that belongs to secret.
func (s *Source) pinned(at **pin, secret string) *request {
	if sum := sha256.Sum256([]byte(secret)); *at == nil || (*at).secret != sum {
		*at = &pin{sum, request{alg: s.keyType}}
	}
	return &(*at).rq
}

func (s *Source) attest(ctx context.Context, had *identity.Identity) (*identity.Identity, error) {
	token, err := s.cfg.Attest(ctx)
	if err != nil {
		return nil, &configError{fmt.Errorf("the attestation can't be had: %w", err)}
	}
	rq := s.pinned(&s.attested, token)
	return s.fresh(had, s.server(had), rq, func(rq wire.CertificateRequest) (wire.Certificate, error) {
		return s.from.attest(ctx, had, token, rq)
	})
}

func (s *Source) join(ctx context.Context, had *identity.Identity) (*identity.Identity, error) {
	j, _, err := s.cfg.joinString()
	if err != nil {
		return nil, &configError{err}
	}
	got, err := s.fresh(had, j.URL, s.pinned(&s.joined, j.Token), func(rq wire.CertificateRequest) (wire.Certificate, error) {
		return s.from.join(ctx, j, rq)
	})
	if err != nil {
		return nil, err
	}
	for _, root := range got.Roots {
		if sha256.Sum256(root.Raw) == j.Fingerprint {
			return got, nil
		}
	}
	return nil, &answerError{errors.New("it does not hold the root that made the join token")}
}

// fresh asks for a certificate for the key of with, and judges the answer: key, chain, roots, and whose it is.
func (s *Source) fresh(had *identity.Identity, server string, with *request, ask func(wire.CertificateRequest) (wire.Certificate, error)) (*identity.Identity, error) {
	if err := with.make(); err != nil {
		return nil, err
	}
	answer, err := ask(wire.CertificateRequest{CSR: string(with.csr), TTL: countersign.Duration(s.cfg.TTL)})
	if other, ok := client.OtherKey(err); ok && s.cfg.KeyType == "" && other != with.alg {
		// Nobody chose the type of the key, and the policy allows others by now. It is kept for the next renewals.
		s.keyType, *with = other, request{alg: other}
		if err := with.make(); err != nil {
			return nil, err
		}
		answer, err = ask(wire.CertificateRequest{CSR: string(with.csr), TTL: countersign.Duration(s.cfg.TTL)})
	}
	if err != nil {
		return nil, err
	}
	got, err := readAnswer(answer, with.key, server)
	if err != nil {
		return nil, &answerError{err}
	}
	if s.now().After(got.NotAfter) { // as for a token that was used before
		return nil, &answerError{fmt.Errorf("its certificate was over at %s; a token that was used gets its certificate again: a fresh one is needed", got.NotAfter.UTC().Format(time.RFC3339))}
	}
	want := s.cfg.ID
	if had != nil {
		want = had.ID
	}
	if got.ID.Kind() != countersign.ServiceID || !want.IsZero() && got.ID != want {
		return nil, &answerError{fmt.Errorf("it is the certificate of %s", got.ID)}
	}
	return got, nil
}

// readAnswer is pure. The roots of the answer are all that the authority has.
func readAnswer(a wire.Certificate, key crypto.Signer, server string) (*identity.Identity, error) {
	chain, err := identity.ParseCertificates([]byte(a.Certificate))
	if err != nil {
		return nil, fmt.Errorf("its chain: %w", err)
	}
	roots, err := identity.ParseCertificates([]byte(a.Roots))
	if err != nil {
		return nil, fmt.Errorf("its roots: %w", err)
	}
	return identity.New(identity.Bundle{
		Key: key, Chain: chain, Roots: roots, Server: server, RenewAfter: a.RenewAfter, RenewBefore: a.RenewBefore,
	})
}

// daemon is the authority over its API.
type daemon struct{ s *Source }

func (d daemon) renew(ctx context.Context, _ *identity.Identity, rq wire.CertificateRequest) (wire.Certificate, error) {
	c, _, err := d.s.clientNow()
	if err != nil {
		return wire.Certificate{}, &configError{err}
	}
	return c.Renew(ctx, rq)
}

func (d daemon) join(ctx context.Context, j client.JoinString, rq wire.CertificateRequest) (wire.Certificate, error) {
	c, err := client.New(client.Config{URL: j.URL, TLS: client.PinnedTLS(j), Date: d.s.heard})
	if err != nil {
		return wire.Certificate{}, &configError{err}
	}
	defer c.Close()
	return c.Join(ctx, j.Token, rq)
}

// attest comes without a certificate: two credentials in one request are refused.
func (d daemon) attest(ctx context.Context, had *identity.Identity, token string, rq wire.CertificateRequest) (wire.Certificate, error) {
	c, err := client.New(client.Config{
		URL: d.s.server(had), Roots: d.s.pool(had), TrustDomain: d.s.cfg.ID.TrustDomain(), Date: d.s.heard, Now: d.s.cfg.Now,
	})
	if err != nil {
		return wire.Certificate{}, &configError{err}
	}
	defer c.Close()
	return c.Join(ctx, token, rq)
}

func (d daemon) roots(ctx context.Context, _ *identity.Identity) ([]*x509.Certificate, time.Duration, error) {
	c, _, err := d.s.clientNow()
	if err != nil {
		return nil, 0, err
	}
	bundle, err := c.Bundle(ctx)
	if err != nil {
		return nil, 0, err
	}
	roots, err := bundleRoots(bundle)
	return roots, time.Duration(bundle.RefreshHint) * time.Second, err
}

const maxRoots = 64

// bundleRoots are the X.509 authorities of a SPIFFE bundle; keys of another use are not looked at.
func bundleRoots(b wire.Bundle) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for _, key := range b.Keys {
		if key.Use != "x509-svid" {
			continue
		}
		if len(key.X5C) != 1 || len(roots) == maxRoots {
			return nil, errors.New("the bundle can't be read: each authority is one certificate, and there are at most 64")
		}
		der, err := base64.StdEncoding.DecodeString(key.X5C[0])
		if err != nil {
			return nil, fmt.Errorf("the bundle can't be read: %w", err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("the bundle can't be read: %w", err)
		}
		if !cert.IsCA {
			return nil, errors.New("the bundle holds a certificate that is no authority's")
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return nil, errors.New("the bundle holds no roots")
	}
	return roots, nil
}

// pool are the roots that are trusted: those of the identity, and the configured ones.
func (s *Source) pool(i *identity.Identity) *x509.CertPool {
	pool := x509.NewCertPool()
	if i != nil {
		pool = i.Pool()
	}
	for _, root := range s.cfg.Roots {
		pool.AddCert(root)
	}
	return pool
}

// sameRoots compares sets.
func sameRoots(a, b []*x509.Certificate) bool {
	in := func(set []*x509.Certificate, c *x509.Certificate) bool { return slices.ContainsFunc(set, c.Equal) }
	return !slices.ContainsFunc(a, func(c *x509.Certificate) bool { return !in(b, c) }) &&
		!slices.ContainsFunc(b, func(c *x509.Certificate) bool { return !in(a, c) })
}
