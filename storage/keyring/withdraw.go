package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// Withdraw is [Ring.Retire] of a compromised key, and works without the KEK too: the key leaves the published ones now, in a store
// that was restored to before it was retired. Without the KEK no key takes its place yet; [Ring.Run] makes one as soon as there
// is a KEK, and until then nothing signs with its algorithm. A key that is unknown or not published is no error: false.
// Codes: CodeRole, CodePurpose, those of the store and the audit log.
func (r *Ring) Withdraw(ctx context.Context, by countersign.Caller, id string) (bool, error) {
	if by.Role < countersign.RoleAdmin {
		return false, countersign.Errorf(countersign.CodeRole, "retiring a key needs the role %s; the caller's is %s", countersign.RoleAdmin, by.Role)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for range conflictTries {
		st, err := load(ctx, r.cfg.Store)
		if err != nil {
			return false, storeError(err)
		}
		e, ok := st.entries[id]
		if !ok || e.key.State(r.cfg.Now()) == Expired {
			return false, nil
		}
		if r.kek != nil || !slices.Contains(rotated(), e.key.Purpose) {
			_, err = r.retireOnce(ctx, by, st, id, RetireOptions{Compromised: true})
		} else {
			err = r.withdrawSealed(ctx, by, st, e.key)
		}
		if !errors.Is(err, storage.ErrConflict) {
			return err == nil, err
		}
	}
	return false, storeError(storage.ErrConflict)
}

func (r *Ring) withdrawSealed(ctx context.Context, by countersign.Caller, st state, gone Key) error {
	keys := st.keys(gone.Purpose)
	ret, err := planRetirement(keys, gone, r.cfg.Now(), r.cfg.Lead, r.cfg.MaxTTL, true)
	if err != nil {
		return err
	}
	ret = ret.withoutFresh()
	c := change{event: eventRetired, subject: gone.ID, moved: ret.moved, detail: detail{Compromised: true}}
	c.detail.Keys = ret.after(keys, nil)
	return r.commit(ctx, by, st, c)
}

// withoutFresh is a retirement for which no key can be made: an active key that was to end when the new one began signs on.
func (r retirement) withoutFresh() retirement {
	if len(r.fresh) == 0 {
		return r
	}
	r.fresh, r.moved = nil, slices.Clone(r.moved)
	for i := range r.moved[1:] {
		r.moved[i+1].SignsUntil, r.moved[i+1].VerifiesUntil = time.Time{}, time.Time{}
	}
	return r
}

// mend makes the keys that a withdrawal without KEK could not: each algorithm of which keys are on record and none signs or is to
// sign gets one, which signs at once. r.mu is held.
func (r *Ring) mend(ctx context.Context) error {
	if r.kek == nil {
		return nil
	}
	st, now := r.snap.Load().state, utc(r.cfg.Now())
	c := change{event: eventCreated}
	for _, p := range rotated() {
		for _, alg := range algsOf(p) {
			known, live := false, false
			for _, k := range st.keys(p) {
				if k.Alg == alg {
					state := k.State(now)
					known, live = true, live || state == Active || state == Pending
				}
			}
			if !known || live {
				continue
			}
			e, err := r.newEntry(Key{Purpose: p, Alg: alg, Published: now, SignsFrom: now}, false)
			if err != nil {
				return err
			}
			row := e.key.Planned(now)
			row.New = true
			c.add, c.subject, c.detail.Keys = append(c.add, e), e.key.ID, append(c.detail.Keys, row)
		}
	}
	if len(c.add) == 0 {
		return nil
	}
	if len(c.add) > 1 {
		c.subject = string(Token)
	}
	err := r.commit(ctx, countersign.Daemon("keys in the place of withdrawn ones"), st, c)
	if errors.Is(err, storage.ErrConflict) {
		return nil // another node did; the next step follows
	}
	if err != nil {
		return fmt.Errorf("make keys in the place of withdrawn ones: %w", err)
	}
	return nil
}
