package sts

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

func TestParseRequest(t *testing.T) {
	form := url.Values{
		"grant_type": {GrantExchange}, "client_id": {"c"}, "subject_token": {"s"}, "subject_token_type": {TypeJWT}, "actor_token": {"a"},
		"actor_token_type": {TypeAccessToken}, "requested_token_type": {TypeAccessToken}, "audience": {"x", "", "y"}, "resource": {"https://z"},
		"scope": {"b a"}, "unknown": {"ü"}, "client_secret": {""},
	}
	want := Request{
		GrantType: GrantExchange, ClientID: "c", SubjectToken: "s", SubjectTokenType: TypeJWT, ActorToken: "a", ActorTokenType: TypeAccessToken,
		RequestedTokenType: TypeAccessToken, Audiences: []string{"x", "y"}, Resources: []string{"https://z"}, Scopes: []string{"b", "a"},
	}
	got, err := ParseRequest(form)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := ParseRequest(url.Values{"scope": {""}, "audience": {""}}); err != nil || !cmp.Equal(got, Request{}) {
		t.Errorf("empty is not absent: %+v, %v", got, err)
	}
}

func TestParseRequestRefuses(t *testing.T) {
	for name, form := range map[string]url.Values{
		"grant_type twice":        {"grant_type": {"a", "a"}},
		"scope twice":             {"scope": {"a", "b"}},
		"subject_token twice":     {"subject_token": {"a", ""}},
		"an unknown one twice":    {"foo": {"a", "b"}},
		"two spaces":              {"scope": {"a  b"}},
		"a space in front":        {"scope": {" a"}},
		"a quote":                 {"scope": {`a"b`}},
		"a backslash":             {"scope": {`a\b`}},
		"a tab":                   {"scope": {"a\tb"}},
		"a newline in the token":  {"subject_token": {"a.b.c\n"}},
		"a letter beyond ASCII":   {"audience": {"ördërs"}},
		"a NUL":                   {"audience": {"a\x00"}},
		"broken UTF-8":            {"client_id": {"\xff"}},
		"many audiences":          {"audience": strings.Split("a b c d e", " ")},
		"many scopes":             {"scope": {strings.TrimSpace(strings.Repeat("a ", 101))}},
		"a long scope":            {"scope": {strings.Repeat("a", maxScope+1)}},
		"a long audience":         {"audience": {strings.Repeat("a", maxTarget+1)}},
		"a long second resource":  {"resource": {"a", strings.Repeat("a", maxTarget+1)}},
		"a long subject token":    {"subject_token": {strings.Repeat("a", jwt.MaxToken+1)}},
		"a long client_id":        {"client_id": {strings.Repeat("a", maxWord+1)}},
		"a long actor_token_type": {"actor_token_type": {strings.Repeat("a", maxWord+1)}},
	} {
		if _, err := ParseRequest(form); codeOf(err) != countersign.CodeTokenRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseRequest(url.Values{"client_secret": {"x"}}); codeOf(err) != countersign.CodeTwoCredentials {
		t.Errorf("client_secret: %v", err)
	}
}

// The same request has the same refusal, whatever the order of a map.
func TestParseRequestRefusesAlike(t *testing.T) {
	form := url.Values{"a": {"1", "2"}, "b": {"1", "2"}, "c": {"1", "2"}, "d": {"1", "2"}}
	for range 50 {
		if _, err := ParseRequest(form); err == nil || !strings.Contains(err.Error(), `"a"`) {
			t.Fatalf("got %v", err)
		}
	}
}

func TestRequestCheck(t *testing.T) {
	exchange := Request{GrantType: GrantExchange, SubjectToken: "s", SubjectTokenType: TypeAccessToken}
	credentials := Request{GrantType: GrantClientCredentials}
	for _, c := range []struct {
		name   string
		base   Request
		change func(*Request)
		code   countersign.Code
	}{
		{"exchange", exchange, func(*Request) {}, ""},
		{"exchange of a jwt", exchange, func(r *Request) { r.SubjectTokenType = TypeJWT }, ""},
		{"for an access token", exchange, func(r *Request) { r.RequestedTokenType = TypeAccessToken }, ""},
		{"for a jwt", exchange, func(r *Request) { r.RequestedTokenType = TypeJWT }, ""},
		{"with an actor", exchange, func(r *Request) { r.ActorToken, r.ActorTokenType = "a", TypeJWT }, ""},
		{"client_credentials", credentials, func(*Request) {}, ""},
		{"no grant", exchange, func(r *Request) { r.GrantType = "" }, countersign.CodeTokenRequest},
		{"another grant", exchange, func(r *Request) { r.GrantType = "password" }, countersign.CodeGrantType},
		{"a grant in capitals", exchange, func(r *Request) { r.GrantType = strings.ToUpper(GrantExchange) }, countersign.CodeGrantType},
		{"no subject", exchange, func(r *Request) { r.SubjectToken = "" }, countersign.CodeTokenRequest},
		{"no subject type", exchange, func(r *Request) { r.SubjectTokenType = "" }, countersign.CodeTokenRequest},
		{"an ID token", exchange, func(r *Request) { r.SubjectTokenType = TypeIDToken }, ""},
		{"a refresh token", exchange, func(r *Request) { r.SubjectTokenType = "urn:ietf:params:oauth:token-type:refresh_token" }, countersign.CodeTokenType},
		{"for an ID token", exchange, func(r *Request) { r.RequestedTokenType = TypeIDToken }, countersign.CodeTokenType},
		{"an actor without a type", exchange, func(r *Request) { r.ActorToken = "a" }, countersign.CodeTokenRequest},
		{"an actor type without an actor", exchange, func(r *Request) { r.ActorTokenType = TypeJWT }, countersign.CodeTokenRequest},
		{"an actor of another type", exchange, func(r *Request) { r.ActorToken, r.ActorTokenType = "a", TypeIDToken }, countersign.CodeTokenType},
		{"client_credentials with a subject", credentials, func(r *Request) { r.SubjectToken = "s" }, countersign.CodeTokenRequest},
		{"client_credentials with an actor type", credentials, func(r *Request) { r.ActorTokenType = TypeJWT }, countersign.CodeTokenRequest},
		{"client_credentials for an ID token", credentials, func(r *Request) { r.RequestedTokenType = TypeIDToken }, countersign.CodeTokenType},
	} {
		r := c.base
		c.change(&r)
		if err := r.check(); codeOf(err) != c.code || (err == nil) != (c.code == "") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, seed := range []string{
		"grant_type=client_credentials&audience=orders&scope=a+b",
		"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c&subject_token_type=x&audience=a&audience=b",
		"scope=a&scope=b", "scope=+", "client_secret=x", "audience=%00", "resource=https%3A%2F%2Fo&resource=", "=&=",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		form, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		r, err := ParseRequest(form)
		if err != nil {
			if code := codeOf(err); code != countersign.CodeTokenRequest && code != countersign.CodeTwoCredentials {
				t.Fatalf("refused with %v", err)
			}
			if !cmp.Equal(r, Request{}) {
				t.Fatal("a refused request is not empty")
			}
			return
		}
		if len(r.Audiences) > maxTargets || len(r.Resources) > maxTargets || len(r.Scopes) > maxScopes || len(r.SubjectToken) > jwt.MaxToken {
			t.Fatalf("over a limit: %+v", r)
		}
		for _, word := range append(append(append([]string{}, r.Scopes...), r.Audiences...), r.Resources...) {
			if word == "" {
				t.Fatal("an empty word is present")
			}
		}
		for _, scope := range r.Scopes {
			if strings.ContainsFunc(scope, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) {
				t.Fatalf("the scope %q is none of RFC 6749 3.3", scope)
			}
		}
		_ = r.check() // must not panic
	})
}
