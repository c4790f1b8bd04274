package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// RetireOptions choose how to retire.
type RetireOptions struct {
	Compromised bool // at once, before its last token has expired: those tokens die
	DryRun      bool // decide only; a new key has no kid in the plan
}

// Retire takes the key id of purpose [Token] or [SVID] (else CodePurpose) out of the published keys now. It needs RoleAdmin (CodeRole). A key that tokens may still depend on, because it signs, is to sign, or signed
// one that has not expired, is CodeKeyInUse, which says when it may go; with Compromised it goes all the same, and another
// key of its algorithm takes its place in the same Apply: see [Plan].Note. An expired key stays as it is, and nothing is
// recorded. An unknown id is CodeNoKey. It is CodeSealed without a KEK. A refusal is audited, unless it was a dry run.
//
// The order and the crash points are those of every change of the ring; see the package comment.
func (r *Ring) Retire(ctx context.Context, by countersign.Caller, id string, o RetireOptions) (Plan, error) {
	plan, err := r.authorisedRetire(ctx, by, id, o)
	if err == nil {
		return plan, nil
	}
	refused := countersign.AsError(err)
	if o.DryRun || !decided(refused.Code) {
		return Plan{}, refused
	}
	subject := id
	if _, known := r.Key(id); !known {
		subject = "" // any text: it comes from outside
	}
	if _, err := r.cfg.Audit.Append(ctx, audit.Event{
		Type: eventRetired, Outcome: audit.Denied, By: by, Subject: subject, Code: refused.Code,
		Detail: detail{Compromised: o.Compromised},
	}); err != nil {
		return Plan{}, err
	}
	return Plan{}, refused
}

func (r *Ring) authorisedRetire(ctx context.Context, by countersign.Caller, id string, o RetireOptions) (Plan, error) {
	if by.Role < countersign.RoleAdmin {
		return Plan{}, countersign.Errorf(countersign.CodeRole, "retiring a key needs the role %s; the caller's is %s", countersign.RoleAdmin, by.Role)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kek == nil {
		return Plan{}, sealedError()
	}
	// Another change in between is no obstacle: what is left to do is decided anew.
	for range conflictTries {
		st, err := load(ctx, r.cfg.Store)
		if err != nil {
			return Plan{}, storeError(err)
		}
		plan, err := r.retireOnce(ctx, by, st, id, o)
		if !errors.Is(err, storage.ErrConflict) {
			return plan, err
		}
	}
	return Plan{}, storeError(storage.ErrConflict)
}

func (r *Ring) retireOnce(ctx context.Context, by countersign.Caller, st state, id string, o RetireOptions) (_ Plan, err error) {
	e, ok := st.entries[id]
	switch {
	case !ok:
		return Plan{}, countersign.Errorf(countersign.CodeNoKey, "there is no key with this kid").
			WithHint("countersign key list shows the keys")
	case !slices.Contains(rotated(), e.key.Purpose):
		return Plan{}, countersign.Errorf(countersign.CodePurpose, "keys of purpose %s are not retired here: those of %s and %s are", e.key.Purpose, Token, SVID)
	}
	keys := st.keys(e.key.Purpose)
	ret, err := planRetirement(keys, e.key, r.cfg.Now(), r.cfg.Lead, r.cfg.MaxTTL, o.Compromised)
	if err != nil {
		return Plan{}, err
	}
	c := change{event: eventRetired, subject: id, moved: ret.moved, detail: detail{Compromised: o.Compromised}}
	var fresh []Key
	defer func() { r.unmake(ctx, c.add, err) }()
	for _, k := range ret.fresh {
		added := entry{key: k}
		if !o.DryRun {
			if added, err = r.newEntry(k, false); err != nil {
				return Plan{}, err
			}
		}
		c.add, fresh = append(c.add, added), append(fresh, added.key)
	}
	c.detail.Keys = ret.after(keys, fresh)
	plan := Plan{Purpose: e.key.Purpose, At: ret.at, SignsFrom: ret.signsFrom, DryRun: o.DryRun, Keys: c.detail.Keys, Note: ret.note}
	if o.DryRun || len(ret.moved) == 0 {
		return plan, nil
	}
	return plan, r.commit(ctx, by, st, c)
}

// retirement is one decided retirement: times of existing keys, and what is to be generated in its place.
type retirement struct {
	at        time.Time
	purpose   Purpose
	signsFrom time.Time // of the key that takes over, if one does
	moved     []Key     // existing keys with their new times, the retired one first; none: it was expired already
	fresh     []Key     // but for their public halves
	note      string
}

// planRetirement decides the retirement of gone, one of keys, all of one purpose. It is pure.
func planRetirement(keys []Key, gone Key, now time.Time, lead, maxTTL time.Duration, compromised bool) (retirement, error) {
	now = utc(now)
	r := retirement{at: now}
	state := gone.State(now)
	if state == Expired {
		r.note = fmt.Sprintf("key %s is not published any more: nothing is left to do", gone.ID)
		return r, nil
	}
	if !compromised {
		if err := inUse(gone, now); err != nil {
			return r, err
		}
		r.note = fmt.Sprintf("key %s is not published any more: its last token has expired", gone.ID)
	} else {
		r.note = fmt.Sprintf("key %s is not published any more: all tokens that it signed are refused", gone.ID)
	}
	if !ended(gone.SignsUntil, now) {
		gone.SignsUntil = now
	}
	gone.VerifiesUntil = now
	r.moved = []Key{gone}
	r.purpose = gone.Purpose
	rest := slices.DeleteFunc(slices.Clone(keys), func(k Key) bool { return k.ID == gone.ID || k.Alg != gone.Alg })
	switch state {
	case Active:
		r.replaceActive(rest)
	case Pending:
		r.replacePending(gone, rest, lead, maxTTL)
	}
	return r, nil
}

// inUse refuses to retire a key that tokens may still depend on. The verifying time has the skew of other clocks in it; the
// last token itself has expired before that.
func inUse(k Key, now time.Time) error {
	refuse := func(format string, a ...any) *countersign.Error {
		return countersign.Errorf(countersign.CodeKeyInUse, format, a...)
	}
	last := k.VerifiesUntil.Add(-skew)
	switch {
	case k.State(now) == Pending:
		return refuse("key %s is published and is to sign from %s: it can be retired after it was rotated out", k.ID, k.SignsFrom.Format(time.RFC3339)).
			WithHint("if its private half has leaked, add --compromised: another key takes its place")
	case k.VerifiesUntil.IsZero():
		return refuse("key %s signs, and nothing ends that yet: it can be retired after it was rotated out and its last token has expired", k.ID).
			WithHint("countersign key rotate %s; or, if its private half has leaked, add --compromised: its tokens die, another key signs at once", k.Purpose)
	case now.Before(last):
		return refuse("tokens that key %s signed may live until %s: it can be retired from then on", k.ID, last.UTC().Format(time.RFC3339)).
			WithHint("wait until then; or, if its private half has leaked, add --compromised: its tokens die now")
	}
	return nil
}

// replaceActive sees that another key of the algorithm signs from the instant at which the active one goes. A pending key
// that verifiers may know is better than a new one; among several, the one that was to sign first.
func (r *retirement) replaceActive(rest []Key) {
	if slices.ContainsFunc(rest, func(k Key) bool { return k.State(r.at) == Active }) {
		return
	}
	r.signsFrom = r.at
	if next, ok := firstPending(rest, r.at); ok {
		next.SignsFrom = r.at
		r.moved = append(r.moved, next)
		r.note += fmt.Sprintf("; key %s, which was waiting, signs at once in its place", next.ID)
		return
	}
	r.add(r.moved[0].Alg)
	r.note += "; a new key signs at once in its place, and verifiers with an older copy of the JWKS must fetch it again"
}

// replacePending gives a new key the full lead: the one that was to wait is no longer trusted, and the active one was to
// cease when that one began. So the active one signs on until the new one may.
func (r *retirement) replacePending(gone Key, rest []Key, lead, maxTTL time.Duration) {
	r.signsFrom = r.at.Add(lead)
	next, waiting := firstPending(rest, r.at)
	if waiting {
		r.signsFrom = next.SignsFrom
	}
	for _, k := range rest {
		if k.State(r.at) == Active {
			k.SignsUntil, k.VerifiesUntil = r.signsFrom, r.signsFrom.Add(maxTTL+skew)
			r.moved = append(r.moved, k)
		}
	}
	if !waiting {
		r.add(gone.Alg)
	}
	r.note += fmt.Sprintf("; another key is published in its place and signs from %s, the active one until then", r.signsFrom.Format(time.RFC3339))
}

func (r *retirement) add(alg string) {
	r.fresh = append(r.fresh, Key{Purpose: r.purpose, Alg: alg, Published: r.at, SignsFrom: r.signsFrom})
}

func firstPending(keys []Key, now time.Time) (Key, bool) {
	var first Key
	for _, k := range keys {
		if k.State(now) == Pending && (first.ID == "" || k.SignsFrom.Before(first.SignsFrom)) {
			first = k
		}
	}
	return first, first.ID != ""
}

// after is the timeline once r is made, the retired key included.
func (r retirement) after(keys, fresh []Key) []PlannedKey {
	return rotation{at: r.at, moved: r.moved}.after(keys, fresh)
}
