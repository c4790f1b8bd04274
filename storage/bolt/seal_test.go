package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

// lived is a file with several pages of one table and older copies of them that nothing points to.
func lived(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		for i := range 120 {
			op := storage.Op{Kind: storage.Put, Table: "things", Key: fmt.Sprintf("key-%03d", i), Value: bytes.Repeat([]byte{byte(round)}, 200)}
			if round == 2 && i%7 == 0 {
				op = storage.Op{Kind: storage.Delete, Table: "things", Key: op.Key}
			}
			if _, err := s.Apply(context.Background(), op); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Every pointer of a file to every other page that is there: what the structure of the file lets pass is an older copy of
// a page, and the seal refuses it.
func TestOlderPagesAreRefused(t *testing.T) {
	data := lived(t)
	want, err := checkPages(data)
	if err != nil {
		t.Fatal(err)
	}
	newest, err := readMetas(data)
	if err != nil {
		t.Fatal(err)
	}
	size := newest.pageSize
	passed := 0
	for at := range uint64(len(data) - 8) {
		target := order.Uint64(data[at:])
		if at < 2*size || target < 2 || target >= newest.hwm || at%size == 0 {
			continue
		}
		for page := uint64(2); page < newest.hwm; page++ {
			if page == target || order.Uint64(data[page*size:]) != page {
				continue
			}
			order.PutUint64(data[at:], page)
			s := structure{data: data, meta: newest}
			if s.all() == nil && !bytes.Equal(data[target*size:(target+1)*size], data[page*size:(page+1)*size]) {
				sum, err := checkPages(data)
				read := structure{data: data, meta: newest, decode: true}
				switch {
				case errors.Is(err, storage.ErrCorrupt):
					passed++
				case sum == want: // nothing leads to that place
				case read.all() == nil && read.damaged > 0: // it was no pointer: the record is refused when it is read
				default:
					t.Errorf("offset %d, page %d for %d: %v", at, page, target, err)
				}
			}
			order.PutUint64(data[at:], target)
		}
	}
	t.Logf("%d older pages would have passed without the seal", passed)
	if passed == 0 {
		t.Error("no older page passes the check of the structure: this test shows nothing")
	}
}

// A record that vanishes without a trace in the pages is missed, and so is one that comes back.
func TestSealKnowsEachRecord(t *testing.T) {
	for name, change := range map[string]func(*txn){
		"one is missing": func(x *txn) { x.spoil(x.bucket("things").Delete([]byte("key-001"))) },
		"an older one": func(x *txn) {
			x.write("things", []byte("key-001"), encodeRecord("things", "key-001", record{rev: 1, expires: never}))
		},
		"one more": func(x *txn) {
			x.write("things", []byte("x"), encodeRecord("things", "x", record{rev: 1, expires: never}))
		},
		"a table":           func(x *txn) { x.spoil(x.tx.DeleteBucket([]byte("things"))) },
		"one under another": func(x *txn) { x.write("more", []byte("x"), encodeRecord("more", "x", record{rev: 1, expires: never})) },
	} {
		path := filepath.Join(t.TempDir(), "store.db")
		if err := os.WriteFile(path, lived(t), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.submit(t.Context(), &request{do: func(x *txn) (storage.Rev, error) {
			change(x)
			x.dirty = true
			return 0, x.spoiled
		}})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Path: path}); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
}

// A key that changed, in its place among the others, is a record that is missing: the damaged one is no excuse.
func TestChangedKeyIsRefused(t *testing.T) {
	data := lived(t)
	refused := 0
	for at := 0; ; at++ {
		next := bytes.Index(data[at:], []byte("key-118")) // the last one
		if next < 0 {
			break
		}
		at += next
		data[at+6] ^= 0x40
		if _, err := checkPages(data); err != nil && strings.Contains(err.Error(), "another key") {
			refused++
		} else if err != nil {
			t.Errorf("offset %d: %v", at, err)
		}
		data[at+6] ^= 0x40
	}
	if refused != 1 {
		t.Errorf("%d places were refused; the key stands in one", refused)
	}
}

// A commit of something else than this engine, which knows no seal, is noticed even if it changes no record.
func TestForeignCommitIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	if err := os.WriteFile(path, lived(t), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, options(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(metaBucket)).SetSequence(1) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

// What is written, overwritten, deleted and pruned, in one batch and in many, leaves a seal that fits.
func TestSealFollowsChanges(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), "store.db"), time.Now()
	for round := range 6 {
		s, err := Open(Config{Path: path, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for range 40 {
			var ops []storage.Op
			for _, key := range rand.Perm(30)[:1+rand.IntN(8)] {
				op := storage.Op{Kind: storage.Put, Table: "t" + string(rune('a'+key%3)), Key: fmt.Sprint(key), Value: make([]byte, rand.IntN(300))}
				switch rand.IntN(3) {
				case 0:
					op = storage.Op{Kind: storage.Delete, Table: op.Table, Key: op.Key}
				case 1:
					op.Expires = now.Add(time.Duration(1+rand.IntN(3)) * time.Hour)
				}
				ops = append(ops, op)
			}
			if _, err := s.Apply(t.Context(), ops...); err != nil {
				t.Fatal(err)
			}
		}
		now = now.Add(90 * time.Minute)
		pruned, err := s.Prune(t.Context(), "ta", 1000)
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d pruned", round, pruned)
	}
}
