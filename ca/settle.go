package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// mark is how far the audit log holds no open intent, under markKey.
type mark struct {
	Seq uint64 `json:"seq"`
}

const markKey = "settled"

func stateTable() storage.Table[mark] { return storage.Table[mark]{Name: "ca_state"} }

// flights are the serials with an intent and no outcome yet, so that the mark never passes one. The zero value is ready.
type flights struct {
	mu   sync.Mutex
	open map[string]flight
}

type flight struct {
	id    countersign.ID
	after uint64 // the intent's sequence number is greater
	left  bool   // nobody works on it any more, and its outcome is not in the log
}

// begin is called before the intent is appended, with the log's head of that moment.
func (f *flights) begin(serial string, id countersign.ID, head uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		f.open = make(map[string]flight)
	}
	f.open[serial] = flight{id: id, after: head}
}

func (f *flights) end(serial string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, serial)
}

// leave hands a serial to the next settling.
func (f *flights) leave(serial string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now, ok := f.open[serial]; ok {
		now.left = true
		f.open[serial] = now
	}
}

// settled is the greatest sequence number up to which there is no open intent; head was read before.
func (f *flights) settled(head uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, now := range f.open {
		head = min(head, now.after)
	}
	return head
}

func (f *flights) leftovers() map[string]countersign.ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := make(map[string]countersign.ID)
	for serial, now := range f.open {
		if now.left {
			left[serial] = now.id
		}
	}
	return left
}

// settleAll reads the audit log from the mark on and gives each intent without an outcome one: what a crash left open.
// It runs before anything is issued.
func (a *Authority) settleAll(ctx context.Context) error {
	from, err := stateTable().Get(ctx, a.cfg.Store, markKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	head := a.cfg.Audit.Head().Seq
	open := make(map[string]countersign.ID)
	for r, err := range a.cfg.Audit.Records(ctx, from.Value.Seq+1) {
		if err != nil {
			return err
		}
		switch r.Type {
		case eventIntent:
			var detail settledDetail
			if err := json.Unmarshal(r.Detail, &detail); err != nil {
				return fmt.Errorf("the audit record %d: %w", r.Seq, err)
			}
			open[r.Subject] = detail.ID
		case eventIssued, eventRecovered, eventAbandoned:
			delete(open, r.Subject)
		}
	}
	for serial, id := range open {
		if err := a.settleOne(ctx, serial, id); err != nil {
			return err
		}
	}
	return a.moveMark(ctx, head)
}

// settleOne writes the outcome of an intent that has none: the store knows it. A serial that may have been signed and is
// not recorded was never handed out.
func (a *Authority) settleOne(ctx context.Context, serial string, id countersign.ID) error {
	event := audit.Event{
		Type: eventRecovered, Outcome: audit.OK, By: countersign.Daemon("settling intents"), Subject: serial,
		Detail: settledDetail{ID: id},
	}
	known, err := a.onRecord(ctx, serial)
	if err != nil {
		return err
	}
	if !known {
		event.Type, event.Outcome = eventAbandoned, audit.Failed
		event.Detail = settledDetail{ID: id, Why: "it is not on record"}
	}
	_, err = a.cfg.Audit.Append(ctx, event)
	return err
}

// onRecord tells whether a serial is that of a recorded leaf, authority or responder.
func (a *Authority) onRecord(ctx context.Context, serial string) (bool, error) {
	for _, table := range []string{certificatesTable().Name, authoritiesTable().Name, respondersTable().Name} {
		_, err := a.cfg.Store.Get(ctx, table, serial)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, storage.ErrNotFound) {
			return false, err
		}
	}
	return false, nil
}

// moveMark stores how far all is settled. Nothing depends on it but how much the next start has to read.
func (a *Authority) moveMark(ctx context.Context, head uint64) error {
	op, err := stateTable().Put(markKey, mark{Seq: a.flights.settled(head)}, time.Time{}, storage.Cond{})
	if err != nil {
		return err
	}
	_, err = a.cfg.Store.Apply(ctx, op)
	return err
}

const (
	tick       = 2 * time.Second
	pruneStep  = 500 // records of one table in one step
	pruneSteps = 20  // of one table in one tick
)

// Run keeps house until ctx ends: it writes outcomes that could not be written when they were due, moves the mark from
// which the next start reads the audit log, and removes expired records in bounded steps. Its errors are logged and
// tried again at the next tick.
func (a *Authority) Run(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var moved uint64
	rolled := a.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if now := a.cfg.Now(); now.Sub(rolled).Abs() >= rollEvery {
			rolled = now
			if err := a.roll(ctx); err != nil && ctx.Err() == nil {
				a.cfg.Logger.Warn("the authority's own certificates", "err", err)
			}
		}
		head := a.cfg.Audit.Head().Seq
		if err := a.housekeep(ctx, head, moved); err != nil && ctx.Err() == nil {
			a.cfg.Logger.Warn("certificate records: housekeeping", "err", err)
			continue
		}
		moved = head
	}
}

// housekeep is one tick; moved is the head of the last one, and nothing is written while it stands still.
func (a *Authority) housekeep(ctx context.Context, head, moved uint64) error {
	for serial, id := range a.flights.leftovers() {
		if err := a.settleOne(ctx, serial, id); err != nil {
			return err
		}
		a.flights.end(serial)
	}
	if head != moved {
		if err := a.moveMark(ctx, head); err != nil {
			return err
		}
	}
	if err := a.sweepLeft(ctx); err != nil {
		return err
	}
	var failed error // a damaged record stays for ever: for its sake no other table may grow
	for _, table := range []string{certificatesTable().Name, ownersTable().Name, keysTable().Name,
		lineagesTable().Name, membersTable().Name, seenTable().Name, joinTable().Name, revokedTable().Name, respondersTable().Name, proofsTable().Name} {
		for range pruneSteps {
			n, err := a.cfg.Store.Prune(ctx, table, pruneStep)
			failed = errors.Join(failed, err)
			if err != nil || n < pruneStep {
				break
			}
		}
	}
	return failed
}
