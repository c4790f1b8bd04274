package sts

import (
	"cmp"
	"encoding/json"
	"slices"
	"testing"

	"github.com/countersign/countersign"
)

// Both directions: what is sent as an access token, and as an ID token, at issuers whose `tokens` are one, the other or both.
func TestKinds(t *testing.T) {
	events := map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}
	for _, c := range []struct {
		name       string
		typ        string
		claims     map[string]any
		access, id bool // whether it is taken as one
	}{
		{"no mark", "JWT", nil, true, false},
		{"no mark, no typ", "", nil, true, false},
		{"at+jwt", "at+jwt", nil, true, false},
		{"application/at+jwt", "application/at+jwt", nil, true, false},
		{"at+jwt with a nonce", "at+jwt", map[string]any{"nonce": "n"}, true, false},
		{"at+jwt with typ ID", "at+jwt", map[string]any{"typ": "ID"}, true, false},
		{"nonce", "JWT", map[string]any{"nonce": "n"}, false, true},
		{"nonce, no typ", "", map[string]any{"nonce": "n"}, false, true},
		{"at_hash", "JWT", map[string]any{"at_hash": "h"}, false, true},
		{"c_hash", "JWT", map[string]any{"c_hash": "h"}, false, true},
		{"typ ID", "JWT", map[string]any{"typ": "ID"}, false, true},
		{"typ id", "JWT", map[string]any{"typ": "id"}, false, true},
		{"a nonce that is null", "JWT", map[string]any{"nonce": json.RawMessage("null")}, false, true},
		{"typ Bearer", "JWT", map[string]any{"typ": "Bearer"}, true, false},
		{"typ Bearer with a nonce", "JWT", map[string]any{"typ": "Bearer", "nonce": "n"}, false, true},
		{"events", "JWT", map[string]any{"events": events}, false, false},
		{"events with a nonce", "JWT", map[string]any{"events": events, "nonce": "n"}, false, false},
		{"events in at+jwt", "at+jwt", map[string]any{"events": events}, false, false},
		{"typ Refresh", "JWT", map[string]any{"typ": "Refresh"}, false, false},
		{"typ Refresh with a nonce", "JWT", map[string]any{"typ": "Refresh", "nonce": "n"}, false, false},
		{"typ Offline", "at+jwt", map[string]any{"typ": "Offline"}, false, false},
		{"typ Logout", "JWT", map[string]any{"typ": "Logout"}, false, false},
		{"typ is a number", "JWT", map[string]any{"typ": 1, "nonce": "n"}, false, false},
		{"header logout+jwt", "logout+jwt", nil, false, false},
		{"header logout+jwt with a nonce", "logout+jwt", map[string]any{"nonce": "n"}, false, false},
		{"header secevent+jwt", "secevent+jwt", map[string]any{"nonce": "n"}, false, false},
		{"header dpop+jwt", "dpop+jwt", map[string]any{"nonce": "n"}, false, false},
		{"header id_token", "id_token", map[string]any{"nonce": "n"}, false, false},
	} {
		for _, takes := range [][]string{{"access"}, {"id"}, {"access", "id"}, {}} {
			issuer := &countersign.Issuer{Name: "idp", Tokens: takes}
			token := parsed(t, cmp.Or(c.typ, "JWT"), with(userClaims(), c.claims))
			token.Typ = c.typ
			for kind, fits := range map[tokenKind]bool{accessToken: c.access, idToken: c.id, anyKind: c.access || c.id} {
				want := fits
				switch {
				case kind == anyKind:
					want = c.access && slices.Contains(takes, "access") || c.id && slices.Contains(takes, "id")
				case !slices.Contains(takes, string(kind)):
					want = false
				}
				err := checkKind(issuer, token, kind)
				if (err == nil) != want {
					t.Errorf("%s as %q at an issuer of %v: %v", c.name, string(kind), takes, err)
				}
				if code := codeOf(err); err != nil && code != countersign.CodeSubjectKind && code != countersign.CodeSubjectToken {
					t.Errorf("%s: %s", c.name, code)
				} else if err != nil && code.Info().OAuth != "invalid_request" { // RFC 8693 2.2.2
					t.Errorf("%s: %s", c.name, code.Info().OAuth)
				}
			}
		}
	}
}

// By the front door: an ID token is taken as what it is, from an issuer whose ID tokens are taken, and nothing else as one.
func TestIDTokens(t *testing.T) {
	h := openHouse(t)
	asID := func(token string) Request {
		r := exchangeOf(token, "orders")
		r.SubjectTokenType = TypeIDToken
		return r
	}
	id := h.id(nil)
	h.refuses("an ID token where none is taken", as("gateway"), asID(id), countersign.CodeSubjectKind)
	h.refuses("an ID token as an access token", as("gateway"), exchangeOf(id, "orders"), countersign.CodeSubjectKind)

	g := h.graph()
	g.issuers[0].Tokens = []string{"access", "id"}
	h.policy.Store(g.policy())
	response := h.must("gateway", asID(id))
	if claims := h.verified(response.AccessToken); claims["sub"] != "alice" || claims["nonce"] != nil || claims["scope"] != "orders:hello" || response.IssuedTokenType != TypeAccessToken {
		t.Errorf("%v", claims)
	}
	h.refuses("an ID token as an access token", as("gateway"), exchangeOf(id, "orders"), countersign.CodeSubjectKind)
	h.refuses("an ID token for others", as("gateway"), asID(h.id(map[string]any{"aud": "another"})), countersign.CodeSubjectAudience)
	h.refuses("an ID token that expired", as("gateway"), asID(h.id(map[string]any{"exp": h.now().Unix() - 1})), countersign.CodeSubjectExpired)
	h.refuses("an access token as an ID token", as("gateway"), asID(h.user(nil)), countersign.CodeSubjectKind)
	h.refuses("a token without a mark as an ID token", as("gateway"), asID(h.id(map[string]any{"nonce": nil})), countersign.CodeSubjectKind)
	h.refuses("a relay token as an ID token", as("orders"), func() Request {
		r := asID(response.AccessToken)
		r.Audiences = []string{"inventory"}
		return r
	}(), countersign.CodeSubjectKind)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))

	g = h.graph()
	g.issuers[0].Tokens = []string{"id"}
	h.policy.Store(g.policy())
	h.must("gateway", asID(id))
	h.refuses("an access token where only ID tokens are taken", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeSubjectKind)
	e, err := h.Explain(t.Context(), ExplainRequest{From: "gateway", To: "orders", Token: id})
	if err != nil || !e.Allowed {
		t.Errorf("explained: %+v, %v", e, err)
	}
	e, err = h.Explain(t.Context(), ExplainRequest{From: "gateway", To: "orders", Token: h.user(nil)})
	if err != nil || e.Allowed {
		t.Errorf("explained: %+v, %v", e, err)
	}
}
