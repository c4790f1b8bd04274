package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

// TestMainJob goes the way of a service: join, token, renewal, and the end of both by revocation.
func TestMainJob(t *testing.T) {
	k := newKit(t, kitOptions{limits: DefaultLimits()})
	id := k.join("reports")
	if id.ID.String() != "spiffe://shop.internal/reports" || len(id.Chain) != 2 || len(id.Roots) != 1 {
		t.Fatalf("joined as %s with %d certificates and %d roots", id.ID, len(id.Chain), len(id.Roots))
	}
	c := k.over(id)
	token, err := c.Token(t.Context(), machineForm())
	k.must(err)
	if token.AccessToken == "" || token.TokenType != "Bearer" || token.ExpiresIn <= 0 || token.Scope != "orders:read" {
		t.Errorf("the token response is %+v", token)
	}
	key, csr := newCSR(t)
	renewed, err := c.Renew(t.Context(), wire.CertificateRequest{CSR: csr, TTL: countersign.Duration(time.Hour)})
	k.must(err)
	if renewed.Serial == id.Serial || renewed.ID != id.ID || !renewed.RenewAfter.Before(renewed.RenewBefore) {
		t.Errorf("the renewal is %+v", renewed)
	}
	next := k.over(k.identity(key, renewed))
	if _, err := next.Token(t.Context(), machineForm()); err != nil {
		t.Errorf("the renewed identity is no client: %v", err)
	}
	page, err := k.admin().Certificates(t.Context(), client.CertificateQuery{Service: "reports"})
	k.must(err)
	if len(page.Certificates) != 2 || page.Certificates[0].State != "valid" {
		t.Errorf("the inventory is %+v", page)
	}
	k.must(c.Revoke(t.Context(), id.Serial, "superseded")) // its own
	_, err = c.Token(t.Context(), machineForm())
	var refused *client.OAuthError
	if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized || refused.Body.Error != "invalid_client" || refused.Code() != countersign.CodeRevokedPeer {
		t.Errorf("a revoked certificate at the token endpoint: %v", err)
	}
	for _, secret := range []string{token.AccessToken, "Bearer "} {
		if strings.Contains(k.logs.String(), secret) {
			t.Errorf("the log holds a secret: %.20s...", secret)
		}
	}
}

// TestRevocationOnAKeptConnection sees to it that the judgement is not the handshake's.
func TestRevocationOnAKeptConnection(t *testing.T) {
	k := newKit(t, kitOptions{})
	id := k.join("reports")
	c := k.raw(id)
	var reused bool
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
	ask := func(path string) int {
		rq, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, k.url+path, strings.NewReader(machineForm().Encode()))
		k.must(err)
		if strings.Contains(path, "well-known") {
			rq.Method, rq.Body, rq.ContentLength = http.MethodGet, nil, 0
		}
		rq.Header.Set("Content-Type", wire.Form)
		response, err := c.Do(rq)
		k.must(err)
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode
	}
	if status := ask("/oauth2/token"); status != http.StatusOK {
		t.Fatalf("before the revocation: %d", status)
	}
	k.must(k.admin().Revoke(t.Context(), id.Serial, "keyCompromise"))
	if status := ask("/oauth2/token"); status != http.StatusUnauthorized || !reused {
		t.Errorf("after the revocation: %d, on the same connection: %v", status, reused)
	}
	if status := ask("/.well-known/jwks.json"); status != http.StatusOK || !reused {
		t.Errorf("a public document with a revoked certificate: %d, on the same connection: %v", status, reused)
	}
}

func TestExpiryOnAKeptConnection(t *testing.T) {
	k := newKit(t, kitOptions{})
	c := k.raw(k.join("reports"))
	if got := k.send(c, http.MethodPost, k.url+"/oauth2/token", machineForm().Encode(), "Content-Type", wire.Form); got.status != http.StatusOK {
		t.Fatalf("before the expiry: %d %s", got.status, got.body)
	}
	k.clock.turn(25 * time.Hour)
	got := k.send(c, http.MethodPost, k.url+"/oauth2/token", machineForm().Encode(), "Content-Type", wire.Form)
	if got.status != http.StatusUnauthorized || got.code() != countersign.CodeExpiredPeer {
		t.Errorf("after the expiry: %d %s", got.status, got.body)
	}
	if got := k.send(c, http.MethodGet, k.url+"/roots.pem", ""); got.status != http.StatusOK {
		t.Errorf("a public document with an expired certificate: %d %s", got.status, got.body)
	}
}

// TestExpiredCertificateRenewsItself: within the grace an ended certificate is a credential for POST /v1/certificates, and
// for nothing else; after it for nothing.
func TestExpiredCertificateRenewsItself(t *testing.T) {
	k := newKit(t, kitOptions{})
	id := k.join("reports")
	k.clock.turn(48 * time.Hour)
	c := k.raw(id)
	for _, path := range []string{"/v1/callers", "/v1/status", "/v1/certificates"} {
		if got := k.send(c, http.MethodGet, k.url+path, ""); got.status != http.StatusUnauthorized || got.code() != countersign.CodeExpiredPeer {
			t.Errorf("GET %s: %d %s", path, got.status, got.body)
		}
	}
	_, csr := newCSR(t)
	body, err := json.Marshal(wire.CertificateRequest{CSR: csr})
	k.must(err)
	renew := func() reply {
		return k.send(c, http.MethodPost, k.url+"/v1/certificates", string(body), "Content-Type", wire.JSON)
	}
	got := renew()
	if got.status != http.StatusCreated {
		t.Fatalf("within the grace: %d %s", got.status, got.body)
	}
	var issued wire.Certificate
	k.must(json.Unmarshal([]byte(got.body), &issued))
	if issued.ID != id.ID || !issued.NotAfter.After(k.clock.now()) {
		t.Errorf("%+v", issued)
	}
	two := k.send(c, http.MethodPost, k.url+"/v1/certificates", string(body), "Content-Type", wire.JSON, "Authorization", "Bearer x")
	if two.code() != countersign.CodeTwoCredentials {
		t.Errorf("with a second credential: %d %s", two.status, two.body)
	}
	k.clock.turn(49 * time.Hour)
	if got := renew(); got.status != http.StatusUnauthorized || got.code() != countersign.CodeExpiredPeer {
		t.Errorf("after the grace: %d %s", got.status, got.body)
	}
}

func TestTokenEndpoint(t *testing.T) {
	k := newKit(t, kitOptions{})
	id := k.join("reports")
	c, form := k.raw(id), machineForm().Encode()
	target := k.url + "/oauth2/token"
	for _, tc := range []struct {
		name, method, url, body string
		header                  []string
		status                  int
		oauth                   string
	}{
		{"good", http.MethodPost, target, form, []string{"Content-Type", wire.Form}, 200, ""},
		{"charset", http.MethodPost, target, form, []string{"Content-Type", wire.Form + "; charset=UTF-8"}, 200, ""},
		{"get", http.MethodGet, target, "", nil, 405, "invalid_request"},
		{"get with parameters", http.MethodGet, target + "?" + form, "", nil, 405, "invalid_request"},
		{"put", http.MethodPut, target, form, []string{"Content-Type", wire.Form}, 405, "invalid_request"},
		{"json", http.MethodPost, target, "{}", []string{"Content-Type", wire.JSON}, 400, "invalid_request"},
		{"no type", http.MethodPost, target, form, nil, 400, "invalid_request"},
		{"two types", http.MethodPost, target, form, []string{"Content-Type", wire.Form, "Content-Type", wire.Form}, 400, "invalid_request"},
		{"other charset", http.MethodPost, target, form, []string{"Content-Type", wire.Form + "; charset=utf-16"}, 400, "invalid_request"},
		{"multipart", http.MethodPost, target, form, []string{"Content-Type", "multipart/form-data; boundary=x"}, 400, "invalid_request"},
		{"query", http.MethodPost, target + "?scope=orders:read", form, []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"empty query", http.MethodPost, target + "?", form, []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"all in the query", http.MethodPost, target + "?" + form, "", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"doubled", http.MethodPost, target, form + "&grant_type=client_credentials", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"doubled unknown", http.MethodPost, target, form + "&x=1&x=2", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"unknown", http.MethodPost, target, form + "&x=1", []string{"Content-Type", wire.Form}, 200, ""},
		{"secret", http.MethodPost, target, form + "&client_secret=x", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"assertion", http.MethodPost, target, form + "&client_assertion=x&client_assertion_type=y", []string{"Content-Type", wire.Form}, 401, "invalid_client"},
		{"assertion without type", http.MethodPost, target, form + "&client_assertion=x", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"other client", http.MethodPost, target, form + "&client_id=spiffe://shop.internal/orders", []string{"Content-Type", wire.Form}, 401, "invalid_client"},
		{"own client", http.MethodPost, target, form + "&client_id=spiffe://shop.internal/reports", []string{"Content-Type", wire.Form}, 200, ""},
		{"bad escape", http.MethodPost, target, form + "&x=%zz", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"semicolon", http.MethodPost, target, form + ";x=1", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"no UTF-8", http.MethodPost, target, form + "&x=%ff", []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"many", http.MethodPost, target, form + strings.Repeat("&", maxPairs), []string{"Content-Type", wire.Form}, 400, "invalid_request"},
		{"large", http.MethodPost, target, form + "&x=" + strings.Repeat("a", formBody), []string{"Content-Type", wire.Form}, 413, "invalid_request"},
		{"empty", http.MethodPost, target, "", []string{"Content-Type", wire.Form}, 400, ""},
		{"grant type", http.MethodPost, target, "grant_type=password", []string{"Content-Type", wire.Form}, 400, "unsupported_grant_type"},
		{"target", http.MethodPost, target, "grant_type=client_credentials&audience=inventory", []string{"Content-Type", wire.Form}, 400, "invalid_target"},
		{"basic too", http.MethodPost, target, form, []string{"Content-Type", wire.Form, "Authorization", "Basic eDp5"}, 400, "invalid_request"},
	} {
		got := k.send(c, tc.method, tc.url, tc.body, tc.header...)
		k.checkToken(tc.name, got, tc.status, tc.oauth)
		if tc.status == 405 && got.header.Get("Allow") == "" {
			t.Errorf("%s: 405 without Allow", tc.name)
		}
	}
	stranger := k.send(k.raw(nil), http.MethodPost, target, form, "Content-Type", wire.Form, "Authorization", "Basic eDp5")
	k.checkToken("basic", stranger, 401, "invalid_client")
	if got := stranger.header.Get("WWW-Authenticate"); got != `Basic realm="countersign"` {
		t.Errorf("basic: WWW-Authenticate %q (RFC 6749 5.2)", got)
	}
	k.checkToken("nobody", k.send(k.raw(nil), http.MethodPost, target, form, "Content-Type", wire.Form), 401, "invalid_client")
	operator := k.send(k.raw(k.operator("ann", countersign.RoleAdmin)), http.MethodPost, target, form, "Content-Type", wire.Form)
	k.checkToken("operator", operator, 401, "invalid_client")
}

// checkToken holds an answer of the token endpoint against RFC 6749 5.
func (k *kit) checkToken(name string, got reply, status int, oauth string) {
	k.Helper()
	var body map[string]any
	if err := json.Unmarshal([]byte(got.body), &body); err != nil {
		k.Errorf("%s: the body is no JSON: %q", name, got.body)
	}
	if got.status != status || oauth != "" && body["error"] != oauth {
		k.Errorf("%s: %d %s, want %d %s", name, got.status, got.body, status, oauth)
	}
	for header, want := range map[string]string{"Content-Type": wire.JSON, "Cache-Control": "no-store", "Pragma": "no-cache", "X-Content-Type-Options": "nosniff"} {
		if got.header.Get(header) != want {
			k.Errorf("%s: %s: %q, want %q", name, header, got.header.Get(header), want)
		}
	}
	if status == 200 && body["error"] != nil || status != 200 && body["access_token"] != nil {
		k.Errorf("%s: %d with %s", name, status, got.body)
	}
}

func TestPublicDocuments(t *testing.T) {
	k := newKit(t, kitOptions{})
	c := k.raw(nil)
	for path, mediaType := range map[string]string{
		"/.well-known/oauth-authorization-server": wire.JSON, "/.well-known/openid-configuration": wire.JSON,
		"/.well-known/jwks.json": wire.JSON, "/roots.pem": wire.PEM, "/v1/bundle": wire.JSON,
	} {
		got := k.send(c, http.MethodGet, k.url+path, "")
		etag := got.header.Get("ETag")
		if got.status != 200 || got.header.Get("Content-Type") != mediaType || etag == "" || got.body == "" {
			t.Errorf("%s: %d %v %q", path, got.status, got.header, got.body)
		}
		if control := got.header.Get("Cache-Control"); !strings.HasPrefix(control, "public, max-age=") || control == "public, max-age=0" {
			t.Errorf("%s: Cache-Control %q", path, control)
		}
		again := k.send(c, http.MethodGet, k.url+path, "", "If-None-Match", `"x", W/`+etag)
		if again.status != 304 || again.body != "" || again.header.Get("ETag") != etag {
			t.Errorf("%s with its ETag: %d %q", path, again.status, again.body)
		}
		head := k.send(c, http.MethodHead, k.url+path, "")
		if head.status != 200 || head.body != "" {
			t.Errorf("HEAD %s: %d %q", path, head.status, head.body)
		}
		if got := k.send(c, http.MethodPost, k.url+path, "x"); got.status != 405 || got.code() != countersign.CodeMethod {
			t.Errorf("POST %s: %d %s", path, got.status, got.body)
		}
		if got := k.send(c, http.MethodGet, k.url+path+"/", ""); got.status != 404 || got.code() != countersign.CodeNoRoute {
			t.Errorf("GET %s/: %d %s", path, got.status, got.body)
		}
	}
	var metadata map[string]any
	k.must(json.Unmarshal([]byte(k.send(c, http.MethodGet, k.url+"/.well-known/oauth-authorization-server", "").body), &metadata))
	if metadata["issuer"] != testIssuer || metadata["token_endpoint"] != testIssuer+"/oauth2/token" || metadata["jwks_uri"] != testIssuer+"/.well-known/jwks.json" {
		t.Errorf("the metadata is %v", metadata)
	}
	bundle, err := k.over(nil).Bundle(t.Context())
	k.must(err)
	if len(bundle.Keys) != 2 || bundle.Keys[0].Use != "x509-svid" || len(bundle.Keys[0].X5C) != 1 || bundle.Keys[0].X == "" || bundle.Sequence == 0 || bundle.RefreshHint == 0 {
		t.Errorf("the bundle is %+v", bundle)
	}
	roots, err := k.over(nil).RootsPEM(t.Context())
	k.must(err)
	if got := certs(t, string(roots)); len(got) != 1 || !got[0].Equal(k.ca.Roots()[0]) {
		t.Errorf("roots.pem holds %d certificates", len(got))
	}
}

// TestServedChain: `join` finds the root by its fingerprint in the handshake.
func TestServedChain(t *testing.T) {
	k := newKit(t, kitOptions{})
	conn, err := tls.Dial("tcp", k.addr, &tls.Config{RootCAs: k.root(), ServerName: "localhost"})
	k.must(err)
	defer conn.Close()
	state := conn.ConnectionState()
	if state.Version != tls.VersionTLS13 || len(state.PeerCertificates) != 3 || !state.PeerCertificates[2].Equal(k.ca.Roots()[0]) {
		t.Errorf("TLS %x with %d certificates", state.Version, len(state.PeerCertificates))
	}
	if old, err := tls.Dial("tcp", k.addr, &tls.Config{RootCAs: k.root(), ServerName: "localhost", MaxVersion: tls.VersionTLS12}); err == nil {
		old.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestPolicyOverHTTP(t *testing.T) {
	k := newKit(t, kitOptions{})
	admin, raw := k.admin(), k.raw(k.operator("ann", countersign.RoleAdmin))
	changed := testPolicy + "  - {from: inventory, to: orders}\n"
	one, nine := 1, 9
	_, err := admin.ApplyPolicy(t.Context(), []byte(changed), client.ApplyOptions{IfVersion: &nine})
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.Status != http.StatusConflict || refused.Code() != countersign.CodePolicyConflict {
		t.Errorf("a wrong If-Match: %v", err)
	}
	dry, err := admin.ApplyPolicy(t.Context(), []byte(changed), client.ApplyOptions{IfVersion: &one, DryRun: true})
	k.must(err)
	if k.book.Current().Version != 1 || !dry.DryRun || !strings.Contains(dry.Diff, "inventory") {
		t.Errorf("a dry run: %+v, now version %d", dry, k.book.Current().Version)
	}
	applied, err := admin.ApplyPolicy(t.Context(), []byte(changed), client.ApplyOptions{IfVersion: &one})
	k.must(err)
	if applied.Version != 2 || applied.Previous != 1 {
		t.Errorf("applied: %+v", applied)
	}
	_, err = admin.ApplyPolicy(t.Context(), []byte("trust_domain: other\nservces: []\n"), client.ApplyOptions{})
	if !errors.As(err, &refused) || refused.Status != http.StatusBadRequest || len(refused.Problem.Faults) < 2 || refused.Problem.Faults[0].Line != 1 {
		t.Errorf("a policy with faults: %v %+v", err, refused)
	}
	shown, err := admin.Policy(t.Context(), 0)
	k.must(err)
	if shown.Document != changed || shown.Version != 2 {
		t.Errorf("shown: %+v", shown)
	}
	yaml := k.send(raw, http.MethodGet, k.url+"/v1/policy?version=1", "", "Accept", "application/yaml, */*")
	if yaml.body != testPolicy || yaml.header.Get("Content-Type") != wire.YAML || yaml.header.Get("ETag") != `"1"` {
		t.Errorf("as YAML: %v %q", yaml.header, yaml.body)
	}
	if got := k.send(raw, http.MethodPut, k.url+"/v1/policy", changed, "Content-Type", wire.JSON); got.status != 415 {
		t.Errorf("PUT of JSON: %d", got.status)
	}
	if got := k.send(raw, http.MethodPut, k.url+"/v1/policy?dryrun=true", changed, "Content-Type", wire.YAML); got.code() != countersign.CodeParameter {
		t.Errorf("a misspelt dry run: %d %s", got.status, got.body)
	}
	back, err := admin.Rollback(t.Context(), 1)
	k.must(err)
	history, err := admin.PolicyHistory(t.Context(), 2)
	k.must(err)
	if back.Version != 3 || len(history.Versions) != 2 || history.Versions[0].Version != 3 {
		t.Errorf("rolled back: %+v, history %+v", back, history)
	}
	explained, err := admin.Explain(t.Context(), wire.ExplainRequest{From: "reports", To: "inventory"})
	k.must(err)
	if explained.Allowed || len(explained.Steps) == 0 || explained.Version != 3 {
		t.Errorf("explained: %+v", explained)
	}
}

func TestServicesAndKeys(t *testing.T) {
	k := newKit(t, kitOptions{})
	admin, id := k.admin(), k.join("reports")
	k.must(admin.DisableService(t.Context(), "reports", "stolen laptop"))
	if _, err := k.over(id).Token(t.Context(), machineForm()); err == nil {
		t.Error("a disabled service got a token")
	}
	services, err := admin.Services(t.Context())
	k.must(err)
	i := slices.IndexFunc(services.Services, func(s wire.Service) bool { return s.Name == "reports" })
	if len(services.Services) != 3 || services.Services[i].Disabled == nil || !slices.Equal(services.Services[i].Calls, []string{"orders"}) {
		t.Errorf("services: %+v", services)
	}
	k.must(admin.EnableService(t.Context(), "reports", ""))
	if _, err := k.over(id).Token(t.Context(), machineForm()); err != nil {
		t.Errorf("an enabled service: %v", err)
	}
	raw := k.raw(k.operator("bob", countersign.RoleOperator))
	if got := k.send(raw, http.MethodPost, k.url+"/v1/services/reports/disable", `{"reason": " "}`, "Content-Type", wire.JSON); got.code() != countersign.CodeParameter {
		t.Errorf("disabled without a reason: %d %s", got.status, got.body)
	}
	if got := k.send(raw, http.MethodPost, k.url+"/v1/keys/token/rotate", `{"now": true}`, "Content-Type", wire.JSON); got.status != 403 || got.code() != countersign.CodeRole {
		t.Errorf("an operator rotates at once: %d %s", got.status, got.body)
	}
	before, err := admin.Keys(t.Context())
	k.must(err)
	plan, err := admin.Rotate(t.Context(), "token", wire.RotateRequest{DryRun: true})
	k.must(err)
	after, err := admin.Keys(t.Context())
	k.must(err)
	if !plan.DryRun || len(plan.Keys) < 4 || len(before.Keys) != len(after.Keys) {
		t.Errorf("a dry run: %+v, keys %d and then %d", plan, len(before.Keys), len(after.Keys))
	}
	if _, err := admin.Rotate(t.Context(), "token", wire.RotateRequest{Now: true}); err != nil {
		t.Errorf("an admin rotates at once: %v", err)
	}
	before, err = admin.Keys(t.Context())
	k.must(err)
	i = slices.IndexFunc(before.Keys, func(key wire.Key) bool { return key.Purpose == "token" && key.State == "retired" })
	retire := k.url + "/v1/keys/" + before.Keys[i].ID + "/retire"
	if got := k.send(raw, http.MethodPost, retire, `{"compromised": true}`, "Content-Type", wire.JSON); got.status != 403 || got.code() != countersign.CodeRole {
		t.Errorf("an operator retires a key: %d %s", got.status, got.body)
	}
	if got := k.send(k.raw(k.operator("eva", countersign.RoleAdmin)), http.MethodPost, retire, `{"compromise": true}`, "Content-Type", wire.JSON); got.code() != countersign.CodeBody {
		t.Errorf("a misspelt member: %d %s", got.status, got.body)
	}
	if _, err := admin.Retire(t.Context(), before.Keys[i].ID, wire.RetireRequest{}); err == nil {
		t.Error("a key was retired before its time")
	}
	plan, err = admin.Retire(t.Context(), before.Keys[i].ID, wire.RetireRequest{Compromised: true, DryRun: true})
	k.must(err)
	if after, err = admin.Keys(t.Context()); err != nil || !plan.DryRun || plan.Note == "" || len(after.Keys) != len(before.Keys) {
		t.Errorf("a dry run: %+v, %d keys, %v", plan, len(after.Keys), err)
	}
	_, err = admin.Retire(t.Context(), before.Keys[i].ID, wire.RetireRequest{Compromised: true})
	k.must(err)
	if after, err = admin.Keys(t.Context()); err != nil || len(after.Keys) != len(before.Keys)-1 {
		t.Errorf("%d keys, then %d, %v", len(before.Keys), len(after.Keys), err)
	}
	if _, err := admin.Rotate(t.Context(), "nothing", wire.RotateRequest{}); err == nil {
		t.Error("a purpose that does not exist was rotated")
	}
}

func TestAuditOverHTTP(t *testing.T) {
	k := newKit(t, kitOptions{})
	admin := k.admin()
	id := k.join("reports")
	found, err := admin.Audit(t.Context(), client.AuditQuery{Type: "certificate.issued", Subject: "reports"})
	k.must(err)
	all, err := admin.Audit(t.Context(), client.AuditQuery{Type: "certificate.issued"})
	k.must(err)
	if len(found.Records)+len(all.Records) == 0 || all.Records[0].By.Name == "" || all.Records[0].Hash == "" {
		t.Errorf("the records are %+v", all)
	}
	report, err := admin.VerifyAudit(t.Context())
	k.must(err)
	if !report.OK || report.Records == 0 {
		t.Errorf("the log does not verify: %+v", report)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan wire.AuditRecord, 16)
	ended := make(chan error, 1)
	go func() {
		var last error
		for record, err := range admin.FollowAudit(ctx, client.AuditQuery{Type: "token.issued", After: 1}) {
			if last = err; err == nil {
				seen <- record
			}
		}
		ended <- last
	}()
	for range 3 {
		_, err := k.over(id).Token(t.Context(), machineForm())
		k.must(err)
		if record := <-seen; record.Type != "token.issued" || !strings.Contains(record.By.Name, "reports") {
			t.Errorf("followed to %+v", record)
		}
	}
	k.api.Stop() // ends the stream, so that a shutdown need not wait for it
	if err := <-ended; err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	raw := k.raw(k.operator("vera", countersign.RoleViewer))
	for query, want := range map[string]countersign.Code{
		"limit=0": countersign.CodeParameter, "limit=1001": countersign.CodeParameter, "after=x": countersign.CodeParameter,
		"since=yesterday": countersign.CodeParameter, "outcome=good": countersign.CodeParameter, "follow=1": countersign.CodeParameter,
		"follow=true&newest=true": countersign.CodeParameter, "typ=x": countersign.CodeParameter, "limit=5": "",
	} {
		if got := k.send(raw, http.MethodGet, k.url+"/v1/audit?"+query, ""); got.code() != want {
			t.Errorf("audit?%s: %d %s", query, got.status, got.body)
		}
	}
}

func TestStatusAndAuthority(t *testing.T) {
	k := newKit(t, kitOptions{})
	status, err := k.over(k.operator("vera", countersign.RoleViewer)).Status(t.Context())
	k.must(err)
	if !status.Ready || status.Sealed || status.PolicyVersion != 1 || status.Services != 3 || status.Issuer != testIssuer || status.AuditSeq == 0 {
		t.Errorf("the status is %+v", status)
	}
	authority, err := k.admin().Authority(t.Context(), false)
	k.must(err)
	if len(authority.Roots) != 1 || len(authority.Intermediates) != 1 || authority.Roots[0].Fingerprint != fingerprint(k.ca.Roots()[0]) || authority.Roots[0].KeyID == "" {
		t.Errorf("the authority is %+v", authority)
	}
}
