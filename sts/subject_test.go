package sts

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
)

func codeOf(err error) countersign.Code {
	var e *countersign.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Code
}

func relayClaims() map[string]any {
	return map[string]any{
		"iss": us, "sub": "alice", "sub_iss": idpURL, "aud": "orders", "exp": noon.Unix() + 300, "nbf": noon.Unix(), "iat": noon.Unix(),
		"jti": "j1.k2", "client_id": idOf("gateway").String(), "scope": "orders:read orders:write", "txn": "t1", "sid": "s1",
		"act": map[string]any{"sub": idOf("gateway").String()}, "email": "a@b", "tenant": "t", "unknown": "x", "acr": "2",
	}
}

func TestReadOwn(t *testing.T) {
	for _, c := range []struct {
		name    string
		typ     string
		changes map[string]any
		code    countersign.Code
	}{
		{"as minted", "JWT", nil, ""},
		{"without sid and act", "JWT", map[string]any{"sid": nil, "act": nil}, ""},
		{"of the type of another service", "at+jwt", nil, countersign.CodeSubjectKind},
		{"of the type in another spelling", "jwt", nil, countersign.CodeSubjectKind},
		{"for another service", "JWT", map[string]any{"aud": "inventory"}, countersign.CodeSubjectAudience},
		{"for the client's ID", "JWT", map[string]any{"aud": idOf("orders").String()}, countersign.CodeSubjectAudience},
		{"aud is an array", "JWT", map[string]any{"aud": []string{"orders"}}, countersign.CodeSubjectToken},
		{"aud is missing", "JWT", map[string]any{"aud": nil}, countersign.CodeSubjectToken},
		{"txn is missing", "JWT", map[string]any{"txn": nil}, countersign.CodeSubjectToken},
		{"txn is empty", "JWT", map[string]any{"txn": ""}, countersign.CodeSubjectToken},
		{"sub_iss is missing", "JWT", map[string]any{"sub_iss": nil}, countersign.CodeSubjectToken},
		{"sub_iss left the policy", "JWT", map[string]any{"sub_iss": "https://gone.example"}, countersign.CodeSubjectIssuer},
		{"jti is missing", "JWT", map[string]any{"jti": nil}, countersign.CodeSubjectToken},
		{"sub is missing", "JWT", map[string]any{"sub": nil}, countersign.CodeSubjectToken},
		{"scope is an array", "JWT", map[string]any{"scope": []string{"orders:read"}}, countersign.CodeSubjectToken},
		{"act is a string", "JWT", map[string]any{"act": "gateway"}, countersign.CodeSubjectToken},
		{"an inner act is a string", "JWT", map[string]any{"act": map[string]any{"sub": "a", "act": "b"}}, countersign.CodeSubjectToken},
		{"act without sub", "JWT", map[string]any{"act": map[string]any{}}, countersign.CodeSubjectToken},
		{"act is null", "JWT", map[string]any{"act": json.RawMessage("null")}, countersign.CodeSubjectToken},
		{"expired", "JWT", map[string]any{"exp": noon.Unix()}, countersign.CodeSubjectExpired},
		{"no exp", "JWT", map[string]any{"exp": nil}, countersign.CodeSubjectToken},
		{"not yet", "JWT", map[string]any{"nbf": noon.Unix() + 120}, countersign.CodeSubjectExpired},
		{"of a clock that runs ahead", "JWT", map[string]any{"nbf": noon.Unix() + 50, "iat": noon.Unix() + 50}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := shop().policy()
			client, _ := p.Service("orders")
			s, err := readOwn(p, us, client, parsed(t, c.typ, with(relayClaims(), c.changes)), noon)
			if codeOf(err) != c.code || (err == nil) != (c.code == "") {
				t.Fatalf("got %v, want %q", err, c.code)
			}
			if err == nil && (s.External != nil || s.Sub != "alice" || s.ID != "j1.k2" || s.Transaction != "t1") {
				t.Errorf("read %+v", s)
			}
		})
	}
}

func TestReadOwnKeeps(t *testing.T) {
	p := shop().policy()
	client, _ := p.Service("orders")
	claims := relayClaims()
	claims["act"] = map[string]any{"sub": "b", "act": map[string]any{"sub": "a"}}
	s, err := readOwn(p, us, client, parsed(t, "JWT", claims), noon)
	if err != nil {
		t.Fatal(err)
	}
	want := &Subject{
		Sub: "alice", SubIssuer: idpURL, Scopes: []string{"orders:read", "orders:write"}, Expires: time.Unix(noon.Unix()+300, 0).UTC(),
		Transaction: "t1", ID: "j1.k2", SessionID: "s1", Act: &Actor{Sub: "b", Act: &Actor{Sub: "a"}},
		Payload: s.Payload,
		Carry:   map[string]json.RawMessage{"email": json.RawMessage(`"a@b"`), "tenant": json.RawMessage(`"t"`), "acr": json.RawMessage(`"2"`)},
		Facts: countersign.TokenFacts{
			ID: "j1.k2", Transaction: "t1", Subject: "alice", SessionIssuer: idpURL, SessionID: "s1",
			Services: []string{"b", "a", idOf("gateway").String(), idOf("orders").String()}, IssuedAt: time.Unix(noon.Unix(), 0).UTC(),
		},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	claims["sub_iss"] = us
	if s, err := readOwn(p, us, client, parsed(t, "JWT", claims), noon); err != nil || !s.Machine(us) || len(s.Carry) != 0 {
		t.Errorf("a machine's: %+v, %v", s, err)
	}
}

func userClaims() map[string]any {
	return map[string]any{
		"iss": idpURL, "sub": "alice", "aud": []string{"other", "shop-web"}, "exp": noon.Unix() + 3600, "iat": noon.Unix(),
		"scope": "orders:read admin shop.write orders:read",
	}
}

func TestReadExternal(t *testing.T) {
	for _, c := range []struct {
		name    string
		typ     string
		changes map[string]any
		code    countersign.Code
	}{
		{"typ JWT", "JWT", nil, ""},
		{"typ at+jwt", "at+jwt", nil, ""},
		{"typ application/at+jwt", "application/at+jwt", nil, ""},
		{"typ AT+JWT", "AT+JWT", nil, ""},
		{"Keycloak's Bearer", "JWT", map[string]any{"typ": "Bearer"}, ""},
		{"one audience, a string", "JWT", map[string]any{"aud": "shop-app"}, ""},
		{"at+jwt with a nonce", "at+jwt", map[string]any{"nonce": "n"}, ""},
		{"typ dpop+jwt", "dpop+jwt", nil, countersign.CodeSubjectKind},
		{"typ logout+jwt", "logout+jwt", nil, countersign.CodeSubjectKind},
		{"typ txntoken+jwt", "txntoken+jwt", nil, countersign.CodeSubjectKind},
		{"typ id_token+jwt", "oauth-id-jag+jwt", nil, countersign.CodeSubjectKind},
		{"nonce", "JWT", map[string]any{"nonce": "n"}, countersign.CodeSubjectKind},
		{"at_hash", "JWT", map[string]any{"at_hash": "n"}, countersign.CodeSubjectKind},
		{"c_hash", "JWT", map[string]any{"c_hash": nil, "c_hash ": "x"}, ""},
		{"c_hash is null", "JWT", map[string]any{"c_hash": json.RawMessage("null")}, countersign.CodeSubjectKind},
		{"payload typ ID", "JWT", map[string]any{"typ": "ID"}, countersign.CodeSubjectKind},
		{"payload typ Refresh", "at+jwt", map[string]any{"typ": "Refresh"}, countersign.CodeSubjectKind},
		{"payload typ Offline", "JWT", map[string]any{"typ": "Offline"}, countersign.CodeSubjectKind},
		{"payload typ Logout", "JWT", map[string]any{"typ": "Logout"}, countersign.CodeSubjectKind},
		{"payload typ is a number", "JWT", map[string]any{"typ": 1}, countersign.CodeSubjectToken},
		{"events", "at+jwt", map[string]any{"events": map[string]any{}}, countersign.CodeSubjectKind},
		{"for somebody else", "JWT", map[string]any{"aud": "other"}, countersign.CodeSubjectAudience},
		{"for the audience of another issuer", "JWT", map[string]any{"aud": "hr-portal"}, countersign.CodeSubjectAudience},
		{"for nobody", "JWT", map[string]any{"aud": nil}, countersign.CodeSubjectAudience},
		{"for the service's own name", "JWT", map[string]any{"aud": "gateway"}, countersign.CodeSubjectAudience},
		{"aud is a number", "JWT", map[string]any{"aud": 1}, countersign.CodeSubjectToken},
		{"no exp", "JWT", map[string]any{"exp": nil}, countersign.CodeSubjectToken},
		{"exp is a string", "JWT", map[string]any{"exp": "4102444800"}, countersign.CodeSubjectToken},
		{"exp is negative", "JWT", map[string]any{"exp": -1}, countersign.CodeSubjectToken},
		{"expired within the skew", "JWT", map[string]any{"exp": noon.Unix() - 1}, countersign.CodeSubjectExpired},
		{"expired", "JWT", map[string]any{"exp": noon.Unix() - 100}, countersign.CodeSubjectExpired},
		{"from the future", "JWT", map[string]any{"iat": noon.Unix() + 100}, countersign.CodeSubjectExpired},
		{"no iat", "JWT", map[string]any{"iat": nil}, countersign.CodeSubjectToken},
		{"issued 30 days ago", "JWT", map[string]any{"iat": noon.Unix() - 30*24*3600 + 1}, ""},
		{"issued before revocations are kept", "JWT", map[string]any{"iat": noon.Unix() - 30*24*3600 - 1}, countersign.CodeSubjectOld},
		{"iat is 1970", "JWT", map[string]any{"iat": 0}, countersign.CodeSubjectOld},
		{"no sub", "JWT", map[string]any{"sub": nil}, countersign.CodeSubjectName},
		{"empty sub", "JWT", map[string]any{"sub": ""}, countersign.CodeSubjectName},
		{"sub is a number", "JWT", map[string]any{"sub": 1}, countersign.CodeSubjectToken},
		{"sub of 255 bytes", "JWT", map[string]any{"sub": strings.Repeat("x", 255)}, ""},
		{"sub of 256 bytes", "JWT", map[string]any{"sub": strings.Repeat("x", 256)}, countersign.CodeSubjectName},
		{"sub with a control character", "JWT", map[string]any{"sub": "a\u0085b"}, countersign.CodeSubjectName},
		{"sub is an ID", "JWT", map[string]any{"sub": idOf("orders").String()}, countersign.CodeSubjectName},
		{"sub is like an ID", "JWT", map[string]any{"sub": "SPIFFE:x"}, countersign.CodeSubjectName},
		{"sub of another issuer", "JWT", map[string]any{"sub": "hr:bob"}, countersign.CodeSubjectName},
		{"sub of its own name", "JWT", map[string]any{"sub": "idp:bob"}, countersign.CodeSubjectName},
		{"sub with a colon", "JWT", map[string]any{"sub": "auth0:bob"}, ""},
		{"scope is a number", "JWT", map[string]any{"scope": 1}, countersign.CodeSubjectToken},
		{"scope is a mixed array", "JWT", map[string]any{"scope": []any{"a", 1}}, countersign.CodeSubjectToken},
		{"sid is a number", "JWT", map[string]any{"sid": 1}, countersign.CodeSubjectToken},
		{"sid is too long", "JWT", map[string]any{"sid": strings.Repeat("x", 256)}, countersign.CodeSubjectToken},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := shop().policy()
			client, _ := p.Service("gateway")
			issuer, _ := p.Issuer(idpURL)
			s, err := readExternal(p, issuer, client, parsed(t, c.typ, with(userClaims(), c.changes)), accessToken, noon)
			if codeOf(err) != c.code || (err == nil) != (c.code == "") {
				t.Fatalf("got %v, want %q", err, c.code)
			}
			if err == nil && (s.External != issuer || s.SubIssuer != idpURL || s.ID != "" || s.Transaction != "" || s.Act != nil) {
				t.Errorf("read %+v", s)
			}
		})
	}
}

func TestReadExternalKeeps(t *testing.T) {
	p := shop().policy()
	client, _ := p.Service("gateway")
	read := func(url string, changes map[string]any) *Subject {
		t.Helper()
		issuer, _ := p.Issuer(url)
		s, err := readExternal(p, issuer, client, parsed(t, "JWT", with(userClaims(), changes)), accessToken, noon)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := read(idpURL, map[string]any{
		"sid": "s1", "email": "a@b", "phone": "1", "amr": []string{"pwd"}, "txn": "theirs", "jti": "x", "cnf": map[string]any{"jkt": "y"},
		"act": map[string]any{"sub": idOf("orders").String()}, "may_act": map[string]any{"sub": "z"}, "sub_iss": us, "client_id": "web",
	})
	want := &Subject{
		External: s.External, Sub: "alice", SubIssuer: idpURL, Scopes: []string{"orders:read", "shop.write"}, Cut: []string{"admin"}, Audiences: []string{"shop-web"},
		Payload: s.Payload,
		Expires: time.Unix(noon.Unix()+3600, 0).UTC(), SessionID: "s1",
		Facts:  countersign.TokenFacts{Subject: "alice", SessionIssuer: idpURL, SessionID: "s1", IssuedAt: time.Unix(noon.Unix(), 0).UTC()},
		MayAct: json.RawMessage(`{"sub":"z"}`),
		Carry:  map[string]json.RawMessage{"email": json.RawMessage(`"a@b"`), "amr": json.RawMessage(`["pwd"]`)},
		Dropped: map[string]json.RawMessage{
			"jti": json.RawMessage(`"x"`), "cnf": json.RawMessage(`{"jkt":"y"}`), "act": json.RawMessage(`{"sub":"` + idOf("orders").String() + `"}`),
		},
	}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	if s.Machine(us) {
		t.Error("an external token made itself a machine's")
	}
	s = read(hrURL, map[string]any{"iss": hrURL, "aud": "hr-portal", "scope": nil, "scp": []string{"orders:read", "shop.write", "orders:read x"}})
	if s.Sub != "hr:alice" || !cmp.Equal(s.Scopes, []string{"orders:read"}) {
		t.Errorf("prefixed, scopes as an array: %+v", s)
	}
	if s := read(hrURL, map[string]any{"iss": hrURL, "aud": "hr-portal", "scope": "orders:read"}); len(s.Scopes) != 0 {
		t.Errorf("scopes of a claim that is not the issuer's scope_claim: %v", s.Scopes)
	}
}

func TestAcceptedFrom(t *testing.T) {
	g := shop()
	g.issuers = append(g.issuers, countersign.Issuer{Name: "other", URL: "https://other.example"})
	p := g.policy()
	gateway, _ := p.Service("gateway")
	orders, _ := p.Service("orders")
	if issuer, err := acceptedFrom(p, gateway, idpURL); err != nil || issuer.Name != "idp" {
		t.Errorf("%v, %v", issuer, err)
	}
	for _, iss := range []string{"https://other.example", idpURL + "/", strings.ToUpper(idpURL), "", "https://evil.example"} {
		if _, err := acceptedFrom(p, gateway, iss); codeOf(err) != countersign.CodeSubjectIssuer {
			t.Errorf("%q: %v", iss, err)
		}
	}
	if _, err := acceptedFrom(p, orders, idpURL); codeOf(err) != countersign.CodeSubjectIssuer {
		t.Errorf("a service that is no entry point: %v", err)
	}
	gone := *gateway
	issuer, _ := p.Issuer(idpURL)
	denied := *issuer
	denied.Tokens = nil
	if _, err := readExternal(p, &denied, &gone, parsed(t, "JWT", userClaims()), accessToken, noon); codeOf(err) != countersign.CodeSubjectKind {
		t.Errorf("an issuer whose access tokens are not taken: %v", err)
	}
}
