package ca

import (
	"context"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// dead demands that none of them is a credential or can be renewed.
func (h *house) dead(all ...*Certificate) {
	h.t.Helper()
	for _, c := range all {
		wantCode(h.t, h.comes(c), countersign.CodeRevokedPeer)
		record, err := h.Certificate(h.t.Context(), c.Serial)
		if err != nil || record.State != StateRevoked {
			h.t.Errorf("%s: %s %v", c.Serial, record.State, err)
		}
	}
}

func (h *house) mustRevoke(t Target, reason string, lineages int) {
	h.t.Helper()
	n, err := h.RevokeMany(h.t.Context(), admin(), t, reason)
	if err != nil || n != lineages {
		h.t.Fatalf("%+v: %d lineages, want %d (%v)", t, n, lineages, err)
	}
}

func TestRevokeLineage(t *testing.T) {
	h := newHouse(t, nil)
	first := h.join("orders", newKey(t, ""))
	second := h.mustRenew(first)
	third := h.mustRenew(second)
	other := h.join("orders", newKey(t, ""))
	by := h.peer(third)
	_, err := h.RevokeMany(t.Context(), admin(), Target{Lineage: second.Serial}, "keyCompromise")
	wantCode(t, err, countersign.CodeNoCertificate)
	if hint := countersign.AsError(err).Hint; !strings.Contains(hint, first.Serial) {
		t.Errorf("the hint does not tell the lineage: %s", hint)
	}
	h.mustRevoke(Target{Lineage: strings.ToUpper(first.Serial)}, "cessationOfOperation", 1)
	h.dead(first, second, third)
	_, err = h.Issue(t.Context(), by, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeRevokedPeer)
	h.peer(other)
	h.reopen()
	h.dead(first, second, third)
	_, err = h.RevokeMany(t.Context(), admin(), Target{Lineage: first.Serial}, "keyCompromise")
	wantCode(t, err, countersign.CodeAlreadyRevoked)
	h.mustRenew(h.join("orders", newKey(t, "")))
}

func TestRevokeService(t *testing.T) {
	h := newHouse(t, nil)
	var all []*Certificate
	for range 3 {
		first := h.join("orders", newKey(t, ""))
		all = append(all, first, h.mustRenew(first))
	}
	bystander := h.join("gateway", newKey(t, ""))
	h.mustRevoke(Target{Service: "orders"}, "keyCompromise", 3)
	h.dead(all...)
	h.peer(bystander)
	_, err := h.RevokeMany(t.Context(), admin(), Target{Service: "orders"}, "keyCompromise")
	wantCode(t, err, countersign.CodeAlreadyRevoked)
	_, err = h.RevokeMany(t.Context(), admin(), Target{Service: "inventory"}, "keyCompromise")
	wantCode(t, err, countersign.CodeNoCertificate)
	events := h.events(eventRevokedMany)
	if len(events) < 2 || events[0].Outcome != "intent" || events[1].Outcome != "ok" || events[1].Subject != "orders" ||
		!strings.Contains(string(events[1].Detail), `"lineages":3`) {
		t.Errorf("events %+v", events)
	}
}

// TestRevokeServiceGoesOn: what fails in the middle is done by the next call, and by housekeeping.
func TestRevokeServiceGoesOn(t *testing.T) {
	h := newHouse(t, nil)
	all := []*Certificate{h.join("orders", newKey(t, "")), h.join("orders", newKey(t, ""))}
	before := h.cfg.Store
	h.cfg.Store = &failsAfter{Store: before, left: 2}
	if _, err := h.RevokeMany(t.Context(), admin(), Target{Service: "orders"}, "keyCompromise"); err == nil {
		t.Fatal("it did not fail")
	}
	h.cfg.Store = before
	if _, err := h.RevokeMany(t.Context(), admin(), Target{Service: "orders"}, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	h.dead(all...)
	if got := h.events(eventRevokedMany); len(got) != 4 || got[1].Outcome != "failed" || got[3].Outcome != "ok" {
		t.Errorf("events %+v", got)
	}
}

// failsAfter is a store that takes only so many changes more.
type failsAfter struct {
	storage.Store
	left int
}

func (s *failsAfter) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	if s.left--; s.left < 0 {
		return 0, storage.ErrBusy
	}
	return s.Store.Apply(ctx, ops...)
}

// TestRevokeKey: a key is revoked with all certificates that it stands in, and with those that it does not stand in yet.
func TestRevokeKey(t *testing.T) {
	for _, reason := range []string{"keyCompromise", "unspecified"} {
		t.Run(reason, func(t *testing.T) {
			h := newHouse(t, nil)
			key := newKey(t, "")
			first := h.join("orders", key)
			same, err := h.renew(first, key)
			if err != nil {
				t.Fatal(err)
			}
			again := h.join("orders", key)
			next := h.mustRenew(again)
			other := h.join("orders", newKey(t, ""))
			spki, err := spkiHash(key.Public())
			if err != nil {
				t.Fatal(err)
			}
			h.mustRevoke(Target{Key: spki}, reason, 2)
			h.dead(first, same, again, next)
			h.peer(other)
			_, err = h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: request(t, key)})
			wantCode(t, err, countersign.CodeKeyRevoked)
			_, err = h.renew(other, key)
			wantCode(t, err, countersign.CodeKeyRevoked)
			_, err = h.RevokeMany(t.Context(), admin(), Target{Key: spki}, reason)
			wantCode(t, err, countersign.CodeAlreadyRevoked)
		})
	}
}

// TestRevokeKeyNeverCertified: a key that leaked before anybody asked for a certificate of it gets none, ever.
func TestRevokeKeyNeverCertified(t *testing.T) {
	h := newHouse(t, nil)
	key := newKey(t, "")
	spki, err := spkiHash(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	h.mustRevoke(Target{Key: strings.ToUpper(spki)}, "keyCompromise", 0)
	h.clock.add(40 * day)
	if err := h.housekeep(t.Context(), 0, 0); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	_, err = h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeKeyRevoked)
	_, err = h.AddOperator(t.Context(), admin(), "ann", countersign.RoleViewer, request(t, key))
	wantCode(t, err, countersign.CodeKeyRevoked)
	_, err = h.IssueServer(t.Context(), request(t, key))
	wantCode(t, err, countersign.CodeKeyRevoked)
}

// TestRevokeKeyTellsPeers: a key whose certificates are revoked for less is told to peers as compromised all the same.
func TestRevokeKeyTellsPeers(t *testing.T) {
	h := newHouse(t, nil)
	key := newKey(t, "")
	cert := h.join("orders", key)
	if err := h.Revoke(t.Context(), admin(), cert.Serial, "superseded"); err != nil {
		t.Fatal(err)
	}
	spki, err := spkiHash(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.RevokeMany(t.Context(), admin(), Target{Key: spki}, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	_, keys, err := h.revokedOf(t.Context(), "orders", 100, nil, nil)
	if err != nil || len(keys) != 1 || keys[0] != spki {
		t.Errorf("%v %v", keys, err)
	}
}

func TestRevokeManyRefusals(t *testing.T) {
	h := newHouse(t, nil)
	by := h.peer(h.join("orders", newKey(t, "")))
	viewer := countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleViewer, Name: "viewer"}
	service := Target{Service: "orders"}
	for _, tt := range []struct {
		by     countersign.Caller
		target Target
		reason string
		want   countersign.Code
	}{
		{admin(), service, "", countersign.CodeReason},
		{admin(), service, "because", countersign.CodeReason},
		{by, service, "superseded", countersign.CodeRole},
		{viewer, service, "superseded", countersign.CodeRole},
		{admin(), Target{}, "superseded", countersign.CodeParameter},
		{admin(), Target{Service: "orders", Key: strings.Repeat("0", 64)}, "superseded", countersign.CodeParameter},
		{admin(), Target{Service: "orders/"}, "superseded", countersign.CodeParameter},
		{admin(), Target{Key: "00"}, "superseded", countersign.CodeParameter},
		{admin(), Target{Lineage: "x/"}, "superseded", countersign.CodeParameter},
		{admin(), Target{Lineage: strings.Repeat("0", 32)}, "superseded", countersign.CodeNoCertificate},
	} {
		_, err := h.RevokeMany(t.Context(), tt.by, tt.target, tt.reason)
		wantCode(t, err, tt.want)
	}
	h.mustRenew(h.join("orders", newKey(t, "")))
}
