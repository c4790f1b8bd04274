package storetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/countersign/countersign/storage"
)

func readAsPut(e *env) {
	expires := e.clock.Now().Add(time.Hour)
	values := []string{"", "v", "\x00\xff\x00", strings.Repeat("x", 100_000)}
	for i, value := range values {
		key := fmt.Sprint("k", i)
		rev := e.apply(storage.Op{Kind: storage.Put, Table: table, Key: key, Value: []byte(value), Expires: expires})
		got := e.get(key)
		if got.Key != key || string(got.Value) != value || got.Rev != rev || rev == 0 || !got.Expires.Equal(expires) {
			e.Errorf("got %.60q rev %d expires %v; put %.60q rev %d expires %v",
				got.Value, got.Rev, got.Expires, value, rev, expires)
		}
	}
	e.apply(put("plain", "v", storage.Cond{}))
	if got := e.get("plain"); !got.Expires.IsZero() {
		e.Errorf("a record without expiry expires %v", got.Expires)
	}
}

func unknownKey(e *env) {
	e.absent("nothing")
	e.apply(put("a", "v", storage.Cond{}))
	e.absent("nothing")
	e.absent("a\x00")
	if keys := e.keys("nothing", 10); len(keys) != 0 {
		e.Errorf("listed %q", keys)
	}
	page, err := e.s.List(e.Context(), "never_written", storage.ListOptions{Limit: 10})
	if err != nil || len(page.Items) != 0 || page.Next != "" {
		e.Errorf("a table that was never written: %+v, %v", page, err)
	}
}

func itemsAreCopies(e *env) {
	op := put("k", "value", storage.Cond{})
	e.apply(op)
	op.Value[0] = 'X'
	e.value("k", "value")
	e.get("k").Value[0] = 'X'
	e.value("k", "value")
	for range 2 {
		page, err := e.s.List(e.Context(), table, storage.ListOptions{Limit: 10})
		if err != nil || len(page.Items) != 1 || string(page.Items[0].Value) != "value" {
			e.Fatalf("list: %+v, %v", page, err)
		}
		page.Items[0].Value[0] = 'X'
	}
	e.value("k", "value")
}

func tablesAreApart(e *env) {
	e.apply(
		storage.Op{Kind: storage.Put, Table: "a", Key: "bc", Value: []byte("1")},
		storage.Op{Kind: storage.Put, Table: "ab", Key: "c", Value: []byte("2")},
		storage.Op{Kind: storage.Put, Table: "b", Key: "bc", Value: []byte("3")},
	)
	e.apply(storage.Op{Kind: storage.Delete, Table: "b", Key: "bc"})
	for name, want := range map[string]string{"a": "bc", "ab": "c", "b": ""} {
		page, err := e.s.List(e.Context(), name, storage.ListOptions{Limit: 10})
		if err != nil {
			e.Fatalf("list: %v", err)
		}
		got := ""
		for _, item := range page.Items {
			got += item.Key
		}
		if got != want {
			e.Errorf("table %s has %q, want %q", name, got, want)
		}
	}
}

func putReplaces(e *env) {
	at := e.clock.Now().Add(time.Minute)
	e.apply(expiring("k", at))
	e.apply(put("k", "forever", storage.Cond{}))
	e.apply(put("l", "forever", storage.Cond{}))
	e.apply(expiring("l", at))
	e.clock.set(at)
	e.value("k", "forever")
	e.absent("l")
	if n, err := e.s.Prune(e.Context(), table, 10); n != 1 || err != nil {
		e.Errorf("pruned %d, %v; want 1", n, err)
	}
	e.value("k", "forever")
}

func deleteAbsent(e *env) {
	e.apply(remove("k", storage.Cond{}))
	e.apply(put("k", "v", storage.Cond{}))
	e.apply(remove("k", storage.Cond{}))
	e.absent("k")
	e.apply(remove("k", storage.Cond{}))
	e.apply(remove("k", storage.Cond{Absent: true}))
	if _, err := e.s.Apply(e.Context(), remove("k", storage.Cond{Rev: 1})); err == nil {
		e.Errorf("deleting an absent key on condition of a revision must conflict")
	}
}

func getIsLinearizable(e *env) {
	parallel(4, func(i int) {
		key := fmt.Sprint("k", i)
		for n := range 20 {
			want := fmt.Sprint(n)
			if _, err := e.s.Apply(e.Context(), put(key, want, storage.Cond{})); err != nil {
				e.Errorf("apply: %v", err)
				return
			}
			if got, err := e.s.Get(e.Context(), table, key); err != nil || string(got.Value) != want {
				e.Errorf("get %s: %q, %v; want %q", key, got.Value, err, want)
				return
			}
		}
	})
}
