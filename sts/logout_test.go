package sts

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

func stranger() countersign.Caller {
	return countersign.Caller{Addr: netip.MustParseAddr("192.0.2.7"), RequestID: "r1"}
}

func (h *house) logoutClaims() map[string]any {
	return map[string]any{
		"iss": h.idp.URL, "sub": "alice", "aud": []string{"other", "shop-app"}, "iat": h.now().Unix(), "exp": h.now().Unix() + 120, "jti": "l1",
		"events": map[string]any{logoutEvent: map[string]any{}}, "sid": "s1",
	}
}

func (h *house) logoutToken(typ string, changes map[string]any) string {
	h.t.Helper()
	compact, err := jwt.Sign(h.idp.key, "ES256", "idp-1", typ, with(h.logoutClaims(), changes))
	if err != nil {
		h.t.Fatal(err)
	}
	return compact
}

// Every rule of OpenID Connect Back-Channel Logout 1.0, 2.4 and 2.6, broken.
func TestLogoutRefusals(t *testing.T) {
	h := openHouse(t)
	g := h.graph()
	g.issuers = append(g.issuers, countersign.Issuer{Name: "k8s", Use: countersign.UseWorkloads, URL: "https://k8s.example", Algorithms: []string{"ES256"}})
	h.policy.Store(g.policy())
	for _, c := range []struct {
		name    string
		typ     string
		changes map[string]any
	}{
		{"another typ", "at+jwt", nil},
		{"our iss", typLogout, map[string]any{"iss": us}},
		{"an unknown iss", typLogout, map[string]any{"iss": "https://evil.example"}},
		{"no iss", typLogout, map[string]any{"iss": nil}},
		{"an issuer of workloads", typLogout, map[string]any{"iss": "https://k8s.example"}},
		{"for nobody", typLogout, map[string]any{"aud": nil}},
		{"for somebody else", typLogout, map[string]any{"aud": "other"}},
		{"for the audience of another issuer", typLogout, map[string]any{"aud": "hr-portal"}},
		{"aud is a number", typLogout, map[string]any{"aud": 1}},
		{"no iat", typLogout, map[string]any{"iat": nil}},
		{"from the future", typLogout, map[string]any{"iat": h.now().Unix() + 100}},
		{"no exp", typLogout, map[string]any{"exp": nil}},
		{"over", typLogout, map[string]any{"exp": h.now().Unix() - 61}},
		{"valid for days", typLogout, map[string]any{"exp": h.now().Unix() + 3*24*3600}},
		{"no jti", typLogout, map[string]any{"jti": nil}},
		{"a long jti", typLogout, map[string]any{"jti": strings.Repeat("x", maxWord+1)}},
		{"no events", typLogout, map[string]any{"events": nil}},
		{"events of another kind", typLogout, map[string]any{"events": map[string]any{logoutEvent + "/": map[string]any{}}}},
		{"events in other letters", typLogout, map[string]any{"events": map[string]any{strings.ToUpper(logoutEvent): map[string]any{}}}},
		{"the event is no object", typLogout, map[string]any{"events": map[string]any{logoutEvent: true}}},
		{"events is a list", typLogout, map[string]any{"events": []string{logoutEvent}}},
		{"nonce", typLogout, map[string]any{"nonce": "n"}},
		{"nonce is null", typLogout, map[string]any{"nonce": nil, "nonce ": 1, "sub": nil, "sid": nil}},
		{"neither sub nor sid", typLogout, map[string]any{"sub": nil, "sid": nil}},
		{"empty sub and sid", typLogout, map[string]any{"sub": "", "sid": ""}},
		{"sub is a number", typLogout, map[string]any{"sub": 1}},
		{"a long sid", typLogout, map[string]any{"sid": strings.Repeat("x", maxSub+1)}},
		{"sub is an ID", typLogout, map[string]any{"sid": nil, "sub": idOf("orders").String()}},
		{"sub of another issuer", typLogout, map[string]any{"sid": nil, "sub": "hr:bob"}},
	} {
		if err := h.Logout(t.Context(), stranger(), h.logoutToken(c.typ, c.changes)); codeOf(err) != countersign.CodeLogoutToken {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	good := h.logoutToken(typLogout, nil)
	for name, token := range map[string]string{
		"opaque": "opaque", "empty": "", "another signature": good[:len(good)-8] + "AAAAAAAA",
		"of a key that is not published": h.idp.token(t, "idp-2", h.logoutClaims()),
		"alg none":                       "eyJhbGciOiJub25lIn0." + strings.Split(good, ".")[1] + ".",
	} {
		if err := h.Logout(t.Context(), stranger(), token); codeOf(err) != countersign.CodeLogoutToken {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.Logout(t.Context(), stranger(), h.logoutToken(typLogout, map[string]any{"iss": downURL, "aud": "hr-portal"})); codeOf(err) != countersign.CodeIssuerDown {
		t.Errorf("an issuer that is down: %v", err)
	}
	if list, _, _ := h.Revocations(t.Context(), time.Time{}, 10); len(list) != 0 {
		t.Errorf("revoked: %+v", list)
	}
	// A refused token uses up nothing: its jti is recorded after it was verified.
	if err := h.Logout(t.Context(), stranger(), good); err != nil {
		t.Error(err)
	}
}

func TestLogout(t *testing.T) {
	h := openHouse(t)
	alice, aliceElsewhere := h.user(map[string]any{"sid": "s1"}), h.user(map[string]any{"sid": "s2"})
	relay := h.must("gateway", exchangeOf(alice, "orders")).AccessToken
	token := h.logoutToken(typLogout, nil)
	if err := h.Logout(t.Context(), as("gateway"), token); err != nil { // who brings it is no matter
		t.Fatal(err)
	}
	h.refuses("the session", as("gateway"), exchangeOf(alice, "orders"), countersign.CodeRevoked)
	h.refuses("what was made in it", as("orders"), exchangeOf(relay, "inventory"), countersign.CodeRevoked)
	h.must("gateway", exchangeOf(aliceElsewhere, "orders"))
	list, _, err := h.Revocations(t.Context(), time.Time{}, 10)
	if err != nil || len(list) != 1 || list[0].Kind != countersign.RevokeSession || list[0].Issuer != h.idp.URL || list[0].By != "issuer idp" || !h.inFeed(list[0]) {
		t.Errorf("%+v, %v", list, err)
	}
	if r := h.records(eventRevoked); len(r) != 2 || r[0].By.Name != "issuer idp" || r[0].By.ID != "" || r[0].By.Addr == "" {
		t.Errorf("%+v", r)
	}
	if err := h.Logout(t.Context(), stranger(), token); codeOf(err) != countersign.CodeLogoutReplay {
		t.Errorf("sent again: %v", err)
	}

	h.pass(time.Second)
	for n, typ := range []string{"JWT", "application/logout+jwt", "LOGOUT+JWT"} {
		sub := "user" + typ
		if err := h.Logout(t.Context(), stranger(), h.logoutToken(typ, map[string]any{"jti": typ, "sid": nil, "sub": sub})); err != nil {
			t.Errorf("%d: %v", n, err)
		}
		h.refuses("a subject", as("gateway"), exchangeOf(h.user(map[string]any{"sub": sub}), "orders"), countersign.CodeRevoked)
	}
	h.pass(time.Second)
	h.must("gateway", exchangeOf(h.user(map[string]any{"sub": "userJWT"}), "orders"))

	// Under `subject: prefix` the sub is the one of our tokens.
	g := h.graph()
	g.issuers[0].Subject = countersign.SubjectPrefix
	h.policy.Store(g.policy())
	if err := h.Logout(t.Context(), stranger(), h.logoutToken(typLogout, map[string]any{"jti": "p", "sid": nil})); err != nil {
		t.Fatal(err)
	}
	list, _, _ = h.Revocations(t.Context(), time.Time{}, 1)
	if list[0].Name != "idp:alice" || list[0].Value != countersign.RevokedSubject("idp:alice") {
		t.Errorf("%+v", list)
	}
	h.refuses("a prefixed subject", as("gateway"), exchangeOf(aliceElsewhere, "orders"), countersign.CodeRevoked)
}

// A logout token that comes many times at the same moment takes effect once.
func TestLogoutOnce(t *testing.T) {
	h := openHouse(t)
	token := h.logoutToken(typLogout, nil)
	codes := make([]countersign.Code, 8)
	var group sync.WaitGroup
	for n := range codes {
		group.Go(func() { codes[n] = codeOf(h.Logout(t.Context(), stranger(), token)) })
	}
	group.Wait()
	slices.Sort(codes)
	if codes[0] != "" || codes[1] != countersign.CodeLogoutReplay || codes[7] != countersign.CodeLogoutReplay {
		t.Errorf("%q", codes)
	}
	h.clock.Store(int64(10 * time.Minute))
	if n, err := h.store.Prune(t.Context(), logoutsTable().Name, 10); n != 1 || err != nil {
		t.Errorf("%d jtis were forgotten, %v", n, err)
	}
	if err := h.Logout(t.Context(), stranger(), token); codeOf(err) != countersign.CodeLogoutToken {
		t.Errorf("when its jti is forgotten: %v", err)
	}
}

func FuzzLogoutToken(f *testing.F) {
	p := shop().policy()
	issuer, _ := p.Issuer(idpURL)
	f.Add(`{"iss":"https://idp.shop.example","sub":"a","aud":"shop-web","iat":1795521600,"exp":1795521700,"jti":"x","events":{"http://schemas.openid.net/event/backchannel-logout":{}}}`)
	f.Add(`{"events":{"http://schemas.openid.net/event/backchannel-logout":null},"sid":"","exp":1e400}`)
	f.Add(`{"events":[],"aud":[1]}`)
	f.Fuzz(func(t *testing.T, payload string) {
		claims, err := jwt.ParseClaims([]byte(payload))
		if err != nil {
			return
		}
		l, err := readLogout(p, issuer, &jwt.Token{Typ: typLogout, Claims: claims}, noon)
		switch {
		case err != nil && l != nil, err == nil && (l.id == "" || l.sub == "" && l.sid == "" || claims.Has("nonce") || !l.expires.After(noon.Add(-skew))):
			t.Errorf("%s: %+v, %v", payload, l, err)
		case err != nil && codeOf(err) != countersign.CodeLogoutToken:
			t.Errorf("%s: %v", payload, err)
		}
	})
}
