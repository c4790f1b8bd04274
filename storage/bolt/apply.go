package bolt

import (
	"context"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

// txn is what the requests of one commit share. An error of bbolt while writing spoils it.
type txn struct {
	tx      *bbolt.Tx
	now     time.Time
	rev     uint64
	sums    sums
	dirty   bool
	spoiled error
	buckets map[string]*bbolt.Bucket
	changed map[string]bool // tables
}

func newTxn(tx *bbolt.Tx, now time.Time, rev uint64, s sums) *txn {
	return &txn{tx: tx, now: now, rev: rev, sums: s, buckets: map[string]*bbolt.Bucket{}, changed: map[string]bool{}}
}

// Apply does all of ops or nothing. The conditions are judged in the state before the first of them; see [storage.Store].
func (s *Store) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	size, err := checkOps(ops)
	if err != nil {
		return 0, err
	}
	return s.submit(ctx, &request{size: size, do: func(t *txn) (storage.Rev, error) { return t.apply(ops) }})
}

// apply judges all conditions, then writes: no savepoint is needed, because a refused batch has written nothing.
func (t *txn) apply(ops []storage.Op) (storage.Rev, error) {
	olds := make([]record, len(ops))
	for i, op := range ops {
		old, err := t.judge(i, op)
		if err != nil {
			return 0, err
		}
		olds[i] = old
	}
	rev, put := storage.Rev(t.rev+1), false
	for i, op := range ops {
		switch op.Kind {
		case storage.Put:
			put = true
			t.put(op, rev, olds[i])
		case storage.Delete:
			t.remove(op.Table, op.Key, olds[i].expires)
		}
	}
	if !put {
		return 0, nil
	}
	t.rev++
	return rev, nil
}

// judge reads the record and tests the condition. A damaged record can't be judged, but it can be overwritten or
// deleted by an operation without a condition; its index entry then stays behind, and Prune drops it.
func (t *txn) judge(i int, op storage.Op) (record, error) {
	absent := record{expires: never}
	raw := t.get(op.Table, op.Key)
	old, found := absent, raw != nil
	if found {
		var err error
		if old, err = decodeRecord(op.Table, op.Key, raw); err != nil {
			if op.If == (storage.Cond{}) {
				return absent, nil
			}
			return absent, err
		}
	}
	rev := old.rev
	if !found || !old.live(t.now) {
		rev = 0
	}
	if op.If.Absent && rev != 0 || op.If.Rev != 0 && rev != op.If.Rev {
		return absent, &storage.ConflictError{Index: i, Found: rev}
	}
	return old, nil
}

func (t *txn) put(op storage.Op, rev storage.Rev, old record) {
	expires, err := encodeExpiry(op.Expires)
	t.spoil(err)
	if old.expires != expires {
		t.unindex(op.Table, op.Key, old.expires)
		if expires != never {
			t.write(expiryBucket, expiryKey(op.Table, expires, op.Key), []byte{})
		}
	}
	encoded := encodeRecord(op.Table, op.Key, record{rev: rev, expires: expires, value: op.Value})
	if raw := t.get(op.Table, op.Key); raw != nil {
		t.sums.record(raw)
	} else {
		t.sums.key(op.Table, op.Key)
	}
	t.write(op.Table, []byte(op.Key), encoded)
	t.sums.record(encoded)
	t.changed[op.Table] = true
}

func (t *txn) remove(table, key string, expires int64) {
	raw := t.get(table, key)
	if raw == nil {
		return
	}
	t.sums.record(raw)
	t.sums.key(table, key)
	t.unindex(table, key, expires)
	t.spoil(t.bucket(table).Delete([]byte(key)))
	t.dirty = true
	t.changed[table] = true
}

// unindex drops the index entry of a record that had the given expiry.
func (t *txn) unindex(table, key string, expires int64) {
	if b := t.bucket(expiryBucket); b != nil && expires != never {
		t.spoil(b.Delete(expiryKey(table, expires, key)))
		t.dirty = true
	}
}

// bucket is nil if nothing was ever written to name.
func (t *txn) bucket(name string) *bbolt.Bucket {
	b, ok := t.buckets[name]
	if !ok {
		if b = t.tx.Bucket([]byte(name)); b != nil {
			t.buckets[name] = b
		}
	}
	return b
}

func (t *txn) get(table, key string) []byte {
	if b := t.bucket(table); b != nil {
		return b.Get([]byte(key))
	}
	return nil
}

func (t *txn) write(bucket string, key, value []byte) {
	b := t.bucket(bucket)
	if b == nil {
		var err error
		if b, err = t.tx.CreateBucket([]byte(bucket)); err != nil {
			t.spoil(err)
			return
		}
		t.buckets[bucket] = b
	}
	t.spoil(b.Put(key, value))
	t.dirty = true
}

func (t *txn) spoil(err error) {
	if t.spoiled == nil {
		t.spoiled = err
	}
}

// saveRev writes the last revision and the seal. Each commit ends with it.
func (t *txn) saveRev() error {
	r := record{rev: storage.Rev(t.rev), expires: never, value: seal{txid: uint64(t.tx.ID()), sums: t.sums}.encode()} //nolint:gosec // counts up from 0
	t.write(metaBucket, []byte(revKey), encodeRecord(metaBucket, revKey, r))
	return t.spoiled
}
