package ca

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// Target is what a revocation reaches. Exactly one of its fields is set.
type Target struct {
	Lineage string // the serial of an enrolment: it and all that it was renewed to
	Service string // the name of a service: all its live lineages
	Key     string // hex SHA-256 of a SubjectPublicKeyInfo: that key for ever, and the lineages of the certificates with it
}

// The kinds of targets, as requests and the audit log name them.
const (
	targetLineage = "lineage"
	targetService = "service"
	targetKey     = "key"
)

const eventRevokedMany = "certificates.revoked"

// manyDetail is the detail of a revocation of more than one certificate. Each lineage has an event of its own too.
type manyDetail struct {
	Kind     string `json:"kind"`
	Reason   string `json:"reason"`
	Lineages int    `json:"lineages"` // that were blocked, so far
}

// check gives the target's one spelling.
func (t Target) check() (kind, value string, err error) {
	for _, named := range []struct{ kind, value string }{
		{targetLineage, strings.ToLower(t.Lineage)}, {targetService, t.Service}, {targetKey, strings.ToLower(t.Key)},
	} {
		if named.value == "" {
			continue
		}
		if kind != "" {
			return "", "", countersign.Errorf(countersign.CodeParameter, "%s and %s are two revocations", kind, named.kind)
		}
		kind, value = named.kind, named.value
	}
	switch {
	case kind == "":
		return "", "", countersign.Errorf(countersign.CodeParameter, "nothing says what is to be revoked: a lineage, a service or a key")
	case kind == targetService:
		if err := countersign.CheckName(value); err != nil {
			return "", "", countersign.Errorf(countersign.CodeParameter, "service: %v", err)
		}
	case kind == targetKey && (len(value) != 64 || strings.Trim(value, "0123456789abcdef") != ""):
		return "", "", countersign.Errorf(countersign.CodeParameter, "a key is named by the SHA-256 of its public half, 64 hex digits").
			WithHint("`countersign cert show SERIAL` prints it")
	case kind == targetLineage && (len(value) != 32 || strings.Trim(value, "0123456789abcdef") != ""):
		return "", "", countersign.Errorf(countersign.CodeParameter, "a lineage is named by the serial of its enrolment, 32 hex digits").
			WithHint("`countersign cert show SERIAL` prints it")
	}
	return kind, value, nil
}

// RevokeMany revokes a lineage, all live lineages of a service, or a key, and tells how many lineages it blocked. From its
// return on no certificate in them is a credential and none can be renewed; a key is never certified again, though it never
// was, and its mark comes first. It may be repeated, which goes on with what a failure left. An enrolment of the service in
// the same moment may come after it: disable the service to keep it out.
// The caller must be an operator. Codes: CodeParameter, CodeReason, CodeRole, CodeNoCertificate, CodeAlreadyRevoked.
func (a *Authority) RevokeMany(ctx context.Context, by countersign.Caller, t Target, reason string) (int, error) {
	kind, value, err := t.check()
	n := 0
	if err == nil {
		n, err = a.revokeMany(ctx, by, kind, value, reason)
	}
	if err != nil {
		return 0, a.deny(ctx, by, strings.TrimSpace(kind+" "+value), err)
	}
	return n, nil
}

func (a *Authority) revokeMany(ctx context.Context, by countersign.Caller, kind, value, reason string) (int, error) {
	if err := checkReason(reason); err != nil {
		return 0, err
	}
	if by.Role < countersign.RoleOperator {
		return 0, countersign.Errorf(countersign.CodeRole, "%s may revoke only the certificate that it came with", by.Name)
	}
	event := audit.Event{
		Type: eventRevokedMany, Outcome: audit.Intent, By: by, Subject: value, Detail: manyDetail{Kind: kind, Reason: reason},
	}
	if _, err := a.cfg.Audit.Append(ctx, event); err != nil {
		return 0, err
	}
	ctx = context.WithoutCancel(ctx) // who hangs up must not leave half of it
	var n int
	var err error
	switch kind {
	case targetLineage:
		n, err = a.revokeLineage(ctx, by, value, reason)
	case targetService:
		n, err = a.revokeHeld(ctx, by, ownerPrefix(string(ProfileService), value), "", reason, "all certificates of the service were revoked")
	case targetKey:
		n, err = a.revokeKey(ctx, by, value, reason)
	}
	event.Outcome, event.Detail = audit.OK, manyDetail{Kind: kind, Reason: reason, Lineages: n}
	if err != nil {
		event.Outcome, event.Code = audit.Failed, countersign.AsError(err).Code
	}
	if _, untold := a.cfg.Audit.Append(ctx, event); untold != nil {
		return n, untold
	}
	return n, err
}

func (a *Authority) revokeLineage(ctx context.Context, by countersign.Caller, lineage, reason string) (int, error) {
	entry, err := lineagesTable().Get(ctx, a.cfg.Store, lineage)
	if errors.Is(err, storage.ErrNotFound) {
		e := countersign.Errorf(countersign.CodeNoCertificate, "there is no lineage %s on record", lineage).
			WithHint("a lineage has the serial of its enrolment; `countersign cert show SERIAL` prints it")
		if held, err := a.record(ctx, lineage); err == nil && held.Value.Lineage != "" {
			return 0, e.WithHint("the certificate %s is one of the lineage %s", lineage, held.Value.Lineage)
		}
		return 0, e
	}
	if err != nil {
		return 0, storeError(err)
	}
	if !entry.Value.Blocked.IsZero() {
		return 0, countersign.Errorf(countersign.CodeAlreadyRevoked, "the lineage %s is blocked since %s: %s",
			lineage, entry.Value.Blocked.UTC().Format(time.RFC3339), entry.Value.Why)
	}
	return 1, a.block(ctx, by, lineage, reason, "an operator revoked the lineage")
}

// revokeHeld blocks the lineages of an owner's live certificates; of those with the key spki, unless that is "".
func (a *Authority) revokeHeld(ctx context.Context, by countersign.Caller, prefix, spki, reason, why string) (int, error) {
	n, known := 0, false
	for place, err := range ownersTable().All(ctx, a.cfg.Store, prefix) {
		if err != nil {
			return n, storeError(err)
		}
		known = true
		entry, err := a.record(ctx, place.Key[strings.LastIndexByte(place.Key, '-')+1:])
		if absent(err) {
			continue
		}
		if err != nil {
			return n, err
		}
		if a.cfg.Now().After(entry.Value.NotAfter) || spki != "" && entry.Value.SPKI != spki {
			continue
		}
		done, err := a.revokeOneOf(ctx, by, entry, reason, why)
		if err != nil {
			return n, err
		}
		if done {
			n++
		}
	}
	switch {
	case n > 0 || spki != "":
		return n, nil
	case !known:
		return 0, countersign.Errorf(countersign.CodeNoCertificate, "no certificate of that service is on record").
			WithHint("`countersign cert list` shows whose are")
	}
	return 0, countersign.Errorf(countersign.CodeAlreadyRevoked, "all certificates of that service are revoked or expired already")
}

// revokeOneOf blocks the lineage of a certificate, or revokes one that has none. false: that was done before.
func (a *Authority) revokeOneOf(ctx context.Context, by countersign.Caller, entry storage.Entry[Record], reason, why string) (bool, error) {
	if entry.Value.Lineage == "" {
		if entry.Value.State == StateRevoked {
			return false, nil
		}
		err := a.recordRevocation(ctx, entry, reason, nil)
		return err == nil, err
	}
	line, err := lineagesTable().Get(ctx, a.cfg.Store, entry.Value.Lineage)
	if err != nil {
		return false, storeError(err)
	}
	if !line.Value.Blocked.IsZero() {
		return false, a.sweep(ctx, line.Key) // the one who blocked it may not have come to this
	}
	return true, a.block(ctx, by, line.Key, reason, why)
}

// revokeKey marks the key first: from then on no certificate with it can come, and those that are there are found by the
// owner, of whom a key that is certified has one.
func (a *Authority) revokeKey(ctx context.Context, by countersign.Caller, spki, reason string) (int, error) {
	owner, marked, err := a.markKey(ctx, spki, reason)
	if err != nil {
		return 0, err
	}
	n := 0
	if !owner.IsZero() {
		for _, kind := range []Profile{ProfileService, ProfileOperator, ProfileAuthority} {
			more, err := a.revokeHeld(ctx, by, ownerPrefix(string(kind), owner.Name()), spki, reason, "its key was revoked")
			n += more
			if err != nil {
				return n, err
			}
		}
	}
	if n == 0 && !marked {
		return 0, countersign.Errorf(countersign.CodeAlreadyRevoked, "the key is revoked already")
	}
	return n, nil
}

// markKey records that a key is revoked, for ever, and tells whose it is: the zero ID if nobody's.
func (a *Authority) markKey(ctx context.Context, spki, reason string) (owner countersign.ID, marked bool, err error) {
	for range maxTries {
		key, cond := keyRecord{}, storage.Cond{Absent: true}
		switch found, err := keysTable().Get(ctx, a.cfg.Store, spki); {
		case err == nil:
			key, cond = found.Value, storage.Cond{Rev: found.Rev}
		case !errors.Is(err, storage.ErrNotFound):
			return owner, false, storeError(err)
		}
		if key.Revoked == reason || key.Revoked == reasonKeyCompromise { // which says more than any other reason
			return key.ID, false, nil
		}
		key.Revoked = reason
		ops, err := keyOps(spki, key, cond)
		if err != nil {
			return owner, false, err
		}
		if _, err = a.cfg.Store.Apply(ctx, ops...); err == nil {
			return key.ID, true, nil
		}
		if !errors.Is(err, storage.ErrConflict) {
			return owner, false, storeError(err)
		}
	}
	return owner, false, storeError(storage.ErrConflict)
}

// keyOps record a revoked key, and tell peers of one that was compromised: its certificates may all be revoked for less.
func keyOps(spki string, key keyRecord, cond storage.Cond) ([]storage.Op, error) {
	put, err := keysTable().Put(spki, key, key.expires(), cond)
	if err != nil || key.ID.IsZero() || key.Revoked != reasonKeyCompromise {
		return []storage.Op{put}, err
	}
	kind := ProfileService
	if key.ID.Kind() == countersign.OperatorID {
		kind = ProfileOperator
	}
	index, err := revokedTable().Put(ownerPrefix(string(kind), key.ID.Name())+revokedKey+spki, revokedRecord{},
		key.NotAfter.Add(keepRevoked), storage.Cond{})
	return []storage.Op{put, index}, err
}
