package pace

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign"
)

// hall is a pacer with one place, which is taken, and who waits before it.
type hall struct {
	*testing.T
	p     *Pacer
	leave func()
	mu    sync.Mutex
	came  []string // in their order
	wait  sync.WaitGroup
}

func newHall(t *testing.T, queue int) *hall {
	p, err := New(Config{Work: 1, Queue: queue})
	if err != nil {
		t.Fatal(err)
	}
	leave, err := p.Enter(context.Background(), Request{Key: "first"})
	if err != nil {
		t.Fatal(err)
	}
	return &hall{T: t, p: p, leave: leave}
}

// comes lets somebody come, who is in work for took when he is let in.
func (h *hall) comes(name string, line Line, left, took time.Duration) {
	h.wait.Go(func() {
		leave, err := h.p.Enter(h.Context(), Request{Line: line, Key: name, Left: left})
		h.mu.Lock()
		defer h.mu.Unlock()
		if err != nil {
			h.came = append(h.came, "off:"+name)
			return
		}
		h.came = append(h.came, name)
		h.mu.Unlock()
		time.Sleep(took)
		h.mu.Lock()
		leave()
	})
	synctest.Wait()
}

// Who may not live to come again goes first, of those whose certificate ends first; then renewals; then who enrols.
func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 10)
		h.comes("enrols", Enrolments, 0, time.Millisecond)
		h.comes("in 9 hours", Renewals, 9*time.Hour, time.Millisecond)
		h.comes("in 2 hours", Renewals, 2*time.Hour, time.Millisecond)
		h.comes("in a minute", Renewals, time.Minute, time.Millisecond)
		h.comes("over", Renewals, -time.Hour, time.Millisecond)
		h.leave()
		h.wait.Wait()
		if want := []string{"over", "in a minute", "in 2 hours", "in 9 hours", "enrols"}; !slices.Equal(h.came, want) {
			t.Errorf("%q, want %q", h.came, want)
		}
	})
}

// Renewals don't starve who enrols: each sixteenth place is theirs.
func TestShareOfEnrolments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 100)
		for i := range 40 {
			h.comes("r"+strconv.Itoa(i), Renewals, time.Hour, time.Millisecond)
		}
		h.comes("e1", Enrolments, 0, time.Millisecond)
		h.comes("e2", Enrolments, 0, time.Millisecond)
		h.leave()
		h.wait.Wait()
		if a, b := slices.Index(h.came, "e1"), slices.Index(h.came, "e2"); a != 15 || b != 31 {
			t.Errorf("they came as the %dth and %dth, want the 15th and 31st", a, b)
		}
	})
}

// A full line puts off its last: a more urgent one takes his place. Each is told another time.
func TestFullLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 2)
		h.comes("a", Renewals, time.Hour, time.Millisecond)
		h.comes("b", Renewals, 2*time.Hour, time.Millisecond)
		h.comes("c", Renewals, 3*time.Hour, time.Millisecond)
		h.comes("over", Renewals, -time.Hour, time.Millisecond)
		h.leave()
		h.wait.Wait()
		if want := []string{"off:c", "off:b", "over", "a"}; !slices.Equal(h.came, want) {
			t.Errorf("%q, want %q", h.came, want)
		}
	})
}

func (h *hall) off(key string, line Line) time.Duration {
	h.Helper()
	_, err := h.p.Enter(h.Context(), Request{Line: line, Key: key, Left: time.Hour})
	e := countersign.AsError(err)
	if e.Code != countersign.CodePaced || e.RetryAfter <= 0 {
		h.Fatalf("%v, want to be put off", err)
	}
	return e.RetryAfter
}

// Who is put off gets a time of his own, as many in a second as are served. Who comes too early hears the same time again, and
// pushes nobody back; and nobody is told more than five minutes.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 0)
		h.p.took = 0.5 // two a second
		begun := time.Now()
		h.off("me", Renewals)
		mine := h.p.lines[Renewals].told["me"]
		h.p.off = 0
		for range 1000 {
			h.off("me", Renewals)
		}
		if again := h.p.lines[Renewals].told["me"]; !again.Equal(mine) {
			t.Errorf("the place moved from %s to %s", mine.Sub(begun), again.Sub(begun))
		}
		var last time.Duration
		for i := range 2000 {
			h.p.off = 0
			last = max(last, h.off(strconv.Itoa(i), Renewals))
		}
		if last < longest*9/10 || last > longest+time.Second {
			t.Errorf("of 2000 the last is told to come in %s", last)
		}
		perSecond := map[int]int{}
		for _, at := range h.p.lines[Renewals].told {
			perSecond[int(at.Sub(begun)/time.Second)]++
		}
		for second := 3; second < int(longest/2/time.Second); second++ {
			if n := perSecond[second]; n < 1 || n > 3 {
				t.Fatalf("%d have a place in second %d, and two are served", n, second)
			}
		}
		h.leave()
	})
}

// Nobody waits for longer than two seconds, and who has gone is not worked for.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 10)
		h.comes("waits", Renewals, time.Hour, 0)
		gone, cancel := context.WithCancel(t.Context())
		h.wait.Go(func() {
			if _, err := h.p.Enter(gone, Request{Key: "gone"}); countersign.AsError(err).Code != countersign.CodeTimeout {
				t.Errorf("%v", err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		h.p.mu.Lock()
		if n := len(h.p.lines[Renewals].waiting); n != 1 {
			t.Errorf("%d wait, want 1", n)
		}
		h.p.mu.Unlock()
		time.Sleep(patience + time.Millisecond)
		h.wait.Wait()
		if want := []string{"off:waits"}; !slices.Equal(h.came, want) {
			t.Errorf("%q, want %q", h.came, want)
		}
		h.leave()
		if h.p.working != 0 {
			t.Errorf("%d places are taken for nobody", h.p.working)
		}
	})
}

// What is remembered of those who were put off has a bound, and is forgotten when their time is over.
func TestToldIsBounded(t *testing.T) {
	l, now := &line{told: map[string]time.Time{}}, time.Now()
	for i := range maxTold + 100 {
		l.remember(strconv.Itoa(i), now, now)
	}
	if len(l.told) != maxTold {
		t.Errorf("%d are remembered, want %d", len(l.told), maxTold)
	}
	l.remember("later", now, now.Add(keepTold+sweepTold))
	if len(l.told) != 1 {
		t.Errorf("%d are remembered after their time", len(l.told))
	}
}

// No pacer lets everybody in.
func TestNone(t *testing.T) {
	var p *Pacer
	leave, err := p.Enter(context.Background(), Request{})
	if err != nil {
		t.Fatal(err)
	}
	leave()
}
