package sts

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

// Two hops, by the front door: a user's token at the entry, as Spring sends it, then the relay token.
func TestExchange(t *testing.T) {
	h := openHouse(t)
	user := h.user(map[string]any{"email": "a@b", "act": map[string]any{"sub": "x"}})
	spring := Request{GrantType: GrantExchange, SubjectToken: user, SubjectTokenType: TypeJWT, RequestedTokenType: TypeAccessToken,
		ClientID: idOf("gateway").String(), Scopes: []string{"orders:read", "orders:write"}}
	first := h.must("gateway", spring)
	if first.ExpiresIn != 300 || first.Scope != "orders:read orders:write" || first.TokenType != "Bearer" || first.IssuedTokenType != TypeAccessToken {
		t.Errorf("%+v", first)
	}
	one := h.verified(first.AccessToken)
	if one["(alg)"] != "RS256" || one["(typ)"] != "JWT" || one["aud"] != "orders" || one["sub"] != "alice" || one["email"] != "a@b" || one["sub_iss"] != h.idp.URL {
		t.Errorf("%v", one)
	}
	second := h.must("orders", exchangeOf(first.AccessToken, "inventory"))
	two := h.verified(second.AccessToken)
	if two["(alg)"] != "ES256" || two["(typ)"] != "at+jwt" || two["txn"] != one["txn"] || !strings.HasPrefix(two["jti"].(string), one["jti"].(string)+".") {
		t.Errorf("%v", two)
	}
	issued := h.records("token.issued")
	if len(issued) != 2 || issued[1].Subject != "inventory" || issued[1].By.ID != idOf("orders").String() {
		t.Fatalf("%+v", issued)
	}
	var detail issuedDetail
	if err := json.Unmarshal(issued[1].Detail, &detail); err != nil || detail.Sub != "alice" || detail.JTI != two["jti"] || detail.Parent != one["jti"] ||
		detail.SHA256 != digest(first.AccessToken) || len(detail.Chain) != 2 || detail.Txn != two["txn"] {
		t.Errorf("%s, %v", issued[1].Detail, err)
	}
	if !strings.Contains(string(issued[0].Detail), `"dropped":{"act":{"sub":"x"}}`) {
		t.Errorf("the dropped act is not recorded: %s", issued[0].Detail)
	}
	for _, r := range issued {
		for _, secret := range []string{user, first.AccessToken, second.AccessToken} {
			if strings.Contains(string(r.Detail), secret[strings.LastIndexByte(secret, '.')+1:]) {
				t.Error("a token stands in a record")
			}
		}
	}
	if n := h.idp.fetches.Load(); n != 1 {
		t.Errorf("the issuer's keys were fetched %d times", n)
	}
}

func TestClientCredentials(t *testing.T) {
	h := openHouse(t)
	response := h.must("reports", Request{GrantType: GrantClientCredentials})
	claims := h.verified(response.AccessToken)
	me := idOf("reports").String()
	if claims["sub"] != me || claims["client_id"] != me || claims["sub_iss"] != us || claims["act"] != nil || claims["aud"] != "orders" || response.Scope != "orders:read" {
		t.Errorf("%v", claims)
	}
	h.refuses("passed on to a call for users", as("orders"), exchangeOf(response.AccessToken, "inventory"), countersign.CodeNoUser)
	h.refuses("not open", as("gateway"), Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}, countersign.CodeMachine)

	actor := exchangeOf(h.user(nil), "orders")
	actor.ActorToken, actor.ActorTokenType = response.AccessToken, TypeJWT
	h.refuses("an actor token of another service", as("gateway"), actor, countersign.CodeActor)
	actor.ActorToken = h.user(nil)
	h.refuses("an actor token of another issuer", as("gateway"), actor, countersign.CodeActor)
	actor.ActorToken = "x"
	h.refuses("an actor token that is none", as("gateway"), actor, countersign.CodeActor)
	g := h.graph()
	g.call("gateway", "billing").Machine = []string{"bill"}
	h.policy.Store(g.policy())
	actor.ActorToken = h.must("gateway", Request{GrantType: GrantClientCredentials}).AccessToken
	h.must("gateway", actor)
	for typ, code := range map[string]countersign.Code{"JWT": "", "revocations+jwt": countersign.CodeActor, "logout+jwt": countersign.CodeActor} {
		actor.ActorToken = h.signedAs(typ, actor.ActorToken)
		if code == "" {
			h.must("gateway", actor)
		} else {
			h.refuses("what is no token of ours but signed by us: "+typ, as("gateway"), actor, code)
		}
	}
	h.clock.Add(int64(6 * time.Minute))
	actor.SubjectToken = h.user(nil)
	h.refuses("an expired actor token", as("gateway"), actor, countersign.CodeActor)
}

func TestRefusals(t *testing.T) {
	h := openHouse(t)
	relay := h.must("gateway", exchangeOf(h.user(nil), "orders")).AccessToken
	operator := as("gateway")
	operator.ID, _ = countersign.NewOperatorID(domain, "gateway")
	socket := as("gateway")
	socket.Method = countersign.BySocket
	h.refuses("an operator", operator, exchangeOf(h.user(nil), "orders"), countersign.CodeClient)
	h.refuses("by socket", socket, exchangeOf(h.user(nil), "orders"), countersign.CodeClient)
	h.refuses("unknown", as("ghost"), exchangeOf(h.user(nil), "orders"), countersign.CodeClient)
	wrong := exchangeOf(h.user(nil), "orders")
	wrong.ClientID = "gateway"
	h.refuses("client_id is not the ID", as("gateway"), wrong, countersign.CodeClientMismatch)
	h.refuses("no grant", as("gateway"), Request{}, countersign.CodeTokenRequest)
	h.refuses("opaque", as("gateway"), exchangeOf("opaque", "orders"), countersign.CodeSubjectToken)
	h.refuses("dots", as("gateway"), exchangeOf(strings.Repeat(".", 1000), "orders"), countersign.CodeSubjectToken)
	h.refuses("stolen from the next hop", as("gateway"), exchangeOf(relay, "orders"), countersign.CodeSubjectKind)
	h.refuses("stolen by a bystander", as("inventory"), exchangeOf(relay, "orders"), countersign.CodeSubjectKind)
	h.refuses("at no entry point", as("orders"), exchangeOf(h.user(nil), "inventory"), countersign.CodeSubjectIssuer)
	h.refuses("unknown issuer", as("gateway"), exchangeOf(h.user(map[string]any{"iss": "https://evil.example"}), "orders"), countersign.CodeSubjectIssuer)
	h.refuses("no issuer", as("gateway"), exchangeOf(h.user(map[string]any{"iss": nil}), "orders"), countersign.CodeSubjectIssuer)
	h.refuses("iss is a number", as("gateway"), exchangeOf(h.user(map[string]any{"iss": 1}), "orders"), countersign.CodeSubjectToken)
	h.refuses("our iss, their key", as("gateway"), exchangeOf(h.user(map[string]any{"iss": us}), "orders"), countersign.CodeSubjectKey)
	h.refuses("a key not published", as("gateway"),
		exchangeOf(h.idp.token(t, "idp-2", with(userClaims(), map[string]any{"iss": h.idp.URL})), "orders"), countersign.CodeSubjectKey)
	user, other := h.user(nil), h.user(map[string]any{"sub": "bob"})
	h.refuses("another signature", as("gateway"), exchangeOf(user[:strings.LastIndexByte(user, '.')]+other[strings.LastIndexByte(other, '.'):], "orders"),
		countersign.CodeSubjectToken)
	h.refuses("foreign aud", as("gateway"), exchangeOf(h.user(map[string]any{"aud": "x"}), "orders"), countersign.CodeSubjectAudience)
	h.refuses("an issuer that is down", as("gateway"),
		exchangeOf(h.user(map[string]any{"iss": downURL, "aud": "hr-portal"}), "orders"), countersign.CodeIssuerDown)

	denials := h.records("token.denied")
	if len(denials) != 18 {
		t.Errorf("%d denials are recorded", len(denials))
	}
	last := denials[len(denials)-1]
	if last.Outcome != audit.Failed || last.Code != countersign.CodeIssuerDown || last.Subject != "orders" {
		t.Errorf("%+v", last)
	}
	var detail deniedDetail
	if err := json.Unmarshal(denials[len(denials)-2].Detail, &detail); err != nil || len(detail.Steps) != 2 || detail.Steps[1].Name != StepSubject || detail.Steps[1].OK {
		t.Errorf("%s, %v", denials[len(denials)-2].Detail, err)
	}
	h.clock.Add(int64(2 * time.Hour))
	h.refuses("over", as("orders"), exchangeOf(relay, "inventory"), countersign.CodeSubjectExpired)
}

// What is disabled gets nothing, at once, and nothing is made for it.
func TestDisabled(t *testing.T) {
	h := openHouse(t)
	relay := h.must("gateway", exchangeOf(h.user(nil), "orders")).AccessToken
	g := h.graph()
	g.service("orders").Disabled = &countersign.Disabled{Reason: "leak"}
	h.policy.Store(g.policy())
	h.refuses("a disabled client", as("orders"), exchangeOf(relay, "inventory"), countersign.CodeServiceDisabled)
	h.refuses("a disabled audience", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeNoCall)
}

// The wait for an issuer's keys may take seconds: what is disabled meanwhile gets nothing, and a lifetime counts from its end.
func TestChangesDuringExchange(t *testing.T) {
	h := openHouse(t)
	old, g := h.policy.Load(), h.graph()
	g.service("gateway").Disabled = &countersign.Disabled{Reason: "leak"}
	reads := 0
	h.cfg.Policy = func() *countersign.Policy {
		if reads++; reads == 1 {
			return old
		}
		return g.policy()
	}
	h.refuses("a client disabled meanwhile", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeServiceDisabled)
	h.cfg.Policy = func() *countersign.Policy { return h.graph().policy() }
	h.refuses("a policy that never rests", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeBusy)

	h.cfg.Policy = h.policy.Load
	user := h.user(map[string]any{"exp": h.now().Unix() + 8})
	h.cfg.Now = func() time.Time { defer h.clock.Add(int64(4 * time.Second)); return h.now() }
	h.refuses("a subject token that is nearly over meanwhile", as("gateway"), exchangeOf(user, "orders"), countersign.CodeLifetime)
}

// A carried value is the same at every hop, to the byte: else it would grow until it fits no more.
func TestCarryKeepsSize(t *testing.T) {
	h := openHouse(t)
	tenant := strings.Repeat("<&>", 300)
	relay := h.must("gateway", exchangeOf(h.user(map[string]any{"tenant": tenant}), "orders")).AccessToken
	next := h.must("orders", exchangeOf(relay, "inventory")).AccessToken
	if got := h.verified(next)["tenant"]; got != tenant {
		t.Errorf("tenant is %v", got)
	}
}

// Nothing leaves without a record, neither a token nor a denial.
func TestAuditFails(t *testing.T) {
	h := openHouse(t)
	good, bad := exchangeOf(h.user(nil), "orders"), exchangeOf(h.user(nil), "inventory")
	h.must("gateway", good)
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	for _, r := range []Request{good, bad} {
		response, err := h.Token(context.Background(), as("gateway"), r)
		if e := countersign.AsError(err); err == nil || e.Kind != countersign.Unavailable || response != (Response{}) {
			t.Errorf("without an audit log: %+v, %v", response, err)
		}
	}
	families, err := h.registry.Gather()
	if err != nil || len(families) != 5 { // of answers, of issuers, of revocations
		t.Fatalf("%v, %v", families, err)
	}
}

// A client that hangs up is denied on the record all the same.
func TestDenialSurvivesCancel(t *testing.T) {
	h := openHouse(t)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := h.Token(ctx, as("gateway"), exchangeOf(h.user(nil), "inventory"))
	if codeOf(err) != countersign.CodeNoCall || len(h.records("token.denied")) != 1 {
		t.Errorf("%v, %d records", err, len(h.records("token.denied")))
	}
}

func TestExplain(t *testing.T) {
	h := openHouse(t)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	before := h.log.Head().Seq
	for _, c := range []struct {
		name    string
		request ExplainRequest
		want    string // "audience: scopes", or the step and code that fail
	}{
		{"what is needed", ExplainRequest{From: "gateway", To: "orders"}, "orders: orders:read orders:write orders:hello"},
		{"by ID, to a resource", ExplainRequest{From: idOf("gateway").String(), To: "https://billing.shop.internal/x"}, "billing: bill"},
		{"found by scope", ExplainRequest{From: "gateway", Scopes: []string{"bill"}}, "billing: bill"},
		{"given scopes", ExplainRequest{From: "orders", To: "inventory", SubjectScopes: []string{"orders:read"}}, "inventory: stock:read"},
		{"not held", ExplainRequest{From: "orders", To: "inventory", Scopes: []string{"stock:write"}, SubjectScopes: []string{"orders:read"}}, "scope CS3031"},
		{"no call", ExplainRequest{From: "orders", To: "billing"}, "call CS3021"},
		{"no such target", ExplainRequest{From: "orders", To: "nowhere"}, "call CS3020"},
		{"no such client", ExplainRequest{From: "ghost", To: "orders"}, "client CS3001"},
		{"no name", ExplainRequest{From: "Not A Name", To: "orders"}, "client CS3001"},
		{"a token", ExplainRequest{From: "gateway", To: "orders", Token: h.user(nil)}, "orders: orders:read orders:write orders:hello"},
		{"a token for another", ExplainRequest{From: "orders", To: "inventory", Token: h.user(nil)}, "subject-token CS3013"},
	} {
		e, err := h.Explain(t.Context(), c.request)
		if err != nil || len(e.Steps) == 0 || e.Version != 7 {
			t.Fatalf("%s: %+v, %v", c.name, e, err)
		}
		last := e.Steps[len(e.Steps)-1]
		got := last.Name + " " + string(last.Code)
		if e.Allowed {
			got = e.Audience + ": " + e.Scope
		}
		if got != c.want || e.Allowed != last.OK || e.Allowed && e.TTL <= 0 {
			t.Errorf("%s: %s, want %s (%+v)", c.name, got, c.want, last)
		}
		if c.request.Token == "" && len(e.Steps) > 1 && !strings.Contains(e.Steps[1].Msg, "supposed, not verified") {
			t.Errorf("%s: it does not say what was supposed: %+v", c.name, e.Steps[1])
		}
	}
	if _, err := h.Explain(t.Context(), ExplainRequest{From: "gateway", To: "orders", Token: h.user(map[string]any{"iss": downURL})}); codeOf(err) != countersign.CodeIssuerDown {
		t.Errorf("an issuer that is down: %v", err)
	}
	if issued := h.records("token.issued"); len(issued) != 1 || h.log.Head().Seq < before {
		t.Error("explaining minted something")
	}
}

// Keys are kept by what they are fetched with: a changed CA or URL starts anew, and what left the policy is forgotten.
func TestIssuersFollowPolicy(t *testing.T) {
	h := openHouse(t)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	g := h.graph()
	g.issuers[0].CAPEM = ""
	h.policy.Store(g.policy())
	h.refuses("a CA that is not trusted", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeIssuerDown)
	g = h.graph()
	g.issuers[0].CAPEM = "no PEM"
	h.policy.Store(g.policy())
	h.refuses("a CA that is none", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeIssuerDown)
	h.policy.Store(h.graph().policy())
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	if n := h.idp.fetches.Load(); n != 2 {
		t.Errorf("the keys were fetched %d times; they should be forgotten with the source", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Error(err)
	}
}
