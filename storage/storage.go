// Package storage keeps small records in named tables, durably, behind one seam for bbolt and PostgreSQL.
//
// It never holds history (storage/audit does), never signs, fetches or sleeps inside an operation, and never hands out
// a record whose checksum does not fit. An index is another table, written in the same batch. Absence never means yes:
// what must be refused ("revoked", "used") is a state in a record, because no checksum can see a missing record.
package storage

import (
	"context"
	"errors"
	"io"
	"time"
)

// What a [Store] answers. Match them with errors.Is.
var (
	ErrNotFound = errors.New("storage: not found")       // absent, or expired by the engine's clock
	ErrConflict = errors.New("storage: conflict")        // a condition failed; nothing applied; see *ConflictError
	ErrBusy     = errors.New("storage: busy or full")    // queue or disk full; nothing applied; retry later
	ErrUnknown  = errors.New("storage: outcome unknown") // may be applied: read the guarded key, never guess
	ErrCorrupt  = errors.New("storage: record damaged")  // never to be treated as ErrNotFound
	ErrClosed   = errors.New("storage: closed")          // after Close; nothing applied
)

// ConflictError says which operation's condition failed. errors.Is(err, ErrConflict) holds.
type ConflictError struct {
	Index int // into the batch
	Found Rev // the record's revision, 0 if absent
}

// Error is the text of ErrConflict.
func (e *ConflictError) Error() string { return ErrConflict.Error() }

// Is makes errors.Is(err, ErrConflict) hold.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// Rev identifies one version of one record. It never repeats for a key, also across delete and re-creation. It has no
// order between keys. 0 means absent.
type Rev uint64

// Item is a copy; the caller may keep and change it.
type Item struct {
	Key     string
	Value   []byte
	Rev     Rev
	Expires time.Time // zero: never. From this instant Get, List and conditions see the record as absent
}

// Kind is what an [Op] does.
type Kind uint8

// The kinds of operation.
const (
	Put    Kind = iota + 1
	Delete      // deleting an absent key is no error unless If demands it
	Check       // changes nothing: If must hold at the commit (fences, "policy is still version n")
)

// Limits of the contract; an engine refuses what exceeds them with an error that is none of the sentinels.
const (
	MaxKey   = 512     // bytes; at least 1
	MaxValue = 1 << 20 // bytes
	MaxOps   = 64      // operations of one Apply; at least 1
	MaxBatch = 2 << 20 // bytes of keys and values of one Apply
	MaxPage  = 1000    // items of one List; at least 1
)

// Op is one change or check. Table is [a-z_]{1,32}; keys are in bytewise order.
type Op struct {
	Kind       Kind
	Table, Key string
	Value      []byte
	Expires    time.Time
	If         Cond
}

// Cond must hold in the state that the same commit changes. The zero Cond always holds.
type Cond struct {
	Absent bool
	Rev    Rev // if not 0: exactly this revision, not expired
}

// Page is a snapshot; two pages of one listing are not. Next is the After of the next page, "" at the end.
type Page struct {
	Items []Item
	Next  string
}

// ListOptions choose a page: keys that begin with Prefix and are greater than After, at most Limit (1 to 1000).
type ListOptions struct {
	Prefix, After string
	Limit         int
}

// Store is safe for concurrent use. Leases are records: Put{Absent, Expires} takes, Put{Rev} renews, Check fences.
type Store interface {
	// Get is linearizable.
	Get(ctx context.Context, table, key string) (Item, error)
	// List answers one page. A table that was never written is empty.
	List(ctx context.Context, table string, o ListOptions) (Page, error)
	// Apply does all of ops (1-64, 2 MiB, no key written twice) or nothing; durable on nil; the Rev is that of every
	// record put. Callers share commits, not outcomes. If ctx ends before the batch is taken up: ctx.Err(), nothing
	// applied. Later the true outcome is awaited, or ErrUnknown. A failed fsync does not return: Config.Fatal is called.
	Apply(ctx context.Context, ops ...Op) (Rev, error)
	// Changed is closed at or after the next change of table by any node, at most 1 s late, perhaps without cause; of a
	// change by this store, before Apply returns. Call it, then read, then wait.
	Changed(table string) <-chan struct{}
	// Now is the engine's clock, which decides expiry.
	Now(ctx context.Context) (time.Time, error)
	// Prune removes at most limit expired records of table and says how many.
	Prune(ctx context.Context, table string, limit int) (int, error)
	// Backup writes one consistent snapshot, throttled.
	Backup(ctx context.Context, w io.Writer) error
	// Close waits for batches taken up.
	Close() error
}
