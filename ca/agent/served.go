package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/countersign/countersign/ca/identity"
)

const (
	handshakeTimeout = 5 * time.Second
	firstLook        = 100 * time.Millisecond // then twice as long each time, up to
	lastLook         = 2 * time.Second
)

// staleError says that the program serves another certificate than the new one.
type staleError struct{ at, served, want string }

// Error names both serials.
func (e *staleError) Error() string {
	return fmt.Sprintf("%s serves the certificate %s, not the new one %s: the program has not read its files again", e.at, e.served, e.want)
}

// awaitServed looks until the program at v serves the certificate of id, and gives up when ctx ends: the error is then what the
// last look saw. served is the serial that was seen last, "" if no handshake showed one.
func awaitServed(ctx context.Context, v Verify, id *identity.Identity, now func() time.Time) (served string, err error) {
	pause := firstLook
	for {
		serial, lookErr := look(ctx, v, id, now)
		if serial != "" {
			served = serial
		}
		if lookErr == nil {
			return served, nil
		}
		var network net.Error
		if err == nil || !errors.As(lookErr, &network) || !network.Timeout() { // a look that the end of ctx broke off tells nothing
			err = lookErr
		}
		select {
		case <-ctx.Done():
			return served, err
		case <-time.After(pause):
		}
		pause = min(2*pause, lastLook)
	}
}

// look does one handshake, as the identity itself, and demands the identity's own certificate of the server.
func look(ctx context.Context, v Verify, id *identity.Identity, now func() time.Time) (served string, err error) {
	at, err := parseTarget(v.Address)
	if err != nil {
		return "", err
	}
	leaf := id.Chain[0]
	name := v.ServerName
	switch {
	case name != "":
	case len(leaf.DNSNames) > 0:
		name = leaf.DNSNames[0]
	default:
		name, _, _ = net.SplitHostPort(string(at))
	}
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{},
		Config: &tls.Config{
			MinVersion: tls.VersionTLS12, // whatever the program speaks; no secret crosses this connection
			RootCAs:    id.Pool(), ServerName: name, Certificates: []tls.Certificate{id.TLS()}, Time: now,
		},
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", string(at))
	if err == nil {
		defer conn.Close()
		return compareServed(string(at), conn.(*tls.Conn).ConnectionState().PeerCertificates, leaf)
	}
	var unverified *tls.CertificateVerificationError
	if errors.As(err, &unverified) && len(unverified.UnverifiedCertificates) > 0 {
		served, stale := compareServed(string(at), unverified.UnverifiedCertificates, leaf)
		switch {
		case stale != nil:
			return served, stale
		case errors.As(err, new(x509.HostnameError)) && len(leaf.DNSNames) == 0 && v.ServerName == "":
			return served, nil // ours, byte by byte; it has no name that could be checked
		}
		return served, fmt.Errorf("%s: %w", at, err)
	}
	return "", fmt.Errorf("%s: %w", at, err)
}

func compareServed(at string, chain []*x509.Certificate, want *x509.Certificate) (served string, err error) {
	served = serialOf(chain[0])
	if !bytes.Equal(chain[0].Raw, want.Raw) {
		return served, &staleError{at: at, served: served, want: serialOf(want)}
	}
	return served, nil
}

// serialOf is a serial as the authority spells it: 32 lower-case hex digits.
func serialOf(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }
