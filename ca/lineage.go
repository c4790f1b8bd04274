package ca

import (
	"context"
	"errors"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// A lineage is the line of certificates that begins with an enrolment: each has at most one successor, the certificate
// with which its holder renewed it. Two who hold copies of one key can't both go on along one line: as soon as both have
// come, one of them comes to a place that is taken, and the whole lineage is blocked. Only a new enrolment, by attestation
// or a join token, leads out of that.

// lineageRecord is a lineage, under the serial of its first certificate. Every renewal and the block change it, on
// condition that nobody else did.
type lineageRecord struct {
	ID       countersign.ID `json:"id"`
	Kind     string         `json:"kind"`
	Newest   string         `json:"newest"`    // serial
	NotAfter time.Time      `json:"not_after"` // of the newest
	Blocked  time.Time      `json:"blocked,omitzero"`
	Reason   string         `json:"reason,omitempty"` // RFC 5280 5.3.1: with which its certificates are revoked
	Why      string         `json:"why,omitempty"`
}

func lineagesTable() storage.Table[lineageRecord] {
	return storage.Table[lineageRecord]{Name: "lineages"}
}

// membersTable is the index of certificates by lineage.
func membersTable() storage.Table[struct{}] {
	return storage.Table[struct{}]{Name: "certificates_by_lineage"}
}

// seenTable holds the serials whose holder has come here with them, once each: first sight.
func seenTable() storage.Table[struct{}] { return storage.Table[struct{}]{Name: "certificates_seen"} }

// blockingTable holds the lineages that are blocked and whose certificates are not all marked as revoked yet.
func blockingTable() storage.Table[struct{}] {
	return storage.Table[struct{}]{Name: "lineages_blocking"}
}

func memberKey(lineage, serial string) string { return lineage + "/" + serial }

const eventBlocked = "lineage.blocked"

// blockDetail is the detail of a block.
type blockDetail struct {
	ID     countersign.ID `json:"id"`
	Reason string         `json:"reason"`
	Why    string         `json:"why"`
}

// forkError says that somebody came to a place in a lineage that is taken: two hold the same key.
type forkError struct {
	lineage, serial string
	why             string
}

// Error says what was seen.
func (e *forkError) Error() string { return "the certificate " + e.serial + ": " + e.why }

// beginLineage are the operations of an enrolment.
func beginLineage(r Record) ([]storage.Op, error) {
	put, err := lineagesTable().Put(r.Lineage, lineageRecord{ID: r.ID, Kind: r.Kind, Newest: r.Serial, NotAfter: r.NotAfter},
		r.NotAfter.Add(keepExpired), storage.Cond{Absent: true})
	return []storage.Op{put}, err
}

// goOn are the operations with which r becomes the successor of held, or why it can't. repeat is the serial of the
// successor that was issued for the same key already.
func (a *Authority) goOn(ctx context.Context, h *held, o order, serial string, notAfter time.Time) (ops []storage.Op, repeat string, err error) {
	held, lineage := h.record, h.lineage
	if lineage.Key == "" {
		return nil, "", errUnknownPeer(errors.New("it has no lineage"))
	}
	if held.Value.Successor != "" {
		if ops, repeat, err = a.replace(ctx, held.Value, o, serial); err != nil || repeat != "" {
			return nil, repeat, err
		}
	}
	next := held.Value
	next.Successor = serial
	own, err := certificatesTable().Put(held.Key, next, held.Expires, storage.Cond{Rev: held.Rev})
	if err != nil {
		return nil, "", err
	}
	lineage.Value.Newest, lineage.Value.NotAfter = serial, notAfter
	line, err := lineagesTable().Put(lineage.Key, lineage.Value, later(lineage.Expires, notAfter.Add(keepExpired)), storage.Cond{Rev: lineage.Rev})
	return append(ops, own, line), "", err
}

// replace judges the successor that held has already. One that nobody has come with may be replaced: the answer with it was
// lost, and whoever comes with it all the same later is a second holder.
func (a *Authority) replace(ctx context.Context, held Record, o order, serial string) (ops []storage.Op, repeat string, err error) {
	taken, err := certificatesTable().Get(ctx, a.cfg.Store, held.Successor)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, "", errOldSerial(held.Serial) // an absent record is no permission
	}
	if err != nil {
		return nil, "", storeError(err)
	}
	if taken.Value.SPKI == o.csr.spki {
		return nil, taken.Key, nil
	}
	switch _, err := seenTable().Get(ctx, a.cfg.Store, taken.Key); {
	case err == nil:
		return nil, "", &forkError{lineage: held.Lineage, serial: held.Serial, why: "it was to be renewed once more after its successor " + taken.Key + " had come"}
	case !errors.Is(err, storage.ErrNotFound):
		return nil, "", storeError(err)
	}
	ops = []storage.Op{seenTable().Check(taken.Key, storage.Cond{Absent: true})}
	if taken.Value.State == StateRevoked {
		return ops, "", nil
	}
	taken.Value.SupersededBy = serial
	if taken.Value.SPKI == held.SPKI { // the key is held's too, and stays one
		revoking, err := a.revokedRecordOps(taken, reasonSuperseded, keyRecord{})
		return append(ops, revoking...), "", err
	}
	revoking, err := a.revocationOps(ctx, taken, reasonSuperseded)
	return append(ops, revoking...), "", err
}

// openLineage is the lineage of a certificate, if it is not blocked.
func (a *Authority) openLineage(ctx context.Context, r Record) (storage.Entry[lineageRecord], error) {
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, r.Lineage)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return entry, errUnknownPeer(err)
	case err != nil:
		return entry, storeError(err)
	case !entry.Value.Blocked.IsZero():
		return entry, errBlocked(entry.Value)
	}
	return entry, nil
}

func errBlocked(l lineageRecord) error {
	return countersign.Errorf(countersign.CodeRevokedPeer, "the certificate's lineage is blocked since %s: %s", l.Blocked.UTC().Format(time.RFC3339), l.Why).
		WithHint("enrol anew, by a join token or attestation; if nobody revoked it on purpose, find out who else has the key")
}

func errOldSerial(serial string) error {
	return countersign.Errorf(countersign.CodeRevokedPeer, "the certificate %s was renewed before, and renews nothing any more", serial).
		WithHint("use the newest certificate, or enrol anew with a join token")
}

// sight records, once for each serial, that its holder has come: from then on its predecessor renews nothing. Nobody is
// served before that is durable.
func (a *Authority) sight(ctx context.Context, r Record) error {
	if r.Lineage == "" {
		return nil
	}
	_, err := seenTable().Get(ctx, a.cfg.Store, r.Serial)
	if err == nil || !errors.Is(err, storage.ErrNotFound) {
		return storeError(err)
	}
	seen, err := seenTable().Put(r.Serial, struct{}{}, r.NotAfter.Add(keepExpired), storage.Cond{Absent: true})
	if err != nil {
		return err
	}
	for range maxTries {
		entry, err := a.heldCertificate(ctx, r.Serial)
		if err != nil {
			return err // replaced or revoked in this very moment
		}
		_, err = a.cfg.Store.Apply(ctx, seen, certificatesTable().Check(entry.Key, storage.Cond{Rev: entry.Rev}))
		if err == nil {
			return nil
		}
		if !errors.Is(err, storage.ErrConflict) {
			return storeError(err)
		}
		if _, err := seenTable().Get(ctx, a.cfg.Store, r.Serial); err == nil {
			return nil
		}
	}
	return storeError(storage.ErrConflict)
}

// forked blocks the lineage of a fork and gives what its caller is told; any other error it returns as it is.
func (a *Authority) forked(ctx context.Context, by countersign.Caller, err error) error {
	var fork *forkError
	if !errors.As(err, &fork) {
		return err
	}
	if err := a.block(ctx, by, fork.lineage, reasonKeyCompromise, fork.Error()); err != nil {
		return err
	}
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, fork.lineage)
	if err != nil {
		return storeError(err)
	}
	return errBlocked(entry.Value)
}

// block blocks a lineage: from its return on none of its certificates is a credential and none can be renewed. Then it
// marks them as revoked, with the reason, for peers and lists; what is left of that is done by [Authority.Run].
func (a *Authority) block(ctx context.Context, by countersign.Caller, lineage, reason, why string) error {
	ctx = context.WithoutCancel(ctx)
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, lineage)
	if err != nil {
		return storeError(err)
	}
	if !entry.Value.Blocked.IsZero() {
		return nil
	}
	event := audit.Event{
		Type: eventBlocked, Outcome: audit.Intent, By: by, Subject: lineage,
		Detail: blockDetail{ID: entry.Value.ID, Reason: reason, Why: why},
	}
	if _, err := a.cfg.Audit.Append(ctx, event); err != nil {
		return err
	}
	if err := a.applyBlock(ctx, entry, reason, why); err != nil {
		event.Outcome, event.Code = audit.Failed, countersign.AsError(err).Code
		if event.Code != countersign.CodeUnknownOutcome {
			if _, untold := a.cfg.Audit.Append(ctx, event); untold != nil {
				return untold
			}
		}
		return err
	}
	event.Outcome = audit.OK
	if _, err := a.cfg.Audit.Append(ctx, event); err != nil {
		return err
	}
	a.metrics.blocked.WithLabelValues(reason).Inc()
	a.cfg.Logger.Error("a lineage of certificates is blocked", "lineage", lineage, "id", entry.Value.ID, "why", why)
	return a.sweep(ctx, lineage)
}

// applyBlock writes the block, whatever renewals change meanwhile.
func (a *Authority) applyBlock(ctx context.Context, entry storage.Entry[lineageRecord], reason, why string) error {
	for range maxTries {
		if !entry.Value.Blocked.IsZero() {
			return nil
		}
		ops, err := a.blockOps(entry, reason, why)
		if err != nil {
			return err
		}
		if _, err = a.cfg.Store.Apply(ctx, ops...); err == nil {
			return nil
		}
		if !errors.Is(err, storage.ErrConflict) {
			return storeError(err)
		}
		if entry, err = lineagesTable().Get(ctx, a.cfg.Store, entry.Key); err != nil {
			return storeError(err)
		}
	}
	return storeError(storage.ErrConflict)
}

// blockOps are the operations that block a lineage.
func (a *Authority) blockOps(entry storage.Entry[lineageRecord], reason, why string) ([]storage.Op, error) {
	l := entry.Value
	l.Blocked, l.Reason, l.Why = a.cfg.Now().UTC(), reason, why
	put, err := lineagesTable().Put(entry.Key, l, entry.Expires, storage.Cond{Rev: entry.Rev})
	if err != nil {
		return nil, err
	}
	queue, err := blockingTable().Put(entry.Key, struct{}{}, time.Time{}, storage.Cond{})
	return []storage.Op{put, queue}, err
}

// blockWith are the operations that block a lineage together with something else; none if it is "" or blocked already.
func (a *Authority) blockWith(ctx context.Context, lineage, reason, why string) ([]storage.Op, error) {
	if lineage == "" {
		return nil, nil
	}
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, lineage)
	if err != nil {
		return nil, storeError(err)
	}
	if !entry.Value.Blocked.IsZero() {
		return nil, nil
	}
	return a.blockOps(entry, reason, why)
}

// sweep marks what lives of a blocked lineage as revoked. It may be repeated, and ended anywhere.
func (a *Authority) sweep(ctx context.Context, lineage string) error {
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, lineage)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return storeError(err)
	}
	if err == nil {
		for member, err := range membersTable().All(ctx, a.cfg.Store, memberKey(lineage, "")) {
			if err != nil {
				return storeError(err)
			}
			if err := a.sweepOne(ctx, member.Key[len(lineage)+1:], entry.Value.Reason); err != nil {
				return err
			}
		}
	}
	_, err = a.cfg.Store.Apply(ctx, blockingTable().Delete(lineage, storage.Cond{}))
	return storeError(err)
}

func (a *Authority) sweepOne(ctx context.Context, serial, reason string) error {
	entry, err := certificatesTable().Get(ctx, a.cfg.Store, serial)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // it was over
	}
	if err != nil {
		return storeError(err)
	}
	if entry.Value.State == StateRevoked || a.cfg.Now().After(entry.Value.NotAfter) {
		return nil
	}
	err = a.recordRevocation(ctx, entry, reason, nil)
	if countersign.AsError(err).Code == countersign.CodeAlreadyRevoked {
		return nil
	}
	return err
}

// sweepLeft goes on with what a crash or a failure left of blocks.
func (a *Authority) sweepLeft(ctx context.Context) error {
	for entry, err := range blockingTable().All(ctx, a.cfg.Store, "") {
		if err != nil {
			return err
		}
		if err := a.sweep(ctx, entry.Key); err != nil {
			return err
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
