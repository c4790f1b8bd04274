package sts

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

// What a record says of may_act and of the actor token.
const (
	mayActOK     = "ok"
	mayActNo     = "no"
	provesNobody = "nobody"
)

// Exchange is a token request as the audit log remembers it: enough to decide it again under another policy, but for
// the claims, which are not kept. A condition (`when`) over claims can therefore not be decided again.
type Exchange struct {
	Seq       uint64
	At        time.Time
	RequestID string
	Client    countersign.ID
	Machine   bool // client_credentials

	Audiences, Resources, Scopes []string // as asked
	Subject                      *Subject // nil: none, or one that never was verified
	SubjectIssuer                string   // the URL of an external token's issuer; "" for one of ours
	SubjectKind                  string   // of an external token: a word of the issuer's `tokens`; "" is not judged

	ActorSent bool
	Actor     countersign.ID

	// How it ended, by the policy of then.
	Allowed  bool
	Policy   int // the version that decided
	Target   string
	Code     countersign.Code // of a denial
	Step     string           // of a denial: the one that failed
	Change   *Change          // of a denial
	Granted  []string
	Lifetime time.Duration
	Token    string // the hash of the subject token: it tells one from another
}

// recorded is the union of what records of token requests hold.
type recorded struct {
	Grant    string    `json:"grant"`
	Client   string    `json:"client"`
	Audience string    `json:"audience"`
	Scope    string    `json:"scope"`
	Policy   int       `json:"policy"`
	Expires  time.Time `json:"expires"`
	Asked    asked     `json:"asked"`
	Steps    []Step    `json:"steps"`
	Sub      string    `json:"sub"`
	SubIss   string    `json:"sub_iss"`
	Txn      string    `json:"txn"`
	subjectDetail
}

// ReadExchange reads a record of type token.issued or token.denied; false: it is none, or too old to hold what is needed.
func ReadExchange(r audit.Record) (Exchange, bool) {
	if r.Type != "token.issued" && r.Type != "token.denied" {
		return Exchange{}, false
	}
	var d recorded
	if json.Unmarshal(r.Detail, &d) != nil {
		return Exchange{}, false
	}
	id, err := countersign.ParseID(d.Client)
	if err != nil {
		return Exchange{}, false
	}
	x := Exchange{
		Seq: r.Seq, At: r.Time, RequestID: r.RequestID, Client: id, Machine: d.Grant == GrantClientCredentials,
		Audiences: d.Asked.Audience, Resources: d.Asked.Resource, Scopes: strings.Fields(d.Asked.Scope),
		Allowed: r.Outcome == audit.OK, Policy: d.Policy, Target: r.Subject, Code: r.Code, Token: d.SHA256,
	}
	if x.ActorSent = d.ActedBy != ""; x.ActorSent && d.ActedBy != provesNobody {
		x.Actor, _ = countersign.ParseID(d.ActedBy)
	}
	if x.Allowed {
		x.Granted, x.Lifetime = strings.Fields(d.Scope), d.Expires.Sub(r.Time.Truncate(time.Second))
		if x.Machine == !d.Ends.IsZero() {
			return Exchange{}, false // written by a version that kept too little
		}
	} else if n := len(d.Steps); n > 0 {
		x.Step, x.Change = d.Steps[n-1].Name, d.Steps[n-1].Change
	}
	if !d.Ends.IsZero() {
		x.subject(d)
	}
	return x, true
}

func (x *Exchange) subject(d recorded) {
	x.Subject = &Subject{
		Sub: d.Sub, SubIssuer: d.SubIss, Scopes: d.Held, Cut: d.Cut, Audiences: d.Aud, Expires: d.Ends,
		Transaction: d.Txn, ID: d.Parent, SessionID: d.Session,
	}
	for _, id := range slices.Backward(d.Passed) {
		x.Subject.Act = &Actor{Sub: id, Act: x.Subject.Act}
	}
	if len(d.Aud) > 0 {
		x.SubjectIssuer, x.SubjectKind = d.SubIss, string(d.Kind)
	}
	switch d.MayAct {
	case mayActOK:
		x.Subject.MayAct = json.RawMessage(`{"sub":"` + x.Client.String() + `"}`)
	case mayActNo:
		x.Subject.MayAct = json.RawMessage(`{}`)
	}
}

// Judged tells whether everything that decided the request is known, so that it can be decided again: it was refused, if
// it was, by a step of [Decide] that is no question of how the client proved itself.
func (x Exchange) Judged() bool {
	switch {
	case x.Allowed:
		return true
	case x.Step == StepClient:
		return x.Machine && (x.Code == countersign.CodeClient || x.Code == countersign.CodeServiceDisabled)
	case x.Step == StepCall, x.Step == StepScope, x.Step == StepConditions, x.Step == StepLifetime:
		return x.Machine || x.Subject != nil
	}
	return false
}

// Decide judges the request by another policy, as if it came at the time when it did. ourIssuer is our issuer identifier.
// The trace begins with step 2's verdict on what the record tells of the subject token.
func (x Exchange) Decide(p *countersign.Policy, ourIssuer string) (Grant, Trace) {
	in := Input{
		Now: x.At, Issuer: ourIssuer, Client: x.Client, Machine: x.Machine, ActorSent: x.ActorSent, Actor: x.Actor,
		Audiences: x.Audiences, Resources: x.Resources, Scopes: x.Scopes,
	}
	client, step := admitClient(p, x.Client)
	step.Name = StepClient
	if step.OK && x.Subject != nil {
		s := *x.Subject
		if in.Subject = &s; x.SubjectIssuer != "" {
			if refusal := s.underPolicy(p, client, x.SubjectIssuer, x.SubjectKind); refusal != nil {
				failedStep := failed(StepSubject, refusal)
				return Grant{}, Trace{Steps: []Step{step, advised(failedStep)}}
			}
		} else if _, ok := p.Issuer(s.SubIssuer); !ok && s.SubIssuer != ourIssuer {
			refusal := countersign.Errorf(countersign.CodeSubjectIssuer, "the user's issuer %s is not in the policy", quote(s.SubIssuer))
			return Grant{}, Trace{Steps: []Step{step, advised(failed(StepSubject, refusal))}}
		}
	}
	return Decide(p, in)
}

// underPolicy is what readExternal would make of the token under p, as far as the record tells.
func (s *Subject) underPolicy(p *countersign.Policy, client *countersign.Service, iss, kind string) error {
	issuer, err := acceptedFrom(p, client, iss)
	if err != nil {
		return err
	}
	if kind != "" && !slices.Contains(issuer.Tokens, kind) {
		return countersign.Errorf(countersign.CodeSubjectKind, "%s of the issuer %s are not taken", tokenKind(kind).plural(), issuer.Name)
	}
	wanted := client.AudiencesFor(issuer.Name)
	if len(intersect(s.Audiences, wanted)) == 0 {
		return countersign.Errorf(countersign.CodeSubjectAudience, "the subject token is addressed to %s; %s takes tokens of %s for %s",
			list(s.Audiences), client.Name, issuer.Name, list(wanted))
	}
	asserted := slices.Concat(s.Scopes, s.Cut)
	s.External, s.Scopes, s.Cut = issuer, intersect(asserted, issuer.Scopes), without(asserted, issuer.Scopes)
	return nil
}
