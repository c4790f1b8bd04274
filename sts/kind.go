package sts

import (
	"slices"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// tokenKind is what a subject token is sent as.
type tokenKind string

// The kinds, by the words of an issuer's `tokens`.
const (
	accessToken tokenKind = "access"
	idToken     tokenKind = "id"
	anyKind     tokenKind = "" // whatever it looks like: only for questions ([Service.Explain]), never for an exchange
)

// kindOf reads a subject_token_type that [Request.check] let pass (RFC 8693 3): `jwt` is an access token too.
func kindOf(subjectTokenType string) tokenKind {
	if subjectTokenType == TypeIDToken {
		return idToken
	}
	return accessToken
}

// checkKind is the part of step 2 that tells access tokens, ID tokens and what else an issuer signs from each other (RFC 8725
// 3.11, 3.12): each is only taken as what it is, and only if the issuer's `tokens` say so. The payload's typ is Keycloak's;
// events marks logout and other security event tokens (RFC 8417).
func checkKind(issuer *countersign.Issuer, t *jwt.Token, kind tokenKind) error {
	payloadTyp, _, err := t.Claims.String("typ")
	if err != nil {
		return wrongClaim(err)
	}
	declared := t.HasType(typAccess)
	mark := idMark(t.Claims, payloadTyp)
	if kind == anyKind {
		if kind = accessToken; !declared && mark != "" {
			kind = idToken
		}
	}
	refuse := func(format string, args ...any) error {
		hint := "send the access token that the user's client got for this service"
		if kind == idToken {
			hint = "send the ID token that the user's client got, or an access token with subject_token_type=" + TypeAccessToken
		}
		return countersign.Errorf(countersign.CodeSubjectKind, format, args...).WithHint("%s", hint)
	}
	switch {
	case !slices.Contains(issuer.Tokens, string(kind)):
		return refuse("%s of the issuer %s are not taken", kind.plural(), issuer.Name)
	case !declared && t.Typ != "" && !t.HasType(typGeneric):
		return refuse("a token of the type %s is no %s", quote(t.Typ), kind)
	case t.Claims.Has("events"):
		return refuse("a token with events is a security event, no %s", kind)
	case slices.ContainsFunc([]string{"Refresh", "Offline", "Logout"}, func(s string) bool { return strings.EqualFold(s, payloadTyp) }):
		return refuse("a token of the kind %s is no %s", quote(payloadTyp), kind)
	case kind == accessToken && !declared && mark != "":
		return refuse("the subject token has %s, so it is an ID token", mark)
	case kind == idToken && declared:
		return refuse("the subject token is of the type %s, so it is an access token", quote(t.Typ))
	case kind == idToken && mark == "":
		return refuse("the subject token has none of nonce, at_hash, c_hash and typ: ID, so it is not known to be an ID token")
	}
	return nil
}

// String is the kind as messages call it.
func (k tokenKind) String() string {
	if k == idToken {
		return "ID token"
	}
	return "access token"
}

func (k tokenKind) plural() string { return k.String() + "s" }

// idMark is what shows that a token is an ID token (OpenID Connect Core 2); "": nothing does.
func idMark(c jwt.Claims, payloadTyp string) string {
	if strings.EqualFold(payloadTyp, "ID") {
		return "typ: ID"
	}
	for _, mark := range []string{"nonce", "at_hash", "c_hash"} {
		if c.Has(mark) {
			return mark
		}
	}
	return ""
}
