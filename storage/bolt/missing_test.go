package bolt_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

// TestNothingGoesMissing flips each bit by which a whole table, or the end of one, would be missing without a word: in
// the table's name and in the counts of elements.
func TestNothingGoesMissing(t *testing.T) {
	const records = 3
	sound, err := os.ReadFile(filled(t, records))
	if err != nil {
		t.Fatal(err)
	}
	size, sound := int64(len(sound)), bytes.TrimRight(sound, "\x00")
	var places []int
	for at := 0; at+12 < len(sound); at += 4096 {
		places = append(places, at+10, at+11)
	}
	name := []byte("things")
	for at := bytes.Index(sound, name); at >= 0; {
		for i := range name {
			places = append(places, at+i)
		}
		small := at + len(name) + 16 // a small table's page, behind the bucket's header
		places = append(places, small+10, small+11)
		next := bytes.Index(sound[at+1:], name)
		if next < 0 {
			break
		}
		at += 1 + next
	}
	path := filepath.Join(t.TempDir(), "store.db")
	refused := 0
	for _, place := range places {
		for bit := range 8 {
			damaged := bytes.Clone(sound)
			damaged[place] ^= 1 << bit
			if err := errors.Join(os.WriteFile(path, damaged, 0o600), os.Truncate(path, size)); err != nil {
				t.Fatal(err)
			}
			s, err := bolt.Open(bolt.Config{Path: path})
			if errors.Is(err, storage.ErrCorrupt) {
				refused++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			page, err := s.List(t.Context(), "things", storage.ListOptions{Limit: 10})
			if len(page.Items) != records && !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("byte %d, bit %d: %d records of %d are listed, %v", place, bit, len(page.Items), records, err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if refused == 0 {
		t.Error("no flip met what is in use")
	}
}
