package bolt

import (
	"os"
	"time"

	"go.etcd.io/bbolt"
)

// Reseal makes the seal name the transaction that tampers with a file, and leaves its sum. A file without one stays so.
func Reseal(tx *bbolt.Tx) error {
	bucket := tx.Bucket([]byte(metaBucket))
	if bucket == nil {
		return nil
	}
	rev, err := loadRev(tx)
	if err != nil {
		return nil
	}
	old, err := decodeSeal(bucket.Get([]byte(revKey)))
	if err != nil {
		return err
	}
	return newTxn(tx, time.Time{}, rev, old.sums).saveRev()
}

// ErrCrash makes [Compact] leave what a crash would leave.
var ErrCrash = errCrash

// Stopping are options that end a compaction at a point, the first time that it comes there.
func Stopping(at func(point string) error) CompactOptions { return CompactOptions{at: at} }

// WithRoom are options of a file system with so many bytes free.
func WithRoom(free int64) CompactOptions {
	return CompactOptions{free: func(string) (int64, error) { return free, nil }}
}

// Lock takes the lock of a store's file.
func Lock(f *os.File) error { return lock(f, 0) }

// Waits tells whether this process has the file at path open twice: somebody waits for its lock.
func Waits(path string) bool {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return true
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			n++
		}
	}
	return n > 1
}
