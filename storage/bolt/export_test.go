package bolt

import (
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
