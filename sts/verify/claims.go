package verify

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// Claims is what a verified relay token says (policy.md, "The minted token").
type Claims struct {
	Issuer        string    // `iss`, the configured one
	Subject       string    // `sub`: unique under Issuer
	SubjectIssuer string    // `sub_iss`: the issuer that the user logged in at; Issuer itself for a machine token
	ClientID      string    // `client_id`: the ID of the service that the token was issued to, which is the caller
	Audience      string    // `aud`, the configured one
	Transaction   string    // `txn`: constant along the chain; for logs and traces
	ID            string    // `jti`
	SessionID     string    // `sid`: the user's session at SubjectIssuer; may be ""
	Scopes        []string  // `scope`; may be empty
	Expires       time.Time // `exp`
	IssuedAt      time.Time // `iat`
	Act           *Actor    // `act`; nil for a machine token
	Confirmation  string    // `cnf.x5t#S256` (RFC 8705 3.1): compare it, Verify does not; "": not bound to a certificate

	// Extra are all other claims: those that the policy carries from the user's token, auth_time, acr and amr.
	// Numbers are of type float64.
	Extra map[string]any
}

// Actor is a service that acts for the subject (RFC 8693 4.1). Only the outermost one is the caller; those within are
// history and never a reason to allow anything.
type Actor struct {
	Subject string
	Act     *Actor // who acted before; nil for the first
}

// User is the subject if it is a user, "" for a machine token.
func (c *Claims) User() string {
	if c.SubjectIssuer == c.Issuer {
		return ""
	}
	return c.Subject
}

// Actor is the ID of the service that acts now: the outermost `act.sub`. It is "" for a machine token that was not
// exchanged; [Claims.ClientID] names the caller in both cases.
func (c *Claims) Actor() string {
	if c.Act == nil {
		return ""
	}
	return c.Act.Subject
}

// Chain are the IDs of the services that acted, the present one first. It is for audit only: RFC 8693 4.1 forbids
// access decisions by any but the first.
func (c *Claims) Chain() []string {
	var ids []string
	for a := c.Act; a != nil; a = a.Act {
		ids = append(ids, a.Subject)
	}
	return ids
}

// HasScope tells whether s, exactly, is one of the token's scopes.
func (c *Claims) HasScope(s string) bool { return slices.Contains(c.Scopes, s) }

// known are the claims that have a field or a check of their own; all others are extra.
func known() []string {
	return []string{
		"iss", "sub", "sub_iss", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "txn", "act", "sid", "cnf",
	}
}

// readClaims reads the claims of a token whose signature, iss, aud and times are judged.
func readClaims(c jwt.Claims) (*Claims, error) {
	out := &Claims{Extra: make(map[string]any)}
	for _, f := range []struct {
		name     string
		to       *string
		required bool
	}{
		{"iss", &out.Issuer, true},
		{"sub", &out.Subject, true},
		{"sub_iss", &out.SubjectIssuer, true},
		{"aud", &out.Audience, true},
		{"client_id", &out.ClientID, true},
		{"txn", &out.Transaction, true},
		{"jti", &out.ID, true},
		{"sid", &out.SessionID, false},
	} {
		s, ok, err := c.String(f.name)
		if err != nil {
			return nil, err
		}
		if s == "" && (ok || f.required) {
			return nil, wrong("%q is missing or empty", f.name)
		}
		*f.to = s
	}
	if err := readTimes(c, out); err != nil {
		return nil, err
	}
	var err error
	if out.Scopes, err = readScope(c); err != nil {
		return nil, err
	}
	if out.Act, err = readActor(c); err != nil {
		return nil, err
	}
	if out.Confirmation, err = readConfirmation(c); err != nil {
		return nil, err
	}
	for _, name := range c.Names() {
		if slices.Contains(known(), name) {
			continue
		}
		raw, _ := c.Raw(name)
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, wrong("%.40q can't be read", name)
		}
		out.Extra[name] = v
	}
	return out, nil
}

func wrong(format string, args ...any) error { return refuse(Reason(jwt.ReasonClaim), format, args...) }

func readTimes(c jwt.Claims, out *Claims) error {
	var err error
	if out.Expires, _, err = c.Time("exp"); err != nil {
		return err
	}
	iat, ok, err := c.Time("iat")
	if err != nil {
		return err
	}
	if !ok {
		return wrong(`"iat" is missing`)
	}
	out.IssuedAt = iat
	return nil
}

// readScope reads one string of scopes with single spaces between them (RFC 8693 4.2, RFC 6749 3.3). No claim or an
// empty one is no scope.
func readScope(c jwt.Claims) ([]string, error) {
	s, _, err := c.String("scope")
	if err != nil || s == "" {
		return nil, err
	}
	scopes := strings.Split(s, " ")
	for _, scope := range scopes {
		if scope == "" || strings.ContainsFunc(scope, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return nil, wrong(`"scope" is not a list of scopes with single spaces between them`)
		}
	}
	return scopes, nil
}

// readActor reads the nested `act`. Each has a sub. The parser bounds the depth.
func readActor(c jwt.Claims) (*Actor, error) {
	object, ok, err := c.Object("act")
	if err != nil || !ok {
		return nil, err
	}
	sub, _, err := object.String("sub")
	if err != nil {
		return nil, err
	}
	if sub == "" {
		return nil, wrong(`an "act" has no "sub"`)
	}
	inner, err := readActor(object)
	if err != nil {
		return nil, err
	}
	return &Actor{Subject: sub, Act: inner}, nil
}

// readConfirmation refuses a token that is bound in a way that is not known here: nobody would compare it.
func readConfirmation(c jwt.Claims) (string, error) {
	cnf, ok, err := c.Object("cnf")
	if err != nil || !ok {
		return "", err
	}
	const thumbprint = "x5t#S256"
	s, _, err := cnf.String(thumbprint)
	if err != nil {
		return "", err
	}
	if s == "" || len(cnf.Names()) != 1 {
		return "", wrong(`"cnf" holds something other than %q`, thumbprint)
	}
	return s, nil
}
