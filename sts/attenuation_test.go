package sts

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy/condition"
	"github.com/countersign/countersign/sts/jwt"
)

// hop is a token of a chain as its receiver sees it: the claims of a signed, parsed token.
type hop struct {
	holder string // the one service that it is addressed to
	token  *jwt.Token
	claims map[string]json.RawMessage
}

func (h hop) text(name string) string {
	var s string
	if raw, ok := h.claims[name]; ok && json.Unmarshal(raw, &s) != nil {
		panic(name + " is no string: " + string(raw))
	}
	return s
}

func (h hop) number(name string) float64 {
	var n float64
	if json.Unmarshal(h.claims[name], &n) != nil {
		panic(name + " is no number")
	}
	return n
}

// received signs what was granted, sends it and parses it.
func received(t *rapid.T, g Grant) hop {
	id, transaction := g.identify()
	signer, err := jwt.NewSigner(testKey, "ES256", "k1", g.Audience.Typ)
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	compact, err := signer.Sign(g.draft(us).payload(nil, g.Expires, g.IssuedAt, id, transaction))
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	return read(t, g.Audience.Name, compact)
}

func read(t *rapid.T, holder, compact string) hop {
	token, err := jwt.Parse(compact)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	h := hop{holder: holder, token: token}
	if err := json.Unmarshal(token.Payload, &h.claims); err != nil {
		t.Fatal(err)
	}
	return h
}

// drawnCondition is a condition with what it means, told without CEL.
type drawnCondition struct {
	when  string
	holds func(parent, child hop) bool
}

func drawnConditions() []drawnCondition {
	has := func(h hop, name, value string) bool {
		return string(h.claims[name]) == value
	}
	return []drawnCondition{
		{`has(subject.email)`, func(parent, _ hop) bool { return has(parent, "email", `"a@b"`) }},
		{`subject.tenant == 7`, func(parent, _ hop) bool { return has(parent, "tenant", "7") }},
		{`size(request.scopes) < 3`, func(_, child hop) bool { return len(strings.Fields(child.text("scope"))) < 3 }},
		{`request.audience != "s2" || caller.name == "s1"`, func(parent, child hop) bool { return child.holder != "s2" || parent.holder == "s1" }},
		{`!has(subject.act)`, func(parent, _ hop) bool { return parent.claims["act"] == nil }},
		{`false`, func(_, _ hop) bool { return false }},
		{`subject.nothing == 1`, func(_, _ hop) bool { return false }},
	}
}

func drawPolicy(t *rapid.T, compiler *condition.Compiler) *countersign.Policy {
	pool := []string{"a", "b", "c", "d"}
	subset := func(label string, least int) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(pool), least, len(pool), rapid.ID[string]).Draw(t, label)
	}
	g := &graph{issuers: []countersign.Issuer{{
		Name: "idp", URL: idpURL, Algorithms: []string{"ES256"}, Tokens: []string{"access"}, ScopeClaim: "scope", Scopes: subset("issuer", 1),
		Subject: rapid.SampledFrom([]countersign.SubjectMode{countersign.SubjectKeep, countersign.SubjectPrefix}).Draw(t, "mode"),
		Carry:   rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"email", "tenant", "groups"}), 0, 3, rapid.ID[string]).Draw(t, "carry"),
	}}}
	n := rapid.IntRange(3, 8).Draw(t, "services")
	for i := range n {
		s := newService(fmt.Sprintf("s%d", i))
		s.Typ = rapid.SampledFrom([]string{"at+jwt", "JWT"}).Draw(t, "typ")
		s.Bind = rapid.SampledFrom([]string{"", countersign.BindNone, countersign.BindMTLS}).Draw(t, "bind")
		g.services = append(g.services, s)
	}
	g.services[0].Accepts = []countersign.Accept{{Issuer: "idp", Audiences: []string{"web"}}}
	for i := range n {
		for j := range n {
			reenter := rapid.Bool().Draw(t, "reenter")
			if i == j && !reenter || j != i+1 && rapid.IntRange(0, 2).Draw(t, "edge") > 0 {
				continue
			}
			c := countersign.Call{From: g.services[i].Name, To: g.services[j].Name, Reenter: reenter,
				TTL: countersign.Duration(time.Duration(rapid.IntRange(10, 3600).Draw(t, "ttl")) * time.Second)}
			for _, name := range subset("scopes", 1) {
				c.Scopes = append(c.Scopes, needing(name, subset("needs", 1)...))
			}
			if rapid.Bool().Draw(t, "machine") {
				c.Machine = []string{c.Scopes[0].Name}
			}
			if rapid.IntRange(0, 4).Draw(t, "with a condition") == 0 {
				c.When = rapid.SampledFrom(drawnConditions()).Draw(t, "when").when
				compiled, problems := compiler.Compile(c.When)
				if compiled == nil {
					t.Fatal(problems)
				}
				if rapid.IntRange(0, 9).Draw(t, "compiled") > 0 {
					c.Condition = compiled
				}
			}
			g.calls = append(g.calls, c)
		}
	}
	p := g.policy()
	p.MaxHops = rapid.IntRange(1, 16).Draw(t, "max_hops")
	return p
}

// drawStart is the first token: a user's at the entry, or one of client_credentials.
func drawStart(t *rapid.T, p *countersign.Policy, now time.Time) (hop, bool) {
	if rapid.IntRange(0, 3).Draw(t, "start") == 0 {
		grant, trace := Decide(p, Input{Now: now, Issuer: us, Client: idOf("s0"), Machine: true, Audiences: []string{"s1"}})
		if trace.Err() != nil {
			return hop{}, false
		}
		return received(t, grant), true
	}
	claims := map[string]any{
		"iss": idpURL, "sub": "alice", "aud": []string{"web"}, "scope": "a b c d", "email": "a@b", "groups": []string{"x", "y"}, "tenant": 7, "acr": "1",
		"exp": float64(now.Unix()) + rapid.Float64Range(6, 7200).Draw(t, "exp"), "iat": now.Unix(), "jti": "theirs", "txn": "theirs", "phone": "1",
		"act": map[string]any{"sub": idOf("s1").String()}, "cnf": map[string]any{"jkt": "x"},
	}
	if rapid.Bool().Draw(t, "with sid") {
		claims["sid"] = "session"
	}
	compact, err := jwt.Sign(testKey, "ES256", "k1", "at+jwt", claims)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, "s0", compact), true
}

// exchangeAt exchanges what h's holder got along a drawn call, asking for drawn scopes.
func exchangeAt(t *rapid.T, p *countersign.Policy, h hop, now time.Time) (Grant, bool) {
	client, _ := p.Service(h.holder)
	var subject *Subject
	var err error
	if issuer, external := p.Issuer(h.text("iss")); external {
		subject, err = readExternal(p, issuer, client, h.token, accessToken, now)
	} else {
		subject, err = readOwn(p, us, client, h.token, now)
	}
	if err != nil {
		if codeOf(err) != countersign.CodeSubjectExpired {
			t.Fatalf("a token of the chain is refused: %v", err)
		}
		return Grant{}, false
	}
	calls := p.CallsFrom(h.holder)
	if len(calls) == 0 {
		return Grant{}, false
	}
	call := rapid.SampledFrom(calls).Draw(t, "call")
	in := Input{Now: now, Issuer: us, Client: client.ID, Subject: subject, Audiences: []string{call.To}}
	if rapid.IntRange(0, 2).Draw(t, "asks") == 0 {
		in.Scopes = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d"}), 1, 2, rapid.ID[string]).Draw(t, "asked")
	}
	grant, trace := Decide(p, in)
	if quiet, granted := grantOf(p, in); granted != (trace.Err() == nil) || !reflect.DeepEqual(quiet, grant) {
		t.Fatalf("without words %v, %+v; with them %+v", granted, quiet, grant)
	}
	if trace.Err() == nil && grant.Audience.Bind == countersign.BindMTLS {
		if step := grant.bind(certificateOf(h.holder)); !step.OK {
			t.Fatalf("%+v", step)
		}
	}
	return grant, trace.Err() == nil
}

// certificateOf is the SHA-256 of a holder's certificate.
func certificateOf(holder string) [32]byte { return sha256.Sum256([]byte(holder)) }

// holdsBinding: cnf is the client's own certificate or nothing, by the audience's wish, and never the parent's.
func holdsBinding(t *rapid.T, p *countersign.Policy, parent, child hop) {
	audience, _ := p.Service(child.holder)
	sum := certificateOf(parent.holder)
	want := `{"x5t#S256":"` + base64.RawURLEncoding.EncodeToString(sum[:]) + `"}`
	if audience.Bind != countersign.BindMTLS {
		want = ""
	}
	if got := string(child.claims["cnf"]); got != want {
		t.Fatalf("cnf is %s after %s, want %s", got, parent.claims["cnf"], want)
	}
}

// holdsAttenuation compares two tokens of a chain by their claims alone; it uses nothing that made them but the policy.
func holdsAttenuation(t *rapid.T, p *countersign.Policy, parent, child hop) {
	call, ok := p.Call(parent.holder, child.holder)
	if !ok {
		t.Fatalf("no call %s -> %s", parent.holder, child.holder)
	}
	client := idOf(parent.holder).String()
	first := parent.text("iss") != us
	held := strings.Fields(parent.text("scope"))
	if issuer, external := p.Issuer(parent.text("iss")); external {
		held = slices.DeleteFunc(held, func(s string) bool { return !slices.Contains(issuer.Scopes, s) })
	}
	for _, name := range strings.Fields(child.text("scope")) {
		scope, ok := call.Scope(name)
		if !ok || !slices.ContainsFunc(scope.Needs, func(n string) bool { return slices.Contains(held, n) }) {
			t.Fatalf("the scope %q does not follow from %v", name, held)
		}
		if !first && parent.text("sub_iss") == us && !slices.Contains(call.Machine, name) {
			t.Fatalf("the scope %q without a user", name)
		}
	}
	if child.text("scope") == "" || child.number("exp") > parent.number("exp") {
		t.Fatalf("scope %q, exp %v after %v", child.text("scope"), child.number("exp"), parent.number("exp"))
	}
	if child.text("aud") != child.holder || child.text("client_id") != client || child.text("iss") != us {
		t.Fatalf("aud, client_id or iss: %s", child.token.Payload)
	}
	var act struct {
		Sub string          `json:"sub"`
		Act json.RawMessage `json:"act"`
	}
	before := parent.claims["act"]
	if first {
		before = nil
	}
	if json.Unmarshal(child.claims["act"], &act) != nil || act.Sub != client || !bytes.Equal(act.Act, before) {
		t.Fatalf("act %s does not grow by %s from %s", child.claims["act"], client, before)
	}
	holdsConditions(t, p, call, parent, child)
	audience := idOf(child.holder).String()
	if call.Reenter {
		holdsIdentity(t, p, parent, child, first)
		return
	}
	if bytes.Contains(child.claims["act"], []byte(`"`+audience+`"`)) || child.text("sub") == audience {
		t.Fatalf("%s occurs twice: %s", child.holder, child.token.Payload)
	}
	holdsIdentity(t, p, parent, child, first)
	holdsBinding(t, p, parent, child)
}

// holdsConditions: the call's own condition holds, and the chain is as short as the policy says.
func holdsConditions(t *rapid.T, p *countersign.Policy, call *countersign.Call, parent, child hop) {
	if n := bytes.Count(child.claims["act"], []byte(`"act"`)) + 1; n > p.MaxHops {
		t.Fatalf("%d services with max_hops %d: %s", n, p.MaxHops, child.token.Payload)
	}
	if call.When == "" {
		return
	}
	i := slices.IndexFunc(drawnConditions(), func(d drawnCondition) bool { return d.when == call.When })
	if call.Condition == nil || !drawnConditions()[i].holds(parent, child) {
		t.Fatalf("%s does not hold for %s", call.When, parent.token.Payload)
	}
}

func holdsIdentity(t *rapid.T, p *countersign.Policy, parent, child hop, first bool) {
	if first {
		if child.text("txn") == "theirs" || len(child.text("txn")) != 22 || strings.Contains(child.text("jti"), ".") || child.text("sub_iss") != parent.text("iss") {
			t.Fatalf("the first token: %s", child.token.Payload)
		}
	} else {
		rest, ok := strings.CutPrefix(child.text("jti"), parent.text("jti")+".")
		if !ok || len(rest) != 11 || child.text("txn") != parent.text("txn") || child.text("sub") != parent.text("sub") || child.text("sub_iss") != parent.text("sub_iss") {
			t.Fatalf("jti, txn or sub changed: %s", child.token.Payload)
		}
	}
	if child.text("sid") != parent.text("sid") {
		t.Fatalf("sid %q after %q", child.text("sid"), parent.text("sid"))
	}
	issuer := p.Issuers[0]
	for name, raw := range child.claims {
		if slices.Contains(own(), name) {
			continue
		}
		if !bytes.Equal(raw, parent.claims[name]) || !slices.Contains(append(keptAlways(), issuer.Carry...), name) {
			t.Fatalf("the carried claim %s is %s after %s", name, raw, parent.claims[name])
		}
	}
}

// Attenuation (policy.md): along every chain, under every policy, nothing gets wider. Signed tokens, up to 6 hops.
func TestAttenuation(t *testing.T) {
	longest, again, conditioned := 0, 0, 0
	compiler, err := condition.New()
	if err != nil {
		t.Fatal(err)
	}
	property := func(t *rapid.T) {
		p := drawPolicy(t, compiler)
		now := noon
		h, ok := drawStart(t, p, now)
		for hops := 0; ok && hops < 6; hops++ {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "passed")) * time.Millisecond)
			grant, granted := exchangeAt(t, p, h, now)
			if !granted {
				break
			}
			child := received(t, grant)
			holdsAttenuation(t, p, h, child)
			if grant.Call.When != "" {
				conditioned++
			}
			if chain := grant.Act.Chain(); slices.Contains(chain[1:], chain[0]) {
				again++
			}
			h, longest = child, max(longest, hops+1)
		}
	}
	for round := 0; round == 0 || round < 20 && (longest < 3 || again == 0 || conditioned == 0); round++ {
		rapid.Check(t, property)
	}
	if longest < 3 || again == 0 || conditioned == 0 {
		t.Errorf("the longest chain drawn has %d hops, %d tokens have a service twice, %d a condition: this proves nothing", longest, again, conditioned)
	}
}
