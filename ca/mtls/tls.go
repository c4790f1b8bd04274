package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
)

// Server is a config for servers: TLS 1.3, the identity as it is at each handshake, a client certificate demanded,
// verified under the roots as they are, and admitted by a. There are no session tickets: each connection is judged anew.
// Connections of peers that a no longer admits are closed ([Callers]).
//
// Of the config that is returned only NextProtos may be changed, and before it is used: it is "h2" and "http/1.1", and what
// does not speak HTTP sets its own.
func Server(src *Source, a Authorizer) *tls.Config {
	a.begin(src)
	base := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
		ClientAuth: tls.RequireAndVerifyClientCert,
	}
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		i, err := src.usable()
		if err != nil {
			return nil, err
		}
		perConn := &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: base.NextProtos, SessionTicketsDisabled: true,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: i.Pool(), Certificates: []tls.Certificate{i.TLS()}, Time: src.cfg.Now,
		}
		judge := func(state tls.ConnectionState) (peer, error) { return admit(src, a, state, i.ID.TrustDomain()) }
		if _, changes := a.(callers); changes {
			perConn.VerifyConnection = src.conns.watch(perConn, hello.Conn, judge, func(p peer) error { return a.authorize(src, p) })
		} else {
			perConn.VerifyConnection = func(state tls.ConnectionState) error { _, err := judge(state); return err }
		}
		return perConn, nil
	}
	return base
}

// Client is a config for clients: TLS 1.3, the identity as it is at each handshake, the server's chain verified under the
// roots as they are then, for the DNS name it is called by, and its ID admitted by a. Callers() admits nobody here: it says who
// may call this service, and not whom this one may call.
func Client(src *Source, a Authorizer) *tls.Config {
	return clientTLS(src, a, nil)
}

// clientTLS takes a fixed identity, for connections whose tokens are bound to it; nil: the one of the moment.
func clientTLS(src *Source, a Authorizer, fixed *identity.Identity) *tls.Config {
	if _, ok := a.(callers); ok {
		a = Only()
	}
	now := func() (*identity.Identity, error) {
		if fixed != nil {
			return fixed, nil
		}
		return src.usable()
	}
	roots := func() (*x509.CertPool, error) {
		i, err := src.usable()
		if err != nil {
			return nil, err
		}
		return i.Pool(), nil
	}
	config := client.RootsTLS(roots, src.cfg.Now, func(state tls.ConnectionState) error {
		i, err := now()
		if err != nil {
			return err
		}
		_, err = admit(src, a, state, i.ID.TrustDomain())
		return err
	})
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		i, err := now()
		if err != nil {
			return nil, err
		}
		own := i.TLS()
		return &own, nil
	}
	return config
}

// usable is the identity for handshakes: none that is over, and none after Close.
func (s *Source) usable() (*identity.Identity, error) {
	if s.life.Err() != nil {
		return nil, ErrClosed
	}
	i, err := s.Identity()
	if err != nil {
		return nil, err
	}
	return i, nil
}

// peer is the other end of a connection, by its certificate.
type peer struct {
	id     countersign.ID
	serial string // as records and feeds spell it: 32 lower-case hex digits
	spki   string // lower-case hex SHA-256 of the SubjectPublicKeyInfo
}

// admit judges a connection whose chain is verified. What holds for everyone comes before what a says: a service, of the own
// trust domain.
func admit(src *Source, a Authorizer, state tls.ConnectionState, domain string) (peer, error) {
	if len(state.VerifiedChains) == 0 {
		return peer{}, errors.New("mtls: the peer's certificate was not verified")
	}
	p, err := readPeer(state.PeerCertificates[0])
	switch {
	case err != nil:
		return peer{}, fmt.Errorf("mtls: %w", err)
	case p.id.Kind() != countersign.ServiceID:
		return peer{}, fmt.Errorf("mtls: %s is no service", p.id)
	case p.id.TrustDomain() != domain:
		return peer{}, fmt.Errorf("mtls: %s is not of the trust domain %s", p.id, domain)
	}
	if err := a.authorize(src, p); err != nil {
		return peer{}, fmt.Errorf("mtls: %s is not admitted: %w", p.id, err)
	}
	return p, nil
}

func readPeer(leaf *x509.Certificate) (peer, error) {
	if leaf.IsCA || len(leaf.URIs) != 1 {
		return peer{}, errors.New("the peer's certificate is no identity: it needs one URI name")
	}
	id, err := countersign.ParseID(leaf.URIs[0].String())
	if err != nil {
		return peer{}, fmt.Errorf("the peer's certificate is no identity: %w", err)
	}
	return peer{id: id, serial: fmt.Sprintf("%032x", leaf.SerialNumber), spki: hexSum(leaf.RawSubjectPublicKeyInfo)}, nil
}

// Peer is the service at the other end; false: the chain was not verified, or it is none. It reads what [Server] and [Client]
// have judged, and judges nothing itself.
func Peer(state *tls.ConnectionState) (countersign.ID, bool) {
	if state == nil || !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return countersign.ID{}, false
	}
	p, err := readPeer(state.PeerCertificates[0])
	return p.id, err == nil && p.id.Kind() == countersign.ServiceID
}

// Authorizer says which services are admitted as peers. Made by [Only], [InDomain] and [Callers].
type Authorizer interface {
	begin(src *Source)
	authorize(src *Source, p peer) error
}

type only []countersign.ID

// Only admits these services; none: nobody.
func Only(ids ...countersign.ID) Authorizer { return only(slices.Clone(ids)) }

func (only) begin(*Source) {}

func (o only) authorize(_ *Source, p peer) error {
	if slices.Contains(o, p.id) {
		return nil
	}
	return errors.New("it is none of the services that may")
}

type inDomain struct{}

// InDomain admits every service of the own trust domain.
func InDomain() Authorizer { return inDomain{} }

func (inDomain) begin(*Source)                 {}
func (inDomain) authorize(*Source, peer) error { return nil } // admit has judged the domain
