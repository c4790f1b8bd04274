package sts

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

// denial is a request that is refused with a code, by the policy of shop().
type denial struct {
	code   countersign.Code
	client string
	ask    func(h *house) Request
	policy func(*graph) // nil: as it is
	step   string
	near   string // part of the nearest rule; "": there is none
	change string // part of the suggested change
	mended bool   // the change is of the policy, and with it the same request is allowed
}

func denials() []denial {
	user := func(changes map[string]any, scopes ...string) func(*house) Request {
		return func(h *house) Request { return exchangeOf(h.user(changes), "orders", scopes...) }
	}
	to := func(audience string, scopes ...string) func(*house) Request {
		return func(h *house) Request { return exchangeOf(h.user(nil), audience, scopes...) }
	}
	asking := func(r Request) func(*house) Request { return func(*house) Request { return r } }
	relayed := func(audience string, scopes ...string) func(*house) Request {
		return func(h *house) Request {
			return exchangeOf(h.must("gateway", exchangeOf(h.user(nil), "orders")).AccessToken, audience, scopes...)
		}
	}
	byMachine := func(audience string, scopes ...string) func(*house) Request {
		return func(h *house) Request {
			return exchangeOf(h.must("reports", Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}).AccessToken, audience, scopes...)
		}
	}
	edge := func(from, to string, needs ...string) func(*graph) {
		return func(g *graph) {
			g.calls = append(g.calls, countersign.Call{From: from, To: to, TTL: fiveMinutes(), Scopes: []countersign.Scope{needing("x", needs...)}})
		}
	}
	condition := func(a answer) func(*graph) {
		return func(g *graph) {
			g.call("gateway", "orders").When, g.call("gateway", "orders").Condition = `subject.tenant == "x"`, a
		}
	}
	return []denial{
		{code: countersign.CodeClient, client: "gatway", ask: to("orders"), step: StepClient, near: "service gateway", change: "add to services: {name: gatway}"},
		{code: countersign.CodeServiceDisabled, ask: to("orders"), policy: func(g *graph) { g.service("gateway").Disabled = &countersign.Disabled{} },
			step: StepClient, near: "service gateway", change: "countersign service enable gateway"},
		{code: countersign.CodeClientMismatch, ask: func(h *house) Request { r := to("orders")(h); r.ClientID = "x"; return r },
			step: StepClient, near: "service gateway", change: "leave out client_id"},
		{code: countersign.CodeGrantType, ask: asking(Request{GrantType: "password"}), step: StepRequest, change: "send grant_type=" + GrantExchange},
		{code: countersign.CodeTokenRequest, ask: asking(Request{GrantType: GrantExchange}), step: StepRequest, change: "send subject_token="},
		{code: countersign.CodeTokenRequest, ask: asking(Request{}), step: StepRequest, change: "send grant_type="},
		{code: countersign.CodeTokenRequest, ask: func(h *house) Request { r := to("orders")(h); r.SubjectTokenType = ""; return r },
			step: StepRequest, change: "send subject_token_type="},
		{code: countersign.CodeTokenRequest, ask: asking(Request{GrantType: GrantClientCredentials, SubjectToken: "x"}), step: StepRequest, change: "leave out subject_token"},
		{code: countersign.CodeTokenRequest, ask: func(h *house) Request { r := to("orders")(h); r.ActorTokenType = TypeJWT; return r },
			step: StepRequest, change: "leave out actor_token_type"},
		{code: countersign.CodeTokenType, ask: func(h *house) Request { r := to("orders")(h); r.RequestedTokenType = "x"; return r },
			step: StepRequest, change: "leave out requested_token_type"},
		{code: countersign.CodeTokenType, ask: func(h *house) Request { r := to("orders")(h); r.SubjectTokenType = "x"; return r },
			step: StepRequest, change: "send subject_token_type="},
		{code: countersign.CodeSubjectToken, ask: asking(exchangeOf("opaque", "orders")), step: StepSubject, near: "issuer idp", change: "send the token as it was issued"},
		{code: countersign.CodeSubjectExpired, ask: user(map[string]any{"exp": 1}), step: StepSubject, near: "issuer idp", change: "exp in the future"},
		{code: countersign.CodeSubjectAudience, ask: user(map[string]any{"aud": "other-app"}), step: StepSubject, near: "issuer idp",
			change: "add to services[gateway].accepts[idp].audiences: other-app", mended: true},
		{code: countersign.CodeSubjectAudience, client: "inventory", ask: relayed("orders"), policy: func(g *graph) { g.service("inventory").Typ = "JWT" },
			step: StepSubject, near: "call orders -> inventory", change: "aud inventory (orders has to exchange it for inventory first)"},
		{code: countersign.CodeSubjectIssuer, client: "orders", ask: to("inventory"), step: StepSubject, near: "issuer idp",
			change: "add to services[orders].accepts: {issuer: idp, audiences: [shop-web]}", mended: true},
		{code: countersign.CodeSubjectIssuer, ask: user(map[string]any{"iss": "https://evil.example"}), step: StepSubject, near: "issuer idp",
			change: `add to issuers: {name: NAME, use: users, issuer: "https://evil.example"`},
		{code: countersign.CodeSubjectKind, ask: user(map[string]any{"typ": "Refresh"}), step: StepSubject, near: "issuer idp", change: "typ at+jwt"},
		{code: countersign.CodeSubjectKind, ask: user(nil), policy: func(g *graph) { g.issuers[0].Tokens = []string{"id"} }, step: StepSubject, near: "issuer idp",
			change: "add to issuers[idp].tokens: access", mended: true},
		{code: countersign.CodeSubjectKey, ask: func(h *house) Request {
			return exchangeOf(h.idp.token(h.t, "idp-2", with(userClaims(), map[string]any{"iss": h.idp.URL})), "orders")
		}, step: StepSubject, near: "issuer idp", change: "kid that the issuer publishes"},
		{code: countersign.CodeSubjectName, ask: user(map[string]any{"sub": "idp:x"}), step: StepSubject, near: "issuer idp", change: "set issuers[idp].subject: prefix", mended: true},
		{code: countersign.CodeIssuerDown, ask: user(map[string]any{"iss": downURL, "aud": "hr-portal"}), step: StepSubject, near: "issuer hr", change: "make the keys of issuer hr reachable"},
		{code: countersign.CodeTarget, ask: to("odrers"), step: StepCall, near: "service orders", change: "send audience=orders"},
		{code: countersign.CodeNoCall, ask: to("inventory", "stock:read"), step: StepCall, near: "call orders -> inventory",
			change: `add to calls: {from: gateway, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}]}`, mended: true},
		{code: countersign.CodeTargetAmbiguous, ask: to(""), step: StepCall, near: "call gateway -> orders", change: "send audience=orders"},
		{code: countersign.CodeNoUser, client: "orders", ask: byMachine("inventory", "stock:read"), step: StepCall, near: "call orders -> inventory",
			change: `add to calls[orders -> inventory].machine: "stock:read"`, mended: true},
		{code: countersign.CodeMachine, ask: asking(Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}), step: StepCall, near: "call gateway -> orders",
			change: `add to calls[gateway -> orders].machine: "orders:read"`, mended: true},
		{code: countersign.CodeScope, ask: to("orders", "orders:reed"), step: StepScope, near: "call gateway -> orders", change: "send scope=orders:read"},
		{code: countersign.CodeScope, ask: to("orders", "refunds"), step: StepScope, near: "call gateway -> orders",
			change: `add to calls[gateway -> orders].scopes: {name: refunds, needs: ["orders:read"]}`, mended: true},
		{code: countersign.CodeScopeNotHeld, ask: to("orders", "orders:write"), policy: func(g *graph) { g.issuers[0].Scopes = []string{"orders:read"} },
			step: StepScope, near: "call gateway -> orders", change: "add to issuers[idp].scopes: shop.write", mended: true},
		{code: countersign.CodeScopeNotHeld, client: "orders", ask: relayed("inventory", "stock:write"),
			policy: func(g *graph) {
				g.call("gateway", "orders").Scopes = []countersign.Scope{needing("orders:read", "orders:read")}
			},
			step: StepScope, near: "call orders -> inventory", change: "whose scope also holds orders:write"},
		{code: countersign.CodeScopeNone, client: "orders", ask: relayed("billing"), policy: edge("orders", "billing", "unheld"),
			step: StepScope, near: "call orders -> billing", change: "whose scope also holds unheld"},
		{code: countersign.CodeMayAct, ask: user(map[string]any{"may_act": map[string]any{"sub": "x"}}), step: StepConditions, near: "call gateway -> orders",
			change: `may_act {"sub": "spiffe://shop.internal/gateway"}`},
		{code: countersign.CodeReentry, client: "orders", ask: relayed("gateway"), policy: edge("orders", "gateway", "orders:read"), step: StepConditions,
			near: "call orders -> gateway", change: "set calls[orders -> gateway].reenter: true", mended: true},
		{code: countersign.CodeHops, client: "orders", ask: relayed("inventory"), policy: func(g *graph) { g.maxHops = 1 }, step: StepConditions,
			near: "call orders -> inventory", change: "set max_hops: 2", mended: true},
		{code: countersign.CodeCondition, ask: to("orders"), policy: condition(answer{}), step: StepConditions, near: "call gateway -> orders",
			change: "remove calls[gateway -> orders].when (or change it: subject.tenant", mended: true},
		{code: countersign.CodeConditionError, ask: to("orders"), policy: condition(answer{errors.New("no such claim")}), step: StepConditions, near: "call gateway -> orders",
			change: "remove calls[gateway -> orders].when", mended: true},
		{code: countersign.CodeActor, ask: func(h *house) Request {
			r := to("orders")(h)
			r.ActorToken, r.ActorTokenType = "x", TypeJWT
			return r
		}, step: StepConditions, near: "call gateway -> orders", change: "leave out actor_token"},
		{code: countersign.CodeCarry, ask: user(map[string]any{"email": map[string]any{}}), step: StepConditions, near: "call gateway -> orders",
			change: "remove from issuers[idp].carry: email", mended: true},
		{code: countersign.CodeLifetime, ask: func(h *house) Request { return exchangeOf(h.user(map[string]any{"exp": h.now().Unix() + 2}), "orders") },
			step: StepLifetime, near: "call gateway -> orders", change: "exp at least 5s away"},
	}
}

// answer is a condition that does not hold, or can't be judged.
type answer struct{ err error }

func (a answer) Holds(countersign.ConditionInput) (bool, error) { return false, a.err }

// TestEveryDenialIsExplained walks all codes with which a token is refused: the audit record of each names the step that
// failed, the nearest rule and the smallest change; a change of the policy is made, and the same request sent again.
func TestEveryDenialIsExplained(t *testing.T) {
	h := openHouse(t)
	shown := map[countersign.Code]bool{}
	for _, d := range denials() {
		shown[d.code] = true
		t.Run(string(d.code)+" "+d.change, func(t *testing.T) { h.explains(t, d) })
	}
	for _, info := range countersign.Codes() {
		if strings.HasPrefix(string(info.Code), "CS30") && info.Code < "CS3047" && !shown[info.Code] {
			t.Errorf("no denial with %s (%s) is shown to be explained", info.Code, info.Title)
		}
		if step := advised(Step{Code: info.Code}); step.Change == nil || step.Change.String() == "" {
			t.Errorf("%s has no advice", info.Code)
		}
	}
}

func (h *house) explains(t *testing.T, d denial) {
	g := h.graph()
	if d.policy != nil {
		d.policy(g)
	}
	h.policy.Store(g.policy())
	if d.client == "" {
		d.client = "gateway"
	}
	request := d.ask(h)
	if _, err := h.Token(t.Context(), as(d.client), request); codeOf(err) != d.code {
		t.Fatalf("refused with %v", err)
	}
	denials := h.records("token.denied")
	var detail deniedDetail
	if err := json.Unmarshal(denials[len(denials)-1].Detail, &detail); err != nil {
		t.Fatal(err)
	}
	last := detail.Steps[len(detail.Steps)-1]
	if last.OK || last.Name != d.step || last.Code != d.code || last.Change == nil {
		t.Fatalf("the record ends with %+v", last)
	}
	if d.near == "" && last.Nearest != "" || !strings.Contains(last.Nearest, d.near) {
		t.Errorf("the nearest rule is %q", last.Nearest)
	}
	if !strings.Contains(last.Change.String(), d.change) {
		t.Errorf("the change is %q", last.Change)
	}
	if last.Change.In == InPolicy != d.mended && !strings.Contains(last.Change.Value, "NAME") && d.code != countersign.CodeClient {
		t.Errorf("a change of the policy that is not made: %s", last.Change)
	}
	if !d.mended {
		return
	}
	g.change(t, *last.Change)
	h.policy.Store(g.policy())
	if _, err := h.Token(t.Context(), as(d.client), request); err != nil {
		t.Errorf("with the change it is refused still: %v", err)
	}
}

// What is recorded of a request suffices to decide it again, with the same result; and by another policy, with another one.
func TestReplay(t *testing.T) {
	h := openHouse(t)
	for _, d := range denials() {
		g := h.graph()
		if d.policy != nil {
			d.policy(g)
		}
		h.policy.Store(g.policy())
		if d.client == "" {
			d.client = "gateway"
		}
		_, _ = h.Token(t.Context(), as(d.client), d.ask(h))
		h.replays(t, h.policy.Load())
	}
	actor := exchangeOf(h.user(map[string]any{"may_act": map[string]any{"sub": idOf("gateway").String()}}), "orders")
	h.policy.Store(h.graph().policy())
	h.must("gateway", actor)
	h.replays(t, h.policy.Load())

	records := h.records("token.issued")
	x, ok := ReadExchange(records[len(records)-1])
	if !ok || !x.Allowed || x.Lifetime != 5*time.Minute || x.SubjectIssuer != h.idp.URL {
		t.Fatalf("%+v", x)
	}
	for name, change := range map[string]func(*graph){
		"subject-token CS3014": func(g *graph) { g.issuers[0].Tokens = []string{"id"} },
		"call CS3021":          func(g *graph) { g.calls = g.calls[1:] },
		"client CS3001":        func(g *graph) { g.services = g.services[1:] },
		"subject-token CS3013": func(g *graph) { g.service("gateway").Accepts = nil },
		"subject-token CS3012": func(g *graph) { g.service("gateway").Accepts[0].Audiences = []string{"other"} },
		"scope CS3032": func(g *graph) {
			g.issuers[0].Scopes = nil
			g.call("gateway", "orders").Scopes = g.call("gateway", "orders").Scopes[:2]
		},
	} {
		g := h.graph()
		g.service("gateway").Accepts = slices.Clone(g.service("gateway").Accepts)
		change(g)
		_, trace := x.Decide(g.policy(), us)
		if last := trace.Steps[len(trace.Steps)-1]; last.Name+" "+string(last.Code) != name {
			t.Errorf("decided again: %+v, want %s", last, name)
		}
	}
}

// replays decides the newest record again, by the policy that decided it.
func (h *house) replays(t *testing.T, p *countersign.Policy) {
	t.Helper()
	records := h.records("token.")
	r := records[len(records)-1]
	x, ok := ReadExchange(r)
	if !ok {
		t.Fatalf("the record is not read: %s", r.Detail)
	}
	grant, trace := x.Decide(p, us)
	switch {
	case !x.Judged():
	case x.Allowed && (trace.Err() != nil || !slices.Equal(grant.Scopes, x.Granted)):
		t.Errorf("what was allowed is not: %v, %s", trace.Err(), r.Detail)
	case !x.Allowed && x.Code != countersign.CodeCarry && x.Code != countersign.CodeClientMismatch && (trace.Err() == nil || trace.Err().Code != x.Code):
		t.Errorf("denied with %s, and now %v: %s", x.Code, trace.Err(), r.Detail)
	}
}
