package mtls

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/pace"
	"github.com/countersign/countersign/api/wire"
)

// overload is a daemon of a fixed capacity behind the real pacer: one processor, which each handshake and each certificate
// takes for a while, in the order in which they come. Nobody is served for nothing: also who is put off has cost a handshake and
// the judgement of his certificate.
type overload struct {
	pacer               *pace.Pacer // nil: none
	handshake, issuance time.Duration

	mu    sync.Mutex
	until time.Time // the processor is busy
}

// use takes the processor for d, and gives when that is over; in steps of 20 ms, which spares the test most of its time.
func (o *overload) use(d time.Duration) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); o.until.Before(now) {
		o.until = now
	}
	o.until = o.until.Add(d)
	return o.until.Add(tick - 1).Truncate(tick)
}

// renew is what follows the handshake.
func (o *overload) renew(key string, left time.Duration) error {
	leave, err := o.pacer.Enter(context.Background(), pace.Request{Line: pace.Renewals, Key: key, Left: left})
	if err != nil {
		e := countersign.AsError(err)
		return &client.APIError{
			Status: http.StatusServiceUnavailable, RetryAfter: e.RetryAfter, Problem: wire.Error{Code: e.Code},
		}
	}
	defer leave()
	time.Sleep(time.Until(o.use(o.issuance)))
	return nil
}

// returner is an agent after the outage. Its schedule is the agent's own: nextWait.
type returner struct {
	key   string
	at    time.Time // when it asks; when it has shaken hands
	asked time.Time // zero: it has not shaken hands
	end   time.Time // of its certificate
	last  time.Duration
}

// calendar has the agents that ask in each step of 5 ms. It spares the test what a heap takes under the race detector.
type calendar struct {
	begun time.Time
	steps [][]*returner
	now   int // the first step that may have somebody
	size  int
}

const step = tick / 4

// add puts an agent into the step that is over when its time has come.
func (c *calendar) add(a *returner) {
	at := max(c.now, int((a.at.Sub(c.begun)+step-1)/step))
	for len(c.steps) <= at {
		c.steps = append(c.steps, nil)
	}
	c.steps[at] = append(c.steps[at], a)
	c.size++
}

// next is in how long somebody asks. There must be somebody.
func (c *calendar) next() time.Duration {
	for len(c.steps[c.now]) == 0 {
		c.now++
	}
	return time.Until(c.begun.Add(time.Duration(c.now) * step))
}

// take takes one out of the step that next found.
func (c *calendar) take() *returner {
	a := c.steps[c.now][0]
	c.steps[c.now] = c.steps[c.now][1:]
	c.size--
	return a
}

// returned is how a return went.
type returned struct {
	took                   time.Duration // until 95 of 100 had their certificates
	most                   time.Duration // until 99 had
	asked, putOff, tooLate int           // attempts; those put off; those whose agent had given up
	done                   int
	seconds                map[int]int // certificates by second
}

// run brings the agents back and waits until all have certificates. Agents are no goroutines but while they ask: the race
// detector takes 8,128 of them.
func (o *overload) run(agents []*returner) returned {
	begun := time.Now()
	r := returned{seconds: map[int]int{}}
	var mu sync.Mutex
	var wait sync.WaitGroup
	todo := &calendar{begun: begun}
	for _, a := range agents {
		todo.add(a)
	}
	out := make(chan *returner, len(agents))
	inside, total := 0, len(agents)
	ask := func(a *returner) {
		err := o.renew(a.key, time.Until(a.end))
		late := time.Since(a.asked) > callTimeout // the agent has given up, whatever it was answered
		mu.Lock()
		r.asked++
		switch {
		case late:
			r.tooLate++
			err = context.DeadlineExceeded
		case err != nil:
			r.putOff++
		default:
			r.done++
			r.seconds[int(time.Since(begun)/time.Second)]++
			if r.done == total*95/100 {
				r.took = time.Since(begun)
			}
			if r.done == total*99/100 {
				r.most = time.Since(begun)
			}
		}
		mu.Unlock()
		if err == nil {
			out <- nil
			return
		}
		a.last = nextWait(err, a.last, time.Until(a.end), false, rand.Float64(), rand.Float64())
		a.at, a.asked = time.Now().Add(a.last), time.Time{}
		out <- a
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for todo.size > 0 || inside > 0 {
		var next <-chan time.Time
		if todo.size > 0 && inside < 8000 {
			if d := todo.next(); d <= 0 {
				a := todo.take()
				if a.asked.IsZero() {
					a.asked, a.at = time.Now(), o.use(o.handshake)
					todo.add(a)
					continue
				}
				inside++
				wait.Go(func() { ask(a) })
				continue
			} else {
				timer.Reset(d)
				next = timer.C
			}
		}
		select {
		case a := <-out:
			if inside--; a != nil {
				todo.add(a)
			}
		case <-next:
		}
	}
	wait.Wait()
	return r
}

// away are agents that ask in vain for a while already, as the schedule has them ask: a point of time in their wait of 25 to
// 50 s is drawn for each.
func away(n int) []*returner {
	agents, now := make([]*returner, n), time.Now()
	for i := range agents {
		wait := slowLeast + part(slowMost-slowLeast, rand.Float64())
		for rand.Float64() > float64(wait)/float64(slowMost) { // a long wait is met with more often
			wait = slowLeast + part(slowMost-slowLeast, rand.Float64())
		}
		agents[i] = &returner{
			key: strconv.Itoa(i), last: wait, at: now.Add(part(wait, rand.Float64())),
			end: now.Add(time.Duration((rand.Float64() - 0.5) * float64(12*time.Hour))), // half of them are over
		}
	}
	return agents
}

const (
	manyAgents = 100_000
	perSecond  = 2000 // certificates, if nobody is put off
	tick       = 20 * time.Millisecond
)

// A fleet comes back after an outage, faster than it can be served, and who was put off comes back into it. Until 95 of 100
// are served, and until 99 are, the daemon makes at least 80 % of what it could. What is assumed stands in adr/0030.
func TestHundredThousandReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pacer, err := pace.New(pace.Config{Work: 256, Queue: 4096})
		if err != nil {
			t.Fatal(err)
		}
		each := time.Second / perSecond
		o := &overload{pacer: pacer, handshake: each / 4, issuance: each - each/4}
		r := o.run(away(manyAgents))
		goodput, toMost := 0.95*manyAgents/r.took.Seconds()/perSecond, 0.99*manyAgents/r.most.Seconds()/perSecond
		least := perSecond
		for i := 1; i < int(r.took.Seconds()); i++ {
			least = min(least, r.seconds[i])
		}
		t.Logf("%d agents, %d/s: 95 %% are back after %s, 99 %% after %s; goodput %.1f %% and %.1f %%, at least %d in a second; %d attempts, %d put off, %d too late",
			r.done, perSecond, r.took.Round(time.Second), r.most.Round(time.Second), 100*goodput, 100*toMost, least, r.asked, r.putOff, r.tooLate)
		if r.done != manyAgents || goodput < 0.8 || toMost < 0.8 {
			t.Errorf("goodput is %.1f %% and %.1f %% of what the daemon can, want 80", 100*goodput, 100*toMost)
		}
		if least < perSecond/2 {
			t.Errorf("in one second only %d certificates were made: it collapses", least)
		}
		if r.tooLate > manyAgents/100 {
			t.Errorf("%d answers came when the agent had given up", r.tooLate)
		}
	})
}

// Who has a place comes within a second of it; who was told what everybody is told, spread over as long again.
func TestPlaceIsKept(t *testing.T) {
	busy := func(code countersign.Code) error {
		return &client.APIError{Status: http.StatusServiceUnavailable, RetryAfter: 100 * time.Second, Problem: wire.Error{Code: code}}
	}
	for _, c := range []struct {
		err    error
		left   time.Duration
		lo, hi time.Duration
	}{
		{busy(countersign.CodePaced), time.Hour, 100 * time.Second, 101 * time.Second},
		{busy(countersign.CodePaced), -time.Hour, 100 * time.Second, 101 * time.Second},
		{busy(countersign.CodePaced), time.Minute, 30 * time.Second, 31 * time.Second},
		{busy(countersign.CodeBusy), time.Hour, 100 * time.Second, 200 * time.Second},
		{errors.New("no answer"), -time.Hour, slowLeast, slowMost},
	} {
		for _, u := range []float64{0, 0.5, 0.999} {
			if d := nextWait(c.err, time.Second, c.left, false, u, u); d < c.lo || d > c.hi {
				t.Errorf("%v, %s left: waits %s, want %s to %s", c.err, c.left, d, c.lo, c.hi)
			}
		}
	}
}
