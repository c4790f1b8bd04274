package daemon

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/countersign/countersign"
)

const (
	// maxParted is how far the wall clock may be from where the boot clock expects it.
	maxParted = 5 * time.Second

	// The reference follows the wall clock by one part in followPart of the time that has passed: 500 ppm, which is what a
	// time service may slew by. So a leap second or a small step is forgotten in half an hour, and small differences never
	// add up to maxParted over months; but no row of small steps carries the clock faster than 43 s a day unnoticed.
	followPart = 2000

	// readTries is how often two clocks that seem apart are read: between two readings the process may have stood still.
	readTries = 3

	clockRetry = 30 * time.Second // what who is refused is told to wait
)

// doubt is why the wall clock is not believed; "" is no doubt.
type doubt string

const (
	doubtApart       doubt = "apart"       // it left the boot clock
	doubtBefore      doubt = "before"      // at the start it was before the newest audit record
	doubtUnconfirmed doubt = "unconfirmed" // it was in doubt when the daemon ended, and nobody has confirmed it since
)

// Clock is the time of all parts of the daemon, and their guard against a wall clock that leaps.
//
// It holds the wall clock against the boot clock, which nobody can set. While they agree the time is the wall clock's.
// When they part by more than 5 s, at that very reading and without waiting for a sample, the time goes on as the boot
// clock counts it, from the last moment at which both agreed: nothing expires and nothing comes to life again by a leap.
// [Clock.Guard] is then an error, until the wall clock comes back or somebody confirms it.
//
// The boot clock is CLOCK_BOOTTIME and not the monotonic clock of package time, which is CLOCK_MONOTONIC and stands still
// while the machine sleeps: each laptop lid would part them.
type Clock struct {
	wall  func() time.Time
	boot  func() time.Duration
	quick func() time.Duration // boot as it was up to quickFor ago, carried on; nil: boot

	mu  sync.Mutex // one change of ref at a time
	ref atomic.Pointer[reference]
}

// reference is a moment whose time is believed. It never changes.
type reference struct {
	wall  time.Time
	boot  time.Duration
	doubt doubt
}

// reading is both clocks at one moment.
type reading struct {
	wall  time.Time
	held  time.Time // as the boot clock counts it from the reference
	boot  time.Duration
	doubt doubt
}

// ahead is how far the wall clock is ahead of the held time; it saturates at 292 years.
func (r reading) ahead() time.Duration { return r.wall.Sub(r.held) }

func (r reading) near() bool { return r.ahead() <= maxParted && r.ahead() >= -maxParted }

// now is the time that the daemon goes by.
func (r reading) now() time.Time {
	if r.doubt != "" {
		return r.held
	}
	return r.wall
}

// newClock believes the wall clock as it stands. Nil functions are the machine's clocks; a wall clock that is given
// without a boot clock is held against itself, so that both never part.
func newClock(wall func() time.Time, boot func() time.Duration) (*Clock, error) {
	c := &Clock{wall: wall, boot: boot}
	if wall == nil {
		// Without the monotonic reading, or differences would be counted by a clock that sleeps.
		c.wall = func() time.Time { return time.Now().Round(0) }
	}
	switch {
	case boot != nil:
	case wall != nil:
		c.boot = func() time.Duration { return wall().Sub(time.Unix(0, 0)) }
	default:
		if _, err := readBoot(); err != nil {
			return nil, err
		}
		c.boot, c.quick = sinceBoot, new(bootCache).sinceBoot
	}
	c.ref.Store(&reference{wall: c.wall(), boot: c.boot()})
	return c, nil
}

// sinceBoot is the time since the machine started, asleep or not. An error, which newClock did not see, reads as a clock
// that fell back to zero: nothing is signed then.
func sinceBoot() time.Duration {
	d, _ := readBoot()
	return d
}

func readBoot() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read CLOCK_BOOTTIME: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// quickFor is how long a reading of the boot clock is carried on by the monotonic clock: Linux gives the one by a system
// call, of which a request would need a dozen, the other without. They differ by the time that the machine sleeps.
const quickFor = 10 * time.Millisecond

// bootCache is the boot clock for who reads it often.
type bootCache struct{ last atomic.Pointer[bootReading] }

type bootReading struct {
	at   time.Time // with its monotonic reading
	boot time.Duration
}

func (c *bootCache) sinceBoot() time.Duration {
	if last := c.last.Load(); last != nil {
		if passed := time.Since(last.at); passed < quickFor {
			return last.boot + passed
		}
	}
	last := &bootReading{time.Now(), sinceBoot()}
	c.last.Store(last)
	return last.boot
}

// Now is the time for all parts of the daemon. It never leaps by more than 5 s unless somebody confirmed that.
func (c *Clock) Now() time.Time { return c.read().now() }

// Guard is nil while the time can be believed, and else CodeClock.
func (c *Clock) Guard() error {
	r := c.read()
	if r.doubt == "" {
		return nil
	}
	return countersign.Errorf(countersign.CodeClock, "%s; nothing that carries a time is signed", r.explain()).
		WithHint("set the clock right, or confirm it: `countersign clock status`, `countersign clock confirm`").After(clockRetry)
}

// explain says what is wrong, for operators and for who is refused.
func (r reading) explain() string {
	switch r.doubt {
	case doubtBefore:
		return fmt.Sprintf("the daemon's clock was set back: it is %s before the newest audit record", -r.ahead().Round(time.Second))
	case doubtUnconfirmed:
		return "the daemon's clock leapt before the daemon was last stopped, and nobody has confirmed it since"
	}
	if ahead := r.ahead().Round(time.Second); ahead < 0 {
		return fmt.Sprintf("the daemon's clock was set back by %s", -ahead)
	}
	return fmt.Sprintf("the daemon's clock was set forward by %s", r.ahead().Round(time.Second))
}

// read reads both clocks. It changes nothing.
func (c *Clock) read() reading {
	var r reading
	for try := range readTries {
		ref := c.ref.Load()
		boot := c.boot
		if try == 0 && c.quick != nil {
			boot = c.quick // a machine that has just woken is seen on the next try
		}
		r = reading{boot: boot(), wall: c.wall(), doubt: ref.doubt}
		r.held = ref.wall.Add(r.boot - ref.boot)
		if r.doubt != "" || r.near() {
			return r
		}
	}
	r.doubt = doubtApart
	return r
}

// sample reads both clocks and moves the reference: after the wall clock while they agree, into doubt when they parted,
// and out of it when the reason is gone.
func (c *Clock) sample() reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, ref := c.read(), c.ref.Load()
	switch {
	case r.doubt == doubtApart && ref.doubt == "":
		c.ref.Store(&reference{wall: r.held, boot: r.boot, doubt: doubtApart})
	case r.doubt == doubtApart && r.near():
		r.doubt = ""
		c.ref.Store(&reference{wall: r.held, boot: r.boot})
	case r.doubt == doubtBefore && r.ahead() >= -maxParted:
		// The held time was only the earliest that it could be, so nothing speaks against the wall clock any more.
		r.doubt = ""
		c.ref.Store(&reference{wall: r.wall, boot: r.boot})
	case r.doubt == "":
		most := (r.boot - ref.boot) / followPart
		c.ref.Store(&reference{wall: r.held.Add(max(-most, min(most, r.ahead()))), boot: r.boot})
	}
	return r
}

// hold puts the wall clock in doubt: the time is at, and goes on as the boot clock counts it.
func (c *Clock) hold(at time.Time, why doubt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ref.Store(&reference{wall: at, boot: c.boot(), doubt: why})
}

// confirm believes the wall clock as it was read, if told agrees to that reading. Without a doubt there is nothing to
// confirm, and told is not asked.
func (c *Clock) confirm(told func(reading) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.read()
	if r.doubt == "" {
		return nil
	}
	if err := told(r); err != nil {
		return err
	}
	c.ref.Store(&reference{wall: r.wall, boot: r.boot})
	return nil
}
