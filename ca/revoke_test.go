package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

func TestRevoke(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	key := newKey(t, "")
	first := h.join("orders", key)
	by := h.peer(first)
	other := h.peer(h.join("gateway", newKey(t, "")))

	wantCode(t, h.Revoke(ctx, admin(), first.Serial, "because"), countersign.CodeReason)
	wantCode(t, h.Revoke(ctx, other, first.Serial, "superseded"), countersign.CodeRole)
	wantCode(t, h.Revoke(ctx, admin(), "00000000000000000000000000000001", ""), countersign.CodeNoCertificate)
	wantCode(t, h.Revoke(ctx, admin(), "zz", ""), countersign.CodeNoCertificate)
	second, err := h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Revoke(ctx, by, first.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, h.Revoke(ctx, admin(), first.Serial, ""), countersign.CodeAlreadyRevoked)
	for _, c := range []*Certificate{first, second} { // the second has the compromised key
		_, err = h.PeerCaller(ctx, c.Chain[0], countersign.Caller{})
		wantCode(t, err, countersign.CodeRevokedPeer)
	}
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeRevokedPeer)
	_, err = h.Issue(ctx, h.joiner("orders"), IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeKeyRevoked)
	h.clock.add(40 * day) // nor ever
	_, err = h.Issue(ctx, h.joiner("orders"), IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeKeyRevoked)
	if got := h.events("certificate.revoked"); len(got) != 2 || got[0].Outcome != "intent" || got[1].Outcome != "ok" {
		t.Errorf("events %+v", got)
	}
}

// TestRevocationThatFails has its end in the log, unless nobody knows it.
func TestRevocationThatFails(t *testing.T) {
	for _, tt := range []struct {
		fail error
		want []audit.Outcome
	}{
		{storage.ErrBusy, []audit.Outcome{audit.Intent, audit.Failed}},
		{storage.ErrUnknown, []audit.Outcome{audit.Intent}},
	} {
		h := newHouse(t, nil)
		cert := h.join("orders", newKey(t, ""))
		h.cfg.Store = &hooked{Store: h.bolt, fail: tt.fail}
		if err := h.Revoke(t.Context(), admin(), cert.Serial, ""); err == nil {
			t.Fatalf("%v: revoked", tt.fail)
		}
		var got []audit.Outcome
		for _, r := range h.events("certificate.revoked") {
			got = append(got, r.Outcome)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v: events %v, want %v", tt.fail, got, tt.want)
		}
		h.cfg.Store = h.bolt
		h.peer(cert)
	}
}

// TestRevokedWhileRenewing revokes the caller's certificate after it was judged and before the commit.
func TestRevokedWhileRenewing(t *testing.T) {
	h := newHouse(t, nil)
	for _, reason := range []string{"superseded", "keyCompromise"} {
		cert := h.join("orders", newKey(t, ""))
		by := h.peer(cert)
		before := h.cfg.Store
		h.cfg.Store = &hooked{Store: before, before: func() {
			h.cfg.Store = before
			if err := h.Revoke(t.Context(), admin(), cert.Serial, reason); err != nil {
				t.Error(err)
			}
		}}
		_, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, newKey(t, ""))})
		wantCode(t, err, countersign.CodeRevokedPeer)
	}
	records, _, err := h.Certificates(t.Context(), Query{Service: "orders"})
	if err != nil || len(records) != 2 {
		t.Fatalf("%d records, %v", len(records), err)
	}
}

// hooked is a store that does something of the test's before or instead of one Apply.
type hooked struct {
	storage.Store
	before func()
	after  error // told although the batch was applied
	fail   error // told, and nothing applied
}

func (s *hooked) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	if s.before != nil {
		s.before()
		s.before = nil
	}
	if s.fail != nil {
		return 0, s.fail
	}
	rev, err := s.Store.Apply(ctx, ops...)
	if err == nil && s.after != nil {
		return 0, s.after
	}
	return rev, err
}

func TestPeer(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	cert := h.join("orders", newKey(t, ""))
	judge := func(leaf *x509.Certificate) error {
		_, err := h.PeerCaller(ctx, leaf, countersign.Caller{})
		return err
	}
	server, err := h.IssueServer(ctx, request(t, newKey(t, "")))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, judge(nil), countersign.CodeNoCredential)
	wantCode(t, judge(server.Chain[0]), countersign.CodeBadCertificate)
	wantCode(t, judge(h.Intermediates()[0]), countersign.CodeBadCertificate)
	wantCode(t, judge(forged(t, cert.Chain[0], h.Intermediates()[0])), countersign.CodeBadCertificate)

	// The cached chain must not outlive the interval, nor the record.
	if err := judge(cert.Chain[0]); err != nil {
		t.Fatal(err)
	}
	h.clock.add(-time.Hour)
	wantCode(t, judge(cert.Chain[0]), countersign.CodeExpiredPeer)
	h.clock.add(26 * time.Hour)
	wantCode(t, judge(cert.Chain[0]), countersign.CodeExpiredPeer)
	h.clock.add(-2 * time.Hour)
	if _, err := h.bolt.Apply(ctx, certificatesTable().Delete(cert.Serial, storage.Cond{})); err != nil {
		t.Fatal(err)
	}
	wantCode(t, judge(cert.Chain[0]), countersign.CodeBadCertificate)
}

// forged has the names and serial of leaf, and an issuer of the right name with another key.
func forged(t *testing.T, leaf, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fake := &x509.Certificate{RawSubject: parent.RawSubject, SubjectKeyId: parent.SubjectKeyId, PublicKey: key.Public()}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int).Set(leaf.SerialNumber), Subject: leaf.Subject, URIs: []*url.URL{leaf.URIs[0]},
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, KeyUsage: leaf.KeyUsage, ExtKeyUsage: leaf.ExtKeyUsage,
		BasicConstraintsValid: true,
	}, fake, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestChainCacheIsBounded(t *testing.T) {
	var c chainCache
	for i := range maxChains + 10 {
		c.add([32]byte{byte(i), byte(i >> 8)})
	}
	if len(c.at) != maxChains || c.order.Len() != maxChains || c.has([32]byte{}) {
		t.Fatalf("%d entries", len(c.at))
	}
}

func TestInventory(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	var serials []string
	for range 5 {
		serials = append(serials, h.join("orders", newKey(t, "")).Serial)
		h.clock.add(time.Minute)
	}
	h.join("gateway", newKey(t, ""))
	if err := h.Revoke(ctx, admin(), serials[1], "superseded"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for after := ""; ; {
		page, next, err := h.Certificates(ctx, Query{Service: "orders", After: after, Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page {
			got = append(got, r.Serial)
		}
		if next == "" {
			break
		}
		after = next
	}
	for i, serial := range serials {
		if len(got) != 5 || got[4-i] != serial {
			t.Fatalf("listed %v, want the reverse of %v", got, serials)
		}
	}
	for state, want := range map[string]int{"": 6, StateValid: 5, StateRevoked: 1, StateExpired: 0} {
		if page, _, err := h.Certificates(ctx, Query{State: state}); err != nil || len(page) != want {
			t.Errorf("state %q: %d records, want %d (%v)", state, len(page), want, err)
		}
	}
	for _, q := range []Query{{State: "odd"}, {Service: "a/b"}, {Limit: 1001}, {Limit: -1}, {Service: "orders", After: "x"}} {
		_, _, err := h.Certificates(ctx, q)
		wantCode(t, err, countersign.CodeParameter)
	}
	_, err := h.Certificate(ctx, "0")
	wantCode(t, err, countersign.CodeNoCertificate)

	h.clock.add(9 * day)
	if err := h.housekeep(ctx, 0, 0); err != nil {
		t.Fatal(err)
	}
	_, err = h.Certificate(ctx, serials[0])
	wantCode(t, err, countersign.CodeNoCertificate)
}

// TestCrashPoints fails each step of an issuance: nothing is returned, and the next start settles the intent.
func TestCrashPoints(t *testing.T) {
	boom := errors.New("the power went")
	for _, tt := range []struct {
		name     string
		store    hooked
		audit    bool // the log is closed under the Apply
		recorded bool
		settled  string
	}{
		{name: "before Apply", store: hooked{fail: boom}, settled: eventAbandoned},
		{name: "busy", store: hooked{fail: storage.ErrBusy}, settled: eventAbandoned},
		{name: "unknown, not applied", store: hooked{fail: storage.ErrUnknown}, settled: eventAbandoned},
		{name: "audit fails after Apply", audit: true, recorded: true, settled: eventRecovered},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHouse(t, nil)
			by, key := h.joiner("orders"), newKey(t, "")
			if tt.audit {
				tt.store.before = func() {
					if err := h.log.Close(); err != nil {
						t.Error(err)
					}
				}
			}
			tt.store.Store = h.bolt
			h.cfg.Store = &tt.store
			if cert, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, key)}); err == nil || cert != nil {
				t.Fatalf("got %v, %v", cert, err)
			}
			h.reopen()
			settled := h.events(tt.settled)
			if len(settled) != 1 {
				t.Fatalf("%d events %s", len(settled), tt.settled)
			}
			_, err := h.Certificate(t.Context(), settled[0].Subject)
			if (err == nil) != tt.recorded {
				t.Errorf("record: %v", err)
			}
			cert, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, key)})
			if err != nil || (cert.Serial == settled[0].Subject) != tt.recorded {
				t.Errorf("the client tries again: %v, %v", cert, err)
			}
			h.reopen()
			if got := len(h.events(tt.settled)); got != 1 {
				t.Errorf("settled %d times", got)
			}
		})
	}
}

// TestOperatorOfALostEvent: an operator who is recorded when the log fails has its role there all the same.
func TestOperatorOfALostEvent(t *testing.T) {
	h := newHouse(t, nil)
	h.cfg.Store = &hooked{Store: h.bolt, before: func() {
		if err := h.log.Close(); err != nil {
			t.Error(err)
		}
	}}
	if _, err := h.AddOperator(t.Context(), admin(), "mallory", countersign.RoleAdmin, request(t, newKey(t, ""))); err == nil {
		t.Fatal("answered without a record")
	}
	h.reopen()
	recovered, intents := h.events(eventRecovered), h.events(eventIntent)
	if _, err := h.operator(t.Context(), "mallory"); err != nil || len(recovered) != 1 {
		t.Fatalf("%v, %d recovered", err, len(recovered))
	}
	last := intents[len(intents)-1]
	if last.Subject != recovered[0].Subject || !strings.Contains(string(last.Detail), `"role":"admin"`) {
		t.Errorf("the intent does not tell the role: %+v %s", last, last.Detail)
	}
}

// TestUnknownButApplied: the outcome is read, not guessed.
func TestUnknownButApplied(t *testing.T) {
	h := newHouse(t, nil)
	by := h.joiner("orders")
	h.cfg.Store = &hooked{Store: h.bolt, after: storage.ErrUnknown}
	cert, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, newKey(t, ""))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Certificate(t.Context(), cert.Serial); err != nil {
		t.Fatal(err)
	}
}
