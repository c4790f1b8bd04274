package sts

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/sts/jwt"
)

// The grant types served (RFC 8693 2.1, RFC 6749 4.4) and the token types of RFC 8693 3 that are known here.
const (
	GrantExchange          = "urn:ietf:params:oauth:grant-type:token-exchange"
	GrantClientCredentials = "client_credentials"
	TypeAccessToken        = "urn:ietf:params:oauth:token-type:access_token"
	TypeJWT                = "urn:ietf:params:oauth:token-type:jwt"
	TypeIDToken            = "urn:ietf:params:oauth:token-type:id_token"
)

const (
	maxTargets = 4    // audiences and resources of one request, each
	maxScope   = 4096 // bytes of the scope parameter
	maxTarget  = 1024 // bytes of one audience or resource
	maxWord    = 512  // bytes of the other parameters
	maxScopes  = 100  // scopes of one request
)

// Request is a token request by its parameters (RFC 8693 2.1). Empty means absent.
type Request struct {
	GrantType, ClientID            string
	SubjectToken, SubjectTokenType string
	ActorToken, ActorTokenType     string
	RequestedTokenType             string
	Audiences, Resources, Scopes   []string

	// Still is asked just before a token is minted, whether what proved the client proves it now: the wait for an issuer's keys
	// may take seconds, and a certificate that was revoked meanwhile must get nothing. Its error is the answer. Nil: it can't
	// have changed.
	Still func() error
}

// Response is the answer to a token request (RFC 8693 2.2.1), all members always.
type Response struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int    `json:"expires_in"` // seconds: exp - iat
	Scope           string `json:"scope"`
}

// AppendJSON appends the answer's JSON.
func (r Response) AppendJSON(b []byte) []byte {
	b = slices.Grow(b, len(r.AccessToken)+len(r.Scope)+256)
	b = audit.AppendString(append(b, `{"access_token":`...), r.AccessToken)
	b = audit.AppendString(append(b, `,"issued_token_type":`...), r.IssuedTokenType)
	b = audit.AppendString(append(b, `,"token_type":`...), r.TokenType)
	b = strconv.AppendInt(append(b, `,"expires_in":`...), int64(r.ExpiresIn), 10)
	b = audit.AppendString(append(b, `,"scope":`...), r.Scope)
	return append(b, '}')
}

// ParseRequest reads the form of a token request: no parameter twice but audience and resource, empty is absent, unknown
// ones are ignored (RFC 6749 3.2); every value is bounded and printable ASCII. A client_secret is refused (RFC 6749 2.3); other
// proofs of the client are [ParseCredentials]'s. What the parameters mean together, [Service.Token] judges.
func ParseRequest(form url.Values) (Request, error) {
	f := fields{form: form}
	f.checkAll("audience", "resource")
	r := Request{
		GrantType: f.one("grant_type", maxWord), ClientID: f.one("client_id", maxWord),
		SubjectToken: f.one("subject_token", jwt.MaxToken), SubjectTokenType: f.one("subject_token_type", maxWord),
		ActorToken: f.one("actor_token", jwt.MaxToken), ActorTokenType: f.one("actor_token_type", maxWord),
		RequestedTokenType: f.one("requested_token_type", maxWord),
		Audiences:          f.several("audience"), Resources: f.several("resource"), Scopes: f.scopes(),
	}
	if f.err != nil {
		return Request{}, f.err
	}
	return r, nil
}

// fields reads a form and keeps the first error.
type fields struct {
	form url.Values
	err  error
}

func (f *fields) fail(code countersign.Code, format string, args ...any) {
	if f.err == nil {
		f.err = countersign.Errorf(code, format, args...)
	}
}

func (f *fields) checkAll(repeatable ...string) {
	f.checkTwice(repeatable)
	if f.form.Get("client_secret") != "" {
		f.fail(countersign.CodeTwoCredentials, "client_secret is no proof of a client here, and a second one besides")
	}
}

func (f *fields) checkTwice(repeatable []string) {
	twice := false
	for _, values := range f.form {
		twice = twice || len(values) > 1
	}
	if !twice {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(f.form)) { // so that the same request has the same refusal
		if len(f.form[name]) > 1 && !slices.Contains(repeatable, name) {
			f.fail(countersign.CodeTokenRequest, "the parameter %s stands more than once", quote(name))
		}
	}
}

func (f *fields) one(name string, most int) string {
	value := f.form.Get(name)
	f.check(name, value, most)
	return value
}

func (f *fields) check(name, value string, most int) {
	if len(value) > most {
		f.fail(countersign.CodeTokenRequest, "the parameter %s has more than %d bytes", name, most)
	} else if !printable(value) {
		f.fail(countersign.CodeTokenRequest, "the parameter %s holds characters that are not printable ASCII", name)
	}
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func (f *fields) several(name string) []string {
	var values []string
	for _, value := range f.form[name] {
		if value != "" {
			f.check(name, value, maxTarget)
			values = append(values, value)
		}
	}
	if len(values) > maxTargets {
		f.fail(countersign.CodeTokenRequest, "the parameter %s stands more than %d times", name, maxTargets)
	}
	return values
}

// scopes reads scope tokens with one space between them (RFC 6749 3.3).
func (f *fields) scopes() []string {
	value := f.one("scope", maxScope)
	if value == "" {
		return nil
	}
	scopes := strings.Split(value, " ")
	if len(scopes) > maxScopes {
		f.fail(countersign.CodeTokenRequest, "more than %d scopes are asked for", maxScopes)
	}
	if slices.Contains(scopes, "") || strings.ContainsAny(value, `"\`) {
		f.fail(countersign.CodeTokenRequest, "scope must be words with one space between them, without quotes and backslashes")
	}
	return scopes
}

// check judges what the parameters mean together.
func (r Request) check() error {
	refuse := func(msg string) *countersign.Error {
		return countersign.Errorf(countersign.CodeTokenRequest, "%s", msg)
	}
	switch r.GrantType {
	case GrantExchange:
	case GrantClientCredentials:
		if r.SubjectToken != "" || r.SubjectTokenType != "" || r.ActorToken != "" || r.ActorTokenType != "" {
			return refuse("client_credentials takes no subject or actor token").
				WithHint("to act for a user, send grant_type=%s", GrantExchange)
		}
		return checkRequested(r.RequestedTokenType)
	case "":
		return refuse("grant_type is missing")
	default:
		return countersign.Errorf(countersign.CodeGrantType, "the grant type %s is not served", quote(r.GrantType)).
			WithHint("served are %s and %s", GrantExchange, GrantClientCredentials)
	}
	switch {
	case r.SubjectToken == "":
		return refuse("subject_token is missing")
	case r.SubjectTokenType == "":
		return refuse("subject_token_type is missing")
	case r.ActorToken != "" && r.ActorTokenType == "":
		return refuse("actor_token needs an actor_token_type")
	case r.ActorToken == "" && r.ActorTokenType != "":
		return refuse("actor_token_type stands without an actor_token")
	case r.SubjectTokenType != TypeAccessToken && r.SubjectTokenType != TypeJWT && r.SubjectTokenType != TypeIDToken:
		return countersign.Errorf(countersign.CodeTokenType, "the subject_token_type %s is not taken", quote(r.SubjectTokenType)).
			WithHint("taken are %s, %s and, of issuers whose `tokens` have id, %s", TypeAccessToken, TypeJWT, TypeIDToken)
	case r.ActorToken != "" && r.ActorTokenType != TypeAccessToken && r.ActorTokenType != TypeJWT:
		return countersign.Errorf(countersign.CodeTokenType, "the actor_token_type %s is not taken", quote(r.ActorTokenType))
	}
	return checkRequested(r.RequestedTokenType)
}

func checkRequested(typ string) error {
	if typ != "" && typ != TypeAccessToken && typ != TypeJWT {
		return countersign.Errorf(countersign.CodeTokenType, "the requested_token_type %s is not issued", quote(typ)).
			WithHint("leave it out, or send %s", TypeAccessToken)
	}
	return nil
}
