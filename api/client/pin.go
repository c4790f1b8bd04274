package client

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign"
)

// This file is the only one in which crypto/tls is told not to verify: both configs below verify in its place, in
// VerifyConnection, all that it would have, because what is trusted is not known when they are made (adr/0014).

// ErrNotAuthority is the one answer to anything that is not the authority of the join token. Nothing was sent.
var ErrNotAuthority = errors.New("this is not the authority that made this token")

// PinnedTLS is for the first connection of a service that joins, which knows its authority by the root's fingerprint alone
// (interfaces.md). The daemon's chain ends with its root; VerifyConnection takes the
// certificate with exactly that fingerprint as the only root and then verifies all that crypto/tls would have: chain,
// host name, EKU, times, and, beyond that, that the leaf is the authority's own. It runs before any byte of ours is
// sent, also for TLS 1.3, and a connection that it refuses is closed.
func PinnedTLS(j JoinString) *tls.Config {
	config := verifiedBy(func(state tls.ConnectionState) error { return verifyPinned(state, j) })
	config.ServerName = j.Host
	return config
}

// verifiedBy is a config with which verify alone says whether the server is who it must be: all that crypto/tls would have
// verified, and more. It runs in each handshake before any byte of ours is sent.
func verifiedBy(verify func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced, not skipped: see VerifyConnection
		VerifyConnection:   verify,
	}
}

func verifyPinned(state tls.ConnectionState, j JoinString) error {
	if len(state.PeerCertificates) == 0 {
		return ErrNotAuthority
	}
	leaf, roots, intermediates := state.PeerCertificates[0], x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, cert := range state.PeerCertificates[1:] {
		sum := sha256.Sum256(cert.Raw)
		if cert.IsCA && subtle.ConstantTimeCompare(sum[:], j.Fingerprint[:]) == 1 {
			roots.AddCert(cert)
			found = true
			continue
		}
		intermediates.AddCert(cert)
	}
	if !found {
		return fmt.Errorf("%w: its chain does not hold the root with the fingerprint", ErrNotAuthority)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: j.Host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAuthority, err)
	}
	if len(leaf.URIs) != 1 {
		return fmt.Errorf("%w: its certificate is no identity", ErrNotAuthority)
	}
	id, err := countersign.ParseID(leaf.URIs[0].String())
	if err != nil || id.Kind() != countersign.AuthorityID {
		return fmt.Errorf("%w: its certificate is that of %s", ErrNotAuthority, leaf.URIs[0])
	}
	return nil
}

// RootsTLS is for connections that outlive their roots: crypto/tls takes a client's roots once, so a config that is used
// for weeks would after a rollover refuse every peer. It verifies chain, name, EKU and times as crypto/tls does, under the
// roots that are trusted at that moment, and then asks further, to which the state shows VerifiedChains. A name is always
// demanded: an address (ServerName is empty for one) is refused, as no certificate of a service holds any. now may be nil.
func RootsTLS(roots func() (*x509.CertPool, error), now func() time.Time, further func(tls.ConnectionState) error) *tls.Config {
	if now == nil {
		now = time.Now
	}
	config := verifiedBy(func(state tls.ConnectionState) error {
		pool, err := roots()
		if err != nil {
			return err
		}
		if state.VerifiedChains, err = verifyServer(state, pool, now()); err != nil {
			return err
		}
		return further(state)
	})
	config.Time = now
	return config
}

// verifyServer verifies the chain of a server as crypto/tls does. A nil pool would mean the system's roots, so it is refused.
func verifyServer(state tls.ConnectionState, roots *x509.CertPool, now time.Time) ([][]*x509.Certificate, error) {
	switch {
	case len(state.PeerCertificates) == 0:
		return nil, errors.New("the server showed no certificate")
	case roots == nil:
		return nil, errors.New("there are no roots to verify the server under")
	case state.ServerName == "":
		return nil, errors.New("the server was not called by a name, and certificates of services hold names only: call it by a DNS name of its policy")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		intermediates.AddCert(cert)
	}
	return state.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: state.ServerName, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}
