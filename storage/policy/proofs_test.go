package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// The keys of complete.yaml.
const (
	k8sKey     = `{"kty":"EC","crv":"P-256","kid":"k8s-1","alg":"ES256","use":"sig","x":"0c5pPtXDaQF-gPxpOmqI3PzU59ckrB7W6R50QkvDxrw","y":"M4TUnhdB585IzoNnrybU96vGLTnDt_kX15G9CtlAN4Y"}`
	ordersKey  = `{"kty":"EC","crv":"P-256","kid":"orders-1","alg":"ES256","x":"_0Q7TMZ8gDUf9jIsQ5rvVEFbu6WdJ_OG0kr9VaYOMvo","y":"ku2GJ30BVpY-upRksDlsfu-jmRAHg0-sJvgsmN6l2ms"}`
	reportsKey = `{"kty":"OKP","crv":"Ed25519","kid":"reports-1","alg":"EdDSA","x":"qar07az9dEMkTGHuLR1qQBuJ9RDAV-3vkjFNRZjhr90"}`
)

func keySet(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

// Every key of the document reads as it says.
func TestComplete(t *testing.T) {
	p := mustParse(t, string(testdata(t, "complete.yaml")))
	if p.MaxHops != 4 || p.WithVersion(3).MaxHops != 4 || p.WithVersion(3).Version != 3 || p.WithServices(p.Services).MaxHops != 4 {
		t.Errorf("max_hops %d", p.MaxHops)
	}
	if again := merge(p, map[string]state{"orders": {Disabled: true}}); again.MaxHops != 4 || again.Calls[0].When == "" {
		t.Error("a state of a service loses a part of the policy")
	}
	idp, k8s := p.Issuers[0], p.Issuers[1]
	if idp.Use != countersign.UseUsers || !slices.Equal(idp.Tokens, []string{"access", "id"}) || idp.JWKS != "" {
		t.Errorf("%+v", idp)
	}
	if k8s.Use != countersign.UseWorkloads || k8s.Tokens != nil || k8s.Subject != "" || k8s.ScopeClaim != "" || len(k8s.Scopes) != 0 {
		t.Errorf("%+v", k8s)
	}
	if set, err := jwt.ParseSet([]byte(k8s.JWKS)); err != nil || !set.Has("k8s-1") {
		t.Errorf("%v in %s", err, k8s.JWKS)
	}
	orders, _ := p.Service("orders")
	want := []countersign.Enrol{{Issuer: "k8s", Subject: "system:serviceaccount:shop:orders"}, {Issuer: "k8s", Subject: "system:serviceaccount:shop:orders-batch"}}
	if !slices.Equal(orders.Enrol, want) || orders.Bind != countersign.BindMTLS {
		t.Errorf("%+v", orders)
	}
	reports, _ := p.Service("reports")
	if set, err := jwt.ParseSet([]byte(reports.ClientKeys)); err != nil || !set.Has("reports-1") || set.Keys()[0].Alg != "EdDSA" || reports.Bind != countersign.BindNone {
		t.Errorf("%v in %+v", err, reports)
	}
	if entry, _ := p.Call("gateway", "orders"); entry.When != `caller.name == "gateway" && size(request.scopes) == 1` || entry.Reenter {
		t.Errorf("%+v", entry)
	}
	if self, _ := p.Call("orders", "orders"); !self.Reenter {
		t.Errorf("%+v", self)
	}
	if w := Warnings(nil, p); len(w) > 0 {
		t.Error(w)
	}
	if p := mustParse(t, string(testdata(t, "shop.yaml"))); p.MaxHops != 8 {
		t.Errorf("max_hops is %d by default", p.MaxHops)
	}
}

// Each of these is one fault, at one place.
func TestOneFaultOfProofs(t *testing.T) {
	const inK8s, inReports = `'{"keys":[` + k8sKey + `]}'`, `'{"keys":[` + reportsKey + `]}'`
	single := func(keys ...string) string { return "'" + keySet(keys...) + "'" }
	without := func(key, member string) string {
		var m map[string]any
		if err := json.Unmarshal([]byte(key), &m); err != nil {
			t.Fatal(err)
		}
		delete(m, member)
		b, _ := json.Marshal(m)
		return string(b)
	}
	with := func(key, member string) string { return strings.TrimSuffix(key, "}") + "," + member + "}" }
	const path, clients = "issuers[1].jwks_file", "services[2].client_keys.jwks_file"
	for _, c := range []struct{ old, with, path, msg string }{
		{"max_hops: 4", "max_hops: 0", "max_hops", "between 1 and 16, not 0"},
		{"max_hops: 4", "max_hops: 17", "max_hops", "between 1 and 16, not 17"},
		{"max_hops: 4", "max_hops: -1", "max_hops", "between 1 and 16"},
		{"max_hops: 4", "max_hops: '4'", "max_hops", "whole number"},
		{"max_hops: 4", "max_hops: 4.0", "max_hops", "whole number"},
		{"max_hops: 4", "max_hops: 0x4", "max_hops", "whole number"},
		{"max_hops: 4", "max_hops: 1_0", "max_hops", "whole number"},
		{"max_hops: 4", "max_hops: [4]", "max_hops", "whole number"},
		{"max_hops: 4", "max_hops: 99999999999999999999", "max_hops", "whole number"},
		{"max_hops: 4", "max_hops:", "max_hops", "whole number"},

		{"use: users", "use: workload", "issuers[0].use", "users, workloads"},
		{"tokens: [access, id]", "tokens: [access, refresh]", "issuers[0].tokens[1]", "access, id"},
		{"tokens: [access, id]", "tokens: []", "issuers[0].tokens", "empty"},
		{"use: workloads", "use: workloads\n    scopes: [a]", "issuers[1].scopes", "no subject tokens"},
		{"use: workloads", "use: workloads\n    scope_claim: scp", "issuers[1].scope_claim", "no subject tokens"},
		{"use: workloads", "use: workloads\n    carry: [a]", "issuers[1].carry", "no subject tokens"},
		{"use: workloads", "use: workloads\n    tokens: [access]", "issuers[1].tokens", "no subject tokens"},
		{"use: workloads", "use: workloads\n    subject: keep", "issuers[1].subject", "no subject tokens"},
		{"use: workloads", "use: workloads\n    jwks_uri: https://k8s.example/jwks", "issuers[1].jwks_uri", "beside `jwks_file`"},
		{"use: workloads", "use: workloads\n    ca_file: \"" + strings.ReplaceAll(string(testdata(t, "root.pem")), "\n", `\n`) + `"`, "issuers[1].ca_file", "beside `jwks_file`"},

		{inK8s, "k8s.json", path, "the daemon opens no path"},
		{inK8s, "[]", path, "must be a text"},
		{inK8s, "'{'", path, "not JSON"},
		{inK8s, single(), path, "no key that can verify"},
		{inK8s, "'{}'", path, `no array "keys"`},
		{inK8s, single(with(k8sKey, `"d":"AAAA"`)), path, `private member "d"`},
		{inK8s, single(k8sKey, `{"kty":"oct","k":"AAAA"}`), path, "symmetric"},
		{inK8s, single(k8sKey, k8sKey), path, "two keys have the kid"},
		{inK8s, single(with(k8sKey, `"use":"sig"`)), path, "stands twice"},
		{inK8s, single(strings.Replace(k8sKey, "0c5p", "0c5q", 1)), path, "broken"},
		{inK8s, single(strings.Replace(k8sKey, "ES256", "HS256", 1)), path, "can't be for the algorithm"},
		{inK8s, single(strings.Replace(k8sKey, "ES256", "ES384", 1)), path, "can't be for the algorithm"},
		{inK8s, single(strings.Replace(k8sKey, `"sig"`, `"enc"`, 1)), path, "no key that can verify"},
		{inK8s, single(without(k8sKey, "kid"), ordersKey), path, "no kid"},
		{inK8s, "'" + keySet(slices.Repeat([]string{k8sKey}, 65)...) + "'", path, "at most 64"},

		{"{issuer: idp, audiences: [shop-web]}", "{issuer: idp, audiences: [shop-web]}, {issuer: k8s, audiences: [a]}", "services[0].accepts[1].issuer", "no subject tokens"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {issuer: idp, subject: a}", "services[1].enrol[0].issuer", "prove no service"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {issuer: k9s, subject: a}", "services[1].enrol[0].issuer", "there is no issuer"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {subject: a}", "services[1].enrol[0]", "issuer is missing"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {issuer: k8s}", "services[1].enrol[0]", "subject is missing"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {issuer: k8s, subject: ''}", "services[1].enrol[0].subject", "empty"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, `- {issuer: k8s, subject: "a\u0001"}`, "services[1].enrol[0].subject", "do not print"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {issuer: k8s, subject: " + strings.Repeat("a", 256) + "}", "services[1].enrol[0].subject", "256 bytes"},
		{`- {issuer: k8s, subject: "system:serviceaccount:shop:orders"}`, "- {issuer: k8s, subject: a, audience: b}", "services[1].enrol[0].audience", "has no key"},
		{`shop:orders-batch"`, `shop:orders"`, "services[1].enrol[1].subject", "proves a service already"},
		{"  - name: reports", "  - name: reports\n    enrol: [{issuer: k8s, subject: 'system:serviceaccount:shop:orders'}]", "services[2].enrol[0].subject", "proves a service already"},
		{"  - name: reports", "  - name: reports\n    enrol: []", "services[2].enrol", "empty"},

		{"{jwks_file: " + inReports + "}", inReports, "services[2].client_keys", "must be a mapping"},
		{"{jwks_file: " + inReports + "}", "{}", "services[2].client_keys", "names no keys"},
		{"{jwks_file: " + inReports + "}", "{jwks_uri: 'https://a.example'}", "services[2].client_keys.jwks_uri", "has no key"},
		{inReports, "reports.json", clients, "the daemon opens no path"},
		{inReports, single(without(reportsKey, "kid")), clients, "no kid"},
		{inReports, single(without(reportsKey, "alg")), clients, "no alg"},
		{inReports, single(reportsKey, strings.Replace(reportsKey, "reports-1", "reports-2", 1)), clients, "stands twice"},
		{inReports, single(reportsKey, with(ordersKey, `"use":"enc"`)), clients, "can't verify assertions"},
		{inReports, single(reportsKey, `{"kty":"OKP","crv":"X25519","x":"AAAA"}`), clients, "can't verify assertions"},
		{inReports, single(with(reportsKey, `"d":"AAAA"`)), clients, `private member "d"`},
		{inReports, single(with(reportsKey, `"k":"AAAA"`)), clients, `private member "k"`},
		{"    token: {bind: mtls}", "    client_keys: {jwks_file: " + inReports + "}", clients, "proves another service"},

		{"bind: mtls", "bind: dpop", "services[1].token.bind", "none, mtls"},
		{"    machine:", "    reenter: 1\n    machine:", "calls[2].reenter", "true or false"},
		{"reenter: true", "reenter: false", "calls[1].to", "calls itself"},
		{`when: caller.name == "gateway" && size(request.scopes) == 1`, "when: ' '", "calls[0].when", "empty"},
		{`when: caller.name == "gateway" && size(request.scopes) == 1`, "when: true", "calls[0].when", "must be a text"},
	} {
		doc := editOf(t, "complete.yaml", c.old, c.with)
		_, faults := Parse([]byte(doc), testEnv())
		if len(faults) != 1 || faults[0].Path != c.path || !strings.Contains(faults[0].Msg, c.msg) {
			t.Errorf("%.80q for %.40q: %s", c.with, c.old, report(faults))
		}
	}
}

// A second use of the same issuer name is judged by its kind: names that could not be read raise no further faults.
func TestFaultsDoNotCascade(t *testing.T) {
	for _, c := range []struct{ old, with string }{
		{"use: workloads", "use: operators"},
		{"    use: workloads\n", ""},
		{"use: workloads", "use: workload"},
		{"use: users", "use: operators"},
		{"    use: users\n", ""},
		{"{issuer: k8s, subject: \"system:serviceaccount:shop:orders\"}", "{acme: true}"},
	} {
		if _, faults := Parse([]byte(editOf(t, "complete.yaml", c.old, c.with)), testEnv()); len(faults) != 1 || faults[0].Hint == "" {
			t.Errorf("%q for %q: %s", c.with, c.old, report(faults))
		}
	}
}

// What an identity provider publishes is taken as it is, keys for encryption left out; a workload's file may have one key
// without a kid.
func TestKeysThatAreTaken(t *testing.T) {
	const in = `'{"keys":[` + k8sKey + `]}'`
	enc := `{"kty":"RSA","kid":"e","use":"enc","alg":"RSA-OAEP","n":"AQ","e":"AQAB"}`
	for name, set := range map[string]string{
		"with a key for encryption": keySet(k8sKey, enc),
		"one without a kid":         keySet(strings.Replace(k8sKey, `"kid":"k8s-1",`, "", 1)),
		"without an alg":            keySet(strings.Replace(k8sKey, `"alg":"ES256",`, "", 1)),
		"white space first":         " " + keySet(k8sKey),
	} {
		p, faults := Parse([]byte(editOf(t, "complete.yaml", in, "'"+set+"'")), testEnv())
		if p == nil {
			t.Errorf("%s: %s", name, report(faults))
		} else if strings.Contains(p.Issuers[1].JWKS, "enc") || !strings.Contains(p.Issuers[1].JWKS, "0c5pPtXDaQF") {
			t.Errorf("%s: %s", name, p.Issuers[1].JWKS)
		}
	}
}

func TestInlineKeys(t *testing.T) {
	issuer, client := testdata(t, "complete.yaml"), ""
	doc := strings.NewReplacer("'"+keySet(k8sKey)+"'", "k8s.json # the cluster", "'"+keySet(reportsKey)+"'", `"reports.json"`).Replace(string(issuer))
	files := map[string]string{"k8s.json": keySet(k8sKey, ordersKey) + "\n", "reports.json": keySet(reportsKey)}
	out, found, err := Inline([]byte(doc), func(name string) ([]byte, error) { return []byte(files[name]), nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		client += fmt.Sprintf("%s %s %s %d\n", f.Key, f.Path, f.KID, len(f.Thumbprint))
		var key jose.JSONWebKey
		for _, text := range []string{k8sKey, ordersKey, reportsKey} {
			if strings.Contains(text, f.KID) {
				if err := key.UnmarshalJSON([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if want := (jwt.PublicKey{Key: key.Key}).Thumbprint(); f.Thumbprint != want {
			t.Errorf("%+v, want %s", f, want)
		}
	}
	if want := "issuers[1].jwks_file k8s.json k8s-1 43\nissuers[1].jwks_file k8s.json orders-1 43\nservices[2].client_keys.jwks_file reports.json reports-1 43\n"; client != want {
		t.Errorf("got\n%swant\n%s", client, want)
	}
	p := mustParse(t, string(out))
	if set, err := jwt.ParseSet([]byte(p.Issuers[1].JWKS)); err != nil || set.Len() != 2 {
		t.Errorf("%v in %s", err, p.Issuers[1].JWKS)
	}
	if strings.Count(string(out), "\n") != strings.Count(doc, "\n") || !strings.Contains(string(out), "# the cluster") {
		t.Errorf("lines moved:\n%s", out)
	}
	if again, more, err := Inline(out, nil); err != nil || len(more) > 0 || string(again) != string(out) {
		t.Errorf("a second time: %v %v", more, err)
	}
}

func TestInlineRefusesPrivateKeys(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := (&jose.JSONWebKey{Key: key, KeyID: "mine", Algorithm: "ES256"}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]string
	if err := json.Unmarshal(private, &members); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"private":       keySet(string(private)),
		"also private":  keySet(k8sKey, string(private)),
		"symmetric":     keySet(`{"kty":"oct","kid":"s","k":"c2VjcmV0"}`),
		"a bare key":    k8sKey,
		"no JSON":       "hello",
		"PEM":           string(testdata(t, "root.pem")),
		"half":          keySet(k8sKey)[:80],
		"twice":         keySet(k8sKey) + keySet(k8sKey),
		"empty":         "",
		"over the size": keySet(k8sKey) + strings.Repeat(" ", jwt.MaxSet),
	} {
		for _, old := range []string{k8sKey, reportsKey} {
			doc := editOf(t, "complete.yaml", "'"+keySet(old)+"'", "keys.json")
			_, _, err := Inline([]byte(doc), func(string) ([]byte, error) { return []byte(content), nil })
			if err == nil || !strings.Contains(err.Error(), "jwks_file: \"keys.json\": ") {
				t.Errorf("%s: %v", name, err)
			} else if strings.Contains(err.Error(), members["d"]) || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("an error shows a key: %v", err)
			}
			_, faults := Parse([]byte(strings.Replace(doc, "keys.json", fmt.Sprintf("%q", content), 1)), testEnv())
			if len(faults) == 0 || strings.Contains(report(faults), members["d"]) || strings.Contains(report(faults), "c2VjcmV0") {
				t.Errorf("%s in the document: %s", name, report(faults))
			}
		}
	}
	if !slices.Contains(slices.Collect(maps.Keys(members)), "d") {
		t.Fatal("the key of this test is not private")
	}
}

func TestWarningsOfProofs(t *testing.T) {
	idle := editOf(t, "complete.yaml", "    enrol:\n      - {issuer: k8s, subject: \"system:serviceaccount:shop:orders\"}\n      - {issuer: k8s, subject: \"system:serviceaccount:shop:orders-batch\"}\n", "")
	if got := Warnings(nil, mustParse(t, idle)); len(got) != 1 || got[0] != "no service enrols with tokens of the issuer k8s" {
		t.Error(got)
	}
	star := mustParse(t, editOf(t, "complete.yaml", "shop:orders-batch", "shop:*"))
	if got := Warnings(nil, star); len(got) != 1 || !strings.Contains(got[0], "stands for nothing but itself") {
		t.Error(got)
	}
}
