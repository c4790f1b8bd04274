package sts

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

// RFC 7662 2.2: the claims as they stand, to those whom the token concerns, and nothing to anybody else.
func TestIntrospect(t *testing.T) {
	h := openHouse(t)
	g := h.graph()
	g.issuers[0].Carry = []string{"email", "active", "token_type"}
	h.policy.Store(g.policy())
	_, first, second := h.chain(map[string]any{"sid": "s1", "email": "a@b", "active": false, "token_type": "x"})
	viewer := operator()
	viewer.Role = countersign.RoleViewer
	for name, by := range map[string]countersign.Caller{
		"the audience": as("inventory"), "its client": as("orders"), "further up the chain": as("gateway"), "a viewer": viewer,
	} {
		got := h.introspect(by, second)
		want := h.verified(second)
		delete(want, "(alg)")
		delete(want, "(typ)")
		want["active"], want["token_type"] = true, "Bearer"
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if string(a) != string(b) || got["email"] != "a@b" || got["sid"] != "s1" || got["act"] == nil || got["txn"] == nil || got["sub_iss"] == nil {
			t.Errorf("%s gets %s, want %s", name, a, b)
		}
	}
	nothing := func(name string, by countersign.Caller, token string) {
		t.Helper()
		if body, err := h.Introspect(by, TokenForm{Token: token}); err != nil || string(body) != `{"active":false}` {
			t.Errorf("%s: %s, %v", name, body, err)
		}
	}
	nothing("a bystander", as("reports"), second)
	nothing("the next hop, about the token before", as("inventory"), first)
	nothing("no token", viewer, "x")
	nothing("a user's token", viewer, h.user(nil))
	nothing("a long one", viewer, strings.Repeat("x", 60<<10))
	nothing("another signature", viewer, second[:len(second)-8]+"AAAAAAAA")
	h.refusesClient(t, "unknown", as("ghost"))
	g.service("gateway").Disabled = &countersign.Disabled{}
	h.policy.Store(g.policy())
	h.refusesClient(t, "disabled", as("gateway"))
	if _, err := h.Introspect(as("orders"), TokenForm{Token: second, ClientID: idOf("gateway").String()}); codeOf(err) != countersign.CodeClientMismatch {
		t.Errorf("another client_id: %v", err)
	}
	parsed, err := jwt.Parse(second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.ring.Retire(t.Context(), countersign.Daemon("test"), parsed.KID, keyring.RetireOptions{Compromised: true}); err != nil {
		t.Fatal(err)
	}
	nothing("of a retired key", viewer, second)
	if h.introspect(viewer, first)["active"] != true {
		t.Error("the other key's token is not active")
	}
	h.pass(5*time.Minute - time.Second)
	if h.introspect(viewer, first)["active"] != true {
		t.Error("not active before its exp")
	}
	h.pass(time.Second)
	nothing("over", viewer, first)
}

func (h *house) refusesClient(t *testing.T, name string, by countersign.Caller) {
	t.Helper()
	if _, err := h.Introspect(by, TokenForm{Token: "x"}); err == nil || countersign.AsError(err).Code.Info().OAuth != "invalid_client" {
		t.Errorf("%s: %v", name, err)
	}
	if err := h.RevokeToken(t.Context(), by, TokenForm{Token: "x"}); err == nil || countersign.AsError(err).Code.Info().OAuth != "invalid_client" {
		t.Errorf("%s: %v", name, err)
	}
}

// RFC 7009 2: by the token's client, with all that was made from it.
func TestRevokeToken(t *testing.T) {
	h := openHouse(t)
	_, first, second := h.chain(nil)
	revoke := func(name string, by countersign.Caller, token string, code countersign.Code) {
		t.Helper()
		if err := h.RevokeToken(t.Context(), by, TokenForm{Token: token}); codeOf(err) != code {
			t.Errorf("%s: %v, want %q", name, err, code)
		}
	}
	revoke("no token", as("gateway"), "x", "")
	revoke("a user's token", as("gateway"), h.user(nil), "")
	revoke("of another client", as("orders"), first, countersign.CodeNotTheClient)
	revoke("an operator", operator(), first, countersign.CodeClient)
	if h.introspect(as("inventory"), second)["active"] != true {
		t.Fatal("something was revoked")
	}
	if got := h.outcomes(); !slices.Equal(got, []audit.Outcome{audit.Denied, audit.Denied}) {
		t.Errorf("recorded: %v", got)
	}
	revoke("its client", as("gateway"), first, "")
	if h.introspect(as("inventory"), second)["active"] != false || h.introspect(as("orders"), first)["active"] != false {
		t.Error("it is active, or what was made from it")
	}
	records := len(h.outcomes())
	revoke("again", as("gateway"), first, "")
	revoke("what is revoked with it", as("orders"), second, "")
	list, _, err := h.Revocations(t.Context(), time.Time{}, 10)
	if err != nil || len(list) != 2 || list[1].Until != h.verifiedExp(first).Add(skew) {
		t.Errorf("%+v, %v", list, err)
	}
	if got := h.outcomes(); len(got) != records+2 {
		t.Errorf("recorded: %v", got)
	}
	h.pass(5 * time.Minute)
	revoke("over, of another client", as("orders"), first, "")
}

func (h *house) verifiedExp(token string) time.Time {
	return time.Unix(int64(h.verified(token)["exp"].(float64)), 0).UTC()
}

func TestParseTokenForm(t *testing.T) {
	for _, c := range []struct {
		name string
		form []string
		code countersign.Code
	}{
		{"a token", []string{"token", "x"}, ""},
		{"an unknown hint", []string{"token", "x", "token_type_hint", "pac_token"}, ""},
		{"an unknown parameter", []string{"token", "x", "y", "z"}, ""},
		{"no token", []string{"token_type_hint", "access_token"}, countersign.CodeTokenRequest},
		{"an empty token", []string{"token", ""}, countersign.CodeTokenRequest},
		{"two tokens", []string{"token", "x", "token", "x"}, countersign.CodeTokenRequest},
		{"two audiences", []string{"token", "x", "audience", "x", "audience", "y"}, countersign.CodeTokenRequest},
		{"a secret", []string{"token", "x", "client_secret", "y"}, countersign.CodeTwoCredentials},
		{"a control character", []string{"token", "x\n"}, countersign.CodeTokenRequest},
	} {
		if _, err := ParseTokenForm(formOf(c.form...)); codeOf(err) != c.code {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
	}
}

func FuzzParseTokenForm(f *testing.F) {
	for _, seed := range []string{
		"token=a.b.c&token_type_hint=access_token", "token=a&token=b", "token=", "client_secret=x&token=y", "token=%00", "logout_token=a.b.c", "=&=",
		"client_assertion_type=x&client_assertion=y&token=z",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		form, err := url.ParseQuery(body)
		if err != nil {
			return
		}
		r, err := ParseTokenForm(form)
		refused := func(err error, codes ...countersign.Code) bool {
			return err != nil && !slices.Contains(codes, codeOf(err))
		}
		switch {
		case refused(err, countersign.CodeTokenRequest, countersign.CodeTwoCredentials), err != nil && r != (TokenForm{}), err == nil && r.Token == "":
			t.Fatalf("%+v, %v", r, err)
		case err == nil && (len(form["token"]) != 1 || form.Get("client_secret") != ""):
			t.Fatalf("taken: %q", body)
		}
		token, err := ParseLogoutForm(form)
		if refused(err, countersign.CodeTokenRequest, countersign.CodeTwoCredentials, countersign.CodeLogoutToken) || err == nil && (token == "" || len(token) > jwt.MaxToken) {
			t.Fatalf("%q, %v", token, err)
		}
	})
}
