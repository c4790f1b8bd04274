package bolt

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

// Buckets of the engine itself: a table's name has no dot.
const (
	metaBucket   = ".meta"
	expiryBucket = ".expiry"
	revKey       = "rev"
)

// A record is: version, checksum (8), revision (8), expiry (8, nanoseconds since 1970), value. Numbers are big-endian.
// The checksum is the beginning of the SHA-256 of version, lengths of and table and key, revision, expiry and value.
const (
	recordVersion = 1
	sumAt         = 1
	revAt         = sumAt + 8
	expiresAt     = revAt + 8
	valueAt       = expiresAt + 8
)

// never is the expiry of a record that has none.
const never = math.MaxInt64

// record is a decoded one; value points into the transaction's memory.
type record struct {
	rev     storage.Rev
	expires int64
	value   []byte
}

// live says whether the record exists at now: it's gone from the very instant of its expiry.
func (r record) live(now time.Time) bool {
	return r.expires == never || now.Before(time.Unix(0, r.expires))
}

func (r record) item(key []byte) storage.Item {
	item := storage.Item{Key: string(key), Value: append([]byte{}, r.value...), Rev: r.rev}
	if r.expires != never {
		item.Expires = time.Unix(0, r.expires).UTC()
	}
	return item
}

// encodeExpiry is the time in nanoseconds, which last from 1678 to 2262.
func encodeExpiry(t time.Time) (int64, error) {
	if t.IsZero() {
		return never, nil
	}
	ns := t.UnixNano()
	if ns == never || !time.Unix(0, ns).Equal(t) {
		return 0, fmt.Errorf("storage/bolt: expiry %v is out of range", t)
	}
	return ns, nil
}

func encodeRecord(table, key string, r record) []byte {
	b := make([]byte, valueAt, valueAt+len(r.value))
	b[0] = recordVersion
	binary.BigEndian.PutUint64(b[revAt:], uint64(r.rev))
	binary.BigEndian.PutUint64(b[expiresAt:], uint64(r.expires))
	b = append(b, r.value...)
	sum := checksum(table, key, b)
	copy(b[sumAt:], sum[:])
	return b
}

// decodeRecord is the inverse of encodeRecord; what does not fit is storage.ErrCorrupt.
func decodeRecord(table, key string, b []byte) (record, error) {
	if len(b) < valueAt || b[0] != recordVersion {
		return record{}, fmt.Errorf("%w: %s %q has no known form", storage.ErrCorrupt, table, key)
	}
	if sum := checksum(table, key, b); string(sum[:]) != string(b[sumAt:revAt]) {
		return record{}, fmt.Errorf("%w: %s %q does not fit its checksum", storage.ErrCorrupt, table, key)
	}
	return record{
		rev:     storage.Rev(binary.BigEndian.Uint64(b[revAt:])),
		expires: int64(binary.BigEndian.Uint64(b[expiresAt:])), //nolint:gosec // written from an int64
		value:   b[valueAt:],
	}, nil
}

func checksum(table, key string, b []byte) (sum [8]byte) {
	h := sha256.New()
	head := []byte{b[0]}
	head = binary.BigEndian.AppendUint32(head, uint32(len(table))) //nolint:gosec // at most 32
	head = append(head, table...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(key))) //nolint:gosec // at most 512
	head = append(head, key...)
	h.Write(head)
	h.Write(b[revAt:])
	var full [sha256.Size]byte
	copy(sum[:], h.Sum(full[:0]))
	return sum
}

// expiryKey orders a table's records by expiry: table, 0, expiry, key. The sign bit is turned so that bytes sort as numbers.
func expiryKey(table string, expires int64, key string) []byte {
	b := append([]byte(table), 0)
	b = binary.BigEndian.AppendUint64(b, uint64(expires)^1<<63) //nolint:gosec // an order, not a number
	return append(b, key...)
}

// splitExpiryKey takes the key of an index entry of table apart.
func splitExpiryKey(table string, b []byte) (expires int64, key string, ok bool) {
	if len(b) < len(table)+1+8 {
		return 0, "", false
	}
	b = b[len(table)+1:]
	return int64(binary.BigEndian.Uint64(b) ^ 1<<63), string(b[8:]), true //nolint:gosec // see expiryKey
}

// storedSum is the checksum that an encoded record holds, whether or not it fits.
func storedSum(b []byte) uint64 {
	if len(b) < revAt {
		return 0
	}
	return binary.BigEndian.Uint64(b[sumAt:])
}

// sums are, by exclusive or, of all records of all tables: the hashes of their tables and keys, and the checksums that they
// hold. A record that is missing, one too many, or a key that changed is seen in the first, whatever else is damaged; an
// older copy of a page in the second.
type sums struct{ keys, records uint64 }

func (s *sums) key(table, key string) {
	h := fnv.New64a()
	h.Write([]byte(table + "\x00" + key)) // never fails
	s.keys ^= h.Sum64()
}

func (s *sums) record(encoded []byte) { s.records ^= storedSum(encoded) }

// A seal is the value of the record of the last revision: the transaction that wrote it, and the sums. An older copy of the
// seal names another transaction than the meta page does, which has a checksum of its own.
type seal struct {
	txid uint64
	sums sums
}

const sealSize = 24

func (s seal) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.txid)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, s.sums.keys), s.sums.records)
}

// decodeSeal reads the record of the last revision.
func decodeSeal(raw []byte) (seal, error) {
	r, err := decodeRecord(metaBucket, revKey, raw)
	if err != nil {
		return seal{}, err
	}
	if len(r.value) != sealSize {
		return seal{}, fmt.Errorf("%w: the store has no seal", storage.ErrCorrupt)
	}
	return seal{
		txid: binary.BigEndian.Uint64(r.value),
		sums: sums{keys: binary.BigEndian.Uint64(r.value[8:]), records: binary.BigEndian.Uint64(r.value[16:])},
	}, nil
}

// loadRev reads the last revision given out. It is a checksummed record: a counter that went back would repeat itself.
func loadRev(tx *bbolt.Tx) (uint64, error) {
	bucket := tx.Bucket([]byte(metaBucket))
	if bucket == nil {
		return 0, fmt.Errorf("%w: not a store of countersign, or its first page is lost", storage.ErrCorrupt)
	}
	r, err := decodeRecord(metaBucket, revKey, bucket.Get([]byte(revKey)))
	return uint64(r.rev), err
}
