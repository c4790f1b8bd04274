package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

// Events of what is made elsewhere.
const (
	eventRequested = "authority.requested" // the key of an intermediate and its request
	eventBrought   = "authority.brought"   // a root, or the certificate of a request
)

// requestRecord is the open request of an intermediate. Its key is in the keyring and signs nothing but the request until a
// certificate of it is recorded.
type requestRecord struct {
	KeyID string    `json:"key_id"`
	CSR   string    `json:"csr"` // PEM
	Made  time.Time `json:"made"`
}

const requestKey = "intermediate"

func requestsTable() storage.Table[requestRecord] {
	return storage.Table[requestRecord]{Name: "ca_requests"}
}

func (a *Authority) openRequest(ctx context.Context) (storage.Entry[requestRecord], error) {
	return openRequest(ctx, a.cfg.Store)
}

// openRequest is the open request; one without a key if there is none.
func openRequest(ctx context.Context, store storage.Store) (storage.Entry[requestRecord], error) {
	entry, err := requestsTable().Get(ctx, store, requestKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return entry, storeError(err)
	}
	return entry, nil
}

// broughtDetail is the detail of what was made elsewhere.
type broughtDetail struct {
	Role        Profile   `json:"role"`
	Subject     string    `json:"subject"`
	NotAfter    time.Time `json:"not_after"`
	Fingerprint string    `json:"fingerprint"`
	SignsFrom   time.Time `json:"signs_from,omitzero"`
}

func broughtEvent(by countersign.Caller, i issuer) audit.Event {
	return audit.Event{Type: eventBrought, Outcome: audit.OK, By: by, Subject: i.serial, Detail: broughtDetail{
		Role: i.Role, Subject: i.cert.Subject.String(), NotAfter: i.cert.NotAfter.UTC(), Fingerprint: fingerprint(i.cert), SignsFrom: i.SignsFrom,
	}}
}

// makeRequest makes an intermediate's key and its request. The operation that records it is the caller's to apply.
func makeRequest(ctx context.Context, cfg Config, by countersign.Caller, cond storage.Cond) (requestRecord, storage.Op, error) {
	keys, err := cfg.Keys.Create(ctx, by, keyring.NewKey{Purpose: keyring.CA, Alg: "ES256", SignsFrom: cfg.Now()})
	if err != nil {
		return requestRecord{}, storage.Op{}, err
	}
	signer, err := cfg.Keys.SignerByID(keys[0].ID)
	if err != nil {
		return requestRecord{}, storage.Op{}, err
	}
	checked, err := prepareRequest(cfg.TrustDomain, keys[0].Public)
	if err != nil {
		return requestRecord{}, storage.Op{}, fmt.Errorf("make the request: %w", err)
	}
	der, err := checked.sign(signer)
	if err != nil {
		return requestRecord{}, storage.Op{}, fmt.Errorf("make the request: %w", err)
	}
	r := requestRecord{KeyID: keys[0].ID, Made: cfg.Now().UTC(), CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	op, err := requestsTable().Put(requestKey, r, time.Time{}, cond)
	return r, op, err
}

func requestedEvent(by countersign.Caller, r requestRecord) audit.Event {
	return audit.Event{Type: eventRequested, Outcome: audit.OK, By: by, Subject: r.KeyID}
}

// IntermediateRequest is a request that a root elsewhere is to sign.
type IntermediateRequest struct {
	CSR   string // PEM
	KeyID string
	Made  time.Time
}

// Request is the open request of an intermediate (RoleOperator); if there is none, a key and a request are made.
// Codes: CodeRole, CodeSealed, CodeClock, CodeBusy.
func (a *Authority) Request(ctx context.Context, by countersign.Caller) (IntermediateRequest, error) {
	r, err := a.request(ctx, by)
	if err != nil {
		return IntermediateRequest{}, a.deny(ctx, by, "intermediate", err)
	}
	return IntermediateRequest{CSR: r.CSR, KeyID: r.KeyID, Made: r.Made}, nil
}

func (a *Authority) request(ctx context.Context, by countersign.Caller) (requestRecord, error) {
	if by.Role < countersign.RoleOperator {
		return requestRecord{}, countersign.Errorf(countersign.CodeRole, "a request needs the role %s; the caller's is %s", countersign.RoleOperator, by.Role)
	}
	a.rolling.Lock()
	defer a.rolling.Unlock()
	open, err := a.openRequest(ctx)
	if err != nil {
		return requestRecord{}, err
	}
	if _, ok := a.cfg.Keys.Key(open.Value.KeyID); ok {
		return open.Value, nil
	}
	if err := a.cfg.Keys.Guard(); err != nil {
		return requestRecord{}, err
	}
	// Crash point: a key without a request, which housekeeping removes.
	made, op, err := makeRequest(ctx, a.cfg, by, storage.Cond{Rev: open.Rev, Absent: open.Rev == 0})
	if err != nil {
		return requestRecord{}, err
	}
	if _, err := a.cfg.Store.Apply(ctx, op); err != nil {
		return requestRecord{}, storeError(err)
	}
	_, err = a.cfg.Audit.Append(context.WithoutCancel(ctx), requestedEvent(by, made))
	return made, err
}

// planImport decides whether cert, for the key of the request, becomes an intermediate, and under which root. It signs at once. It is
// pure.
func planImport(cfg Config, s *issuers, cert *x509.Certificate, key keyring.Key, now time.Time) (issuer, error) {
	i := issuer{cert: cert, serial: serialText(cert.SerialNumber), authorityRecord: authorityRecord{
		Role: ProfileIntermediate, PEM: certPEM(cert), KeyID: key.ID, Made: now.UTC(), Own: true,
	}}
	if waits, ok := s.pending(now); ok {
		return i, countersign.Errorf(countersign.CodeRotationPending, "the intermediate %s takes over at %s already", waits.serial, waits.SignsFrom.UTC().Format(time.RFC3339)).
			WithHint("wait for that, or take it back: countersign ca rollback")
	}
	if other, ok := s.find(i.serial); ok {
		return i, countersign.Errorf(countersign.CodeOwnIntermediate, "the serial %s is that of %q already", i.serial, other.cert.Subject.String()).
			WithHint("have it signed again with a serial of its own")
	}
	var root issuer
	for _, r := range s.published(ProfileRoot) { // by the key, never by the name: two roots may have one subject
		if bytes.Equal(r.cert.SubjectKeyId, cert.AuthorityKeyId) {
			root = r
		}
	}
	if root.cert == nil {
		return i, countersign.Errorf(countersign.CodeOwnIntermediate, "the certificate can't be the intermediate: its authority key identifier (%x) is that of no root here", cert.AuthorityKeyId).
			WithHint("the root's must be in it (openssl: authorityKeyIdentifier=keyid); `countersign ca root` prints the roots")
	}
	if err := checkIntermediate(cfg, cert, key.Public, root.cert, now, max(cfg.ServiceTTL, cfg.ServerTTL)); err != nil {
		return i, err
	}
	i.SignsFrom = now.UTC().Truncate(second)
	return i, nil
}

// importOps record an intermediate of the open request, and close that.
func importOps(i issuer, open storage.Entry[requestRecord]) ([]storage.Op, error) {
	op, err := authoritiesTable().Put(i.serial, i.authorityRecord, time.Time{}, storage.Cond{Absent: true})
	return []storage.Op{op, requestsTable().Delete(requestKey, storage.Cond{Rev: open.Rev})}, err
}

// ImportIntermediate takes the certificate that a root elsewhere made for the open request (RoleAdmin): it must be for our key,
// by a published root, and good for what it is to do. It signs at once. Codes: CodeRole, CodeNoRequest, CodeOwnIntermediate, CodeRotationPending, CodeBusy.
func (a *Authority) ImportIntermediate(ctx context.Context, by countersign.Caller, text []byte) (Issuer, error) {
	i, err := a.importIntermediate(ctx, by, text)
	if err != nil {
		return Issuer{}, a.deny(ctx, by, "intermediate", err)
	}
	return a.issuers.Load().describe(i, a.cfg.Now()), nil
}

func (a *Authority) importIntermediate(ctx context.Context, by countersign.Caller, text []byte) (issuer, error) {
	if by.Role < countersign.RoleAdmin {
		return issuer{}, countersign.Errorf(countersign.CodeRole, "importing needs the role %s; the caller's is %s", countersign.RoleAdmin, by.Role)
	}
	a.rolling.Lock()
	defer a.rolling.Unlock()
	s, head, err := a.readIssuers(ctx)
	if err != nil {
		return issuer{}, err
	}
	i, ops, err := a.cfg.judgeImport(ctx, s, text)
	if err != nil {
		return issuer{}, err
	}
	if err := a.cfg.take(ctx, by, i, func() error { return a.applyIssuers(ctx, head, ops) }); err != nil {
		return issuer{}, err
	}
	ctx = context.WithoutCancel(ctx)
	a.cfg.Logger.Info("the authority has a new intermediate", "serial", i.serial, "signs_from", i.SignsFrom, "by", by.Name)
	return i, storeError(a.reload(ctx))
}

// take makes an intermediate real by apply, between a durable intent and its outcome.
func (c Config) take(ctx context.Context, by countersign.Caller, i issuer, apply func() error) error {
	told := broughtEvent(by, i)
	told.Outcome = audit.Intent
	if _, err := c.Audit.Append(ctx, told); err != nil {
		return err
	}
	err := apply()
	// Crash point: recorded, and its intent says who did it.
	told.Outcome = audit.OK
	if err != nil {
		told.Outcome, told.Code = audit.Failed, countersign.AsError(err).Code
	}
	if _, untold := c.Audit.Append(context.WithoutCancel(ctx), told); untold != nil {
		return untold
	}
	return err
}

// judgeImport reads the request and judges the certificate for it.
func (c Config) judgeImport(ctx context.Context, s *issuers, text []byte) (issuer, []storage.Op, error) {
	open, err := openRequest(ctx, c.Store)
	if err != nil {
		return issuer{}, nil, err
	}
	key, ok := c.Keys.Key(open.Value.KeyID)
	if !ok {
		return issuer{}, nil, countersign.Errorf(countersign.CodeNoRequest, "no request of an intermediate is open")
	}
	cert, err := ParseCertificatePEM(text)
	if err != nil {
		return issuer{}, nil, countersign.Errorf(countersign.CodeOwnIntermediate, "the certificate can't be read: %v", err)
	}
	i, err := planImport(c, s, cert, key, c.Now())
	if err != nil {
		return issuer{}, nil, err
	}
	ops, err := importOps(i, open)
	return i, ops, err
}

// InitOffline begins an authority under a root that stays elsewhere: it records the root and gives the request of the
// intermediate, as PEM. [FinishInit] ends it.
func InitOffline(ctx context.Context, cfg Config, by countersign.Caller, root *x509.Certificate) (string, error) {
	cfg, err := cfg.forInit(ctx)
	if err != nil {
		return "", err
	}
	if err := CheckRoot(cfg, root, nil, cfg.Now()); err != nil {
		return "", err
	}
	parent, op, err := ownRecord(cfg, root)
	if err != nil {
		return "", err
	}
	made, request, err := makeRequest(ctx, cfg, by, storage.Cond{Absent: true})
	if err != nil {
		return "", err
	}
	if _, err := cfg.Store.Apply(ctx, op, request); err != nil {
		return "", fmt.Errorf("record the authority: %w", err)
	}
	return made.CSR, cfg.Audit.AppendAll(ctx, broughtEvent(by, parent), requestedEvent(by, made))
}

// FinishInit gives the authority that [InitOffline] began its intermediate (CodeOwnIntermediate, CodeNoRequest). One that has it
// is whole, and nothing changes: a crash after the Apply is mended by the same call.
func FinishInit(ctx context.Context, cfg Config, by countersign.Caller, text []byte) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	s, err := listIssuers(ctx, cfg)
	if err != nil {
		return err
	}
	if _, whole := s.signing(cfg.Now()); whole {
		return nil
	}
	i, ops, err := cfg.judgeImport(ctx, s, text)
	if err != nil {
		return err
	}
	return cfg.take(ctx, by, i, func() error {
		_, err := cfg.Store.Apply(ctx, ops...)
		return storeError(err)
	})
}
