package api

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts"
	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

const (
	ordersID    = "spiffe://shop.internal/orders"
	inventoryID = "spiffe://shop.internal/inventory"
)

func (k *kit) svid(c *http.Client, audiences ...string) reply {
	k.Helper()
	body, err := json.Marshal(wire.JWTSVIDRequest{Audience: audiences})
	k.must(err)
	return k.send(c, http.MethodPost, k.url+"/v1/jwt-svid", string(body), "Content-Type", wire.JSON)
}

// mustSVID is a JWT-SVID of c's service.
func (k *kit) mustSVID(c *http.Client, audiences ...string) string {
	k.Helper()
	got := k.svid(c, audiences...)
	var out wire.JWTSVID
	if err := json.Unmarshal([]byte(got.body), &out); err != nil || got.status != 200 || out.SVID == "" {
		k.Fatalf("%d %s", got.status, got.body)
	}
	return out.SVID
}

// spiffeBundle is GET /v1/bundle as the SPIFFE library reads it.
func (k *kit) spiffeBundle() *spiffebundle.Bundle {
	k.Helper()
	got := k.send(k.raw(nil), http.MethodGet, k.url+"/v1/bundle", "")
	bundle, err := spiffebundle.Parse(spiffeid.RequireTrustDomainFromString(testDomain), []byte(got.body))
	k.must(err)
	return bundle
}

// A JWT-SVID is what SPIFFE's own library takes, holds what standards.md lists and nothing more, and is in the audit log.
func TestJWTSVID(t *testing.T) {
	k := newKit(t, kitOptions{})
	reports := k.raw(k.join("reports"))
	for name, c := range map[string]struct{ sent, aud []string }{
		"a name":  {[]string{"orders"}, []string{ordersID}},
		"an ID":   {[]string{ordersID}, []string{ordersID}},
		"both":    {[]string{"orders", ordersID}, []string{ordersID}},
		"itself":  {[]string{"reports"}, []string{reportsID}},
		"several": {[]string{reportsID, "orders"}, []string{reportsID, ordersID}},
	} {
		got := k.svid(reports, c.sent...)
		if got.status != 200 || got.header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%s: %d %v %s", name, got.status, got.header, got.body)
		}
		var out wire.JWTSVID
		k.must(json.Unmarshal([]byte(got.body), &out))
		for _, aud := range c.aud {
			svid, err := jwtsvid.ParseAndValidate(out.SVID, k.spiffeBundle(), []string{aud})
			if err != nil {
				t.Errorf("%s: go-spiffe: %v", name, err)
				continue
			}
			if svid.ID.String() != reportsID || !slices.Equal(svid.Audience, c.aud) || !svid.Expiry.Equal(out.ExpiresAt) {
				t.Errorf("%s: %+v", name, svid)
			}
		}
		if _, err := jwtsvid.ParseAndValidate(out.SVID, k.spiffeBundle(), []string{inventoryID}); err == nil {
			t.Errorf("%s: it is good for inventory", name)
		}
		k.checkSVIDParts(name, out)
	}
	orders := k.raw(k.join("orders"))
	if _, err := jwtsvid.ParseAndValidate(k.mustSVID(orders, "inventory"), k.spiffeBundle(), []string{inventoryID}); err != nil {
		t.Errorf("an edge without scopes: %v", err)
	}
	if got := k.records("svid.issued"); len(got) != 6 || got[0].By.ID != reportsID || !strings.Contains(string(got[0].Detail), `"kid"`) {
		t.Errorf("recorded: %+v", got)
	}
}

// checkSVIDParts holds header and claims to the lists.
func (k *kit) checkSVIDParts(name string, out wire.JWTSVID) {
	k.Helper()
	parsed, err := jwt.Parse(out.SVID)
	k.must(err)
	header, claims := map[string]any{}, map[string]any{}
	raw, _, _ := strings.Cut(out.SVID, ".")
	text, err := base64.RawURLEncoding.DecodeString(raw)
	k.must(err)
	k.must(json.Unmarshal(text, &header))
	k.must(json.Unmarshal(parsed.Payload, &claims))
	if len(header) != 3 || header["alg"] != "ES256" || header["typ"] != "JWT" || header["kid"] != k.ring.Keys(keyring.SVID)[0].ID {
		k.Errorf("%s: the header is %v", name, header)
	}
	iat, _ := claims["iat"].(float64)
	exp, _ := claims["exp"].(float64)
	if len(claims) != 4 || claims["sub"] != reportsID || exp-iat != 300 || int64(exp) != out.ExpiresAt.Unix() {
		k.Errorf("%s: the claims are %v", name, claims)
	}
}

func TestJWTSVIDRefusals(t *testing.T) {
	k := newKit(t, kitOptions{})
	reports := k.raw(k.join("reports"))
	many := slices.Repeat([]string{"orders"}, 17)
	for name, c := range map[string]struct {
		audiences []string
		status    int
		code      countersign.Code
	}{
		"none":                     {nil, 400, countersign.CodeSVIDAudience},
		"too many":                 {many, 400, countersign.CodeSVIDAudience},
		"empty":                    {[]string{""}, 400, countersign.CodeSVIDAudience},
		"no edge":                  {[]string{"inventory"}, 403, countersign.CodeSVIDCall},
		"no edge, by ID":           {[]string{inventoryID}, 403, countersign.CodeSVIDCall},
		"one of two":               {[]string{"orders", "inventory"}, 403, countersign.CodeSVIDCall},
		"another domain":           {[]string{"spiffe://elsewhere/orders"}, 400, countersign.CodeSVIDAudience},
		"the trust domain":         {[]string{"spiffe://shop.internal"}, 400, countersign.CodeSVIDAudience},
		"an operator":              {[]string{"spiffe://shop.internal/operator/ann"}, 400, countersign.CodeSVIDAudience},
		"the authority":            {[]string{"spiffe://shop.internal/countersign"}, 400, countersign.CodeSVIDAudience},
		"the issuer":               {[]string{testIssuer}, 400, countersign.CodeSVIDAudience},
		"an address of the callee": {[]string{"https://orders.shop.internal"}, 400, countersign.CodeSVIDAudience},
		"another case":             {[]string{"Orders"}, 400, countersign.CodeSVIDAudience},
	} {
		got := k.svid(reports, c.audiences...)
		if got.status != c.status || got.code() != c.code {
			t.Errorf("%s: %d %s, want %s", name, got.status, got.body, c.code)
		}
	}
	if got := k.records("svid.denied"); len(got) != 13 || got[0].By.ID != reportsID {
		t.Errorf("%d denials recorded: %+v", len(got), got)
	}
	if got := k.records("svid.issued"); len(got) != 0 {
		t.Errorf("issued after all: %+v", got)
	}

	err := k.book.SetDisabled(t.Context(), countersign.Daemon("test"), "orders", "test", true)
	k.must(err)
	if got := k.svid(reports, "orders"); got.code() != countersign.CodeSVIDCall {
		t.Errorf("a disabled callee: %d %s", got.status, got.body)
	}
	err = k.book.SetDisabled(t.Context(), countersign.Daemon("test"), "reports", "test", true)
	k.must(err)
	if got := k.svid(reports, "reports"); got.status != 403 && got.status != 401 {
		t.Errorf("a disabled service: %d %s", got.status, got.body)
	}
}

// Keys of JWT-SVIDs are in the bundle and never in the JWKS, token keys the other way round, also while both rotate; and
// every change of the bundle moves its sequence.
func TestSVIDKeysArePublishedApart(t *testing.T) {
	k := newKit(t, kitOptions{})
	by := countersign.Daemon("test")
	reports := k.raw(k.join("reports"))
	old := k.mustSVID(reports, "orders")
	var sequence uint64
	check := func(what string, authorities int) {
		t.Helper()
		bundle := k.spiffeBundle()
		jwks := k.send(k.raw(nil), http.MethodGet, k.url+"/.well-known/jwks.json", "").body
		if got := len(bundle.JWTAuthorities()); got != authorities {
			t.Errorf("%s: %d JWT authorities, want %d", what, got, authorities)
		}
		for _, key := range k.ring.Keys(keyring.SVID) {
			if _, ok := bundle.FindJWTAuthority(key.ID); !ok || strings.Contains(jwks, key.ID) {
				t.Errorf("%s: svid key %s: in the bundle %t, in the JWKS %t", what, key.ID, ok, strings.Contains(jwks, key.ID))
			}
		}
		for _, key := range k.ring.Keys(keyring.Token) {
			if _, ok := bundle.FindJWTAuthority(key.ID); ok || !strings.Contains(jwks, key.ID) {
				t.Errorf("%s: token key %s: in the bundle %t", what, key.ID, ok)
			}
		}
		now, ok := bundle.SequenceNumber()
		if !ok || now <= sequence {
			t.Errorf("%s: the sequence goes from %d to %d", what, sequence, now)
		}
		if hint, ok := bundle.RefreshHint(); !ok || hint > 30*time.Minute {
			t.Errorf("%s: the refresh hint is %s", what, hint)
		}
		sequence = now
	}
	check("at first", 1)
	k.clock.turn(time.Minute)
	_, err := k.ring.Rotate(t.Context(), by, keyring.SVID, keyring.RotateOptions{})
	k.must(err)
	_, err = k.ring.Rotate(t.Context(), by, keyring.Token, keyring.RotateOptions{})
	k.must(err)
	check("rotated", 2)
	k.clock.turn(time.Hour)
	fresh := k.mustSVID(reports, "orders")
	if kidOf(t, fresh) == kidOf(t, old) {
		t.Error("after the lead the old key signs")
	}
	k.clock.turn(62 * time.Minute)
	check("the old one is gone", 1)
	if _, ok := k.spiffeBundle().FindJWTAuthority(kidOf(t, old)); ok {
		t.Error("the old key is still published")
	}
	k.clock.turn(time.Minute)
	_, err = k.ring.Retire(t.Context(), by, kidOf(t, fresh), keyring.RetireOptions{Compromised: true})
	k.must(err)
	check("retired as compromised", 1)
	if _, ok := k.spiffeBundle().FindJWTAuthority(kidOf(t, fresh)); ok {
		t.Error("the compromised key is still published")
	}
}

func kidOf(t *testing.T, compact string) string {
	t.Helper()
	parsed, err := jwt.Parse(compact)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.KID
}

// A JWT-SVID opens nothing here: not as a subject or actor token, not as Bearer on any route, not as a client assertion, not at
// introspection and revocation, not as a logout token, and not at a service that verifies relay tokens.
func TestJWTSVIDOpensNothing(t *testing.T) {
	k := newKit(t, kitOptions{})
	reports, orders, nobody := k.raw(k.join("reports")), k.raw(k.join("orders")), k.raw(nil)
	svid := k.mustSVID(reports, "orders", "reports")

	exchange := url.Values{
		"grant_type": {sts.GrantExchange}, "audience": {"inventory"}, "subject_token": {svid}, "subject_token_type": {sts.TypeAccessToken},
	}
	for _, kind := range []string{sts.TypeAccessToken, sts.TypeJWT, sts.TypeIDToken} {
		exchange.Set("subject_token_type", kind)
		if got := k.postToken(orders, exchange); got.status != 400 || !strings.Contains(got.body, "invalid_request") {
			t.Errorf("as a subject token (%s): %d %s", kind, got.status, got.body)
		}
	}
	acting := machineForm()
	acting.Set("grant_type", sts.GrantExchange)
	acting.Set("subject_token", k.machineToken(reports))
	acting.Set("subject_token_type", sts.TypeAccessToken)
	acting.Set("actor_token", svid)
	acting.Set("actor_token_type", sts.TypeAccessToken)
	if got := k.postToken(orders, acting); got.status != 400 {
		t.Errorf("as an actor token: %d %s", got.status, got.body)
	}
	if got := k.postToken(nobody, asserted(svid)); got.status != 401 || !strings.Contains(got.body, "invalid_client") {
		t.Errorf("as a client assertion: %d %s", got.status, got.body)
	}
	if got := k.post(orders, "/oauth2/introspect", svid); got.status != 200 || got.body != "{\"active\":false}\n" {
		t.Errorf("introspected: %d %s", got.status, got.body)
	}
	if got := k.post(reports, "/oauth2/revoke", svid); got.status == 200 && got.body != "" {
		t.Errorf("revoked: %d %s", got.status, got.body)
	}
	logout := url.Values{"logout_token": {svid}}.Encode()
	if got := k.send(nobody, http.MethodPost, k.url+"/oauth2/backchannel-logout", logout, "Content-Type", wire.Form); got.status != 400 {
		t.Errorf("as a logout token: %d %s", got.status, got.body)
	}

	path := strings.NewReplacer(":serial", "00", ":name", "orders", ":purpose", "svid", ":kid", "x")
	for _, r := range routes("") {
		if r.auth.open() {
			continue
		}
		got := k.send(nobody, r.method, k.url+path.Replace(r.path), body(r), "Content-Type", r.media, "Authorization", "Bearer "+svid)
		if got.status != 401 {
			t.Errorf("as Bearer at %s %s: %d %s", r.method, r.path, got.status, got.body)
		}
	}

	verifier, err := verify.New(verify.Config{
		Issuer: testIssuer, Audience: "orders", JWKSURI: k.url + "/.well-known/jwks.json", RevocationsURI: k.url + "/oauth2/revocations", Roots: k.root(),
	})
	k.must(err)
	if _, err := verifier.Verify(t.Context(), k.machineToken(reports)); err != nil {
		t.Fatalf("sts/verify does not take a relay token: %v", err)
	}
	if _, err := verifier.Verify(t.Context(), svid); err == nil {
		t.Error("sts/verify takes it")
	}
}
