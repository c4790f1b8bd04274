package daemon

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
)

// epoch is where the wall clocks of these tests begin; the time of the day is of no matter.
func epoch() time.Time { return time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC) }

// bench is a Clock over two clocks that the test sets.
type bench struct {
	*testing.T
	wall time.Time
	boot time.Duration
	*Clock
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, wall: epoch(), boot: time.Hour}
	c, err := newClock(func() time.Time { return b.wall }, func() time.Duration { return b.boot })
	if err != nil {
		t.Fatal(err)
	}
	b.Clock = c
	return b
}

// pass lets both clocks run for d, the wall clock by slip more, with a sample each second.
func (b *bench) pass(d, slip time.Duration) {
	steps := int64(d / time.Second)
	for range steps {
		b.boot += time.Second
		b.wall = b.wall.Add(time.Second + slip/time.Duration(steps))
		b.sample()
	}
}

// want checks whether the time is believed, and what it is.
func (b *bench) want(what string, believed bool, now time.Time) {
	b.Helper()
	err := b.Guard()
	if (err == nil) != believed {
		b.Fatalf("%s: the guard says %v", what, err)
	}
	var refusal *countersign.Error
	if err != nil && (!errors.As(err, &refusal) || refusal.Code != countersign.CodeClock || refusal.RetryAfter == 0) {
		b.Fatalf("%s: refused with %v", what, err)
	}
	if got := b.Now(); got.Sub(now).Abs() > time.Second {
		b.Fatalf("%s: it is %s, want %s", what, got, now)
	}
}

func TestClockLeaps(t *testing.T) {
	by := func(d time.Duration) func(time.Time) time.Time {
		return func(t time.Time) time.Time { return t.Add(d) }
	}
	for name, leap := range map[string]func(time.Time) time.Time{
		"a day forward": by(day), "an hour back": by(-time.Hour), "ten years forward": by(3652 * day),
		"a thousand years back": func(t time.Time) time.Time { return t.AddDate(-1000, 0, 0) }, // more than a Duration holds
		"six seconds forward":   by(6 * time.Second), "six seconds back": by(-6 * time.Second),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.pass(time.Minute, 0)
			right := b.wall
			b.wall = leap(b.wall)
			b.want("before any sample", false, right)
			b.sample()
			b.want("after a sample", false, right)
			b.pass(10*time.Minute, 0)
			b.want("ten minutes later", false, right.Add(10*time.Minute))
			b.wall = right.Add(10 * time.Minute)
			b.sample()
			b.want("the clock is set right", true, b.wall)
			b.wall = leap(b.wall)
			b.sample()
			b.want("it leaps again", false, right.Add(10*time.Minute))
			refused := errors.New("not recorded")
			if err := b.confirm(func(reading) error { return refused }); !errors.Is(err, refused) {
				t.Fatalf("a confirmation that can't be recorded: %v", err)
			}
			b.want("it could not be recorded", false, right.Add(10*time.Minute))
			if err := b.confirm(func(reading) error { return nil }); err != nil {
				t.Fatal(err)
			}
			b.want("confirmed", true, b.wall)
			b.pass(time.Minute, 0)
			b.want("a minute later", true, b.wall)
		})
	}
}

// What machines do all the time is no leap.
func TestClockStaysBelieved(t *testing.T) {
	b := newBench(t)
	b.wall, b.boot = b.wall.Add(10*time.Hour), b.boot+10*time.Hour
	b.want("after ten hours of sleep", true, b.wall)
	for n := range 40 {
		b.pass(4*time.Hour, -time.Second) // 70 ppm slow
		b.want("a slow clock", true, b.wall)
		b.wall = b.wall.Add(3 * time.Second) // as a time service steps it
		b.sample()
		b.want("a small step", true, b.wall)
		if n == 20 {
			b.wall = b.wall.Add(-time.Second) // a leap second
		}
	}
	if err := b.confirm(func(reading) error { return errors.New("asked") }); err != nil {
		t.Errorf("without a doubt there is nothing to confirm: %v", err)
	}
}

// Many small steps are one leap.
func TestClockSmallStepsAddUp(t *testing.T) {
	b := newBench(t)
	for range 60 {
		b.pass(time.Second, 400*time.Millisecond)
	}
	b.want("24 s in a minute", false, epoch().Add(time.Minute))
}

// However both clocks run, the time of the daemon is never farther than 5 s from what the boot clock and 500 ppm allow,
// and while it is believed it is the wall clock's.
func TestClockNeverLeaps(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t)
		var lowest, highest time.Duration
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			passed := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(rt, "passed"))
			slip := time.Duration(rapid.OneOf(rapid.Int64Range(-int64(8*time.Second), int64(8*time.Second)), rapid.Int64Range(-int64(1000*day), int64(1000*day))).Draw(rt, "slip"))
			b.boot, b.wall = b.boot+passed, b.wall.Add(passed+slip)
			lowest, highest = lowest-passed/followPart, highest+passed/followPart
			r := b.read()
			if rapid.Bool().Draw(rt, "sample") {
				r = b.sample()
			}
			drift := r.now().Sub(epoch()) - (b.boot - time.Hour)
			if drift < lowest-maxParted-time.Millisecond || drift > highest+maxParted+time.Millisecond {
				rt.Fatalf("the time moved by %s against the boot clock, which allows %s to %s", drift, lowest, highest)
			}
			if r.doubt == "" && !r.now().Equal(b.wall) {
				rt.Fatalf("believed, but it is %s and not %s", r.now(), b.wall)
			}
		}
	})
}

// The machine's own clocks agree with each other, and their time has no monotonic reading.
func TestMachineClocks(t *testing.T) {
	c, err := newClock(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if now := c.Now(); now != now.Round(0) || now.Before(before.Add(-maxParted)) || c.Guard() != nil {
		t.Errorf("%v, %v", now, c.Guard())
	}
	if sinceBoot() <= 0 {
		t.Error("the boot clock stands at zero")
	}
}
