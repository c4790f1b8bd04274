package sts

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy/condition"
)

// provided gives a call a condition as storage/policy does.
func provided(c *countersign.Call, when string) {
	compiler, err := condition.New()
	if err != nil {
		panic(err)
	}
	compiled, problems := compiler.Compile(when)
	if compiled == nil {
		panic(problems[0].Msg)
	}
	c.When, c.Condition = when, compiled
}

func when(source string) func(*graph) {
	return func(g *graph) { provided(g.call("gateway", "orders"), source) }
}

func TestDecideWhen(t *testing.T) {
	all := "orders: orders:read orders:hello"
	claims := func(payload string) func(*countersign.Policy, *Input) {
		return userAnd(func(in *Input) { in.Subject.Payload = json.RawMessage(payload) }, "orders:read")
	}
	machines := func(source string) func(*graph) {
		return func(g *graph) { provided(g.call("reports", "orders"), source) }
	}
	const no, unknown = countersign.CodeCondition, countersign.CodeConditionError
	runRows(t, []row{
		{name: "it holds", change: when(`subject.tenant != "trial"`), input: claims(`{"tenant":"acme"}`), want: all},
		{name: "it does not hold", change: when(`subject.tenant != "trial"`), input: claims(`{"tenant":"trial"}`), step: StepConditions, code: no},
		{name: "the claim is missing", change: when(`subject.tenant != "trial"`), input: claims(`{}`), step: StepConditions, code: unknown},
		{name: "the claim is null", change: when(`subject.tenant == "acme"`), input: claims(`{"tenant":null}`), step: StepConditions, code: no},
		{name: "the claim has another case", change: when(`subject.tenant != "trial"`), input: claims(`{"Tenant":"acme"}`), step: StepConditions, code: unknown},
		{name: "the claim is of another kind", change: when(`subject.tenant.startsWith("a")`), input: claims(`{"tenant":["a"]}`), step: StepConditions, code: unknown},
		{name: "without a token", change: when(`subject.tenant != "trial"`), input: user("orders:read"), step: StepConditions, code: unknown},
		{name: "the claims are no JSON", change: when(`true`), input: claims(`{`), step: StepConditions, code: unknown},
		{name: "the caller", change: when(`caller.name == "gateway" && caller.id == "spiffe://shop.internal/gateway"`), input: claims(`{}`), want: all},
		{name: "another caller", change: when(`caller.name == "orders"`), input: claims(`{}`), step: StepConditions, code: no},
		{name: "the audience, the scopes and the time", input: claims(`{}`), want: all,
			change: when(`request.audience == "orders" && request.scopes == ["orders:read", "orders:hello"] && !request.machine && request.time.getHours() == 12`)},
		{name: "the scopes as asked", change: when(`request.scopes == ["orders:read"]`), want: "orders: orders:read",
			input: userAnd(func(in *Input) { in.Scopes = []string{"orders:read"} }, "orders:read")},
		{name: "client_credentials", change: machines(`request.machine`), client: "reports", input: forMachine("orders"), want: "orders: orders:read"},
		{name: "client_credentials has no claims", change: machines(`subject.tenant != "trial"`), client: "reports", input: forMachine("orders"), step: StepConditions, code: unknown},
		{name: "the condition of another call", change: machines(`false`), input: claims(`{}`), want: all},
		{name: "not compiled", change: func(g *graph) { g.call("gateway", "orders").When = "true" }, input: claims(`{}`), step: StepConditions, code: unknown},
		{name: "may_act is judged too", change: when("true"), input: userAnd(func(in *Input) { in.Subject.MayAct = json.RawMessage(`{"sub":"x"}`) }, "orders:read"),
			step: StepConditions, code: countersign.CodeMayAct},
		{name: "too costly", change: when(`subject.groups.map(g, g + g).exists(g, g == "x")`), step: StepConditions, code: unknown,
			input: claims(`{"groups":["` + strings.Repeat(`x","`, 8000) + `x"]}`)},
	})
}

// The step names the call, the expression and the error; what stands in the token is in no part of it.
func TestWhenTrace(t *testing.T) {
	for _, c := range []struct{ when, payload, msg, hint string }{
		{"subject.plan ==\n  'gold'", `{"plan":"hunter2"}`, "the condition of call gateway -> orders does not hold", "`subject.plan == 'gold'` is false for this token and this request"},
		{`subject.plan == "gold"`, `{"secret":"hunter2"}`, "the condition of call gateway -> orders can't be judged",
			"`subject.plan == \"gold\"`: there is no \"plan\"; a claim that may be missing is asked for by has(subject.NAME)"},
		{`int(subject.plan) > 1`, `{"plan":"hunter2"}`, "the condition of call gateway -> orders can't be judged",
			"`int(subject.plan) > 1`: a value can't be used as it is written; a claim that may be missing is asked for by has(subject.NAME)"},
		{`subject[subject.plan] == 1`, `{"plan":"hunter2"}`, "the condition of call gateway -> orders can't be judged",
			"`subject[subject.plan] == 1`: a key that it looks up is not there; a claim that may be missing is asked for by has(subject.NAME)"},
		{`subject.plan == "gold"`, ``, "the condition of call gateway -> orders can't be judged",
			"`subject.plan == \"gold\"`: there is no \"plan\"; the question came without a token, so there are no claims"},
	} {
		g := shop()
		when(c.when)(g)
		p := g.policy()
		s := fromUser(p, "orders:read")
		s.Payload = json.RawMessage(c.payload)
		_, trace := Decide(p, Input{Now: noon, Issuer: us, Client: idOf("gateway"), Subject: s, Audiences: []string{"orders"}})
		last := trace.Steps[len(trace.Steps)-1]
		if last.Msg != c.msg || last.Hint != c.hint || last.Rule != "call gateway -> orders" || trace.Err().Kind != countersign.Denied {
			t.Errorf("%s: %+v", c.when, last)
		}
		if all, err := json.Marshal(trace); err != nil || strings.Contains(string(all), "hunter2") {
			t.Errorf("%s: the trace shows a claim: %s", c.when, all)
		}
	}
}

func TestPlainClaims(t *testing.T) {
	got, err := plainClaims(json.RawMessage(`{"a":1,"b":1.5,"c":9223372036854775807,"d":9223372036854775808,"e":1.0,"f":[1,{"g":-2}],"h":null,"i":true,"j":"1","k":1e2}`))
	want := map[string]any{
		"a": int64(1), "b": 1.5, "c": int64(math.MaxInt64), "d": 9223372036854775808.0, "e": 1.0, "f": []any{int64(1), map[string]any{"g": int64(-2)}},
		"h": nil, "i": true, "j": "1", "k": 100.0,
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// By the front door: the entry's condition sees the user's token, the next one the relay token with what was carried.
func TestConditionsOfAChain(t *testing.T) {
	h := openHouse(t)
	g := h.graph()
	provided(g.call("gateway", "orders"), `subject.tenant != "trial" && subject.iss != "`+us+`" && size(subject.department) > 0`)
	provided(g.call("orders", "inventory"), `subject.tenant == "acme" && !has(subject.department) && subject.act.sub == "spiffe://shop.internal/gateway"`)
	h.policy.Store(g.policy())
	relay := h.must("gateway", exchangeOf(h.user(map[string]any{"tenant": "acme", "department": "x"}), "orders")).AccessToken
	h.must("orders", exchangeOf(relay, "inventory"))
	h.refuses("of another tenant", as("gateway"), exchangeOf(h.user(map[string]any{"tenant": "trial", "department": "x"}), "orders"), countersign.CodeCondition)
	h.refuses("without the claim", as("gateway"), exchangeOf(h.user(map[string]any{"tenant": "acme"}), "orders"), countersign.CodeConditionError)
	relay = h.must("gateway", exchangeOf(h.user(map[string]any{"tenant": "globex", "department": "x"}), "orders")).AccessToken
	h.refuses("of another tenant at the second hop", as("orders"), exchangeOf(relay, "inventory"), countersign.CodeCondition)

	denied := h.records("token.denied")
	var detail deniedDetail
	if err := json.Unmarshal(denied[len(denied)-1].Detail, &detail); err != nil || !strings.Contains(detail.Hint, "subject.tenant ==") || strings.Contains(string(denied[len(denied)-1].Detail), "globex") {
		t.Errorf("%s, %v", denied[len(denied)-1].Detail, err)
	}
	e, err := h.Explain(t.Context(), ExplainRequest{From: "gateway", To: "orders"})
	if last := e.Steps[len(e.Steps)-1]; err != nil || e.Allowed || last.Code != countersign.CodeConditionError || !strings.Contains(last.Hint, "without a token") {
		t.Errorf("%+v, %v", e, err)
	}
}
