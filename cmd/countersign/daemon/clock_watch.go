package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// The events of the clock.
const (
	eventParted    = "clock.parted"
	eventConfirmed = "clock.confirmed"
	eventRestored  = "clock.restored"
)

const (
	clockSample = time.Second

	// confirmNear is how near the time that is confirmed must be to the wall clock: who confirms looked a moment ago.
	confirmNear = time.Minute

	// clockLook is how many of the newest audit records the start looks through for one that was written by a running
	// daemon: opening the log may itself have written a few.
	clockLook = 10
)

// partedRecord remembers over a restart that the clock is in doubt: starting anew is no confirmation.
type partedRecord struct {
	Since time.Time `json:"since"`
	Doubt doubt     `json:"doubt"`
}

const partedKey = "parted"

func clockTable() storage.Table[partedRecord] { return storage.Table[partedRecord]{Name: "clock"} }

// clockWatch is what was told of the clock, so that each change is recorded once, also when a record can't be written
// the first time.
type clockWatch struct {
	mu   sync.Mutex
	told doubt
}

// clockDetail is the Detail of the clock's events.
type clockDetail struct {
	Doubt   doubt     `json:"doubt,omitempty"`
	Seconds float64   `json:"seconds"` // how far the wall clock is ahead
	From    time.Time `json:"from"`    // the time as the daemon held it
	To      time.Time `json:"to"`      // the wall clock's
}

func (r reading) detail() clockDetail {
	return clockDetail{Doubt: r.doubt, Seconds: r.ahead().Seconds(), From: r.held.UTC(), To: r.wall.UTC()}
}

// openClock judges the wall clock by what earlier runs left behind, before any part goes by it: a doubt that nobody has
// cleared, and the time of the newest audit record.
func (p *parts) openClock(ctx context.Context) error {
	p.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "countersign_clock_parted_seconds", Help: "How far the wall clock is ahead of where the boot clock expects it.",
		}, func() float64 { return p.clock.read().ahead().Seconds() }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "countersign_clock_doubted", Help: "1 while nothing is signed because the wall clock is in doubt.",
		}, func() float64 {
			if p.clock.read().doubt != "" {
				return 1
			}
			return 0
		}),
	)
	newest, err := p.newestRecord(ctx)
	if err != nil {
		return fmt.Errorf("compare the clock with the audit log: %w", err)
	}
	_, err = clockTable().Get(ctx, p.store, partedKey)
	switch {
	case err == nil:
		p.clock.hold(newest, doubtUnconfirmed)
	case !errors.Is(err, storage.ErrNotFound):
		return fmt.Errorf("read whether the clock is in doubt: %w", err)
	case p.clock.wall().Before(newest.Add(-maxParted)):
		p.clock.hold(newest, doubtBefore)
	}
	return p.tellClock(ctx)
}

// newestRecord is the time of the newest audit record of a running daemon; without one, the wall clock's.
func (p *parts) newestRecord(ctx context.Context) (time.Time, error) {
	records, err := p.audit.Search(ctx, audit.Query{Newest: true, Limit: clockLook})
	if err != nil {
		return time.Time{}, err
	}
	for _, r := range records {
		if strings.HasPrefix(r.Type, "audit.") { // may have been written by this start, by the clock that is judged
			continue
		}
		if r.Type == eventConfirmed { // from then on the time was another than when it was recorded
			var detail clockDetail
			if err := json.Unmarshal(r.Detail, &detail); err != nil {
				return time.Time{}, fmt.Errorf("the audit record %d: %w", r.Seq, err)
			}
			return detail.To, nil
		}
		return r.Time, nil
	}
	return p.clock.wall(), nil
}

// keepClock samples the clocks every second until ctx ends. What can't be recorded is logged and tried again.
func (p *parts) keepClock(ctx context.Context) error {
	tick := time.NewTicker(clockSample)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := p.tellClock(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("record the doubt about the clock", "err", err)
		}
	}
}

// tellClock takes one sample and makes durable what it changed. The refusals do not wait for that.
func (p *parts) tellClock(ctx context.Context) error {
	p.watch.mu.Lock()
	defer p.watch.mu.Unlock()
	r := p.clock.sample()
	if (r.doubt == "") == (p.watch.told == "") {
		return nil
	}
	kind := eventParted
	if r.doubt == "" {
		kind = eventRestored
		p.log.Warn("the clock is believed again", "wall", r.wall.UTC())
	} else {
		p.log.Error("the clock is in doubt", "reason", r.explain(), "wall", r.wall.UTC(), "held", r.held.UTC(),
			"next", "set it right, or `countersign clock confirm`")
	}
	if err := p.rememberDoubt(ctx, r); err != nil {
		return err
	}
	if err := p.record(ctx, kind, r.detail()); err != nil {
		return err
	}
	p.watch.told = r.doubt
	return nil
}

// rememberDoubt keeps the doubt over a restart, or forgets it.
func (p *parts) rememberDoubt(ctx context.Context, r reading) error {
	op := clockTable().Delete(partedKey, storage.Cond{})
	if r.doubt != "" {
		var err error
		op, err = clockTable().Put(partedKey, partedRecord{Since: r.held.UTC(), Doubt: r.doubt}, time.Time{}, storage.Cond{})
		if err != nil {
			return err
		}
	}
	_, err := p.store.Apply(ctx, op)
	return err
}

// clockAPI is the clock as operators reach it.
type clockAPI struct{ *parts }

// State is what the clocks say now.
func (a clockAPI) State() wire.Clock {
	r := a.clock.read()
	state := wire.Clock{Trusted: r.doubt == "", Time: r.now().UTC(), Wall: r.wall.UTC(), Ahead: r.ahead().Seconds()}
	if r.doubt != "" {
		state.Why = r.explain()
	}
	return state
}

// Confirm ends a doubt: by says that the wall clock is right, having seen that it is about seen. It is recorded before it
// takes effect. Without a doubt it changes nothing. Codes: CodeRole, CodeParameter, CodeBusy, CodeAudit.
func (a clockAPI) Confirm(ctx context.Context, by countersign.Caller, seen time.Time) error {
	if by.Role < countersign.RoleAdmin {
		return countersign.Errorf(countersign.CodeRole, "the clock is confirmed by an admin; the caller has the role %s", by.Role)
	}
	a.watch.mu.Lock()
	defer a.watch.mu.Unlock()
	return a.clock.confirm(func(r reading) error {
		if apart := r.wall.Sub(seen); apart > confirmNear || apart < -confirmNear {
			return countersign.Errorf(countersign.CodeParameter, "the daemon's clock says %s, not %s",
				r.wall.UTC().Format(time.RFC3339), seen.UTC().Format(time.RFC3339)).
				WithHint("set the daemon's clock right; if it is right, confirm the time that it says")
		}
		_, err := a.audit.Append(ctx, audit.Event{
			Type: eventConfirmed, Outcome: audit.OK, By: by, Subject: a.cfg.Domain, Detail: r.detail(),
		})
		if err != nil {
			return err
		}
		// Crash here: confirmed by the record, and in doubt again after the start. It is confirmed once more.
		r.doubt = ""
		if err := a.rememberDoubt(context.WithoutCancel(ctx), r); err != nil {
			return err
		}
		a.watch.told = ""
		a.log.Warn("the clock was confirmed", "by", by.Name, "wall", r.wall.UTC())
		return nil
	})
}
