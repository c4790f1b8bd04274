package keyring

import (
	"context"
	"crypto"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// The event types of the ring.
const (
	eventCreated = "key.created"
	eventRotated = "key.rotated"
	eventRetired = "key.retired" // before or at the end of its time, by command
	eventDeleted = "key.deleted" // the record of an expired key of a purpose that is rotated

	eventImported = "key.imported" // a key of purpose ca that was made elsewhere
)

// settleAfter is how long a change may be unsettled before [Ring.Run] takes it that the node that made it is gone.
const settleAfter = 10 * time.Second

// detail is the Detail of the ring's audit events: "intent" and "ok" of one change have the same Change and Keys.
type detail struct {
	Change      string       `json:"change,omitempty"`
	Keys        []PlannedKey `json:"keys,omitempty"`
	Deleted     []string     `json:"deleted,omitempty"`
	SignNow     bool         `json:"now,omitempty"`         // rotation that did not wait for the lead
	Compromised bool         `json:"compromised,omitempty"` // retirement before the last token of the key had expired
	Recovered   bool         `json:"recovered,omitempty"`   // written for a change whose node did not come to it
	By          string       `json:"by,omitempty"`          // who made the change, in a recovered event
}

// change is all that one Apply does.
type change struct {
	event   string
	subject string // of the event: a kid or purposes
	detail  detail
	add     []entry
	moved   []Key
	drop    []string
	rewrap  *rewrap // nil: the KEK stays
}

// newEntry makes a new key where Config.Places says: sealed, or in a token. root tells keys of roots from others of purpose CA.
func (r *Ring) newEntry(k Key, root bool) (entry, error) {
	if place := r.cfg.Places.of(k.Purpose, root); place.Managed() {
		return r.newManaged(k, place)
	}
	var key crypto.Signer
	// A kid is typed as an argument of commands: one that begins like a flag would be taken for one in the worst moment.
	for k.ID == "" || k.ID[0] == '-' {
		var err error
		if key, err = generate(k.Alg); err != nil {
			return entry{}, countersign.Errorf(countersign.CodeInternal, "internal error").Because(err)
		}
		k.Public = key.Public()
		if k.ID, err = thumbprint(k.Public); err != nil {
			return entry{}, err
		}
	}
	closed, err := seal(r.kek, k.ID, k.Purpose, key)
	if err != nil {
		return entry{}, fmt.Errorf("seal key %s: %w", k.ID, err)
	}
	rec, err := newRecord(k, closed)
	return entry{key: k, record: rec}, err
}

// next is the state after c, its records not yet having a revision.
func (st state) next(c change, h head) state {
	entries := maps.Clone(st.entries)
	for _, k := range c.moved {
		e := entries[k.ID]
		e.key = k
		e.record.SignsFrom, e.record.SignsUntil, e.record.VerifiesUntil = k.SignsFrom, k.SignsUntil, k.VerifiesUntil
		entries[k.ID] = e
	}
	for _, e := range c.add {
		entries[e.key.ID] = e
	}
	h.Doomed = slices.Clone(st.head.Doomed)
	for _, id := range c.drop {
		if uri := entries[id].record.KMS; uri != "" {
			h.Doomed = append(h.Doomed, uri)
		}
		delete(entries, id)
	}
	if c.rewrap != nil {
		st.check = c.rewrap.check
		for _, e := range c.rewrap.entries {
			entries[e.key.ID] = e
		}
	}
	h.Keys = slices.Sorted(maps.Keys(entries))
	st.head, st.entries = h, entries
	return st
}

// ops turn the store from st into next, on condition that nobody else did anything meanwhile.
func (c change) ops(st, next state) ([]storage.Op, error) {
	op, err := headRecords().Put(headKey, next.head, time.Time{}, unchanged(st.headRev))
	if err != nil {
		return nil, err
	}
	// No key is ever sealed under a KEK that is not the store's.
	ops := []storage.Op{op, checkRecords().Check(kekKey, unchanged(st.checkRev))}
	if c.rewrap != nil {
		if ops, err = c.rewrap.ops(st, op); err != nil {
			return nil, err
		}
	}
	for _, e := range c.add {
		op, err := keyRecords().Put(e.key.ID, e.record, time.Time{}, storage.Cond{Absent: true})
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	for _, k := range c.moved {
		op, err := keyRecords().Put(k.ID, next.entries[k.ID].record, time.Time{}, storage.Cond{Rev: st.entries[k.ID].rev})
		if err != nil {
			return nil, err
		}
		ops = append(ops, op)
	}
	for _, id := range c.drop {
		ops = append(ops, keyRecords().Delete(id, storage.Cond{Rev: st.entries[id].rev}))
	}
	return ops, nil
}

// commit makes c on top of st, in the order that the package comment describes. It answers storage.ErrConflict
// unchanged: the caller reads and decides again. r.mu is held.
func (r *Ring) commit(ctx context.Context, by countersign.Caller, st state, c change) error {
	at := utc(r.cfg.Now())
	c.detail.Change = newChangeID()
	next := st.next(c, head{Change: c.detail.Change, At: at, Unsettled: &pending{
		Type: c.event, Subject: c.subject, By: by.Name, Detail: c.detail,
	}})
	ops, err := c.ops(st, next)
	if err != nil {
		return err
	}
	// All keys, new and old, unseal before anything is written: nothing is built on a damaged ring, and nothing can fail
	// between Apply and the swap.
	kek := r.kek
	if c.rewrap != nil {
		kek = c.rewrap.kek
	}
	snap, err := r.prepareWith(kek, next)
	if err != nil {
		return storeError(err)
	}
	// c takes the place of an unsettled change in the head, after which nobody would tell its outcome any more.
	if open := st.head.Unsettled; open != nil {
		if err := r.tellRecovered(ctx, open); err != nil {
			return err
		}
	}
	if _, err := r.cfg.Audit.Append(ctx, c.record(by, audit.Intent, "")); err != nil {
		return err
	}
	// Crash here: an intent that came to nothing.
	rev, err := r.cfg.Store.Apply(ctx, ops...)
	// From here on the caller's going away must not leave the change half told.
	ctx = context.WithoutCancel(ctx)
	if errors.Is(err, storage.ErrUnknown) {
		snap, err = r.resolve(ctx, kek, c.detail.Change, err)
	} else {
		snap.state.setRev(c, rev)
	}
	if err != nil {
		return r.abandon(ctx, by, c, err)
	}
	// Crash here: the change is in force, named by the intent; Run of any node settles it.
	r.swap(snap)
	if _, err := r.cfg.Audit.Append(ctx, c.record(by, audit.OK, "")); err != nil {
		known := countersign.AsError(err)
		return countersign.Errorf(known.Code, "the keys are changed, but the audit log could not be told so yet").
			WithHint("do not repeat it; countersign key list shows the keys").After(known.RetryAfter).Because(err)
	}
	if err := r.settled(ctx, snap.state); err != nil {
		// Run does it later: the event is then repeated, marked as recovered.
		r.cfg.Logger.Warn("keyring: change not marked as settled", "change", c.detail.Change, "error", err)
	}
	return nil
}

// resolve finds out whether a change of unknown outcome was made: the head tells. It never guesses.
func (r *Ring) resolve(ctx context.Context, kek cipher.AEAD, id string, unknown error) (*snapshot, error) {
	st, err := load(ctx, r.cfg.Store)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", unknown, err)
	}
	if st.head.Change != id {
		return nil, unknown
	}
	return r.prepareWith(kek, st)
}

// abandon records that c was not made, or that nobody knows, and why.
func (r *Ring) abandon(ctx context.Context, by countersign.Caller, c change, err error) error {
	public := storeError(err)
	if _, err := r.cfg.Audit.Append(ctx, c.record(by, audit.Failed, public.Code)); err != nil {
		r.cfg.Logger.Error("keyring: failed change not recorded", "change", c.detail.Change, "error", err)
	}
	if errors.Is(err, storage.ErrConflict) {
		return err
	}
	return public
}

// settled takes the change out of the head again.
func (r *Ring) settled(ctx context.Context, st state) error {
	st.head.Unsettled = nil
	return r.writeHead(ctx, st)
}

// writeHead replaces the head by that of st, which is otherwise what is in force.
func (r *Ring) writeHead(ctx context.Context, st state) (err error) {
	op, err := headRecords().Put(headKey, st.head, time.Time{}, unchanged(st.headRev))
	if err != nil {
		return err
	}
	if st.headRev, err = r.cfg.Store.Apply(ctx, op); err != nil {
		return err
	}
	// Keys and signers are the same: nobody needs to be woken.
	snap := *r.snap.Load()
	snap.state = st
	r.snap.Store(&snap)
	return nil
}

// settle finishes what another node, or this one before a crash, left unsettled. r.mu is held.
func (r *Ring) settle(ctx context.Context) error {
	st := r.snap.Load().state
	open := st.head.Unsettled
	if open == nil || r.cfg.Now().Before(st.head.At.Add(settleAfter)) {
		return nil
	}
	if err := r.tellRecovered(ctx, open); err != nil {
		return err
	}
	err := r.settled(ctx, st)
	if errors.Is(err, storage.ErrConflict) {
		return nil // another node did, or went on; the next reading shows
	}
	return err
}

// tellRecovered writes the outcome of a change whose node may not have come to it.
func (r *Ring) tellRecovered(ctx context.Context, open *pending) error {
	d := open.Detail
	d.Recovered, d.By = true, open.By
	_, err := r.cfg.Audit.Append(ctx, audit.Event{
		Type: open.Type, Outcome: audit.OK, By: countersign.Daemon("settle keys"), Subject: open.Subject, Detail: d,
	})
	return err
}

func (c change) record(by countersign.Caller, outcome audit.Outcome, code countersign.Code) audit.Event {
	return audit.Event{Type: c.event, Outcome: outcome, By: by, Subject: c.subject, Code: code, Detail: c.detail}
}

// setRev notes the revision that one Apply gave to all that it wrote.
func (st *state) setRev(c change, rev storage.Rev) {
	st.headRev = rev
	set := func(id string) {
		e := st.entries[id]
		e.rev = rev
		st.entries[id] = e
	}
	for _, k := range c.moved {
		set(k.ID)
	}
	for _, e := range c.add {
		set(e.key.ID)
	}
	if c.rewrap != nil {
		st.checkRev = rev
		for _, e := range c.rewrap.entries {
			set(e.key.ID)
		}
	}
}

// storeError is what a caller may be told of a failed reading or Apply.
func storeError(err error) *countersign.Error {
	switch {
	case errors.Is(err, storage.ErrUnknown): // first: the reading after it may have failed too
		return countersign.Errorf(countersign.CodeUnknownOutcome, "it is not known whether the keys were changed").
			WithHint("countersign key list shows the keys; repeat only if they are as before").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrConflict):
		return countersign.Errorf(countersign.CodeBusy, "another change of the keys was made at the same moment").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrBusy):
		return countersign.Errorf(countersign.CodeBusy, "the store is busy or full; the keys were not changed").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrCorrupt):
		return countersign.Errorf(countersign.CodeDamaged, "a record of the keyring is damaged").Because(err)
	}
	return countersign.AsError(err)
}

func newChangeID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(id[:])
}
