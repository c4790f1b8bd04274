package bolt

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/storage"
)

func openTest(t testing.TB) *Store {
	t.Helper()
	s, err := Open(Config{Path: filepath.Join(t.TempDir(), "store.db"), Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(key string, cond storage.Cond) storage.Op {
	return storage.Op{Kind: storage.Put, Table: "things", Key: key, Value: []byte("v"), If: cond}
}

// hold occupies the writer until release is called; held is closed when it is.
func hold(s *Store) (held chan struct{}, release func()) {
	held, free := make(chan struct{}), make(chan struct{})
	go s.submit(context.Background(), &request{do: func(*txn) (storage.Rev, error) { //nolint:errcheck // nothing to fail
		close(held)
		<-free
		return 0, nil
	}})
	return held, sync.OnceFunc(func() { close(free) })
}

// queued waits until n requests wait.
func queued(s *Store, n int) {
	for {
		s.queue.mu.Lock()
		waiting := len(s.queue.waiting)
		s.queue.mu.Unlock()
		if waiting == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestGroupSharesOneCommit lets 40 creators of 20 keys wait for the writer: one transaction, 20 winners, and each loser
// sees the revision that the winner put in the same commit.
func TestGroupSharesOneCommit(t *testing.T) {
	s := openTest(t)
	held, release := hold(s)
	defer release()
	<-held
	before := s.gate.last()
	revs, errs := make([]storage.Rev, 40), make([]error, 40)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			revs[i], errs[i] = s.Apply(t.Context(), put(fmt.Sprint("k", i/2), storage.Cond{Absent: true}))
		})
	}
	queued(s, 40)
	release()
	wg.Wait()
	if commits := s.gate.last() - before; commits != 1 {
		t.Errorf("%d commits, want 1", commits)
	}
	seen := map[storage.Rev]bool{}
	for i := 0; i < 40; i += 2 {
		winner, loser := i, i+1
		if errs[winner] != nil {
			winner, loser = loser, winner
		}
		var conflict *storage.ConflictError
		if errs[winner] != nil || !errors.As(errs[loser], &conflict) || conflict.Found != revs[winner] || seen[revs[winner]] {
			t.Errorf("key %d: %v at %d, %v", i/2, errs[winner], revs[winner], errs[loser])
		}
		seen[revs[winner]] = true
	}
}

// TestContextCountsUntilTakenUp cancels one batch that waits and one that the writer has taken up.
func TestContextCountsUntilTakenUp(t *testing.T) {
	s := openTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	taken, free := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := s.submit(ctx, &request{do: func(x *txn) (storage.Rev, error) {
			close(taken)
			<-free
			return x.apply([]storage.Op{put("taken", storage.Cond{})})
		}})
		done <- err
	}()
	<-taken
	waiting := make(chan error, 1)
	go func() {
		_, err := s.Apply(ctx, put("waiting", storage.Cond{}))
		waiting <- err
	}()
	queued(s, 1)
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("the waiting batch: got %v, want context.Canceled", err)
	}
	close(free)
	if err := <-done; err != nil {
		t.Errorf("the batch taken up: got %v, want its true outcome", err)
	}
	if _, err := s.Get(t.Context(), "things", "taken"); err != nil {
		t.Errorf("the batch taken up: %v", err)
	}
	if _, err := s.Get(t.Context(), "things", "waiting"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the waiting batch: got %v, want ErrNotFound", err)
	}
}

func TestQueueIsBounded(t *testing.T) {
	for name, c := range map[string]struct{ size, fits int }{"requests": {1, maxWaiting}, "bytes": {1 << 20, 64}} {
		var q queue
		q.init()
		n := 0
		var err error
		for ; err == nil; n++ {
			err = q.put(&request{size: c.size, done: make(chan struct{})})
		}
		if n-1 != c.fits || !errors.Is(err, storage.ErrBusy) {
			t.Errorf("%s: %d fit, then %v; want %d, ErrBusy", name, n-1, err, c.fits)
		}
		bytes := 0
		for _, r := range q.take() {
			bytes += r.size
		}
		if bytes > maxGroupBytes {
			t.Errorf("%s: a group has %d bytes", name, bytes)
		}
		if err := q.put(&request{size: c.size}); err != nil {
			t.Errorf("%s: with room again: %v", name, err)
		}
	}
}

func TestCloseRefusesWhatWaits(t *testing.T) {
	s := openTest(t)
	held, release := hold(s)
	defer release()
	<-held
	waiting, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := s.Apply(t.Context(), put("k", storage.Cond{}))
		waiting <- err
	}()
	queued(s, 1)
	go func() { closed <- s.Close() }()
	if err := <-waiting; !errors.Is(err, storage.ErrClosed) {
		t.Errorf("the waiting batch: got %v, want ErrClosed", err)
	}
	release()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// TestPanicIsOneCallersOwn puts a batch that meets a damaged page among sound ones.
func TestPanicIsOneCallersOwn(t *testing.T) {
	s := openTest(t)
	held, release := hold(s)
	defer release()
	<-held
	errs := make([]error, 9)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			_, errs[i] = s.submit(t.Context(), &request{do: func(x *txn) (storage.Rev, error) {
				rev, err := x.apply([]storage.Op{put(fmt.Sprint("k", i), storage.Cond{Absent: true})})
				if i == 4 {
					panic("a page is not what it should be")
				}
				return rev, err
			}})
		})
	}
	queued(s, len(errs))
	release()
	wg.Wait()
	for i, err := range errs {
		_, getErr := s.Get(t.Context(), "things", fmt.Sprint("k", i))
		if i == 4 {
			if !errors.Is(err, storage.ErrCorrupt) || !errors.Is(getErr, storage.ErrNotFound) {
				t.Errorf("the damaged one: %v, then %v", err, getErr)
			}
		} else if err != nil || getErr != nil {
			t.Errorf("batch %d: %v, then %v", i, err, getErr)
		}
	}
}

// TestReadWaitsForSync shows a reader a transaction that is not durable yet.
func TestReadWaitsForSync(t *testing.T) {
	s := openTest(t)
	if _, err := s.Apply(t.Context(), put("k", storage.Cond{})); err != nil {
		t.Fatal(err)
	}
	last := s.gate.last()
	s.gate.move(last-1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.gate.wait(ctx, last); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to wait", err)
	}
	got := make(chan error)
	go func() {
		_, err := s.Get(t.Context(), "things", "k")
		got <- err
	}()
	select {
	case err := <-got:
		t.Errorf("answered before the sync: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	s.gate.move(last, nil)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestPruneReadsWhatExpires has 2,000 records that live and 5 that don't: only those are looked at, by index.
func TestPruneReadsWhatExpires(t *testing.T) {
	s := openTest(t)
	now := time.Now()
	for i := range 2005 / 5 {
		ops := make([]storage.Op, 5)
		for j := range ops {
			ops[j] = put(fmt.Sprint("k", i, ".", j), storage.Cond{})
			ops[j].Expires = now.Add(time.Hour)
			if i == 7 {
				ops[j].Expires = now.Add(-time.Duration(j) * time.Hour)
			}
		}
		if _, err := s.Apply(t.Context(), ops...); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.submit(t.Context(), &request{do: func(x *txn) (storage.Rev, error) {
		due := x.due("things", 1000)
		if len(due) != 5 {
			t.Errorf("%d are due, want 5", len(due))
		}
		for i, entry := range due {
			if _, key, ok := splitExpiryKey("things", entry); !ok || key != fmt.Sprint("k7.", 4-i) {
				t.Errorf("entry %d is %q, want the oldest first", i, key)
			}
		}
		return 0, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Prune(t.Context(), "things", 1000); n != 5 || err != nil {
		t.Errorf("pruned %d, %v; want 5", n, err)
	}
}
