package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// duplicates: "header and payload objects without duplicate members, depth at most 16, exact member names".
func (i *hostileIssuer) duplicates() []hostile {
	claims := i.json(i.claims())
	with := func(member string) string { return i.es256(header, claims[:len(claims)-1]+","+member+"}") }
	without := func(name string) string { return i.json(i.claims(name, nil)) }
	inPlace := func(name, member string) string {
		c := without(name)
		return i.es256(header, c[:len(c)-1]+","+member+"}")
	}
	const token = countersign.CodeSubjectToken
	return []hostile{
		{"sub twice", with(`"sub":"admin"`), token},
		{"sub twice, once escaped", with(`"s\u0075b":"admin"`), token},
		{"a member twice further in", with(`"a":{"b":1,"b":2}`), token},
		{"alg twice", i.es256(`{"alg":"ES256","alg":"none","kid":"ec"}`, claims), token},
		{"kid twice", i.es256(`{"alg":"ES256","kid":"ec","kid":"rsa"}`, claims), token},
		{"SUB for sub", inPlace("sub", `"SUB":"ana"`), countersign.CodeSubjectName},
		{"Exp for exp", inPlace("exp", `"Exp":4000000000`), token},
		{"AUD for aud", inPlace("aud", `"AUD":"shop-web"`), countersign.CodeSubjectAudience},
		{"ISS for iss", inPlace("iss", `"ISS":"`+i.URL+`"`), countersign.CodeSubjectIssuer},
		{"ALG for alg", i.es256(`{"ALG":"ES256","kid":"ec"}`, claims), token},
		{"17 deep", with(`"a":` + strings.Repeat("[", 16) + strings.Repeat("]", 16)), token},
		{"act 1,500 deep", with(`"act":` + strings.Repeat(`{"":`, 1500) + "1" + strings.Repeat("}", 1500)), token},
		{"header 1,000 deep", i.es256(`{"alg":"ES256","kid":"ec","x":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+"}", claims), token},
	}
}

// times: "`exp` required, numeric, finite; skew at most 60 s" (Zitadel GHSA-wxg7-w2v3-w38g).
func (i *hostileIssuer) times() []hostile {
	raw := func(name, value string) string {
		c := i.json(i.claims(name, nil))
		return i.es256(header, c[:len(c)-1]+`,"`+name+`":`+value+"}")
	}
	const token, expired = countersign.CodeSubjectToken, countersign.CodeSubjectExpired
	return []hostile{
		{"no exp", i.token("exp", nil), token},
		{"exp null", raw("exp", "null"), token},
		{"exp is a string", raw("exp", `"4000000000"`), token},
		{"exp 1e400", raw("exp", "1e400"), token},
		{"exp 1e300", raw("exp", "1e300"), token},
		{"exp NaN", raw("exp", "NaN"), token},
		{"exp negative", raw("exp", "-1"), token},
		{"exp is a list", raw("exp", "[4000000000]"), token},
		{"expired a second ago", i.token("exp", soon(-1)), expired},
		{"expired long ago", i.token("exp", 1), expired},
		{"no iat", i.token("iat", nil), token},
		{"iat in 90 s", i.token("iat", soon(90)), expired},
		{"iat is a string", raw("iat", `"1"`), token},
		{"iat null", raw("iat", "null"), token},
		{"iat negative", raw("iat", "-9223372036854775808"), token},
		{"nbf in 90 s", i.token("nbf", soon(90)), expired},
		{"nbf is a string", raw("nbf", `"1"`), token},
		{"3 s left", i.token("exp", soon(4)), countersign.CodeLifetime},
	}
}

// missing: what an access token must have, and of which type.
func (i *hostileIssuer) missing() []hostile {
	const token, name = countersign.CodeSubjectToken, countersign.CodeSubjectName
	return []hostile{
		{"no iss", i.token("iss", nil), countersign.CodeSubjectIssuer},
		{"no aud", i.token("aud", nil), countersign.CodeSubjectAudience},
		{"aud empty", i.token("aud", []string{}), countersign.CodeSubjectAudience},
		{"aud of another", i.token("aud", "other-web"), countersign.CodeSubjectAudience},
		{"aud begins like ours", i.token("aud", "shop-web.evil"), countersign.CodeSubjectAudience},
		{"aud ends like ours", i.token("aud", "evil-shop-web"), countersign.CodeSubjectAudience},
		{"aud in upper case", i.token("aud", "SHOP-WEB"), countersign.CodeSubjectAudience},
		{"aud is the service's name", i.token("aud", "gateway"), countersign.CodeSubjectAudience},
		{"aud is an object", i.token("aud", map[string]int{"shop-web": 1}), token},
		{"aud holds a number", i.token("aud", []any{"shop-web", 1}), token},
		{"no sub", i.token("sub", nil), name},
		{"sub empty", i.token("sub", ""), name},
		{"sub of 256 bytes", i.token("sub", strings.Repeat("a", 256)), name},
		{"sub is a number", i.token("sub", 1), token},
		{"sub with a line break", i.token("sub", "ana\nroot"), name},
		{"sub is a service's ID", i.token("sub", "spiffe://shop.internal/gateway"), name},
		{"sub is one, in upper case", i.token("sub", "SPIFFE://shop.internal/gateway"), name},
		{"sub under keep begins as an issuer's", i.token("sub", "idp:ana"), name},
		{"scope is an object", i.token("scope", map[string]int{"shop.read": 1}), token},
		{"iss is a number", i.token("iss", 1), token},
	}
}

// kinds: "`typ` checked per use": what an issuer signs and is no access token.
func (i *hostileIssuer) kinds() []hostile {
	typed := func(typ string, changes ...any) string {
		return i.es256(`{"alg":"ES256","kid":"ec","typ":"`+typ+`"}`, i.json(i.claims(changes...)))
	}
	const kind = countersign.CodeSubjectKind
	return []hostile{
		{"dpop+jwt", typed("dpop+jwt"), kind},
		{"logout+jwt", typed("logout+jwt"), kind},
		{"txntoken+jwt", typed("txntoken+jwt"), kind},
		{"client-authentication+jwt", typed("client-authentication+jwt"), kind},
		{"secevent+jwt", typed("secevent+jwt"), kind},
		{"token-introspection+jwt", typed("token-introspection+jwt"), kind},
		{"ID token by nonce", typed("JWT", "nonce", "n"), kind},
		{"ID token by at_hash", typed("JWT", "at_hash", "n"), kind},
		{"ID token by c_hash", typed("JWT", "c_hash", "n"), kind},
		{"ID token by Keycloak's typ", typed("JWT", "typ", "ID"), kind},
		{"refresh token by Keycloak's typ", typed("JWT", "typ", "Refresh"), kind},
		{"offline token by Keycloak's typ", typed("at+jwt", "typ", "Offline"), kind},
		{"logout token", typed("JWT", "events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}), kind},
		{"typ is a number", i.es256(`{"alg":"ES256","kid":"ec","typ":1}`, i.json(i.claims())), countersign.CodeSubjectToken},
	}
}

// names: keys come from configured issuers only, found by their exact names (CVE-2026-32301, octo-sts).
func (i *hostileIssuer) names(trap string) []hostile {
	const issuer = countersign.CodeSubjectIssuer
	return []hostile{
		{"iss is a URL that would have to be fetched", i.token("iss", trap), issuer},
		{"iss with a slash more", i.token("iss", i.URL+"/"), issuer},
		{"iss that begins like the right one", i.token("iss", i.URL+".evil.example"), issuer},
		{"iss in upper case", i.token("iss", strings.ToUpper(i.URL)), issuer},
		{"iss with a line break", i.token("iss", i.URL+"\n"), issuer},
		{"iss with user information", i.token("iss", strings.Replace(i.URL, "://", "://a@", 1)), issuer},
		{"iss that holds the right one", i.token("iss", trap+"/?"+i.URL), issuer},
		{"iss is the issuer's name in the policy", i.token("iss", "idp"), issuer},
		{"iss is a file", i.token("iss", "file:///etc/passwd"), issuer},
	}
}

// mayAct: keycloak#52691: a subject token that names who may act is good for him alone.
func (i *hostileIssuer) mayAct() []hostile {
	const may = countersign.CodeMayAct
	const us = "spiffe://shop.internal/gateway"
	return []hostile{
		{"may_act of another", i.token("may_act", map[string]any{"sub": "spiffe://shop.internal/orders"}), may},
		{"may_act is empty", i.token("may_act", map[string]any{}), may},
		{"may_act is a string", i.token("may_act", us), may},
		{"may_act is null", i.token("may_act", json.RawMessage("null")), may},
		{"may_act is a list", i.token("may_act", []string{us}), may},
		{"may_act in another case", i.token("may_act", map[string]any{"sub": strings.ToUpper(us)}), may},
		{"may_act with a condition that we don't know", i.token("may_act", map[string]any{"sub": us, "until": 1}), may},
		{"may_act under another issuer", i.token("may_act", map[string]any{"sub": us, "iss": i.URL}), may},
		{"may_act and another client_id", i.token("may_act", map[string]any{"sub": us, "client_id": "x"}), may},
	}
}

// TestHostileChains is about tokens of ours in wrong hands, loops, and what a request would like to say of itself.
func TestHostileChains(t *testing.T) {
	d := openDoor(t, nil, "gateway", "orders", "inventory")
	gateway, orders, inventory := d.as("gateway"), d.as("orders"), d.as("inventory")
	atOrders := d.minted(gateway, d.idp.good(), "orders")
	atInventory := d.minted(orders, atOrders, "inventory")
	before := d.state()
	target := refusal{400, "invalid_target", countersign.CodeNoCall}
	for name, c := range map[string]struct {
		got  reply
		want refusal
	}{
		"no row in the policy (CVE-2022-1245)": {d.exchange(gateway, d.idp.good(), "inventory"), target},
		"to itself":                            {d.exchange(gateway, d.idp.good(), "gateway"), target},
		"back to who called (A-B-A)":           {d.exchange(orders, atOrders, "gateway"), badRequest(countersign.CodeReentry)},
		"a token for the next service":         {d.exchange(orders, atInventory, "inventory"), badRequest(countersign.CodeSubjectKind)},
		"a token for somebody else":            {d.exchange(gateway, atInventory, "orders"), badRequest(countersign.CodeSubjectAudience)},
		"a user's token in a service that is no entry": {
			d.exchange(orders, d.idp.good(), "inventory"), badRequest(countersign.CodeSubjectIssuer)},
		"our token, one bit turned": {d.exchange(orders, flip(atOrders), "inventory"), badRequest(countersign.CodeSubjectToken)},
		"our issuer, another's key": {
			d.exchange(orders, d.idp.token("iss", d.url), "inventory"), badRequest(countersign.CodeSubjectKey)},
		"who has no calls": {d.exchange(inventory, atInventory, "orders"), target},
	} {
		if err := c.want.check(c.got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.unchanged(before, map[string]int{"token.denied": 9})
	d.stillGood()
}

// TestActIsOurs: what an external token or a request says of actors is in no token of ours.
func TestActIsOurs(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	forged := map[string]any{"sub": "spiffe://shop.internal/inventory"}
	form := exchangeForm(d.idp.token("act", forged, "cnf", forged, "SUB", "root", "Scope", "orders:admin"), "orders")
	for name, value := range map[string]string{"act": "spiffe://shop.internal/inventory", "sub": "root", "actor": "x", "requested_subject": "root"} {
		form.Set(name, value)
	}
	header := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, name := range []string{"X-Forwarded-Client-Cert", "Client-Cert", "Ssl-Client-Cert", "X-Ssl-Client-Cert", "X-Client-Cert"} {
		header = append(header, name, `URI=spiffe://shop.internal/inventory`)
	}
	got := d.send(d.as("gateway"), http.MethodPost, "/oauth2/token", form.Encode(), header...)
	claims := d.claimsOf(got)
	act, _ := json.Marshal(claims["act"])
	if claims["sub"] != "ana" || string(act) != `{"sub":"spiffe://shop.internal/gateway"}` || claims["client_id"] != "spiffe://shop.internal/gateway" || claims["cnf"] != nil {
		t.Errorf("the minted token says %v", claims)
	}
	none := refusal{401, "invalid_client", countersign.CodeNoCredential}
	if err := none.check(d.send(d.as(""), http.MethodPost, "/oauth2/token", form.Encode(), header...)); err != nil {
		t.Errorf("a certificate in a header: %v", err)
	}
}

func (d *door) minted(c *http.Client, subject, audience string) string {
	d.Helper()
	got := d.exchange(c, subject, audience)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(got.body, &answer); err != nil || answer.AccessToken == "" {
		d.Fatalf("no token for %s: %d %s", audience, got.status, got.body)
	}
	return answer.AccessToken
}

// flip turns one bit of a token's signature.
func flip(token string) string {
	at := strings.LastIndexByte(token, '.') + 1
	other := byte('A')
	if token[at] == other {
		other = 'B'
	}
	return token[:at] + string(other) + token[at+1:]
}

// claimsOf are the claims of the token in an answer.
func (d *door) claimsOf(got reply) map[string]any {
	d.Helper()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	var claims map[string]any
	d.must(json.Unmarshal(got.body, &answer))
	token, err := jwt.Parse(answer.AccessToken)
	if err != nil {
		d.Fatalf("no token: %d %s", got.status, got.body)
	}
	d.must(json.Unmarshal(token.Payload, &claims))
	return claims
}
