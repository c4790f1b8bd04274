package sts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// AssertionType is the one client_assertion_type that is taken (RFC 7523 2.2).
const AssertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

const (
	typAssertion  = "client-authentication+jwt" // rfc7523bis 4
	maxJTI        = 256                         // bytes
	assertionLife = 5 * time.Minute             // the farthest exp of an assertion that a client signs itself
	workloadLife  = 24 * time.Hour              // of a workload's token: kubelet renews after a day at the latest
)

// Credentials are what the form of an OAuth endpoint says about its sender. Empty means absent.
type Credentials struct {
	ClientID  string
	Assertion string // a JWT that is to prove the client; nothing of it is verified
	Secret    bool   // a client_secret was sent, which nobody has here
}

// ParseCredentials reads them from any OAuth endpoint's form: none of the parameters twice, an assertion always with its type
// (RFC 7521 4.2). What they prove, [Service.Client] judges.
func ParseCredentials(form url.Values) (Credentials, error) {
	f := fields{form: form}
	for _, name := range []string{"client_id", "client_assertion", "client_assertion_type", "client_secret"} {
		if len(form[name]) > 1 {
			f.fail(countersign.CodeTokenRequest, "the parameter %s stands more than once", name)
		}
	}
	c := Credentials{ClientID: f.one("client_id", maxWord), Assertion: f.one("client_assertion", jwt.MaxToken), Secret: form.Get("client_secret") != ""}
	switch kind := f.one("client_assertion_type", maxWord); {
	case (kind == "") != (c.Assertion == ""):
		f.fail(countersign.CodeTokenRequest, "client_assertion and client_assertion_type go together")
	case kind != "" && kind != AssertionType:
		f.fail(countersign.CodeAssertion, "client assertions of the type %s are not taken", quote(kind))
	}
	if f.err != nil {
		return Credentials{}, f.err
	}
	return c, nil
}

// Client proves by a client assertion who sends a request (RFC 7521 4.2, RFC 7523 3 as rfc7523bis revises it). by is what the
// transport proved: nobody, or the service whose certificate stands next to the assertion. Then both must be the same
// service, and the certificate stays in the result as what tokens are bound to.
//
// An assertion is taken once: its use is durable before Client returns. It is recorded after all else was found right, so that
// nobody who can't sign uses up another's jti. Codes: CodeAssertion and those after it, CodeClient, CodeClientMismatch,
// CodeServiceDisabled, CodeIssuerDown.
func (s *Service) Client(ctx context.Context, by countersign.Caller, c Credentials) (countersign.Caller, error) {
	a, err := s.prove(ctx, c.Assertion)
	if err != nil {
		return by, err
	}
	id := a.client.ID
	if by.Method != countersign.Anonymous && by.ID != id {
		return by, countersign.Errorf(countersign.CodeClientMismatch, "the client assertion is one of %s, the certificate of %s", id, by.ID).
			WithHint("send one of them, or both of one service")
	}
	if c.ClientID != "" && c.ClientID != id.String() {
		return by, countersign.Errorf(countersign.CodeClientMismatch, "client_id is %s, the client assertion's is %s", quote(c.ClientID), id).
			WithHint("send the ID as client_id, or leave it out")
	}
	if err := s.spend(ctx, a); err != nil {
		return by, err
	}
	by.Method, by.ID, by.Name, by.Assertion = countersign.ByAssertion, id, id.String(), a.id
	return by, nil
}

// proof is an assertion in which everything was found right, but for whether it was used before.
type proof struct {
	client *countersign.Service
	issuer string    // whose jti it is: the client itself, or an issuer of the policy
	id     string    // the jti; of a workload's token without one, a hash of what is signed
	until  time.Time // exp
}

// prove judges an assertion by the policy that is in force when it is done: the keys of an issuer may have to be waited for,
// and a key that was taken back meanwhile must prove nobody.
func (s *Service) prove(ctx context.Context, compact string) (proof, error) {
	for n := 1; ; n++ {
		p := s.cfg.Policy()
		a, err := s.judgeAssertion(ctx, p, compact)
		switch {
		case err != nil || s.cfg.Policy() == p:
			return a, err
		case n == maxJudgments:
			return proof{}, countersign.Errorf(countersign.CodeBusy, "the policy changed %d times during the authentication", n).After(time.Second)
		}
	}
}

func (s *Service) judgeAssertion(ctx context.Context, p *countersign.Policy, compact string) (proof, error) {
	t, iss, err := s.parseAssertion(compact, clientAssertion)
	if err != nil {
		return proof{}, err
	}
	var a proof
	issuer, external := p.Issuer(iss)
	if external {
		a, err = s.judgeWorkload(ctx, p, issuer, t, clientAssertion)
	} else {
		a, err = s.judgeSelfSigned(p, iss, t)
	}
	if err != nil {
		return proof{}, err
	}
	if _, step := admitClient(p, a.client.ID); !step.OK {
		return proof{}, Trace{Steps: []Step{step}}.Err()
	}
	return a, nil
}

// parseAssertion tells whose a JWT is that is to prove a service. Nothing of it is verified.
func (s *Service) parseAssertion(compact string, e evidence) (t *jwt.Token, iss string, err error) {
	if t, err = jwt.Parse(compact); err != nil {
		return nil, "", e.wrong("%s", err)
	}
	// A typ of another kind of token is refused, none is not (rfc7523bis 4: refusing its absence is not recommended).
	if t.Typ != "" && !t.HasType(typGeneric) && !t.HasType(typAssertion) {
		return nil, "", e.wrong("a token of the type %s is none", quote(t.Typ))
	}
	if iss, _, err = t.Claims.String("iss"); err != nil {
		return nil, "", e.wrong("%s", err)
	}
	if iss == s.cfg.Issuer {
		return nil, "", e.wrong("tokens of this issuer prove no client")
	}
	return t, iss, nil
}

// judgeSelfSigned judges an assertion that a client signed with its own key (private_key_jwt): iss and sub are its ID.
// That there is no such client, that it has no keys and that the signature is none of theirs look the same from outside.
func (s *Service) judgeSelfSigned(p *countersign.Policy, iss string, t *jwt.Token) (proof, error) {
	id, err := countersign.ParseID(iss)
	if err != nil {
		return proof{}, clientAssertion.unknownKey(err)
	}
	client, ok := p.ServiceByID(id)
	if !ok || client.ClientKeys == "" {
		return proof{}, clientAssertion.unknownKey(errors.New("no service with client keys has this ID"))
	}
	set, err := s.clientKeys.set(p, client)
	if err != nil {
		return proof{}, clientAssertion.unknownKey(err)
	}
	if err := t.Verify(set, jwt.Algorithms()); err != nil {
		return proof{}, clientAssertion.unknownKey(err)
	}
	if sub, _, err := t.Claims.String("sub"); err != nil || sub != iss {
		return proof{}, clientAssertion.wrong("its sub is not its iss")
	}
	until, err := s.checkAssertion(t, assertionLife, clientAssertion)
	if err != nil {
		return proof{}, err
	}
	if !t.Claims.Has("jti") {
		return proof{}, clientAssertion.wrong("it has no jti")
	}
	jti, err := assertionID(t, clientAssertion)
	return proof{client: client, issuer: id.String(), id: jti, until: until}, err
}

// judgeWorkload judges a token of a workloads issuer that stands in for an assertion of the one service that is enrolled
// with exactly its sub. Issuers of another use prove no client, whatever they sign.
func (s *Service) judgeWorkload(ctx context.Context, p *countersign.Policy, issuer *countersign.Issuer, t *jwt.Token, e evidence) (proof, error) {
	if issuer.Use != countersign.UseWorkloads {
		return proof{}, e.unknownKey(errors.New("the issuer " + issuer.Name + " is not for workloads"))
	}
	set, err := s.issuers.keys(ctx, p, issuer, t.KID)
	if err != nil {
		return proof{}, err
	}
	if err := t.Verify(set, issuer.Algorithms); err != nil {
		return proof{}, e.unknownKey(err)
	}
	if t.Claims.Has("events") {
		return proof{}, e.wrong("a token with events is a security event")
	}
	sub, _, err := t.Claims.String("sub")
	if err != nil || sub == "" {
		return proof{}, e.wrong("it has no sub")
	}
	until, err := s.checkAssertion(t, workloadLife, e)
	if err != nil {
		return proof{}, err
	}
	client, err := enrolled(p, issuer, sub)
	if err != nil {
		return proof{}, err
	}
	jti, err := assertionID(t, e)
	return proof{client: client, issuer: issuer.URL, id: jti, until: until}, err
}

// enrolled is the one service that the policy enrols for a workload. Of several none is chosen.
func enrolled(p *countersign.Policy, issuer *countersign.Issuer, sub string) (*countersign.Service, error) {
	var found *countersign.Service
	for i := range p.Services {
		if !slices.Contains(p.Services[i].Enrol, countersign.Enrol{Issuer: issuer.Name, Subject: sub}) {
			continue
		}
		if found != nil {
			return nil, countersign.Errorf(countersign.CodeWorkload, "several services are enrolled for this workload")
		}
		found = &p.Services[i]
	}
	if found == nil {
		return nil, countersign.Errorf(countersign.CodeWorkload, "no service is enrolled for the workload %s of %s", quote(sub), issuer.Name).
			WithHint("`enrol` of the service in the policy must name the issuer and exactly this sub")
	}
	return found, nil
}

// checkAssertion judges what all assertions have in common, and tells when this one is over. aud names this issuer and
// nothing besides: a token that others take too could be played on to us by one of them (rfc7523bis 4, which lets it be an
// array of that one value).
func (s *Service) checkAssertion(t *jwt.Token, life time.Duration, e evidence) (time.Time, error) {
	aud, err := t.Claims.Audience()
	if err != nil {
		return time.Time{}, e.wrong("%s", err)
	}
	if len(aud) != 1 || aud[0] != s.cfg.Issuer {
		return time.Time{}, countersign.Errorf(countersign.CodeAssertionAud, "the %s is addressed to %s, not to this issuer alone", e, quote(strings.Join(aud, " "))).
			WithHint("its aud must be %s and nothing else; not the URL of an endpoint", s.cfg.Issuer)
	}
	now := s.cfg.Now()
	err = t.Claims.CheckTimes(now, skew)
	var refusal *jwt.Error
	if errors.As(err, &refusal) {
		switch refusal.Reason {
		case jwt.ReasonExpired, jwt.ReasonNotYet, jwt.ReasonFuture:
			return time.Time{}, countersign.Errorf(countersign.CodeAssertionTime, "the %s is not valid now: %s", e, refusal.Msg).
				WithHint("make a fresh one; if it is fresh, compare the clocks")
		}
		return time.Time{}, e.wrong("%s", refusal)
	}
	exp, _, err := t.Claims.Time("exp")
	if err != nil {
		return time.Time{}, e.wrong("%s", err)
	}
	if exp.After(now.Add(life + skew)) {
		return time.Time{}, countersign.Errorf(countersign.CodeAssertionTime, "the %s is valid until %s; at most %s from now are taken", e, exp.Format(time.RFC3339), life).
			WithHint("set exp nearer")
	}
	return exp, nil
}

// assertionID names what was signed: by its jti, or by a hash of the payload. The signature is no part of it, because one
// content can have several.
func assertionID(t *jwt.Token, e evidence) (string, error) {
	if !t.Claims.Has("jti") {
		sum := sha256.Sum256(t.Payload)
		return "sha256:" + hex.EncodeToString(sum[:]), nil
	}
	jti, _, err := t.Claims.String("jti")
	if err != nil || jti == "" || len(jti) > maxJTI || strings.ContainsFunc(jti, unicode.IsControl) {
		return "", e.wrong("its jti is not a string of 1 to %d bytes without control characters", maxJTI)
	}
	return jti, nil
}

// evidence is what a JWT that proves a service is called: by the way in which it came.
type evidence string

const (
	clientAssertion evidence = "client assertion"
	workloadToken   evidence = "workload token"
)

func (e evidence) wrong(format string, args ...any) error {
	return countersign.Errorf(countersign.CodeAssertion, "the "+string(e)+": "+format, args...)
}

// unknownKey tells strangers the same whatever is wrong; the log has the cause.
func (e evidence) unknownKey(cause error) error {
	return countersign.Errorf(countersign.CodeAssertionKey, "the %s is not signed with a key of a client", e).
		WithHint("iss and kid must name a key that the policy has for this client").Because(cause)
}
