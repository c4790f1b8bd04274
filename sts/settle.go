package sts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// mark is how far the audit log holds no revocation that the store lacks, under markKey.
type mark struct {
	Seq uint64 `json:"seq"`
}

const markKey = "settled"

func stateTable() storage.Table[mark] { return storage.Table[mark]{Name: "sts_state"} }

const (
	tick         = 10 * time.Second
	pruneBatch   = 500 // records of one table in one step
	pruneBatches = 20  // of one table in one tick
)

// told is what the audit log says of one revocation.
type told struct {
	detail  revokedDetail
	outcome bool // that it is in force
}

// settle reads the revocations, and brings into the store those that only the audit log knows: their intent came to no
// outcome in a crash, or the store is older than the log because it was restored. The log is the witness: it can't be
// shortened unnoticed. It runs before anything is answered, and a store or log that can't be read is an error.
func (s *Service) settle(ctx context.Context) error {
	if err := s.revocations.load(ctx, s.cfg.Store); err != nil {
		return err
	}
	from, err := stateTable().Get(ctx, s.cfg.Store, markKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	head := s.cfg.Audit.Head().Seq
	all, err := s.toldSince(ctx, from.Value.Seq)
	if err != nil {
		return err
	}
	for _, t := range all {
		if err := s.settleOne(ctx, t); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		if err := s.revocations.load(ctx, s.cfg.Store); err != nil {
			return err
		}
	}
	if err := s.moveMark(ctx, head); err != nil { // on a full disk the daemon still starts, and tries again later
		s.log.Warn("the next start has to read the audit log from the same place again", "error", err)
	}
	return nil
}

// toldSince are the revocations that the audit log tells of behind a sequence number, without those that failed and those
// that can reach nothing any more.
func (s *Service) toldSince(ctx context.Context, after uint64) (map[string]told, error) {
	all, now := map[string]told{}, s.cfg.Now()
	q := audit.Query{Type: eventRevoked, After: after, Since: now.Add(-lifetime(countersign.RevokeSubject) - time.Hour), Limit: audit.MaxSearch}
	for {
		found, err := s.cfg.Audit.Search(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			q.After = r.Seq
			if r.Outcome == audit.Denied {
				continue
			}
			var d revokedDetail
			if err := json.Unmarshal(r.Detail, &d); err != nil {
				return nil, fmt.Errorf("the audit record %d: %w", r.Seq, err)
			}
			id := d.key() + "/" + strconv.FormatInt(d.Made, 10)
			if r.Outcome == audit.Failed || !now.Before(d.Until) {
				delete(all, id)
				continue
			}
			all[id] = told{detail: d, outcome: r.Outcome == audit.OK}
		}
		if len(found) < q.Limit {
			return all, nil
		}
	}
}

// settleOne puts a revocation into the store if it is not there, as made now: verifiers whose cursor is past its making have
// to see it. Crash points: after the record and before the event the next start finds the intent still open, and writes the
// event; a second record is never made.
func (s *Service) settleOne(ctx context.Context, t told) error {
	known := s.revocations.knows(&t.detail.revocation)
	if !known {
		surfaced := t.detail.revocation
		surfaced.Made = s.revocations.next()
		if _, err := s.store(ctx, surfaced, storage.Op{}); err != nil {
			return err
		}
	}
	if known && t.outcome {
		return nil
	}
	s.log.Warn("a revocation stood in the audit log alone, and was put in force again", "subject", t.detail.key(), "lost", !known)
	return s.recovered(ctx, t.detail.revocation)
}

// recovered writes the outcome of an intent that has none. It bears the intent's own time of making.
func (s *Service) recovered(ctx context.Context, r revocation) error {
	_, err := s.cfg.Audit.Append(ctx, audit.Event{
		Type: eventRevoked, Outcome: audit.OK, By: countersign.Daemon("settling revocations"), Subject: r.key(),
		Detail: revokedDetail{revocation: r, Recovered: true},
	})
	return err
}

// settleLeft does for what this process left open what the next start would do: the record tells whether it was stored, and
// what is not there is stored now. Until that is done each one holds the mark, and a part of the room.
func (s *Service) settleLeft(ctx context.Context) error {
	for _, f := range s.revocations.leftovers() {
		stored := f.revocation
		entry, err := revocationsTable().Get(ctx, s.cfg.Store, f.key())
		switch {
		case err == nil && entry.Value.Made >= f.Made:
			stored = entry.Value
		case err != nil && !errors.Is(err, storage.ErrNotFound):
			return err
		case s.cfg.Now().Before(f.Until):
			if stored, err = s.store(ctx, f.revocation, storage.Op{}); err != nil {
				return err
			}
		}
		if err := s.recovered(ctx, f.revocation); err != nil {
			return err
		}
		s.revocations.end(f, stored)
	}
	return nil
}

// knows tells whether the set has this revocation, or a later one of the same name.
func (r *revokedSet) knows(rev *revocation) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, ok := r.all[rev.key()]
	return ok && k.made >= rev.Made
}

// moveMark stores how far all is settled; head was the log's before. Nothing depends on it but how much of the log the next
// start reads.
func (s *Service) moveMark(ctx context.Context, head uint64) error {
	op, err := stateTable().Put(markKey, mark{Seq: s.revocations.settled(head)}, time.Time{}, storage.Cond{})
	if err != nil {
		return err
	}
	_, err = s.cfg.Store.Apply(ctx, op)
	return err
}

// FollowRevocations keeps the revocations what the store has, so that what other nodes revoke is refused here within 2
// seconds, and removes those that are over, until ctx ends. Its error is one that does not pass.
func (s *Service) FollowRevocations(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return s.revocations.follow(ctx, s.cfg.Store, func(err error) {
			s.log.Error("the revocations can't be read; trying again", "error", err)
		})
	})
	group.Go(func() error { return s.keepHouse(ctx) })
	return group.Wait()
}

func (s *Service) keepHouse(ctx context.Context) error {
	var moved uint64
	for pause(ctx, tick) {
		head := s.cfg.Audit.Head().Seq // before all else: the mark must pass nothing that comes meanwhile
		failed := s.settleLeft(ctx)
		if failed == nil && head != moved { // nothing is written while nothing happens
			failed = s.moveMark(ctx, head)
		}
		if failed == nil {
			moved = head
		}
		for _, table := range []string{revocationsTable().Name, logoutsTable().Name} {
			for range pruneBatches {
				n, err := s.cfg.Store.Prune(ctx, table, pruneBatch)
				failed = errors.Join(failed, err)
				if err != nil || n < pruneBatch {
					break
				}
			}
		}
		if failed != nil && ctx.Err() == nil {
			s.log.Warn("revocations: housekeeping", "error", failed)
		}
	}
	return nil
}
