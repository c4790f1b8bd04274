package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

// maxFaults bounds a report; what is found beyond it is only counted.
const maxFaults = 100

// offlineWait is for a probe of the lock, which holds it for an instant; a daemon holds it for as long as it runs.
const offlineWait = 200 * time.Millisecond

// TableStats is what one table holds.
type TableStats struct {
	Name    string    `json:"name"`
	Records int64     `json:"records"` // expired ones that are not removed yet included
	Expired int64     `json:"expired"`
	Bytes   int64     `json:"bytes"`          // of keys and values, as they are kept
	First   time.Time `json:"first,omitzero"` // the earliest expiry; none: nothing in it expires
	Last    time.Time `json:"last,omitzero"`  // the latest
}

// Inspection is what [Inspect] found.
type Inspection struct {
	File      string       `json:"file"`
	FileBytes int64        `json:"file_bytes"`
	PageBytes int64        `json:"page_bytes"` // of one page
	Pages     int64        `json:"pages"`      // up to the last one that was ever used
	FreePages int64        `json:"free_pages"` // of these, that hold nothing: room for later, or for [Compact] to give back
	Records   int64        `json:"records"`
	Bytes     int64        `json:"bytes"`
	Tables    []TableStats `json:"tables"` // by name
	Faults    []string     `json:"faults"` // empty: the file is whole
}

// Inspect reads all of the file at path under its lock, and changes nothing: the pages and their order, the seal of the last
// commit, the checksum of every record, bbolt's own check, and that whatever expires is in the index by which it is removed.
// What is wrong is in Faults; the error says that the file can't be looked at: a [*LockedError] if somebody has it open. now
// decides what has expired. progress, unless nil, is told now and then how many records were read. Its memory grows with the
// number of pages: 50 to 100 bytes for each.
func Inspect(ctx context.Context, path string, now time.Time, progress func(records int64)) (Inspection, error) {
	f, err := os.Open(path)
	if err != nil {
		return Inspection{}, fmt.Errorf("open store: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read; closing lets go of the lock
	if err := lock(f, offlineWait); err != nil {
		return Inspection{}, fmt.Errorf("open store: %w", err)
	}
	i := inspector{ctx: ctx, now: now, progress: progress, out: Inspection{File: path, Tables: []TableStats{}, Faults: []string{}}}
	whole, err := i.walk(f)
	if err != nil {
		return Inspection{}, err
	}
	// bbolt's check runs in a goroutine of its own, where a page that can't be read would end the process.
	if whole {
		err = i.cross(path, f)
	}
	if i.more > 0 {
		i.out.Faults = append(i.out.Faults, fmt.Sprintf("and %d more", i.more))
	}
	return i.out, err
}

type inspector struct {
	ctx      context.Context //nolint:containedctx // of one call
	now      time.Time
	progress func(int64)
	out      Inspection
	table    *TableStats
	more     int // faults beyond maxFaults
}

func (i *inspector) fault(format string, args ...any) {
	if len(i.out.Faults) == maxFaults {
		i.more++
		return
	}
	i.out.Faults = append(i.out.Faults, fmt.Sprintf(format, args...))
}

// walk reads the file page by page, as [Open] does, and each record besides. It tells whether the pages are sound.
func (i *inspector) walk(f *os.File) (whole bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	i.out.FileBytes = info.Size()
	if info.Size() < 4*1024 {
		i.fault("the file has only %d bytes", info.Size())
		return false, nil
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return false, fmt.Errorf("map: %w", err)
	}
	defer func() { err = errors.Join(err, syscall.Munmap(data)) }()
	switch found := i.pages(data); {
	case found == nil:
		return true, nil
	case errors.Is(found, storage.ErrCorrupt):
		i.fault("%v", found)
		return false, nil
	default:
		return false, found
	}
}

func (i *inspector) pages(data []byte) (err error) {
	defer protect(&err)()
	s := structure{data: data, visit: i.record}
	if s.meta, err = readMetas(data); err != nil {
		return err
	}
	if s.meta.hwm > uint64(len(data))/s.meta.pageSize {
		return fmt.Errorf("%w: the file is cut off", storage.ErrCorrupt)
	}
	i.out.PageBytes, i.out.Pages = int64(s.meta.pageSize), int64(s.meta.hwm) //nolint:gosec // both fit the file
	if err := s.all(); err != nil {
		return err
	}
	used := 0
	for _, word := range s.visited {
		used += bits.OnesCount64(word)
	}
	i.out.FreePages = i.out.Pages - int64(used)
	if s.seal == nil {
		return fmt.Errorf("%w: it has no record of its last revision", storage.ErrCorrupt)
	}
	return s.unseal()
}

// record is told of each record, in the order of tables and keys. A damaged one is a fault, and the next may be sound.
func (i *inspector) record(table, key string, value []byte) error {
	if table[0] == '.' {
		return nil
	}
	if i.table == nil || i.table.Name != table {
		i.out.Tables = append(i.out.Tables, TableStats{Name: table})
		i.table = &i.out.Tables[len(i.out.Tables)-1]
	}
	size := int64(len(key) + len(value))
	i.table.Records, i.table.Bytes = i.table.Records+1, i.table.Bytes+size
	i.out.Records, i.out.Bytes = i.out.Records+1, i.out.Bytes+size
	if i.out.Records%4096 == 0 {
		if err := i.ctx.Err(); err != nil {
			return err
		}
		if i.progress != nil {
			i.progress(i.out.Records)
		}
	}
	r, err := decodeRecord(table, key, value)
	if err != nil {
		i.fault("%v", err)
		return nil
	}
	if r.expires == never {
		return nil
	}
	if !r.live(i.now) {
		i.table.Expired++
	}
	at := time.Unix(0, r.expires).UTC()
	if i.table.First.IsZero() || at.Before(i.table.First) {
		i.table.First = at
	}
	if at.After(i.table.Last) {
		i.table.Last = at
	}
	return nil
}

// cross asks bbolt for its own opinion, and looks for records that would never be removed. It ends with f closed.
func (i *inspector) cross(path string, f *os.File) (err error) {
	defer protect(&err)()
	db, err := bbolt.Open(path, 0, &bbolt.Options{ // f has the lock already; bbolt turns it into a shared one, which still keeps writers out
		ReadOnly: true, NoStatistics: true, Timeout: defaultLockTimeout,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bbolt.Tx) error {
		for found := range tx.Check() {
			i.fault("bbolt: %v", found)
		}
		index := tx.Bucket([]byte(expiryBucket))
		return eachTable(tx, func(name string, b *bbolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				r, err := decodeRecord(name, string(k), v)
				if err == nil && r.expires != never && (index == nil || index.Get(expiryKey(name, r.expires, string(k))) == nil) {
					i.fault("%s %q expires and is not in the index of what does: it would stay for ever", name, k)
				}
				return i.ctx.Err()
			})
		})
	})
}

// eachTable calls do with the tables, without the engine's own.
func eachTable(tx *bbolt.Tx, do func(name string, b *bbolt.Bucket) error) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if bytes.HasPrefix(name, []byte(".")) {
			return nil
		}
		return do(string(name), b)
	})
}
