package verify

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// Claims is what a verified token says: a relay token (policy.md, "The minted token"), or an external one, of which what
// only Countersign gives is "".
type Claims struct {
	Issuer        string    // `iss`, the configured one
	Subject       string    // `sub`: unique under Issuer
	SubjectIssuer string    // `sub_iss`: the issuer that the user logged in at; Issuer itself for a machine token; "": external
	ClientID      string    // `client_id`: the ID of the service that the token was issued to, which is the caller; may be "" in an external one
	Audience      string    // `aud`, the configured one
	Transaction   string    // `txn`: constant along the chain; for logs and traces
	ID            string    // `jti`; may be "" in an external one
	SessionID     string    // `sid`: the user's session at SubjectIssuer; may be ""
	Scopes        []string  // `scope`; may be empty
	Expires       time.Time // `exp`
	IssuedAt      time.Time // `iat`
	Act           *Actor    // `act`; nil for a machine token and an external one
	Confirmation  string    // `cnf.x5t#S256` (RFC 8705 3.1): that of the certificate that the token is bound to; ""
	ProofKey      string    // `cnf.jkt` (RFC 9449 6.1): that of the key of the token's DPoP proofs; external only; ""

	// Extra are all other claims: those that the policy carries from the user's token, auth_time, acr and amr; of an external
	// token whatever it has. Numbers are of type float64.
	Extra map[string]any
}

// Actor is a service that acts for the subject (RFC 8693 4.1). Only the outermost one is the caller; those within are
// history and never a reason to allow anything.
type Actor struct {
	Subject string
	Act     *Actor // who acted before; nil for the first
}

// User is the subject if it is a user, "" for a machine token. Whether the subject of an external token is a person is for
// its issuer to say.
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

// RequireScope is nil if the token has all of the scopes, and otherwise an [*Error] that [Verifier.Refuse] answers as RFC 6750
// demands.
func (c *Claims) RequireScope(scopes ...string) error {
	for _, s := range scopes {
		if !c.HasScope(s) {
			e := refuse(ReasonScope, "the token has the scopes %q and lacks %q", c.Scopes, s)
			e.Scopes = slices.Clone(scopes)
			return e
		}
	}
	return nil
}

// readClaims reads the claims of a token whose signature, iss, aud and times are judged.
func readClaims(c jwt.Claims) (*Claims, error) {
	out := &Claims{}
	for name, raw := range c.All() {
		var err error
		switch name {
		case "iss":
			out.Issuer, err = nonEmpty(c, name)
		case "sub":
			out.Subject, err = nonEmpty(c, name)
		case "sub_iss":
			out.SubjectIssuer, err = nonEmpty(c, name)
		case "aud":
			out.Audience, err = nonEmpty(c, name)
		case "client_id":
			out.ClientID, err = nonEmpty(c, name)
		case "txn":
			out.Transaction, err = nonEmpty(c, name)
		case "jti":
			out.ID, err = nonEmpty(c, name)
		case "sid":
			out.SessionID, err = nonEmpty(c, name)
		case "exp":
			out.Expires, _, err = c.Time(name)
		case "iat":
			out.IssuedAt, _, err = c.Time(name)
		case "nbf":
		case "scope":
			out.Scopes, err = readScope(c)
		case "act":
			out.Act, err = readActor(c)
		case "cnf":
			err = readConfirmation(c, out, false)
		default:
			err = out.extra(name, raw)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, f := range [...]struct{ name, value string }{
		{"sub", out.Subject}, {"sub_iss", out.SubjectIssuer}, {"client_id", out.ClientID}, {"txn", out.Transaction}, {"jti", out.ID},
	} {
		if f.value == "" {
			return nil, wrong("%q is missing", f.name)
		}
	}
	if out.IssuedAt.IsZero() {
		return nil, wrong(`"iat" is missing`)
	}
	return out, nil
}

func nonEmpty(c jwt.Claims, name string) (string, error) {
	s, _, err := c.String(name)
	if err == nil && s == "" {
		err = wrong("%q is empty", name)
	}
	return s, err
}

func (c *Claims) extra(name string, raw json.RawMessage) error {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return wrong("%.40q can't be read", name)
	}
	if c.Extra == nil {
		c.Extra = make(map[string]any)
	}
	c.Extra[name] = v
	return nil
}

func wrong(format string, args ...any) error { return refuse(Reason(jwt.ReasonClaim), format, args...) }

// readScope reads one string of scopes with single spaces between them (RFC 8693 4.2, RFC 6749 3.3). No claim or an
// empty one is no scope.
func readScope(c jwt.Claims) ([]string, error) {
	s, _, err := c.String("scope")
	if err != nil || s == "" {
		return nil, err
	}
	scopes := strings.Split(s, " ")
	if !allScopes(scopes) {
		return nil, wrong(`"scope" is not a list of scopes with single spaces between them`)
	}
	return scopes, nil
}

// allScopes tells whether each is a scope-token (RFC 6749 3.3).
func allScopes(scopes []string) bool {
	for _, s := range scopes {
		for i := range len(s) {
			if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
				return false
			}
		}
		if s == "" {
			return false
		}
	}
	return true
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

// readConfirmation refuses a token that is bound in a way that is not known here: nobody would compare it. No relay token is
// bound to a DPoP key.
func readConfirmation(c jwt.Claims, out *Claims, external bool) error {
	cnf, _, err := c.Object("cnf")
	if err != nil {
		return err
	}
	for name := range cnf.All() {
		to := &out.Confirmation
		switch {
		case name == "x5t#S256":
		case name == "jkt" && external:
			to = &out.ProofKey
		default:
			return wrong(`"cnf" holds %.40q, which is not known here`, name)
		}
		if *to, err = nonEmpty(cnf, name); err != nil {
			return err
		}
	}
	if out.Confirmation == "" && out.ProofKey == "" {
		return wrong(`"cnf" is empty`)
	}
	return nil
}
