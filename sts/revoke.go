package sts

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

const (
	maxReason = 256
	maxName   = 400 // bytes of a jti or txn; ours have fewer
	maxIssuer = 1024
)

// RevokeRequest says what an operator revokes: exactly one of JTI, Transaction, Subject, SessionID and Service.
type RevokeRequest struct {
	JTI         string // the token with it, and all that were made from it
	Transaction string // all tokens of one user request
	Subject     string // all tokens of the sub, as it stands in our tokens, that were issued until now
	SessionID   string // all tokens of one session at Issuer
	Issuer      string // the issuer identifier of SessionID
	Service     string // name or ID: all tokens issued until now that it asked for, passed on, or that are for it
	Reason      string // up to 256 bytes that print
}

// Revocation is a revocation as operators see it.
type Revocation struct {
	countersign.Revocation
	Name   string    // the sub or sid itself, whose hash is the Value
	Issuer string    // of a session
	Made   time.Time // whole microseconds
	Reason string
	By     string
}

func (r revocation) shown() Revocation {
	return Revocation{r.Revocation, r.Name, r.Issuer, time.UnixMicro(r.Made).UTC(), r.Reason, r.By}
}

// Revoke revokes what an operator names. From its return on no exchange succeeds here with what is revoked, introspection
// says that it is not active, and the feed has it. To revoke again what is revoked is no error.
// Codes: CodeRole, CodeRevocation, CodeRevocationsFull, those of the store and the audit log.
func (s *Service) Revoke(ctx context.Context, by countersign.Caller, r RevokeRequest) (Revocation, error) {
	order, err := r.order(by, s.cfg.Policy().TrustDomain)
	if err == nil && by.Role < countersign.RoleOperator {
		err = countersign.Errorf(countersign.CodeRole, "revoking tokens needs the role operator, not %s", by.Role)
	}
	if err != nil {
		return Revocation{}, s.refuse(ctx, by, "", err)
	}
	made, err := s.revoke(ctx, order)
	if err != nil {
		return Revocation{}, err
	}
	return made.shown(), nil
}

// order is the revocation that is asked for. It is pure.
func (r RevokeRequest) order(by countersign.Caller, trustDomain string) (order, error) {
	wrong := func(format string, args ...any) (order, error) {
		return order{}, countersign.Errorf(countersign.CodeRevocation, format, args...)
	}
	o := order{by: by}
	o.Reason = r.Reason
	named := 0
	for _, k := range []struct {
		kind  countersign.RevocationKind
		value string
		most  int
	}{
		{countersign.RevokeJTI, r.JTI, maxName}, {countersign.RevokeTransaction, r.Transaction, maxName}, {countersign.RevokeSubject, r.Subject, 2 * maxSub},
		{countersign.RevokeSession, r.SessionID, maxSub}, {countersign.RevokeService, r.Service, maxName},
	} {
		if k.value == "" {
			continue
		}
		named++
		if o.Kind, o.Value = k.kind, k.value; !oneName(k.value, k.most) {
			return wrong("the %s must be text of at most %d bytes", k.kind, k.most)
		}
	}
	switch {
	case named != 1:
		return wrong("%d things are named; it must be one of jti, txn, sub, sid and service", named)
	case (r.Issuer != "") != (o.Kind == countersign.RevokeSession):
		return wrong("a sid, and nothing else, needs its issuer")
	case r.Issuer != "" && !oneName(r.Issuer, maxIssuer):
		return wrong("the issuer must be text of at most %d bytes", maxIssuer)
	case len(r.Reason) > maxReason || strings.ContainsFunc(r.Reason, func(c rune) bool { return !unicode.IsPrint(c) }):
		return wrong("the reason must be printable text of at most %d bytes", maxReason)
	}
	switch o.Kind {
	case countersign.RevokeSubject:
		o.Name, o.Value = o.Value, countersign.RevokedSubject(o.Value)
	case countersign.RevokeSession:
		o.Name, o.Issuer, o.Value = o.Value, r.Issuer, countersign.RevokedSession(r.Issuer, o.Value)
	case countersign.RevokeService:
		id, err := serviceID(trustDomain, r.Service)
		if err != nil {
			return wrong("%s is no service of %s", quote(r.Service), trustDomain)
		}
		o.Value = id.String()
	}
	return o, nil
}

// serviceID is the ID of a service by its name or ID, whether the policy has it or not: tokens outlive their service.
func serviceID(trustDomain, nameOrID string) (countersign.ID, error) {
	id, err := countersign.ParseID(nameOrID)
	if err != nil {
		return countersign.NewServiceID(trustDomain, nameOrID)
	}
	if id.Kind() != countersign.ServiceID || id.TrustDomain() != trustDomain {
		return countersign.ID{}, errors.New("no service's")
	}
	return id, nil
}

// refuse records the refusal of a caller who proved himself, and gives it.
func (s *Service) refuse(ctx context.Context, by countersign.Caller, subject string, cause error) error {
	e := countersign.AsError(cause)
	if by.Method == countersign.Anonymous {
		s.cfg.Audit.Stranger(e.Code, by.Addr)
		return cause
	}
	_, err := s.cfg.Audit.Append(context.WithoutCancel(ctx), audit.Event{
		Type: eventRevoked, Outcome: audit.Denied, By: by, Subject: subject, Code: e.Code,
	})
	if err != nil {
		return notRecorded(err)
	}
	return cause
}

// RevokeToken is RFC 7009 2: the client to which a token was issued (its client_id) revokes it, and with it all that were
// made from it. A token that is over, unknown, revoked already or somebody else's is no error and nothing happens (2.2).
// One of ours that was issued to another client is refused (2.1) as invalid_grant, whose definition names that case
// (RFC 6749 5.2). Codes: those of the client, CodeNotTheClient, CodeTokenKind, CodeRevocationsFull, those of the store and
// the audit log.
func (s *Service) RevokeToken(ctx context.Context, by countersign.Caller, r TokenForm) error {
	p, client, err := s.client(by, r.ClientID)
	if err != nil {
		return s.refuse(ctx, by, "", err)
	}
	token, err := s.relay(p, r.Token, s.cfg.Now())
	if err != nil || token == nil {
		return err
	}
	subject := revocationKey(countersign.RevokeJTI, token.facts.ID)
	if token.client != client.ID.String() {
		return s.refuse(ctx, by, subject, countersign.Errorf(countersign.CodeNotTheClient, "the token was issued to another client"))
	}
	// What is made from a token never outlives it.
	until := token.expires.Add(skew).UTC()
	if s.revocations.covers(countersign.RevokeJTI, token.facts.ID, until) {
		return nil
	}
	o := order{by: by}
	o.Kind, o.Value, o.Until, o.Client = countersign.RevokeJTI, token.facts.ID, until, client.ID.String()
	o.Reason = "by its client"
	_, err = s.revoke(ctx, o)
	return err
}

// client is who authenticated as a client, by the policy in force.
func (s *Service) client(by countersign.Caller, clientID string) (*countersign.Policy, *countersign.Service, error) {
	x := &exchange{by: by, request: Request{ClientID: clientID}, policy: s.cfg.Policy()}
	client, step := s.admit(x)
	if !x.add(StepClient, step) {
		return nil, nil, x.trace.Err()
	}
	return x.policy, client, nil
}

// Revocations lists those in force, the newest first: at most limit that were made before `before`, zero for the first
// page. next is the before of the next page, zero at the end.
func (s *Service) Revocations(ctx context.Context, before time.Time, limit int) (page []Revocation, next time.Time, err error) {
	all, _ := s.revocations.byMade()
	end := len(all)
	if !before.IsZero() {
		end, _ = slices.BinarySearchFunc(all, before.UnixMicro(), func(k kept, made int64) int { return cmp.Compare(k.made, made) })
	}
	now := s.cfg.Now()
	for n := end - 1; n >= 0; n-- {
		if len(page) == limit {
			return page, page[limit-1].Made, nil
		}
		if !now.Before(all[n].Until) {
			continue
		}
		entry, err := revocationsTable().Get(ctx, s.cfg.Store, revocationKey(all[n].Kind, all[n].Value))
		switch {
		case errors.Is(err, storage.ErrNotFound): // over by the store's clock, or not stored yet
			entry.Value = revocation{Revocation: all[n].Revocation, Made: all[n].made}
		case err != nil:
			return nil, time.Time{}, storeError(err)
		}
		page = append(page, entry.Value.shown())
	}
	return page, time.Time{}, nil
}
