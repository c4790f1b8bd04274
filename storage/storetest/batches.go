package storetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/countersign/countersign/storage"
)

func allOrNothing(e *env) {
	rev := e.apply(put("kept", "old", storage.Cond{}))
	for name, bad := range map[string]storage.Op{
		"put":    put("bad", "v", storage.Cond{Rev: rev}),
		"delete": remove("bad", storage.Cond{Rev: rev}),
		"check":  probe("bad", storage.Cond{Rev: rev}),
	} {
		_, err := e.s.Apply(e.Context(), put("new", "v", storage.Cond{}), remove("kept", storage.Cond{}), bad)
		if _, ok := conflict(err); !ok {
			e.Errorf("%s: got %v, want a conflict", name, err)
		}
		e.absent("new")
		e.absent("bad")
		if got := e.get("kept"); string(got.Value) != "old" || got.Rev != rev {
			e.Errorf("%s: kept is %q at %d", name, got.Value, got.Rev)
		}
	}
}

func stateBefore(e *env) {
	e.apply(put("a", "1", storage.Cond{Absent: true}), probe("a", storage.Cond{Absent: true}))
	rev := e.get("a").Rev
	e.apply(put("a", "2", storage.Cond{}), probe("a", storage.Cond{Rev: rev}))
	e.value("a", "2")
}

func oneRevision(e *env) {
	rev := e.apply(put("a", "1", storage.Cond{}), put("b", "2", storage.Cond{}), probe("c", storage.Cond{Absent: true}))
	for _, key := range []string{"a", "b"} {
		if got := e.get(key); got.Rev != rev {
			e.Errorf("%s is at %d, the batch got %d", key, got.Rev, rev)
		}
	}
	page, err := e.s.List(e.Context(), table, storage.ListOptions{Limit: 10})
	if err != nil {
		e.Fatalf("list: %v", err)
	}
	for _, item := range page.Items {
		if item.Rev != rev {
			e.Errorf("%s is listed at %d, the batch got %d", item.Key, item.Rev, rev)
		}
	}
	if next := e.apply(put("a", "1", storage.Cond{})); next == rev || e.get("b").Rev != rev {
		e.Errorf("a put of a must change its revision and no other")
	}
}

func revisionsNeverRepeat(e *env) {
	seen := map[storage.Rev]bool{0: true}
	for i := range 30 {
		if i%3 == 2 {
			e.apply(remove("k", storage.Cond{}))
		}
		if i%5 == 4 {
			e.apply(expiring("k", e.clock.Now()))
			_, _ = e.s.Prune(e.Context(), table, 10)
		}
		rev := e.apply(put("k", "same", storage.Cond{}))
		if seen[rev] {
			e.Fatalf("revision %d repeats", rev)
		}
		seen[rev] = true
	}
}

// refused are batches that no engine may accept.
func refused(now time.Time) map[string][]storage.Op {
	change := func(f func(*storage.Op)) []storage.Op {
		op := put("k", "v", storage.Cond{})
		f(&op)
		return []storage.Op{op}
	}
	many := make([]storage.Op, storage.MaxOps+1)
	for i := range many {
		many[i] = put(fmt.Sprint("k", i), "v", storage.Cond{})
	}
	big := strings.Repeat("x", storage.MaxValue)
	return map[string][]storage.Op{
		"no operation":       {},
		"too many":           many,
		"no table":           change(func(o *storage.Op) { o.Table = "" }),
		"long table":         change(func(o *storage.Op) { o.Table = strings.Repeat("t", 33) }),
		"upper case table":   change(func(o *storage.Op) { o.Table = "Table" }),
		"digit in table":     change(func(o *storage.Op) { o.Table = "t1" }),
		"dot in table":       change(func(o *storage.Op) { o.Table = ".meta" }),
		"no key":             change(func(o *storage.Op) { o.Key = "" }),
		"long key":           change(func(o *storage.Op) { o.Key = strings.Repeat("k", storage.MaxKey+1) }),
		"long value":         change(func(o *storage.Op) { o.Value = []byte(big + "x") }),
		"no kind":            change(func(o *storage.Op) { o.Kind = 0 }),
		"unknown kind":       change(func(o *storage.Op) { o.Kind = storage.Check + 1 }),
		"two conditions":     change(func(o *storage.Op) { o.If = storage.Cond{Absent: true, Rev: 1} }),
		"check with value":   change(func(o *storage.Op) { o.Kind = storage.Check }),
		"delete with expiry": change(func(o *storage.Op) { o.Kind, o.Value, o.Expires = storage.Delete, nil, now }),
		"distant expiry":     change(func(o *storage.Op) { o.Expires = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"put twice":          {put("k", "1", storage.Cond{}), put("k", "2", storage.Cond{})},
		"put and delete":     {put("k", "1", storage.Cond{}), remove("k", storage.Cond{})},
		"long batch":         {put("k", big, storage.Cond{}), put("l", big, storage.Cond{})},
	}
}

func limitsRefused(e *env) {
	for name, ops := range refused(e.clock.Now()) {
		if _, err := e.s.Apply(e.Context(), ops...); err == nil || sentinel(err) {
			e.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
	e.absent("k")
	for name, o := range map[string]storage.ListOptions{"no limit": {}, "limit": {Limit: storage.MaxPage + 1}, "negative": {Limit: -1}} {
		if _, err := e.s.List(e.Context(), table, o); err == nil || sentinel(err) {
			e.Errorf("list, %s: got %v, want a refusal", name, err)
		}
	}
	_, getTable := e.s.Get(e.Context(), "Not a table", "k")
	_, getKey := e.s.Get(e.Context(), table, "")
	_, listTable := e.s.List(e.Context(), "Not a table", storage.ListOptions{Limit: 1})
	_, pruneTable := e.s.Prune(e.Context(), "Not a table", 1)
	_, pruneLimit := e.s.Prune(e.Context(), table, 0)
	for i, err := range []error{getTable, getKey, listTable, pruneTable, pruneLimit} {
		if err == nil || sentinel(err) {
			e.Errorf("argument %d: got %v, want a refusal", i, err)
		}
	}
}

func maximaAccepted(e *env) {
	key := strings.Repeat("\xff", storage.MaxKey)
	rest := storage.MaxBatch - storage.MaxKey - storage.MaxValue - 1
	e.apply(put(key, strings.Repeat("x", storage.MaxValue), storage.Cond{}), put("k", strings.Repeat("y", rest), storage.Cond{}))
	if got := e.get(key); len(got.Value) != storage.MaxValue {
		e.Errorf("value has %d bytes", len(got.Value))
	}
	longest := strings.Repeat("t", 32)
	many := make([]storage.Op, storage.MaxOps)
	for i := range many {
		many[i] = storage.Op{Kind: storage.Put, Table: longest, Key: fmt.Sprintf("%02d", i)}
	}
	e.apply(many...)
	page, err := e.s.List(e.Context(), longest, storage.ListOptions{Limit: storage.MaxPage})
	if err != nil || len(page.Items) != storage.MaxOps {
		e.Errorf("listed %d, %v; want %d", len(page.Items), err, storage.MaxOps)
	}
}
