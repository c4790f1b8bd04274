package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"time"

	"github.com/countersign/countersign"
)

// Peer is the client certificate of a connection, if this server's TLS asked for it and verified its chain: with
// tls.VerifyClientCertIfGiven or tls.RequireAndVerifyClientCert, resumed sessions included. A certificate that was sent and
// verified by nobody is none. nil: there is none.
func Peer(state *tls.ConnectionState) *x509.Certificate {
	if state == nil || !state.HandshakeComplete || len(state.PeerCertificates) == 0 ||
		len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return nil
	}
	leaf := state.VerifiedChains[0][0]
	if !bytes.Equal(leaf.Raw, state.PeerCertificates[0].Raw) {
		return nil
	}
	return leaf
}

// checkBinding judges whether who sent the token holds the key that it is bound to, if it is bound to any.
func (v *Verifier) checkBinding(c *Claims, token string, how presented, now time.Time) error {
	if c.Confirmation != "" {
		if err := v.checkPeer(c, how.peer, now); err != nil {
			return err
		}
	}
	switch {
	case c.ProofKey == "" && how.dpop:
		return refuse(ReasonBinding, "the token came by the scheme DPoP, and is not bound to a key")
	case c.ProofKey == "":
		return nil
	case !how.dpop: // RFC 9449 7.2
		return refuse(ReasonBinding, "the token is bound to a DPoP key and did not come by the scheme DPoP")
	}
	return v.checkProof(c, token, how.request, now)
}

// checkPeer compares cnf.x5t#S256 with the certificate of the connection (RFC 8705 3). Of a relay token the successor is
// taken too (policy.md, "cnf").
func (v *Verifier) checkPeer(c *Claims, peer *x509.Certificate, now time.Time) error {
	if peer == nil {
		return refuse(ReasonBinding, "the token is bound to a certificate, and there is no connection with a verified one")
	}
	// A connection that is kept must not outlive its certificate.
	if now.Before(peer.NotBefore.Add(-v.cfg.Leeway)) || now.After(peer.NotAfter.Add(v.cfg.Leeway)) {
		return refuse(ReasonBinding, "the certificate of the connection is not valid now")
	}
	sum := sha256.Sum256(peer.Raw)
	thumbprint := base64.RawURLEncoding.EncodeToString(sum[:])
	if subtle.ConstantTimeCompare([]byte(thumbprint), []byte(c.Confirmation)) == 1 {
		return nil
	}
	if !v.external && succeeds(peer, c) {
		return nil
	}
	return refuse(ReasonBinding, "the token is bound to another certificate than that of the connection")
}

// renewing is how long a renewal may take. A certificate has the time at which it was asked for, and until the answer is
// there its service mints tokens with the old one, which the new one must be able to carry.
const renewing = 5 * time.Second

// succeeds tells whether cert is one that the service which the token was issued to got after that, so that it can only be a
// successor of the one that the token is bound to. An older one is another key that the service once held, and proves nothing.
func succeeds(cert *x509.Certificate, c *Claims) bool {
	if len(cert.URIs) != 1 || cert.URIs[0].String() != c.ClientID {
		return false
	}
	id, err := countersign.ParseID(c.ClientID)
	return err == nil && id.Kind() == countersign.ServiceID && !issued(cert).Before(c.IssuedAt.Truncate(time.Second).Add(-renewing))
}

// issued is when Countersign issued cert: it sets notBefore a minute, or a tenth of the lifetime if that is less, before its
// clock. Without that minute a token could not be used across a renewal that follows its minting within it.
func issued(cert *x509.Certificate) time.Time {
	lifetime := cert.NotAfter.Sub(cert.NotBefore) + time.Second // RFC 5280 4.1.2.5: both ends count
	return cert.NotBefore.Add(min(time.Minute, lifetime/10).Truncate(time.Second))
}
