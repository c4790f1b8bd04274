package ca

import (
	"context"
	"crypto/fips140"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"go.step.sm/crypto/x509util"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

// A responder signs OCSP answers for one issuer, by a certificate that the issuer made for that and nothing else (RFC 6960
// 4.2.2.2), with a key of its own. Nobody asks whether it is revoked (id-pkix-ocsp-nocheck), so it lives for days only.
const (
	responderTTL   = 7 * day // and no longer than its issuer; replaced at half of it
	responderTick  = time.Second
	responderRetry = time.Minute // after a failure: each try makes a key
)

// responderRecord is a responder's certificate under its serial, kept as long as those of leaves are.
type responderRecord struct {
	Issuer string    `json:"issuer"` // the serial of the issuer
	PEM    string    `json:"pem"`
	KeyID  string    `json:"key_id"`
	Made   time.Time `json:"made"`
}

func respondersTable() storage.Table[responderRecord] {
	return storage.Table[responderRecord]{Name: "ocsp_responders"}
}

// responder is one that signs.
type responder struct {
	responderRecord
	cert    *x509.Certificate
	keyHash []byte // SHA-1 of its key's bits (RFC 6960 4.2.1)
}

// responders are those in use, by the issuer's serial, and what they signed.
type responders struct {
	inUse atomic.Pointer[map[string]responder]
	slots chan struct{}
	kept  *keptAnswers
	told  atomic.Int64 // when a failure was last logged
}

// responderTemplate: no name but a common one, which tells generations apart by the key, and no revocation check.
func responderTemplate(t *x509util.Certificate, s Subject) {
	t.Subject = x509util.Subject{CommonName: signingName(s.TrustDomain, profileResponder, t.SubjectKeyID)}
	t.KeyUsage = x509util.KeyUsage(x509.KeyUsageDigitalSignature)
	t.Extensions = []x509util.Extension{{ID: x509util.ObjectIdentifier(oidOCSPNoCheck), Value: asn1.NullBytes}}
}

// readResponders reads which responders are in use: of each issuer the newest. If the table is damaged those that are known
// stay in use.
func (a *Authority) readResponders(ctx context.Context) error {
	now, found := a.cfg.Now(), map[string]responder{}
	for entry, err := range respondersTable().All(ctx, a.cfg.Store, "") {
		if err != nil {
			return err
		}
		cert, err := parseCertificate(entry.Value.PEM)
		if err != nil || now.After(cert.NotAfter) {
			continue
		}
		if old, ok := found[entry.Value.Issuer]; ok && !entry.Value.Made.After(old.Made) {
			continue
		}
		found[entry.Value.Issuer] = newResponder(entry.Value, cert)
	}
	if maps.EqualFunc(*a.ocsp.inUse.Load(), found, func(x, y responder) bool { return x.KeyID == y.KeyID }) {
		return nil
	}
	a.useResponders(found)
	return nil
}

func newResponder(r responderRecord, cert *x509.Certificate) responder {
	_, bits, err := keyBits(cert.RawSubjectPublicKeyInfo)
	if err != nil { // it was parsed before
		bits = nil
	}
	return responder{responderRecord: r, cert: cert, keyHash: digestFor(sha1Hash, bits)}
}

// useResponders puts responders in use, and shows their ends.
func (a *Authority) useResponders(found map[string]responder) {
	a.ocsp.inUse.Store(&found)
	a.metrics.responders.Reset()
	all := a.issuers.Load()
	for serial, r := range found {
		if i, ok := all.find(serial); ok && i.Retired.IsZero() {
			a.metrics.responders.WithLabelValues(keyName(i)).Set(float64(r.cert.NotAfter.Unix()))
		}
	}
}

// answering are the issuers that need a responder at now: all that are published and not over. One that is to sign later has
// its responder before, one that signs no more as long as anything of it may live.
func (s *issuers) answering(now time.Time) []issuer {
	var of []issuer
	for _, i := range append(s.published(ProfileIntermediate), s.published(ProfileRoot)...) {
		if now.Before(i.cert.NotAfter.Add(-minTTL)) && !now.Before(i.cert.NotBefore) {
			of = append(of, i)
		}
	}
	return of
}

// responderDue tells whether the issuer i needs a new responder besides have: there is none, or half of its life is over
// and another would live longer. It is pure.
func responderDue(i issuer, have responder, now time.Time) bool {
	if have.cert == nil {
		return true
	}
	if !have.cert.NotAfter.Before(i.cert.NotAfter.Add(-2 * minTTL)) {
		return false
	}
	half, _ := renewal(have.cert.NotBefore, have.cert.NotAfter)
	return !now.Before(half)
}

// KeepResponders keeps a responder for each issuer until ctx ends, as [Authority.OCSP] needs it. An issuer whose own key is
// offline gets none: its last one answers until it ends. What fails is logged and tried again.
func (a *Authority) KeepResponders(ctx context.Context) error {
	for {
		wait := responderTick
		if err := a.keepResponders(ctx); err != nil && ctx.Err() == nil {
			a.cfg.Logger.Warn("OCSP responders", "err", err)
			wait = responderRetry
		}
		if !pause(ctx, wait, nil) {
			return nil
		}
	}
}

// keepResponders makes what is due once. A damaged table costs a responder for each start, which it tells, and no answers.
func (a *Authority) keepResponders(ctx context.Context) error {
	failed := a.readResponders(ctx)
	if failed != nil && !errors.Is(failed, storage.ErrCorrupt) {
		return failed
	}
	if a.cfg.Keys.Sealed() || a.cfg.Keys.Guard() != nil {
		return nil
	}
	for _, i := range a.issuers.Load().answering(a.cfg.Now()) {
		have := (*a.ocsp.inUse.Load())[i.serial]
		if _, ok := a.cfg.Keys.Key(have.KeyID); ok && !responderDue(i, have, a.cfg.Now()) {
			continue
		}
		if !a.online(i) {
			continue
		}
		if err := a.makeResponder(ctx, i); err != nil {
			failed = errors.Join(failed, fmt.Errorf("the responder of %s: %w", i.serial, err))
		}
	}
	return failed
}

// makeResponder issues a responder of i: key, checked bytes, durable intent, signature, record, outcome.
func (a *Authority) makeResponder(ctx context.Context, i issuer) error {
	by := countersign.Daemon("OCSP responders")
	keys, err := a.cfg.Keys.Create(ctx, by, keyring.NewKey{Purpose: keyring.OCSP, Alg: "ES256", SignsFrom: a.cfg.Now()})
	if err != nil {
		return err
	}
	recorded, err := a.issueResponder(ctx, by, i, keys[0])
	if recorded || countersign.AsError(storeError(err)).Code == countersign.CodeUnknownOutcome {
		return err // a key that nothing names is dropped later
	}
	return errors.Join(err, a.cfg.Keys.Drop(context.WithoutCancel(ctx), by, keys[0].ID))
}

// issueResponder tells whether the certificate is recorded, also when nobody could be told of it.
func (a *Authority) issueResponder(ctx context.Context, by countersign.Caller, i issuer, key keyring.Key) (recorded bool, err error) {
	now := a.cfg.Now()
	notBefore, notAfter, err := validity(now, min(responderTTL, i.cert.NotAfter.Sub(now)), i.cert)
	if err != nil {
		return false, err
	}
	serial, err := newSerial()
	if err != nil {
		return false, err
	}
	tbs, err := prepare(profileResponder, Subject{
		TrustDomain: a.cfg.TrustDomain, Key: key.Public, Serial: serial, NotBefore: notBefore, NotAfter: notAfter, Issuer: i.cert,
		KeyTypes: []string{"P-256"}, Most: responderTTL,
	}, i.cert.PublicKey)
	if err != nil {
		return false, err
	}
	signer, err := a.cfg.Keys.SignerByID(i.KeyID)
	if err != nil {
		return false, err
	}
	detail := certificateDetail{Profile: profileResponder, How: howSchedule, NotAfter: notAfter, Issuer: i.serial, TBS: tbs.digest()}
	a.flights.begin(tbs.serial, countersign.ID{}, a.cfg.Audit.Head().Seq)
	if _, err := a.cfg.Audit.Append(ctx, audit.Event{Type: eventIntent, Outcome: audit.Intent, By: by, Subject: tbs.serial, Detail: detail}); err != nil {
		a.flights.end(tbs.serial)
		return false, err
	}
	record := responderRecord{Issuer: i.serial, KeyID: key.ID, Made: a.cfg.Now().UTC()}
	cert, err := sign(tbs, signer)
	if err == nil {
		record.PEM = certPEM(cert)
		err = a.recordResponder(ctx, i, cert, record)
	}
	if err != nil {
		if countersign.AsError(storeError(err)).Code == countersign.CodeUnknownOutcome {
			a.flights.leave(tbs.serial)
			return false, err
		}
		a.abandon(ctx, order{by: by}, tbs.serial, "the responder could not be made")
		return false, err
	}
	// Crash point: recorded and not yet told. The next start finds the record and writes "recovered".
	detail.TBS, detail.Fingerprint = "", fingerprint(cert)
	if _, err := a.cfg.Audit.Append(context.WithoutCancel(ctx), audit.Event{
		Type: eventIssued, Outcome: audit.OK, By: by, Subject: tbs.serial, Detail: detail,
	}); err != nil {
		a.flights.leave(tbs.serial)
		return true, err
	}
	a.flights.end(tbs.serial)
	a.metrics.countIssued(profileResponder, howSchedule)
	next := maps.Clone(*a.ocsp.inUse.Load())
	next[i.serial] = newResponder(record, cert)
	a.useResponders(next)
	return true, nil
}

// recordResponder makes it real, unless its issuer was retired meanwhile.
func (a *Authority) recordResponder(ctx context.Context, i issuer, cert *x509.Certificate, r responderRecord) error {
	put, err := respondersTable().Put(serialText(cert.SerialNumber), r, cert.NotAfter.Add(keepExpired), storage.Cond{Absent: true})
	if err != nil {
		return err
	}
	_, err = a.cfg.Store.Apply(ctx, put, authoritiesTable().Check(i.serial, storage.Cond{Rev: i.rev}))
	return storeError(err)
}

// dropResponders deletes the keys of responders that were replaced, or whose issuer is retired, and what a crash left of
// others; none while it can't be told which those are.
func (a *Authority) dropResponders(ctx context.Context, by countersign.Caller) error {
	if err := a.readResponders(ctx); errors.Is(err, storage.ErrCorrupt) {
		return nil // KeepResponders tells it
	} else if err != nil {
		return err
	}
	used, all := map[string]bool{}, a.issuers.Load()
	for serial, r := range *a.ocsp.inUse.Load() {
		if i, ok := all.find(serial); ok && i.Retired.IsZero() {
			used[r.KeyID] = true
		}
	}
	for _, k := range a.cfg.Keys.Keys(keyring.OCSP) {
		if used[k.ID] || a.cfg.Now().Sub(k.Published) < orphanAge {
			continue
		}
		if err := a.cfg.Keys.Drop(ctx, by, k.ID); err != nil {
			return err
		}
	}
	return nil
}

// keyBits are the bits of a public key, without tag and length, as RFC 6960 4.1.1 hashes them.
func keyBits(spki []byte) (pkix.AlgorithmIdentifier, []byte, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	_, err := asn1.Unmarshal(spki, &info)
	return info.Algorithm, info.Key.RightAlign(), err
}

// digestFor is a hash that names something to OCSP clients, nil for one of others. SHA-1 is what they use (RFC 5019 2.1.1): it
// protects nothing, so FIPS mode need not forbid it here.
func digestFor(h idHash, of []byte) []byte {
	switch h {
	case sha1Hash:
		var sum [20]byte
		fips140.WithoutEnforcement(func() { sum = sha1.Sum(of) })
		return sum[:]
	case sha256Hash:
		sum := sha256.Sum256(of)
		return sum[:]
	}
	return nil
}
