package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/keyring"
)

// TestResponder: its certificate, its life, and its key.
func TestResponder(t *testing.T) {
	h := answering(t, nil)
	ctx := t.Context()
	use := func() responder { return (*h.ocsp.inUse.Load())[h.signing().serial] }
	r := use()
	checkLint(t, r.cert)
	if r.cert.IsCA || !slices.Equal(r.cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}) || len(r.cert.URIs)+len(r.cert.DNSNames) != 0 {
		t.Errorf("%+v", r.cert)
	}
	if life := r.cert.NotAfter.Sub(r.cert.NotBefore) + second; life != responderTTL {
		t.Errorf("it lives for %s", life)
	}
	noCheck := slices.ContainsFunc(r.cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidOCSPNoCheck) && bytes.Equal(e.Value, []byte{5, 0}) })
	if !noCheck {
		t.Error("clients would ask whether it is revoked")
	}
	told := 0
	for _, kind := range []string{eventIntent, eventIssued} {
		for _, e := range h.events(kind) {
			if e.Subject == serialText(r.cert.SerialNumber) {
				told++
			}
		}
	}
	if told != 2 {
		t.Errorf("%d events and not an intent and an outcome", told)
	}
	if _, got := h.askGo(r.cert.SerialNumber, h.signing().cert, crypto.SHA1); got != "good" {
		t.Errorf("of itself: %s", got)
	}
	if _, err := h.PeerCaller(ctx, r.cert, countersign.Caller{}); err == nil {
		t.Error("a responder is a client")
	}
	h.must(h.keepResponders(ctx))
	h.reopen()
	h.must(h.keepResponders(ctx))
	if use().KeyID != r.KeyID {
		t.Error("it was replaced without a need")
	}
	h.clock.add(responderTTL/2 + time.Hour)
	h.must(h.keepResponders(ctx))
	next := use()
	if next.KeyID == r.KeyID || !next.cert.NotAfter.After(r.cert.NotAfter) {
		t.Error("it was not replaced at half of its life")
	}
	by := countersign.Daemon("test")
	h.must(h.dropResponders(ctx, by))
	h.must(h.cfg.Keys.Drop(ctx, by, next.KeyID)) // a restored store may lack a key
	h.must(h.keepResponders(ctx))
	if use().KeyID == next.KeyID {
		t.Error("a responder without a key is not replaced")
	}
	if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n != 2 {
		t.Errorf("%d keys and not one of the intermediate and one of the root", n)
	}
	c := h.join("orders", newKey(t, ""))
	h.wantOCSP(c, "good")
	h.clock.add(3 * 7 * day)
	h.must(h.keepResponders(ctx))
	h.must(h.housekeep(ctx, 0, 0))
	page, err := h.bolt.List(ctx, respondersTable().Name, storage.ListOptions{Limit: 100})
	h.must(err)
	if len(page.Items) != 2 {
		t.Errorf("%d records", len(page.Items))
	}
}

// TestResponderLeftByACrash: recorded and not told: the next start tells it; a key that nothing names is dropped.
func TestResponderLeftByACrash(t *testing.T) {
	h := answering(t, nil)
	ctx, i := t.Context(), h.signing()
	serial := serialText((*h.ocsp.inUse.Load())[i.serial].cert.SerialNumber)
	if known, err := h.onRecord(ctx, serial); err != nil || !known {
		t.Errorf("settling would abandon a responder: %v", err)
	}
	_, err := h.cfg.Keys.Create(ctx, admin(), keyring.NewKey{Purpose: keyring.OCSP, Alg: "ES256"})
	h.must(err)
	for _, step := range []struct {
		after time.Duration
		keys  int
	}{{0, 3}, {2 * orphanAge, 2}} {
		h.clock.add(step.after)
		h.must(h.roll(ctx))
		if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n != step.keys {
			t.Errorf("%d keys, want %d", n, step.keys)
		}
	}
}

// TestDamagedResponder: what can't be read of responders keeps nobody from an answer, and is no reason to make more and more.
func TestDamagedResponder(t *testing.T) {
	h := answering(t, nil)
	c := h.join("orders", newKey(t, ""))
	_, err := h.bolt.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: respondersTable().Name, Key: strings.Repeat("0", 32), Value: []byte("{")})
	h.must(err)
	h.wantOCSP(c, "good")
	h.reopen()
	for range 3 {
		if err := h.keepResponders(t.Context()); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("nobody is told: %v", err)
		}
		h.wantOCSP(c, "good")
	}
	h.clock.add(2 * orphanAge)
	h.must(h.roll(t.Context()))
	if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n != 4 {
		t.Errorf("%d keys, and two issuers of two starts", n)
	}
}
