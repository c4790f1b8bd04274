package keyring

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// conflictTries bounds how often a change is planned again because other nodes were faster.
const conflictTries = 4

// NewKey asks for one key. Times have no meaning for other purposes than that of the key.
type NewKey struct {
	Purpose       Purpose
	Root          bool      // of purpose [CA]: for a root, which Places may have made elsewhere
	Alg           string    // "ES256" or "RS256" (2048 bits)
	SignsFrom     time.Time // zero: now
	SignsUntil    time.Time // zero: open
	VerifiesUntil time.Time // zero: open; else SignsUntil is set too and not later
}

// Create makes keys (1 to 32) in one Apply, in the order asked for; they are published when it returns. Purposes
// other than [CA] and [OCSP] take their first keys only (CodeKeyInUse): those of [Token] and [SVID] are replaced by [Ring.Rotate]. It is
// CodeSealed without a KEK.
func (r *Ring) Create(ctx context.Context, by countersign.Caller, keys ...NewKey) ([]Key, error) {
	now := utc(r.cfg.Now())
	if err := checkNew(keys, now); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.create(ctx, by, now, keys)
}

// create is Create of what was checked. r.mu is held.
func (r *Ring) create(ctx context.Context, by countersign.Caller, now time.Time, keys []NewKey) (_ []Key, err error) {
	if r.kek == nil {
		return nil, sealedError()
	}
	c := change{event: eventCreated}
	defer func() { r.unmake(ctx, c.add, err) }()
	made := make([]Key, 0, len(keys))
	for _, n := range keys {
		e, err := r.newEntry(Key{Purpose: n.Purpose, Alg: n.Alg, Published: now, SignsFrom: orNow(n.SignsFrom, now),
			SignsUntil: utc(n.SignsUntil), VerifiesUntil: utc(n.VerifiesUntil)}, n.Root)
		if err != nil {
			return nil, err
		}
		row := e.key.Planned(now)
		row.New = true
		c.add, made, c.detail.Keys = append(c.add, e), append(made, e.key), append(c.detail.Keys, row)
	}
	c.subject = subject(made)
	for range conflictTries {
		st, err := load(ctx, r.cfg.Store)
		if err != nil {
			return nil, storeError(err)
		}
		if err := firstOfItsPurpose(st, made, now); err != nil {
			return nil, err
		}
		if err := r.commit(ctx, by, st, c); err == nil {
			return made, nil
		} else if !errors.Is(err, storage.ErrConflict) {
			return nil, err
		}
	}
	return nil, storeError(storage.ErrConflict)
}

// checkNew judges what is asked for, whatever the store holds.
func checkNew(keys []NewKey, now time.Time) error {
	if len(keys) == 0 || len(keys) > 32 {
		return countersign.Errorf(countersign.CodeParameter, "1 to 32 keys are made at once, not %d", len(keys))
	}
	for _, n := range keys {
		switch {
		case !slices.Contains(Purposes(), n.Purpose):
			return unknownPurpose(n.Purpose)
		case !slices.Contains(algsOf(n.Purpose), n.Alg):
			return countersign.Errorf(countersign.CodeParameter, "the keyring makes no keys of purpose %s for %.16q: it takes %s",
				n.Purpose, n.Alg, strings.Join(algsOf(n.Purpose), ", "))
		case !n.SignsUntil.IsZero() && !n.SignsUntil.After(orNow(n.SignsFrom, now)):
			return countersign.Errorf(countersign.CodeParameter, "the key would cease to sign before it begins")
		case !n.VerifiesUntil.IsZero() && (n.SignsUntil.IsZero() || n.VerifiesUntil.Before(n.SignsUntil)):
			return countersign.Errorf(countersign.CodeParameter, "the key would sign what can't be verified any more")
		}
	}
	return nil
}

func unknownPurpose(p Purpose) *countersign.Error {
	return countersign.Errorf(countersign.CodePurpose, "there is no purpose %.16q: %s, %s, %s, %s and %s are", p, CA, Token, SVID, Audit, OCSP)
}

// firstOfItsPurpose keeps purposes whose keys are not named by certificates from a second set of keys beside the first.
func firstOfItsPurpose(st state, made []Key, now time.Time) error {
	for _, k := range made {
		if k.Purpose.named() {
			continue
		}
		for _, old := range st.keys(k.Purpose) {
			if old.State(now) != Expired {
				return countersign.Errorf(countersign.CodeKeyInUse, "purpose %s has its keys already, %s among them", k.Purpose, old.ID)
			}
		}
	}
	return nil
}

// subject is the kid of one key, the purposes of several.
func subject(keys []Key) string {
	if len(keys) == 1 {
		return keys[0].ID
	}
	purposes := map[string]bool{}
	for _, k := range keys {
		purposes[string(k.Purpose)] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(purposes)), ",")
}

// utc drops the time zone and the monotonic clock: the store keeps neither.
func utc(t time.Time) time.Time { return t.UTC().Round(0) }

func orNow(t, now time.Time) time.Time {
	if t.IsZero() {
		return now
	}
	return utc(t)
}

// RotateOptions choose how to rotate.
type RotateOptions struct {
	Now    bool // sign at once; no continuity for verifiers with old caches. Needs RoleAdmin
	DryRun bool // decide only; new keys have no kid in the plan

	scheduled bool // only if it is due, and without an audit record if it is not
}

// Rotate replaces the keys of purpose [Token] or [SVID]; others are not rotated here (CodePurpose). It needs
// RoleOperator (CodeRole). Keys that are pending already are CodeRotationPending, also if another node published them at
// the same moment; with Now they sign at once. Too many rotations within the lifetime of a token are CodeKeysMany. It is
// CodeSealed without a KEK. A refusal is audited, unless it was a dry run.
func (r *Ring) Rotate(ctx context.Context, by countersign.Caller, p Purpose, o RotateOptions) (Plan, error) {
	plan, err := r.authorisedRotate(ctx, by, p, o)
	if err == nil {
		return plan, nil
	}
	refused := countersign.AsError(err)
	if o.DryRun || !decided(refused.Code) {
		return Plan{}, refused
	}
	subject := string(p)
	if !slices.Contains(Purposes(), p) {
		subject = ""
	}
	if _, err := r.cfg.Audit.Append(ctx, audit.Event{
		Type: eventRotated, Outcome: audit.Denied, By: by, Subject: subject, Code: refused.Code, Detail: detail{SignNow: o.Now},
	}); err != nil {
		return Plan{}, err
	}
	return Plan{}, refused
}

// decided tells refusals from failures: those of commit are in the audit log already.
func decided(code countersign.Code) bool {
	return slices.Contains([]countersign.Code{countersign.CodeRole, countersign.CodePurpose, countersign.CodeSealed,
		countersign.CodeNoKey, countersign.CodeRotationPending, countersign.CodeKeyInUse, countersign.CodeKeysMany}, code)
}

func (r *Ring) authorisedRotate(ctx context.Context, by countersign.Caller, p Purpose, o RotateOptions) (Plan, error) {
	needed := countersign.RoleOperator
	if o.Now {
		needed = countersign.RoleAdmin
	}
	if by.Role < needed {
		return Plan{}, countersign.Errorf(countersign.CodeRole, "this rotation needs the role %s; the caller's is %s", needed, by.Role)
	}
	if !slices.Contains(Purposes(), p) {
		return Plan{}, unknownPurpose(p)
	}
	if !slices.Contains(rotated(), p) {
		return Plan{}, countersign.Errorf(countersign.CodePurpose, "keys of purpose %s are not rotated here: those of %s and %s are", p, Token, SVID)
	}
	if !o.DryRun {
		if err := r.Guard(); err != nil {
			return Plan{}, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rotate(ctx, by, p, o)
}

// rotate makes one rotation, or none if another node makes one meanwhile. r.mu is held.
func (r *Ring) rotate(ctx context.Context, by countersign.Caller, p Purpose, o RotateOptions) (Plan, error) {
	if r.kek == nil {
		return Plan{}, sealedError()
	}
	var before state
	for try := range conflictTries {
		st, err := load(ctx, r.cfg.Store)
		if err != nil {
			return Plan{}, storeError(err)
		}
		if try > 0 && !sameKeys(before, st, p) {
			return Plan{}, overtaken(st.keys(p), r.cfg.Now())
		}
		before = st
		plan, err := r.rotateOnce(ctx, by, st, p, o)
		if !errors.Is(err, storage.ErrConflict) {
			return plan, err
		}
	}
	return Plan{}, storeError(storage.ErrConflict)
}

func (r *Ring) rotateOnce(ctx context.Context, by countersign.Caller, st state, p Purpose, o RotateOptions) (_ Plan, err error) {
	keys := st.keys(p)
	if o.scheduled && !due(keys, r.cfg) {
		return Plan{}, overtaken(keys, r.cfg.Now())
	}
	rot, err := planRotation(keys, r.cfg.Now(), r.cfg.Lead, r.cfg.MaxTTL, o.Now)
	if err != nil {
		return Plan{}, err
	}
	c := change{event: eventRotated, subject: string(p), moved: rot.moved, detail: detail{SignNow: o.Now}}
	var fresh []Key
	defer func() { r.unmake(ctx, c.add, err) }()
	for _, alg := range rot.algs {
		e := entry{key: rot.fresh(p, alg)}
		if !o.DryRun {
			if e, err = r.newEntry(e.key, false); err != nil {
				return Plan{}, err
			}
		}
		c.add, fresh = append(c.add, e), append(fresh, e.key)
	}
	c.detail.Keys = rot.after(keys, fresh)
	plan := Plan{Purpose: p, At: rot.at, SignsFrom: rot.signsFrom, DryRun: o.DryRun, Keys: c.detail.Keys}
	if o.DryRun {
		return plan, nil
	}
	if err := r.commit(ctx, by, st, c); err != nil {
		return Plan{}, err
	}
	r.rotations.Add(1)
	return plan, nil
}

// sameKeys tells whether nobody changed a key of purpose p between two readings.
func sameKeys(a, b state, p Purpose) bool {
	revs := func(st state) map[string]storage.Rev {
		m := map[string]storage.Rev{}
		for _, k := range st.keys(p) {
			m[k.ID] = st.entries[k.ID].rev
		}
		return m
	}
	return maps.Equal(revs(a), revs(b))
}

// overtaken is what the slower of two rotations is told.
func overtaken(keys []Key, now time.Time) error {
	for _, k := range keys {
		if k.State(now) == Pending {
			return pendingError(k)
		}
	}
	return countersign.Errorf(countersign.CodeRotationPending, "another rotation was made at the same moment").
		WithHint("countersign key list shows its keys")
}
