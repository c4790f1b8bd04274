// Package pace is the queue before the issuing of certificates: so many requests are in work at a time, some more wait, those
// first whose certificate ends first, and all others are told when to come again, each at a time of his own, as many in a
// second as can be served. A fleet that comes back after an outage is so served at the rate of which the daemon is capable,
// whatever its size, and renewals are not held up by those who enrol.
//
// It never holds up anything but what enters it: documents, exchanges and the admin socket do not. It never keeps more than its
// bounds, never works for who has gone, never judges who somebody is, and writes nothing.
package pace

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
)

// Line says which of the two lines a request stands in.
type Line uint8

// The lines. While both have somebody, an enrolment is let in after each 15 renewals.
const (
	Renewals   Line = iota // by who holds a certificate, or held it until a short while ago
	Enrolments             // by who has none yet
)

// String is the line's name in metrics.
func (l Line) String() string { return [...]string{"renewals", "enrolments"}[l] }

const (
	share     = 16 // one place of so many is for enrolments while renewals wait too
	patience  = 2 * time.Second
	longest   = 5 * time.Minute
	wave      = 25 * time.Second // half of the time over which a fleet of ours comes back by itself
	maxTold   = 1 << 17          // holders of a place in the schedule that are remembered, of each line
	keepTold  = time.Minute      // after the time of the place: then it is forfeited
	sweepTold = 10 * time.Second // so often at most
	offCosts  = 1.0 / 4          // of what one costs who is served: a handshake, and the judgement of the credential
	offOver   = 2 * time.Second  // over which those are smoothed who are put off
	quiet     = 10 * time.Second // between two lines in the log, and after which an overload is over
	firstTook = time.Millisecond // of a request, before one has ended
)

// Config of a [Pacer].
type Config struct {
	Work     int                   // requests in work at a time, 1 or more
	Queue    int                   // requests that wait, of each line, at most
	Logger   *slog.Logger          // nil: discards
	Registry prometheus.Registerer // nil: no metrics
}

// Request is what is known of one who wants to enter.
type Request struct {
	Line Line
	Key  string        // names him, as far as it was proven: the serial of a certificate, a token's id
	Left time.Duration // until the end of the certificate that he holds; 0 or less: it has ended. Of an enrolment without meaning
}

// Pacer is safe for concurrent use. It starts no goroutine. Durations are of the monotonic clock.
type Pacer struct {
	work, queue int
	log         *slog.Logger
	metrics     metrics

	mu      sync.Mutex
	working int
	took    float64 // seconds that a request is in work, smoothed over about as many as are in work
	off     float64 // put off lately, each counting for less as time goes by
	offAt   time.Time
	lines   [2]line
	turns   int
	arrived uint64
	episode episode
}

// line are those who wait, and those who were told when to come again.
type line struct {
	waiting []*waiter            // in the order in which they are let in
	next    time.Time            // the first place of the schedule that is nobody's
	told    map[string]time.Time // whose place is when
	swept   time.Time
}

// waiter is one who waits.
type waiter struct {
	rq     Request
	urgent bool      // he may not live to come again
	due    bool      // he was told to come now
	end    time.Time // of his certificate
	since  time.Time
	number uint64             // in the order of arrival
	answer chan time.Duration // one value: 0, he is let in; else in how long he may come again
}

// episode is an overload, for the log.
type episode struct {
	begun      time.Time // the first who was put off
	last, told time.Time // the last who was; the last line
	off        [2]int    // put off since then
}

// New makes a pacer.
func New(cfg Config) (*Pacer, error) {
	p := &Pacer{work: max(1, cfg.Work), queue: max(0, cfg.Queue), log: cfg.Logger, took: firstTook.Seconds()}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	for i := range p.lines {
		p.lines[i].told = map[string]time.Time{}
	}
	var err error
	p.metrics, err = newMetrics(cfg.Registry, p)
	return p, err
}

// Enter lets a request in, at once or after at most two seconds, and then leave must be called, once; or tells it when to come
// again (CodePaced, with RetryAfter), or that its caller has gone (CodeTimeout). A nil Pacer lets everybody in.
func (p *Pacer) Enter(ctx context.Context, rq Request) (leave func(), err error) {
	if p == nil {
		return func() {}, nil
	}
	w, off := p.arrive(rq)
	if off > 0 {
		return nil, putOff(off)
	}
	if w == nil {
		return p.entered(), nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case off = <-w.answer:
	case <-timer.C:
		off = p.give(w, true)
	case <-ctx.Done():
		if p.give(w, false) == 0 {
			p.left(0) // he was let in at this very moment
		}
		return nil, countersign.Errorf(countersign.CodeTimeout, "the request ended before it was served").Because(ctx.Err())
	}
	p.metrics.waited.WithLabelValues(rq.Line.String()).Observe(time.Since(w.since).Seconds())
	if off > 0 {
		return nil, putOff(off)
	}
	return p.entered(), nil
}

func putOff(d time.Duration) error {
	return countersign.Errorf(countersign.CodePaced, "more certificates are asked for than can be made now").
		WithHint("come again when Retry-After says: there is a place for you then").After(d)
}

// entered gives the leave of who was let in.
func (p *Pacer) entered() func() {
	begun := time.Now()
	return sync.OnceFunc(func() { p.left(time.Since(begun)) })
}

// arrive lets a request in (nil, 0), or makes it wait, or puts it off.
func (p *Pacer) arrive(rq Request) (*waiter, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, now := &p.lines[rq.Line], time.Now()
	if p.working < p.work && len(p.lines[Renewals].waiting)+len(p.lines[Enrolments].waiting) == 0 {
		p.working++
		delete(l.told, rq.Key)
		return nil, 0
	}
	place, told := l.told[rq.Key]
	p.arrived++
	w := &waiter{
		number: p.arrived,
		rq:     rq, end: now.Add(rq.Left), since: now, due: told && !now.Before(place),
		urgent: rq.Line == Renewals && rq.Left < 2*longest, answer: make(chan time.Duration, 1),
	}
	at, _ := slices.BinarySearchFunc(l.waiting, w, order)
	room := p.room(rq.Line)
	if at >= room {
		return nil, p.putOff(l, w, now)
	}
	l.waiting = slices.Insert(l.waiting, at, w)
	for len(l.waiting) > room {
		last := l.waiting[len(l.waiting)-1]
		l.waiting = l.waiting[:len(l.waiting)-1]
		last.answer <- p.putOff(l, last, now)
	}
	return w, 0
}

// order puts first who may not live to come again; of equals who was told to come now; of equals whose certificate ends first;
// of equals who came first. It is total, so that one who waits is found without asking all.
func order(in, w *waiter) int {
	switch {
	case in.urgent != w.urgent:
		return first(in.urgent)
	case in.due != w.due:
		return first(in.due)
	case in.rq.Line == Renewals && !in.end.Equal(w.end):
		return in.end.Compare(w.end)
	}
	return cmp.Compare(in.number, w.number)
}

func first(is bool) int {
	if is {
		return -1
	}
	return 1
}

// rate is how many of a line are served in a second, as things are. The caller holds the lock.
func (p *Pacer) rate(l Line) float64 {
	all := p.rateOfAll()
	switch {
	case l == Enrolments && len(p.lines[Renewals].waiting) > 0:
		return all / share
	case l == Renewals && len(p.lines[Enrolments].waiting) > 0:
		return all * (share - 1) / share
	}
	return all
}

// booking is for how many of a line there are places in a second. Who is put off costs something, so that less is served in an
// overload than could be when all come at their time. If it costs less than that, too many come, and cost little. The caller
// holds the lock.
func (p *Pacer) booking(l Line) float64 {
	r := p.rate(l)
	return r + r/p.rateOfAll()*offCosts*p.off/offOver.Seconds()
}

func (p *Pacer) rateOfAll() float64 { return float64(p.work) / max(p.took, 1e-6) }

// room is how many of a line may wait: those who will be let in before their patience ends. The caller holds the lock.
func (p *Pacer) room(l Line) int {
	return min(p.queue, max(1, int(p.rate(l)*patience.Seconds())))
}

// putOff gives w the next place of the schedule, or tells again which one is his: who comes too early pushes nobody back. The
// caller holds the lock.
func (p *Pacer) putOff(l *line, w *waiter, now time.Time) time.Duration {
	if p.episode.begun.IsZero() || now.Sub(p.episode.last) > quiet {
		p.episode.begun = now
	}
	p.episode.off[w.rq.Line]++
	p.off = 1 + p.off*math.Exp(-now.Sub(p.offAt).Seconds()/offOver.Seconds())
	p.offAt = now
	p.tell(now)
	p.metrics.putOff.WithLabelValues(w.rq.Line.String()).Inc()
	if place, ok := l.told[w.rq.Key]; ok && now.Before(place) {
		return whole(place.Sub(now))
	}
	// Until its patience is over those are served who wait. And others go on coming by themselves, it may be for three times as long
	// as up to now: who came back among them would have to be put off once more. When a wave has lasted for long its end is near, and
	// who is put off then comes soon: the places after it must not stand empty.
	lasts := now.Sub(p.episode.begun)
	place := now.Add(max(min(3*lasts, wave, 2*wave-lasts), patience))
	if l.next.After(place) {
		place = l.next
	}
	if place.Sub(now) > longest {
		// Nobody waits for longer, and who comes before there is room is put off anew.
		place = now.Add(longest/2 + time.Duration(rand.Float64()*float64(longest/2)))
	} else {
		l.next = place.Add(time.Duration(float64(time.Second) / p.booking(w.rq.Line)))
	}
	l.remember(w.rq.Key, place, now)
	return whole(place.Sub(now))
}

// whole rounds up to seconds, as Retry-After does.
func whole(d time.Duration) time.Duration {
	return max(time.Second, (d + time.Second - 1).Truncate(time.Second))
}

// remember keeps whose a place is. One that there is no room for comes as anybody.
func (l *line) remember(key string, place, now time.Time) {
	if now.Sub(l.swept) >= sweepTold {
		l.swept = now
		for k, at := range l.told {
			if now.Sub(at) > keepTold {
				delete(l.told, k)
			}
		}
	}
	if _, ok := l.told[key]; key != "" && (ok || len(l.told) < maxTold) {
		l.told[key] = place
	}
}

// give takes a waiter out of its line, and gives its answer if it has one. Who is taken out is put off, if it is wanted.
func (p *Pacer) give(w *waiter, putOff bool) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.lines[w.rq.Line]
	at, waits := slices.BinarySearchFunc(l.waiting, w, order)
	if !waits {
		return <-w.answer
	}
	l.waiting = slices.Delete(l.waiting, at, at+1)
	if !putOff {
		return -1
	}
	return p.putOff(l, w, time.Now())
}

// left takes account of one that was in work, for took, or that went without any (0), and lets in who is next.
func (p *Pacer) left(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working--
	if took > 0 {
		p.took += (took.Seconds() - p.took) / float64(max(p.work, 8))
	}
	for p.working < p.work {
		l := p.turn()
		if l == nil {
			p.overloadEnded(time.Now())
			return
		}
		w := l.waiting[0]
		l.waiting[0] = nil
		l.waiting = l.waiting[1:] // slices.Delete would move all others, for each who is served
		delete(l.told, w.rq.Key)
		p.working++
		w.answer <- 0
	}
}

// turn is the line from which the next one is let in; nil: nobody waits.
func (p *Pacer) turn() *line {
	renewals, enrolments := &p.lines[Renewals], &p.lines[Enrolments]
	switch {
	case len(renewals.waiting) == 0 && len(enrolments.waiting) == 0:
		return nil
	case len(renewals.waiting) == 0:
		return enrolments
	case len(enrolments.waiting) == 0:
		return renewals
	}
	if p.turns++; p.turns%share == 0 {
		return enrolments
	}
	return renewals
}

// tell says that there is an overload, now and then. The caller holds the lock.
func (p *Pacer) tell(now time.Time) {
	e := &p.episode
	e.last = now
	if !e.told.IsZero() && now.Sub(e.told) < quiet {
		return
	}
	p.log.Warn("more certificates are asked for than can be made: some are told to come again",
		"renewals_put_off", e.off[Renewals], "enrolments_put_off", e.off[Enrolments],
		"renewals_wait", len(p.lines[Renewals].waiting), "enrolments_wait", len(p.lines[Enrolments].waiting),
		"per_second", int(p.rateOfAll()))
	e.told, e.off = now, [2]int{}
}

// overloadEnded says so, once. The caller holds the lock.
func (p *Pacer) overloadEnded(now time.Time) {
	e := &p.episode
	if e.told.IsZero() || now.Sub(e.last) < quiet {
		return
	}
	p.log.Info("all certificates that are asked for are made again",
		"renewals_put_off", e.off[Renewals], "enrolments_put_off", e.off[Enrolments])
	*e = episode{}
}
