package keyring

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

func (c *clock) add(d time.Duration) { c.set(c.now().Add(d)) }

// faulty is a store that can be made to fail before or after an Apply.
type faulty struct {
	storage.Store
	mu     sync.Mutex
	before func(ops []storage.Op) error
	after  func(ops []storage.Op) error
}

func (f *faulty) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	f.mu.Lock()
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(ops); err != nil {
			return 0, err
		}
	}
	rev, err := f.Store.Apply(ctx, ops...)
	if after != nil && err == nil {
		if err := after(ops); err != nil {
			return 0, err
		}
	}
	return rev, err
}

// writesKeys tells changes of the ring from the settling of one and from the audit log's writes.
func writesKeys(ops []storage.Op) bool {
	for _, op := range ops {
		if op.Table == keyTable {
			return true
		}
	}
	return false
}

// bench is a ring on real parts.
type bench struct {
	t     testing.TB
	dir   string
	clock *clock
	kek   []byte
	store *faulty
	log   *audit.Log
	ring  *Ring
}

// admin may do everything.
func admin() countersign.Caller {
	return countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin, Name: "uid 0"}
}

func newBench(t testing.TB) *bench {
	t.Helper()
	return newBenchAt(t, newClock())
}

func newBenchAt(t testing.TB, c *clock) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir(), clock: c, kek: NewKEK()}
	b.start()
	return b
}

// start opens store and log, and the ring with the bench's KEK.
func (b *bench) start() {
	b.t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(b.dir, "countersign.db"), Now: b.clock.now})
	if err != nil {
		b.t.Fatal(err)
	}
	b.store = &faulty{Store: s}
	b.log, err = audit.Open(context.Background(), audit.Config{
		Dir: filepath.Join(b.dir, "audit"), Store: s, Now: b.clock.now, Segment: 1 << 20, Reserve: -1,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	log := b.log
	b.t.Cleanup(func() { log.Close(); s.Close() })
	b.ring = b.open(b.kek)
}

// stop closes what start opened.
func (b *bench) stop() {
	b.t.Helper()
	if err := errors.Join(b.log.Close(), b.store.Close()); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) config(kek []byte) Config {
	return Config{Store: b.store, Audit: b.log, KEK: kek, Now: b.clock.now, Logger: slog.New(slog.NewTextHandler(b.t.Output(), nil))}
}

// open opens one more ring on the bench's store: another node, or this one after a restart.
func (b *bench) open(kek []byte) *Ring {
	b.t.Helper()
	r, err := Open(b.t.Context(), b.config(kek))
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// init makes the first token keys.
func (b *bench) init() []Key {
	b.t.Helper()
	keys, err := b.ring.Create(b.t.Context(), admin(), NewKey{Purpose: Token, Alg: algES256}, NewKey{Purpose: Token, Alg: algRS256})
	if err != nil {
		b.t.Fatal(err)
	}
	return keys
}

func (b *bench) rotate(r *Ring, o RotateOptions) Plan {
	b.t.Helper()
	plan, err := r.Rotate(b.t.Context(), admin(), Token, o)
	if err != nil {
		b.t.Fatal(err)
	}
	return plan
}

// events are the ring's audit records so far, as "type outcome".
func (b *bench) events() []string {
	b.t.Helper()
	var got []string
	for _, r := range b.records() {
		got = append(got, r.Type+" "+string(r.Outcome))
	}
	return got
}

func (b *bench) records() []audit.Record {
	b.t.Helper()
	var got []audit.Record
	for r, err := range b.log.Records(b.t.Context(), 1) {
		if err != nil {
			b.t.Fatal(err)
		}
		if len(r.Type) > 4 && r.Type[:4] == "key." {
			got = append(got, r)
		}
	}
	return got
}

// wantCode fails unless err is a *countersign.Error of the code.
func wantCode(t testing.TB, err error, code countersign.Code) {
	t.Helper()
	var e *countersign.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
}
