package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

const rightPolicy = `trust_domain: shop.internal
issuers:
  - name: idp
    use: users
    issuer: https://idp.shop.example
    algorithms: [RS256, ES256]
    jwks_uri: https://idp.shop.example/jwks
    tokens: [access]
    scopes: [shop.read, shop.write, orders:read]
    scope_claim: scope
    subject: keep
    carry: [email, tenant]
services:
  - name: gateway
    dns: [gateway.shop.internal]
    accepts: [{issuer: idp, audiences: [shop-web]}]
  - name: orders
    dns: [orders.shop.internal]
    certificate: {ttl: 24h, keys: [P-256, Ed25519, RSA-3072]}
    token: {alg: RS256, typ: JWT}
  - name: inventory
  - name: reports
calls:
  - from: gateway
    to: orders
    scopes:
      - orders:read
      - {name: orders:write, needs: [shop.write]}
    ttl: 5m
  - from: orders
    to: inventory
    scopes: [{name: stock:read, needs: [orders:read, orders:write]}]
  - from: reports
    to: orders
    scopes: [{name: orders:read}]
    machine: [orders:read]
  - {from: reports, to: inventory}
`

// brokenPolicy is rightPolicy with one text replaced, so that it has one fault: where § stands in with, which is not part
// of the document.
type brokenPolicy struct{ old, with, msg string }

func (b brokenPolicy) document(t *testing.T) (document string, line, column int) {
	t.Helper()
	before, after, found := strings.Cut(rightPolicy, b.old)
	head, tail, marked := strings.Cut(b.with, "§")
	if !found || !marked {
		t.Fatalf("%q for %q can't be applied", b.with, b.old)
	}
	head = before + head
	return head + tail + after, 1 + strings.Count(head, "\n"), 1 + len([]rune(head[strings.LastIndexByte(head, '\n')+1:]))
}

// brokenTexts are no document that could be judged, or hold what no policy may.
func brokenTexts() []brokenPolicy {
	const first = "trust_domain: shop.internal\n"
	const issuers, carry = "issuers:\n", "carry: [email, tenant]"
	return []brokenPolicy{
		{rightPolicy, "§ ", "the document is empty"},
		{rightPolicy, "§# nothing\n", "the document is empty"},
		{rightPolicy, "§- a\n", "must be a mapping"},
		{rightPolicy, "§~\n", "must be a mapping"},
		{first, "§trust: shop.internal\n" + first, "the policy has no key `trust`"},
		{first, first + "§Services: []\n", "the policy has no key `Services`"},
		{first, first + "§trust_domain: shop.internal\n", "occurs twice"},
		{first, "trust_domain: §other.internal\n", "the trust domain of this daemon is shop.internal"},
		{first, "trust_domain: §Shop.internal\n", "the trust domain of this daemon is shop.internal"},
		{first, "trust_domain: §7\n", "must be a text, not a number"},
		{first, "trust_domain:§ \n", "is empty"},
		{first, "trust_domain: §[shop.internal]\n", "must be a text, not a list"},
		{first, "trust_domain: §!!str shop.internal\n", "a tag"},
		{first, "trust_domain: §&a shop.internal\n", "an anchor"},
		{first, "max_hops: §17\n" + first, "between 1 and 16"},
		{first, first + "§\tx: 1\n", "a tab stands in the indentation"},
		{first, "trust_domain: shop.internal §\u202e\n", "U+202E is not allowed"},
		{first, "trust_domain: shop.internal # §\xff\n", "not UTF-8"},
		{first, "trust_domain: shop.internal§\r # a\n", "a carriage return"},
		{first, "trust_domain: shop.internal§\x00\n", "U+0000 is not allowed"},
		{"  - {from: reports, to: inventory}\n", "  - {from: reports, to: inventory}\n§---\na: b\n", "a second document"},
		{first, first + "? §[a]\n: b\n", "a key must be a word"},
		{rightPolicy, first + "issuers: §{name: idp}\n", "must be a list, not a mapping"},
		{rightPolicy, first + "services: §idp\n", "must be a list, not a text"},
		{rightPolicy, first + "calls:§ \n", "must be a list, not nothing"},
		{issuers, issuers + "  - §idq\n", "an issuer must be a mapping, not a text"},
		{carry, "carry: " + strings.Repeat("[", 200) + "§[", "nested more than"},
		{carry, "carry: " + strings.Repeat("[", 9) + "§[" + strings.Repeat("]", 10), "nested more than"},
	}
}

// brokenIssuers name whom nobody should trust, or not so.
func brokenIssuers() []brokenPolicy {
	const name, url, use = "  - name: idp\n", "    issuer: https://idp.shop.example\n", "    use: users\n"
	const algorithms, jwks, carry, subject = "[RS256, ES256]", "jwks_uri: https://idp.shop.example/jwks", "[email, tenant]", "    subject: keep\n"
	const scopes, last = "[shop.read, shop.write, orders:read]", "    carry: [email, tenant]\n"
	another := func(more string) string {
		return "  - §{name: idq, use: users, issuer: https://idq.example" + more + "}\n"
	}
	named := func(name string) string {
		return "  - {name: §" + name + ", use: users, issuer: https://idq.example, subject: prefix}\n"
	}
	at := func(text, where string) string {
		return strings.Replace(strings.ReplaceAll(text, "§", ""), where, "§"+where, 1)
	}
	bad := func(value, msg string) brokenPolicy { return brokenPolicy{url, "    issuer: §" + value + "\n", msg} }
	return []brokenPolicy{
		{last, last + "  - §{use: users, issuer: https://idq.example, subject: prefix}\n", "the name of the issuer is missing"},
		{last, last + named("Idq"), "may hold only"},
		{last, last + named("spiffe"), "an issuer can't be called spiffe"},
		{last, last + named("countersign"), "reserved"},
		{use, "    §used: users\n" + use, "an issuer has no key `used`"},
		{use, "    use: §everybody\n", "it is one of users, workloads"},
		{use, "    use: §operators\n", "is not supported by this version"},
		{name + use, at(name, "name"), "`use` is missing"},
		{"  - name: idp\n    use: users\n" + url, "  - §name: idp\n    use: users\n", "the issuer's URL is missing"},
		bad("http://idp.shop.example", "is not https"), bad("http://localhost.example", "is not https"), bad("idp.shop.example", "no absolute URL"),
		bad("https://a@idp.shop.example", "user name"), bad("https://idp.shop.example?a=b", "query"), bad(`"https://idp.shop.example#"`, "query or a fragment"),
		bad("https://:80", "no absolute URL"), bad("https://"+strings.Repeat("a", 600), "bytes; at most"), bad("ISSUER", "this daemon itself"),
		{jwks, "jwks_uri: §http://idp.shop.example/jwks", "is not https"},
		{jwks, "jwks_uri: §ISSUER/.well-known/jwks.json", "this daemon itself"},
		{jwks, jwks + "\n    §x5c: k.pem", "is not supported by this version"},
		{jwks, jwks + "\n    ca_file: §\"-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----\\n\"", "holds a PRIVATE KEY"},
		{jwks, jwks + "\n    ca_file: §\"-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n\"", "can't be read"},
		{algorithms, "[RS256, §none]", "none is never allowed"}, {algorithms, "[§None]", "none is never allowed"},
		{algorithms, "[§HS256]", "never allowed"}, {algorithms, "[§RS1]", "can't be"}, {algorithms, "§[]", "is empty"},
		{algorithms, "[RS256, §RS256]", "stands twice"},
		{"[access]", "[§refresh]", "can't be"}, {"[access]", "§[]", "is empty"},
		{scopes, "[shop.read, shop.write, orders:read, §\"two words\"]", "no scope may hold"},
		{scopes, "[shop.read, shop.write, orders:read, §any-user]", "any-user is no scope"},
		{scopes, "[shop.read, shop.write, orders:read, §\"\"]", "a scope is empty"},
		{scopes, "[shop.read, shop.write, orders:read, §" + strings.Repeat("a", 129) + "]", "bytes; at most"},
		{"scope_claim: scope", "scope_claim: §scopes", "can't be"},
		{subject, "    subject: §drop\n", "can't be"},
		{carry, "[§sub]", "can't be carried"}, {carry, "[§SUB]", "can't be carried"}, {carry, "[§cnf]", "can't be carried"}, {carry, "[§\"\"]", "is empty"},
		{carry, `[§"a\u202Eb"]`, "do not print"}, {carry, "[§" + strings.Repeat("a", 129) + "]", "bytes; at most"},
		{last, last + at(another(", subject: keep"), "keep"), "a second issuer keeps its subs"},
		{last, last + another(""), "`subject` is missing"},
		{last, last + "  - {name: §idp, use: users, issuer: https://idq.example, subject: prefix}\n", "declared twice"},
		{last, last + "  - {name: idq, use: users, issuer: §https://idp.shop.example, subject: prefix}\n", "two issuers have the URL"},
	}
}

// brokenServices have names that are not theirs, or what certificates and tokens can't have.
func brokenServices() []brokenPolicy {
	const inventory, certificate, token = "  - name: inventory\n", "{ttl: 24h, keys: [P-256, Ed25519, RSA-3072]}", "{alg: RS256, typ: JWT}"
	const accepts = "[{issuer: idp, audiences: [shop-web]}]"
	more := func(text, msg string) brokenPolicy { return brokenPolicy{inventory, inventory + text, msg} }
	return []brokenPolicy{
		more("  - name: §inven*tory\n", "may hold only"), more("  - name: §'inventory|x'\n", "may hold only"), more("  - name: §\"inventory\\n\"\n", "may hold only"),
		more("  - name: §"+strings.Repeat("a", 64)+"\n", "63"), more("  - name: §operator\n", "reserved"), more("  - name: §countersign\n", "reserved"),
		more("  - name: §orders\n", "declared twice"), more("  - §names: x\n    name: y\n", "a service has no key `names`"), more("  - §{token: {alg: ES256}}\n", "the name of the service is missing"),
		more("    dns: [§orders.shop.internal]\n", "given to two services"), more("    dns: [§localhost]\n", "reserved"), more("    dns: [§LOCALHOST.]\n", "reserved"),
		more("    dns: [§'*.shop.internal']\n", "wildcard"), more("    dns: [§10.0.0.1]\n", "IP address"), more("    dns: [§'::1']\n", "IP address"),
		more("    dns: [§Inventory.internal]\n", "lower case"), more("    dns: [§a.internal.]\n", "final dot"), more("    dns: [§a..b]\n", "no DNS name"),
		more("    dns: [§cs.shop.example]\n", "the daemon's own"), more("    dns: [a.internal, §a.internal]\n", "stands twice"), more("    dns: §a.b\n", "must be a list"),
		more("    dns: [§a.example]\n", "outside the authority's name constraints"), more("    dns: [a.internal, §a.b.xinternal]\n", "outside the authority's name constraints"),
		more("    §wildcard: true\n", "is not supported by this version"), more("    §disabled: true\n", "service disable NAME"), more("    enrol: [{§acme: true}]\n", "is not supported by this version"),
		more("    §x5c: a.pem\n", "is not supported by this version"),
		{accepts, "[{issuer: §idpp, audiences: [shop-web]}]", "there is no issuer"},
		{accepts, "[{issuer: idp, audiences: §[]}]", "is empty"},
		{accepts, "[{issuer: idp, audiences: [§'']}]", "an audience is empty"},
		{accepts, "[{issuer: idp, audiences: [§" + strings.Repeat("a", 256) + "]}]", "bytes; at most"},
		{accepts, "[§{issuer: idp}]", "the audiences are missing"},
		{accepts, "[§{audiences: [shop-web]}]", "the issuer is missing"},
		{accepts, "[{issuer: idp, audiences: [shop-web]}, {issuer: §idp, audiences: [b]}]", "accepted twice"},
		{accepts, "§[]", "is empty"},
		{certificate, "{ttl: §59s}", "between 1m and 2160h"}, {certificate, "{ttl: §2161h}", "between"}, {certificate, "{ttl: §24}", "needs a unit"},
		{certificate, "{ttl: §90d}", "no unit for days"}, {certificate, "{ttl: §1h1ms}", "whole seconds"}, {certificate, "{keys: [§P256]}", "did you mean `P-256`"},
		{certificate, "{keys: §[]}", "is empty"}, {certificate, "{§algo: x}", "has no key `algo`"}, {certificate, "§24h", "must be a mapping"},
		{token, "{alg: §EdDSA}", "can't be"}, {token, "{alg: §none}", "can't be"}, {token, "{typ: §jwt}", "can't be"}, {token, "{bind: §dpop}", "can't be"},
	}
}

// brokenCalls go nowhere, or hold what nobody could ever have.
func brokenCalls() []brokenPolicy {
	const last, ttl, needs = "  - {from: reports, to: inventory}\n", "    ttl: 5m\n", "needs: [shop.write]"
	const stock = "{name: stock:read, needs: [orders:read, orders:write]}"
	call := func(text, msg string) brokenPolicy { return brokenPolicy{last, "  - " + text + "\n", msg} }
	return []brokenPolicy{
		call("{from: reports, to: §inventroy}", "did you mean `inventory`"), call("{from: §report, to: inventory}", "did you mean `reports`"),
		call("§{from: reports}", "`to` is missing"), call("§{to: inventory}", "`from` is missing"),
		call("{from: reports, to: §reports}", "calls itself"), call("§{from: reports, to: orders}", "declared twice"),
		call("{from: reports, to: inventory, §scope: [a]}", "a call has no key `scope`"), call("{from: reports, to: inventory, scopes: §a}", "must be a list"),
		call("{from: reports, to: inventory, §from: orders}", "occurs twice"), call("{from: reports, to: inventory, scopes: [§7]}", "must be a text"),
		call("{from: reports, to: inventory, default: §true}", "without scopes"), call("{from: reports, to: inventory, machine: [§a]}", "none of the call's scopes"),
		call("{from: reports, to: inventory, scopes: [§a]}", "can never be held"), call("{from: reports, to: inventory, scopes: [§{needs: [a]}]}", "the name of the scope is missing"),
		call("{from: reports, to: inventory, scopes: [a, §a], machine: [a]}", "stands twice on one call"),
		call("{from: reports, to: inventory, scopes: [{name: a, §need: [b]}], machine: [a]}", "a scope has no key `need`"),
		call("{from: inventory, to: reports, scopes: [{name: a, needs: [stock:read]}, §b]}", "no call to \"inventory\" hands that on"),
		{ttl, "    ttl: §9s\n", "between 10s and 1h"}, {ttl, "    ttl: §61m\n", "between"}, {ttl, "    ttl: §300\n", "needs a unit"}, {ttl, "    ttl: §-5m\n", "between"},
		{ttl, "    ttl: §1d\n", "no unit for days"}, {ttl, "    default: §yes\n", "true or false"}, {ttl, "    default: §1\n", "true or false"},
		{ttl, "    reenter: §yes\n", "true or false"},
		{needs, "needs: §[]", "is empty"}, {needs, "needs: §shop.write", "must be a list"}, {needs, "needs: [§any-user]", "any-user is no scope"},
		{"{name: orders:write, " + needs, "{name: §orders:write, needs: [shop.other]", "no issuer that \"gateway\" accepts may assert"},
		{stock, "{name: stock:read, needs: §any-user}", "only on calls of an entry point"},
		{stock, "{name: §stock:read, needs: [shop.read]}", "can never be held"},
		{"    machine: [orders:read]", "    machine: [orders:read, §orders:write]", "none of the call's scopes"},
		{"    machine: [orders:read]", "    machine: [orders:read]\n    default: true\n  - {from: reports, to: gateway, scopes: [x], machine: [x], default: §true}", "two default calls"},
	}
}

// ownName gives the daemon a name of its own, cs.shop.example, that no service may have, and constraints for all others'.
func ownName() []string {
	return []string{"COUNTERSIGN_DNS=localhost,cs.shop.example", "COUNTERSIGN_CA_PERMIT=internal,localhost,shop.example"}
}

// policyDoor is a daemon with rightPolicy in force.
func policyDoor(t *testing.T) *door {
	t.Helper()
	d := openDoor(t, ownName())
	d.apply(t, rightPolicy)
	return d
}

// applyBroken runs `policy apply` on a document, and gives its exit code and what it said.
func (d *door) applyBroken(document string) (path string, code int, said string) {
	d.Helper()
	path = filepath.Join(d.TempDir(), "policy.yaml")
	d.must(os.WriteFile(path, []byte(document), 0o600))
	code, said = d.command("policy", "apply", path)
	return path, code, said
}

// TestBrokenPolicies applies one document for each fault of policy.md. The daemon judges, so the exit code is 2; it says
// where the fault is, what, and what to do; and the policy in force stays.
func TestBrokenPolicies(t *testing.T) {
	t.Parallel()
	d := policyDoor(t)
	before := d.state()
	var all []brokenPolicy
	for _, some := range [][]brokenPolicy{brokenTexts(), brokenIssuers(), brokenServices(), brokenCalls(), brokenWorkloads(), brokenProofs(), brokenConditions()} {
		all = append(all, some...)
	}
	said := regexp.MustCompile(`^countersign: \S+ has 1 fault; the policy in force stays\n  \S+?:(\d+):(\d+): (.+) \(.+\)\n  why:  .+\n  next: .+\n  \(code (CS\d+), request \S+\)\n$`)
	for _, b := range all {
		document, line, column := b.document(t)
		document = strings.ReplaceAll(document, "ISSUER", d.url)
		_, code, text := d.applyBroken(document)
		match := said.FindStringSubmatch(text)
		want := []string{strconv.Itoa(line), strconv.Itoa(column), string(countersign.CodePolicyFaults)}
		if code != exitRemote || match == nil || match[1] != want[0] || match[2] != want[1] || match[4] != want[2] || !strings.Contains(text, b.msg) {
			t.Errorf("%q for %q: exit code %d, want %q at %s:%s\n%s", b.with, b.old, code, b.msg, want[0], want[1], text)
		}
	}
	d.unchanged(before, map[string]int{"policy.refused": -1})
	t.Logf("%d broken policies", len(all))
}

// TestAllFaultsAtOnce applies all of storage/policy's broken document: each fault of the golden file is told, in its order.
func TestAllFaultsAtOnce(t *testing.T) {
	t.Parallel()
	d := policyDoor(t)
	before := d.state()
	document, err := os.ReadFile("../../storage/policy/testdata/broken.yaml")
	d.must(err)
	// The command puts the contents of files in their places, and these are nowhere.
	document = regexp.MustCompile(`(?m)^    (ca_file|jwks_file): .*$`).ReplaceAll(document, nil)
	golden, err := os.ReadFile("../../storage/policy/testdata/broken.golden")
	d.must(err)
	places := regexp.MustCompile(`(?m)^(\d+:\d+) (\S*)\n    (.+)$`).FindAllStringSubmatch(string(golden), -1)
	path, code, said := d.applyBroken(string(document))
	rest, told := said, 0
	for _, place := range places {
		if strings.HasSuffix(place[2], "_file") || place[2] == "issuers[3].issuer" || strings.HasSuffix(place[3], "the daemon's own") {
			continue // facts of the daemon, and this one has others
		}
		where := place[2]
		if where != "" {
			where += ": "
		}
		_, after, found := strings.Cut(rest, fmt.Sprintf("  %s:%s: %s%s (", path, place[1], where, place[3]))
		if !found {
			t.Errorf("%s %s is not told, or not in its place", place[1], place[2])
			continue
		}
		rest, told = after, told+1
	}
	if code != exitRemote || told < 70 {
		t.Errorf("exit code %d, %d faults told\n%s", code, told, said)
	}
	d.unchanged(before, map[string]int{"policy.refused": 1})
}

// TestBrokenPolicyByHTTP is the same in the form of RFC 9457: the faults are a member of the problem.
func TestBrokenPolicyByHTTP(t *testing.T) {
	t.Parallel()
	d := policyDoor(t)
	before := d.state()
	got := d.send(d.as("admin"), "PUT", "/v1/policy", "trust_domain: other.internal\nservices: [{nam: a}]\n", "Content-Type", wire.YAML)
	if err := (refusal{400, "", countersign.CodePolicyFaults}).check(got); err != nil {
		t.Error(err)
	}
	for _, want := range []string{`"line":1,"column":15,"path":"trust_domain"`, `"line":2,"column":12,"path":"services[0]"`, "did you mean `name`?"} {
		if !bytes.Contains(got.body, []byte(want)) {
			t.Errorf("%s does not hold %s", got.body, want)
		}
	}
	d.unchanged(before, map[string]int{"policy.refused": 1})
}
