package keyring

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign/storage"
)

// Where the ring's records are. headTable is the one to watch: every change writes the head.
const (
	keyTable  = "signing_key" // key: kid
	headTable = "keyring"     // keys: headKey, kekKey
	headKey   = "head"
	kekKey    = "kek"
)

func keyRecords() storage.Table[record]  { return storage.Table[record]{Name: keyTable} }
func headRecords() storage.Table[head]   { return storage.Table[head]{Name: headTable} }
func checkRecords() storage.Table[check] { return storage.Table[check]{Name: headTable} }

// unchanged demands that a record is still at r, or still absent if r is 0.
func unchanged(r storage.Rev) storage.Cond { return storage.Cond{Rev: r, Absent: r == 0} }

func damaged(format string, a ...any) error {
	return fmt.Errorf("keyring: %w: %s", storage.ErrCorrupt, fmt.Sprintf(format, a...))
}

// record is a key in the store. Its state is not in it: that is computed from the times.
type record struct {
	Purpose       Purpose   `json:"purpose"`
	Alg           string    `json:"alg"`
	Public        []byte    `json:"public"` // PKIX DER
	Published     time.Time `json:"published"`
	SignsFrom     time.Time `json:"signs_from"`
	SignsUntil    time.Time `json:"signs_until,omitzero"`
	VerifiesUntil time.Time `json:"verifies_until,omitzero"`
	Sealed        sealed    `json:"sealed"`        // of a key in a token: its URI, so that nobody without the KEK can name another
	KMS           string    `json:"kms,omitempty"` // the URI of a key in a token (RFC 7512); "": Sealed holds the private key
}

// head names all keys of the ring, so that a lost record is seen, and orders its changes: each one replaces the head
// that it was planned on.
type head struct {
	Change    string    `json:"change"` // id of the last change: 128 random bits, hex
	At        time.Time `json:"at"`
	Keys      []string  `json:"keys"` // kids, sorted
	Unsettled *pending  `json:"unsettled,omitempty"`
	Doomed    []string  `json:"doomed,omitempty"` // URIs of keys that are dropped here and must still be destroyed in their tokens
}

// pending is a change that is made and whose outcome may not be in the audit log yet.
type pending struct {
	Type    string `json:"type"`
	Subject string `json:"subject"`
	By      string `json:"by"`
	Detail  detail `json:"detail"`
}

// check proves the KEK.
type check struct {
	Value []byte `json:"check"`
}

// entry is a key with the record it was read from.
type entry struct {
	key    Key
	record record
	rev    storage.Rev
}

// state is what the store holds: one consistent reading.
type state struct {
	head     head
	headRev  storage.Rev // 0: no key was ever made
	check    []byte
	checkRev storage.Rev // 0: no KEK was ever used
	entries  map[string]entry
}

// loadTries bounds readings that changes of other nodes overtake.
const loadTries = 8

// load reads the whole ring. Pages of a listing are no snapshot together, so a reading counts only if the head has not
// moved meanwhile.
func load(ctx context.Context, s storage.Store) (state, error) {
	for range loadTries {
		st, err := loadOnce(ctx, s)
		if err != nil {
			return state{}, err
		}
		if after, err := headRev(ctx, s); err != nil {
			return state{}, err
		} else if after == st.headRev {
			return st, st.verify()
		}
	}
	return state{}, fmt.Errorf("keyring: %w: the keys change faster than they can be read", storage.ErrBusy)
}

func loadOnce(ctx context.Context, s storage.Store) (state, error) {
	st := state{entries: map[string]entry{}}
	h, err := headRecords().Get(ctx, s, headKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return state{}, err
	}
	st.head, st.headRev = h.Value, h.Rev
	c, err := checkRecords().Get(ctx, s, kekKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return state{}, err
	}
	st.check, st.checkRev = c.Value.Value, c.Rev
	for item, err := range keyRecords().All(ctx, s, "") {
		if err != nil {
			return state{}, err
		}
		e, err := decode(item)
		if err != nil {
			return state{}, err
		}
		st.entries[e.key.ID] = e
	}
	return st, nil
}

// headRev is the head's present revision, 0 while there is none.
func headRev(ctx context.Context, s storage.Store) (storage.Rev, error) {
	h, err := headRecords().Get(ctx, s, headKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return 0, err
	}
	return h.Rev, nil
}

// verify holds the records against the head: a missing or foreign key record is damage, not a smaller or larger ring.
func (st state) verify() error {
	for _, id := range st.head.Keys {
		if _, ok := st.entries[id]; !ok {
			return damaged("key %s is missing", id)
		}
	}
	if len(st.entries) != len(st.head.Keys) {
		for id := range st.entries {
			if !slices.Contains(st.head.Keys, id) {
				return damaged("key %s is in no list of keys", id)
			}
		}
	}
	if st.headRev != 0 && st.checkRev == 0 {
		return damaged("the check value of the KEK is missing")
	}
	return nil
}

// keys are the public halves of one purpose, oldest first.
func (st state) keys(p Purpose) []Key {
	var keys []Key
	for _, e := range st.entries {
		if e.key.Purpose == p {
			keys = append(keys, e.key)
		}
	}
	sortKeys(keys)
	return keys
}

// decode checks what can be checked without the KEK: that the record's name is the thumbprint of its public half.
func decode(item storage.Entry[record]) (entry, error) {
	rec := item.Value
	pub, err := x509.ParsePKIXPublicKey(rec.Public)
	if err != nil {
		return entry{}, damaged("key %s: its public half can't be read", item.Key)
	}
	if err := checkPublic(rec.Alg, pub); err != nil {
		return entry{}, damaged("key %s: %v", item.Key, err)
	}
	id, err := thumbprint(pub)
	if err != nil {
		return entry{}, damaged("key %s: %v", item.Key, err)
	}
	if id != item.Key {
		return entry{}, damaged("key %s: its public half is that of key %s", item.Key, id)
	}
	if !slices.Contains(Purposes(), rec.Purpose) {
		return entry{}, damaged("key %s: purpose %q is unknown", item.Key, rec.Purpose)
	}
	return entry{rev: item.Rev, record: rec, key: Key{
		ID: id, Purpose: rec.Purpose, Alg: rec.Alg, Public: pub, Published: rec.Published,
		SignsFrom: rec.SignsFrom, SignsUntil: rec.SignsUntil, VerifiesUntil: rec.VerifiesUntil, KMS: rec.KMS,
	}}, nil
}

// newRecord makes the record of a fresh key.
func newRecord(k Key, s sealed) (record, error) {
	pub, err := marshalPublic(k.Public)
	if err != nil {
		return record{}, fmt.Errorf("encode the public half: %w", err)
	}
	return record{
		Purpose: k.Purpose, Alg: k.Alg, Public: pub, Published: k.Published,
		SignsFrom: k.SignsFrom, SignsUntil: k.SignsUntil, VerifiesUntil: k.VerifiesUntil, Sealed: s, KMS: k.KMS,
	}, nil
}
