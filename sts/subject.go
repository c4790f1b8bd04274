package sts

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	maxSub     = 255 // bytes of an external sub, and of a sid (OpenID Connect Core 2)
	skew       = time.Minute
	typAccess  = "at+jwt"
	typGeneric = "JWT"
)

// Subject is a verified subject token, reduced to what an exchange may use of it.
type Subject struct {
	External *countersign.Issuer // the issuer; nil: a token of ours

	Sub, SubIssuer string // as they will stand in the minted token
	Scopes         []string
	Cut            []string // asserted by an external token, but not among its issuer's `scopes`: they count for nothing
	Audiences      []string // of an external token: those of its aud by which the client takes it
	Expires        time.Time
	Transaction    string // of a token of ours
	ID             string // jti of a token of ours
	SessionID      string
	Act            *Actor // of a token of ours: the services that it has passed through
	MayAct         json.RawMessage
	Carry          map[string]json.RawMessage
	Payload        json.RawMessage // all claims, as they stood in the token: for `when`

	// Facts are what revocations know the token by. They are to be looked up again whenever time has passed.
	Facts countersign.TokenFacts

	// Dropped holds of an external token what no relay token keeps, for the audit: jti, act, cnf.
	Dropped map[string]json.RawMessage
}

// Machine tells whether there is no user behind the token: it was made by client_credentials under our issuer.
func (s *Subject) Machine(ourIssuer string) bool { return s.SubIssuer == ourIssuer }

func (s *Subject) rule() string {
	if s.External != nil {
		return "issuer " + s.External.Name
	}
	return ""
}

func (s *Subject) describe() string {
	if s.External != nil {
		return "a token of issuer " + s.External.Name + " that holds: " + list(s.Scopes)
	}
	return "a token of ours, passed on " + plural(len(s.Act.Chain()), "time") + ", that holds: " + list(s.Scopes)
}

// keptAlways are the claims about the user's login that relay tokens keep whatever the policy says.
func keptAlways() []string { return []string{"auth_time", "acr", "amr"} }

// own are the claims that only we set. A policy that carries one is refused when it is applied; here it is the second
// lock, because a carried `act` or `aud` would be a forged one.
func own() []string {
	return []string{"iss", "sub", "sub_iss", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "txn", "act", "sid", "cnf", "may_act"}
}

// OwnClaims are the claims that a relay token may have without any issuer's `carry`.
func OwnClaims() []string { return slices.Concat(own(), keptAlways()) }

// readOwn judges the claims of a token with our signature as a subject token of client: a relay token addressed to it and
// nobody else (policy.md step 2).
func readOwn(p *countersign.Policy, ourIssuer string, client *countersign.Service, t *jwt.Token, now time.Time) (*Subject, error) {
	if t.Typ != client.Typ {
		return nil, countersign.Errorf(countersign.CodeSubjectKind, "the subject token is of type %s; tokens for %s are of type %s",
			quote(t.Typ), client.Name, client.Typ)
	}
	if err := checkTimes(t.Claims, now); err != nil {
		return nil, err
	}
	c := reader{claims: t.Claims}
	if aud := c.text("aud"); c.err == nil && aud != client.Name {
		return nil, countersign.Errorf(countersign.CodeSubjectAudience, "the subject token is addressed to %s, not to %s", quote(aud), client.Name).
			WithHint("a service can exchange only tokens that were made for it")
	}
	s := &Subject{
		Sub: c.text("sub"), SubIssuer: c.text("sub_iss"), Transaction: c.text("txn"), ID: c.text("jti"),
		Scopes: strings.Fields(c.text("scope")), Expires: c.time("exp"), SessionID: c.optional("sid"), Act: c.actors("act"),
		Payload: t.Payload,
	}
	if c.err != nil {
		return nil, c.err
	}
	s.Facts = ownFacts(p, t.Claims)
	s.MayAct, _ = t.Claims.Raw("may_act")
	if s.Machine(ourIssuer) {
		return s, nil
	}
	issuer, ok := p.Issuer(s.SubIssuer)
	if !ok || issuer.Use == countersign.UseWorkloads {
		return nil, countersign.Errorf(countersign.CodeSubjectIssuer, "the user's issuer %s is not in the policy any more", quote(s.SubIssuer))
	}
	s.Carry = pick(t.Claims, issuer.Carry, keptAlways())
	return s, nil
}

// acceptedFrom finds the issuer of a token that is not ours, if client takes its tokens. The iss is not verified yet: it
// only selects among what the policy names.
func acceptedFrom(p *countersign.Policy, client *countersign.Service, iss string) (*countersign.Issuer, error) {
	issuer, ok := p.Issuer(iss)
	if !ok || issuer.Use == countersign.UseWorkloads || len(client.AudiencesFor(issuer.Name)) == 0 {
		var accepted []string
		for _, a := range client.Accepts {
			accepted = append(accepted, a.Issuer)
		}
		return nil, countersign.Errorf(countersign.CodeSubjectIssuer, "%s takes no tokens of the issuer %s", client.Name, quote(iss)).
			WithHint("it takes tokens of: %s; the iss must be exactly the `issuer` of the policy, and `accepts` of the service must name it", list(accepted))
	}
	return issuer, nil
}

// readExternal judges the claims of a token with issuer's signature as a subject token of client.
func readExternal(p *countersign.Policy, issuer *countersign.Issuer, client *countersign.Service, t *jwt.Token, kind tokenKind, now time.Time) (*Subject, error) {
	if err := checkKind(issuer, t, kind); err != nil {
		return nil, err
	}
	if err := checkTimes(t.Claims, now); err != nil {
		return nil, err
	}
	aud, err := t.Claims.Audience()
	if err != nil {
		return nil, wrongClaim(err)
	}
	wanted := client.AudiencesFor(issuer.Name)
	taken := intersect(aud, wanted)
	if len(taken) == 0 {
		return nil, countersign.Errorf(countersign.CodeSubjectAudience, "the subject token is addressed to %s; %s takes tokens of %s for %s",
			quote(strings.Join(aud, " ")), client.Name, issuer.Name, list(wanted))
	}
	c := reader{claims: t.Claims}
	asserted := c.scopes(issuer.ScopeClaim)
	s := &Subject{
		External: issuer, SubIssuer: issuer.URL, Expires: c.time("exp"), SessionID: c.optional("sid"), Audiences: taken,
		Scopes:  intersect(asserted, issuer.Scopes),
		Cut:     without(asserted, issuer.Scopes),
		Carry:   pick(t.Claims, issuer.Carry, keptAlways()),
		Dropped: pick(t.Claims, []string{"jti", "act", "cnf"}),
		Payload: t.Payload,
	}
	sub := c.optional("sub")
	if c.err != nil {
		return nil, c.err
	}
	if len(s.SessionID) > maxSub {
		return nil, countersign.Errorf(countersign.CodeSubjectToken, "the subject token's sid has more than %d bytes", maxSub)
	}
	if s.Sub, err = subOf(p, issuer, sub); err != nil {
		return nil, err
	}
	s.Facts = countersign.TokenFacts{Subject: s.Sub, SessionIssuer: issuer.URL, SessionID: s.SessionID, IssuedAt: c.time("iat")}
	if err := s.checkAge(now); err != nil {
		return nil, err
	}
	s.MayAct, _ = t.Claims.Raw("may_act")
	return s, nil
}

// checkAge refuses an external token that a revocation may have reached which is gone.
func (s *Subject) checkAge(now time.Time) error {
	if s.External == nil || now.Sub(s.Facts.IssuedAt) <= keepRevoked {
		return nil
	}
	return countersign.Errorf(countersign.CodeSubjectOld, "the subject token was issued at %s; revocations are kept for %d days",
		s.Facts.IssuedAt.Format(time.RFC3339), keepRevoked/(24*time.Hour)).WithHint("get a fresh token: the user has to log in again")
}

// stillTimely judges again what time changes about the token t, from which s was read.
func (s *Subject) stillTimely(t *jwt.Token, now time.Time) error {
	if err := checkTimes(t.Claims, now); err != nil {
		return err
	}
	return s.checkAge(now)
}

// checkTimes takes no skew for exp: what is over is over, as nothing may live longer than what it was made from. An
// access token says when it was issued (RFC 9068 2.2): without that, revoking by time could never reach it.
func checkTimes(c jwt.Claims, now time.Time) error {
	if !c.Has("iat") {
		return countersign.Errorf(countersign.CodeSubjectToken, "the subject token has no iat")
	}
	err := c.CheckTimes(now, skew)
	var refusal *jwt.Error
	if errors.As(err, &refusal) {
		switch refusal.Reason {
		case jwt.ReasonExpired, jwt.ReasonNotYet, jwt.ReasonFuture:
			return countersign.Errorf(countersign.CodeSubjectExpired, "the subject token is not valid now: %s", refusal.Msg).
				WithHint("get a fresh token; if it is fresh, compare the clocks")
		}
		return wrongClaim(refusal)
	}
	exp, _, err := c.Time("exp")
	if err != nil {
		return wrongClaim(err)
	}
	if !now.Before(exp) {
		return countersign.Errorf(countersign.CodeSubjectExpired, "the subject token expired at %s", exp.Format(time.RFC3339)).
			WithHint("get a fresh token")
	}
	return nil
}

// subOf makes a sub that is unique under our issuer (RFC 7519 4.1.2) and can't be taken for a service's.
func subOf(p *countersign.Policy, issuer *countersign.Issuer, sub string) (string, error) {
	refuse := func(format string, args ...any) (string, error) {
		return "", countersign.Errorf(countersign.CodeSubjectName, format, args...)
	}
	switch {
	case sub == "":
		return refuse("the subject token has no sub")
	case len(sub) > maxSub:
		return refuse("the subject token's sub has %d bytes; at most %d are taken", len(sub), maxSub)
	case strings.ContainsFunc(sub, unicode.IsControl):
		return refuse("the subject token's sub holds control characters")
	case len(sub) >= len("spiffe:") && strings.EqualFold(sub[:len("spiffe:")], "spiffe:"):
		return refuse("the subject token's sub looks like a service's ID")
	case issuer.Subject == countersign.SubjectPrefix:
		return issuer.Name + ":" + sub, nil
	}
	for _, other := range p.Issuers {
		if strings.HasPrefix(sub, other.Name+":") {
			return refuse("the subject token's sub looks like one of the issuer %s", other.Name)
		}
	}
	return sub, nil
}

// pick copies the named claims as they stand.
func pick(c jwt.Claims, names ...[]string) map[string]json.RawMessage {
	picked := map[string]json.RawMessage{}
	for _, name := range slices.Concat(names...) {
		if raw, ok := c.Raw(name); ok {
			picked[name] = raw
		}
	}
	return picked
}

// maxCut bounds what is remembered of scopes that count for nothing.
const maxCut = 32

// without keeps what is asserted and not allowed, cut to what is worth telling.
func without(asserted, allowed []string) []string {
	var cut []string
	for _, s := range asserted {
		if len(cut) < maxCut && len(s) > 0 && len(s) <= 128 && !slices.Contains(allowed, s) && !slices.Contains(cut, s) {
			cut = append(cut, s)
		}
	}
	return cut
}

// intersect keeps what both have, once, in the order of asserted.
func intersect(asserted, allowed []string) []string {
	var both []string
	for _, s := range asserted {
		if slices.Contains(allowed, s) && !slices.Contains(both, s) {
			both = append(both, s)
		}
	}
	return both
}
