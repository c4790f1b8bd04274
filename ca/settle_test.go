package ca

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

func TestMarkNeverPassesAnOpenIntent(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	h.join("orders", newKey(t, ""))
	h.flights.begin("01", countersign.ID{}, 5)
	stored := func() uint64 {
		t.Helper()
		head := h.log.Head().Seq
		if err := h.housekeep(ctx, head, 0); err != nil {
			t.Fatal(err)
		}
		entry, err := stateTable().Get(ctx, h.bolt, markKey)
		if err != nil {
			t.Fatal(err)
		}
		return entry.Value.Seq
	}
	if got := stored(); got != 5 {
		t.Fatalf("the mark is %d while an intent after 5 is open", got)
	}
	h.flights.leave("01") // its outcome could not be written: housekeeping writes it
	head := h.log.Head().Seq
	if got := stored(); got < head {
		t.Fatalf("the mark is %d, the head was %d", got, head)
	}
	if got := h.events(eventAbandoned); len(got) != 1 || got[0].Subject != "01" {
		t.Fatalf("events %+v", got)
	}
}

// TestRefusedIntentLeavesNothing: while nothing can be recorded, requests must not fill the memory, and what never began
// is not told to be abandoned afterwards.
func TestRefusedIntentLeavesNothing(t *testing.T) {
	h := newHouse(t, nil)
	by, key := h.joiner("orders"), newKey(t, "")
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, key)})
		wantCode(t, err, countersign.CodeAudit)
	}
	if n := len(h.flights.open); n != 0 {
		t.Errorf("%d serials of refused requests are remembered", n)
	}
	h.reopen()
	if got := h.events(eventAbandoned); len(got) != 0 {
		t.Errorf("events %+v", got)
	}
	if _, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, key)}); err != nil {
		t.Errorf("the client tries again: %v", err)
	}
}

// failing is a store whose writes fail while off is set, and which always finds the certificates damaged when it prunes.
type failing struct {
	storage.Store
	off atomic.Bool
}

var errOff = errors.New("off")

func (s *failing) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	if s.off.Load() {
		return 0, errOff
	}
	return s.Store.Apply(ctx, ops...)
}

func (s *failing) Prune(ctx context.Context, table string, limit int) (int, error) {
	if table == certificatesTable().Name {
		return 0, storage.ErrCorrupt
	}
	return s.Store.Prune(ctx, table, limit)
}

// TestRun sees that each tick does its work whatever became of the one before, that a damaged record of one table keeps no
// other table from being pruned, and that the end of the context ends it.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, nil)
		store := &failing{Store: h.bolt}
		h.cfg.Store = store
		h.joiner("orders")
		h.clock.add(3 * day)
		mark := func() uint64 {
			t.Helper()
			entry, err := stateTable().Get(t.Context(), h.bolt, markKey)
			if err != nil {
				t.Fatal(err)
			}
			return entry.Value.Seq
		}
		h.flights.begin("01", countersign.ID{}, h.log.Head().Seq)
		h.flights.leave("01")
		before := mark()
		store.off.Store(true)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Run(ctx) }()
		time.Sleep(tick + tick/2)
		synctest.Wait()
		if got := h.events(eventAbandoned); len(got) != 1 || mark() != before {
			t.Errorf("a store that fails: %d events, the mark moved from %d to %d", len(got), before, mark())
		}
		store.off.Store(false)
		time.Sleep(tick)
		synctest.Wait()
		if got := mark(); got != h.log.Head().Seq {
			t.Errorf("the mark is %d, the head %d", got, h.log.Head().Seq)
		}
		if n, err := h.bolt.Prune(t.Context(), joinTable().Name, 1); n != 0 || err != nil {
			t.Errorf("the expired join token was left: %d, %v", n, err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
