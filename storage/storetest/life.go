package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign/countersign/storage"
)

func changedWakes(e *env) {
	e.apply(put("k", "v", storage.Cond{}))
	for name, op := range map[string]storage.Op{
		"put": put("k", "w", storage.Cond{}), "new": put("l", "v", storage.Cond{}), "delete": remove("k", storage.Cond{}),
	} {
		first, second := e.s.Changed(table), e.s.Changed(table)
		e.apply(op)
		for _, ch := range []<-chan struct{}{first, second} {
			select {
			case <-ch:
			case <-time.After(e.patience):
				e.Fatalf("%s: nobody was woken", name)
			}
		}
	}
}

// changedAtOnce holds what caches of the same node stand on: who was told that his change is done finds them stale.
func changedAtOnce(e *env) {
	for i := range 200 {
		changed := e.s.Changed(table)
		e.apply(put("k", fmt.Sprint(i), storage.Cond{}))
		select {
		case <-changed:
		default:
			e.Fatalf("change %d: Apply returned before it was told of", i)
		}
	}
}

func nowIsTheClock(e *env) {
	for range 2 {
		got, err := e.s.Now(e.Context())
		if want := e.clock.Now(); err != nil || !got.Equal(want) {
			e.Errorf("got %v, %v; want %v", got, err, want)
		}
		e.clock.set(e.clock.Now().Add(time.Hour))
	}
}

func endedContext(e *env) {
	e.apply(put("old", "v", storage.Cond{}))
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	_, apply := e.s.Apply(ctx, put("k", "v", storage.Cond{}))
	_, get := e.s.Get(ctx, table, "old")
	_, list := e.s.List(ctx, table, storage.ListOptions{Limit: 1})
	_, prune := e.s.Prune(ctx, table, 1)
	_, now := e.s.Now(ctx)
	backup := e.s.Backup(ctx, &bytes.Buffer{})
	for i, err := range []error{apply, get, list, prune, now, backup} {
		if !errors.Is(err, context.Canceled) {
			e.Errorf("call %d: got %v, want context.Canceled", i, err)
		}
	}
	e.absent("k")
}

func closedStore(e *env) {
	e.apply(put("k", "v", storage.Cond{}))
	changed := e.s.Changed(table)
	for range 2 {
		if err := e.s.Close(); err != nil {
			e.Errorf("close: %v", err)
		}
	}
	_, apply := e.s.Apply(e.Context(), put("k", "w", storage.Cond{}))
	_, get := e.s.Get(e.Context(), table, "k")
	_, list := e.s.List(e.Context(), table, storage.ListOptions{Limit: 1})
	_, prune := e.s.Prune(e.Context(), table, 1)
	backup := e.s.Backup(e.Context(), &bytes.Buffer{})
	for i, err := range []error{apply, get, list, prune, backup} {
		if !errors.Is(err, storage.ErrClosed) {
			e.Errorf("call %d: got %v, want ErrClosed", i, err)
		}
	}
	for _, ch := range []<-chan struct{}{changed, e.s.Changed(table)} {
		select {
		case <-ch:
		case <-time.After(e.patience):
			e.Fatalf("who waits for a change of a closed store waits for ever")
		}
	}
}

func survivesReopen(e *env) {
	seen := map[storage.Rev]bool{}
	for round := range 3 {
		rev := e.apply(put("k", fmt.Sprint(round), storage.Cond{}), expiring("e", e.clock.Now().Add(time.Hour)))
		e.apply(put("gone", "v", storage.Cond{}))
		e.apply(remove("gone", storage.Cond{}))
		before := e.get("e")
		e.s = e.h.Reopen(e.TB, e.s, e.clock.Now)
		e.value("k", fmt.Sprint(round))
		e.absent("gone")
		if after := e.get("e"); after.Rev != before.Rev || !after.Expires.Equal(before.Expires) {
			e.Errorf("got %+v, before %+v", after, before)
		}
		again := e.apply(put("gone", "v", storage.Cond{Absent: true}))
		e.apply(remove("gone", storage.Cond{Rev: again}))
		if seen[rev] || seen[again] || rev == again {
			e.Errorf("revisions %d, %d repeat", rev, again)
		}
		seen[rev], seen[again] = true, true
	}
}

// backupIsConsistent writes pairs while a backup runs: no pair in it may be torn.
func backupIsConsistent(e *env) {
	e.apply(put("a", "0", storage.Cond{}), put("b", "0", storage.Cond{}), put("fixed", "v", storage.Cond{}))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := fmt.Sprint(i)
			if _, err := e.s.Apply(e.Context(), put("a", n, storage.Cond{}), put("b", n, storage.Cond{})); err != nil {
				e.Errorf("apply: %v", err)
				return
			}
		}
	})
	var backups [3]bytes.Buffer
	for i := range backups {
		if err := e.s.Backup(e.Context(), &backups[i]); err != nil {
			e.Errorf("backup: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	for i := range backups {
		e.s = e.h.Restore(e.TB, backups[i].Bytes(), e.clock.Now)
		e.value("fixed", "v")
		if a, b := e.get("a"), e.get("b"); string(a.Value) != string(b.Value) || a.Rev != b.Rev {
			e.Errorf("backup %d: a is %q at %d, b is %q at %d", i, a.Value, a.Rev, b.Value, b.Rev)
		}
		e.apply(put("after", "v", storage.Cond{Absent: true}))
	}
}
