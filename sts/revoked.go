package sts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

const (
	maxRevocations = 1 << 17 // that are kept at a time, in about 60 MB
	operatorsRoom  = 1 << 13 // of these, which only operators may take
	clientRoom     = 1 << 13 // which one client may take by RFC 7009
	maxRecent      = 512
)

// kept is what memory holds of a revocation in force.
type kept struct {
	countersign.Revocation
	made   int64
	client string // who took room by RFC 7009
}

// flight is a revocation on its way into the store.
type flight struct {
	revocation
	head uint64 // of the audit log, before the intent
	left bool   // nobody works on it any more, and its outcome is not in the audit log: see settleLeft
}

// revokedSet is the set of revocations in force. Readers take no lock: they see an immutable view. Writers publish a new one.
//
// Between begin and its end the revocation is pending: what it names is refused, whenever it was issued. Its Before is read
// from the clock after it became pending. So a token that was judged earlier bears a time of issue that is not after Before,
// and one that is judged later is refused: none slips through between.
type revokedSet struct {
	now   func() time.Time
	view  atomic.Pointer[revokedView] // nil before the first load: nothing may be judged yet
	stale atomic.Bool                 // the store could not be read for too long: nor then

	mu      sync.Mutex
	all     map[string]kept // by key
	clients map[string]int  // how many of all a client made
	base    *countersign.Revocations
	recent  []countersign.Revocation // those of all that are not in base: so one more costs little, however many there are
	flights map[*flight]struct{}
	last    int64  // the greatest made that was given away
	sorted  []kept // all, by made; nil: to be made anew. Never changed
	reading bool   // load is at work
	during  []kept // what was put meanwhile
}

func newRevokedSet(now func() time.Time) *revokedSet {
	return &revokedSet{now: now, all: map[string]kept{}, clients: map[string]int{}, flights: map[*flight]struct{}{}}
}

// revokedView is one state of the set.
type revokedView struct{ base, recent, pending *countersign.Revocations }

func (v *revokedView) find(t countersign.TokenFacts) (found countersign.Revocation, ok bool) {
	for _, set := range []*countersign.Revocations{v.base, v.recent, v.pending} {
		if found, ok = set.Find(t); ok {
			break
		}
	}
	return found, ok
}

// find is a revocation that reaches the token now. If the revocations are not known, nothing may pass: CodeRevocations.
func (r *revokedSet) find(t countersign.TokenFacts) (countersign.Revocation, bool, error) {
	v := r.view.Load()
	if v == nil || r.stale.Load() {
		return countersign.Revocation{}, false, countersign.Errorf(countersign.CodeRevocations, "the revocations can't be read").After(time.Second)
	}
	found, ok := v.find(t)
	return found, ok, nil
}

// publish makes the present state the one that readers see. mu is held.
func (r *revokedSet) publish() {
	if len(r.recent) > maxRecent || r.base == nil {
		list := make([]countersign.Revocation, 0, len(r.all))
		for _, k := range r.all {
			list = append(list, k.Revocation)
		}
		r.base, r.recent = countersign.NewRevocations(list), nil
	}
	var pending []countersign.Revocation
	for f := range r.flights {
		if !f.left {
			p := f.Revocation
			p.Before = forever()
			pending = append(pending, p)
		}
	}
	r.view.Store(&revokedView{r.base, countersign.NewRevocations(r.recent), countersign.NewRevocations(pending)})
}

// forever is after the issue of any token.
func forever() time.Time { return time.Unix(1<<40, 0) }

// begin takes room for a revocation, makes it pending and gives it its times. head is that of the audit log.
// Codes: CodeRevocationsFull.
func (r *revokedSet) begin(rev revocation, operator bool, head uint64) (*flight, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	room := maxRevocations
	if !operator {
		room -= operatorsRoom
	}
	if _, known := r.all[rev.key()]; !known && (len(r.all)+len(r.flights) >= room || rev.Client != "" && r.clients[rev.Client] >= clientRoom) {
		return nil, countersign.Errorf(countersign.CodeRevocationsFull, "%d revocations are kept, %d of them by this client",
			len(r.all), r.clients[rev.Client]).After(time.Minute)
	}
	f := &flight{revocation: rev, head: head}
	r.flights[f] = struct{}{}
	r.publish()
	now := r.now().UTC() // only now: see the invariant above
	f.Made = max(now.UnixMicro(), r.last+1)
	r.last = f.Made
	f.Before = now.Truncate(time.Second)
	if f.Until.IsZero() {
		f.Until = f.Before.Add(lifetime(f.Kind))
	}
	return f, nil
}

// end puts a revocation in force as it is stored.
func (r *revokedSet) end(f *flight, stored revocation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, f)
	r.put(stored.kept())
	r.publish()
}

// leave puts a revocation in force whose outcome is not in the audit log, or of which it is not known whether it is stored:
// its intent says that it will be. settleLeft sees to that, or the next start.
func (r *revokedSet) leave(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.left = true
	r.flights[f] = struct{}{}
	r.put(f.kept())
	r.publish()
}

// leftovers are the revocations that were left.
func (r *revokedSet) leftovers() []*flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	var left []*flight
	for f := range r.flights {
		if f.left {
			left = append(left, f)
		}
	}
	return left
}

// next is a new time of making, greater than all that were given away.
func (r *revokedSet) next() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = max(r.now().UnixMicro(), r.last+1)
	return r.last
}

// drop ends a revocation that was not stored.
func (r *revokedSet) drop(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, f)
	r.publish()
}

// put adds to all. mu is held, and publish follows.
func (r *revokedSet) put(k kept) {
	if r.reading {
		r.during = append(r.during, k)
	}
	key := revocationKey(k.Kind, k.Value)
	if old, ok := r.all[key]; ok {
		k.Before, k.Until, k.made = latest(old.Before, k.Before), latest(old.Until, k.Until), max(old.made, k.made)
		r.count(old.client, -1)
	}
	r.count(k.client, 1)
	r.all[key] = k
	r.last = max(r.last, k.made)
	r.recent = append(r.recent, k.Revocation)
	r.sorted = nil
}

func (r *revokedSet) count(client string, n int) {
	if client == "" {
		return
	}
	if r.clients[client] += n; r.clients[client] == 0 {
		delete(r.clients, client)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// covers tells whether the one name is revoked already, and for as long.
func (r *revokedSet) covers(kind countersign.RevocationKind, value string, until time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.all[revocationKey(kind, value)]
	return ok && !until.IsZero() && !k.Until.Before(until)
}

func (r *revokedSet) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// settled is the greatest sequence number of the audit log up to which no intent is open; head was read before.
func (r *revokedSet) settled(head uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.flights {
		head = min(head, f.head)
	}
	return head
}

// byMade lists all in force by made, and tells up to which made nothing can come to be before the list's end: what is
// pending has its made already.
func (r *revokedSet) byMade() (list []kept, complete int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sorted == nil {
		r.sorted = slices.SortedFunc(maps.Values(r.all), func(a, b kept) int { return cmp.Compare(a.made, b.made) })
	}
	complete = r.last
	for f := range r.flights {
		if !f.left {
			complete = min(complete, f.Made-1)
		}
	}
	return r.sorted, complete
}

// load makes the set what the store has. What is put while it reads counts too.
func (r *revokedSet) load(ctx context.Context, store storage.Store) error {
	r.mu.Lock()
	r.reading, r.during = true, nil
	r.mu.Unlock()
	all, err := readRevocations(ctx, store, r.now())
	r.mu.Lock()
	defer r.mu.Unlock()
	during := r.during
	r.reading, r.during = false, nil
	if err != nil {
		return err
	}
	for f := range r.flights {
		if f.left { // it counts as stored
			during = append(during, f.kept())
		}
	}
	r.all, r.clients, r.sorted = all, map[string]int{}, nil
	for _, k := range all {
		r.count(k.client, 1)
		r.last = max(r.last, k.made)
	}
	for _, k := range during {
		r.put(k)
	}
	r.base = nil
	r.publish()
	return nil
}

func readRevocations(ctx context.Context, store storage.Store, now time.Time) (map[string]kept, error) {
	all := map[string]kept{}
	for entry, err := range revocationsTable().All(ctx, store, "") {
		if err != nil {
			return nil, err
		}
		if v := entry.Value; v.key() != entry.Key {
			return nil, fmt.Errorf("the revocation %s stands under the wrong key: %w", v.key(), storage.ErrCorrupt)
		} else if now.Before(v.Until) {
			all[entry.Key] = v.kept()
		}
	}
	return all, nil
}

const (
	loadEvery = time.Second     // at most
	patience  = 5 * time.Second // with a store that can't be read
)

// follow keeps the set what the store has, also what other nodes put there, until ctx ends. A store that can't be read is
// tried again; after a while of that nothing is judged by what may be out of date. A damaged record does not mend by itself:
// it is an error, and the daemon must stop.
func (r *revokedSet) follow(ctx context.Context, store storage.Store, failed func(error)) error {
	since := r.now()
	for {
		changed := store.Changed(revocationsTable().Name)
		err := r.load(ctx, store)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			since = r.now()
			r.stale.Store(false)
		case errors.Is(err, storage.ErrCorrupt), errors.Is(err, storage.ErrClosed):
			r.stale.Store(true)
			return fmt.Errorf("follow the revocations: %w", err)
		default:
			r.stale.Store(r.now().Sub(since) >= patience)
			failed(err)
		}
		wait := changed
		if err != nil {
			wait = nil // the pause is all
		}
		if !pause(ctx, loadEvery) {
			return nil
		}
		if wait == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wait:
		}
	}
}

// pause tells whether ctx outlived it.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
