package review

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts"
)

const (
	us     = "https://cs.shop.internal"
	idpURL = "https://idp.shop.example"
	domain = "shop.internal"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func id(name string) countersign.ID {
	made, err := countersign.NewServiceID(domain, name)
	if err != nil {
		panic(err)
	}
	return made
}

func service(name string) countersign.Service {
	return countersign.Service{ID: id(name), Name: name, KeyTypes: []string{"P-256"}, Alg: "ES256", Typ: "at+jwt"}
}

func call(from, to string, scopes ...countersign.Scope) countersign.Call {
	return countersign.Call{From: from, To: to, TTL: countersign.Duration(5 * time.Minute), Scopes: scopes}
}

func scope(name string, needs ...string) countersign.Scope {
	if len(needs) == 0 {
		needs = []string{name}
	}
	return countersign.Scope{Name: name, Needs: needs}
}

func shop(calls ...countersign.Call) *countersign.Policy {
	if calls == nil {
		calls = []countersign.Call{
			call("gateway", "orders", scope("orders:read"), scope("orders:write", "shop.write")),
			call("orders", "inventory", scope("stock:read", "orders:read", "orders:write"), scope("stock:write", "orders:write")),
			call("inventory", "gateway", scope("loop", "stock:read")),
			{From: "reports", To: "orders", TTL: countersign.Duration(time.Minute), Scopes: []countersign.Scope{scope("orders:all")}, Machine: []string{"orders:all"}},
			call("reports", "inventory"),
		}
	}
	services := []countersign.Service{service("gateway"), service("orders"), service("inventory"), service("reports")}
	services[0].Accepts = []countersign.Accept{{Issuer: "idp", Audiences: []string{"web"}}}
	issuers := []countersign.Issuer{{Name: "idp", Use: countersign.UseUsers, URL: idpURL, Tokens: []string{"access"},
		Scopes: []string{"shop.read", "shop.write", "orders:read"}, ScopeClaim: "scope", Subject: countersign.SubjectKeep}}
	return countersign.NewPolicy(3, domain, issuers, services, calls)
}

func paths(reached []Reached) []string {
	var out []string
	for _, r := range reached {
		s := r.Service + " " + r.Scope + ":"
		for _, h := range r.Path {
			s += " " + h.From
		}
		out = append(out, s)
	}
	return out
}

func TestReach(t *testing.T) {
	want := []string{"inventory stock:read: gateway orders", "inventory stock:write: gateway orders", "orders orders:write: gateway"}
	if diff := cmp.Diff(want, paths(Reach(shop(), []string{"shop.write"}, ""))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[:2], paths(Reach(shop(), []string{"shop.write"}, "inventory"))); diff != "" {
		t.Error(diff)
	}
	if got := Reach(shop(), []string{"orders:write"}, ""); got != nil {
		t.Errorf("a scope that no issuer asserts reaches %v", got)
	}
	p := shop(call("gateway", "orders", countersign.Scope{Name: "hello", AnyUser: true}), call("orders", "inventory", countersign.Scope{Name: "hi", AnyUser: true}))
	for _, held := range []string{"shop.read", "no issuer asserts it"} {
		if diff := cmp.Diff([]string{"orders hello: gateway"}, paths(Reach(p, []string{held}, ""))); diff != "" {
			t.Error(held, diff)
		}
	}
	s := search{p: p}
	if got := s.relaxed([]string{"no issuer asserts it"}); !maps.Equal(got, map[word]bool{{"orders", "hello"}: true}) {
		t.Errorf("relaxed: %v", got)
	}
}

func drawPolicy(t *rapid.T) *countersign.Policy {
	pool := []string{"a", "b", "c"}
	subset := func(label string, least int) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(pool), least, len(pool), rapid.ID[string]).Draw(t, label)
	}
	n := rapid.IntRange(2, 5).Draw(t, "services")
	var services []countersign.Service
	for i := range n {
		s := service(fmt.Sprintf("s%d", i))
		if i == 0 || rapid.IntRange(0, 3).Draw(t, "entry") == 0 {
			s.Accepts = []countersign.Accept{{Issuer: "idp", Audiences: []string{"web"}}}
		}
		if i > 0 && rapid.IntRange(0, 9).Draw(t, "disabled") == 0 {
			s.Disabled = &countersign.Disabled{}
		}
		services = append(services, s)
	}
	var calls []countersign.Call
	for i := range n {
		for j := range n {
			if rapid.IntRange(0, 1).Draw(t, "edge") == 0 {
				continue
			}
			c := call(services[i].Name, services[j].Name)
			c.Reenter = rapid.IntRange(0, 5).Draw(t, "reenter") == 0
			for _, name := range subset("scopes", 0) {
				if rapid.IntRange(0, 5).Draw(t, "any user") == 0 {
					c.Scopes = append(c.Scopes, countersign.Scope{Name: name, AnyUser: true})
				} else {
					c.Scopes = append(c.Scopes, scope(name, subset("needs", 1)...))
				}
			}
			calls = append(calls, c)
		}
	}
	issuers := []countersign.Issuer{{Name: "idp", URL: idpURL, Tokens: []string{"access"}, Scopes: subset("issuer", 1), Subject: countersign.SubjectKeep}}
	p := countersign.NewPolicy(1, domain, issuers, services, calls)
	p.MaxHops = rapid.IntRange(1, 4).Draw(t, "max hops") // so that brute force ends
	return p
}

// bruteForce makes every chain of exchanges, asking Decide for each, and keeps the length of the shortest way to each scope.
func bruteForce(p *countersign.Policy, scopes []string) map[string]int {
	shortest := map[string]int{}
	var walk func(holder string, s *sts.Subject, hops int)
	walk = func(holder string, s *sts.Subject, hops int) {
		for _, c := range p.CallsFrom(holder) {
			grant, trace := sts.Decide(p, sts.Input{Now: noon, Issuer: us, Client: id(holder), Subject: s, Audiences: []string{c.To}})
			if trace.Err() != nil {
				continue
			}
			for _, name := range grant.Scopes {
				key := c.To + " " + name
				if best, ok := shortest[key]; !ok || hops+1 < best {
					shortest[key] = hops + 1
				}
			}
			walk(c.To, &sts.Subject{Sub: "ana", SubIssuer: idpURL, Scopes: grant.Scopes, Expires: grant.Expires, Act: grant.Act, ID: "j", Transaction: "t"}, hops+1)
		}
	}
	issuer, _ := p.Issuer(idpURL)
	enter := func(service string, scopes ...string) {
		walk(service, &sts.Subject{External: issuer, Sub: "ana", SubIssuer: idpURL, Scopes: scopes, Expires: noon.Add(time.Hour)}, 0)
	}
	for i := range p.Services {
		if len(p.Services[i].Accepts) == 0 {
			continue
		}
		enter(p.Services[i].Name) // a user is a user without any scope
		for _, scope := range scopes {
			if slices.Contains(issuer.Scopes, scope) {
				enter(p.Services[i].Name, scope)
			}
		}
	}
	return shortest
}

// Reach finds exactly what Decide lets through over all chains, by ways as short.
func TestReachIsWhatDecideAllows(t *testing.T) {
	longest := 0
	check := func(t *rapid.T) {
		p := drawPolicy(t)
		scopes := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 2, rapid.ID[string]).Draw(t, "held")
		want, got := bruteForce(p, scopes), map[string]int{}
		for _, r := range Reach(p, scopes, "") {
			got[r.Service+" "+r.Scope] = len(r.Path)
			longest = max(longest, len(r.Path))
		}
		if !maps.Equal(want, got) {
			t.Fatalf("brute force %v, Reach %v", want, got)
		}
	}
	// A hundred draws may all be of small graphs: it goes on until there was a way of three hops.
	for round := 0; longest < 3; round++ {
		if round == 20 {
			t.Fatalf("the longest of 2,000 draws has %d hops: this proves little", longest)
		}
		rapid.Check(t, check)
	}
}

// A large policy without end of cycles ends in time, with the rest called possible.
func TestReachIsBounded(t *testing.T) {
	var services []countersign.Service
	var calls []countersign.Call
	for i := range 40 {
		services = append(services, service(fmt.Sprintf("s%d", i)))
		for j := range 40 {
			calls = append(calls, call(fmt.Sprintf("s%d", i), fmt.Sprintf("s%d", j), scope(fmt.Sprintf("x%d", (i+j)%7), fmt.Sprintf("x%d", i%7), fmt.Sprintf("x%d", j%5))))
		}
	}
	services[0].Accepts = []countersign.Accept{{Issuer: "idp", Audiences: []string{"web"}}}
	issuers := []countersign.Issuer{{Name: "idp", URL: idpURL, Scopes: []string{"x0"}}}
	reached := Reach(countersign.NewPolicy(1, domain, issuers, services, calls), []string{"x0"}, "")
	if len(reached) < 40 || !strings.HasPrefix(reached[0].Service, "s") {
		t.Errorf("%d are reached", len(reached))
	}
}
