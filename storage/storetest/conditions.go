package storetest

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/storage"
)

// conditionMatrix tries each kind with each condition on a record in each state.
func conditionMatrix(e *env) {
	now := e.clock.Now()
	states := map[string]func(key string) (rev storage.Rev, there bool){
		"never put": func(string) (storage.Rev, bool) { return 1 << 40, false },
		"live":      func(key string) (storage.Rev, bool) { return e.apply(put(key, "v", storage.Cond{})), true },
		"expiring":  func(key string) (storage.Rev, bool) { return e.apply(expiring(key, now.Add(time.Hour))), true },
		"expired":   func(key string) (storage.Rev, bool) { return e.apply(expiring(key, now)), false },
		"deleted": func(key string) (storage.Rev, bool) {
			rev := e.apply(put(key, "v", storage.Cond{}))
			e.apply(remove(key, storage.Cond{}))
			return rev, false
		},
	}
	kinds := map[string]func(string, storage.Cond) storage.Op{
		"put":    func(key string, c storage.Cond) storage.Op { return put(key, "new", c) },
		"delete": remove,
		"check":  probe,
	}
	for state, prepare := range states {
		for kind, op := range kinds {
			for _, cond := range []string{"none", "absent", "this revision", "another revision"} {
				key := state + " " + kind + " " + cond
				rev, there := prepare(key)
				c, want := storage.Cond{}, true
				switch cond {
				case "absent":
					c, want = storage.Cond{Absent: true}, !there
				case "this revision":
					c, want = storage.Cond{Rev: rev}, there
				case "another revision":
					c, want = storage.Cond{Rev: rev + 1}, false
				}
				e.outcome(op(key, c), rev, there, want)
			}
		}
	}
}

// outcome applies op, which must succeed or conflict, and looks at what is there afterwards.
func (e *env) outcome(op storage.Op, rev storage.Rev, there, want bool) {
	e.Helper()
	_, err := e.s.Apply(e.Context(), op)
	c, isConflict := conflict(err)
	switch {
	case want && err != nil, !want && !isConflict:
		e.Errorf("%s: got %v, want success: %v", op.Key, err, want)
		return
	case isConflict && (c.Found != 0) != there, isConflict && there && c.Found != rev:
		e.Errorf("%s: the conflict found %d, want %d (there: %v)", op.Key, c.Found, rev, there)
	}
	got, err := e.s.Get(e.Context(), table, op.Key)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		e.Fatalf("get: %v", err)
	}
	left := there
	if want && op.Kind != storage.Check {
		left = op.Kind == storage.Put
	}
	if (err == nil) != left {
		e.Errorf("%s: afterwards there: %v, want %v", op.Key, err == nil, left)
	}
	if written := err == nil && string(got.Value) == "new"; written != (want && op.Kind == storage.Put) {
		e.Errorf("%s: afterwards the value is %q", op.Key, got.Value)
	}
}

func conflictNames(e *env) {
	rev := e.apply(put("a", "v", storage.Cond{}))
	_, err := e.s.Apply(e.Context(), probe("a", storage.Cond{Rev: rev}), put("b", "v", storage.Cond{}),
		put("a", "v", storage.Cond{Absent: true}))
	if c, ok := conflict(err); !ok || c.Index != 2 || c.Found != rev {
		e.Errorf("got %#v, want index 2 and revision %d", err, rev)
	}
	_, err = e.s.Apply(e.Context(), probe("b", storage.Cond{Rev: rev}), probe("a", storage.Cond{Absent: true}))
	if c, ok := conflict(err); !ok || c.Index != 0 || c.Found != 0 {
		e.Errorf("got %#v, want index 0 and no revision", err)
	}
}

func oneCreatorWins(e *env) {
	for round := range 5 {
		key := fmt.Sprint("lease", round)
		var winners atomic.Int32
		parallel(8, func(i int) {
			_, err := e.s.Apply(e.Context(), put(key, strconv.Itoa(i), storage.Cond{Absent: true}))
			if _, ok := conflict(err); err != nil && !ok {
				e.Errorf("apply: %v", err)
			}
			if err == nil {
				winners.Add(1)
			}
		})
		if winners.Load() != 1 {
			e.Errorf("%d creators won", winners.Load())
		}
	}
}

func counterLosesNothing(e *env) {
	const workers, each = 8, 15
	e.apply(put("n", "0", storage.Cond{}))
	parallel(workers, func(int) {
		for range each {
			for !e.increment("n") {
				if e.Failed() {
					return
				}
			}
		}
	})
	e.value("n", strconv.Itoa(workers*each))
}

// increment reports false if somebody else was faster.
func (e *env) increment(key string) bool {
	item, err := e.s.Get(e.Context(), table, key)
	if err != nil {
		e.Errorf("get: %v", err)
		return false
	}
	n, err := strconv.Atoi(string(item.Value))
	if err != nil {
		e.Errorf("value: %v", err)
		return false
	}
	_, err = e.s.Apply(e.Context(), put(key, strconv.Itoa(n+1), storage.Cond{Rev: item.Rev}))
	if _, ok := conflict(err); err != nil && !ok {
		e.Errorf("apply: %v", err)
	}
	return err == nil
}

func outcomesAreApart(e *env) {
	rev := e.apply(put("taken", "v", storage.Cond{}))
	for round := range 5 {
		parallel(16, func(i int) {
			key, cond := fmt.Sprint("k", round, i), storage.Cond{Absent: true}
			if i%2 == 1 {
				cond = storage.Cond{Rev: rev} // of another key: must conflict
			}
			_, err := e.s.Apply(e.Context(), put(key, "v", cond))
			if _, refused := conflict(err); refused != (i%2 == 1) || err != nil && !refused {
				e.Errorf("%s: %v", key, err)
			}
		})
		for i := range 16 {
			if _, err := e.s.Get(e.Context(), table, fmt.Sprint("k", round, i)); (err == nil) != (i%2 == 0) {
				e.Errorf("k%d%d afterwards: %v", round, i, err)
			}
		}
	}
}
