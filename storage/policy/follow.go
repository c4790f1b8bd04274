package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

const (
	// patience is how long a change by another node may lack its audit record before this node takes that one for dead
	// and appends the record itself. A living node needs milliseconds.
	patience = 5 * time.Second
	lookEach = time.Second // while something is awaited or the store can't be read
)

// waiting is a change that is not recorded yet.
type waiting struct {
	rev   storage.Rev
	since time.Time
}

// Run follows the store, so that what other nodes change is in force here too, within 2 seconds, until ctx ends; then
// it gives nil. A stored version that this binary can't run on is an error, and the daemon must stop: the old version is
// no longer in force. A store that can't be read is tried again.
func (b *Book) Run(ctx context.Context) error {
	for {
		policies, states := b.store.Changed(currents().Name), b.store.Changed(serviceStates().Name)
		frozen := b.store.Changed(freezes().Name)
		again, err := b.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var timer <-chan time.Time
		if again {
			timer = time.After(lookEach)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-policies:
		case <-states:
		case <-frozen:
		case <-timer:
		}
	}
}

// follow looks once. again: something is left to look at soon. The error is one that can't pass.
func (b *Book) follow(ctx context.Context) (again bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	err = b.refresh(ctx, true)
	var faults *FaultsError
	if errors.As(err, &faults) || errors.Is(err, storage.ErrCorrupt) || errors.Is(err, storage.ErrClosed) {
		return false, fmt.Errorf("follow policy: %w", err)
	}
	if err != nil && ctx.Err() == nil {
		b.log.ErrorContext(ctx, "policy: the store can't be followed; trying again", "err", err)
	}
	return err != nil || len(b.waiting) > 0, nil
}

// refresh makes base and states what the store has. A change that is not recorded yet is left alone for a while if
// patient, else its record is appended first. What has changed is in force when it returns. b.mu is held.
func (b *Book) refresh(ctx context.Context, patient bool) error {
	base, states, frozen := b.base, b.states, b.freeze.Frozen
	err := b.refreshBase(ctx, patient)
	if err == nil {
		err = b.refreshStates(ctx, patient)
	}
	if err == nil {
		err = b.refreshFreeze(ctx, patient)
	}
	if b.base != base || !frozen.Same(b.freeze.Frozen) || !maps.EqualFunc(states, b.states, sameState) {
		b.publish()
	}
	return err
}

// sameState tells whether two states mean the same, wherever they were read.
func sameState(x, y state) bool {
	return x.Disabled == y.Disabled && x.Reason == y.Reason && x.By == y.By && x.At.Equal(y.At) && x.VoidBefore.Equal(y.VoidBefore)
}

func (b *Book) refreshBase(ctx context.Context, patient bool) error {
	entry, err := currents().Get(ctx, b.store, currentKey)
	if errors.Is(err, storage.ErrNotFound) {
		delete(b.waiting, currentKey)
		if b.base.Version > 0 {
			return storeError(fmt.Errorf("%w: the record of the current version is gone", storage.ErrCorrupt))
		}
		b.baseRev = 0
		return nil
	}
	if err != nil {
		return storeError(err)
	}
	now := entry.Value
	if !now.Recorded && patient && !b.overdue(currentKey, entry.Rev) {
		return nil
	}
	base := b.base
	if now.Version != base.Version || now.SHA256 != b.sum {
		if base, err = b.load(ctx, now); err != nil {
			return err
		}
	}
	rev := entry.Rev
	if !now.Recorded {
		detail := appliedDetail{Version: now.Version, Previous: b.base.Version, SHA256: now.SHA256, Recovered: true}
		event := audit.Event{Type: "policy.applied", Subject: strconv.Itoa(now.Version), Detail: detail}
		if rev, err = b.recover(ctx, event, markPointer(now, entry.Rev)); err != nil {
			return err
		}
	}
	delete(b.waiting, currentKey)
	b.base, b.sum, b.baseRev = base, now.SHA256, rev
	return nil
}

// load reads and checks a stored version.
func (b *Book) load(ctx context.Context, now pointer) (*countersign.Policy, error) {
	_, doc, err := b.read(ctx, now.Version)
	if err != nil && countersign.AsError(err).Code == countersign.CodePolicyVersion {
		err = storeError(fmt.Errorf("%w: version %d, which is current, is missing", storage.ErrCorrupt, now.Version))
	}
	if err != nil {
		return nil, err
	}
	if sumOf(doc) != now.SHA256 {
		return nil, storeError(fmt.Errorf("%w: version %d is not the one that is current", storage.ErrCorrupt, now.Version))
	}
	p, faults := Parse(doc, b.env)
	if len(faults) > 0 {
		refusal := newFaultsError(fmt.Sprintf("version %d of the policy, which is in force,", now.Version), faults)
		refusal.Err.Hint = "run the version of Countersign, with the trust domain, issuer and DNS names, that it was applied under; mend it there"
		return nil, refusal
	}
	return p.WithVersion(now.Version), nil
}

func (b *Book) refreshStates(ctx context.Context, patient bool) error {
	states, left := make(map[string]state, len(b.states)), make(map[string]waiting)
	for _, key := range []string{currentKey, freezeKey} { // those are looked after elsewhere
		if w, ok := b.waiting[key]; ok {
			left[key] = w
		}
	}
	for entry, err := range serviceStates().All(ctx, b.store, "") {
		if err != nil {
			return storeError(err)
		}
		now := entry.Value
		now.rev = entry.Rev
		key := "service " + entry.Key
		if !now.Recorded {
			if patient && !b.overdue(key, entry.Rev) {
				left[key] = b.waiting[key]
				if old, ok := b.states[entry.Key]; ok {
					states[entry.Key] = old
				}
				continue
			}
			if now, err = b.recoverState(ctx, entry.Key, now); err != nil {
				return err
			}
		}
		states[entry.Key] = now
	}
	b.states, b.waiting = states, left // what was taken back is awaited no longer
	return nil
}

func (b *Book) recoverState(ctx context.Context, service string, s state) (state, error) {
	event := audit.Event{Type: "service.enabled", Subject: service, Detail: stateDetail{Reason: s.Reason, At: s.At, Recovered: true}}
	if s.Disabled {
		event.Type = "service.disabled"
	}
	marked := s
	marked.Recorded = true
	rev, err := b.recover(ctx, event, mustPut(serviceStates().Put(service, marked, time.Time{}, storage.Cond{Rev: s.rev})))
	marked.rev = rev
	return marked, err
}

// recover appends the event of a change that lacks it, then marks the record. A conflict means that somebody else was
// faster; the caller's next look sees it.
func (b *Book) recover(ctx context.Context, event audit.Event, mark storage.Op) (storage.Rev, error) {
	event.Outcome, event.By = audit.OK, countersign.Daemon("recovers the record of a change")
	if _, err := b.audit.Append(ctx, event); err != nil {
		return 0, err
	}
	rev, err := b.store.Apply(ctx, mark)
	if err != nil {
		return 0, storeError(err)
	}
	b.log.WarnContext(ctx, "policy: a change lacked its audit record, which was appended", "type", event.Type, "subject", event.Subject)
	return rev, nil
}

// overdue tells whether the record with this revision has waited for longer than a living node needs.
func (b *Book) overdue(key string, rev storage.Rev) bool {
	w, ok := b.waiting[key]
	if !ok || w.rev != rev {
		b.waiting[key] = waiting{rev: rev, since: b.now()}
		return false
	}
	return b.now().Sub(w.since) >= patience
}
