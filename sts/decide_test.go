package sts

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
)

// row is one case of Decide: the shop's policy and an exchange that is allowed, each changed by one thing.
type row struct {
	name   string
	change func(*graph)
	client string
	input  func(*countersign.Policy, *Input)
	step   string           // the one that fails; "": allowed
	code   countersign.Code // of the failing step
	want   string           // of an allowed one: "audience: scopes"
}

func (r row) run(t *testing.T) {
	g := shop()
	if r.change != nil {
		r.change(g)
	}
	p := g.policy()
	in := Input{Now: noon, Issuer: us, Client: idOf(r.client)}
	if r.input != nil {
		r.input(p, &in)
	}
	grant, trace := Decide(p, in)
	last := trace.Steps[len(trace.Steps)-1]
	if r.step == "" {
		if err := trace.Err(); err != nil {
			t.Fatalf("denied: %v (%s)", err, last.Name)
		}
		if got := grant.Audience.Name + ": " + strings.Join(grant.Scopes, " "); got != r.want {
			t.Fatalf("granted %q, not %q", got, r.want)
		}
		return
	}
	if last.OK || last.Name != r.step || last.Code != r.code {
		t.Fatalf("the last step is %+v, not a failed %s with %s", last, r.step, r.code)
	}
	if last.Msg == "" || grant.Call != nil {
		t.Errorf("a denial without a reason, or with a grant: %+v %+v", last, grant)
	}
	follow(t, g, in)
	for _, s := range trace.Steps[:len(trace.Steps)-1] {
		if !s.OK || s.Name == "" {
			t.Errorf("a step before the failing one: %+v", s)
		}
	}
}

func runRows(t *testing.T, rows []row) {
	for _, r := range rows {
		if r.client == "" {
			r.client = "gateway"
		}
		t.Run(r.name, r.run)
	}
}

func user(scopes ...string) func(*countersign.Policy, *Input) {
	return func(p *countersign.Policy, in *Input) {
		in.Subject = fromUser(p, scopes...)
		in.Audiences = []string{"orders"}
	}
}

func userAnd(then func(*Input), scopes ...string) func(*countersign.Policy, *Input) {
	return func(p *countersign.Policy, in *Input) { user(scopes...)(p, in); then(in) }
}

func relay(audience string, s *Subject, asked ...string) func(*countersign.Policy, *Input) {
	return func(_ *countersign.Policy, in *Input) {
		in.Subject, in.Scopes = s, asked
		if audience != "" {
			in.Audiences = []string{audience}
		}
	}
}

func forMachine(audience string, asked ...string) func(*countersign.Policy, *Input) {
	return func(_ *countersign.Policy, in *Input) {
		in.Machine, in.Scopes = true, asked
		if audience != "" {
			in.Audiences = []string{audience}
		}
	}
}

func TestDecideClient(t *testing.T) {
	runRows(t, []row{
		{name: "a service of the policy", input: user("orders:read"), want: "orders: orders:read orders:hello"},
		{name: "unknown", client: "ghost", input: user("orders:read"), step: StepClient, code: countersign.CodeClient},
		{name: "nobody", input: userAnd(func(in *Input) { in.Client = countersign.ID{} }), step: StepClient, code: countersign.CodeClient},
		{name: "an operator", input: userAnd(func(in *Input) {
			in.Client, _ = countersign.NewOperatorID(domain, "gateway")
		}), step: StepClient, code: countersign.CodeClient},
		{name: "of another trust domain", input: userAnd(func(in *Input) {
			in.Client, _ = countersign.NewServiceID("evil.internal", "gateway")
		}), step: StepClient, code: countersign.CodeClient},
		{name: "disabled", change: func(g *graph) { g.service("gateway").Disabled = &countersign.Disabled{Reason: "x"} },
			input: user("orders:read"), step: StepClient, code: countersign.CodeServiceDisabled},
		{name: "no subject", input: relay("orders", nil), step: StepSubject, code: countersign.CodeSubjectToken},
		{name: "a subject with client_credentials", input: userAnd(func(in *Input) { in.Machine = true }, "orders:read"),
			step: StepSubject, code: countersign.CodeSubjectToken},
	})
	if _, trace := Decide(countersign.NewPolicy(0, domain, nil, nil, nil), Input{Client: idOf("gateway")}); trace.Err().Code != countersign.CodeClient {
		t.Errorf("without a policy: %v", trace.Err())
	}
}

func targets(audiences, resources []string) func(*countersign.Policy, *Input) {
	return userAnd(func(in *Input) { in.Audiences, in.Resources = audiences, resources }, "orders:read", "shop.write")
}

func TestDecideTarget(t *testing.T) {
	all := "orders: orders:read orders:write orders:hello"
	one := func(s string) []string { return []string{s} }
	rows := []row{
		{name: "by ID", input: targets(one("spiffe://shop.internal/orders"), nil), want: all},
		{name: "all mean one", input: targets([]string{"orders", "spiffe://shop.internal/orders"}, one("https://orders.shop.internal")), want: all},
		{name: "two services", input: targets([]string{"orders", "billing"}, nil), step: StepCall, code: countersign.CodeTarget},
		{name: "audience and resource differ", input: targets(one("orders"), one("https://billing.shop.internal")), step: StepCall, code: countersign.CodeTarget},
		{name: "no call", input: targets(one("inventory"), nil), step: StepCall, code: countersign.CodeNoCall},
		{name: "not backwards", client: "orders", input: relay("gateway", relayed([]string{"orders:read"}, "reports")), step: StepCall, code: countersign.CodeNoCall},
		{name: "mTLS only", client: "reports", input: relay("inventory", relayed([]string{"report"})), step: StepCall, code: countersign.CodeNoCall},
		{name: "audience disabled", change: func(g *graph) { g.service("orders").Disabled = &countersign.Disabled{} },
			input: targets(one("orders"), nil), step: StepCall, code: countersign.CodeNoCall},
		{name: "an audience with an edge to nowhere", change: func(g *graph) { g.call("gateway", "billing").To = "gone" },
			input: targets(one("gone"), nil), step: StepCall, code: countersign.CodeTarget},
	}
	for _, good := range []string{"spiffe://shop.internal/orders", "https://orders.shop.internal", "https://orders.shop.internal:8443/v1/x",
		"https://ORDERS.shop.internal/", "https://orders.shop.internal:/"} {
		rows = append(rows, row{name: "resource " + good, input: targets(nil, one(good)), want: all})
	}
	for _, bad := range []string{"orders", "http://orders.shop.internal", "https://orders", "https://orders.shop.internal.", "https://shop.internal",
		"https://a@orders.shop.internal", "https://orders.shop.internal/#f", "https://orders.shop.internal#", "https://orders.shop.internal?x=1",
		"https://orders.shop.internal?", "//orders.shop.internal", "https:orders.shop.internal", "https://", "spiffe://evil.internal/orders",
		"spiffe://shop.internal/operator/orders", "spiffe://shop.internal/countersign", "https://x.orders.shop.internal", "%zz"} {
		rows = append(rows, row{name: "resource " + bad, input: targets(nil, one(bad)), step: StepCall, code: countersign.CodeTarget})
	}
	for _, bad := range []string{"Orders", "orders ", "orders.shop.internal", "https://orders.shop.internal", "spiffe://shop.internal/Orders", "*"} {
		rows = append(rows, row{name: "audience " + bad, input: targets(one(bad), nil), step: StepCall, code: countersign.CodeTarget})
	}
	runRows(t, rows)
}

// Spring's client sends no audience: it is found from the scopes.
func TestDecideInferred(t *testing.T) {
	asking := func(scopes ...string) func(*countersign.Policy, *Input) {
		return userAnd(func(in *Input) { in.Audiences, in.Scopes = nil, scopes }, "orders:read", "shop.write")
	}
	twice := func(g *graph) {
		g.call("gateway", "billing").Scopes = append(g.call("gateway", "billing").Scopes, needing("orders:read", "orders:read"))
	}
	runRows(t, []row{
		{name: "one fits", input: asking("orders:read"), want: "orders: orders:read"},
		{name: "the other fits", input: asking("bill"), want: "billing: bill"},
		{name: "none fits", input: asking("stock:read"), step: StepCall, code: countersign.CodeTargetAmbiguous},
		{name: "no call has both", input: asking("orders:read", "bill"), step: StepCall, code: countersign.CodeTargetAmbiguous},
		{name: "several fit", change: twice, input: asking("orders:read"), step: StepCall, code: countersign.CodeTargetAmbiguous},
		{name: "the default of several", change: func(g *graph) { twice(g); g.call("gateway", "billing").Default = true },
			input: asking("orders:read"), want: "billing: orders:read"},
		{name: "two defaults", change: func(g *graph) { twice(g); g.calls[0].Default, g.calls[1].Default = true, true },
			input: asking("orders:read"), step: StepCall, code: countersign.CodeTargetAmbiguous},
		{name: "a default that does not fit", change: func(g *graph) { g.call("gateway", "billing").Default = true },
			input: asking("orders:read"), want: "orders: orders:read"},
		{name: "none asked, several", input: asking(), step: StepCall, code: countersign.CodeTargetAmbiguous},
		{name: "none asked, the default", change: func(g *graph) { g.call("gateway", "billing").Default = true }, input: asking(), want: "billing: bill"},
		{name: "none asked, one", client: "orders", input: relay("", relayed([]string{"orders:read"}, "gateway")), want: "inventory: stock:read"},
		{name: "an mTLS call is no candidate", client: "reports", input: relay("", relayed([]string{"report"})), want: "orders: orders:read orders:all"},
		{name: "no calls at all", client: "idle", input: relay("", relayed([]string{"report"})), step: StepCall, code: countersign.CodeTargetAmbiguous},
		{name: "a machine's", client: "reports", input: forMachine(""), want: "orders: orders:read"},
		{name: "a machine's, not open", client: "orders", input: forMachine(""), step: StepCall, code: countersign.CodeMachine},
		{name: "a machine's, among calls for users", change: func(g *graph) { g.call("gateway", "billing").Machine = []string{"bill"} },
			input: forMachine(""), want: "billing: bill"},
	})
}

func TestDecideScope(t *testing.T) {
	asked := func(held []string, scopes ...string) func(*countersign.Policy, *Input) {
		return userAnd(func(in *Input) { in.Scopes = scopes }, held...)
	}
	runRows(t, []row{
		{name: "the same", input: asked([]string{"orders:read"}, "orders:read"), want: "orders: orders:read"},
		{name: "another that is needed", input: asked([]string{"shop.write"}, "orders:write"), want: "orders: orders:write"},
		{name: "in the order asked, once", input: asked([]string{"shop.write", "orders:read"}, "orders:write", "orders:read", "orders:write"),
			want: "orders: orders:write orders:read"},
		{name: "not on the call", input: asked([]string{"orders:read", "bill"}, "bill"), step: StepScope, code: countersign.CodeScope},
		{name: "not held", input: asked([]string{"orders:read"}, "orders:write"), step: StepScope, code: countersign.CodeScopeNotHeld},
		{name: "one of two not held", input: asked([]string{"orders:read"}, "orders:read", "orders:write"), step: StepScope, code: countersign.CodeScopeNotHeld},
		{name: "the scope itself is not what it needs", input: asked([]string{"orders:write"}, "orders:write"), step: StepScope, code: countersign.CodeScopeNotHeld},
		{name: "any user", input: asked(nil, "orders:hello"), want: "orders: orders:hello"},
		{name: "any user is no relay token's", input: relay("orders", relayed([]string{"x"}, "reports"), "orders:hello"), step: StepScope, code: countersign.CodeScopeNotHeld},
		{name: "none asked", input: asked([]string{"shop.write"}), want: "orders: orders:write orders:hello"},
		{name: "none asked, none allowed", client: "orders", input: relay("inventory", relayed([]string{"shop.write"}, "gateway")), step: StepScope, code: countersign.CodeScopeNone},
		{name: "any of several needs", client: "orders", input: relay("inventory", relayed([]string{"orders:write"}, "gateway"), "stock:read"), want: "inventory: stock:read"},
		{name: "none held", client: "orders", input: relay("inventory", relayed(nil, "gateway"), "stock:read"), step: StepScope, code: countersign.CodeScopeNotHeld},
	})
}

func TestDecideMachine(t *testing.T) {
	onward := func(g *graph) { g.call("orders", "inventory").Machine = []string{"stock:read"} }
	runRows(t, []row{
		{name: "an open call", client: "reports", input: forMachine("orders"), want: "orders: orders:read"},
		{name: "an open scope", client: "reports", input: forMachine("orders", "orders:read"), want: "orders: orders:read"},
		{name: "a scope for users", client: "reports", input: forMachine("orders", "orders:all"), step: StepScope, code: countersign.CodeScope},
		{name: "no scope of the call", client: "reports", input: forMachine("orders", "x"), step: StepScope, code: countersign.CodeScope},
		{name: "a call for users", input: forMachine("orders"), step: StepCall, code: countersign.CodeMachine},
		{name: "an mTLS call", client: "reports", input: forMachine("inventory"), step: StepCall, code: countersign.CodeNoCall},
		{name: "passed on to a call for users", client: "orders", input: relay("inventory", machine("reports", "orders:read"), "stock:read"),
			step: StepCall, code: countersign.CodeNoUser},
		{name: "passed on, nothing asked, to a call for users", client: "orders", input: relay("inventory", machine("reports", "orders:read")),
			step: StepCall, code: countersign.CodeNoUser},
		{name: "passed on to an open call", change: onward, client: "orders", input: relay("inventory", machine("reports", "orders:read"), "stock:read"),
			want: "inventory: stock:read"},
		{name: "passed on to an open call, scope for users", change: onward, client: "orders",
			input: relay("inventory", machine("reports", "orders:write"), "stock:write"), step: StepCall, code: countersign.CodeNoUser},
		{name: "passed on, none asked: what is open and held", change: onward, client: "orders",
			input: relay("inventory", machine("reports", "orders:write")), want: "inventory: stock:read"},
		{name: "passed on, needs not held", change: onward, client: "orders",
			input: relay("inventory", machine("reports", "other"), "stock:read"), step: StepScope, code: countersign.CodeScopeNotHeld},
	})
	_, trace := Decide(shop().policy(), Input{Now: noon, Issuer: us, Client: idOf("reports"), Machine: true, Audiences: []string{"orders"}})
	grant, _ := Decide(shop().policy(), Input{Now: noon, Issuer: us, Client: idOf("reports"), Machine: true, Audiences: []string{"orders"}})
	if err := trace.Err(); err != nil || grant.Act != nil || grant.Sub != idOf("reports").String() || grant.SubIssuer != us || len(grant.Carry) != 0 || grant.Transaction != "" {
		t.Errorf("a machine's grant: %+v, %v", grant, err)
	}
}

func TestDecideMayAct(t *testing.T) {
	for text, allowed := range map[string]bool{
		`{"sub":"spiffe://shop.internal/gateway"}`:                                              true,
		`{"client_id":"spiffe://shop.internal/gateway"}`:                                        true,
		`{"sub":"spiffe://shop.internal/gateway","iss":"` + us + `"}`:                           true,
		`{"sub":"spiffe://shop.internal/gateway","client_id":"spiffe://shop.internal/gateway"}`: true,
		`{"sub":"spiffe://shop.internal/orders"}`:                                               false,
		`{"sub":"gateway"}`: false,
		`{"sub":"spiffe://shop.internal/gateway","client_id":"spiffe://shop.internal/orders"}`: false,
		`{"sub":"spiffe://shop.internal/gateway","iss":"https://idp.shop.example"}`:            false,
		`{"sub":"spiffe://shop.internal/gateway","email":"a@b"}`:                               false,
		`{"SUB":"spiffe://shop.internal/gateway"}`:                                             false,
		`{"sub":["spiffe://shop.internal/gateway"]}`:                                           false,
		`{"sub":null}`:                       false,
		`{"iss":"` + us + `"}`:               false,
		`{}`:                                 false,
		`null`:                               false,
		`"spiffe://shop.internal/gateway"`:   false,
		`["spiffe://shop.internal/gateway"]`: false,
		`{"sub":"spiffe://shop.internal/orders","sub":"spiffe://shop.internal/gateway"}`: false,
	} {
		r := row{client: "gateway", want: "orders: orders:read orders:hello", input: userAnd(func(in *Input) { in.Subject.MayAct = json.RawMessage(text) }, "orders:read")}
		if !allowed {
			r.step, r.code = StepConditions, countersign.CodeMayAct
		}
		t.Run(text, r.run)
	}
}

func TestDecideChain(t *testing.T) {
	far := func(n int) []string {
		chain := []string{"gateway"}
		for len(chain) < n {
			chain = append(chain, "hop-"+strings.Repeat("x", len(chain)))
		}
		return chain
	}
	held := []string{"orders:read"}
	// back is an edge to a service that begins requests by client_credentials.
	back := func(g *graph) {
		g.calls = append(g.calls, countersign.Call{From: "orders", To: "reports", TTL: fiveMinutes(),
			Scopes: []countersign.Scope{needing("report", "orders:read")}, Machine: []string{"report"}})
	}
	reenter := func(from, to string) func(*graph) { return func(g *graph) { g.call(from, to).Reenter = true } }
	self := func(c *countersign.Call) { c.To, c.Reenter = c.From, true }
	passedOn := func(s *Subject, chain ...string) *Subject { s.Act = relayed(nil, chain...).Act; return s }
	runRows(t, []row{
		{name: "the 8th service", client: "orders", input: relay("inventory", relayed(held, far(7)...)), want: "inventory: stock:read"},
		{name: "the 9th service", client: "orders", input: relay("inventory", relayed(held, far(8)...)), step: StepConditions, code: countersign.CodeHops},
		{name: "the client again", client: "orders", input: relay("inventory", relayed(held, "gateway", "orders")), step: StepConditions, code: countersign.CodeReentry},
		{name: "the audience again", client: "orders", input: relay("inventory", relayed(held, "gateway", "inventory")), step: StepConditions, code: countersign.CodeReentry},
		{name: "to itself", change: func(g *graph) { g.call("orders", "inventory").To = "orders" }, client: "orders",
			input: relay("orders", relayed(held, "gateway")), step: StepConditions, code: countersign.CodeReentry},
		{name: "a machine to itself", change: func(g *graph) { g.call("reports", "orders").To = "reports" }, client: "reports",
			input: forMachine("reports"), step: StepConditions, code: countersign.CodeReentry},
		{name: "back to the machine that began", change: back, client: "orders", input: relay("reports", machine("reports", "orders:read")),
			step: StepConditions, code: countersign.CodeReentry},
		{name: "back to the machine that began, farther on", change: back, client: "orders", input: relay("reports", passedOn(machine("reports", "orders:read"), "inventory")),
			step: StepConditions, code: countersign.CodeReentry},
		{name: "the machine that began as the client", change: back, client: "reports", input: relay("orders", passedOn(machine("reports", "report"), "inventory")),
			step: StepConditions, code: countersign.CodeReentry},
		{name: "a user's request to the same service", change: back, client: "orders", input: relay("reports", relayed(held, "gateway")), want: "reports: report"},
		{name: "the client again, which may", change: reenter("orders", "inventory"), client: "orders", input: relay("inventory", relayed(held, "gateway", "orders")), want: "inventory: stock:read"},
		{name: "the audience again, which may", change: reenter("orders", "inventory"), client: "orders", input: relay("inventory", relayed(held, "inventory")), want: "inventory: stock:read"},
		{name: "again, by the call of another", change: reenter("gateway", "orders"), client: "orders", input: relay("inventory", relayed(held, "inventory")),
			step: StepConditions, code: countersign.CodeReentry},
		{name: "to itself, which may", change: func(g *graph) { self(g.call("orders", "inventory")) }, client: "orders",
			input: relay("orders", relayed(held, "gateway")), want: "orders: stock:read"},
		{name: "a machine to itself, which may", change: func(g *graph) { self(g.call("reports", "orders")) }, client: "reports",
			input: forMachine("reports"), want: "reports: orders:read"},
		{name: "back to the machine that began, which may", change: func(g *graph) { back(g); reenter("orders", "reports")(g) }, client: "orders",
			input: relay("reports", machine("reports", "orders:read")), want: "reports: report"},
		{name: "reenter does not lengthen the chain", change: reenter("orders", "inventory"), client: "orders", input: relay("inventory", relayed(held, far(8)...)),
			step: StepConditions, code: countersign.CodeHops},
		{name: "every occurrence counts", change: reenter("orders", "inventory"), client: "orders",
			input: relay("inventory", relayed(held, slices.Repeat([]string{"orders"}, 8)...)), step: StepConditions, code: countersign.CodeHops},
		{name: "an actor token that proves the client", input: userAnd(func(in *Input) { in.ActorSent, in.Actor = true, in.Client }, "orders:read"),
			want: "orders: orders:read orders:hello"},
		{name: "an actor token of another", input: userAnd(func(in *Input) { in.ActorSent, in.Actor = true, idOf("orders") }, "orders:read"),
			step: StepConditions, code: countersign.CodeActor},
		{name: "an actor token of nobody", input: userAnd(func(in *Input) { in.ActorSent = true }, "orders:read"), step: StepConditions, code: countersign.CodeActor},
	})
}

// max_hops is the policy's; what no verifier could read is not minted (16 levels of JSON, the claims themselves are one).
func TestMaxHops(t *testing.T) {
	for _, c := range []struct{ most, passed int }{{0, -1}, {1, 0}, {2, 1}, {8, 7}, {15, 14}, {16, 14}} {
		for passed := range 18 {
			p := shop().policy()
			p.MaxHops = c.most
			var chain []string
			for i := range passed {
				chain = append(chain, fmt.Sprintf("hop%d", i))
			}
			grant, trace := Decide(p, Input{Now: noon, Issuer: us, Client: idOf("orders"), Subject: relayed([]string{"orders:read"}, chain...), Audiences: []string{"inventory"}})
			err := trace.Err()
			if allowed := passed <= c.passed; allowed != (err == nil) || err != nil && err.Code != countersign.CodeHops {
				t.Fatalf("max_hops %d after %d services: %v", c.most, passed, err)
			}
			if err != nil {
				continue
			}
			id, transaction := grant.identify()
			parsed(t, "at+jwt", grant.claims(us, id, transaction)) // a receiver can read it
		}
	}
}

func TestDecideCarry(t *testing.T) {
	for text, allowed := range map[string]bool{
		`"a"`: true, `1.5e3`: true, `true`: true, `["a","b"]`: true, `[]`: true,
		`null`: false, `{}`: false, `["a",1]`: false, `[null]`: false, `[["a"]]`: false, `{"a":1}`: false,
		`"` + strings.Repeat("x", maxCarry-len("tenant")-2) + `"`: true,
		`"` + strings.Repeat("x", maxCarry-len("tenant")-1) + `"`: false,
	} {
		r := row{client: "gateway", want: "orders: orders:read orders:hello", input: userAnd(func(in *Input) {
			in.Subject.Carry = map[string]json.RawMessage{"tenant": json.RawMessage(text)}
		}, "orders:read")}
		if !allowed {
			r.step, r.code = StepConditions, countersign.CodeCarry
		}
		t.Run(quote(text), r.run)
	}
	for _, name := range own() {
		row{client: "gateway", step: StepConditions, code: countersign.CodeCarry, input: userAnd(func(in *Input) {
			in.Subject.Carry = map[string]json.RawMessage{name: json.RawMessage(`"x"`)}
		}, "orders:read")}.run(t)
	}
}

func TestDecideLifetime(t *testing.T) {
	second := time.Second
	for _, c := range []struct {
		name string
		left time.Duration // of the subject token
		ttl  time.Duration
		want time.Duration // exp - noon; 0: denied
	}{
		{"the call's ttl", time.Hour, 5 * time.Minute, 5*time.Minute - 400*time.Millisecond},
		{"the subject's exp", 90 * second, 5 * time.Minute, 89*second + 600*time.Millisecond},
		{"just enough", 5*second + 600*time.Millisecond, 5 * time.Minute, 5*second + 600*time.Millisecond},
		{"too little", 5*second + 500*time.Millisecond, 5 * time.Minute, 0},
		{"over", -second, 5 * time.Minute, 0},
		{"no ttl", time.Hour, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := shop()
			g.call("gateway", "orders").TTL = countersign.Duration(c.ttl)
			p := g.policy()
			s := fromUser(p, "orders:read")
			s.Expires = noon.Add(c.left)
			grant, trace := Decide(p, Input{Now: noon, Issuer: us, Client: idOf("gateway"), Subject: s, Audiences: []string{"orders"}})
			if err := trace.Err(); c.want == 0 {
				if err == nil || err.Code != countersign.CodeLifetime {
					t.Fatalf("got %v", err)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			if got := grant.Expires.Sub(noon); got != c.want || grant.Expires.After(s.Expires) || grant.IssuedAt.After(noon) || grant.IssuedAt.Nanosecond()+grant.Expires.Nanosecond() != 0 {
				t.Errorf("exp is noon%+v, not %v; iat %v", got, c.want, grant.IssuedAt)
			}
		})
	}
}

// The trace is the explanation: it names every step, the rule and what would have been allowed.
func TestTrace(t *testing.T) {
	p := shop().policy()
	in := Input{Now: noon, Issuer: us, Client: idOf("gateway"), Subject: fromUser(p, "orders:read"), Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}
	_, trace := Decide(p, in)
	want := []Step{
		{Name: "client", OK: true, Rule: "service gateway", Msg: "spiffe://shop.internal/gateway"},
		{Name: "subject-token", OK: true, Rule: "issuer idp", Msg: "a token of issuer idp that holds: orders:read"},
		{Name: "call", OK: true, Rule: "call gateway -> orders", Msg: "audience orders"},
		{Name: "scope", OK: true, Rule: "call gateway -> orders", Msg: "asked and allowed: orders:read"},
		{Name: "conditions", OK: true, Msg: "the chain has 1 service with this client"},
		{Name: "lifetime", OK: true, Rule: "call gateway -> orders", Msg: "5m0s, by the call's ttl"},
	}
	if diff := cmp.Diff(want, trace.Steps); diff != "" {
		t.Error(diff)
	}
	in.Scopes = []string{"orders:write"}
	_, trace = Decide(p, in)
	err := trace.Err()
	if err.Msg != "the subject token does not hold what orders:write on call gateway -> orders needs" ||
		err.Hint != "it needs one of: shop.write; the token holds: orders:read" || err.Kind != countersign.Denied {
		t.Errorf("%+v", err)
	}
	in.Audiences = []string{"inventory"}
	_, trace = Decide(p, in)
	if err := trace.Err(); !strings.Contains(err.Hint, "gateway may call: orders, billing") {
		t.Errorf("%+v", err)
	}
	if (Trace{}).Err() == nil {
		t.Error("an empty trace is no denial")
	}
}
