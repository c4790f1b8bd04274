package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// Replayed is what a replay found in the audit log.
type Replayed struct {
	Revoked int // certificates that are revoked again
	Blocked int // lineages that are blocked again
	Issued  int // certificates that the log tells of and the store lacks: they are refused, and their holders must enrol anew
}

// Replay puts revocations and blocks in force again of which the audit log tells behind the sequence number after: those of a
// store that is older than its log, because it was restored. What is not on record any more is refused as such. It does again
// what [Authority.Revoke] does, so that it may be repeated; an intent without an outcome counts as a revocation.
func (a *Authority) Replay(ctx context.Context, by countersign.Caller, after uint64) (Replayed, error) {
	var done Replayed
	for r, err := range a.cfg.Audit.Records(ctx, after+1) {
		if err != nil {
			return done, err
		}
		if r.Outcome != audit.OK && r.Outcome != audit.Intent {
			continue
		}
		switch r.Type {
		case eventIssued, eventRecovered:
			known, err := a.onRecord(ctx, r.Subject)
			if err != nil {
				return done, err
			}
			if !known {
				done.Issued++
			}
			continue
		case "certificate.revoked", eventBlocked, eventRevokedMany:
		default:
			continue
		}
		var detail struct {
			Reason string `json:"reason"`
			Kind   string `json:"kind"`
		}
		if err := json.Unmarshal(r.Detail, &detail); err != nil {
			return done, fmt.Errorf("the audit record %d: %w", r.Seq, err)
		}
		count, n := &done.Revoked, 1
		switch r.Type {
		case eventBlocked:
			if a.blocked(ctx, r.Subject) { // by its intent, or by what blocked several
				continue
			}
			count, err = &done.Blocked, a.block(ctx, by, r.Subject, detail.Reason, "it was before the store was restored")
		case eventRevokedMany:
			count = &done.Blocked
			n, err = a.revokeMany(ctx, by, detail.Kind, r.Subject, detail.Reason)
		default:
			err = a.revoke(ctx, by, r.Subject, detail.Reason)
		}
		switch {
		case err == nil:
			*count += n
		case errors.Is(err, storage.ErrNotFound), countersign.AsError(err).Code == countersign.CodeAlreadyRevoked,
			countersign.AsError(err).Code == countersign.CodeNoCertificate: // refused already
		default:
			return done, fmt.Errorf("replay the audit record %d: %w", r.Seq, err)
		}
	}
	return done, nil
}

// blocked tells whether a lineage is known to be blocked.
func (a *Authority) blocked(ctx context.Context, lineage string) bool {
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, lineage)
	return err == nil && !entry.Value.Blocked.IsZero()
}
