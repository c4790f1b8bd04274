package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

// Events of the authority's own certificates, besides those of each certificate.
const (
	eventRotated   = "authority.rotated"
	eventWithdrawn = "authority.withdrawn"
	eventRetired   = "authority.retired"
)

// rolloverDetail is their detail.
type rolloverDetail struct {
	Role      Profile   `json:"role"`
	Serials   []string  `json:"serials"`
	SignsFrom time.Time `json:"signs_from,omitzero"`
}

// RotationPlan is what a rotation did, or would do.
type RotationPlan struct {
	Role      Profile
	At        time.Time
	SignsFrom time.Time
	DryRun    bool
	New       []Issuer // none in a dry run
}

// Rotate makes the successor of the signing intermediate (RoleOperator), or a new root with an intermediate of its own
// (RoleAdmin). A new root is published at once and certified by the old one, and signs after the lead; nothing changes
// for who holds a certificate. Refusals are audited.
// Codes: CodeRole, CodeParameter, CodeRotationPending, CodeIssuerExpiring, CodeNoKey, CodeSealed, CodeClock, CodeBusy,
// CodeRootOffline, CodeOwnSuccessor.
func (a *Authority) Rotate(ctx context.Context, by countersign.Caller, r Rotation) (RotationPlan, error) {
	plan, err := a.rotateAs(ctx, by, r)
	if err != nil && !r.DryRun {
		return plan, a.deny(ctx, by, shortened(string(r.Role)), err)
	}
	return plan, err
}

func (a *Authority) rotateAs(ctx context.Context, by countersign.Caller, r Rotation) (RotationPlan, error) {
	needed := countersign.RoleOperator
	if r.Role == ProfileRoot || r.Now {
		needed = countersign.RoleAdmin
	}
	if by.Role < needed {
		return RotationPlan{}, countersign.Errorf(countersign.CodeRole, "this rollover needs the role %s; the caller's is %s", needed, by.Role)
	}
	a.rolling.Lock()
	defer a.rolling.Unlock()
	s, head, err := a.readIssuers(ctx)
	if err != nil {
		return RotationPlan{}, err
	}
	now := a.cfg.Now()
	p, err := planRotation(s, r, now, a.rootLead())
	if err == nil {
		err = a.needKeys(p)
	}
	plan := RotationPlan{Role: r.Role, At: now.UTC(), SignsFrom: p.signsFrom, DryRun: r.DryRun}
	if err != nil || r.DryRun {
		return plan, err
	}
	made, err := a.carryOut(ctx, by, p, head)
	if err != nil {
		return plan, err
	}
	next := a.issuers.Load()
	for _, i := range made {
		plan.New = append(plan.New, next.describe(i, a.cfg.Now()))
	}
	return plan, nil
}

// readIssuers reads what is recorded now, with the record that every change of it changes.
func (a *Authority) readIssuers(ctx context.Context) (*issuers, storage.Entry[generation], error) {
	head, err := generationTable().Get(ctx, a.cfg.Store, generationKey)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, head, storeError(err)
	}
	if err := a.reload(ctx); err != nil {
		return nil, head, storeError(err)
	}
	return a.issuers.Load(), head, nil
}

// rootLead is how long a new root is published before it signs: the longest life of a leaf, the grace in which an expired
// one may be renewed, and an hour (standards.md), so that everybody has asked for the bundle in the meantime.
func (a *Authority) rootLead() time.Duration {
	if a.cfg.RootLead != 0 {
		return a.cfg.RootLead
	}
	longest := max(a.cfg.ServiceTTL, a.cfg.OperatorTTL)
	for _, service := range a.cfg.Policy().Services {
		longest = max(longest, time.Duration(service.TTL))
	}
	return longest + a.cfg.Grace + time.Hour
}

// carryOut makes keys and certificates of a decided rotation, and makes them real in one Apply.
func (a *Authority) carryOut(ctx context.Context, by countersign.Caller, p planned, head storage.Entry[generation]) ([]issuer, error) {
	wanted := []keyring.NewKey{{Purpose: keyring.CA, Alg: "ES256", SignsFrom: a.cfg.Now()}}
	if p.role == ProfileRoot {
		wanted = append(wanted, wanted[0])
		wanted[1].Root = true
	}
	keys, err := a.cfg.Keys.Create(ctx, by, wanted...)
	if err != nil {
		return nil, err
	}
	m := &maker{cfg: a.cfg, by: by, how: howRotation, signsFrom: p.signsFrom, flights: &a.flights}
	err = m.successors(ctx, p, keys, a.cfg.Now())
	if err == nil {
		err = a.applyIssuers(ctx, head, m.ops)
	}
	if err != nil {
		a.giveUpRotation(ctx, by, m, keys, err)
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	// Crash point: recorded and not yet told. The next start finds the records and writes "recovered" for each.
	events := append(m.events(), audit.Event{
		Type: eventRotated, Outcome: audit.OK, By: by, Subject: string(p.role),
		Detail: rolloverDetail{Role: p.role, Serials: serials(m.made), SignsFrom: p.signsFrom},
	})
	if err := a.cfg.Audit.AppendAll(ctx, events...); err != nil {
		for _, i := range m.made {
			a.flights.leave(i.serial)
		}
		return nil, err
	}
	for _, i := range m.made {
		a.flights.end(i.serial)
	}
	a.cfg.Logger.Info("the authority has new certificates", "role", p.role, "signs_from", p.signsFrom, "by", by.Name)
	return m.made, storeError(a.reload(ctx))
}

// needKeys is why a decided rotation can't be signed. A new root of ours needs the old one's key as long as that can vouch for it.
func (a *Authority) needKeys(p planned) error {
	if p.role == ProfileRoot && p.root.cert.NotAfter.Sub(a.cfg.Now()) <= minTTL {
		return nil
	}
	return a.needKey(p.root)
}

// successors makes the certificates of a rotation: keys[0] is the new intermediate's, keys[1] the new root's.
func (m *maker) successors(ctx context.Context, p planned, keys []keyring.Key, now time.Time) error {
	parent := p.root
	if p.role == ProfileRoot {
		var err error
		if parent, err = m.make(ctx, ProfileRoot, keys[1], m.cfg.RootTTL, nil); err != nil {
			return err
		}
		// The old root vouches for the new one as long as it lives; one that has expired can't, and nobody would believe it.
		if left := p.root.cert.NotAfter.Sub(now); left > minTTL {
			if _, err := m.make(ctx, profileCross, keys[1], min(left, m.cfg.RootTTL), &p.root); err != nil {
				return err
			}
		}
	}
	_, err := m.make(ctx, ProfileIntermediate, keys[0], m.cfg.IntermediateTTL+max(0, p.signsFrom.Sub(now)), &parent)
	return err
}

// giveUpRotation tells that what a rotation had begun came to nothing, unless nobody knows, and removes its keys.
func (a *Authority) giveUpRotation(ctx context.Context, by countersign.Caller, m *maker, keys []keyring.Key, cause error) {
	ctx = context.WithoutCancel(ctx)
	if countersign.AsError(cause).Code == countersign.CodeUnknownOutcome {
		for _, serial := range m.begun {
			a.flights.leave(serial)
		}
		return // the keys may be those of recorded certificates: housekeeping looks later
	}
	for _, serial := range m.begun {
		a.abandon(ctx, order{by: by}, serial, "the rotation did not succeed")
	}
	for _, k := range keys {
		if err := a.cfg.Keys.Drop(ctx, by, k.ID); err != nil {
			a.cfg.Logger.Warn("a key that nothing needs is still there", "kid", k.ID, "err", err)
		}
	}
}

// applyIssuers makes one change of the authority's certificates real, if nobody else made one since head was read.
func (a *Authority) applyIssuers(ctx context.Context, head storage.Entry[generation], ops []storage.Op) error {
	cond := storage.Cond{Rev: head.Rev}
	if head.Rev == 0 {
		cond = storage.Cond{Absent: true}
	}
	op, err := generationTable().Put(generationKey, generation{N: head.Value.N + 1}, time.Time{}, cond)
	if err != nil {
		return err
	}
	_, err = a.cfg.Store.Apply(ctx, append(ops, op)...)
	return storeError(err)
}

// Rollback takes the last rotation back (RoleAdmin): a successor that waits goes with its root, as if it had never been;
// one that signs already signs no more, and the one before it signs again. What it signed stays good.
// Codes: CodeRole, CodeNoRollback, CodeBusy.
func (a *Authority) Rollback(ctx context.Context, by countersign.Caller) (Issuer, error) {
	i, err := a.rollback(ctx, by)
	if err != nil {
		return Issuer{}, a.deny(ctx, by, "rollback", err)
	}
	return i, nil
}

func (a *Authority) rollback(ctx context.Context, by countersign.Caller) (Issuer, error) {
	if by.Role < countersign.RoleAdmin {
		return Issuer{}, countersign.Errorf(countersign.CodeRole, "a rollback needs the role %s; the caller's is %s", countersign.RoleAdmin, by.Role)
	}
	a.rolling.Lock()
	defer a.rolling.Unlock()
	s, head, err := a.readIssuers(ctx)
	if err != nil {
		return Issuer{}, err
	}
	now := a.cfg.Now().UTC()
	i, err := planRollback(s, now)
	if err != nil {
		return Issuer{}, err
	}
	if s.state(i, now) == AuthorityPending {
		err = a.end(ctx, by, head, withRoot(s, i), eventWithdrawn, func(r *authorityRecord) { r.Retired = now })
	} else {
		err = a.end(ctx, by, head, []issuer{i}, eventWithdrawn, func(r *authorityRecord) { r.Withdrawn = now })
	}
	if err != nil {
		return Issuer{}, err
	}
	next := a.issuers.Load()
	i, _ = next.find(i.serial)
	return next.describe(i, now), nil
}

// Retire takes a root or intermediate out of bundle and chains (RoleAdmin), and destroys its key. It is refused while it
// signs or is to sign, and while a certificate of it lives (CodeIssuerInUse, which says who holds one).
func (a *Authority) Retire(ctx context.Context, by countersign.Caller, serial string) error {
	serial = strings.ToLower(serial)
	if err := a.retire(ctx, by, serial); err != nil {
		return a.deny(ctx, by, shortened(serial), err)
	}
	return nil
}

func (a *Authority) retire(ctx context.Context, by countersign.Caller, serial string) error {
	if by.Role < countersign.RoleAdmin {
		return countersign.Errorf(countersign.CodeRole, "retiring needs the role %s; the caller's is %s", countersign.RoleAdmin, by.Role)
	}
	a.rolling.Lock()
	defer a.rolling.Unlock()
	s, head, err := a.readIssuers(ctx)
	if err != nil {
		return err
	}
	now := a.cfg.Now().UTC()
	gone, err := planRetirement(s, serial, now)
	if err != nil {
		return err
	}
	if gone[0].Role == ProfileIntermediate {
		// Nobody is issued a certificate of it any more: it does not sign, and commit has a fence on its record.
		if _, holders, err := a.heldUntil(ctx, serial); err != nil || len(holders) > 0 {
			return errors.Join(err, stillHeld(serial, holders))
		}
	}
	return a.end(ctx, by, head, gone, eventRetired, func(r *authorityRecord) { r.Retired = now })
}

// stillHeld says who keeps an intermediate from being retired; nil if nobody does.
func stillHeld(serial string, holders []Holder) error {
	if len(holders) == 0 {
		return nil
	}
	var names []string
	var until time.Time
	for _, h := range holders {
		names = append(names, h.ID.Name())
		if h.Until.After(until) {
			until = h.Until
		}
	}
	more := ""
	if len(names) > 10 {
		more = fmt.Sprintf(" and %d more", len(names)-10)
		names = names[:10]
	}
	return countersign.Errorf(countersign.CodeIssuerInUse, "certificates of %s are held by %s%s, the last until %s",
		serial, strings.Join(names, ", "), more, until.UTC().Format(time.RFC3339)).
		WithHint("each leaves it with its next renewal; `countersign ca status` shows who is left")
}

// end writes a change of records in one Apply, tells it, and destroys the keys of those that are retired.
func (a *Authority) end(ctx context.Context, by countersign.Caller, head storage.Entry[generation], of []issuer, event string, change func(*authorityRecord)) error {
	var ops []storage.Op
	var retired []string
	for _, i := range of {
		change(&i.authorityRecord)
		op, err := authoritiesTable().Put(i.serial, i.authorityRecord, time.Time{}, storage.Cond{Rev: i.rev})
		if err != nil {
			return err
		}
		ops = append(ops, op)
		if !i.Retired.IsZero() && i.Role != profileCross {
			retired = append(retired, i.KeyID)
		}
	}
	told := audit.Event{
		Type: event, Outcome: audit.Intent, By: by, Subject: of[0].serial,
		Detail: rolloverDetail{Role: of[0].Role, Serials: serials(of)},
	}
	if _, err := a.cfg.Audit.Append(ctx, told); err != nil {
		return err
	}
	if err := a.applyIssuers(ctx, head, ops); err != nil {
		told.Outcome, told.Code = audit.Failed, countersign.AsError(err).Code
		if _, untold := a.cfg.Audit.Append(context.WithoutCancel(ctx), told); untold != nil {
			return untold
		}
		return err
	}
	ctx = context.WithoutCancel(ctx)
	told.Outcome = audit.OK
	if _, err := a.cfg.Audit.Append(ctx, told); err != nil {
		return err
	}
	if err := a.reload(ctx); err != nil {
		return storeError(err)
	}
	// Crash point: a key without a certificate is left, and housekeeping finds it.
	if len(retired) == 0 {
		return nil
	}
	return a.cfg.Keys.Drop(ctx, by, retired...)
}

func serials(of []issuer) []string {
	out := make([]string, 0, len(of))
	for _, i := range of {
		out = append(out, i.serial)
	}
	return slices.Clip(out)
}
