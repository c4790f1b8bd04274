package bolt_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/storetest"
)

// open opens path; the store is closed at the end of the test.
func open(t testing.TB, cfg bolt.Config) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// harness remembers where each store lives.
func harness() storetest.Harness {
	paths := map[storage.Store]string{}
	at := func(t testing.TB, path string, now func() time.Time) storage.Store {
		s := open(t, bolt.Config{Path: path, Now: now})
		paths[s] = path
		return s
	}
	return storetest.Harness{
		Open: func(t testing.TB, now func() time.Time) storage.Store {
			return at(t, filepath.Join(t.TempDir(), "store.db"), now)
		},
		Reopen: func(t testing.TB, s storage.Store, now func() time.Time) storage.Store {
			if err := s.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			return at(t, paths[s], now)
		},
		Restore: func(t testing.TB, backup []byte, now func() time.Time) storage.Store {
			path := filepath.Join(t.TempDir(), "restored.db")
			if err := os.WriteFile(path, backup, 0o600); err != nil {
				t.Fatal(err)
			}
			return at(t, path, now)
		},
	}
}

func TestConformance(t *testing.T) { harness().Run(t) }
