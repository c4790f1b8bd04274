package daemon

import (
	"testing"
	"time"
)

// The carried reading of the boot clock knows nothing of the machine's sleep: right after it, the clocks must not seem
// apart.
func TestQuickBootClockAfterSleep(t *testing.T) {
	wall, boot := time.Unix(1_800_000_000, 0), time.Hour
	c, err := newClock(func() time.Time { return wall }, func() time.Duration { return boot })
	if err != nil {
		t.Fatal(err)
	}
	c.quick = func() time.Duration { return time.Hour }
	wall, boot = wall.Add(8*time.Hour), boot+8*time.Hour
	if err := c.Guard(); err != nil || !c.Now().Equal(wall) {
		t.Errorf("after a sleep: %v, the time is %s and not %s", err, c.Now(), wall)
	}
	wall = wall.Add(time.Minute)
	if c.Guard() == nil {
		t.Error("a wall clock that leapt is believed")
	}
	quick := new(bootCache)
	if first, second := quick.sinceBoot(), quick.sinceBoot(); first <= 0 || second < first || second-sinceBoot() > time.Second {
		t.Errorf("%s, then %s, and the boot clock says %s", first, second, sinceBoot())
	}
}
