// Package storetest holds the tests that every engine of [storage.Store] must pass: each sentence of the contract is one.
//
// It never looks at an engine's inside and needs no fault injection; what a crash, a full disk or a damaged file does is
// tested by each engine. Each of its tests has been seen to fail on an engine with that one defect (broken_test.go).
package storetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/storage"
)

// patience bounds waiting for something that must happen; only a broken engine takes so long.
const patience = 10 * time.Second

// Harness makes stores of one engine. A store's clock is now, to the microsecond at least.
type Harness struct {
	// Open makes a fresh, empty store. Whoever made it closes it at the end of the test; closing twice is allowed.
	Open func(t testing.TB, now func() time.Time) storage.Store
	// Reopen closes s, which Open made, and opens its data again. nil: the tests that need it are left out.
	Reopen func(t testing.TB, s storage.Store, now func() time.Time) storage.Store
	// Restore makes a store of what Backup wrote. nil: the tests that need it are left out.
	Restore func(t testing.TB, backup []byte, now func() time.Time) storage.Store
}

// Run tests the engine behind open, without what needs [Harness].Reopen and Restore.
func Run(t *testing.T, open func(t *testing.T, now func() time.Time) storage.Store) {
	Harness{Open: func(tb testing.TB, now func() time.Time) storage.Store {
		return open(tb.(*testing.T), now)
	}}.Run(t)
}

// Run tests the engine of h.
func (h Harness) Run(t *testing.T) {
	for _, c := range checks() {
		if c.possible(h) {
			t.Run(c.name, func(t *testing.T) { c.run(newEnv(t, h)) })
		}
	}
}

// check is one test. It takes the interface, so that a test of the test can let it fail.
type check struct {
	name             string
	reopens, restore bool
	run              func(*env)
}

func (c check) possible(h Harness) bool {
	return (!c.reopens || h.Reopen != nil) && (!c.restore || h.Restore != nil)
}

func checks() []check {
	return []check{
		{name: "a record is read as it was put", run: readAsPut},
		{name: "an unknown key is not found", run: unknownKey},
		{name: "items are copies", run: itemsAreCopies},
		{name: "tables are apart", run: tablesAreApart},
		{name: "a put replaces value and expiry", run: putReplaces},
		{name: "deleting an absent key is no error", run: deleteAbsent},
		{name: "get sees each finished apply", run: getIsLinearizable},
		{name: "a batch is all or nothing", run: allOrNothing},
		{name: "a batch reads the state before it", run: stateBefore},
		{name: "one revision for all records of a batch", run: oneRevision},
		{name: "a revision never repeats for a key", run: revisionsNeverRepeat},
		{name: "limits are refused", run: limitsRefused},
		{name: "maxima are accepted", run: maximaAccepted},
		{name: "conditions hold or conflict", run: conditionMatrix},
		{name: "a conflict names operation and revision", run: conflictNames},
		{name: "of many creators one wins", run: oneCreatorWins},
		{name: "a counter loses no increment", run: counterLosesNothing},
		{name: "callers share commits not outcomes", run: outcomesAreApart},
		{name: "list is in bytewise order", run: listOrder},
		{name: "list honours prefix after and limit", run: listPages},
		{name: "list goes on while keys change", run: listWhileChanging},
		{name: "a record is gone at the instant of its expiry", run: expiryInstant},
		{name: "expired records are not listed", run: expiredNotListed},
		{name: "prune removes expired records only", run: pruneOnlyExpired},
		{name: "prune honours its limit", run: pruneLimit},
		{name: "changed is closed by a change", run: changedWakes},
		{name: "changed is closed when a change is done", run: changedAtOnce},
		{name: "now is the clock that decides expiry", run: nowIsTheClock},
		{name: "a context that has ended applies nothing", run: endedContext},
		{name: "a closed store says so", run: closedStore},
		{name: "records and revisions survive reopening", run: survivesReopen, reopens: true},
		{name: "a backup is one consistent snapshot", run: backupIsConsistent, restore: true},
	}
}

// env is what one check works with: a fresh store under a clock that stands still.
type env struct {
	testing.TB
	h        Harness
	s        storage.Store
	clock    *clock
	patience time.Duration
}

func newEnv(t testing.TB, h Harness) *env {
	c := &clock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	return &env{TB: t, h: h, s: h.Open(t, c.Now), clock: c, patience: patience}
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

const table = "things"

func put(key, value string, cond storage.Cond) storage.Op {
	return storage.Op{Kind: storage.Put, Table: table, Key: key, Value: []byte(value), If: cond}
}

func expiring(key string, at time.Time) storage.Op {
	return storage.Op{Kind: storage.Put, Table: table, Key: key, Value: []byte(key), Expires: at}
}

func remove(key string, cond storage.Cond) storage.Op {
	return storage.Op{Kind: storage.Delete, Table: table, Key: key, If: cond}
}

func probe(key string, cond storage.Cond) storage.Op {
	return storage.Op{Kind: storage.Check, Table: table, Key: key, If: cond}
}

func (e *env) apply(ops ...storage.Op) storage.Rev {
	e.Helper()
	rev, err := e.s.Apply(e.Context(), ops...)
	if err != nil {
		e.Fatalf("apply: %v", err)
	}
	return rev
}

func (e *env) get(key string) storage.Item {
	e.Helper()
	item, err := e.s.Get(e.Context(), table, key)
	if err != nil {
		e.Fatalf("get %q: %v", key, err)
	}
	return item
}

// absent fails the test if key is there.
func (e *env) absent(key string) {
	e.Helper()
	if item, err := e.s.Get(e.Context(), table, key); !errors.Is(err, storage.ErrNotFound) || item.Rev != 0 {
		e.Errorf("get %q: got %+v, %v; want ErrNotFound", key, item, err)
	}
}

func (e *env) value(key, want string) {
	e.Helper()
	if got := e.get(key); string(got.Value) != want {
		e.Errorf("get %q: got %q, want %q", key, got.Value, want)
	}
}

// keys lists everything under prefix, in pages of limit. It gives up when a listing does not end.
func (e *env) keys(prefix string, limit int) []string {
	e.Helper()
	var keys []string
	for after, pages := "", 0; ; pages++ {
		page, err := e.s.List(e.Context(), table, storage.ListOptions{Prefix: prefix, After: after, Limit: limit})
		if err != nil {
			e.Fatalf("list: %v", err)
		}
		if len(page.Items) > limit {
			e.Errorf("list: %d items exceed the limit %d", len(page.Items), limit)
		}
		for _, item := range page.Items {
			keys = append(keys, item.Key)
		}
		if page.Next == "" {
			return keys
		}
		if pages > 2000 || page.Next <= after {
			e.Fatalf("list after %q goes on after %q: it does not end", after, page.Next)
		}
		after = page.Next
	}
}

func conflict(err error) (*storage.ConflictError, bool) {
	var c *storage.ConflictError
	return c, errors.As(err, &c) && errors.Is(err, storage.ErrConflict)
}

// sentinel says whether err is one of the package's, which a refused argument must not be.
func sentinel(err error) bool {
	for _, target := range []error{
		storage.ErrNotFound, storage.ErrConflict, storage.ErrBusy, storage.ErrUnknown, storage.ErrCorrupt,
		storage.ErrClosed, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// parallel runs n calls at the same time. A call must not end the test.
func parallel(n int, call func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { call(i) })
	}
	wg.Wait()
}
