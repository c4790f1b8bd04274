package ca

import (
	"container/list"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"sync"

	"github.com/countersign/countersign"
)

// PeerCaller adds to c what a client certificate proves now. It is asked on every request, because a kept connection
// outlives expiry and revocation. The TLS handshake has proven that the peer holds the key.
//
// Demanded: one URI name of this trust domain, of a service or an operator; clientAuth; a chain to our issuers; the
// interval; a record with this very certificate, not revoked, its key not compromised; an operator's role from the store.
// Codes: CodeBadCertificate, CodeExpiredPeer, CodeRevokedPeer. Refusals are not audited here: the transport counts them.
func (a *Authority) PeerCaller(ctx context.Context, leaf *x509.Certificate, c countersign.Caller) (countersign.Caller, error) {
	if leaf == nil {
		return c, countersign.Errorf(countersign.CodeNoCredential, "no client certificate was sent")
	}
	print := sha256.Sum256(leaf.Raw)
	known, ok := a.judged.recall(print)
	var id countersign.ID
	if !ok { // who was judged before had an ID and a chain, which the certificate's bytes alone decide
		var err error
		if id, err = a.peerID(leaf); err != nil {
			return c, err
		}
		if err := a.checkChain(leaf, print); err != nil {
			return c, err
		}
	}
	if now := a.cfg.Now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return c, countersign.Errorf(countersign.CodeExpiredPeer, "the client certificate is valid from %s to %s",
			leaf.NotBefore.UTC(), leaf.NotAfter.UTC()).
			WithHint("renew it, or enrol anew with a join token; compare the clocks")
	}
	if !ok {
		changed := a.peerTables()
		var err error
		if known, err = a.provenBy(ctx, leaf, id, print); err != nil {
			// A fork's alarm names whom the certificate says it is: the handshake has proven its key.
			accused := c
			accused.ID, accused.Name, accused.Serial = id, id.String(), serialText(leaf.SerialNumber)
			return c, a.forked(ctx, accused, err)
		}
		a.judged.remember(print, known, changed)
	}
	c.Method, c.ID, c.Role, c.Name = known.Method, known.ID, known.Role, known.Name
	c.Serial, c.Thumbprint = known.Serial, known.Thumbprint
	return c, nil
}

// ExpiredCaller adds to c what a client certificate proves that has ended, within [Config.Grace]: who may have its successor,
// and nothing else; an operator has no role by it. Apart from the time it is judged as [Authority.PeerCaller] does. One that
// was renewed already is refused, and blocks nothing: a machine that slept for a day is no thief.
// Codes: CodeBadCertificate, CodeExpiredPeer, CodeRevokedPeer.
func (a *Authority) ExpiredCaller(ctx context.Context, leaf *x509.Certificate, c countersign.Caller) (countersign.Caller, error) {
	id, err := a.peerID(leaf)
	if err != nil {
		return c, err
	}
	print := sha256.Sum256(leaf.Raw)
	if err := a.checkChain(leaf, print); err != nil {
		return c, err
	}
	if now := a.cfg.Now(); !now.After(leaf.NotAfter) || now.After(leaf.NotAfter.Add(a.cfg.Grace)) {
		return c, countersign.Errorf(countersign.CodeExpiredPeer, "the client certificate is valid from %s to %s, and could be renewed for %s after that",
			leaf.NotBefore.UTC(), leaf.NotAfter.UTC(), a.cfg.Grace).
			WithHint("enrol anew with a join token or attestation; compare the clocks")
	}
	known, err := a.provenBy(ctx, leaf, id, print)
	if err != nil {
		return c, noFork(err)
	}
	c.Method, c.ID, c.Name = countersign.ByExpired, known.ID, known.Name
	c.Serial, c.Thumbprint = known.Serial, known.Thumbprint
	return c, nil
}

// noFork makes what would be a fork of a certificate that has not ended a plain refusal.
func noFork(err error) error {
	var fork *forkError
	if errors.As(err, &fork) {
		return errOldSerial(fork.serial)
	}
	return err
}

// StillPeer tells whether leaf, whose SHA-256 print is as [Authority.PeerCaller] gave it, still proves whom it proved then.
// false: it may not; PeerCaller knows.
func (a *Authority) StillPeer(leaf *x509.Certificate, print [32]byte) bool {
	_, ok := a.judged.recall(print)
	now := a.cfg.Now()
	return ok && !now.Before(leaf.NotBefore) && !now.After(leaf.NotAfter)
}

// peerTables tell of the changes of what provenBy reads.
func (a *Authority) peerTables() []<-chan struct{} {
	return []<-chan struct{}{
		a.cfg.Store.Changed(certificatesTable().Name), a.cfg.Store.Changed(keysTable().Name), a.cfg.Store.Changed(operatorsTable().Name),
		a.cfg.Store.Changed(lineagesTable().Name), a.cfg.Store.Changed(authoritiesTable().Name),
	}
}

// provenBy is whom the records say that a certificate proves.
func (a *Authority) provenBy(ctx context.Context, leaf *x509.Certificate, id countersign.ID, print [32]byte) (countersign.Caller, error) {
	var nobody countersign.Caller
	held, err := a.heldCertificate(ctx, serialText(leaf.SerialNumber))
	if err != nil {
		return nobody, err
	}
	if held.Value.Fingerprint != hex.EncodeToString(print[:]) || held.Value.ID != id {
		return nobody, errUnknownPeer(errors.New("the record of its serial is about another certificate"))
	}
	if _, err := a.heldKey(ctx, held.Value); err != nil {
		return nobody, err
	}
	if err := a.sight(ctx, held.Value); err != nil {
		return nobody, err
	}
	role := countersign.RoleNone
	if id.Kind() == countersign.OperatorID {
		operator, err := a.operator(ctx, id.Name())
		if err != nil {
			return nobody, err
		}
		if role, err = countersign.ParseRole(operator.Value.Role); err != nil {
			return nobody, countersign.Errorf(countersign.CodeDamaged, "the record of the operator %s is damaged", id.Name()).Because(err)
		}
	}
	return countersign.Caller{
		Method: countersign.ByCertificate, ID: id, Role: role, Name: id.String(), Serial: held.Value.Serial, Thumbprint: print,
	}, nil
}

// peerID is the ID in a client certificate, judged by the certificate alone.
func (a *Authority) peerID(leaf *x509.Certificate) (countersign.ID, error) {
	refuse := func(format string, args ...any) (countersign.ID, error) {
		return countersign.ID{}, countersign.Errorf(countersign.CodeBadCertificate, format, args...)
	}
	if leaf.IsCA || leaf.SerialNumber.Sign() <= 0 {
		return refuse("the client certificate is not one of a client")
	}
	if len(leaf.URIs) != 1 {
		return refuse("the client certificate has %d URI names; it must have one", len(leaf.URIs))
	}
	id, err := countersign.ParseID(leaf.URIs[0].String())
	if err != nil || id.TrustDomain() != a.cfg.TrustDomain {
		return refuse("the client certificate has no ID of %s", a.cfg.TrustDomain)
	}
	if kind := id.Kind(); kind != countersign.ServiceID && kind != countersign.OperatorID {
		return refuse("the client certificate is one of the %s, which is no client", kind)
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return refuse("the client certificate is not one for clients (EKU clientAuth)")
	}
	return id, nil
}

// checkChain verifies the chain to our roots. Only success is remembered: it holds for these bytes for ever, since the
// interval is judged apart from it and the issuers outlive what they signed.
func (a *Authority) checkChain(leaf *x509.Certificate, print [32]byte) error {
	if a.chains.has(print) {
		return nil
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, cert := range a.Roots() {
		roots.AddCert(cert)
	}
	for _, cert := range a.Intermediates() {
		intermediates.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: leaf.NotAfter,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return countersign.Errorf(countersign.CodeBadCertificate, "the client certificate is not one that this authority issued").Because(err)
	}
	a.chains.add(print)
	return nil
}

// maxChains bounds the memory of verified chains: 4,096 entries of about 150 bytes.
const maxChains = 4096

// chainCache remembers the certificates whose chain was verified, the most recently used ones. The zero value is ready.
type chainCache struct {
	mu    sync.Mutex
	at    map[[32]byte]*list.Element
	order list.List // of [32]byte, the most recently used first
}

func (c *chainCache) has(print [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.at[print]
	if ok {
		c.order.MoveToFront(e)
	}
	return ok
}

func (c *chainCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = nil
	c.order.Init()
}

func (c *chainCache) add(print [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[print]; ok {
		return
	}
	if c.at == nil {
		c.at = make(map[[32]byte]*list.Element)
	}
	c.at[print] = c.order.PushFront(print)
	if c.order.Len() > maxChains {
		delete(c.at, c.order.Remove(c.order.Back()).([32]byte))
	}
}
