package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts"
	"github.com/countersign/countersign/sts/jwt"
)

const reportsID = "spiffe://shop.internal/reports"

// asserting is a daemon whose policy has a client key of reports.
type asserting struct {
	*kit
	key *ecdsa.PrivateKey
}

func newAsserting(t *testing.T, o kitOptions) *asserting {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwt.NewSet(jwt.PublicKey{KID: "reports-1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	if o.policy == "" {
		o.policy = testPolicy
	}
	o.policy = strings.Replace(o.policy, "- name: reports\n", "- name: reports\n    client_keys: {jwks_file: '"+string(set.JSON())+"'}\n", 1)
	return &asserting{kit: newKit(t, o), key: key}
}

// assertion is a good one of reports, changed; each has a jti of its own.
func (a *asserting) assertion(changes map[string]any) string {
	a.Helper()
	now := a.clock.now().Unix()
	claims := map[string]any{"iss": reportsID, "sub": reportsID, "aud": testIssuer, "iat": now, "exp": now + 60, "jti": rand.Text()}
	for name, value := range changes {
		claims[name] = value
	}
	compact, err := jwt.Sign(a.key, "ES256", "reports-1", "client-authentication+jwt", claims)
	a.must(err)
	return compact
}

func asserted(assertion string, more ...string) url.Values {
	form := machineForm()
	form.Set("client_assertion", assertion)
	form.Set("client_assertion_type", sts.AssertionType)
	for i := 0; i+1 < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

func (k *kit) postToken(c *http.Client, form url.Values, header ...string) reply {
	k.Helper()
	return k.send(c, http.MethodPost, k.url+"/oauth2/token", form.Encode(), append(header, "Content-Type", wire.Form)...)
}

// claimsOf are the claims of the token in an answer, which is not verified here.
func (k *kit) claimsOf(got reply) map[string]any {
	k.Helper()
	var body wire.Token
	k.must(json.Unmarshal([]byte(got.body), &body))
	token, err := jwt.Parse(body.AccessToken)
	k.must(err)
	claims := map[string]any{}
	k.must(json.Unmarshal(token.Payload, &claims))
	return claims
}

func TestClientAssertion(t *testing.T) {
	a := newAsserting(t, kitOptions{})
	nobody := a.raw(nil)
	for name, form := range map[string]url.Values{
		"alone":            asserted(a.assertion(nil)),
		"with client_id":   asserted(a.assertion(nil), "client_id", reportsID),
		"aud as one array": asserted(a.assertion(map[string]any{"aud": []string{testIssuer}})),
	} {
		got := a.postToken(nobody, form)
		a.checkToken(name, got, 200, "")
		if claims := a.claimsOf(got); claims["client_id"] != reportsID || claims["aud"] != "orders" {
			t.Errorf("%s: %v", name, claims)
		}
	}
	once := asserted(a.assertion(nil))
	a.checkToken("once", a.postToken(nobody, once), 200, "")
	for name, c := range map[string]struct {
		form   url.Values
		header []string
		status int
		oauth  string
		code   countersign.Code
	}{
		"replayed":               {once, nil, 401, "invalid_client", countersign.CodeAssertionUsed},
		"another client_id":      {asserted(a.assertion(nil), "client_id", "spiffe://shop.internal/orders"), nil, 401, "invalid_client", countersign.CodeClientMismatch},
		"token endpoint as aud":  {asserted(a.assertion(map[string]any{"aud": testIssuer + "/oauth2/token"})), nil, 401, "invalid_client", countersign.CodeAssertionAud},
		"garbage":                {asserted("x"), nil, 401, "invalid_client", countersign.CodeAssertion},
		"another type":           {asserted(a.assertion(nil), "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"), nil, 401, "invalid_client", countersign.CodeAssertion},
		"empty type":             {asserted(a.assertion(nil), "client_assertion_type", ""), nil, 400, "invalid_request", countersign.CodeTokenRequest},
		"a secret too":           {asserted(a.assertion(nil), "client_secret", "x"), nil, 400, "invalid_request", countersign.CodeTwoCredentials},
		"a secret alone":         {url.Values{"grant_type": {"client_credentials"}, "client_id": {reportsID}, "client_secret": {"x"}}, nil, 401, "invalid_client", countersign.CodeWrongCredential},
		"Basic too":              {asserted(a.assertion(nil)), []string{"Authorization", "Basic eDp5"}, 401, "invalid_client", countersign.CodeWrongCredential},
		"an assertion as Bearer": {machineForm(), []string{"Authorization", "Bearer " + a.assertion(nil)}, 401, "invalid_client", countersign.CodeWrongCredential},
		"client_id alone":        {url.Values{"grant_type": {"client_credentials"}, "client_id": {reportsID}}, nil, 401, "invalid_client", countersign.CodeNoCredential},
		"not its call":           {asserted(a.assertion(nil), "audience", "inventory"), nil, 400, "invalid_target", countersign.CodeNoCall},
	} {
		got := a.postToken(nobody, c.form, c.header...)
		a.checkToken(name, got, c.status, c.oauth)
		if got.code() != c.code {
			t.Errorf("%s: %s, want %s", name, got.body, c.code)
		}
	}
	twice := asserted(a.assertion(nil)).Encode() + "&client_assertion=" + a.assertion(nil)
	a.checkToken("two assertions", a.send(nobody, http.MethodPost, a.url+"/oauth2/token", twice, "Content-Type", wire.Form), 400, "invalid_request")
	query := a.send(nobody, http.MethodPost, a.url+"/oauth2/token?client_assertion="+a.assertion(nil), machineForm().Encode(), "Content-Type", wire.Form)
	a.checkToken("an assertion in the URL", query, 400, "invalid_request")
	if n := len(a.records("request.denied")); n != 0 {
		t.Errorf("strangers caused %d records; they are counted by the minute", n)
	}
	for _, r := range a.records("token.issued") {
		if r.By.Method != "assertion" || r.By.Assertion == "" || r.By.ID != reportsID {
			t.Errorf("the record's caller is %+v", r.By)
		}
	}
	if strings.Contains(a.logs.String(), once.Get("client_assertion")) {
		t.Error("an assertion stands in the log")
	}
}

// A certificate next to an assertion: of the same service it is the binding, of another one and one that is no good refuse the
// request, and then the assertion is not used up.
func TestClientAssertionNextToCertificate(t *testing.T) {
	a := newAsserting(t, kitOptions{})
	reports, orders, revoked := a.join("reports"), a.join("orders"), a.join("reports")
	a.must(a.admin().Revoke(t.Context(), revoked.Serial, "superseded"))
	form := asserted(a.assertion(nil))
	for name, c := range map[string]struct {
		http *http.Client
		code countersign.Code
	}{
		"another service": {a.raw(orders), countersign.CodeClientMismatch},
		"revoked":         {a.raw(revoked), countersign.CodeRevokedPeer},
		"foreign":         {a.raw(foreign(t, reports)), countersign.CodeBadCertificate},
		"of an operator":  {a.raw(a.operator("ann", countersign.RoleAdmin)), countersign.CodeWrongCredential},
		"of the daemon":   {a.raw(a.daemonIdentity()), countersign.CodeBadCertificate},
	} {
		got := a.postToken(c.http, form)
		a.checkToken(name, got, 401, "invalid_client")
		if got.code() != c.code {
			t.Errorf("%s: %s, want %s", name, got.body, c.code)
		}
	}
	a.checkToken("its own", a.postToken(a.raw(reports), form), 200, "")
	issued := a.records("token.issued")
	if len(issued) != 1 || issued[0].By.Method != "assertion" || issued[0].By.Serial != reports.Serial {
		t.Errorf("%+v", issued)
	}
	denied := a.records("request.denied")
	if len(denied) != 2 || denied[0].By.ID != "spiffe://shop.internal/orders" && denied[1].By.ID != "spiffe://shop.internal/orders" {
		t.Errorf("the refusals of authenticated callers: %+v", denied)
	}
}

// Tokens for a service with `bind: mtls` hold the SHA-256 of this connection's certificate; an assertion alone gets none.
func TestBoundTokens(t *testing.T) {
	a := newAsserting(t, kitOptions{policy: strings.Replace(testPolicy, "- name: orders\n", "- name: orders\n    token: {bind: mtls}\n", 1)})
	for range 2 { // a renewed certificate is another binding
		id := a.join("reports")
		sum := sha256.Sum256(id.Chain[0].Raw)
		want := base64.RawURLEncoding.EncodeToString(sum[:])
		for name, form := range map[string]url.Values{"certificate": machineForm(), "both": asserted(a.assertion(nil))} {
			got := a.postToken(a.raw(id), form)
			a.checkToken(name, got, 200, "")
			if cnf, _ := a.claimsOf(got)["cnf"].(map[string]any); len(cnf) != 1 || cnf["x5t#S256"] != want {
				t.Errorf("%s: cnf is %v, want %s", name, cnf, want)
			}
		}
	}
	got := a.postToken(a.raw(nil), asserted(a.assertion(nil)))
	a.checkToken("assertion alone", got, 400, "invalid_request")
	if got.code() != countersign.CodeUnbound {
		t.Errorf("%s", got.body)
	}
}

// RFC 9449 5: a server that makes no DPoP-bound tokens ignores the header and says Bearer; a client that insists discards that.
func TestDPoPHeaderIsIgnored(t *testing.T) {
	a := newAsserting(t, kitOptions{})
	got := a.postToken(a.raw(a.join("reports")), machineForm(), "DPoP", "eyJ0eXAiOiJkcG9wK2p3dCJ9.e30.AA")
	a.checkToken("DPoP", got, 200, "")
	if claims := a.claimsOf(got); claims["cnf"] != nil || !strings.Contains(got.body, `"token_type":"Bearer"`) {
		t.Errorf("%v: %s", claims, got.body)
	}
	document := a.send(a.raw(nil), http.MethodGet, a.url+"/.well-known/oauth-authorization-server", "").body
	if strings.Contains(document, "dpop") {
		t.Errorf("the metadata promises DPoP: %s", document)
	}
}

// RFC 8414 2, RFC 8705 3.3.
func TestClientAuthenticationMetadata(t *testing.T) {
	k := newKit(t, kitOptions{})
	var document struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
		Algs    []string `json:"token_endpoint_auth_signing_alg_values_supported"`
		Bound   bool     `json:"tls_client_certificate_bound_access_tokens"`
	}
	k.must(json.Unmarshal([]byte(k.send(k.raw(nil), http.MethodGet, k.url+"/.well-known/oauth-authorization-server", "").body), &document))
	if strings.Join(document.Methods, " ") != "tls_client_auth private_key_jwt" || !document.Bound || len(document.Algs) != 10 {
		t.Errorf("%+v", document)
	}
	for _, alg := range document.Algs {
		if alg == "none" || strings.HasPrefix(alg, "HS") {
			t.Errorf("%s is promised", alg)
		}
	}
}

// Who proved itself by an assertion is limited as an identity.
func TestAssertionsAreLimited(t *testing.T) {
	a := newAsserting(t, kitOptions{limits: Limits{Identity: 1}})
	for n, status := range []int{200, 200, 429} {
		if got := a.postToken(a.raw(nil), asserted(a.assertion(nil))); got.status != status {
			t.Errorf("request %d: %d %s", n, got.status, got.body)
		}
	}
}

// Strangers with large, slow bodies have a room of their own: they hold up nobody who came with a certificate.
func TestStrangersHaveTheirOwnRoom(t *testing.T) {
	rooms := newRooms()
	var token route
	for _, r := range routes("") {
		if r.path == "/oauth2/token" {
			token = r
		}
	}
	for range outBytes / (copies * formBody) {
		if err := rooms.of(token, false).enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := rooms.of(token, false).enter(ended); err == nil {
		t.Error("there is room for any number of strangers")
	}
	for range roomBytes / (copies * formBody) {
		if err := rooms.of(token, true).enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Other people's code makes the assertion (golang-jwt) and the request (x/oauth2).
func TestForeignAssertionClient(t *testing.T) {
	a := newAsserting(t, kitOptions{})
	now := time.Now()
	made := gojwt.NewWithClaims(gojwt.SigningMethodES256, gojwt.RegisteredClaims{
		Issuer: reportsID, Subject: reportsID, Audience: gojwt.ClaimStrings{testIssuer}, ID: rand.Text(),
		IssuedAt: gojwt.NewNumericDate(now), ExpiresAt: gojwt.NewNumericDate(now.Add(time.Minute)),
	})
	made.Header["kid"] = "reports-1"
	assertion, err := made.SignedString(a.key)
	a.must(err)
	config := clientcredentials.Config{
		ClientID: reportsID, TokenURL: a.url + "/oauth2/token", Scopes: []string{"orders:read"}, AuthStyle: oauth2.AuthStyleInParams,
		EndpointParams: url.Values{"audience": {"orders"}, "client_assertion": {assertion}, "client_assertion_type": {sts.AssertionType}},
	}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, a.raw(nil))
	token, err := config.Token(ctx)
	a.must(err)
	if token.TokenType != "Bearer" || token.Extra("issued_token_type") != sts.TypeAccessToken || !token.Valid() {
		t.Errorf("%+v", token)
	}
	if _, err := config.Token(ctx); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("the same assertion again: %v", err)
	}
}
