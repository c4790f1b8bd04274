package keyring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

const (
	// maxIdle bounds how long Run trusts its timers: a machine may sleep through them.
	maxIdle = 5 * time.Minute

	// A failed step is repeated after firstRetry, then after twice as long each time, up to lastRetry.
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Run follows the store, rotates the keys of purposes token and svid by schedule, settles changes that a crash left behind
// and deletes such keys that expired long ago. Any number of nodes may run it on one store: conditions let one of them rotate, and the
// others take its keys. What fails is logged and repeated; the last good snapshot serves meanwhile. It returns nil when
// ctx ends. After a downtime of any length the old keys sign on until new ones have been published for the lead.
func (r *Ring) Run(ctx context.Context) error {
	var tending sync.WaitGroup
	defer tending.Wait()
	for _, d := range r.devices {
		tending.Go(func() { r.tend(ctx, d) })
	}
	retry, seen := firstRetry, r.cfg.Now()
	for {
		store, own := r.cfg.Store.Changed(headTable), r.Changed()
		wait, err := r.step(ctx, seen)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			r.cfg.Logger.Error("keyring: step failed, it will be repeated", "error", err, "after", retry)
			wait, retry = retry, min(2*retry, lastRetry)
			store, own = nil, nil // a change elsewhere is no reason to hurry a failing store
		} else {
			retry, seen = firstRetry, r.cfg.Now()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-store:
		case <-own:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// step does all that is due and says how long nothing else will be. seen is when the step before ended.
func (r *Ring) step(ctx context.Context, seen time.Time) (time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.follow(ctx); err != nil {
		return 0, err
	}
	if err := r.settle(ctx); err != nil {
		return 0, err
	}
	r.bury(ctx)
	if r.Guard() == nil { // what is due by a clock that may be wrong waits, to be looked at again after maxIdle
		if err := r.upgrade(ctx); err != nil {
			return 0, err
		}
		if err := r.mend(ctx); err != nil {
			return 0, err
		}
		for _, p := range rotated() {
			if err := r.rotateIfDue(ctx, p); err != nil {
				return 0, err
			}
		}
		if err := r.deleteExpired(ctx); err != nil {
			return 0, err
		}
	}
	now, snap := r.cfg.Now(), r.snap.Load()
	if at := nextBoundary(snap.ordered, seen); !at.IsZero() && !at.After(now) {
		again := *snap
		again.changed = make(chan struct{})
		r.swap(&again)
	}
	return idle(snap.state, now, r.cfg), nil
}

// idle is how long after now nothing is due.
func idle(st state, now time.Time, cfg Config) time.Duration {
	var all []Key
	for _, e := range st.entries {
		all = append(all, e.key)
	}
	wait := maxIdle
	next := []time.Time{nextBoundary(all, now)}
	for _, p := range rotated() {
		next = append(next, dueAt(st.keys(p), now, cfg.RotateEvery, cfg.Lead))
	}
	if st.head.Unsettled != nil {
		next = append(next, st.head.At.Add(settleAfter))
	}
	for _, at := range next {
		// What is due and could not be done (sealed) waits for the KEK, not for the clock.
		if at.After(now) {
			wait = min(wait, at.Sub(now))
		}
	}
	return wait
}

// follow takes what other nodes have changed. r.mu is held.
func (r *Ring) follow(ctx context.Context) error {
	have := r.snap.Load().state
	rev, err := headRev(ctx, r.cfg.Store)
	if err != nil {
		return fmt.Errorf("read the head of the keyring: %w", err)
	}
	if rev == have.headRev {
		return nil
	}
	st, err := load(ctx, r.cfg.Store)
	if err != nil {
		return fmt.Errorf("read the keyring: %w", err)
	}
	return r.publish(st)
}

// upgrade makes the first keys of a purpose that the store is older than. A store without token keys is none that is in use:
// who makes it makes them all. Of several nodes one wins; the others follow it.
func (r *Ring) upgrade(ctx context.Context) error {
	st := r.snap.Load().state
	if !r.cfg.Upgrade || r.kek == nil || len(st.keys(Token)) == 0 || len(st.keys(SVID)) > 0 {
		return nil
	}
	now := utc(r.cfg.Now())
	var keys []NewKey
	for _, alg := range algsOf(SVID) {
		keys = append(keys, NewKey{Purpose: SVID, Alg: alg, SignsFrom: now.Add(r.cfg.Lead)})
	}
	made, err := r.create(ctx, countersign.Daemon("keys of a new purpose"), now, keys)
	switch {
	case err == nil:
		r.cfg.Logger.Info("keyring: first keys made of a purpose that the store lacked", "purpose", SVID, "signs_from", made[0].SignsFrom)
		return nil
	case countersign.AsError(err).Code == countersign.CodeKeyInUse:
		return r.follow(ctx)
	}
	return fmt.Errorf("make the first keys of purpose %s: %w", SVID, err)
}

// rotateIfDue rotates p by schedule. A sealed ring does not: it could not seal the new keys.
func (r *Ring) rotateIfDue(ctx context.Context, p Purpose) error {
	if r.kek == nil || !due(r.snap.Load().state.keys(p), r.cfg) {
		return nil
	}
	plan, err := r.rotate(ctx, countersign.Daemon("scheduled rotation"), p, RotateOptions{scheduled: true})
	if err != nil {
		if countersign.AsError(err).Code == countersign.CodeRotationPending {
			return r.follow(ctx) // another node was faster: its keys are as good
		}
		return fmt.Errorf("rotate by schedule: %w", err)
	}
	r.cfg.Logger.Info("keyring: keys rotated by schedule", "purpose", p, "signs_from", plan.SignsFrom)
	return nil
}

// due tells whether the schedule wants a rotation of keys now.
func due(keys []Key, cfg Config) bool {
	now := cfg.Now()
	at := dueAt(keys, now, cfg.RotateEvery, cfg.Lead)
	return !at.IsZero() && !now.Before(at)
}

// deleteExpired deletes one bounded step of long expired keys.
func (r *Ring) deleteExpired(ctx context.Context) error {
	snap := r.snap.Load()
	ids := deletable(snap.ordered, r.cfg.Now())
	if len(ids) == 0 {
		return nil
	}
	err := r.commit(ctx, countersign.Daemon("expired keys"), snap.state, change{
		event: eventDeleted, subject: snap.purposes(ids), drop: ids, detail: detail{Deleted: ids},
	})
	if errors.Is(err, storage.ErrConflict) {
		return r.follow(ctx)
	}
	return err
}

// purposes are those of the keys ids, for an audit record.
func (s *snapshot) purposes(ids []string) string {
	found := map[string]bool{}
	for _, id := range ids {
		found[string(s.state.entries[id].key.Purpose)] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(found)), ",")
}
