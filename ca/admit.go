package ca

import (
	"context"
	"errors"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// admit reads the records that decide whether o may be fulfilled now and judges them. It returns the operations that
// make the certificate's Apply fail if one of those records changes in the meantime, so that a revocation, a used join
// token or a key of somebody else wins over an issuance that was judged just before. repeat is the serial of the
// certificate that was issued for the same token and key already.
func (a *Authority) admit(ctx context.Context, o order, serial string, notAfter time.Time) (ops []storage.Op, repeat string, err error) {
	switch o.how {
	case howJoin:
		ops, repeat, err = a.admitJoin(ctx, o, serial)
	case howAttested:
		ops, repeat, err = a.admitAttested(ctx, o, serial)
	case howRenewal, howGrace:
		ops, repeat, err = a.admitRenewal(ctx, o, serial, notAfter)
		err = o.judged(err)
	case howOperator:
		ops, err = a.admitOperator(o)
	}
	if err != nil || repeat != "" {
		return nil, repeat, err
	}
	own, err := a.admitKey(ctx, o, notAfter)
	return append(ops, own), "", err
}

// admitJoin judges the join token and marks it used.
func (a *Authority) admitJoin(ctx context.Context, o order, serial string) ([]storage.Op, string, error) {
	entry, err := a.joinToken(ctx, o.by.JoinToken)
	if err != nil {
		return nil, "", err
	}
	token := entry.Value
	if token.Service != o.names.id.Name() {
		return nil, "", errNoJoinToken()
	}
	if token.Used != nil {
		if token.Used.SPKI != o.csr.spki {
			return nil, "", errJoinTokenUsed(token)
		}
		return nil, token.Used.Serial, nil
	}
	now := a.cfg.Now()
	if !now.Before(token.Expires) {
		return nil, "", errJoinTokenExpired(token)
	}
	token.Used = &joinUse{Serial: serial, SPKI: o.csr.spki, At: now.UTC()}
	op, err := joinTable().Put(entry.Key, token, entry.Expires, storage.Cond{Rev: entry.Rev})
	return []storage.Op{op}, "", err
}

// admitAttested judges what the workload's token was used for before, and marks it used. A container that starts again, or a
// client that lost the answer, comes with the token and the key that it had; a thief of the token has another key.
func (a *Authority) admitAttested(ctx context.Context, o order, serial string) ([]storage.Op, string, error) {
	spki, before, rev, err := o.proof.Used(ctx)
	if err != nil {
		return nil, "", storeError(err)
	}
	if rev != 0 {
		if spki != o.csr.spki {
			a.cfg.Logger.Warn("a workload token was sent again, for another key", "service", o.names.id, "jti", o.by.Assertion, "serial", before)
			return nil, "", errAttestationUsed(before)
		}
		fresh, err := a.stillFresh(ctx, before)
		if err != nil || fresh {
			return nil, before, err
		}
	}
	op, err := o.proof.Mark(o.csr.spki, serial, rev)
	return []storage.Op{op}, "", err
}

// stillFresh tells whether a recorded certificate is not due for renewal. A revoked one is answered as such.
func (a *Authority) stillFresh(ctx context.Context, serial string) (bool, error) {
	cert, record, err := a.recorded(ctx, serial)
	if err != nil { // also when it is absent: it is kept for longer than any token is valid
		return false, err
	}
	return record.State == StateRevoked || a.cfg.Now().Before(cert.RenewAfter), nil
}

func errAttestationUsed(serial string) error {
	e := countersign.Errorf(countersign.CodeAssertionUsed, "the workload token was used before, for another key or as a client assertion")
	if serial == "" {
		return e.WithHint("send a fresh one")
	}
	return e.WithHint("send a fresh one. If nobody of yours used it, revoke the certificate %s", serial)
}

// admitRenewal judges the certificate with which the caller came, and its key, as they are now.
func (a *Authority) admitRenewal(ctx context.Context, o order, serial string, notAfter time.Time) (ops []storage.Op, repeat string, err error) {
	h := o.held
	if h == nil {
		if h, err = a.holding(ctx, o.by.Serial); err != nil {
			return nil, "", err
		}
	}
	held := h.record
	if held.Value.ID != o.names.id {
		return nil, "", countersign.Errorf(countersign.CodeBadCertificate, "the client certificate is not one of %s", o.names.id)
	}
	key, err := a.heldKey(ctx, held.Value)
	if err != nil {
		return nil, "", err
	}
	if ops, repeat, err = a.goOn(ctx, h, o, serial, notAfter); err != nil || repeat != "" {
		return nil, repeat, err
	}
	// One Apply writes no record twice: if the new certificate has the same key, admitKey's own condition does it.
	if held.Value.SPKI != o.csr.spki {
		ops = append(ops, keysTable().Check(key.Key, storage.Cond{Rev: key.Rev}))
	}
	if o.profile == ProfileOperator {
		operator, err := a.operator(ctx, o.names.id.Name())
		if err != nil {
			return nil, "", err
		}
		ops = append(ops, operatorsTable().Check(operator.Key, storage.Cond{Rev: operator.Rev}))
	}
	return ops, "", nil
}

// admitOperator records the operator's role.
func (a *Authority) admitOperator(o order) ([]storage.Op, error) {
	op, err := operatorsTable().Put(o.names.id.Name(), operatorRecord{
		Role: o.role.String(), AddedAt: a.cfg.Now().UTC(), AddedBy: o.by.Name,
	}, time.Time{}, storage.Cond{})
	return []storage.Op{op}, err
}

// admitKey gives the request's key to the ID, for as long as it is recorded.
func (a *Authority) admitKey(ctx context.Context, o order, notAfter time.Time) (storage.Op, error) {
	record, cond := keyRecord{ID: o.names.id, NotAfter: notAfter}, storage.Cond{Absent: true}
	entry, err := keysTable().Get(ctx, a.cfg.Store, o.csr.spki)
	switch {
	case errors.Is(err, storage.ErrNotFound):
	case err != nil:
		return storage.Op{}, storeError(err)
	case entry.Value.Revoked != "":
		return storage.Op{}, countersign.Errorf(countersign.CodeKeyRevoked, "this key stood in a certificate that is revoked").
			WithHint("make a new key")
	case entry.Value.ID != o.names.id:
		return storage.Op{}, countersign.Errorf(countersign.CodeCSRKey, "this key is certified for somebody else").
			WithHint("make a key of its own for %s", o.names.id.Name())
	default:
		cond = storage.Cond{Rev: entry.Rev}
		if entry.Value.NotAfter.After(notAfter) {
			record.NotAfter = entry.Value.NotAfter
		}
	}
	return keysTable().Put(o.csr.spki, record, record.expires(), cond)
}

// held is what is on record of a certificate that a caller holds.
type held struct {
	record  storage.Entry[Record]
	lineage storage.Entry[lineageRecord] // the zero one if it has none
}

// judged is err as the way of o has it: who comes with a certificate that has ended is no thief.
func (o order) judged(err error) error {
	if o.how == howGrace {
		return noFork(err)
	}
	return err
}

// heldCertificate is the record of a certificate that a caller holds; see [Authority.holding].
func (a *Authority) heldCertificate(ctx context.Context, serial string) (storage.Entry[Record], error) {
	h, err := a.holding(ctx, serial)
	if err != nil {
		return storage.Entry[Record]{}, err
	}
	return h.record, nil
}

// holding is what is on record of a certificate that a caller holds: present and not revoked, its lineage not blocked. A
// *forkError is due to be given to [Authority.forked].
func (a *Authority) holding(ctx context.Context, serial string) (*held, error) {
	if serial == "" {
		return nil, errUnknownPeer(nil)
	}
	entry, err := certificatesTable().Get(ctx, a.cfg.Store, serial)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return nil, errUnknownPeer(err)
	case err != nil:
		return nil, storeError(err)
	case entry.Value.State == StateRevoked && entry.Value.SupersededBy != "":
		return nil, &forkError{lineage: entry.Value.Lineage, serial: serial, why: "it came after " + entry.Value.SupersededBy + " had taken its place"}
	case entry.Value.State == StateRevoked:
		return nil, errRevokedPeer(entry.Value.Reason)
	case entry.Value.State != StateValid:
		return nil, countersign.Errorf(countersign.CodeDamaged, "the record of the certificate %s is damaged", serial)
	}
	h := &held{record: entry}
	if entry.Value.Lineage != "" {
		if h.lineage, err = a.openLineage(ctx, entry.Value); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// heldKey is the record of the key in a certificate that a caller holds. A compromised key is no credential in any of
// its certificates, whichever of them was revoked for it.
func (a *Authority) heldKey(ctx context.Context, held Record) (storage.Entry[keyRecord], error) {
	entry, err := keysTable().Get(ctx, a.cfg.Store, held.SPKI)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return entry, errUnknownPeer(err)
	case err != nil:
		return entry, storeError(err)
	case entry.Value.Revoked == reasonKeyCompromise:
		return entry, errRevokedPeer(entry.Value.Revoked)
	case entry.Value.ID != held.ID:
		return entry, countersign.Errorf(countersign.CodeDamaged, "the record of the key %s is damaged", held.SPKI)
	}
	return entry, nil
}

// operator is the record of an operator, with a role.
func (a *Authority) operator(ctx context.Context, name string) (storage.Entry[operatorRecord], error) {
	entry, err := operatorsTable().Get(ctx, a.cfg.Store, name)
	if errors.Is(err, storage.ErrNotFound) {
		return entry, countersign.Errorf(countersign.CodeBadCertificate, "there is no operator %s any more", name)
	}
	if err != nil {
		return entry, storeError(err)
	}
	return entry, nil
}

func errUnknownPeer(cause error) error {
	return countersign.Errorf(countersign.CodeBadCertificate, "the client certificate is not on record here").Because(cause)
}

func errRevokedPeer(reason string) error {
	return countersign.Errorf(countersign.CodeRevokedPeer, "the client certificate is revoked: %s", reason).
		WithHint("enrol anew with a join token and a new key")
}
