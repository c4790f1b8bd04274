package verify

import (
	"slices"
	"strings"
	"unicode"

	"github.com/countersign/countersign/sts/jwt"
)

const maxSub = 255 // OpenID Connect Core 2

// readExternal reads the access token of an issuer that is no Countersign, whose signature and times are judged.
func (v *Verifier) readExternal(t *jwt.Token) (*Claims, error) {
	if err := checkKind(t); err != nil {
		return nil, err
	}
	out := &Claims{Issuer: v.cfg.Issuer}
	var err error
	if out.Audience, err = v.audienceOf(t.Claims); err != nil {
		return nil, err
	}
	for name, raw := range t.Claims.All() {
		switch name {
		case "iss", "aud", "nbf":
		case "sub":
			out.Subject, err = externalSub(t.Claims)
		case "client_id":
			out.ClientID, err = nonEmpty(t.Claims, name)
		case "jti":
			out.ID, err = nonEmpty(t.Claims, name)
		case "sid":
			out.SessionID, err = nonEmpty(t.Claims, name)
		case "exp":
			out.Expires, _, err = t.Claims.Time(name)
		case "iat":
			out.IssuedAt, _, err = t.Claims.Time(name)
		case "cnf":
			err = readConfirmation(t.Claims, out, true)
		case v.cfg.ScopeClaim:
			out.Scopes, err = externalScopes(t.Claims, name)
		default:
			err = out.extra(name, raw)
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case out.Subject == "":
		return nil, wrong(`"sub" is missing`)
	case out.IssuedAt.IsZero():
		return nil, wrong(`"iat" is missing`)
	}
	return out, nil
}

// audienceOf is the first of ours that the token is for.
func (v *Verifier) audienceOf(c jwt.Claims) (string, error) {
	aud, err := c.Audience()
	if err != nil {
		return "", err
	}
	for _, a := range v.audiences {
		if slices.Contains(aud, a) {
			return a, nil
		}
	}
	return "", refuse(ReasonAudience, "the token is for none of the audiences %q", v.audiences)
}

// checkKind tells an access token from what else an issuer signs with the same keys (RFC 8725 3.11, 3.12), as the token
// service does: a token that declares itself one (RFC 9068), or one without the marks of others. The payload's typ is
// Keycloak's; events marks logout and other security event tokens (RFC 8417).
func checkKind(t *jwt.Token) error {
	payloadTyp, _, err := t.Claims.String("typ")
	if err != nil {
		return err
	}
	if t.Claims.Has("events") {
		return refuse(ReasonType, "a token with events is a security event, no access token")
	}
	kinds := []string{"Refresh", "Offline", "Logout"}
	if !t.HasType("at+jwt") {
		kinds = append(kinds, "ID")
		for _, mark := range []string{"nonce", "at_hash", "c_hash"} {
			if t.Claims.Has(mark) {
				return refuse(ReasonType, "the token has %s, so it is an ID token", mark)
			}
		}
	}
	for _, kind := range kinds {
		if strings.EqualFold(kind, payloadTyp) {
			return refuse(ReasonType, "a token of the kind %s is no access token", kind)
		}
	}
	return nil
}

// externalSub refuses what could be taken for a service's ID, or can't be written into a log.
func externalSub(c jwt.Claims) (string, error) {
	sub, err := nonEmpty(c, "sub")
	switch {
	case err != nil:
		return "", err
	case len(sub) > maxSub || strings.ContainsFunc(sub, unicode.IsControl):
		return "", wrong(`"sub" has more than %d bytes or control characters`, maxSub)
	case len(sub) >= len("spiffe:") && strings.EqualFold(sub[:len("spiffe:")], "spiffe:"):
		return "", wrong(`"sub" looks like a service's ID`)
	}
	return sub, nil
}

// externalScopes reads one string (RFC 9068 2.2.3) or an array of strings, as some issuers write it.
func externalScopes(c jwt.Claims, name string) ([]string, error) {
	s, ok, err := c.String(name)
	scopes := strings.Fields(s)
	if err != nil {
		scopes, _, err = c.Strings(name)
	}
	if err != nil || ok && !allScopes(scopes) {
		return nil, wrong("%q is neither a string of scopes nor an array of them", name)
	}
	return scopes, nil
}
