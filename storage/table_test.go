package storage_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

type thing struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func open(t *testing.T) storage.Store {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestTableReadsWhatItPuts(t *testing.T) {
	s, things := open(t), storage.Table[thing]{Name: "things"}
	expires := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	op, err := things.Put("k", thing{Name: "a", Count: 1}, expires, storage.Cond{Absent: true})
	if err != nil {
		t.Fatal(err)
	}
	rev, err := s.Apply(t.Context(), op)
	if err != nil {
		t.Fatal(err)
	}
	got, err := things.Get(t.Context(), s, "k")
	want := storage.Entry[thing]{Key: "k", Value: thing{Name: "a", Count: 1}, Rev: rev, Expires: expires}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := s.Apply(t.Context(), things.Check("k", storage.Cond{Rev: rev})); err != nil {
		t.Errorf("check: %v", err)
	}
	if _, err := s.Apply(t.Context(), op); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("put again: got %v, want ErrConflict", err)
	}
	if _, err := s.Apply(t.Context(), things.Delete("k", storage.Cond{Rev: rev + 1})); !errors.Is(err, storage.ErrConflict) {
		t.Errorf("delete of another revision: got %v, want ErrConflict", err)
	}
	if _, err := s.Apply(t.Context(), things.Delete("k", storage.Cond{Rev: rev})); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := things.Get(t.Context(), s, "k"); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("afterwards: got %v, want ErrNotFound", err)
	}
}

func TestTableRefusesOtherForms(t *testing.T) {
	s, things := open(t), storage.Table[thing]{Name: "things"}
	for _, value := range []string{"", "{", `{"count":"one"}`, "[]", `{"name":"a"} {}`} {
		op := storage.Op{Kind: storage.Put, Table: "things", Key: "k", Value: []byte(value)}
		if _, err := s.Apply(t.Context(), op); err != nil {
			t.Fatal(err)
		}
		_, get := things.Get(t.Context(), s, "k")
		_, _, page := things.Page(t.Context(), s, storage.ListOptions{Limit: 10})
		var all error
		for _, err := range things.All(t.Context(), s, "") {
			all = err
		}
		for i, err := range []error{get, page, all} {
			if !errors.Is(err, storage.ErrCorrupt) || errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%q, call %d: got %v, want ErrCorrupt", value, i, err)
			}
		}
	}
	if _, err := (storage.Table[chan int]{Name: "things"}).Put("k", nil, time.Time{}, storage.Cond{}); err == nil {
		t.Error("a channel was encoded")
	}
}

func TestTableWalksAllPages(t *testing.T) {
	s, things := open(t), storage.Table[thing]{Name: "things"}
	var want []string
	const n = 2*storage.MaxPage + 50
	for at := 0; at < n; at += 50 {
		var ops []storage.Op
		for i := at; i < at+50; i++ {
			key := fmt.Sprintf("p/%05d", i)
			op, err := things.Put(key, thing{Count: i}, time.Time{}, storage.Cond{})
			if err != nil {
				t.Fatal(err)
			}
			ops, want = append(ops, op), append(want, key)
		}
		if _, err := s.Apply(t.Context(), ops...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: "things", Key: "q", Value: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for entry, err := range things.All(t.Context(), s, "p/") {
		if err != nil || entry.Value.Count != len(got) {
			t.Fatalf("%s: %+v, %v", entry.Key, entry.Value, err)
		}
		got = append(got, entry.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d keys, want %d", len(got), len(want))
	}
	for entry := range things.All(t.Context(), s, "") {
		if entry.Key != "p/00000" {
			t.Errorf("began with %s", entry.Key)
		}
		break
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	errs := 0
	for _, err := range things.All(t.Context(), s, "") {
		if errs++; !errors.Is(err, storage.ErrClosed) || errs > 1 {
			t.Errorf("a closed store: got %v, %d times", err, errs)
		}
	}
}
