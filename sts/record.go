package sts

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

const (
	maxDropped   = 1 << 10 // bytes of one dropped claim that the audit keeps as it is
	denialWindow = 10 * time.Second
)

// issuedDetail is the Detail of token.issued: who called what for whom, by which rule, and what came before.
type issuedDetail struct {
	Grant    string    `json:"grant"` // the grant type
	Client   string    `json:"client"`
	Audience string    `json:"audience"`
	Scope    string    `json:"scope"`
	Rule     string    `json:"rule"`
	Policy   int       `json:"policy"` // the version that decided
	Txn      string    `json:"txn"`
	JTI      string    `json:"jti"`
	Expires  time.Time `json:"expires"`
	KID      string    `json:"kid"`
	Chain    []string  `json:"chain,omitempty"` // act, the client first
	Bound    bool      `json:"bound,omitempty"` // to the certificate whose serial stands under `by`
	subjectDetail
	Asked     asked  `json:"asked,omitzero"`
	Sub       string `json:"sub"`
	SubIssuer string `json:"sub_iss"`
}

// subjectDetail is what a record tells of the subject token.
type subjectDetail struct {
	SHA256  string                     `json:"subject_sha256,omitempty"` // of its text
	Parent  string                     `json:"parent,omitempty"`         // its jti, if it is ours
	Session string                     `json:"sid,omitempty"`
	Dropped map[string]json.RawMessage `json:"dropped,omitempty"` // jti, act, cnf of an external one; long ones by size and hash

	// What `policy simulate` needs to decide again, and no claim beyond: see [ReadExchange].
	Held    []string  `json:"held,omitempty"`        // the scopes that counted
	Cut     []string  `json:"cut,omitempty"`         // those that the policy does not let its issuer assert
	Kind    tokenKind `json:"kind,omitempty"`        // of an external one: how it was sent
	Aud     []string  `json:"subject_aud,omitempty"` // of an external one: by which the client takes it
	Passed  []string  `json:"passed,omitempty"`      // of one of ours: its act, the newest first
	Ends    time.Time `json:"subject_exp,omitzero"`  // its exp
	MayAct  string    `json:"may_act,omitempty"`     // "ok": it names the client; "no": somebody else
	ActedBy string    `json:"actor,omitempty"`       // of the actor token, if one was sent: whom it proves, or "nobody"
}

// deniedDetail is the Detail of token.denied.
type deniedDetail struct {
	Grant  string `json:"grant,omitempty"`
	Client string `json:"client,omitempty"`
	Asked  asked  `json:"asked,omitzero"`
	Policy int    `json:"policy"`
	Msg    string `json:"msg"`
	Hint   string `json:"hint,omitempty"`
	Steps  []Step `json:"steps"`
	subjectDetail
	Sub       string `json:"sub,omitempty"`
	SubIssuer string `json:"sub_iss,omitempty"`
	Txn       string `json:"txn,omitempty"`
}

// asked is what the client wanted, in its own words.
type asked struct {
	Audience []string `json:"audience,omitempty"`
	Resource []string `json:"resource,omitempty"`
	Scope    string   `json:"scope,omitempty"`
	ClientID string   `json:"client_id,omitempty"`
}

// recordIssued makes the token's record durable. Crash point: after it and before the answer there is a record of a token
// that nobody got, never a token without a record.
func (s *Service) recordIssued(ctx context.Context, x *exchange) error {
	if err := x.draftRecord(); err != nil {
		return countersign.Errorf(countersign.CodeInternal, "internal error").Because(err)
	}
	return notRecorded(s.cfg.Audit.AppendAll(ctx, audit.Event{
		Type: "token.issued", Outcome: audit.OK, By: x.by, Subject: x.grant.Audience.Name,
		Detail: issuedRecord{x.record, x.token.transaction, x.token.id, x.token.kid, x.grant.Expires},
	}))
}

// draftRecord writes what the record has in common with that of every token of the same grant.
func (x *exchange) draftRecord() (err error) {
	if x.ruling != nil {
		x.record = x.ruling.record
		return nil
	}
	g := &x.grant
	detail := issuedDetail{
		Grant: x.request.GrantType, Client: g.Client.ID.String(), Audience: g.Audience.Name,
		Scope: strings.Join(g.Scopes, " "), Rule: ruleOf(g.Call), Policy: x.policy.Version,
		Chain: g.Act.Chain(), Bound: g.Thumbprint != nil,
		subjectDetail: x.subjectDetail(), Asked: x.asked(), Sub: g.Sub, SubIssuer: g.SubIssuer,
	}
	x.record, err = detail.draft()
	return err
}

// recordDenied makes the denial's record durable and returns the denial. The client's hanging up does not end it: probing
// must not go unrecorded.
func (s *Service) recordDenied(ctx context.Context, x *exchange, cause error) error {
	denial := countersign.AsError(cause)
	if x.by.Method == countersign.Anonymous {
		s.cfg.Audit.Stranger(denial.Code, x.by.Addr)
		return denial
	}
	outcome := audit.Denied
	if denial.Kind == countersign.Unavailable || denial.Kind == countersign.Internal {
		outcome = audit.Failed
	}
	s.explain(x)
	detail := deniedDetail{
		Grant: x.request.GrantType, Client: x.by.ID.String(), Policy: x.policy.Version,
		Msg: denial.Msg, Hint: denial.Hint, Steps: x.trace.Steps, subjectDetail: x.subjectDetail(),
		Asked: x.asked(),
	}
	if x.subject != nil {
		detail.Sub, detail.SubIssuer, detail.Txn = x.subject.Sub, x.subject.SubIssuer, x.subject.Transaction
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), denialWindow)
	defer cancel()
	err := s.cfg.Audit.AppendAll(ctx, audit.Event{
		Type: "token.denied", Outcome: outcome, By: x.by, Subject: x.target(), Code: denial.Code, Detail: detail,
	})
	if err != nil {
		return notRecorded(err)
	}
	return denial
}

// notRecorded is the answer instead of one that has no durable record.
func notRecorded(err error) error {
	var known *countersign.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return countersign.Errorf(countersign.CodeAudit, "the audit log can't be written").Because(err)
}

// target is the one service that was asked for, by its name, if that much is known.
func (x *exchange) target() string {
	if len(x.request.Audiences)+len(x.request.Resources) == 0 {
		return ""
	}
	to, step := targetOf(x.policy, x.request.Audiences, x.request.Resources)
	if !step.OK {
		return ""
	}
	return to.Name
}

func (x *exchange) asked() asked {
	return asked{
		Audience: x.request.Audiences, Resource: x.request.Resources,
		Scope: strings.Join(x.request.Scopes, " "), ClientID: x.request.ClientID,
	}
}

func (x *exchange) subjectDetail() subjectDetail {
	var d subjectDetail
	if x.request.SubjectToken != "" {
		sum := x.subjectDigest()
		d.SHA256 = hex.EncodeToString(sum[:])
	}
	if x.subject != nil {
		d.Parent, d.Session = x.subject.ID, x.subject.SessionID
		d.Dropped = bounded(x.subject.Dropped)
		d.Held, d.Cut, d.Aud, d.Passed, d.Ends = x.subject.Scopes, x.subject.Cut, x.subject.Audiences, x.subject.Act.Chain(), x.subject.Expires
		d.MayAct = x.mayAct
		if x.subject.External != nil {
			d.Kind = kindOf(x.request.SubjectTokenType)
		}
	}
	d.ActedBy = x.actor
	return d
}

// bounded keeps short claims and replaces long ones: what an issuer puts into a token must not fill the log.
func bounded(claims map[string]json.RawMessage) map[string]json.RawMessage {
	kept := maps.Clone(claims)
	for name, raw := range kept {
		if len(raw) > maxDropped {
			kept[name] = json.RawMessage(`{"bytes":` + strconv.Itoa(len(raw)) + `,"sha256":"` + digest(string(raw)) + `"}`)
		}
	}
	return kept
}
