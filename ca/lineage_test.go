package ca

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// renew asks for the successor of c, as its holder by mTLS would.
func (h *house) renew(c *Certificate, key crypto.Signer) (*Certificate, error) {
	by, err := h.PeerCaller(h.t.Context(), c.Chain[0], countersign.Caller{})
	if err != nil {
		return nil, err
	}
	return h.Issue(h.t.Context(), by, IssueRequest{CSR: request(h.t, key)})
}

func (h *house) mustRenew(c *Certificate) *Certificate {
	h.t.Helper()
	next, err := h.renew(c, newKey(h.t, ""))
	if err != nil {
		h.t.Fatal(err)
	}
	return next
}

// comes tells whether c is a credential.
func (h *house) comes(c *Certificate) error {
	_, err := h.PeerCaller(h.t.Context(), c.Chain[0], countersign.Caller{})
	return err
}

// TestLineageGoesOn: a line of renewals; older ones are credentials until they end.
func TestLineageGoesOn(t *testing.T) {
	h := newHouse(t, nil)
	first := h.join("orders", newKey(t, ""))
	line := []*Certificate{first}
	for range 5 {
		line = append(line, h.mustRenew(line[len(line)-1]))
	}
	for _, c := range line {
		h.peer(c)
		record, err := h.Certificate(t.Context(), c.Serial)
		if err != nil || record.Lineage != first.Serial {
			t.Errorf("%+v %v", record, err)
		}
	}
	if other := h.join("orders", newKey(t, "")); h.mustRenew(other) == nil {
		t.Error("another enrolment of the same service is no lineage of its own")
	}
}

// TestLostAnswer: who asks again with the same key gets the same certificate; with another key the one that was never
// seen is replaced.
func TestLostAnswer(t *testing.T) {
	h := newHouse(t, nil)
	first, key := h.join("orders", newKey(t, "")), newKey(t, "")
	lost, err := h.renew(first, key)
	if err != nil {
		t.Fatal(err)
	}
	again, err := h.renew(first, key)
	if err != nil || again.Serial != lost.Serial {
		t.Fatalf("another certificate: %v", err)
	}
	third := h.mustRenew(first)
	record, err := h.Certificate(t.Context(), lost.Serial)
	if err != nil || record.State != StateRevoked || record.Reason != "superseded" || record.SupersededBy != third.Serial {
		t.Errorf("%+v %v", record, err)
	}
	h.mustRenew(third)
	h.peer(first)
}

// TestFork: a renewal by a serial whose successor has come blocks all that the lineage has, and a new enrolment leads out.
func TestFork(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	copied := h.join("orders", newKey(t, ""))
	owners := h.mustRenew(copied)
	h.peer(owners)
	bystander := h.join("orders", newKey(t, ""))
	_, err := h.renew(copied, newKey(t, ""))
	wantCode(t, err, countersign.CodeRevokedPeer)
	for _, c := range []*Certificate{copied, owners} {
		wantCode(t, h.comes(c), countersign.CodeRevokedPeer)
		record, err := h.Certificate(ctx, c.Serial)
		if err != nil || record.State != StateRevoked || record.Reason != reasonKeyCompromise {
			t.Errorf("%+v %v", record, err)
		}
	}
	h.peer(bystander)
	if got := h.events(eventBlocked); len(got) != 2 || got[0].Outcome != "intent" || got[1].Outcome != "ok" || got[1].Subject != copied.Serial {
		t.Errorf("events %+v", got)
	}
	h.reopen()
	wantCode(t, h.comes(owners), countersign.CodeRevokedPeer)
	h.mustRenew(h.join("orders", newKey(t, "")))
}

// TestSupersededComes: whoever comes with a certificate that was replaced unseen is the second holder.
func TestSupersededComes(t *testing.T) {
	h := newHouse(t, nil)
	copied := h.join("orders", newKey(t, ""))
	owners := h.mustRenew(copied) // the owner has it, and has not come yet
	thiefs := h.mustRenew(copied)
	h.peer(thiefs)
	wantCode(t, h.comes(owners), countersign.CodeRevokedPeer)
	for _, c := range []*Certificate{copied, owners, thiefs} {
		wantCode(t, h.comes(c), countersign.CodeRevokedPeer)
	}
	if len(h.events(eventBlocked)) != 2 {
		t.Error("no alarm")
	}
}

// TestSupersededByHandIsNoFork: an operator's reason is no proof of a second holder.
func TestSupersededByHandIsNoFork(t *testing.T) {
	h := newHouse(t, nil)
	old := h.join("orders", newKey(t, ""))
	next := h.mustRenew(old)
	if err := h.Revoke(t.Context(), admin(), old.Serial, "superseded"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, h.comes(old), countersign.CodeRevokedPeer)
	h.mustRenew(next)
}

// TestRevokedWithItsSuccessors: the successors of a revoked certificate are refused, and so are its predecessors' renewals.
func TestRevokedWithItsSuccessors(t *testing.T) {
	h := newHouse(t, nil)
	first := h.join("orders", newKey(t, ""))
	second := h.mustRenew(first)
	third := h.mustRenew(second)
	if err := h.Revoke(t.Context(), admin(), second.Serial, reasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Certificate{first, second, third} {
		_, err := h.renew(c, newKey(t, ""))
		wantCode(t, err, countersign.CodeRevokedPeer)
	}
}

// TestExpiredBlocksNothing: an old certificate that has ended is refused, and that is all.
func TestExpiredBlocksNothing(t *testing.T) {
	h := newHouse(t, nil)
	old := h.join("orders", newKey(t, ""))
	h.clock.add(20 * 3600e9)
	next := h.mustRenew(old)
	h.peer(next)
	h.clock.add(5 * 3600e9)
	_, err := h.renew(old, newKey(t, ""))
	wantCode(t, err, countersign.CodeExpiredPeer)
	h.mustRenew(next)
}

// expired asks for the successor of c, which has ended.
func (h *house) expired(c *Certificate) (*Certificate, error) {
	by, err := h.ExpiredCaller(h.t.Context(), c.Chain[0], countersign.Caller{})
	if err != nil {
		return nil, err
	}
	if by.Role != countersign.RoleNone {
		h.t.Errorf("an ended certificate has the role %s", by.Role)
	}
	return h.Issue(h.t.Context(), by, IssueRequest{CSR: request(h.t, newKey(h.t, ""))})
}

// TestGrace: the newest certificate that anybody came with can be renewed for a while after its end, and no other.
func TestGrace(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	first := h.join("orders", newKey(t, ""))
	_, err := h.ExpiredCaller(ctx, first.Chain[0], countersign.Caller{})
	wantCode(t, err, countersign.CodeExpiredPeer) // it has not ended

	h.clock.add(12 * 3600e9)
	second := h.mustRenew(first)
	h.peer(second)
	h.clock.add(3*day + 10*3600e9)
	_, err = h.expired(first)
	wantCode(t, err, countersign.CodeRevokedPeer)
	lost, err := h.expired(second)
	if err != nil {
		t.Fatal(err)
	}
	third, err := h.expired(second) // the answer was lost
	if err != nil || third.Serial == lost.Serial {
		t.Fatalf("after a lost answer: %v", err)
	}
	h.peer(third)
	_, err = h.expired(second)
	wantCode(t, err, countersign.CodeRevokedPeer)
	if len(h.events(eventBlocked)) != 0 {
		t.Error("an old certificate that had ended blocked the lineage")
	}
	h.mustRenew(third)
}

// TestGraceRefused: what is no credential otherwise is none after its end, and the grace ends too.
func TestGraceRefused(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	late, revoked, disabled := h.join("orders", newKey(t, "")), h.join("gateway", newKey(t, "")), h.join("inventory", newKey(t, ""))
	if err := h.Revoke(ctx, admin(), revoked.Serial, ""); err != nil {
		t.Fatal(err)
	}
	h.clock.add(2 * day)
	_, err := h.expired(revoked)
	wantCode(t, err, countersign.CodeRevokedPeer)
	h.apply(2, service("orders"))
	_, err = h.expired(disabled)
	wantCode(t, err, countersign.CodeNotInPolicy)
	by, err := h.ExpiredCaller(ctx, late.Chain[0], countersign.Caller{})
	if err != nil || by.Method != countersign.ByExpired {
		t.Fatalf("%+v %v", by, err)
	}
	h.clock.add(2*day + 1)
	_, err = h.expired(late)
	wantCode(t, err, countersign.CodeExpiredPeer)
}

// TestSeenWhileReplaced: first sight comes between judging that nobody has seen the successor and replacing it.
func TestSeenWhileReplaced(t *testing.T) {
	h := newHouse(t, nil)
	copied := h.join("orders", newKey(t, ""))
	owners := h.mustRenew(copied)
	by := h.peer(copied)
	hook := &hooked{}
	h.wrap = func(s storage.Store) storage.Store { hook.Store = s; return hook }
	h.reopen()
	hook.before = func() {
		hook.before = func() {}
		h.peer(owners)
	}
	_, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeRevokedPeer)
	wantCode(t, h.comes(owners), countersign.CodeRevokedPeer)
}

// TestSightIsDurableFirst: nobody is served with a certificate whose first sight can't be recorded.
func TestSightIsDurableFirst(t *testing.T) {
	h := newHouse(t, nil)
	cert := h.join("orders", newKey(t, ""))
	broken := &hooked{}
	h.wrap = func(s storage.Store) storage.Store { broken.Store = s; return broken }
	broken.fail = nil
	h.reopen()
	broken.fail = storage.ErrBusy
	wantCode(t, h.comes(cert), countersign.CodeBusy)
	broken.fail = nil
	h.peer(cert)
	broken.fail = storage.ErrBusy
	h.judged = judged{}
	h.peer(cert) // once for each serial
}

// TestSweepGoesOn: a block whose end was cut off is in force all the same, and Run marks the rest.
func TestSweepGoesOn(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	first := h.join("orders", newKey(t, ""))
	second := h.mustRenew(first)
	h.peer(second)
	store := &hooked{}
	h.wrap = func(s storage.Store) storage.Store { store.Store = s; return store }
	h.reopen()
	applied := 0
	store.before = nil
	cut := &cutting{Store: store, after: &applied}
	h.cfg.Store = cut
	cut.on = true
	if err := h.block(ctx, admin(), first.Serial, reasonKeyCompromise, "a test"); err == nil {
		t.Fatal("the sweep was not cut off")
	}
	cut.on = false
	wantCode(t, h.comes(second), countersign.CodeRevokedPeer)
	if r, _ := h.Certificate(ctx, second.Serial); r.State != StateValid {
		t.Fatal("it is marked already")
	}
	h.reopen()
	if err := h.housekeep(ctx, 1, 1); err != nil {
		t.Fatal(err)
	}
	if r, _ := h.Certificate(ctx, second.Serial); r.State != StateRevoked {
		t.Error("it is not marked")
	}
	if err := h.sweepLeft(ctx); err != nil {
		t.Error(err)
	}
}

// cutting fails every Apply but the first while it is on.
type cutting struct {
	storage.Store
	on    bool
	after *int
}

func (c *cutting) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	if c.on {
		if *c.after++; *c.after > 1 {
			return 0, errOff
		}
	}
	return c.Store.Apply(ctx, ops...)
}

// holder is owner or thief in the property: what it holds, the newest last.
type holder struct {
	name string
	has  []*Certificate
}

// TestLineageProperty draws every interleaving of two who hold one copied key: each comes and renews, with its newest
// certificate or an older one. The second to come after the other was seen is refused, and never do both go on.
func TestLineageProperty(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		h := newHouse(t, nil)
		defer h.close()
		copied := h.join("orders", newKey(t, ""))
		both := []*holder{{"owner", []*Certificate{copied}}, {"thief", []*Certificate{copied}}}
		var seen [2]bool // came with something of its own
		for range rapid.IntRange(1, 10).Draw(r, "steps") {
			n := rapid.IntRange(0, 1).Draw(r, "who")
			p := both[n]
			c := p.has[rapid.IntRange(0, len(p.has)-1).Draw(r, "with")]
			own := c != copied
			var err error
			if rapid.Bool().Draw(r, "renews") {
				var next *Certificate
				if next, err = h.renew(c, newKey(t, "")); err == nil {
					p.has = append(p.has, next)
				}
			} else {
				err = h.comes(c)
			}
			if err == nil && own {
				if seen[1-n] {
					r.Fatalf("%s comes with %s after the other was seen", p.name, c.Serial)
				}
				seen[n] = true
			}
			var ours *countersign.Error
			if err != nil && (!errors.As(err, &ours) || ours.Code != countersign.CodeRevokedPeer) {
				r.Fatal(err)
			}
		}
		// Both come once more, and again: at most one of them gets anything the second time.
		var got [2]bool
		for round := range 2 {
			for n, p := range both {
				next, err := h.renew(p.has[len(p.has)-1], newKey(t, ""))
				if got[n] = err == nil; err == nil {
					p.has = append(p.has, next)
				}
				r.Log(fmt.Sprint(round, p.name, err))
			}
		}
		if got[0] && got[1] {
			r.Fatal("both go on")
		}
	})
}

// TestAlternatingRenewals: in turns by two holders of one key: the first fork ends it ("the two newest may renew" saw none).
func TestAlternatingRenewals(t *testing.T) {
	h := newHouse(t, nil)
	copied := h.join("orders", newKey(t, ""))
	mine, theirs := copied, copied
	for n := range 10_000 {
		next, err := h.renew(mine, newKey(t, ""))
		if err != nil {
			if n > 3 {
				t.Errorf("seen after %d renewals", n)
			}
			return
		}
		mine, theirs = theirs, next
	}
	t.Error("no fork was seen")
}
