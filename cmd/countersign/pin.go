package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/countersign/countersign"
)

// joinString is what `join-token create` printed: https://host:port#<token>.<SHA-256 of the root>.
type joinString struct {
	URL         string // https://host:port
	Host        string // without the port: what the daemon's certificate must be for
	Token       string // secret
	Fingerprint [sha256.Size]byte
}

const maxJoinString = 1024

// parseJoin reads a join string. Its errors never repeat the token.
func parseJoin(s string) (joinString, error) {
	bad := func(why string) (joinString, error) {
		return joinString{}, errors.New("a join string is https://HOST:PORT#<token>.<fingerprint>; " + why)
	}
	if len(s) > maxJoinString {
		return bad("this one is too long")
	}
	address, fragment, ok := strings.Cut(s, "#")
	if !ok {
		return bad("this one has no # (a shell cuts it off unless it stands in quotes)")
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return bad("the part before # must be https://HOST:PORT alone")
	}
	token, fingerprint, ok := strings.Cut(fragment, ".")
	if !ok || token == "" {
		return bad("the part after # must be <token>.<fingerprint>")
	}
	sum, err := hex.DecodeString(fingerprint)
	if err != nil || len(sum) != sha256.Size || strings.ToLower(fingerprint) != fingerprint {
		return bad("the fingerprint must be 64 lower-case hex digits; is the end of the string missing?")
	}
	for _, c := range token {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return bad("the token may hold only a-z and 0-9")
		}
	}
	return joinString{URL: "https://" + u.Host, Host: u.Hostname(), Token: token, Fingerprint: [sha256.Size]byte(sum)}, nil
}

// errNotAuthority is the one answer to anything that is not the authority of the join token. Nothing was sent.
var errNotAuthority = errors.New("this is not the authority that made this token")

// pinnedConfig is the one place where the chain is not verified by crypto/tls: a service that joins knows its authority
// by the root's fingerprint alone (interfaces.md). The daemon's chain ends with its root; VerifyConnection takes the
// certificate with exactly that fingerprint as the only root and then verifies all that crypto/tls would have: chain,
// host name, EKU, times, and, beyond that, that the leaf is the authority's own. It runs before any byte of ours is
// sent, also for TLS 1.3, and a connection that it refuses is closed.
func pinnedConfig(j joinString) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         j.Host,
		InsecureSkipVerify: true, // replaced, not skipped: see VerifyConnection
		VerifyConnection:   func(state tls.ConnectionState) error { return verifyPinned(state, j) },
	}
}

func verifyPinned(state tls.ConnectionState, j joinString) error {
	if len(state.PeerCertificates) == 0 {
		return errNotAuthority
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
		return fmt.Errorf("%w: its chain does not hold the root with the fingerprint", errNotAuthority)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: j.Host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errNotAuthority, err)
	}
	if len(leaf.URIs) != 1 {
		return fmt.Errorf("%w: its certificate is no identity", errNotAuthority)
	}
	id, err := countersign.ParseID(leaf.URIs[0].String())
	if err != nil || id.Kind() != countersign.AuthorityID {
		return fmt.Errorf("%w: its certificate is that of %s", errNotAuthority, leaf.URIs[0])
	}
	return nil
}
