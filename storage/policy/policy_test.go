package policy

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	countersign "github.com/countersign/countersign"
)

var update = flag.Bool("update", false, "write the golden files")

func testEnv() Env {
	return Env{TrustDomain: "shop.internal", Issuer: "https://cs.shop.example:8443", ReservedDNS: []string{"cs.shop.example"}}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, doc string) *countersign.Policy {
	t.Helper()
	p, faults := Parse([]byte(doc), testEnv())
	if len(faults) > 0 {
		t.Fatalf("%v in\n%s", faults, doc)
	}
	return p
}

func report(faults []Fault) string {
	var s strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&s, "%d:%d %s\n    %s\n    %s\n", f.Line, f.Column, f.Path, f.Msg, f.Hint)
	}
	return s.String()
}

// All faults of a document are told at once, in order, with position, path, reason and hint.
func TestGoldenFaults(t *testing.T) {
	for _, name := range []string{"broken", "anchors", "tree"} {
		p, faults := Parse(testdata(t, name+".yaml"), testEnv())
		if p != nil {
			t.Errorf("%s.yaml gave a policy", name)
		}
		golden := filepath.Join("testdata", name+".golden")
		got := report(faults)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range faults {
			if f.Hint == "" {
				t.Errorf("%s.yaml: %s says not what to do", name, f)
			}
		}
		if diff := cmp.Diff(string(testdata(t, name+".golden")), got); diff != "" {
			t.Errorf("%s.yaml (-want +got):\n%s", name, diff)
		}
		if _, again := Parse(testdata(t, name+".yaml"), testEnv()); !slices.Equal(faults, again) {
			t.Errorf("%s.yaml: a second Parse gave other faults", name)
		}
	}
}

func TestShop(t *testing.T) {
	got := mustParse(t, string(testdata(t, "shop.yaml")))
	id := func(name string) countersign.ID {
		id, err := countersign.NewServiceID("shop.internal", name)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	plainService := func(name string) countersign.Service {
		return countersign.Service{ID: id(name), Name: name, DNS: []string{}, KeyTypes: keyTypes(), Alg: "ES256", Typ: "at+jwt", Bind: countersign.BindNone}
	}
	gateway, orders := plainService("gateway"), plainService("orders")
	gateway.DNS, orders.DNS = []string{"gateway.shop.internal"}, []string{"orders.shop.internal"}
	gateway.Accepts = []countersign.Accept{{Issuer: "idp", Audiences: []string{"shop-web"}}}
	orders.TTL, orders.KeyTypes = countersign.Duration(24*time.Hour), []string{"P-256", "Ed25519", "RSA-3072"}
	orders.Alg, orders.Typ = "RS256", "JWT"
	ttl := countersign.Duration(5 * time.Minute)
	want := countersign.NewPolicy(0, "shop.internal",
		[]countersign.Issuer{{
			Name: "idp", Use: countersign.UseUsers, URL: "https://idp.shop.example", Algorithms: []string{"RS256", "ES256"}, JWKSURI: "https://idp.shop.example/jwks",
			Tokens: []string{"access"}, Scopes: []string{"shop.read", "shop.write", "orders:read"}, ScopeClaim: "scope",
			Subject: countersign.SubjectKeep, Carry: []string{"email", "tenant"},
		}},
		[]countersign.Service{gateway, orders, plainService("inventory"), plainService("reports")},
		[]countersign.Call{
			{From: "gateway", To: "orders", TTL: ttl, Scopes: []countersign.Scope{
				{Name: "orders:read", Needs: []string{"orders:read"}}, {Name: "orders:write", Needs: []string{"shop.write"}}}},
			{From: "orders", To: "inventory", TTL: ttl, Scopes: []countersign.Scope{{Name: "stock:read", Needs: []string{"orders:read", "orders:write"}}}},
			{From: "reports", To: "orders", TTL: ttl, Scopes: []countersign.Scope{{Name: "orders:read", Needs: []string{"orders:read"}}}, Machine: []string{"orders:read"}},
			{From: "reports", To: "inventory", TTL: ttl},
		})
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(countersign.Policy{}), cmpopts.EquateEmpty(), cmp.Comparer(func(a, b countersign.ID) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if _, ok := got.Call("orders", "inventory"); !ok {
		t.Error("the policy is not indexed")
	}
}

// edit is the shop with one text replaced by another.
func edit(t testing.TB, old, with string) string {
	t.Helper()
	return editOf(t, "shop.yaml", old, with)
}

func editOf(t testing.TB, name, old, with string) string {
	t.Helper()
	doc := string(testdata(t, name))
	if !strings.Contains(doc, old) {
		t.Fatalf("the document has no %q", old)
	}
	return strings.Replace(doc, old, with, 1)
}

// What a later issue brings is refused by its name, and never ignored.
func TestLaterKeysAreRefusedByName(t *testing.T) {
	for name, doc := range map[string]string{
		"`acme`":           edit(t, "  - name: inventory", "  - name: inventory\n    enrol: [{acme: true}]"),
		"`x5c`":            edit(t, "  - name: inventory", "  - name: inventory\n    x5c: a.pem"),
		"`wildcard`":       edit(t, "  - name: inventory", "  - name: inventory\n    wildcard: true"),
		"`disabled`":       edit(t, "  - name: inventory", "  - name: inventory\n    disabled: true"),
		"`use: operators`": edit(t, "use: users", "use: operators"),
		"wildcard":         edit(t, "gateway.shop.internal", "'*.shop.internal'"),
	} {
		p, faults := Parse([]byte(doc), testEnv())
		if p != nil || len(faults) != 1 || !strings.Contains(faults[0].Msg, name) || !strings.Contains(faults[0].Msg, "not supported by this version") {
			t.Errorf("%s: %v", name, faults)
		} else if faults[0].Hint == "" {
			t.Errorf("%s: no hint", name)
		}
	}
}

// Each of these is one fault, at one place.
func TestOneFault(t *testing.T) {
	for _, c := range []struct{ old, with, path, msg string }{
		{"  - name: inventory", "  - name: inventory\n  - name: inven*tory", "services[3].name", "may hold only"},
		{"  - name: inventory", "  - name: inventory\n  - name: 'inventory|x'", "services[3].name", "may hold only"},
		{"  - name: inventory", "  - name: inventory\n  - name: \"inventory\\n\"", "services[3].name", "may hold only"},
		{"  - name: inventory", "  - name: inventory\n  - name: operator", "services[3].name", "reserved"},
		{"trust_domain: shop.internal", "trust_domain: Shop.internal", "trust_domain", "trust domain of this daemon"},
		{"trust_domain: shop.internal", "", "", "`trust_domain` is missing"},
		{"https://idp.shop.example\n", "https://cs.shop.example:8443\n", "issuers[0].issuer", "daemon itself"},
		{"https://idp.shop.example\n", "HTTPS://CS.shop.example:8443/\n", "issuers[0].issuer", "daemon itself"},
		{"https://idp.shop.example\n", "http://idp.shop.example\n", "issuers[0].issuer", "not https"},
		{"https://idp.shop.example\n", "http://localhost.example\n", "issuers[0].issuer", "not https"},
		{"https://idp.shop.example\n", "https://idp.shop.example?\n", "issuers[0].issuer", "query"},
		{"https://idp.shop.example\n", "https://idp.shop.example#\n", "issuers[0].issuer", "query or a fragment"},
		{"https://idp.shop.example\n", "https://a@idp.shop.example\n", "issuers[0].issuer", "user name"},
		{"https://idp.shop.example\n", "https:idp\n", "issuers[0].issuer", "no absolute URL"},
		{"https://idp.shop.example\n", "https://:80\n", "issuers[0].issuer", "no absolute URL"},
		{"https://idp.shop.example/jwks", "https://cs.shop.example:8443/.well-known/jwks.json", "issuers[0].jwks_uri", "daemon itself"},
		{"[RS256, ES256]", "[None]", "issuers[0].algorithms[0]", "none is never allowed"},
		{"[RS256, ES256]", "[HS512]", "issuers[0].algorithms[0]", "never allowed"},
		{"[RS256, ES256]", "[]", "issuers[0].algorithms", "empty"},
		{"[email, tenant]", "[SUB]", "issuers[0].carry[0]", "can't be carried"},
		{"[email, tenant]", "[scp]", "issuers[0].carry[0]", "can't be carried"},
		{"subject: keep", "subject: drop", "issuers[0].subject", "keep, prefix"},
		{"use: users", "use: users\n    use: users", "issuers[0].use", "occurs twice"},
		{"issuer: idp,", "issuer: idq,", "services[0].accepts[0].issuer", "there is no issuer"},
		{"audiences: [shop-web]", "audiences: []", "services[0].accepts[0].audiences", "empty"},
		{"audiences: [shop-web]", "audiences: ['']", "services[0].accepts[0].audiences[0]", "empty"},
		{"ttl: 24h", "ttl: 59s", "services[1].certificate.ttl", "between 1m and 2160h"},
		{"ttl: 24h", "ttl: 2161h", "services[1].certificate.ttl", "between"},
		{"ttl: 5m", "ttl: 9s", "calls[0].ttl", "between 10s and 1h"},
		{"ttl: 5m", "ttl: 61m", "calls[0].ttl", "between"},
		{"ttl: 5m", "ttl: 300", "calls[0].ttl", "needs a unit"},
		{"ttl: 5m", "ttl: -5m", "calls[0].ttl", "between"},
		{"ttl: 5m", "default: 1", "calls[0].default", "true or false"},
		{"machine: [orders:read]", "machine: [orders:read, orders:write]", "calls[2].machine[1]", "none of the call's scopes"},
		{"to: orders\n    scopes: [{name", "to: reports\n    scopes: [{name", "calls[2].to", "calls itself"},
		{"needs: [shop.write]", "needs: []", "calls[0].scopes[1].needs", "empty"},
		{"needs: [shop.write]", "needs: shop.write", "calls[0].scopes[1].needs", "must be a list"},
		{"needs: [shop.write]", "needs: [any-user]", "calls[0].scopes[1].needs[0]", "any-user is no scope"},
		{"needs: [shop.write]", "needs: [shop.other]", "calls[0].scopes[1].name", "no issuer that \"gateway\" accepts may assert"},
		{"needs: [orders:read, orders:write]", "needs: any-user", "calls[1].scopes[0].needs", "only on calls of an entry point"},
		{"needs: [orders:read, orders:write]", "needs: [shop.read]", "calls[1].scopes[0].name", "can never be held"},
		{"{from: reports, to: inventory}", "{from: reports, to: inventory, default: true}", "calls[3].default", "without scopes"},
		{"{from: reports, to: inventory}", "{from: reports, to: inventory, machine: [a]}", "calls[3].machine[0]", "none of the call's scopes"},
		{"{from: reports, to: inventory}", "{from: reports, to: inventroy}", "calls[3].to", "there is no service"},
		{"{from: reports, to: inventory}", "{from: reports, to: orders}", "calls[3]", "declared twice"},
		{"  - name: inventory", "  - name: inventory\n    dns: [orders.shop.internal]", "services[2].dns[0]", "two services"},
		{"  - name: inventory", "  - name: inventory\n    dns: [cs.shop.example]", "services[2].dns[0]", "daemon's own"},
		{"  - name: inventory", "  - name: inventory\n    dns: [localhost]", "services[2].dns[0]", "reserved"},
		{"  - name: inventory", "  - name: inventory\n    dns: ['::1']", "services[2].dns[0]", "IP address"},
		{"  - name: inventory", "  - name: inventory\n    dns: ['0.0.1.2.3']", "services[2].dns[0]", "IP address"},
		{"  - name: inventory", "  - name: inventory\n    dns: [a.internal.]", "services[2].dns[0]", "final dot"},
		{"  - name: inventory", "  - name: inventory\n    dns: [a_b.internal]", "services[2].dns[0]", "no DNS name"},
		{"  - name: inventory", "  - name: inventory\n    disable: true", "services[2].disable", "has no key"},
		{"  - name: inventory", "\t- name: inventory", "", "tab"},
	} {
		_, faults := Parse([]byte(edit(t, c.old, c.with)), testEnv())
		if len(faults) != 1 || faults[0].Path != c.path || !strings.Contains(faults[0].Msg, c.msg) {
			t.Errorf("%q for %q: %s", c.with, c.old, report(faults))
		}
	}
}

// Each is right, and reads as the document says.
func TestRight(t *testing.T) {
	for _, c := range []struct{ old, with string }{
		{"issuer: https://idp.shop.example\n", "issuer: http://127.0.0.1:8000/realms/x\n"},
		{"issuer: https://idp.shop.example\n", "issuer: http://[::1]:8000\n"},
		{"issuer: https://idp.shop.example\n", "issuer: http://localhost:8000\n"},
		{"needs: [shop.write]", "needs: any-user"},
		{"    subject: keep\n", ""},
		{"ttl: 5m", "default: true"},
		{"trust_domain", "\ufefftrust_domain"},
		{"    to: orders\n", "    to: orders\r\n"},
	} {
		if p, faults := Parse([]byte(edit(t, c.old, c.with)), testEnv()); p == nil {
			t.Errorf("%q for %q: %s", c.with, c.old, report(faults))
		}
	}
	p := mustParse(t, edit(t, "needs: [shop.write]", "needs: any-user"))
	call, _ := p.Call("gateway", "orders")
	if s, ok := call.Scope("orders:write"); !ok || !s.AnyUser || len(s.Needs) != 0 {
		t.Errorf("%+v", s)
	}
}

func TestSeveralIssuers(t *testing.T) {
	doc := func(first, other string) []byte {
		return []byte(strings.Replace(edit(t, "    subject: keep\n", first), "issuers:\n",
			"issuers:\n  - {name: b2b, use: users, issuer: https://b2b.example"+other+"}\n", 1))
	}
	for _, c := range []struct {
		first, other string
		faults       int
	}{
		{"    subject: keep\n", ", subject: prefix", 0},
		{"    subject: prefix\n", ", subject: prefix", 0},
		{"    subject: keep\n", ", subject: keep", 1},
		{"    subject: keep\n", "", 1},
		{"", ", subject: prefix", 1},
		{"", "", 2},
	} {
		if _, faults := Parse(doc(c.first, c.other), testEnv()); len(faults) != c.faults {
			t.Errorf("%q and %q: %s", c.first, c.other, report(faults))
		}
	}
}

func TestBounds(t *testing.T) {
	for name, doc := range map[string]string{
		"bytes":         "trust_domain: shop.internal\n#" + strings.Repeat("x", MaxDocument),
		"depth":         "trust_domain: shop.internal\nservices: " + strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
		"deeper":        "trust_domain: shop.internal\nservices: " + strings.Repeat("[", 400_000),
		"blocks":        "trust_domain: shop.internal\nservices:\n " + strings.Repeat("- ", 300_000),
		"maps":          strings.Repeat("{a: ", 200_000),
		"questions":     strings.Repeat("? ", 300_000),
		"keys":          strings.Repeat("a: 1\n", 150_000),
		"services":      "trust_domain: shop.internal\nservices: [" + strings.Repeat("{},", MaxServices+1) + "]",
		"calls":         "trust_domain: shop.internal\ncalls: [" + strings.Repeat("1,", MaxCalls+1) + "]",
		"dangling":      "trust_domain: shop.internal\ncalls: [" + strings.Repeat("{from: aaaaaaaaaa},", 40_000) + "]",
		"aliases":       "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b]\n",
		"merge":         "trust_domain: shop.internal\nservices: [{<<: {name: a}}]",
		"two documents": "trust_domain: shop.internal\n---\ntrust_domain: shop.internal\n",
		"empty":         " \n",
		"comment":       "# nothing\n",
		"null":          "~\n",
		"latin-1":       "trust_domain: shop.internal # caf\xe9\n",
		"utf-16":        "\xff\xfet\x00r\x00",
		"nul":           "trust_domain: shop.internal\x00",
		"line break":    "trust_domain: shop.internal # \u2028services: []\n",
		"bidi":          "trust_domain: shop.internal # \u202e\n",
		"old mac":       "trust_domain: shop.internal\rservices: []\n",
	} {
		p, faults := Parse([]byte(doc), testEnv())
		if p != nil || len(faults) == 0 || len(faults) > maxFaults+1 {
			t.Errorf("%s: %d faults", name, len(faults))
		}
	}
	_, faults := Parse([]byte("trust_domain: shop.internal # ok\nservices: [\n\t\"caf\xe9\"]"), testEnv())
	if len(faults) != 1 || faults[0].Line != 3 || faults[0].Column != 1 {
		t.Errorf("%v", faults)
	}
}

// A name outside of what the authority's certificates permit is a fault of its own line; without constraints there is none.
func TestPermittedDNS(t *testing.T) {
	env := testEnv()
	env.PermitDNS = []string{"orders.shop.internal", "example"}
	_, faults := Parse(testdata(t, "shop.yaml"), env)
	if len(faults) != 1 || faults[0].Path != "services[0].dns[0]" || !strings.Contains(faults[0].Msg, "name constraints") ||
		!strings.Contains(faults[0].Hint, "orders.shop.internal, example") {
		t.Errorf("%s", report(faults))
	}
	env.PermitDNS = []string{"internal"}
	if _, faults := Parse(testdata(t, "shop.yaml"), env); len(faults) > 0 {
		t.Errorf("%s", report(faults))
	}
	env.PermitDNS = []string{"p.internal"} // a suffix of labels, not of letters
	if _, faults := Parse(testdata(t, "shop.yaml"), env); len(faults) != 2 {
		t.Errorf("%s", report(faults))
	}
}
