package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/storage"
)

func listOrder(e *env) {
	want := []string{"\x00", "\x00\x00", "A", "a", "a\x00", "a\x00b", "aa", "b", "\x7f", "\x80", "é", "\xff", "\xff\xff"}
	slices.Sort(want)
	for _, i := range []int{5, 0, 12, 3, 8, 1, 11, 2, 7, 4, 10, 6, 9} {
		e.apply(put(want[i], "v", storage.Cond{}))
	}
	for _, limit := range []int{1, 2, 100} {
		if got := e.keys("", limit); !slices.Equal(got, want) {
			e.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
	}
}

func listPages(e *env) {
	var all []string
	for i := range 25 {
		all = append(all, fmt.Sprintf("p/%02d", i))
	}
	for _, key := range append(slices.Clone(all), "o", "p", "p.", "p0", "q") {
		e.apply(put(key, key, storage.Cond{}))
	}
	for _, limit := range []int{1, 7, 25, 26, storage.MaxPage} {
		if got := e.keys("p/", limit); !slices.Equal(got, all) {
			e.Errorf("limit %d: got %q", limit, got)
		}
	}
	for _, c := range []struct {
		o    storage.ListOptions
		want string
		next string
	}{
		{storage.ListOptions{Prefix: "p/", After: "p/03", Limit: 2}, "p/04 p/05", "p/05"},
		{storage.ListOptions{Prefix: "p/", After: "p/03x", Limit: 1}, "p/04", "p/04"},
		{storage.ListOptions{Prefix: "p/", After: "a", Limit: 1}, "p/00", "p/00"},
		{storage.ListOptions{Prefix: "p/", After: "p/23", Limit: 1}, "p/24", ""},
		{storage.ListOptions{Prefix: "p/", After: "p/24", Limit: 1}, "", ""},
		{storage.ListOptions{Prefix: "p/", After: "z", Limit: 1}, "", ""},
		{storage.ListOptions{After: "p0", Limit: 5}, "q", ""},
		{storage.ListOptions{Prefix: "p", Limit: 3}, "p p. p/00", "p/00"},
	} {
		page, err := e.s.List(e.Context(), table, c.o)
		if err != nil {
			e.Fatalf("list: %v", err)
		}
		var keys []string
		for _, item := range page.Items {
			keys = append(keys, item.Key)
			if string(item.Value) != item.Key {
				e.Errorf("%s has the value %q", item.Key, item.Value)
			}
		}
		if got := strings.Join(keys, " "); got != c.want || page.Next != c.next {
			e.Errorf("%+v: got %q next %q, want %q next %q", c.o, got, page.Next, c.want, c.next)
		}
	}
}

// listWhileChanging changes keys between two pages: what was there all the time is seen once, in order.
func listWhileChanging(e *env) {
	for i := range 10 {
		e.apply(put(fmt.Sprintf("k%d", i), "v", storage.Cond{}))
	}
	first, err := e.s.List(e.Context(), table, storage.ListOptions{Limit: 4})
	if err != nil || first.Next != "k3" {
		e.Fatalf("list: %+v, %v", first, err)
	}
	e.apply(remove("k3", storage.Cond{}), remove("k5", storage.Cond{}), put("k0a", "v", storage.Cond{}), put("k6a", "v", storage.Cond{}))
	second, err := e.s.List(e.Context(), table, storage.ListOptions{After: first.Next, Limit: 100})
	if err != nil {
		e.Fatalf("list: %v", err)
	}
	got := ""
	for _, item := range second.Items {
		got += item.Key + " "
	}
	if want := "k4 k6 k6a k7 k8 k9 "; got != want || second.Next != "" {
		e.Errorf("got %q next %q, want %q", got, second.Next, want)
	}
}

func expiryInstant(e *env) {
	at := e.clock.Now().Add(time.Hour)
	e.apply(expiring("k", at))
	rev := e.get("k").Rev
	e.clock.set(at.Add(-time.Microsecond))
	e.value("k", "k")
	e.apply(probe("k", storage.Cond{Rev: rev}))
	if _, err := e.s.Apply(e.Context(), probe("k", storage.Cond{Absent: true})); err == nil {
		e.Errorf("before its expiry the record counts as absent")
	}
	e.clock.set(at)
	e.absent("k")
	e.apply(probe("k", storage.Cond{Absent: true}))
	if _, err := e.s.Apply(e.Context(), probe("k", storage.Cond{Rev: rev})); err == nil {
		e.Errorf("at its expiry the record still has its revision")
	}
	if keys := e.keys("", 10); len(keys) != 0 {
		e.Errorf("at its expiry the record is listed: %q", keys)
	}
	if next := e.apply(put("k", "again", storage.Cond{Absent: true})); next == rev {
		e.Errorf("revision %d repeats", rev)
	}
	e.value("k", "again")
}

func expiredNotListed(e *env) {
	now := e.clock.Now()
	var want []string
	for i := range 30 {
		key := fmt.Sprintf("k%02d", i)
		if i%3 == 0 {
			e.apply(expiring(key, now.Add(time.Hour)))
			want = append(want, key)
		} else {
			e.apply(expiring(key, now))
		}
	}
	for _, limit := range []int{1, 4, 10, 100} {
		if got := e.keys("", limit); !slices.Equal(got, want) {
			e.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
	}
}

func pruneOnlyExpired(e *env) {
	now := e.clock.Now()
	e.apply(expiring("due", now), expiring("later", now.Add(time.Microsecond)), put("never", "v", storage.Cond{}),
		storage.Op{Kind: storage.Put, Table: "others", Key: "due", Expires: now})
	if n, err := e.s.Prune(e.Context(), table, 10); n != 1 || err != nil {
		e.Errorf("pruned %d, %v; want 1", n, err)
	}
	e.absent("due")
	e.value("later", "later")
	e.value("never", "v")
	if n, err := e.s.Prune(e.Context(), table, 10); n != 0 || err != nil {
		e.Errorf("pruned %d, %v; want 0", n, err)
	}
	if n, err := e.s.Prune(e.Context(), "others", 10); n != 1 || err != nil {
		e.Errorf("the other table: pruned %d, %v; want 1", n, err)
	}
	e.clock.set(now.Add(-time.Hour))
	e.absent("due") // removed: it would be there again
}

func pruneLimit(e *env) {
	now := e.clock.Now()
	for i := range 10 {
		e.apply(expiring(fmt.Sprint("k", i), now))
	}
	for _, want := range []int{4, 4, 2, 0} {
		if n, err := e.s.Prune(e.Context(), table, 4); n != want || err != nil {
			e.Errorf("pruned %d, %v; want %d", n, err, want)
		}
	}
	e.clock.set(now.Add(-time.Hour))
	if keys := e.keys("", 100); len(keys) != 0 {
		e.Errorf("%q are still there", keys)
	}
}
