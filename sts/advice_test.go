package sts

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy/condition"
)

// fatal is what *testing.T and *rapid.T share here.
type fatal interface {
	Helper()
	Fatalf(format string, args ...any)
}

// applied makes the change that a denial suggests, from nothing but the data that it is published as. False: it is one that
// this pure test can't make.
func applied(t fatal, g *graph, in *Input, c Change) bool {
	t.Helper()
	switch c.In {
	case InPolicy:
		g.change(t, c)
		return !strings.Contains(c.Value, "NAME") && !strings.Contains(c.Value, "SERVICE")
	case InCommand:
		name, enable := strings.CutPrefix(c.Value, "countersign service enable ")
		if enable {
			g.service(name).Disabled = nil
		}
		return enable
	case InToken:
		return changeToken(in.Subject, c)
	case InRequest:
		return changeRequest(in, c)
	}
	t.Fatalf("a change in %q", c.In)
	return false
}

func changeRequest(in *Input, c Change) bool {
	switch {
	case c.Op == OpRemove && c.Path == "actor_token":
		in.ActorSent = false
	case c.Path == "audience":
		in.Audiences, in.Resources = []string{c.Value}, nil
		return !strings.Contains(c.Value, " ")
	case c.Path == "scope":
		in.Scopes = strings.Fields(c.Value)
	default:
		return false
	}
	return true
}

func changeToken(s *Subject, c Change) bool {
	switch c.Path {
	case "scope":
		s.Scopes = append(slices.Clone(s.Scopes), c.Value)
	case "may_act":
		s.MayAct = json.RawMessage(c.Value)
	case "exp":
		s.Expires = s.Expires.Add(time.Hour)
	default:
		delete(s.Carry, c.Path)
	}
	return true
}

// part is an item of `services`, `calls`, `scopes` or `accepts` as a document has it.
type part struct {
	Name, From, To, Issuer string
	Scopes                 []yaml.Node
	Machine, Audiences     []string
	Needs                  yaml.Node
}

func parse[T any](t fatal, value string) T {
	t.Helper()
	var v T
	if err := yaml.Unmarshal([]byte(value), &v); err != nil {
		t.Fatalf("%q is not YAML: %v", value, err)
	}
	return v
}

func scopesOf(t fatal, items []yaml.Node) []countersign.Scope {
	t.Helper()
	var scopes []countersign.Scope
	for _, n := range items {
		scopes = append(scopes, scopeOf(t, n))
	}
	return scopes
}

func scopeOf(t fatal, n yaml.Node) countersign.Scope {
	t.Helper()
	if n.Kind == yaml.ScalarNode {
		return needing(n.Value, n.Value)
	}
	var p part
	if err := n.Decode(&p); err != nil {
		t.Fatalf("%v", err)
	}
	s := countersign.Scope{Name: p.Name, AnyUser: p.Needs.Value == "any-user"}
	if !s.AnyUser {
		if err := p.Needs.Decode(&s.Needs); err != nil || len(s.Needs) == 0 {
			t.Fatalf("needs: %v", err)
		}
	}
	return s
}

// change edits the policy as the document's author would.
func (g *graph) change(t fatal, c Change) {
	t.Helper()
	key, rest, _ := strings.Cut(c.Path, "[")
	name, field, _ := strings.Cut(rest, "]") // the first: no name holds one
	switch key {
	case "services":
		if rest == "" {
			g.services = append(g.services, newService(parse[part](t, c.Value).Name))
			return
		}
		changeAccepts(t, g.service(name), strings.TrimPrefix(field, ".accepts"), c)
	case "calls":
		if rest != "" {
			from, to, _ := strings.Cut(name, " -> ")
			changeCall(t, g.call(from, to), strings.TrimPrefix(field, "."), c)
			return
		}
		p := parse[part](t, c.Value)
		g.calls = append(g.calls, countersign.Call{From: p.From, To: p.To, TTL: fiveMinutes(), Scopes: scopesOf(t, p.Scopes), Machine: p.Machine})
	case "issuers":
		for i := range g.issuers {
			if issuer := &g.issuers[i]; issuer.Name == name {
				value := parse[string](t, c.Value)
				switch field {
				case ".tokens":
					issuer.Tokens = append(slices.Clone(issuer.Tokens), value)
				case ".subject":
					issuer.Subject = countersign.SubjectMode(value)
				case ".scopes":
					issuer.Scopes = append(slices.Clone(issuer.Scopes), value)
				case ".carry":
					issuer.Carry = slices.DeleteFunc(slices.Clone(issuer.Carry), func(s string) bool { return s == value })
				}
			}
		}
	case "max_hops":
		g.maxHops = parse[int](t, c.Value)
	default:
		t.Fatalf("a change at %q", c.Path)
	}
}

// changeAccepts adds an issuer, or an audience to the one that field names.
func changeAccepts(t fatal, s *countersign.Service, field string, c Change) {
	t.Helper()
	s.Accepts = slices.Clone(s.Accepts)
	if field == "" {
		p := parse[part](t, c.Value)
		s.Accepts = append(s.Accepts, countersign.Accept{Issuer: p.Issuer, Audiences: p.Audiences})
		return
	}
	issuer, _, _ := strings.Cut(strings.TrimPrefix(field, "["), "]")
	for i := range s.Accepts {
		if a := &s.Accepts[i]; a.Issuer == issuer {
			a.Audiences = append(slices.Clone(a.Audiences), parse[string](t, c.Value))
		}
	}
}

func changeCall(t fatal, call *countersign.Call, field string, c Change) {
	t.Helper()
	scope, deeper := strings.CutPrefix(field, "scopes[")
	switch {
	case field == "scopes":
		call.Scopes = append(slices.Clone(call.Scopes), scopeOf(t, *parse[yaml.Node](t, c.Value).Content[0]))
	case field == "machine":
		call.Machine = append(slices.Clone(call.Machine), parse[string](t, c.Value))
	case field == "reenter":
		call.Reenter = parse[bool](t, c.Value)
	case field == "when" && c.Op == OpRemove:
		call.When, call.Condition = "", nil
	case deeper:
		name, _, _ := strings.Cut(scope, "]")
		call.Scopes = slices.Clone(call.Scopes)
		for i := range call.Scopes {
			if call.Scopes[i].Name == name {
				call.Scopes[i] = countersign.Scope{Name: name, Needs: parse[[]string](t, c.Value)}
			}
		}
	default:
		t.Fatalf("a change at %q", c.Path)
	}
}

func stepNumber(name string) int {
	return slices.Index([]string{StepClient, StepSubject, StepCall, StepScope, StepConditions, StepLifetime}, name)
}

// follow makes every change that the denials suggest, one after the other, until the exchange is allowed. Each must get it at
// least as far as before, and none is suggested twice.
func follow(t fatal, g *graph, in Input) {
	t.Helper()
	if in.Subject != nil {
		subject := *in.Subject
		subject.Carry = map[string]json.RawMessage{}
		for name, raw := range in.Subject.Carry {
			subject.Carry[name] = raw
		}
		in.Subject = &subject
	}
	reached, seen := -1, map[string]bool{}
	for round := 0; ; round++ {
		p := g.policy()
		if in.Subject != nil && in.Subject.External != nil {
			refresh(p, in.Subject)
		}
		_, trace := Decide(p, in)
		last := trace.Steps[len(trace.Steps)-1]
		if last.OK {
			return
		}
		n := stepNumber(last.Name)
		if last.Change == nil || last.Change.String() == "" {
			t.Fatalf("no change is suggested: %+v", last)
		}
		key := fmt.Sprintf("%s %s %s", last.Name, last.Code, last.Change)
		if n < reached || seen[key] || round > 30 {
			t.Fatalf("the change got it no farther: round %d, %s; seen %v", round, key, seen)
		}
		reached, seen[key] = n, true
		if last.Nearest == "" && len(p.Calls) > 0 && n > stepNumber(StepCall) {
			t.Fatalf("no rule is named: %+v", last)
		}
		if !applied(t, g, &in, *last.Change) {
			if in.Machine == (in.Subject != nil) || in.Client.IsZero() || in.Client.Kind() != countersign.ServiceID || in.Client.TrustDomain() != domain ||
				len(p.CallsFrom(in.Client.Name())) == 0 {
				return // nothing that a policy or a token could mend
			}
			t.Fatalf("a change that can't be made: %s", key)
		}
	}
}

// refresh reads the token anew under a policy that changed: its issuer may assert other scopes now.
func refresh(p *countersign.Policy, s *Subject) {
	issuer, ok := p.Issuer(s.External.URL)
	if !ok {
		return
	}
	asserted := slices.Concat(s.Scopes, s.Cut)
	s.External, s.Scopes, s.Cut = issuer, intersect(asserted, slices.Concat(issuer.Scopes, s.Scopes)), without(asserted, slices.Concat(issuer.Scopes, s.Scopes))
	for name := range s.Carry {
		if !slices.Contains(issuer.Carry, name) {
			delete(s.Carry, name)
		}
	}
}

func drawRequest(t *rapid.T, p *countersign.Policy) Input {
	words := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "aa"})
	name := rapid.SampledFrom([]string{"s0", "s1", "s2", "s3", "s4", "s9", "t1", "nobody"})
	in := Input{Now: noon, Issuer: us, Client: idOf(name.Draw(t, "client"))}
	in.Scopes = rapid.SliceOfNDistinct(words, 0, 3, rapid.ID[string]).Draw(t, "asked")
	for range rapid.IntRange(0, 2).Draw(t, "targets") {
		in.Audiences = append(in.Audiences, name.Draw(t, "audience"))
	}
	held := rapid.SliceOfNDistinct(words, 0, 3, rapid.ID[string]).Draw(t, "held")
	chain := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"s2", "s3", "x1", "x2"}), 0, 2, rapid.ID[string]).Draw(t, "chain")
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		in.Machine = true
	case 1:
		in.Subject = machine("x9", held...)
	case 2:
		in.Subject = relayed(held, chain...)
	default:
		in.Subject = fromUser(p, intersect(held, p.Issuers[0].Scopes)...)
		in.Subject.Cut = without(held, p.Issuers[0].Scopes)
	}
	if in.Subject != nil {
		in.Subject.Expires = noon.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "left")) * time.Second)
		if rapid.IntRange(0, 4).Draw(t, "may act") == 0 {
			in.Subject.MayAct = json.RawMessage(`{"sub":"someone"}`)
		}
		if rapid.IntRange(0, 4).Draw(t, "carries") == 0 {
			in.Subject.Carry = map[string]json.RawMessage{"email": json.RawMessage(`{}`)}
		}
	}
	in.ActorSent = rapid.IntRange(0, 4).Draw(t, "actor") == 0
	return in
}

// TestAdviceLeadsToAGrant draws policies and requests, and follows the advice of each denial to its end.
func TestAdviceLeadsToAGrant(t *testing.T) {
	compiler, err := condition.New()
	if err != nil {
		t.Fatal(err)
	}
	codes := map[countersign.Code]int{}
	property := func(t *rapid.T) {
		p := drawPolicy(t, compiler)
		g := &graph{issuers: slices.Clone(p.Issuers), services: slices.Clone(p.Services), calls: slices.Clone(p.Calls), maxHops: p.MaxHops}
		for i := range g.services {
			if rapid.IntRange(0, 9).Draw(t, "disabled") == 0 {
				g.services[i].Disabled = &countersign.Disabled{}
			}
		}
		for i := range g.calls {
			if rapid.IntRange(0, 4).Draw(t, "mTLS only") == 0 {
				g.calls[i].Scopes, g.calls[i].Machine = nil, nil
			}
		}
		in := drawRequest(t, p)
		_, trace := Decide(g.policy(), in)
		if denial := trace.Err(); denial != nil {
			codes[denial.Code]++
		}
		follow(t, g, in)
	}
	// A hundred draws meet eight kinds of denial nearly always; the rest draw again.
	for round := 0; round == 0 || round < 5 && len(codes) < 8; round++ {
		rapid.Check(t, property)
	}
	if len(codes) < 8 {
		t.Errorf("only these denials were drawn, which proves little: %v", codes)
	}
}
