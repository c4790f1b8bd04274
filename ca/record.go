package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// The states of a [Record]. Only "valid" and "revoked" are stored; "expired" is told by the clock.
const (
	StateValid   = "valid"
	StateRevoked = "revoked"
	StateExpired = "expired"
)

// keepExpired is how long records outlive what they are about, so that "expired" can still be told from "never issued".
const keepExpired = 7 * day

// Record is what is kept of a leaf certificate until a week after its end.
type Record struct {
	Serial      string         `json:"serial"` // lower-case hex, 32 digits
	ID          countersign.ID `json:"id"`
	Kind        string         `json:"kind"`  // the profile: service, operator, authority
	State       string         `json:"state"` // valid, revoked, expired
	NotBefore   time.Time      `json:"not_before"`
	NotAfter    time.Time      `json:"not_after"`
	IssuedAt    time.Time      `json:"issued_at"`
	RevokedAt   time.Time      `json:"revoked_at,omitzero"`
	Reason      string         `json:"reason,omitempty"`
	KeyAlg      string         `json:"key_alg"`     // as in policies: P-256, RSA-3072, ...
	SPKI        string         `json:"spki"`        // lower-case hex SHA-256 of the SubjectPublicKeyInfo
	Fingerprint string         `json:"fingerprint"` // lower-case hex SHA-256 of the certificate
	Issuer      string         `json:"issuer"`      // the serial of the intermediate
	IssuedTo    string         `json:"issued_to"`   // the caller's name

	Lineage      string `json:"lineage,omitempty"`       // the serial of the enrolment; none: the daemon's own
	Successor    string `json:"successor,omitempty"`     // the serial that it was renewed to
	SupersededBy string `json:"superseded_by,omitempty"` // the serial that took its place before anybody came with it

	PEM string `json:"pem"` // the leaf
}

// at is the record as it is to be shown at now.
func (r Record) at(now time.Time) Record {
	if r.State == StateValid && now.After(r.NotAfter) {
		r.State = StateExpired
	}
	return r
}

// keyRecord says to whom a certified key belongs. It outlives the newest certificate with that key by a week, and for
// ever if one of them was revoked.
type keyRecord struct {
	ID       countersign.ID `json:"id,omitzero"`        // none: it was revoked and never certified
	NotAfter time.Time      `json:"not_after,omitzero"` // of the newest certificate
	Revoked  string         `json:"revoked,omitempty"`  // the reason; "": none of its certificates is revoked
}

func (k keyRecord) expires() time.Time {
	if k.Revoked != "" {
		return time.Time{}
	}
	return k.NotAfter.Add(keepExpired)
}

// operatorRecord holds an operator's role, under its name.
type operatorRecord struct {
	Role    string    `json:"role"`
	AddedAt time.Time `json:"added_at"`
	AddedBy string    `json:"added_by"`
}

func certificatesTable() storage.Table[Record] { return storage.Table[Record]{Name: "certificates"} }
func keysTable() storage.Table[keyRecord]      { return storage.Table[keyRecord]{Name: "certified_keys"} }
func operatorsTable() storage.Table[operatorRecord] {
	return storage.Table[operatorRecord]{Name: "operators"}
}

// ownersTable is the index of certificates by owner, newest first; its values are empty.
func ownersTable() storage.Table[struct{}] {
	return storage.Table[struct{}]{Name: "certificates_by_owner"}
}

// ownerKey is a key of that index: kind/name/ and the time counted down, so that the newest comes first.
func ownerKey(r Record) string {
	return fmt.Sprintf("%s%016x-%s", ownerPrefix(r.Kind, r.ID.Name()), math.MaxInt64-r.IssuedAt.UnixNano(), r.Serial)
}

func ownerPrefix(kind, name string) string { return kind + "/" + name + "/" }

// recordOps are the operations that record a certificate: it, its places in the indices, and the lineage that it begins.
func recordOps(r Record) ([]storage.Op, error) {
	expires := r.NotAfter.Add(keepExpired)
	put, err := certificatesTable().Put(r.Serial, r, expires, storage.Cond{Absent: true})
	if err != nil {
		return nil, err
	}
	index, err := ownersTable().Put(ownerKey(r), struct{}{}, expires, storage.Cond{})
	if err != nil || r.Lineage == "" {
		return []storage.Op{put, index}, err
	}
	member, err := membersTable().Put(memberKey(r.Lineage, r.Serial), struct{}{}, expires, storage.Cond{})
	if err != nil || r.Lineage != r.Serial {
		return []storage.Op{put, index, member}, err
	}
	begin, err := beginLineage(r)
	return append(begin, put, index, member), err
}

// Certificate is what was issued, with the window in which to renew it.
type Certificate struct {
	ID          countersign.ID
	Serial      string // lower-case hex, 32 digits
	NotBefore   time.Time
	NotAfter    time.Time           // inclusive, as RFC 5280 4.1.2.5 has it
	RenewAfter  time.Time           // half of the lifetime is over
	RenewBefore time.Time           // 67 % of the lifetime are over
	Chain       []*x509.Certificate // the leaf, then the intermediate, then its root's key as older roots certified it
}

func newCertificate(id countersign.ID, leaf *x509.Certificate, above []*x509.Certificate) *Certificate {
	c := &Certificate{
		ID: id, Serial: serialText(leaf.SerialNumber),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Chain: append([]*x509.Certificate{leaf}, above...),
	}
	c.RenewAfter, c.RenewBefore = renewal(c.NotBefore, c.NotAfter)
	return c
}

// recorded is the certificate of a record, with its chain.
func (a *Authority) recorded(ctx context.Context, serial string) (*Certificate, Record, error) {
	entry, err := certificatesTable().Get(ctx, a.cfg.Store, serial)
	if err != nil {
		return nil, Record{}, storeError(err)
	}
	leaf, err := parseCertificate(entry.Value.PEM)
	if err != nil {
		return nil, Record{}, countersign.Errorf(countersign.CodeDamaged, "the record of the certificate %s is damaged", serial).Because(err)
	}
	s := a.issuers.Load()
	if i, ok := s.find(entry.Value.Issuer); ok {
		return newCertificate(entry.Value.ID, leaf, s.chain(i)), entry.Value, nil
	}
	return nil, Record{}, countersign.Errorf(countersign.CodeDamaged, "the issuer of the certificate %s is not on record", serial)
}

// storeError makes what a [storage.Store] answers one of our errors. ErrNotFound is the caller's to judge before.
func storeError(err error) error {
	var ours *countersign.Error
	switch {
	case errors.As(err, &ours):
		return err
	case errors.Is(err, storage.ErrCorrupt):
		return countersign.Errorf(countersign.CodeDamaged, "a record in the store is damaged").Because(err)
	case errors.Is(err, storage.ErrUnknown):
		return countersign.Errorf(countersign.CodeUnknownOutcome, "it is not known whether the change was made; ask again").
			Because(err).After(second)
	case errors.Is(err, storage.ErrBusy), errors.Is(err, storage.ErrConflict):
		return countersign.Errorf(countersign.CodeBusy, "the store is busy; nothing was changed").Because(err).After(second)
	case errors.Is(err, storage.ErrClosed):
		return countersign.Errorf(countersign.CodeStopping, "the daemon is stopping").Because(err).After(second)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return countersign.Errorf(countersign.CodeTimeout, "the request ended before it was served").Because(err)
	}
	return err
}
