package sts

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

const (
	// keepRevoked is how long a revocation of a subject, session or service counts. No external token that was issued longer
	// ago is taken (readExternal), so none outlives its revocation.
	keepRevoked = 30 * 24 * time.Hour
	// longestLife is what a token of ours lives at most: policy.md's bound of `ttl`. What is made from it never lives longer.
	longestLife = time.Hour
	margin      = time.Minute
	maxTries    = 5 // against other writers of one record

	eventRevoked = "token.revoked"
)

// revocation is what the store keeps under its key until Until.
type revocation struct {
	countersign.Revocation
	Made   int64  `json:"made"`             // microseconds since 1970, strictly growing on a node: the feed's cursor
	Name   string `json:"name,omitempty"`   // the sub or sid itself, whose hash is the value; never in the feed
	Issuer string `json:"issuer,omitempty"` // of the sid
	Reason string `json:"reason,omitempty"`
	By     string `json:"by,omitempty"`
	Client string `json:"client,omitempty"` // who took room by RFC 7009
}

func (r *revocation) key() string { return revocationKey(r.Kind, r.Value) }

func (r *revocation) kept() kept { return kept{r.Revocation, r.Made, r.Client} }

func revocationKey(kind countersign.RevocationKind, value string) string {
	return string(kind) + "/" + value
}

func revocationsTable() storage.Table[revocation] {
	return storage.Table[revocation]{Name: "revocations"}
}

// lifetime is how long a revocation has to count from its making on: until nothing that it reaches can be alive.
func lifetime(kind countersign.RevocationKind) time.Duration {
	switch kind {
	case countersign.RevokeJTI, countersign.RevokeTransaction:
		return longestLife + skew + margin
	}
	return keepRevoked + skew + margin
}

// revokedDetail is the Detail of token.revoked: all that is needed to put the revocation in force again.
type revokedDetail struct {
	revocation
	Recovered bool `json:"recovered,omitempty"` // written at a start: the outcome of an intent, or of a record that a restored store lacks
}

// order is a revocation to be made.
type order struct {
	by         countersign.Caller
	revocation            // Until zero: by the kind
	once       storage.Op // of the same Apply, if it has a table: marks as used what may be used once
}

// revoke makes a revocation: when it returns nil, the revocation is durable, in the audit log, and in force here.
//
// Crash points: before the intent nothing has happened. From the intent on the next start puts the revocation in force,
// unless "failed" follows: who may have been revoked is (settle.go). The Apply comes before the outcome, so that an answer
// means a record.
func (s *Service) revoke(ctx context.Context, o order) (revocation, error) {
	operator := o.by.Role >= countersign.RoleOperator
	o.By = o.by.Name
	f, err := s.revocations.begin(o.revocation, operator, s.cfg.Audit.Head().Seq)
	if err != nil {
		return revocation{}, err
	}
	event := audit.Event{Type: eventRevoked, Outcome: audit.Intent, By: o.by, Subject: f.key(), Detail: revokedDetail{revocation: f.revocation}}
	if _, err := s.cfg.Audit.Append(ctx, event); err != nil {
		s.revocations.drop(f) // if it is in the log all the same, the next start puts it in force
		return revocation{}, notRecorded(err)
	}
	ctx = context.WithoutCancel(ctx)
	stored, err := s.store(ctx, f.revocation, o.once)
	if err != nil {
		return revocation{}, s.notStored(ctx, f, event, err)
	}
	s.revocations.end(f, stored)
	event.Outcome = audit.OK
	if _, err := s.cfg.Audit.Append(ctx, event); err != nil {
		s.revocations.leave(f)
		return revocation{}, notRecorded(err)
	}
	s.metrics.revocations.WithLabelValues(string(f.Kind)).Inc()
	return stored, nil
}

// notStored ends a revocation whose record could not be written.
func (s *Service) notStored(ctx context.Context, f *flight, event audit.Event, cause error) error {
	e := countersign.AsError(cause)
	if e.Code == countersign.CodeUnknownOutcome {
		s.revocations.leave(f) // the intent is all that can be said
		return cause
	}
	event.Outcome, event.Code = audit.Failed, e.Code
	if _, err := s.cfg.Audit.Append(ctx, event); err != nil {
		s.revocations.leave(f) // as the log says
		return notRecorded(err)
	}
	s.revocations.drop(f)
	return cause
}

// store writes the record, or renews the one of the same name: the later times count. Once is used up by the same Apply;
// if it was used before: CodeLogoutReplay.
func (s *Service) store(ctx context.Context, r revocation, once storage.Op) (revocation, error) {
	for range maxTries {
		old, err := revocationsTable().Get(ctx, s.cfg.Store, r.key())
		cond := storage.Cond{Rev: old.Rev}
		if errors.Is(err, storage.ErrNotFound) {
			cond = storage.Cond{Absent: true}
		} else if err != nil {
			return r, storeError(err)
		}
		next := r
		next.Before, next.Until, next.Made = latest(old.Value.Before, r.Before), latest(old.Value.Until, r.Until), max(old.Value.Made, r.Made)
		put, err := revocationsTable().Put(r.key(), next, next.Until, cond)
		if err != nil {
			return r, err
		}
		ops := []storage.Op{put}
		if once.Table != "" {
			ops = append(ops, once)
		}
		_, err = s.cfg.Store.Apply(ctx, ops...)
		var conflict *storage.ConflictError
		switch {
		case err == nil:
			return next, nil
		case !errors.As(err, &conflict):
			return r, storeError(err)
		case conflict.Index > 0:
			return r, replayed()
		}
	}
	return r, storeError(storage.ErrConflict)
}

// storeError is what a caller may be told about the store.
func storeError(err error) error {
	var ours *countersign.Error
	switch {
	case errors.As(err, &ours):
		return err
	case errors.Is(err, storage.ErrUnknown):
		return countersign.Errorf(countersign.CodeUnknownOutcome, "it is not known whether the revocation is stored; it is in force here").
			After(time.Second).Because(err)
	case errors.Is(err, storage.ErrBusy), errors.Is(err, storage.ErrConflict):
		return countersign.Errorf(countersign.CodeBusy, "the store is busy or the disk is full; nothing was revoked").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrCorrupt):
		return countersign.Errorf(countersign.CodeDamaged, "a record in the store is damaged").Because(err)
	case errors.Is(err, storage.ErrClosed):
		return countersign.Errorf(countersign.CodeStopping, "the daemon is stopping").After(5 * time.Second).Because(err)
	}
	return err
}

// revoked is the refusal of a token that a revocation reaches; nil: none does. It costs a few map accesses, so it is asked
// again whenever time has passed, and for a token whose verification is remembered.
func (s *Service) revoked(t countersign.TokenFacts) error {
	r, found, err := s.revocations.find(t)
	if err != nil || !found {
		return err
	}
	return countersign.Errorf(countersign.CodeRevoked, "the token is revoked: %s", describe(r)).
		WithHint("who revoked it and why: countersign token revocations")
}

// describe says what was revoked. It names no person.
func describe(r countersign.Revocation) string {
	switch r.Kind {
	case countersign.RevokeJTI:
		return "its jti is, or that of a token that it was made from"
	case countersign.RevokeTransaction:
		return "its transaction is"
	case countersign.RevokeSession:
		return "its session is"
	}
	when := "issued at " + r.Before.UTC().Format(time.RFC3339) + " or before"
	if r.Before.Equal(forever()) {
		when = "issued before now"
	}
	if r.Kind == countersign.RevokeSubject {
		return "all of its subject are that were " + when
	}
	return "all are that passed " + r.Value + " and were " + when
}

// stillGood is asked last of all before a token is minted. The subject token may have been revoked since it was judged. And
// nothing may be dead at birth: times of issue are whole seconds, and a revocation reaches what was issued in its own second.
func (s *Service) stillGood(x *exchange) error {
	if x.subject != nil {
		if err := s.revoked(x.subject.Facts); err != nil {
			s.explain(x)
			x.trace.Steps = append(x.trace.Steps, failed(StepSubject, err))
			return err
		}
	}
	_, found, err := s.revocations.find(x.facts())
	if found {
		err = countersign.Errorf(countersign.CodeRevokedNow, "tokens of this subject or of a service of its chain are being revoked in this very second").
			After(time.Second)
	}
	if err != nil {
		s.explain(x)
		x.trace.Steps = append(x.trace.Steps, failed(StepSubject, err))
	}
	return err
}

func (x *exchange) facts() countersign.TokenFacts {
	if x.ruling == nil {
		return x.grant.facts()
	}
	facts := x.ruling.facts
	facts.IssuedAt = x.grant.IssuedAt
	return facts
}

// facts are those of the token that would be minted.
func (g *Grant) facts() countersign.TokenFacts {
	return countersign.TokenFacts{
		ID: g.Parent, Transaction: g.Transaction, Subject: g.Sub, SessionIssuer: g.SubIssuer, SessionID: g.SessionID,
		Services: append(g.Act.Chain(), g.Client.ID.String(), g.Audience.ID.String()), IssuedAt: g.IssuedAt,
	}
}

// oneName tells whether s can be a jti, txn, sub or sid: not empty, bounded, and what prints.
func oneName(s string, most int) bool {
	return s != "" && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}
