package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/countersign/countersign/storage"
)

// maxPrune bounds one call, and pruneSlack how many index entries it drops besides that have no expired record.
const (
	maxPrune   = 1000
	pruneSlack = 1000
)

// Prune removes at most limit (and never more than 1,000) expired records of table, those that expired first. The work
// is proportional to what has expired, not to what lives. A damaged record stays, and is storage.ErrCorrupt at the end.
func (s *Store) Prune(ctx context.Context, table string, limit int) (int, error) {
	if err := checkTable(table); err != nil {
		return 0, err
	}
	if limit < 1 {
		return 0, fmt.Errorf("storage/bolt: limit %d is not positive", limit)
	}
	var removed int
	var damaged error
	_, err := s.submit(ctx, &request{do: func(t *txn) (storage.Rev, error) {
		removed, damaged = t.prune(table, min(limit, maxPrune))
		return 0, nil
	}})
	if err != nil {
		return 0, err
	}
	return removed, damaged
}

func (t *txn) prune(table string, limit int) (removed int, damaged error) {
	for _, entry := range t.due(table, limit+pruneSlack) {
		if removed == limit {
			break
		}
		expires, key, _ := splitExpiryKey(table, entry)
		raw := t.get(table, key)
		if raw == nil {
			t.unindex(table, key, expires)
			continue
		}
		switch r, err := decodeRecord(table, key, raw); {
		case err != nil:
			damaged = errors.Join(damaged, err)
		case r.expires != expires: // left behind by a damaged record that was overwritten
			t.unindex(table, key, expires)
		default:
			t.remove(table, key, expires)
			removed++
		}
	}
	return removed, damaged
}

// due are the index entries up to now. bbolt's cursors don't survive a deletion, so they are collected first.
func (t *txn) due(table string, limit int) [][]byte {
	bucket := t.bucket(expiryBucket)
	if bucket == nil {
		return nil
	}
	var entries [][]byte
	prefix := append([]byte(table), 0)
	c := bucket.Cursor()
	for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix) && len(entries) < limit; k, _ = c.Next() {
		expires, _, ok := splitExpiryKey(table, k)
		if ok && (record{expires: expires}).live(t.now) {
			break
		}
		if ok {
			entries = append(entries, bytes.Clone(k))
		}
	}
	return entries
}
