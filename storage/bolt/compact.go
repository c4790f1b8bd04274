package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

const (
	compactSuffix = ".compact" // of the file on its way
	compactBatch  = 4 << 20    // bytes of one transaction
	compactFill   = 0.9        // of a page: keys come in their order
)

// CompactOptions choose how to compact. The zero value will do.
type CompactOptions struct {
	Progress func(records int64) // told now and then how many records were copied or compared; may be nil

	free func(dir string) (int64, error) // bytes; nil: what the file system says
	at   func(point string) error        // a test's crash; nil: none
}

// Compacted is what [Compact] did.
type Compacted struct {
	File    string `json:"file"`
	Before  int64  `json:"before_bytes"`
	After   int64  `json:"after_bytes"`
	Records int64  `json:"records"`
}

// RoomError says that a copy beside the file would not fit on its file system. Nothing was written.
type RoomError struct {
	Dir        string
	Need, Free int64 // bytes
}

// Error gives both numbers.
func (e *RoomError) Error() string {
	return fmt.Sprintf("the copy needs up to %d MiB in %s, and %d MiB are free", (e.Need+1<<20-1)>>20, e.Dir, e.Free>>20)
}

// Compact writes the store at path anew, without free pages, and puts the copy in its place. It holds the lock of the file: a
// [*LockedError] if somebody has it open. A damaged file, or one damaged record, is storage.ErrCorrupt, and the file stays.
//
// The copy is made beside the file, under a name of its own, synced, and held to the file record by record. Crash points: until
// the rename there is the old file and perhaps half of a copy, which the next Compact removes; after it there is the new one. Both
// files are locked until the directory is synced, so that nobody commits to either before it is known which one stays.
func Compact(ctx context.Context, path string, o CompactOptions) (done Compacted, err error) {
	if o.free == nil {
		o.free = freeBytes
	}
	if o.at == nil {
		o.at = func(string) error { return nil }
	}
	if _, err := os.Stat(path); err != nil {
		return Compacted{}, fmt.Errorf("open store: %w", err)
	}
	old, _, err := open(path, offlineWait)
	if err != nil {
		return Compacted{}, fmt.Errorf("open store: %w", err)
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	done = Compacted{File: path}
	if done.Before, err = fileSize(path); err != nil {
		return done, err
	}
	c := compaction{ctx: ctx, o: o, old: old, path: path}
	err = c.run(&done)
	return done, err
}

type compaction struct {
	ctx  context.Context //nolint:containedctx // of one call
	o    CompactOptions
	old  *bbolt.DB
	path string
	read int64
}

func (c *compaction) run(done *Compacted) (err error) {
	defer protect(&err)()
	tx, err := c.old.Begin(false)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // of a read transaction
	dir, temp := filepath.Dir(c.path), c.path+compactSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // ours alone while we hold the lock
		return err
	}
	free, err := c.o.free(dir)
	if err != nil {
		return err
	}
	used, err := usedBytes(c.path)
	if err != nil {
		return err
	}
	if need := used + used/8 + 32<<20; need > free { // bbolt makes files longer in steps of 16 MiB
		return &RoomError{Dir: dir, Need: need, Free: free}
	}
	fresh, err := bbolt.Open(temp, 0o600, options(defaultLockTimeout))
	if err != nil {
		return err
	}
	renamed := false
	defer func() {
		err = errors.Join(err, fresh.Close())
		if err != nil && !renamed && !errors.Is(err, errCrash) {
			err = errors.Join(err, os.Remove(temp))
		}
	}()
	if err := c.fill(tx, fresh); err != nil {
		return fullAsBusy(err)
	}
	done.Records = c.read
	if done.After, err = c.check(tx, fresh, temp); err != nil {
		return err
	}
	if err := c.o.at("before the rename"); err != nil {
		return err
	}
	if err := os.Rename(temp, c.path); err != nil {
		return err
	}
	renamed = true
	if err := c.o.at("after the rename"); err != nil {
		return err
	}
	return syncDir(dir)
}

// errCrash is a test's: what it leaves is what a crash would.
var errCrash = errors.New("crash")

func fullAsBusy(err error) error {
	if isFullErrno(err) || growWasRefused(err) {
		return errors.Join(storage.ErrBusy, err)
	}
	return err
}

// fill copies every record as it is kept, revision and checksum included, and seals the copy.
func (c *compaction) fill(tx *bbolt.Tx, fresh *bbolt.DB) error {
	fresh.NoSync = true // until all is there
	err := tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if string(name) == metaBucket {
			return nil // the seal comes last
		}
		return c.table(string(name), b, fresh)
	})
	if err != nil {
		return err
	}
	rev, err := loadRev(tx)
	if err != nil {
		return err
	}
	last, err := decodeSeal(tx.Bucket([]byte(metaBucket)).Get([]byte(revKey)))
	if err != nil {
		return err
	}
	if err := fresh.Update(func(to *bbolt.Tx) error { return newTxn(to, time.Time{}, rev, last.sums).saveRev() }); err != nil {
		return err
	}
	if err := c.o.at("before the sync"); err != nil {
		return err
	}
	return fresh.Sync()
}

// table copies one bucket in several transactions.
func (c *compaction) table(name string, from *bbolt.Bucket, fresh *bbolt.DB) error {
	k, v := []byte(nil), []byte(nil)
	cursor := from.Cursor()
	k, v = cursor.First()
	for more := true; more; {
		err := fresh.Update(func(to *bbolt.Tx) error {
			b, err := to.CreateBucketIfNotExists([]byte(name))
			if err != nil {
				return err
			}
			b.FillPercent = compactFill
			for size := 0; k != nil && size < compactBatch; k, v = cursor.Next() {
				if name[0] != '.' {
					if _, err := decodeRecord(name, string(k), v); err != nil {
						return err
					}
					c.tick()
				}
				if err := b.Put(k, v); err != nil {
					return err
				}
				size += len(k) + len(v)
			}
			more = k != nil
			return c.ctx.Err()
		})
		if err == nil {
			err = c.o.at("in the middle")
		}
		if err != nil {
			return fmt.Errorf("copy the table %s: %w", name, err)
		}
	}
	return nil
}

func (c *compaction) tick() {
	if c.read++; c.read%4096 == 0 && c.o.Progress != nil {
		c.o.Progress(c.read)
	}
}

// check holds the copy to the file record by record, and to what [Open] asks of one. It gives the copy's size, and cuts off what
// bbolt keeps as room.
func (c *compaction) check(tx *bbolt.Tx, fresh *bbolt.DB, temp string) (int64, error) {
	copied, err := fresh.Begin(false)
	if err != nil {
		return 0, err
	}
	defer copied.Rollback() //nolint:errcheck // of a read transaction
	if err := sameBuckets(c.ctx, tx, copied); err != nil {
		return 0, fmt.Errorf("%w: the copy differs: %w", storage.ErrCorrupt, err)
	}
	f, err := os.OpenFile(temp, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // it was synced
	size := copied.Size()
	if err := errors.Join(f.Truncate(size), f.Sync()); err != nil {
		return 0, err
	}
	_, err = checkStructure(f)
	return size, err
}

// sameBuckets compares all but the seals, which name transactions of their own.
func sameBuckets(ctx context.Context, a, b *bbolt.Tx) error {
	ca, cb := a.Cursor(), b.Cursor()
	ka, _ := ca.First()
	kb, _ := cb.First()
	for ; ka != nil || kb != nil; ka, kb = next(ca), next(cb) {
		if !bytes.Equal(ka, kb) {
			return fmt.Errorf("a table %q stands against %q", ka, kb)
		}
		if string(ka) == metaBucket {
			continue
		}
		if err := sameRecords(ctx, a.Bucket(ka), b.Bucket(kb)); err != nil {
			return fmt.Errorf("table %s: %w", ka, err)
		}
	}
	return nil
}

func next(c *bbolt.Cursor) []byte {
	k, _ := c.Next()
	return k
}

func sameRecords(ctx context.Context, a, b *bbolt.Bucket) error {
	ca, cb := a.Cursor(), b.Cursor()
	ka, va := ca.First()
	kb, vb := cb.First()
	for n := 0; ka != nil || kb != nil; n++ {
		if !bytes.Equal(ka, kb) || !bytes.Equal(va, vb) {
			return fmt.Errorf("a record %q stands against %q", ka, kb)
		}
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		ka, va = ca.Next()
		kb, vb = cb.Next()
	}
	return nil
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// usedBytes is what the pages in use take.
func usedBytes(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	var i inspector
	i.ctx = context.Background()
	if _, err := i.walk(f); err != nil {
		return 0, err
	}
	return (i.out.Pages - i.out.FreePages) * i.out.PageBytes, nil
}

// freeBytes is what this user may still write to the file system of dir.
func freeBytes(dir string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("ask for the room in %s: %w", dir, err)
	}
	return int64(s.Bavail) * s.Bsize, nil //nolint:gosec // it fits
}
