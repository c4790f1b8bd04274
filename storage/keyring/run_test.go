package keyring

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// witness checks what verifiers rely on, from the outside: it signs at each look and follows what it signed.
type witness struct {
	t      testing.TB
	lead   time.Duration
	ttl    time.Duration
	seen   map[string]time.Time // kid: first seen in Keys
	signed []signature
	first  time.Time // keys seen here need no lead: they are the first ones
}

type signature struct {
	kid     string
	expires time.Time
}

// look holds the invariants of rings, nodes of one store, at now.
func (w *witness) look(now time.Time, rings ...*Ring) {
	w.t.Helper()
	if w.seen == nil {
		w.seen, w.first = map[string]time.Time{}, now
	}
	for _, r := range rings {
		published := map[string]bool{}
		for _, k := range r.Keys(Token) {
			published[k.ID] = true
			if _, ok := w.seen[k.ID]; !ok {
				w.seen[k.ID] = now
			}
		}
		for _, s := range w.signed {
			if !published[s.kid] {
				w.t.Fatalf("%s: key %s is gone, its token lives until %s", now, s.kid, s.expires)
			}
		}
		for _, alg := range algsOf(Token) {
			k, _, err := r.Signer(Token, alg)
			if err != nil {
				w.t.Fatalf("%s: %v", now, err)
			}
			if !published[k.ID] {
				w.t.Fatalf("%s: key %s signs and is not published", now, k.ID)
			}
			if since := w.seen[k.ID]; since != w.first && now.Sub(since) < w.lead {
				w.t.Fatalf("%s: key %s signs %s after it was first seen, the lead is %s", now, k.ID, now.Sub(since), w.lead)
			}
			w.signed = append(w.signed, signature{k.ID, now.Add(w.ttl)})
		}
	}
	w.signed = slices.DeleteFunc(w.signed, func(s signature) bool { return !now.Before(s.expires) })
}

// A year of steps, with looks every hour and at each boundary, restarts and a downtime of 100 days in it.
func TestAYearOfScheduledRotation(t *testing.T) {
	b := newBench(t)
	b.init()
	start := b.clock.now()
	w := &witness{t: t, lead: time.Hour, ttl: time.Hour}
	end, seen := start.AddDate(1, 0, 0), start
	nextStep := start
	for day := start; b.clock.now().Before(end); {
		now := b.clock.now()
		w.look(now, b.ring)
		if !now.Before(nextStep) {
			wait, err := b.ring.step(t.Context(), seen)
			if err != nil {
				t.Fatal(err)
			}
			if wait <= 0 || wait > maxIdle {
				t.Fatalf("step waits for %s", wait)
			}
			if wait == maxIdle { // nothing due soon: a step an hour shows as much as one in five minutes
				wait = time.Hour
			}
			seen, nextStep = now, now.Add(wait)
			w.look(now, b.ring)
		}
		switch {
		case now.Sub(start) > 130*24*time.Hour && day == start:
			// Down for 100 days: the active keys sign on, and new ones get their lead.
			day = now
			b.stop()
			b.clock.add(100 * 24 * time.Hour)
			b.start()
			w.signed = nil // all of them are expired
			nextStep = b.clock.now()
		default:
			next := now.Add(time.Hour)
			if nextStep.Before(next) {
				next = nextStep
			}
			if at := nextBoundary(b.ring.snap.Load().ordered, now); !at.IsZero() && at.Before(next) {
				next = at
			}
			b.clock.set(next)
		}
	}
	// 265 days of operation, a rotation each 30 days, one of them late.
	if got := len(w.seen); got < 2*9 || got > 2*11 {
		t.Errorf("%d keys signed or waited in a year", got)
	}
	if got := len(b.ring.snap.Load().ordered); got > 2*4 {
		t.Errorf("%d keys are still recorded: expired ones are not deleted", got)
	}
	events := b.events()
	if !slices.Contains(events, "key.deleted ok") || slices.ContainsFunc(events, func(e string) bool { return e == "key.rotated failed" }) {
		t.Errorf("events %v", events)
	}
}

// bubble opens real parts on the clock of a synctest bubble.
func bubble(t *testing.T) (*faulty, *audit.Log, []byte, Config) {
	t.Helper()
	dir := t.TempDir()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "countersign.db")})
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(t.Context(), audit.Config{Dir: filepath.Join(dir, "audit"), Store: s, Segment: 1 << 20, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close(); s.Close() })
	f := &faulty{Store: s}
	kek := NewKEK()
	return f, log, kek, Config{
		Store: f, Audit: log, KEK: kek, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Lead: 10 * time.Minute, RotateEvery: 2 * time.Hour, MaxTTL: 10 * time.Minute,
	}
}

// run starts a ring's Run and stops it with the test.
func run(t *testing.T, r *Ring) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Three nodes on one store, their schedules due at the same instant, a store that is busy for a while, a sealed node.
func TestRunOnThreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, log, kek, cfg := bubble(t)
		var rings []*Ring
		for i := range 3 {
			if i == 2 {
				cfg.KEK = nil
			}
			r, err := Open(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			rings = append(rings, r)
		}
		if _, err := rings[0].Create(t.Context(), admin(), NewKey{Purpose: Token, Alg: algES256}, NewKey{Purpose: Token, Alg: algRS256}); err != nil {
			t.Fatal(err)
		}
		for _, r := range rings {
			defer run(t, r)()
		}
		synctest.Wait()
		if got := len(rings[1].Keys(Token)); got != 2 {
			t.Fatalf("the second node sees %d keys", got)
		}
		w := &witness{t: t, lead: 9*time.Minute + 30*time.Second, ttl: 10 * time.Minute}
		start := time.Now()
		for time.Since(start) < 9*time.Hour {
			switch time.Since(start) {
			case 110 * time.Minute: // the instant of a rotation
				store.mu.Lock()
				store.before = func([]storage.Op) error { return storage.ErrBusy }
				store.mu.Unlock()
			case 120 * time.Minute:
				store.mu.Lock()
				store.before = nil
				store.mu.Unlock()
			case 5 * time.Hour:
				if err := rings[2].Unseal(kek); err != nil {
					t.Fatal(err)
				}
			}
			w.look(time.Now(), rings[:2]...)
			if time.Since(start) > 5*time.Hour {
				w.look(time.Now(), rings[2])
			}
			time.Sleep(30 * time.Second)
			synctest.Wait()
		}
		if got := len(w.seen); got != 2*5 {
			t.Errorf("%d keys in 9 h, want %d", got, 2*5)
		}
		made := 0
		for r, err := range log.Records(t.Context(), 1) {
			if err != nil {
				t.Fatal(err)
			}
			if r.Type == eventRotated && r.Outcome == audit.OK {
				made++
			}
		}
		if made != 4 {
			t.Errorf("%d rotations, want 4", made)
		}
	})
}

// What another node does is taken within a second, and Changed tells of it and of states that change by the clock.
func TestRunFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, _, cfg := bubble(t)
		a, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Create(t.Context(), admin(), NewKey{Purpose: Token, Alg: algES256}, NewKey{Purpose: Token, Alg: algRS256}); err != nil {
			t.Fatal(err)
		}
		b, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer run(t, b)()
		synctest.Wait()
		changed := b.Changed()
		plan, err := a.Rotate(t.Context(), admin(), Token, RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Fatal("Changed did not tell of another node's rotation")
		}
		if len(b.Keys(Token)) != 4 {
			t.Fatalf("%d keys", len(b.Keys(Token)))
		}
		changed = b.Changed()
		time.Sleep(time.Until(plan.SignsFrom) - time.Nanosecond)
		select {
		case <-changed:
			t.Fatal("Changed told of nothing")
		default:
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Error("Changed did not tell that the new keys sign")
		}
	})
}

// A damaged store is no reason to stop serving, to hurry, or to end.
func TestRunKeepsTheLastGoodSnapshot(t *testing.T) {
	b := newBench(t)
	made := b.init()
	edit(t, b, made[0].ID, func(r *record) { r.Sealed.Private[20] ^= 1 })
	// The head must move for the change to be read at all.
	op, err := headRecords().Put(headKey, b.ring.snap.Load().state.head, time.Time{}, storage.Cond{})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, b, op)
	if _, err := b.ring.step(t.Context(), b.clock.now()); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatalf("step on a damaged store: %v", err)
	}
	_, s, err := b.ring.Signer(Token, algES256)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, s, made[0].Public)
}
