package ca

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

const (
	reasonKeyCompromise = "keyCompromise"
	reasonSuperseded    = "superseded"
)

// Reasons are those of RFC 5280 5.3.1 for which a certificate may be revoked here.
func Reasons() []string {
	return []string{
		"unspecified", reasonKeyCompromise, "affiliationChanged", reasonSuperseded, "cessationOfOperation", "privilegeWithdrawn",
	}
}

// Revoke revokes a certificate: from its return on it is no credential, can't be renewed, and its key is never certified
// again; after "keyCompromise" its key is no credential in any other certificate either. Its lineage is blocked with it,
// and so are its successors, unless the reason is "superseded". An operator may revoke every
// certificate, the holder of a certificate that very one. "" is the reason "unspecified".
// Codes: CodeReason, CodeRole, CodeNoCertificate, CodeAlreadyRevoked.
func (a *Authority) Revoke(ctx context.Context, by countersign.Caller, serial, reason string) error {
	serial = strings.ToLower(serial)
	if reason == "" {
		reason = Reasons()[0]
	}
	if err := a.revoke(ctx, by, serial, reason); err != nil {
		return a.deny(ctx, by, shortened(serial), err)
	}
	return nil
}

func (a *Authority) revoke(ctx context.Context, by countersign.Caller, serial, reason string) error {
	if err := checkReason(reason); err != nil {
		return err
	}
	own := by.Method == countersign.ByCertificate && by.Serial != "" && by.Serial == serial
	if by.Role < countersign.RoleOperator && !own {
		return countersign.Errorf(countersign.CodeRole, "%s may revoke only the certificate that it came with", by.Name)
	}
	entry, err := a.revocable(ctx, serial)
	if err != nil {
		return err
	}
	event := audit.Event{
		Type: "certificate.revoked", Outcome: audit.Intent, By: by, Subject: serial,
		Detail: revocationDetail{ID: entry.Value.ID, Reason: reason, SPKI: entry.Value.SPKI},
	}
	// The intent comes first: a revocation can't be repeated, so the event after it could be lost for good.
	if _, err := a.cfg.Audit.Append(ctx, event); err != nil {
		return err
	}
	lineage := entry.Value.Lineage
	if reason == reasonSuperseded {
		lineage = "" // it was replaced, and nothing is wrong with its successors
	}
	if err := a.recordRevocation(ctx, entry, reason, func() ([]storage.Op, error) {
		return a.blockWith(ctx, lineage, reason, "its certificate "+serial+" was revoked")
	}); err != nil {
		event.Outcome, event.Code = audit.Failed, countersign.AsError(err).Code
		if event.Code == countersign.CodeUnknownOutcome {
			return err // the intent is all that can be said
		}
		if _, untold := a.cfg.Audit.Append(context.WithoutCancel(ctx), event); untold != nil {
			return untold
		}
		return err
	}
	event.Outcome = audit.OK
	ctx = context.WithoutCancel(ctx)
	if _, err = a.cfg.Audit.Append(ctx, event); err != nil || lineage == "" {
		return err
	}
	return a.sweep(ctx, lineage)
}

func checkReason(reason string) error {
	if slices.Contains(Reasons(), reason) {
		return nil
	}
	return countersign.Errorf(countersign.CodeReason, "%.40q is no reason for a revocation", reason).
		WithHint("reasons are %s", strings.Join(Reasons(), ", "))
}

// revocable is the record of a certificate that is not revoked yet.
func (a *Authority) revocable(ctx context.Context, serial string) (storage.Entry[Record], error) {
	entry, err := a.record(ctx, serial)
	if err == nil && entry.Value.State == StateRevoked {
		return entry, countersign.Errorf(countersign.CodeAlreadyRevoked, "the certificate %s was revoked at %s: %s",
			serial, entry.Value.RevokedAt.UTC().Format(time.RFC3339), entry.Value.Reason)
	}
	return entry, err
}

// recordRevocation marks certificate and key in one Apply, on condition that both are as they were read, together with
// more, unless that is nil.
func (a *Authority) recordRevocation(ctx context.Context, entry storage.Entry[Record], reason string, more func() ([]storage.Op, error)) error {
	for range maxTries {
		ops, err := a.revocationOps(ctx, entry, reason)
		if err != nil {
			return err
		}
		if more != nil {
			others, err := more()
			if err != nil {
				return err
			}
			ops = append(ops, others...)
		}
		_, err = a.cfg.Store.Apply(ctx, ops...)
		if err == nil {
			return nil
		}
		if !errors.Is(err, storage.ErrConflict) {
			return storeError(err)
		}
		if entry, err = a.revocable(ctx, entry.Key); err != nil {
			return err
		}
	}
	return storeError(storage.ErrConflict)
}

// revocationOps mark a certificate as revoked, and its key.
func (a *Authority) revocationOps(ctx context.Context, entry storage.Entry[Record], reason string) ([]storage.Op, error) {
	record := entry.Value
	key, cond := keyRecord{ID: record.ID, NotAfter: record.NotAfter}, storage.Cond{Absent: true}
	switch found, err := keysTable().Get(ctx, a.cfg.Store, record.SPKI); {
	case err == nil:
		key, cond = found.Value, storage.Cond{Rev: found.Rev}
	case !errors.Is(err, storage.ErrNotFound):
		return nil, storeError(err)
	}
	if key.Revoked != reasonKeyCompromise { // which says more than any other reason
		key.Revoked = reason
	}
	ops, err := a.revokedRecordOps(entry, reason, key)
	if err != nil {
		return nil, err
	}
	putKey, err := keysTable().Put(record.SPKI, key, key.expires(), cond)
	return append(ops, putKey), err
}

// revokedRecordOps mark a certificate as revoked; key is its key's record after that.
func (a *Authority) revokedRecordOps(entry storage.Entry[Record], reason string, key keyRecord) ([]storage.Op, error) {
	record := entry.Value
	record.State, record.Reason, record.RevokedAt = StateRevoked, reason, a.cfg.Now().UTC()
	put, err := certificatesTable().Put(entry.Key, record, entry.Expires, storage.Cond{Rev: entry.Rev})
	if err != nil {
		return nil, err
	}
	index, err := revokedOps(record, key)
	return append(index, put), err
}
