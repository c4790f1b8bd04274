package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	cluster = "https://kubernetes.default.svc"
	podSub  = "system:serviceaccount:shop:orders"
)

// attesting is a daemon whose policy enrols orders for a workload of a cluster; idp is an issuer of users with the same key.
type attesting struct {
	*kit
	key *ecdsa.PrivateKey
}

func attestingPolicy(t *testing.T, key *ecdsa.PrivateKey) string {
	set, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	keys := "jwks_file: '" + string(set.JSON()) + "'"
	return `trust_domain: shop.internal
issuers:
  - {name: cluster, use: workloads, issuer: "` + cluster + `", ` + keys + `}
  - {name: idp, use: users, issuer: "https://idp.example", subject: keep, scopes: [a], ` + keys + `}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: ["` + testIssuer + `"]}]}
  - {name: reports, client_keys: {` + keys + `}}
  - {name: orders, enrol: [{issuer: cluster, subject: "` + podSub + `"}]}
  - {name: inventory}
calls:
  - {from: gateway, to: orders, scopes: [a]}
  - {from: orders, to: inventory, scopes: [b], machine: [b]}
`
}

func newAttesting(t *testing.T, o kitOptions) *attesting {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o.policy = attestingPolicy(t, key)
	return &attesting{kit: newKit(t, o), key: key}
}

// pod is a token as kubelet projects it, changed.
func (a *attesting) pod(changes map[string]any) string {
	a.Helper()
	now := a.clock.now().Unix()
	claims := map[string]any{
		"iss": cluster, "sub": podSub, "aud": []string{testIssuer}, "iat": now, "nbf": now, "exp": now + 3600, "jti": rand.Text(),
	}
	for name, value := range changes {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	compact, err := jwt.Sign(a.key, "ES256", "k1", "JWT", claims)
	a.must(err)
	return compact
}

// attest asks for a certificate with a token; csr "" is one of a new key.
func (a *attesting) attest(c *http.Client, token, csr string, header ...string) reply {
	a.Helper()
	if csr == "" {
		_, csr = newCSR(a.T)
	}
	body, err := json.Marshal(wire.CertificateRequest{CSR: csr})
	a.must(err)
	return a.send(c, http.MethodPost, a.url+"/v1/certificates", string(body), append(header, "Content-Type", wire.JSON, "Authorization", "Bearer "+token)...)
}

func (a *attesting) certificate(got reply) wire.Certificate {
	a.Helper()
	var out wire.Certificate
	if got.status != http.StatusCreated {
		a.Fatalf("%d %s", got.status, got.body)
	}
	a.must(json.Unmarshal([]byte(got.body), &out))
	return out
}

// A workload gets the certificate of the service that the policy enrols it for, and with that all that a service has.
func TestAttest(t *testing.T) {
	a := newAttesting(t, kitOptions{})
	key, csr := newCSR(t)
	token := a.pod(map[string]any{"jti": "the jti"})
	got, err := a.over(nil).Attest(t.Context(), token, wire.CertificateRequest{CSR: csr})
	a.must(err)
	id := a.identity(key, got)
	if id.ID.String() != "spiffe://shop.internal/orders" {
		t.Errorf("the certificate is for %s", id.ID)
	}
	if _, err := a.over(id).Token(t.Context(), map[string][]string{"grant_type": {"client_credentials"}}); err != nil {
		t.Error(err)
	}
	_, csr = newCSR(t)
	if _, err := a.over(id).Renew(t.Context(), wire.CertificateRequest{CSR: csr}); err != nil {
		t.Error(err)
	}
	for _, kind := range []string{"certificate.intent", "certificate.issued"} {
		found := 0
		for _, r := range a.records(kind) {
			if r.By.Method != "attestation" {
				continue
			}
			found++
			if r.By.ID != id.ID.String() || r.By.Assertion != "the jti" || r.By.Name != "workload "+podSub+" of "+cluster || !strings.Contains(string(r.Detail), `"how":"attestation"`) {
				t.Errorf("%s: %+v", kind, r)
			}
		}
		if found != 1 {
			t.Errorf("%d records %s", found, kind)
		}
	}
	if strings.Contains(a.logs.String(), token) {
		t.Error("the token stands in the log")
	}
}

// A token is good for one key: with that it may be repeated, with another it is used up, and so it is at the token endpoint.
func TestAttestOnce(t *testing.T) {
	for name, changes := range map[string]map[string]any{"with jti": nil, "without": {"jti": nil}} {
		a := newAttesting(t, kitOptions{})
		nobody, token := a.raw(nil), a.pod(changes)
		_, csr := newCSR(t)
		first := a.certificate(a.attest(nobody, token, csr))
		if again := a.certificate(a.attest(nobody, token, csr)); again.Serial != first.Serial {
			t.Errorf("%s: the repeat got %s, not %s", name, again.Serial, first.Serial)
		}
		before := len(a.records("certificate.intent"))
		if got := a.attest(nobody, token, ""); got.status != 401 || got.code() != countersign.CodeAssertionUsed || !strings.Contains(got.body, first.Serial) {
			t.Errorf("%s: another key: %d %s", name, got.status, got.body)
		}
		if n := len(a.records("certificate.intent")); n != before {
			t.Errorf("%s: %d intents for what was refused", name, n-before)
		}
		if got := a.postToken(nobody, asserted(token, "audience", "inventory", "scope", "b")); got.code() != countersign.CodeAssertionUsed {
			t.Errorf("%s: at the token endpoint: %s", name, got.body)
		}
		// And the other way round.
		other := a.pod(changes)
		if name == "without" {
			other = a.pod(map[string]any{"jti": nil, "n": 1})
		}
		a.checkToken(name, a.postToken(nobody, asserted(other, "audience", "inventory", "scope", "b")), 200, "")
		if got := a.attest(nobody, other, csr); got.code() != countersign.CodeAssertionUsed {
			t.Errorf("%s: an assertion that was used: %s", name, got.body)
		}
		a.must(a.admin().Revoke(t.Context(), first.Serial, "superseded"))
		if got := a.attest(nobody, token, csr); got.code() != countersign.CodeKeyRevoked {
			t.Errorf("%s: after the revocation: %s", name, got.body)
		}
	}
}

// With the same key a token is good until it expires: who lost his certificate to its expiry gets the next one.
func TestAttestAgainLater(t *testing.T) {
	a := newAttesting(t, kitOptions{})
	nobody, token := a.raw(nil), a.pod(map[string]any{"exp": a.clock.now().Add(20 * time.Hour).Unix()})
	_, csr := newCSR(t)
	first := a.certificate(a.attest(nobody, token, csr))
	a.clock.turn(11 * time.Hour)
	if again := a.certificate(a.attest(nobody, token, csr)); again.Serial != first.Serial {
		t.Error("before half of its time the certificate was issued anew")
	}
	a.clock.turn(2 * time.Hour)
	second := a.certificate(a.attest(nobody, token, csr))
	if second.Serial == first.Serial || !second.NotAfter.After(first.NotAfter) {
		t.Errorf("%+v after %+v", second, first)
	}
	if again := a.certificate(a.attest(nobody, token, csr)); again.Serial != second.Serial {
		t.Error("the use of the token was not moved on")
	}
	if got := a.attest(nobody, token, ""); got.code() != countersign.CodeAssertionUsed || !strings.Contains(got.body, second.Serial) {
		t.Errorf("another key: %s", got.body)
	}
	a.clock.turn(8 * time.Hour)
	if got := a.attest(nobody, token, csr); got.code() != countersign.CodeAssertionTime {
		t.Errorf("expired: %s", got.body)
	}
}

func TestAttestRefusals(t *testing.T) {
	a := newAttesting(t, kitOptions{})
	nobody, now := a.raw(nil), a.clock.now().Unix()
	const form, key, times, aud, none = countersign.CodeAssertion, countersign.CodeAssertionKey, countersign.CodeAssertionTime,
		countersign.CodeAssertionAud, countersign.CodeWorkload
	reports := "spiffe://shop.internal/reports"
	own, err := a.over(a.join("orders")).Token(t.Context(), map[string][]string{"grant_type": {"client_credentials"}})
	a.must(err)
	foreignKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	forger := &attesting{kit: a.kit, key: foreignKey}
	good := a.pod(nil)
	for name, c := range map[string]struct {
		token string
		want  countersign.Code
	}{
		"for the cluster":              {a.pod(map[string]any{"aud": cluster}), aud},
		"for the cluster too":          {a.pod(map[string]any{"aud": []string{testIssuer, cluster}}), aud},
		"for the endpoint":             {a.pod(map[string]any{"aud": testIssuer + "/v1/certificates"}), aud},
		"no aud":                       {a.pod(map[string]any{"aud": nil}), aud},
		"another subject":              {a.pod(map[string]any{"sub": "system:serviceaccount:shop:reports"}), none},
		"a prefix of the subject":      {a.pod(map[string]any{"sub": podSub[:len(podSub)-1]}), none},
		"the service's ID":             {a.pod(map[string]any{"sub": "spiffe://shop.internal/orders"}), none},
		"no subject":                   {a.pod(map[string]any{"sub": nil}), form},
		"expired":                      {a.pod(map[string]any{"exp": now - 61}), times},
		"no exp":                       {a.pod(map[string]any{"exp": nil}), form},
		"not yet":                      {a.pod(map[string]any{"nbf": now + 120}), times},
		"for two days":                 {a.pod(map[string]any{"exp": now + 2*86400}), times},
		"an issuer of users":           {a.pod(map[string]any{"iss": "https://idp.example"}), key},
		"an unknown issuer":            {a.pod(map[string]any{"iss": cluster + "/"}), key},
		"no issuer":                    {a.pod(map[string]any{"iss": nil}), key},
		"another key":                  {forger.pod(nil), key},
		"a client's own assertion":     {a.pod(map[string]any{"iss": reports, "sub": reports, "exp": now + 60}), key},
		"a token of ours":              {own.AccessToken, form},
		"one that claims to be ours":   {a.pod(map[string]any{"iss": testIssuer}), form},
		"a security event":             {a.pod(map[string]any{"events": map[string]any{}}), form},
		"a JWT without claims":         {"eyJhbGciOiJFUzI1NiJ9.e30.AA", key},
		"dots alone":                   {"..", form},
		"no JWT and no join token":     {strings.Repeat("a", 200), countersign.CodeWrongCredential},
		"four parts":                   {good + ".x", countersign.CodeWrongCredential},
		"the signature of another one": {good[:strings.LastIndexByte(good, '.')] + "." + a.pod(nil)[strings.LastIndexByte(a.pod(nil), '.')+1:], key},
	} {
		if got := a.attest(nobody, c.token, ""); got.code() != c.want || got.status != 401 && got.status != 403 {
			t.Errorf("%s: %d %s, want %s", name, got.status, got.body, c.want)
		}
	}
	if got := a.attest(nobody, good, "", "Authorization", "Bearer "+good); got.code() != countersign.CodeTwoCredentials {
		t.Errorf("twice: %s", got.body)
	}
	if got := a.attest(a.raw(a.join("reports")), good, ""); got.code() != countersign.CodeTwoCredentials {
		t.Errorf("beside a certificate: %s", got.body)
	}
	for _, r := range routes("") { // at every other door it is no credential, and is not used up by being shown there
		if r.path == "/v1/certificates" && r.method == http.MethodPost || r.auth.open() || r.auth.byForm() {
			continue
		}
		got := a.send(nobody, r.method, a.url+r.path, "", "Content-Type", r.media, "Authorization", "Bearer "+good)
		if got.code() != countersign.CodeWrongCredential {
			t.Errorf("%s %s: %d %s", r.method, r.path, got.status, got.body)
		}
	}
	for _, path := range []string{"/oauth2/token", "/oauth2/introspect", "/oauth2/revoke"} {
		if got := a.send(nobody, "POST", a.url+path, machineForm().Encode(), "Content-Type", wire.Form, "Authorization", "Bearer "+good); got.code() != countersign.CodeWrongCredential {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	for _, r := range append(a.records("certificate.denied"), a.records("request.denied")...) {
		if r.By.Method == "attestation" {
			t.Errorf("a stranger has a record of its own: %+v", r)
		}
	}
	a.certificate(a.attest(nobody, good, ""))
}

// Who may not be the service any more when the certificate is decided gets none, and the token is not used up by it.
func TestAttestAndPolicy(t *testing.T) {
	a := newAttesting(t, kitOptions{})
	nobody, by := a.raw(nil), countersign.Caller{Role: countersign.RoleAdmin, Name: "test"}
	token := a.pod(nil)
	a.must(a.book.SetDisabled(t.Context(), by, "orders", "test", true))
	if got := a.attest(nobody, token, ""); got.code() != countersign.CodeServiceDisabled {
		t.Errorf("disabled: %s", got.body)
	}
	a.must(a.book.SetDisabled(t.Context(), by, "orders", "test", false))
	without := strings.Replace(attestingPolicy(t, a.key), ":shop:orders", ":shop:other", 1)
	_, err := a.book.Apply(t.Context(), by, []byte(without), policy.ApplyOptions{IfVersion: -1})
	a.must(err)
	if got := a.attest(nobody, token, ""); got.code() != countersign.CodeWorkload {
		t.Errorf("not enrolled any more: %s", got.body)
	}
	_, err = a.book.Apply(t.Context(), by, []byte(attestingPolicy(t, a.key)), policy.ApplyOptions{IfVersion: -1})
	a.must(err)
	key, err := identity.NewKey("")
	a.must(err)
	csr, err := identity.CSR(key)
	a.must(err)
	if got := a.attest(nobody, token, "no request"); got.code() != countersign.CodeCSR {
		t.Errorf("a broken request: %s", got.body)
	}
	a.certificate(a.attest(nobody, token, string(csr)))
	if n := len(a.records("certificate.denied")); n != 1 {
		t.Errorf("%d denials are on record, of one attested caller", n)
	}
}

// Of many who come with one token and keys of their own at once, one gets a certificate.
func TestAttestRace(t *testing.T) {
	a := newAttesting(t, kitOptions{})
	c, token := a.raw(nil), a.pod(nil)
	answers := make(chan reply)
	for range 8 {
		_, csr := newCSR(t)
		go func() { answers <- a.attest(c, token, csr) }()
	}
	issued := 0
	for range 8 {
		got := <-answers
		switch {
		case got.status == http.StatusCreated:
			issued++
		case got.code() != countersign.CodeAssertionUsed:
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if issued != 1 {
		t.Errorf("%d certificates", issued)
	}
}
