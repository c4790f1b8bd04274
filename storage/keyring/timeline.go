package keyring

import (
	"slices"
	"time"

	"github.com/countersign/countersign"
)

const (
	// maxVerifying is how many keys of one purpose may be unexpired at once: a verifier of ours takes a set of 64 keys.
	maxVerifying = 48

	// An expired key of a rotated purpose is deleted after keepExpired, or as soon as more than maxRecorded keys are recorded.
	keepExpired = 30 * 24 * time.Hour
	maxRecorded = 256
	maxDeleted  = 16 // keys that one step deletes
)

// rotation is one decided rotation: times of existing keys, and what is to be generated.
type rotation struct {
	at        time.Time
	signsFrom time.Time
	moved     []Key    // existing keys with their new times
	algs      []string // one new key each, published at at, signing from signsFrom
}

// planRotation decides a rotation of keys, all of one purpose. It is pure.
//
// Without signNow the new keys wait for the lead; a rotation that waits already is CodeRotationPending. With signNow
// pending keys sign at once, or new ones if there are none. In both cases keys that sign cease to at the same instant
// and verify until the last token that they may have signed has expired.
func planRotation(keys []Key, now time.Time, lead, maxTTL time.Duration, signNow bool) (rotation, error) {
	// No rounding: what signs at once is active at now, and the old keys may have signed until now.
	r := rotation{at: utc(now)}
	r.signsFrom = r.at
	if !signNow {
		r.signsFrom = r.at.Add(lead)
	}
	if len(keys) == 0 {
		return r, countersign.Errorf(countersign.CodeNoKey, "there are no keys of this purpose to rotate").
			WithHint("countersign init makes the first ones, and serve those that an older store lacks")
	}
	r.algs = algsOf(keys[0].Purpose)
	verifying := 0
	for _, k := range keys {
		state := k.State(now)
		if state != Expired {
			verifying++
		}
		switch {
		case state == Pending && !signNow:
			return r, pendingError(k)
		case state == Pending:
			k.SignsFrom = r.signsFrom
			r.moved = append(r.moved, k)
			r.algs = slices.DeleteFunc(r.algs, func(alg string) bool { return alg == k.Alg })
		case state == Active:
			k.SignsUntil = r.signsFrom
			k.VerifiesUntil = r.signsFrom.Add(maxTTL + skew)
			r.moved = append(r.moved, k)
		}
	}
	if verifying+len(r.algs) > maxVerifying {
		return r, countersign.Errorf(countersign.CodeKeysMany, "%d keys still verify: verifiers take no larger set", verifying).
			WithHint("wait until some have expired; countersign key list shows when")
	}
	return r, nil
}

func pendingError(k Key) *countersign.Error {
	return countersign.Errorf(countersign.CodeRotationPending, "the next %s key %s is published already and signs from %s",
		k.Purpose, k.ID, k.SignsFrom.Format(time.RFC3339)).
		WithHint("countersign key rotate %s --now makes it sign at once, which breaks verifiers with old caches", k.Purpose)
}

// after is the timeline of keys once r is made. fresh are the new keys, or stand for them in a dry run.
func (r rotation) after(keys, fresh []Key) []PlannedKey {
	all := slices.Concat(r.moved, fresh)
	for _, k := range keys {
		if !slices.ContainsFunc(r.moved, func(m Key) bool { return m.ID == k.ID }) && k.State(r.at) != Expired {
			all = append(all, k)
		}
	}
	sortKeys(all)
	rows := make([]PlannedKey, 0, len(all))
	for _, k := range all {
		row := k.Planned(r.at)
		row.New = !slices.ContainsFunc(keys, func(old Key) bool { return old.ID == k.ID })
		rows = append(rows, row)
	}
	return rows
}

// fresh is a new key of r, but for its public half.
func (r rotation) fresh(p Purpose, alg string) Key {
	return Key{Purpose: p, Alg: alg, Published: r.at, SignsFrom: r.signsFrom}
}

// dueAt is when keys of one purpose are to be rotated by schedule: a lead before the oldest active key has signed for
// every. Never (the zero time) while a rotation waits to come into force or there is nothing to rotate.
func dueAt(keys []Key, now time.Time, every, lead time.Duration) time.Time {
	var due time.Time
	for _, k := range keys {
		switch k.State(now) {
		case Pending:
			return time.Time{}
		case Active:
			if at := k.SignsFrom.Add(every - lead); due.IsZero() || at.Before(due) {
				due = at
			}
		}
	}
	return due
}

// nextBoundary is the first instant after t at which the state of one of keys changes; zero if there is none.
func nextBoundary(keys []Key, t time.Time) time.Time {
	var next time.Time
	for _, k := range keys {
		for _, at := range []time.Time{k.SignsFrom, k.SignsUntil, k.VerifiesUntil} {
			if at.After(t) && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// deletable are the kids of at most maxDeleted keys of rotated purposes that nothing can need any more. Keys of other
// purposes stay: audit records and certificates are verified for years. So does the svid key that ended last: what is
// published counts its changes by it.
func deletable(keys []Key, now time.Time) []string {
	expired := slices.DeleteFunc(slices.Clone(keys), func(k Key) bool {
		return !slices.Contains(rotated(), k.Purpose) || k.State(now) != Expired
	})
	slices.SortFunc(expired, func(a, b Key) int { return a.VerifiesUntil.Compare(b.VerifiesUntil) })
	for i, k := range slices.Backward(expired) {
		if k.Purpose == SVID {
			expired = slices.Delete(expired, i, i+1)
			break
		}
	}
	surplus := len(keys) - maxRecorded
	var ids []string
	for i, k := range expired {
		if len(ids) < maxDeleted && (i < surplus || !now.Before(k.VerifiesUntil.Add(keepExpired))) {
			ids = append(ids, k.ID)
		}
	}
	return ids
}
