package review

import (
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy"
)

const goodCases = `cases:
  - name: a user reads
    from: gateway
    to: orders
    scopes: ["orders:read"]
    holds: {issuer: idp, scopes: ["orders:read"]}
    expect: allow
  - from: gateway
    to: orders
    holds: {issuer: idp, scopes: ["orders:read", "shop.write", admin]}
    expect: allow
    granted: ["orders:write", "orders:read"]
  - {from: gateway, to: inventory, holds: {issuer: idp, scopes: [shop.read]}, expect: deny, code: CS3021, step: call}
  - {from: orders, to: inventory, holds: {scopes: ["orders:read"], chain: [gateway]}, expect: allow, granted: ["stock:read"]}
  - {from: inventory, to: gateway, holds: {scopes: ["stock:read"], chain: [gateway, orders]}, expect: deny, code: CS3042}
  - {from: orders, to: inventory, holds: {issuer: idp, scopes: ["orders:read"]}, expect: deny, code: CS3013, step: subject-token}
  - {from: gateway, to: orders, holds: {issuer: idp, audience: other, scopes: ["orders:read"]}, expect: deny, code: CS3012}
  - {from: gateway, to: orders, scopes: [x], holds: {issuer: idp, scopes: ["orders:read"]}, expect: deny, step: scope}
  - {from: gateway, to: orders, holds: {issuer: idp, scopes: ["orders:read"], claims: {may_act: {sub: x}}}, expect: deny, code: CS3040}
  - {from: reports, to: orders, machine: true, expect: allow}
  - {from: gateway, to: orders, machine: true, expect: deny, code: CS3060}
  - {from: ghost, to: orders, machine: true, expect: deny, step: client}
  - {from: gateway, to: "https://orders.shop.internal", machine: true, expect: deny, code: CS3020}
`

func TestCases(t *testing.T) {
	cases, faults := ParseCases([]byte(goodCases))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for _, r := range Run(shop(), cases, noon) {
		if !r.OK {
			t.Errorf("line %d: %s: want %s, got %s (%s)", r.Line, r.Name, r.Want, r.Got, r.Why)
		}
		if !r.Allowed && (r.Why == "" || r.Change == "") {
			t.Errorf("line %d: a denial that is not explained: %+v", r.Line, r)
		}
	}
	if cases[0].Line != 2 || cases[2].Line != 13 || cases[3].Name != "orders -> inventory" {
		t.Errorf("%+v", cases[:4])
	}
}

// Conditions see the claims of the case.
func TestCasesWithConditions(t *testing.T) {
	p, faults := policy.Parse([]byte(`trust_domain: shop.internal
issuers: [{name: idp, use: users, issuer: "https://idp.example", scopes: [read], carry: [tenant]}]
services: [{name: a, accepts: [{issuer: idp, audiences: [web]}]}, {name: b}, {name: c}]
calls:
  - {from: a, to: b, scopes: [read], when: 'subject.tenant != "trial"'}
  - {from: b, to: c, scopes: [read], when: 'subject.tenant == "acme" && subject.scope == "read"'}
`), policy.Env{TrustDomain: domain})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	cases, bad := ParseCases([]byte(`cases:
  - {from: a, to: b, holds: {issuer: idp, scopes: [read], claims: {tenant: acme}}, expect: allow}
  - {from: a, to: b, holds: {issuer: idp, scopes: [read], claims: {tenant: trial}}, expect: deny, code: CS3045, step: conditions}
  - {from: a, to: b, holds: {issuer: idp, scopes: [read]}, expect: deny, code: CS3046}
  - {from: b, to: c, holds: {scopes: [read], chain: [a], claims: {tenant: acme}}, expect: allow}
  - {from: b, to: c, holds: {scopes: [read], chain: [a], claims: {tenant: other}}, expect: deny, code: CS3045}
`))
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	for _, r := range Run(p, cases, noon) {
		if !r.OK {
			t.Errorf("line %d: want %s, got %s (%s)", r.Line, r.Want, r.Got, r.Why)
		}
	}
}

// A relay token holds what the user's issuer carries into it. A case with another claim tests a token that nobody ever gets:
// it fails whatever it expects, and says so.
func TestCasesWithClaimsThatNobodyCarries(t *testing.T) {
	p := shop()
	second := p.Issuers[0]
	second.Name, second.URL, second.Carry = "second", "https://second.example", []string{"tenant", "plan"}
	p.Issuers[0].Carry = []string{"tenant", "region"}
	p = countersign.NewPolicy(1, domain, append(p.Issuers, second), p.Services, p.Calls)
	for claims, exists := range map[string]bool{
		"{tenant: x}":            true,
		"{tenant: x, plan: y}":   true, // by the second issuer
		"{sid: x, txn: y}":       true, // ours
		"{acr: x, tenant: y}":    true, // kept always
		"{plan: x, region: y}":   false,
		"{tenant: x, groups: y}": false,
		"{Tenant: x}":            false,
	} {
		for _, expect := range []string{"allow", "deny"} {
			cases, faults := ParseCases([]byte(`cases: [{from: orders, to: inventory, holds: {scopes: ["orders:read"], chain: [gateway], claims: ` + claims + `}, expect: ` + expect + `}]`))
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			r := Run(p, cases, noon)[0]
			if r.OK != (exists && expect == "allow") || strings.Contains(r.Got, "no such token can exist under this policy") == exists {
				t.Errorf("%s, %s: %+v", claims, expect, r)
			}
		}
	}
	// What a user's own token holds, no policy limits.
	cases, _ := ParseCases([]byte(`cases: [{from: gateway, to: orders, holds: {issuer: idp, scopes: ["orders:read"], claims: {groups: y}}, expect: allow}]`))
	if r := Run(p, cases, noon)[0]; !r.OK {
		t.Errorf("%+v", r)
	}
}

// A case that does not hold is a failure, whichever part of it is wrong.
func TestCasesThatFail(t *testing.T) {
	for _, text := range []string{
		`{from: gateway, to: orders, holds: {issuer: idp, scopes: ["orders:read"]}, expect: deny}`,
		`{from: gateway, to: inventory, holds: {issuer: idp, scopes: ["orders:read"]}, expect: allow}`,
		`{from: gateway, to: inventory, holds: {issuer: idp, scopes: ["orders:read"]}, expect: deny, code: CS3020}`,
		`{from: gateway, to: inventory, holds: {issuer: idp, scopes: ["orders:read"]}, expect: deny, step: scope}`,
		`{from: gateway, to: orders, holds: {issuer: idp, scopes: ["orders:read"]}, expect: allow, granted: ["orders:read", "orders:write"]}`,
		`{from: gateway, to: orders, holds: {issuer: nobody, scopes: ["orders:read"]}, expect: deny}`,
		`{from: "Not A Name", to: orders, machine: true, expect: deny}`,
		`{from: orders, to: inventory, holds: {scopes: ["orders:read"], chain: ["A B"]}, expect: deny}`,
	} {
		cases, faults := ParseCases([]byte("cases: [" + text + "]"))
		if len(faults) > 0 {
			t.Fatal(faults)
		}
		if r := Run(shop(), cases, noon)[0]; r.OK {
			t.Errorf("passes: %s: %+v", text, r)
		}
	}
}

func TestParseCasesRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "the file is empty",
		"cases: []":            "there are no cases",
		"case: []":             "field case not found",
		"cases: x":             "cannot unmarshal",
		"cases: [{}]\n---\nx:": "more than one document",
		"cases: [{from: a, machine: true, expect: maybe}]":                                      "1: `expect` must be allow or deny",
		"cases: [{to: a, machine: true, expect: deny}]":                                         "1: `from` is missing",
		"cases: [{from: a, expect: deny}]":                                                      "1: `holds` is missing",
		"cases: [{from: a, machine: true, holds: {}, expect: deny}]":                            "leave out `holds`",
		"cases: [{from: a, machine: true, expect: allow, code: CS3020}]":                        "go with `expect: deny`",
		"cases: [{from: a, machine: true, expect: deny, granted: [a]}]":                         "goes with `expect: allow`",
		"cases: [{from: a, machine: true, expect: deny, code: CS9999}]":                         "there is no code",
		"cases: [{from: a, machine: true, expect: deny, step: stop}]":                           "there is no step",
		"cases: [{from: a, holds: {issuer: i, chain: [b]}, expect: deny}]":                      "`chain` is of relay tokens",
		"cases: [{from: a, holds: {audience: b}, expect: deny}]":                                "always addressed to `from`",
		"cases: [{from: a, expct: deny}]":                                                       "field expct not found",
		"cases: [{from: a, from: b, machine: true, expect: deny}]":                              "already",
		"cases: [{from: a, machine: true, expect: deny, scopes: x}]":                            "cannot unmarshal",
		"cases:\n  - {from: a, machine: true, expect: deny}\n  - {from: a, expect: x, code: y}": "3: `expect`",
		strings.Repeat("#", MaxCases+1):                                                         "at most",
	} {
		cases, faults := ParseCases([]byte(text))
		if len(faults) == 0 || cases != nil || !strings.Contains(faults[0].String(), want) {
			t.Errorf("%.80q: %v, want %q", text, faults, want)
		}
	}
}

func FuzzParseCases(f *testing.F) {
	f.Add([]byte(goodCases))
	f.Add([]byte("cases: [{from: a, machine: true, expect: deny}]"))
	f.Add([]byte("cases: &a [*a]"))
	p := shop()
	f.Fuzz(func(t *testing.T, doc []byte) {
		cases, faults := ParseCases(doc)
		if (cases == nil) == (len(faults) == 0) {
			t.Fatalf("%d cases and %d faults", len(cases), len(faults))
		}
		for _, r := range Run(p, cases, noon) {
			if r.Got == "" || r.OK && r.Allowed != strings.HasPrefix(r.Want, "allow") {
				t.Fatalf("%+v", r)
			}
		}
	})
}
