package sts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// spent is the record that a client assertion was used. It stays until no clock that is allowed here finds the assertion
// valid any more; then exp refuses it.
type spent struct {
	Client countersign.ID `json:"client"`
	At     time.Time      `json:"at"`

	// Of a workload's token that got a certificate, the key, and the newest certificate with it.
	SPKI   string `json:"spki,omitempty"`
	Serial string `json:"serial,omitempty"`
}

const (
	assertions     = "assertions"
	pruneStep      = 1000
	maxPruneRounds = 100
)

func assertionsTable() storage.Table[spent] { return storage.Table[spent]{Name: assertions} }

// key is where the use of a proof is recorded. The issuer is in it: no client can use up another's jti.
func (a proof) key() string {
	sum := sha256.Sum256([]byte(a.issuer + "\x00" + a.id))
	return hex.EncodeToString(sum[:])
}

// use is the operation that records a use. exp is judged with skew on our clock, the record's end by the store's: one skew
// for each.
func (a proof) use(record spent, cond storage.Cond) (storage.Op, error) {
	return assertionsTable().Put(a.key(), record, a.until.Add(2*skew), cond)
}

// spend marks an assertion as used, durably, or says that it was used before. Of two that come at once one wins: the condition
// is judged in the commit. Crash point: after it the assertion is used up, and its sender makes another.
func (s *Service) spend(ctx context.Context, a proof) error {
	op, err := a.use(spent{Client: a.client.ID, At: s.cfg.Now().UTC()}, storage.Cond{Absent: true})
	if err != nil {
		return err
	}
	_, err = s.cfg.Store.Apply(ctx, op)
	switch {
	case errors.Is(err, storage.ErrConflict):
		// Its sender has what only the client could make, and so the log tells which one; the audit counts strangers.
		s.log.Warn("a client assertion was sent again", "client", a.client.ID, "jti", a.id)
		return countersign.Errorf(countersign.CodeAssertionUsed, "the client assertion was used before").
			WithHint("make one with a new jti for each request")
	case errors.Is(err, storage.ErrBusy):
		return countersign.Errorf(countersign.CodeBusy, "the store is busy or the disk is full").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrUnknown): // it counts as used: the next one will tell
		return countersign.Errorf(countersign.CodeUnknownOutcome, "it is not known whether the client assertion is recorded").
			WithHint("repeat the request with a new client assertion").After(time.Second).Because(err)
	case err != nil:
		return fmt.Errorf("record a client assertion: %w", err)
	}
	return nil
}

// prune removes what has expired.
func (s *Service) prune(ctx context.Context) {
	for range maxPruneRounds {
		n, err := s.cfg.Store.Prune(ctx, assertions, pruneStep)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("remove the records of expired client assertions", "error", err)
		}
		if err != nil || n < pruneStep {
			return
		}
	}
}
