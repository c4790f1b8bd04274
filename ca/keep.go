package ca

import (
	"context"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/keyring"
)

const (
	rollEvery = time.Minute
	// orphanAge is how old a key without a certificate must be before it is taken for one that a crash left: a rotation
	// makes its keys first.
	orphanAge = time.Hour
)

// roll follows other nodes' changes of the authority's certificates, and makes those that are due: a rotation by
// schedule, the retirement of what nobody holds any more, the end of keys that have no certificate. A sealed ring and a
// clock that is not believed leave all as it is.
func (a *Authority) roll(ctx context.Context) error {
	if err := a.reload(ctx); err != nil {
		return err
	}
	if a.cfg.Keys.Sealed() || a.cfg.Keys.Guard() != nil {
		return nil
	}
	by := countersign.Daemon("schedule")
	if r, due := a.scheduled(); due {
		if _, err := a.Rotate(ctx, by, r); err != nil {
			return err
		}
	}
	if err := a.retireUnheld(ctx, by); err != nil {
		return err
	}
	if err := a.dropOrphans(ctx, by); err != nil {
		return err
	}
	return a.dropResponders(ctx, by)
}

// scheduled is the rotation that is due and possible. What waits for a root that is offline, or that somebody else makes, is for
// people: `doctor` tells it in time.
func (a *Authority) scheduled() (Rotation, bool) {
	s, now := a.issuers.Load(), a.cfg.Now()
	r, due := scheduled(s, now, a.cfg.IntermediateTTL)
	if signing, ok := s.signing(now); due && r.Role == ProfileRoot && ok && !a.possible(s, r) {
		r, due = Rotation{Role: ProfileIntermediate}, intermediateDue(signing, now)
	}
	return r, due && a.possible(s, r)
}

func (a *Authority) possible(s *issuers, r Rotation) bool {
	p, err := planRotation(s, r, a.cfg.Now(), a.rootLead())
	if err == nil {
		err = a.needKeys(p)
	}
	code := countersign.AsError(err).Code
	return err == nil || code != countersign.CodeRootOffline && code != countersign.CodeOwnSuccessor
}

// retireUnheld retires intermediates that sign no more and of which nothing lives, then roots that have none.
func (a *Authority) retireUnheld(ctx context.Context, by countersign.Caller) error {
	s, now := a.issuers.Load(), a.cfg.Now()
	for _, i := range s.published(ProfileIntermediate) {
		if _, err := planRetirement(s, i.serial, now); err != nil || now.Before(a.lastUse(s, i, now)) {
			continue
		}
		until, holders, err := a.heldUntil(ctx, i.serial)
		if err != nil {
			return err
		}
		if len(holders) > 0 {
			a.holdsUntil(i.serial, until)
			continue
		}
		if err := a.Retire(ctx, by, i.serial); err != nil {
			return err
		}
	}
	s = a.issuers.Load()
	for _, root := range s.published(ProfileRoot) {
		if _, err := planRetirement(s, root.serial, now); err == nil {
			if err := a.Retire(ctx, by, root.serial); err != nil {
				return err
			}
		}
	}
	return nil
}

// lastUse is before when an intermediate need not be looked at: nothing that it signed can have ended by then. A rollback
// stays possible that long.
func (a *Authority) lastUse(s *issuers, i issuer, now time.Time) time.Time {
	ceased := i.Withdrawn
	for _, other := range s.published(ProfileIntermediate) {
		if other.Withdrawn.IsZero() && other.SignsFrom.After(i.SignsFrom) && (ceased.IsZero() || other.SignsFrom.Before(ceased)) {
			ceased = other.SignsFrom
		}
	}
	if ceased.IsZero() {
		ceased = now
	}
	a.heldMu.Lock()
	defer a.heldMu.Unlock()
	if until := a.held[i.serial]; until.After(ceased.Add(minTTL)) {
		return until
	}
	return ceased.Add(a.cfg.ServiceTTL)
}

// holdsUntil remembers that an intermediate is held until then, so that the inventory is not read again before.
func (a *Authority) holdsUntil(serial string, until time.Time) {
	a.heldMu.Lock()
	defer a.heldMu.Unlock()
	if a.held == nil {
		a.held = map[string]time.Time{}
	}
	a.held[serial] = until
}

// dropOrphans deletes keys of purpose ca that no certificate names which is in use: what a crash left.
func (a *Authority) dropOrphans(ctx context.Context, by countersign.Caller) error {
	used := map[string]bool{}
	for _, i := range a.issuers.Load().all {
		if i.Retired.IsZero() {
			used[i.KeyID] = true
		}
	}
	open, err := a.openRequest(ctx)
	if err != nil {
		return err
	}
	used[open.Value.KeyID] = true
	for _, k := range a.cfg.Keys.Keys(keyring.CA) {
		if used[k.ID] || a.cfg.Now().Sub(k.Published) < orphanAge {
			continue
		}
		if err := a.cfg.Keys.Drop(ctx, by, k.ID); err != nil {
			return err
		}
	}
	return nil
}
