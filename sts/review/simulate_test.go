package review

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
)

// traffic is some of everything: two users, a chain, a machine, denials of each kind.
func (k *kit) traffic() {
	k.Helper()
	one := k.allowed("gateway", k.user("orders:read shop.write admin", nil), "orders")
	k.allowed("gateway", k.user("orders:read", nil), "orders", "orders:read")
	k.allowed("orders", one, "inventory", "stock:read")
	k.allowed("reports", "", "orders")
	k.denied(countersign.CodeNoCall, "gateway", k.user("shop.read", nil), "inventory", "stock:read")
	k.denied(countersign.CodeNoCall, "gateway", k.user("shop.read", nil), "inventory", "stock:read")
	k.denied(countersign.CodeScope, "gateway", k.user("orders:read", nil), "orders", "orders:admin")
	k.denied(countersign.CodeSubjectAudience, "gateway", k.user("orders:read", map[string]any{"aud": "x"}), "orders")
	k.denied(countersign.CodeMachine, "gateway", "", "orders")
}

func (k *kit) simulate(change func(p *countersign.Policy)) Simulation {
	k.Helper()
	out, err := Simulate(k.Context(), k.log, Question{Draft: k.shop(0, change), Current: k.policy.Load(), Issuer: us, Last: 1000})
	k.must(err)
	return out
}

func brief(s Simulation) map[string]int {
	out := map[string]int{}
	for _, g := range s.Groups {
		key := g.Change + ": " + g.From + " -> " + g.To + " " + g.Before + " => " + g.After
		if g.Already {
			key += " already"
		}
		out[key] = g.Count
	}
	return out
}

func TestSimulate(t *testing.T) {
	k := newKit(t)
	k.traffic()
	same := k.simulate(nil)
	if same.Replayed != 9 || same.Unchanged != 8 || same.Counts[NotKnown] != 1 || len(same.Groups) != 1 || same.Breaking != 0 {
		t.Fatalf("the policy in force would change something: %+v", same)
	}
	for name, c := range map[string]struct {
		change   func(p *countersign.Policy)
		want     map[string]int
		breaking int
	}{
		"a call less": {func(p *countersign.Policy) { p.Calls = p.Calls[1:] }, map[string]int{
			"allowed -> denied: gateway -> orders allowed => CS3021": 2,
			"denied otherwise: gateway -> orders CS3030 => CS3021":   1,
			"denied otherwise: gateway -> orders CS3060 => CS3021":   1,
		}, 2},
		"a call more": {func(p *countersign.Policy) {
			p.Calls = append(p.Calls, call("gateway", "inventory", scope("stock:read", "shop.read")))
		}, map[string]int{"denied -> allowed: gateway -> inventory CS3021 => stock:read": 2}, 0},
		"a scope less": {func(p *countersign.Policy) { p.Calls[0].Scopes = p.Calls[0].Scopes[:1] },
			map[string]int{"other scopes: gateway -> orders orders:read orders:write => orders:read": 1}, 0},
		"another ttl": {func(p *countersign.Policy) { p.Calls[0].TTL = countersign.Duration(time.Minute) },
			map[string]int{"other lifetime: gateway -> orders 5m0s => 1m0s": 2}, 0},
		"an issuer that may assert more": {func(p *countersign.Policy) {
			p.Issuers[0].Scopes = append(p.Issuers[0].Scopes, "admin")
			p.Calls[0].Scopes = append(p.Calls[0].Scopes, scope("all", "admin"))
		}, map[string]int{"other scopes: gateway -> orders orders:read orders:write => orders:read orders:write all": 1}, 0},
		"an entry point less": {func(p *countersign.Policy) { p.Services[0].Accepts = nil }, map[string]int{
			"allowed -> denied: gateway -> orders allowed => CS3013":  2,
			"denied otherwise: gateway -> orders CS3030 => CS3013":    1,
			"denied otherwise: gateway -> inventory CS3021 => CS3013": 2,
		}, 2},
		"a condition": {func(p *countersign.Policy) { p.Calls[0].When = `subject.tenant != "trial"` },
			map[string]int{"depends on a condition: gateway -> orders allowed => ": 2}, 0},
		"a client less": {func(p *countersign.Policy) { p.Services = p.Services[:3] }, map[string]int{"allowed -> denied: reports -> orders allowed => CS3001": 1}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			got := k.simulate(c.change)
			c.want["not known: gateway -> orders CS3012 => "] = 1
			if diff := cmp.Diff(c.want, brief(got)); diff != "" {
				t.Error(diff)
			}
			if got.Breaking != c.breaking {
				t.Errorf("%d are breaking, want %d", got.Breaking, c.breaking)
			}
			for _, g := range got.Groups {
				if g.RequestID == "" || g.Newest.IsZero() || g.Change == NowDenied && (g.Why == "" || g.Fix == "") {
					t.Errorf("a group without an example or a reason: %+v", g)
				}
			}
		})
	}
}

// What the policy in force denies already is no breach of the draft, and what it decided with the draft's condition stands.
func TestSimulateAgainstLaterPolicies(t *testing.T) {
	k := newKit(t)
	k.traffic()
	without := func(p *countersign.Policy) { p.Calls = p.Calls[1:] }
	k.use(4, without)
	got := k.simulate(without)
	if n := brief(got)["allowed -> denied: gateway -> orders allowed => CS3021 already"]; n != 2 || got.Breaking != 0 {
		t.Errorf("%+v", brief(got))
	}
	same := func(p *countersign.Policy) { p.Calls[0].When = "true"; p.Calls[0].Condition = yes{} }
	k.use(5, same)
	k.allowed("gateway", k.user("orders:read", nil), "orders")
	got = k.simulate(same)
	if n := got.Counts[Conditional]; n != 2 {
		t.Errorf("%d depend on a condition: two of before, and not the one that passed it", n)
	}
	out, err := Simulate(t.Context(), k.log, Question{Draft: k.shop(0, same), Current: k.policy.Load(), Issuer: us, Last: 1})
	if err != nil || out.Replayed != 1 || out.Unchanged != 1 {
		t.Errorf("the last one: %+v, %v", out, err)
	}
}

// A condition may look at the claims and the scopes: it stands only if the draft would show it the same ones.
func TestSimulateConditionsThatLookAtMore(t *testing.T) {
	k := newKit(t)
	conditional := func(p *countersign.Policy) { p.Calls[0].When = "true"; p.Calls[0].Condition = yes{} }
	refusing := func(p *countersign.Policy) { p.Calls[0].When = "true"; p.Calls[0].Condition = no{} }
	k.use(3, conditional)
	k.allowed("gateway", k.user("orders:read shop.write", nil), "orders")
	k.use(3, refusing)
	k.denied(countersign.CodeCondition, "gateway", k.user("orders:read shop.write", nil), "orders")
	k.use(3, conditional)
	for name, c := range map[string]struct {
		change func(p *countersign.Policy)
		depend int
	}{
		"the same":      {func(*countersign.Policy) {}, 0},
		"other scopes":  {func(p *countersign.Policy) { p.Calls[0].Scopes = p.Calls[0].Scopes[:1] }, 2},
		"other claims":  {func(p *countersign.Policy) { p.Issuers[0].Carry = []string{"tenant"} }, 2},
		"other service": {func(p *countersign.Policy) { p.Calls[1].Scopes = p.Calls[1].Scopes[:1] }, 0},
	} {
		got := k.simulate(func(p *countersign.Policy) { conditional(p); c.change(p) })
		if n := got.Counts[Conditional]; n != c.depend || got.Unchanged != 2-c.depend {
			t.Errorf("%s: %d depend on the condition, want %d: %v", name, n, c.depend, brief(got))
		}
	}
}

type no struct{}

func (no) Holds(countersign.ConditionInput) (bool, error) { return false, nil }

type yes struct{}

func (yes) Holds(countersign.ConditionInput) (bool, error) { return true, nil }

func TestSuggest(t *testing.T) {
	k := newKit(t)
	k.traffic()
	k.denied(countersign.CodeNoCall, "gateway", k.user("shop.read", nil), "inventory", "stock:read")
	got, err := Suggest(t.Context(), k.log, k.policy.Load(), us, k.now(), 30*24*time.Hour)
	k.must(err)
	if !got.Short || got.Since.IsZero() || got.Read != 10 || got.MTLS != 1 {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff([]Unused{{From: "inventory", To: "gateway"}}, got.Unused); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Unused{{"orders", "inventory", "stock:write"}}, got.Scopes); diff != "" {
		t.Error(diff)
	}
	if len(got.Denials) != 1 || got.Denials[0].Count != 3 || got.Denials[0].Tokens != 3 || got.Denials[0].RequestID != "r10" ||
		got.Denials[0].Change.Value != `{from: gateway, to: inventory, scopes: [{name: "stock:read", needs: [shop.read]}]}` {
		t.Errorf("%+v", got.Denials)
	}
	// Mended meanwhile, it is suggested no more.
	k.use(4, func(p *countersign.Policy) {
		p.Calls = append(p.Calls, call("gateway", "inventory", scope("stock:read", "shop.read")))
	})
	got, err = Suggest(t.Context(), k.log, k.policy.Load(), us, k.now(), 30*24*time.Hour)
	k.must(err)
	if len(got.Denials) != 0 {
		t.Errorf("%+v", got.Denials)
	}
	// A month later all is unused, and the log is old enough.
	k.clock.Store(int64(31 * 24 * time.Hour))
	got, err = Suggest(t.Context(), k.log, k.policy.Load(), us, k.now(), 30*24*time.Hour)
	k.must(err)
	if got.Short || got.Read != 0 || len(got.Unused) != 5 || len(got.Denials) != 0 {
		t.Errorf("%+v", got)
	}
}
