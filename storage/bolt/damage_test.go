package bolt_test

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
	"github.com/countersign/countersign/storage/bolt"
)

// tamper changes the file behind the engine's back, with the pages in order and the seal of its transaction.
func tamper(t *testing.T, path string, change func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return errors.Join(change(tx), bolt.Reseal(tx)) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// filled makes a closed store of n records, each written once, every third with an expiry in 2100.
func filled(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	s := open(t, bolt.Config{Path: path})
	for at := 0; at < n; at += 50 {
		ops := make([]storage.Op, 0, 50)
		for i := at; i < min(n, at+50); i++ {
			op := put(fmt.Sprintf("key-%04d", i), fmt.Sprintf("value-%04d-%s", i, strings.Repeat("v", 300)))
			if i%3 == 0 {
				op.Expires = time.Date(2100, 1, 1, 0, 0, i, 0, time.UTC)
			}
			ops = append(ops, op)
		}
		if _, err := s.Apply(t.Context(), ops...); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBitFlips flips single bits: whatever is answered was written. What's damaged is refused, at the opening or when
// it is read; a record whose key or page is hit may be missing, which no checksum can see.
func TestBitFlips(t *testing.T) {
	const records, flips = 150, 600
	sound, err := os.ReadFile(filled(t, records))
	if err != nil {
		t.Fatal(err)
	}
	size := int64(len(sound)) // most of it room for later, which stays a hole
	sound = bytes.TrimRight(sound, "\x00")
	path := filepath.Join(t.TempDir(), "store.db")
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test that repeats
	counts := map[string]int{}
	for range flips {
		bit := random.IntN(len(sound) * 8)
		damaged := bytes.Clone(sound)
		damaged[bit/8] ^= 1 << (bit % 8)
		if err := errors.Join(os.WriteFile(path, damaged, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		s, err := bolt.Open(bolt.Config{Path: path, Fatal: func(err error) { t.Errorf("bit %d: fatal: %v", bit, err) }})
		if err != nil {
			counts["not opened"]++
			if !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("bit %d: open: %v", bit, err)
			}
			continue
		}
		counts[readAll(t, s, bit, records)]++
		if bit%10 == 0 { // each costs a sync
			_, err = s.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: "things", Key: "key-0077", Value: []byte("new")})
			if err != nil && !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("bit %d: apply: %v", bit, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("bit %d: close: %v", bit, err)
		}
	}
	t.Logf("%d flips: %v", flips, counts)
}

// readAll gives the worst that a reader was told.
func readAll(t *testing.T, s *bolt.Store, bit, records int) string {
	t.Helper()
	worst := "no effect"
	for i := range records {
		key := fmt.Sprintf("key-%04d", i)
		item, err := s.Get(t.Context(), "things", key)
		switch {
		case err == nil:
			expires := !item.Expires.IsZero()
			if !strings.HasPrefix(string(item.Value), fmt.Sprintf("value-%04d-vvv", i)) || len(item.Value) != 311 || expires != (i%3 == 0) {
				t.Errorf("bit %d: %s reads %q, expires %v", bit, key, item.Value, item.Expires)
			}
		case errors.Is(err, storage.ErrCorrupt):
			worst = "refused"
		case errors.Is(err, storage.ErrNotFound):
			if worst == "no effect" {
				worst = "missing"
			}
		default:
			t.Errorf("bit %d: get: %v", bit, err)
		}
	}
	page, err := s.List(t.Context(), "things", storage.ListOptions{Limit: storage.MaxPage})
	if err != nil && !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("bit %d: list: %v", bit, err)
	}
	for _, item := range page.Items {
		if !strings.HasPrefix(string(item.Value), strings.Replace(item.Key, "key", "value", 1)) {
			t.Errorf("bit %d: %s is listed with %q", bit, item.Key, item.Value)
		}
	}
	return worst
}

func TestDamagedFileIsNotOpened(t *testing.T) {
	sound, err := os.ReadFile(filled(t, 150))
	if err != nil {
		t.Fatal(err)
	}
	end := len(bytes.TrimRight(sound, "\x00")) // after that comes room for later
	files := map[string][]byte{
		"empty": {}, "short": sound[:100], "zeros": make([]byte, 64<<10), "text": bytes.Repeat([]byte("no store "), 5000),
		"first meta lost": append(make([]byte, 4096), sound[4096:]...),
		"last meta lost":  bytes.Join([][]byte{sound[:4096], make([]byte, 4096), sound[8192:]}, nil),
	}
	for size := 4096; size < end; size += 4096 {
		files[fmt.Sprint("cut at ", size)] = sound[:size]
	}
	path := filepath.Join(t.TempDir(), "store.db")
	for name, data := range files {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := bolt.Open(bolt.Config{Path: path}); !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, data) {
			t.Errorf("%s: the file was changed, %v", name, err)
		}
	}
}

func TestOtherFilesAreNotOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	tamper(t, path, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("things")); return err })
	if _, err := bolt.Open(bolt.Config{Path: path}); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a bbolt file of somebody else: got %v, want ErrCorrupt", err)
	}
	path = filled(t, 1)
	tamper(t, path, func(tx *bbolt.Tx) error { return tx.Bucket([]byte(".meta")).Put([]byte("rev"), []byte("1")) })
	if _, err := bolt.Open(bolt.Config{Path: path}); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a damaged counter: got %v, want ErrCorrupt", err)
	}
	if _, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "no", "store.db")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: got %v, want ErrNotExist", err)
	}
	if _, err := bolt.Open(bolt.Config{}); err == nil {
		t.Error("no path: no error")
	}
}

// TestDamagedRecord damages records in ways that leave the pages sound.
func TestDamagedRecord(t *testing.T) {
	due := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) // of key-0000
	for name, change := range map[string]func(b *bbolt.Bucket) error{
		"flipped": func(b *bbolt.Bucket) error {
			v := bytes.Clone(b.Get([]byte("key-0000")))
			v[len(v)-1] ^= 1
			return b.Put([]byte("key-0000"), v)
		},
		"later expiry": func(b *bbolt.Bucket) error {
			v := bytes.Clone(b.Get([]byte("key-0000")))
			v[20] ^= 1
			return b.Put([]byte("key-0000"), v)
		},
		"of another key": func(b *bbolt.Bucket) error {
			return b.Put([]byte("key-0000"), bytes.Clone(b.Get([]byte("key-0001"))))
		},
		"short":           func(b *bbolt.Bucket) error { return b.Put([]byte("key-0000"), []byte{1, 2, 3}) },
		"empty":           func(b *bbolt.Bucket) error { return b.Put([]byte("key-0000"), nil) },
		"another version": func(b *bbolt.Bucket) error { return b.Put([]byte("key-0000"), bytes.Repeat([]byte{2}, 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t, 3)
			tamper(t, path, func(tx *bbolt.Tx) error { return change(tx.Bucket([]byte("things"))) })
			s := open(t, bolt.Config{Path: path, Now: func() time.Time { return due }})
			refused(t, s)
			if n, err := s.Prune(t.Context(), "things", 10); n != 0 || !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("pruned %d, %v; want ErrCorrupt", n, err)
			}
			refused(t, s)
			// An operation without a condition puts it right, and leaves an index entry that Prune drops.
			if _, err := s.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: "things", Key: "key-0000", Value: []byte("new")}); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if n, err := s.Prune(t.Context(), "things", 10); n != 0 || err != nil {
					t.Errorf("pruned %d, %v; want none", n, err)
				}
			}
			if item, err := s.Get(t.Context(), "things", "key-0000"); err != nil || string(item.Value) != "new" {
				t.Errorf("put right: %q, %v", item.Value, err)
			}
		})
	}
}

// refused looks at key-0000, which is damaged, in each way; its neighbours are sound.
func refused(t *testing.T, s *bolt.Store) {
	t.Helper()
	op := storage.Op{Table: "things", Key: "key-0000", If: storage.Cond{Absent: true}}
	_, get := s.Get(t.Context(), op.Table, op.Key)
	_, list := s.List(t.Context(), op.Table, storage.ListOptions{Limit: 10})
	errs := map[string]error{"get": get, "list": list}
	for _, op.Kind = range []storage.Kind{storage.Put, storage.Delete, storage.Check} {
		_, errs[fmt.Sprint("absent, kind ", op.Kind)] = s.Apply(t.Context(), op)
	}
	op.If = storage.Cond{Rev: 1}
	_, errs["revision"] = s.Apply(t.Context(), op)
	for name, err := range errs {
		if !errors.Is(err, storage.ErrCorrupt) || errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: got %v, want ErrCorrupt", name, err)
		}
	}
	if _, err := s.Get(t.Context(), op.Table, "key-0001"); err != nil {
		t.Errorf("the next record: %v", err)
	}
}

// TestDamageWhileOpen lets the file rot, and be cut off, under an open store: errors, but no crash and no wrong answer.
func TestDamageWhileOpen(t *testing.T) {
	for name, harm := range map[string]func(f *os.File, size int64) error{
		"cut off": func(f *os.File, _ int64) error { return f.Truncate(8192) },
		"zeros":   func(f *os.File, size int64) error { _, err := f.WriteAt(make([]byte, size-8192), 8192); return err },
		"noise": func(f *os.File, size int64) error {
			_, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, int(size)-8192), 8192)
			return err
		},
		"metas": func(f *os.File, _ int64) error { _, err := f.WriteAt(make([]byte, 8192), 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t, 150)
			s := open(t, bolt.Config{Path: path, Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			info, err := file.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(harm(file, info.Size()), file.Close()); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				_, get := s.Get(t.Context(), "things", "key-0077")
				_, list := s.List(t.Context(), "things", storage.ListOptions{Limit: 10})
				_, apply := s.Apply(context.Background(), put("new", "v"))
				for i, err := range []error{get, list, apply} {
					if !errors.Is(err, storage.ErrCorrupt) {
						t.Errorf("call %d: got %v, want ErrCorrupt", i, err)
					}
				}
			}
		})
	}
}

// TestLostMeta takes back the last commit under an open store by destroying its meta page.
func TestLostMeta(t *testing.T) {
	refusals := 0
	for page := range int64(2) {
		path := filled(t, 3)
		s := open(t, bolt.Config{Path: path})
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(t.Context(), put("last", "v")); err != nil {
			t.Fatal(err)
		}
		_, err = file.WriteAt(make([]byte, 4096), page*4096)
		if err = errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		// One of the two pages is the older one, without which bbolt can do.
		_, err = s.Get(t.Context(), "things", "last")
		if err != nil && !errors.Is(err, storage.ErrCorrupt) {
			t.Errorf("page %d: get: %v", page, err)
		}
		if _, applyErr := s.Apply(t.Context(), put("more", "v")); (applyErr == nil) != (err == nil) {
			t.Errorf("page %d: get: %v, apply: %v", page, err, applyErr)
		}
		if err != nil {
			refusals++
		}
	}
	if refusals != 1 {
		t.Errorf("%d of the two meta pages are missed, want the newer one", refusals)
	}
}
