package storetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

// engine is a sound store of which a defect replaces single methods.
type engine struct {
	storage.Store
	get     func(ctx context.Context, table, key string) (storage.Item, error)
	list    func(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error)
	apply   func(ctx context.Context, ops ...storage.Op) (storage.Rev, error)
	changed func(table string) <-chan struct{}
	now     func(ctx context.Context) (time.Time, error)
	prune   func(ctx context.Context, table string, limit int) (int, error)
	close   func() error
}

func (e *engine) Get(ctx context.Context, table, key string) (storage.Item, error) {
	return e.get(ctx, table, key)
}

func (e *engine) List(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error) {
	return e.list(ctx, table, o)
}

func (e *engine) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	return e.apply(ctx, ops...)
}

func (e *engine) Changed(table string) <-chan struct{}                  { return e.changed(table) }
func (e *engine) Now(ctx context.Context) (time.Time, error)            { return e.now(ctx) }
func (e *engine) Prune(c context.Context, t string, n int) (int, error) { return e.prune(c, t, n) }
func (e *engine) Close() error                                          { return e.close() }

func sound(s storage.Store) *engine {
	return &engine{
		Store: s, get: s.Get, list: s.List, apply: s.Apply, changed: s.Changed, now: s.Now, prune: s.Prune, close: s.Close,
	}
}

// defect is one way in which an engine may be wrong, and a check that must find it.
type defect struct {
	name, check string
	spoil       func(e *engine, s storage.Store)
}

// eachOp applies op by op what f makes of each.
func eachOp(s storage.Store, f func(storage.Op) storage.Op) func(context.Context, ...storage.Op) (storage.Rev, error) {
	return func(ctx context.Context, ops ...storage.Op) (rev storage.Rev, err error) {
		for _, op := range ops {
			if rev, err = s.Apply(ctx, f(op)); err != nil {
				return 0, err
			}
		}
		return rev, nil
	}
}

// allOps applies what f makes of each op, at once.
func allOps(s storage.Store, f func(storage.Op) storage.Op) func(context.Context, ...storage.Op) (storage.Rev, error) {
	return func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
		changed := make([]storage.Op, len(ops))
		for i, op := range ops {
			changed[i] = f(op)
		}
		return s.Apply(ctx, changed...)
	}
}

func same(op storage.Op) storage.Op { return op }

func defects() []defect {
	return slices.Concat(recordDefects(), batchDefects(), conditionDefects(), listDefects(), lifeDefects())
}

func recordDefects() []defect {
	return []defect{
		{"loses the last byte", "a record is read as it was put", func(e *engine, s storage.Store) {
			e.get = func(ctx context.Context, table, key string) (storage.Item, error) {
				item, err := s.Get(ctx, table, key)
				item.Value = item.Value[:max(0, len(item.Value)-1)]
				return item, err
			}
		}},
		{"an absent record is empty", "an unknown key is not found", func(e *engine, s storage.Store) {
			e.get = func(ctx context.Context, table, key string) (storage.Item, error) {
				item, err := s.Get(ctx, table, key)
				if errors.Is(err, storage.ErrNotFound) {
					return storage.Item{}, nil
				}
				return item, err
			}
		}},
		{"hands out its memory", "items are copies", func(e *engine, s storage.Store) {
			cache := map[string]storage.Item{}
			e.get = func(ctx context.Context, table, key string) (storage.Item, error) {
				if item, ok := cache[key]; ok {
					return item, nil
				}
				item, err := s.Get(ctx, table, key)
				cache[key] = item
				return item, err
			}
		}},
		{"joins table and key", "tables are apart", func(e *engine, s storage.Store) {
			e.apply = allOps(s, func(op storage.Op) storage.Op { op.Table, op.Key = "all", op.Table+op.Key; return op })
		}},
		{"keeps the old expiry", "a put replaces value and expiry", func(e *engine, s storage.Store) {
			e.apply = allOps(s, func(op storage.Op) storage.Op {
				if old, err := s.Get(context.Background(), op.Table, op.Key); err == nil && op.Kind == storage.Put {
					op.Expires = old.Expires
				}
				return op
			})
		}},
		{"deleting needs a record", "deleting an absent key is no error", func(e *engine, s storage.Store) {
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				if _, err := s.Get(ctx, ops[0].Table, ops[0].Key); err != nil && ops[0].Kind == storage.Delete {
					return 0, err
				}
				return s.Apply(ctx, ops...)
			}
		}},
		{"reads are one behind", "get sees each finished apply", func(e *engine, s storage.Store) {
			var mu sync.Mutex
			before := map[string]storage.Item{}
			e.get = func(ctx context.Context, table, key string) (storage.Item, error) {
				mu.Lock()
				defer mu.Unlock()
				item, err := s.Get(ctx, table, key)
				old, ok := before[key]
				before[key] = item
				if ok {
					return old, nil
				}
				return item, err
			}
		}},
	}
}

func batchDefects() []defect {
	return []defect{
		{"stops in the middle", "a batch is all or nothing",
			func(e *engine, s storage.Store) { e.apply = eachOp(s, same) }},
		{"reads its own writes", "a batch reads the state before it",
			func(e *engine, s storage.Store) { e.apply = eachOp(s, same) }},
		{"a revision for each record", "one revision for all records of a batch",
			func(e *engine, s storage.Store) { e.apply = eachOp(s, same) }},
		{"a torn pair", "a backup is one consistent snapshot",
			func(e *engine, s storage.Store) { e.apply = eachOp(s, same) }},
		{"a revision counts what is there", "a revision never repeats for a key", func(e *engine, s storage.Store) {
			revs := map[string]storage.Rev{}
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				revs[ops[0].Key]++
				if ops[0].Kind == storage.Delete {
					delete(revs, ops[0].Key)
				}
				_, err := s.Apply(ctx, ops...)
				return revs[ops[0].Key], err
			}
		}},
		{"drops what is too much", "limits are refused", func(e *engine, s storage.Store) {
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				rev, err := s.Apply(ctx, ops...)
				if err != nil && !sentinel(err) {
					return 1, nil
				}
				return rev, err
			}
		}},
		{"is busy with what is too much", "limits are refused", func(e *engine, s storage.Store) {
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				rev, err := s.Apply(ctx, ops...)
				if err != nil && !sentinel(err) {
					return 0, storage.ErrBusy
				}
				return rev, err
			}
		}},
		{"takes one MiB at most", "maxima are accepted", func(e *engine, s storage.Store) {
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				if len(ops[0].Value)+len(ops[0].Key) > 1<<20 {
					return 0, errors.New("too long")
				}
				return s.Apply(ctx, ops...)
			}
		}},
	}
}

// found changes each conflict.
func found(s storage.Store, f func(*storage.ConflictError)) func(context.Context, ...storage.Op) (storage.Rev, error) {
	return func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
		rev, err := s.Apply(ctx, ops...)
		if c, ok := conflict(err); ok {
			f(c)
		}
		return rev, err
	}
}

func conditionDefects() []defect {
	noAbsent := func(e *engine, s storage.Store) {
		e.apply = allOps(s, func(op storage.Op) storage.Op { op.If.Absent = false; return op })
	}
	noRev := func(e *engine, s storage.Store) {
		e.apply = allOps(s, func(op storage.Op) storage.Op { op.If.Rev = 0; return op })
	}
	return []defect{
		{"ignores Absent", "conditions hold or conflict", noAbsent},
		{"ignores Absent", "of many creators one wins", noAbsent},
		{"ignores Rev", "conditions hold or conflict", noRev},
		{"ignores Rev", "a counter loses no increment", noRev},
		{"ignores Check", "conditions hold or conflict", func(e *engine, s storage.Store) {
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				if ops[0].Kind == storage.Check {
					return 0, nil
				}
				return s.Apply(ctx, ops...)
			}
		}},
		{"finds nothing", "conditions hold or conflict", func(e *engine, s storage.Store) {
			e.apply = found(s, func(c *storage.ConflictError) { c.Found = 0 })
		}},
		{"names the first operation", "a conflict names operation and revision", func(e *engine, s storage.Store) {
			e.apply = found(s, func(c *storage.ConflictError) { c.Index = 0 })
		}},
		{"a conflict hits the next one too", "callers share commits not outcomes", func(e *engine, s storage.Store) {
			var mu sync.Mutex
			var last error
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				mu.Lock()
				defer mu.Unlock()
				if err := last; err != nil {
					last = nil
					return 0, err
				}
				rev, err := s.Apply(ctx, ops...)
				last = err
				return rev, err
			}
		}},
	}
}

// listing changes how List is asked and what it answers.
func listing(ask func(*storage.ListOptions), answer func(*storage.Page)) func(e *engine, s storage.Store) {
	return func(e *engine, s storage.Store) {
		e.list = func(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error) {
			ask(&o)
			page, err := s.List(ctx, table, o)
			answer(&page)
			return page, err
		}
	}
}

func listDefects() []defect {
	asIs := func(*storage.ListOptions) {}
	plain := func(*storage.Page) {}
	const pages, order = "list honours prefix after and limit", "list is in bytewise order"
	return []defect{
		{"turns the order", order, listing(asIs, func(p *storage.Page) { slices.Reverse(p.Items) })},
		{"ignores Prefix", pages, listing(func(o *storage.ListOptions) { o.Prefix = "" }, plain)},
		{"includes After", pages, listing(func(o *storage.ListOptions) { o.After = o.After[:max(0, len(o.After)-1)] }, plain)},
		{"ignores Limit", pages, listing(func(o *storage.ListOptions) { o.Limit = storage.MaxPage }, plain)},
		{"never has a next page", pages, listing(asIs, func(p *storage.Page) { p.Next = "" })},
		{"keeps the first listing", "list goes on while keys change", func(e *engine, s storage.Store) {
			var all *storage.Page
			e.list = func(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error) {
				if all == nil {
					page, err := s.List(ctx, table, storage.ListOptions{Limit: storage.MaxPage})
					if err != nil {
						return page, err
					}
					all = &page
					return s.List(ctx, table, o)
				}
				return *all, nil
			}
		}},
		{"expires a microsecond late", "a record is gone at the instant of its expiry", func(e *engine, s storage.Store) {
			e.apply = allOps(s, func(op storage.Op) storage.Op {
				if !op.Expires.IsZero() {
					op.Expires = op.Expires.Add(time.Microsecond)
				}
				return op
			})
		}},
		{"lists expired records", "expired records are not listed", func(e *engine, s storage.Store) {
			e.apply = allOps(s, func(op storage.Op) storage.Op { op.Expires = time.Time{}; return op })
		}},
	}
}

func lifeDefects() []defect {
	return []defect{
		{"prunes what lives", "prune removes expired records only", func(e *engine, s storage.Store) {
			e.prune = func(ctx context.Context, table string, limit int) (int, error) {
				n, err := s.Prune(ctx, table, limit)
				_, deleteErr := s.Apply(ctx, storage.Op{Kind: storage.Delete, Table: table, Key: "never"})
				return n, errors.Join(err, deleteErr)
			}
		}},
		{"only says that it prunes", "prune removes expired records only", func(e *engine, _ storage.Store) {
			e.prune = func(_ context.Context, _ string, limit int) (int, error) { return min(1, limit), nil }
		}},
		{"prunes without limit", "prune honours its limit", func(e *engine, s storage.Store) {
			e.prune = func(ctx context.Context, table string, _ int) (int, error) { return s.Prune(ctx, table, 1000) }
		}},
		{"wakes late", "changed is closed when a change is done", func(e *engine, s storage.Store) {
			e.changed = func(table string) <-chan struct{} {
				inner, late := s.Changed(table), make(chan struct{})
				go func() {
					<-inner
					time.Sleep(20 * time.Millisecond)
					close(late)
				}()
				return late
			}
		}},
		{"wakes nobody", "changed is closed by a change", func(e *engine, _ storage.Store) {
			e.changed = func(string) <-chan struct{} { return make(chan struct{}) }
		}},
		{"has a clock of its own", "now is the clock that decides expiry", func(e *engine, _ storage.Store) {
			e.now = func(context.Context) (time.Time, error) { return time.Now(), nil }
		}},
		{"does not look at the context", "a context that has ended applies nothing", func(e *engine, s storage.Store) {
			e.apply = func(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
				return s.Apply(context.WithoutCancel(ctx), ops...)
			}
		}},
		{"does not close", "a closed store says so", func(e *engine, _ storage.Store) {
			e.close = func() error { return nil }
		}},
		{"forgets", "records and revisions survive reopening", nil}, // see TestBrokenEngines
	}
}

// recorder takes the place of a test that is to fail.
type recorder struct {
	testing.TB
	mu     sync.Mutex
	failed bool
}

func (r *recorder) fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.fail() }
func (r *recorder) Fatal(...any)          { r.fail(); runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.fail(); runtime.Goexit() }

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// fails runs c on the engine of h and says whether it found something. A panic counts.
func fails(t *testing.T, c check, h Harness) bool {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if recover() != nil {
				r.fail()
			}
		}()
		e := newEnv(r, h)
		e.patience = 20 * time.Millisecond
		c.run(e)
	}()
	<-done
	return r.Failed()
}

// boltHarness opens bolt stores and spoils them; reopening opens another, empty one.
func boltHarness(t *testing.T, spoil func(*engine, storage.Store)) Harness {
	at := func(path string, now func() time.Time) storage.Store {
		s, err := bolt.Open(bolt.Config{Path: path, Now: now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() }) //nolint:errcheck // closed already by most
		e := sound(s)
		if spoil != nil {
			spoil(e, s)
		}
		return e
	}
	fresh := func(_ testing.TB, now func() time.Time) storage.Store {
		return at(filepath.Join(t.TempDir(), "store.db"), now)
	}
	return Harness{
		Open:   fresh,
		Reopen: func(tb testing.TB, _ storage.Store, now func() time.Time) storage.Store { return fresh(tb, now) },
		Restore: func(_ testing.TB, backup []byte, now func() time.Time) storage.Store {
			path := filepath.Join(t.TempDir(), "restored.db")
			if err := os.WriteFile(path, backup, 0o600); err != nil {
				t.Fatal(err)
			}
			return at(path, now)
		},
	}
}

// TestBrokenEngines shows for each check an engine with one defect that fails it.
func TestBrokenEngines(t *testing.T) {
	proven := map[string]bool{}
	for _, d := range defects() {
		i := slices.IndexFunc(checks(), func(c check) bool { return c.name == d.check })
		if i < 0 {
			t.Fatalf("no check is named %q", d.check)
		}
		t.Run(d.check+" "+d.name, func(t *testing.T) {
			if !fails(t, checks()[i], boltHarness(t, d.spoil)) {
				t.Errorf("the check %q passes on an engine that %s", d.check, d.name)
			}
		})
		proven[d.check] = true
	}
	for _, c := range checks() {
		if !proven[c.name] {
			t.Errorf("no defect shows that the check %q can fail", c.name)
		}
	}
}

// TestRecorderIsHonest shows that what TestBrokenEngines counts as failing is the defect: a sound engine passes.
func TestRecorderIsHonest(t *testing.T) {
	for _, c := range checks() {
		if !c.reopens && fails(t, c, boltHarness(t, nil)) {
			t.Errorf("the check %q fails on a sound engine", c.name)
		}
	}
}
