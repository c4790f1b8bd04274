package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

// churned is a closed store of which most was removed again: 20 records of 300 stay.
func churned(t *testing.T) string {
	t.Helper()
	path := filled(t, 300)
	s := open(t, bolt.Config{Path: path})
	for at := 20; at < 300; at += 40 {
		var ops []storage.Op
		for i := at; i < at+40; i++ {
			ops = append(ops, storage.Op{Kind: storage.Delete, Table: "things", Key: fmt.Sprintf("key-%04d", i)})
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

func inspect(t *testing.T, path string) bolt.Inspection {
	t.Helper()
	found, err := bolt.Inspect(t.Context(), path, time.Date(2100, 1, 1, 0, 0, 7, 0, time.UTC), nil)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// listed is all that a store answers, revisions and expiries included.
func listed(t *testing.T, path string) string {
	t.Helper()
	s := open(t, bolt.Config{Path: path})
	page, err := s.List(t.Context(), "things", storage.ListOptions{Limit: 1000})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(page.Items)
}

// Inspect counts what is there, and names whatever is damaged; it changes nothing and needs the lock.
func TestInspect(t *testing.T) {
	path := churned(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	found := inspect(t, path)
	if len(found.Faults) != 0 || found.Records != 20 || len(found.Tables) != 1 || found.Tables[0].Name != "things" ||
		found.Tables[0].Expired != 3 || !found.Tables[0].First.Equal(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)) ||
		!found.Tables[0].Last.Equal(time.Date(2100, 1, 1, 0, 0, 18, 0, time.UTC)) ||
		found.FreePages < 10 || found.FileBytes != int64(len(before)) || found.Bytes < 20*311 {
		t.Errorf("%+v", found)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the file was changed: %v", err)
	}

	s := open(t, bolt.Config{Path: path})
	var locked *bolt.LockedError
	if _, err := bolt.Inspect(t.Context(), path, time.Now(), nil); !errors.As(err, &locked) {
		t.Errorf("an open store: %v", err)
	}
	if _, err := bolt.Compact(t.Context(), path, bolt.CompactOptions{}); !errors.As(err, &locked) {
		t.Errorf("compact an open store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	for name, harm := range map[string]struct {
		change func(tx *bbolt.Tx) error
		want   string
	}{
		"a record": {func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte("things"))
			v := bytes.Clone(b.Get([]byte("key-0001")))
			v[len(v)-1] ^= 1
			return b.Put([]byte("key-0001"), v)
		}, `things "key-0001" does not fit its checksum`},
		"a missing record": {func(tx *bbolt.Tx) error { return tx.Bucket([]byte("things")).Delete([]byte("key-0001")) }, "records are missing"},
		"an index entry": {func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket([]byte(".expiry")).Cursor().First()
			return tx.Bucket([]byte(".expiry")).Delete(bytes.Clone(k))
		}, `"key-0000" expires and is not in the index`},
	} {
		path := churned(t)
		tamper(t, path, harm.change)
		if found := inspect(t, path); !strings.Contains(strings.Join(found.Faults, "\n"), harm.want) {
			t.Errorf("%s: %v", name, found.Faults)
		}
	}
	cut := churned(t)
	if err := os.Truncate(cut, 8192); err != nil {
		t.Fatal(err)
	}
	if found := inspect(t, cut); len(found.Faults) != 1 {
		t.Errorf("cut off: %v", found.Faults)
	}
}

// A compacted store is the same store in less room: records, revisions, expiries; and it goes on.
func TestCompact(t *testing.T) {
	path := churned(t)
	want, before := listed(t, path), inspect(t, path)
	done, err := bolt.Compact(t.Context(), path, bolt.CompactOptions{})
	if err != nil {
		t.Fatal(err)
	}
	after := inspect(t, path)
	if listed(t, path) != want || done.Records != 20 || done.Before != before.FileBytes || done.After != after.FileBytes {
		t.Errorf("%+v, %+v", done, after)
	}
	if len(after.Faults) != 0 || after.Pages > before.Pages/3 || done.After >= done.Before {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	s := open(t, bolt.Config{Path: path, Now: func() time.Time { return time.Date(2101, 1, 1, 0, 0, 0, 0, time.UTC) }})
	if _, err := s.Apply(t.Context(), put("more", "v")); err != nil {
		t.Error(err)
	}
	if n, err := s.Prune(t.Context(), "things", 100); n != 7 || err != nil {
		t.Errorf("pruned %d, %v: the index of expiries is another one", n, err)
	}
}

// Wherever a compaction ends, there is one whole store under the name, nothing is lost, and it can be done again.
func TestCompactEndsAnywhere(t *testing.T) {
	for _, point := range []string{"in the middle", "before the sync", "before the rename", "after the rename"} {
		for _, crash := range []bool{true, false} {
			path := churned(t)
			want, failed := listed(t, path), errors.New("no more")
			if crash {
				failed = bolt.ErrCrash
			}
			_, err := bolt.Compact(t.Context(), path, bolt.Stopping(func(at string) error {
				if at == point {
					return failed
				}
				return nil
			}))
			if !errors.Is(err, failed) {
				t.Fatalf("%s: %v", point, err)
			}
			left, err := filepath.Glob(path + ".*")
			if err != nil || !crash && len(left) > 0 {
				t.Errorf("%s: left is %v", point, left)
			}
			if got := listed(t, path); got != want {
				t.Errorf("%s: the store is another one", point)
			}
			if _, err := bolt.Compact(t.Context(), path, bolt.CompactOptions{}); err != nil || listed(t, path) != want {
				t.Errorf("%s: again: %v", point, err)
			}
			if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
				t.Errorf("%s: left is %v", point, left)
			}
		}
	}
}

// What can't be compacted stays as it is.
func TestCompactRefuses(t *testing.T) {
	path := churned(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var room *bolt.RoomError
	if _, err := bolt.Compact(t.Context(), path, bolt.WithRoom(1<<20)); !errors.As(err, &room) || room.Free != 1<<20 || room.Need <= room.Free {
		t.Errorf("no room: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the file was changed: %v", err)
	}
	tamper(t, path, func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("things"))
		return b.Put([]byte("key-0001"), bytes.Clone(b.Get([]byte("key-0002"))))
	})
	if _, err := bolt.Compact(t.Context(), path, bolt.CompactOptions{}); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a damaged record: %v", err)
	}
	if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left is %v", left)
	}
	if _, err := bolt.Compact(t.Context(), filepath.Join(t.TempDir(), "none"), bolt.CompactOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Who waited for the lock of a file that was replaced meanwhile gets the file that has the name now.
func TestOpenAfterReplacement(t *testing.T) {
	path, other := filled(t, 3), filled(t, 6)
	hold, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := bolt.Lock(hold); err != nil {
		t.Fatal(err)
	}
	opened := make(chan *bolt.Store, 1)
	go func() {
		s, err := bolt.Open(bolt.Config{Path: path, LockTimeout: time.Minute})
		if err != nil {
			t.Error(err)
		}
		opened <- s
	}()
	for !bolt.Waits(path) {
		time.Sleep(time.Millisecond)
	}
	if err := errors.Join(os.Rename(other, path), hold.Close()); err != nil {
		t.Fatal(err)
	}
	s := <-opened
	if s == nil {
		return
	}
	defer s.Close() //nolint:errcheck // only read
	if _, err := s.Get(t.Context(), "things", "key-0005"); err != nil {
		t.Errorf("the old file was opened: %v", err)
	}
}
