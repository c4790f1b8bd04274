package sts

import (
	"slices"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
)

// maxGuesses bounds the names that one denial is compared with: who is refused often must not cost more than who is not.
const maxGuesses = 256

// advise adds to a step that failed the rule that comes nearest to allowing it, and the smallest change that would.
func (d *decision) advise(s Step) Step {
	switch s.Name {
	case StepClient:
		s.Nearest, s.Change = adviseClient(d.p, d.in.Client, s.Code)
	case StepCall:
		s.Nearest, s.Change = d.adviseCall(s.Code, s.Rule)
	case StepScope:
		s.Nearest, s.Change = ruleText(d.grant.Call), d.adviseScope(s.Code)
	case StepConditions:
		s.Nearest, s.Change = ruleText(d.grant.Call), d.adviseConditions(s.Code)
	case StepLifetime:
		s.Nearest, s.Change = ruleText(d.grant.Call), inToken(OpSet, "exp", "at least "+minLeft.String()+" away")
	}
	return advised(s)
}

// advised sees to it that no denial is without advice, whoever wrote it: the table of codes has a line for each.
func advised(s Step) Step {
	if !s.OK && s.Change == nil {
		s.Change = command("%s", s.Code.Info().Next)
	}
	if s.Nearest == "" {
		s.Nearest = s.Rule
	}
	return s
}

func adviseClient(p *countersign.Policy, id countersign.ID, code countersign.Code) (string, *Change) {
	switch {
	case p.Version == 0:
		return "", command("countersign policy apply FILE")
	case code == countersign.CodeServiceDisabled:
		return "service " + id.Name(), command("countersign service enable %s", id.Name())
	case code == countersign.CodeClientMismatch:
		return "service " + id.Name(), leaveOut("client_id")
	case code != countersign.CodeClient:
		return "", nil
	case id.Kind() != countersign.ServiceID || id.TrustDomain() != p.TrustDomain:
		return "", command("use the certificate of a service of %s", p.TrustDomain)
	}
	nearest := ""
	if near := countersign.Nearest(id.Name(), serviceNames(p)); near != "" {
		nearest = "service " + near
	}
	return nearest, inPolicy(OpAdd, "services", "{name: "+word(id.Name())+"}")
}

func serviceNames(p *countersign.Policy) []string {
	names := make([]string, 0, min(len(p.Services), maxGuesses))
	for i := range p.Services[:min(len(p.Services), maxGuesses)] {
		names = append(names, p.Services[i].Name)
	}
	return names
}

// adviseCall is for step 3, which may have failed before the one call was known.
func (d *decision) adviseCall(code countersign.Code, rule string) (string, *Change) {
	from := d.grant.Client.Name
	if len(d.in.Audiences)+len(d.in.Resources) == 0 {
		return d.adviseInferred(code, rule)
	}
	to, step := targetOf(d.p, d.in.Audiences, d.in.Resources)
	if !step.OK {
		return d.adviseTarget()
	}
	call, ok := d.p.Call(from, to.Name)
	if !ok {
		return ruleText(d.nearestCall(to.Name)), inPolicy(OpAdd, "calls", "{from: "+word(from)+", to: "+word(to.Name)+d.newScopes(to.Name)+"}")
	}
	return ruleText(call), d.adviseChosen(call, code)
}

// adviseChosen is for a call that exists and is closed.
func (d *decision) adviseChosen(call *countersign.Call, code countersign.Code) *Change {
	to, ok := d.p.Service(call.To)
	switch {
	case !ok:
		return inPolicy(OpAdd, "services", "{name: "+word(call.To)+"}")
	case to.Disabled != nil:
		return command("countersign service enable %s", to.Name)
	case len(call.Scopes) == 0:
		names, needs := d.wanted(call.To)
		change := inPolicy(OpAdd, callPath(call)+".scopes", scopeItem(names[0], needs[0]))
		if d.userless() {
			change = change.note("and %s to its `machine`", word(names[0]))
		}
		return change
	case code == countersign.CodeMachine, code == countersign.CodeNoUser:
		return d.adviseMachine(call)
	}
	return nil
}

// adviseMachine is for a call that is not open without a user for what was asked: a scope for `machine`, or first for the
// call.
func (d *decision) adviseMachine(call *countersign.Call) *Change {
	for _, name := range slices.Concat(d.in.Scopes, namesOf(call)) {
		if slices.Contains(call.Machine, name) {
			continue
		}
		if _, on := call.Scope(name); !on {
			return inPolicy(OpAdd, callPath(call)+".scopes", scopeItem(name, d.heldFor(name))).note("and %s to its `machine`", word(name))
		}
		return inPolicy(OpAdd, callPath(call)+".machine", word(name))
	}
	return nil
}

// adviseTarget is for targets that name no service, or several.
func (d *decision) adviseTarget() (string, *Change) {
	callees := callees(d.p.CallsFrom(d.grant.Client.Name))
	for _, a := range d.in.Audiences {
		if s := byNameOrID(d.p, a); s != nil {
			return "service " + s.Name, inRequest("audience", s.Name).note("and no other audience or resource")
		}
	}
	for _, r := range d.in.Resources {
		if s := byResource(d.p, r); s != nil {
			return "service " + s.Name, inRequest("audience", s.Name).note("and no other audience or resource")
		}
	}
	for _, asked := range slices.Concat(d.in.Audiences, d.in.Resources) {
		asked = strings.TrimPrefix(strings.TrimPrefix(asked, "https://"), "spiffe://"+d.p.TrustDomain+"/")
		asked, _, _ = strings.Cut(strings.ToLower(asked), ".")
		near := countersign.Nearest(asked, append(slices.Clip(callees), serviceNames(d.p)...))
		if _, there := d.p.Service(near); there {
			return "service " + near, inRequest("audience", near)
		}
	}
	if a := d.in.Audiences; len(a) > 0 && countersign.CheckName(a[0]) == nil {
		return "", inPolicy(OpAdd, "services", "{name: "+word(a[0])+"}")
	}
	if len(callees) > 0 {
		return ruleText(d.p.CallsFrom(d.grant.Client.Name)[0]), inRequest("audience", callees[0])
	}
	return "", inRequest("audience", "the name of a service")
}

// adviseInferred is for requests without a target.
func (d *decision) adviseInferred(code countersign.Code, rule string) (string, *Change) {
	calls := d.p.CallsFrom(d.grant.Client.Name)
	if len(calls) == 0 {
		return "", inPolicy(OpAdd, "calls", "{from: "+word(d.grant.Client.Name)+", to: SERVICE, scopes: [SCOPE]}").
			note("%s calls nobody yet", d.grant.Client.Name)
	}
	best, most := calls[0], -1
	for _, c := range calls {
		if ruleOf(c) == rule {
			return ruleText(c), d.adviseChosen(c, code)
		}
		fits := 0
		for _, name := range d.in.Scopes {
			if _, on := c.Scope(name); on {
				fits += 2
			}
		}
		if len(c.Scopes) > 0 && fits > most {
			best, most = c, fits
		}
	}
	return ruleText(best), inRequest("audience", best.To)
}

// nearestCall is the call that comes nearest to one from the client to the service: one to it with the scopes that were
// asked for, one of the client's with them, any to it, any of the client's.
func (d *decision) nearestCall(to string) *countersign.Call {
	var best *countersign.Call
	most := -1
	rate := func(c *countersign.Call) {
		points := 0
		for _, name := range d.in.Scopes {
			if _, on := c.Scope(name); on {
				points += 2
			}
		}
		if c.To == to {
			points++
		}
		if points > most {
			best, most = c, points
		}
	}
	for _, c := range d.p.CallsFrom(d.grant.Client.Name) {
		rate(c)
	}
	for i := range d.p.Calls {
		if c := &d.p.Calls[i]; c.To == to {
			rate(c)
		}
	}
	return best
}

// newScopes are the `scopes`, and `machine`, that a call to the service would need for what was asked.
func (d *decision) newScopes(to string) string {
	names, needs := d.wanted(to)
	items := make([]string, 0, len(names))
	for i, name := range names {
		items = append(items, scopeItem(name, needs[i]))
	}
	text := ", scopes: [" + strings.Join(items, ", ") + "]"
	if d.userless() {
		text += ", machine: " + flow(names)
	}
	return text
}

// wanted are the scopes that were asked for and for each what it may need so that the subject token holds it. None asked:
// one that another call to the service has.
func (d *decision) wanted(to string) (names []string, needs [][]string) {
	names = slices.Compact(slices.Clone(d.in.Scopes))
	if len(names) == 0 {
		names = []string{to + ":access"}
		if c := d.nearestCall(to); c != nil && c.To == to && len(c.Scopes) > 0 {
			names[0] = c.Scopes[0].Name
		} else if held := d.held(); len(held) > 0 {
			names[0] = held[0]
		}
	}
	for _, name := range names {
		needs = append(needs, d.heldFor(name))
	}
	return names, needs
}

// heldFor is what a scope may need so that the subject token holds it; nil is any user.
func (d *decision) heldFor(name string) []string {
	held := d.held()
	switch {
	case len(held) == 0 && !d.in.Machine && d.in.Subject.External != nil:
		return nil
	case len(held) == 0 || slices.Contains(held, name):
		return []string{name}
	}
	return held[:1]
}

// adviseScope is for step 4.
func (d *decision) adviseScope(code countersign.Code) *Change {
	call := d.grant.Call
	if code == countersign.CodeScopeNone {
		for i := range call.Scopes {
			if open := !d.userless() || slices.Contains(call.Machine, call.Scopes[i].Name); open && len(call.Scopes[i].Needs) > 0 {
				return d.adviseNeeds(&call.Scopes[i])
			}
		}
		return d.adviseNeeds(&call.Scopes[0])
	}
	for _, name := range d.in.Scopes {
		scope, on := call.Scope(name)
		switch {
		case !on:
			if near := countersign.Nearest(name, namesOf(call)); near != "" {
				return inRequest("scope", strings.Join(replaced(d.in.Scopes, name, near), " "))
			}
			return inPolicy(OpAdd, callPath(call)+".scopes", scopeItem(name, d.heldFor(name)))
		case d.in.Machine && !slices.Contains(call.Machine, name):
			return inPolicy(OpAdd, callPath(call)+".machine", word(name))
		case !d.allows(scope):
			return d.adviseNeeds(scope)
		}
	}
	return nil
}

func replaced(words []string, old, new string) []string {
	out := slices.Clone(words)
	for i := range out {
		if out[i] == old {
			out[i] = new
		}
	}
	return out
}

// adviseNeeds is for a scope whose needs the subject token does not hold: the issuer may not assert one that stands in the
// token, or the token has to be another. What the scope needs is not loosened: it was written so.
func (d *decision) adviseNeeds(scope *countersign.Scope) *Change {
	s, call := d.in.Subject, d.grant.Call
	if len(scope.Needs) == 0 { // any-user, and a relay token
		held := d.heldFor(scope.Name)
		return inPolicy(OpSet, callPath(call)+".scopes["+scope.Name+"].needs", flow(held)).note("any-user is for tokens of external issuers")
	}
	if s.External == nil {
		change := inToken(OpAdd, "scope", scope.Needs[0])
		if chain := s.Act.Chain(); len(chain) > 0 {
			change = change.note("%s has to ask for it", chain[0])
		}
		return change
	}
	for _, need := range scope.Needs {
		if slices.Contains(s.Cut, need) {
			return inPolicy(OpAdd, "issuers["+s.External.Name+"].scopes", word(need)).note("the token asserts it; the policy does not let the issuer")
		}
	}
	for _, need := range scope.Needs {
		if slices.Contains(s.External.Scopes, need) {
			return inToken(OpAdd, "scope", need)
		}
	}
	return inToken(OpAdd, "scope", scope.Needs[0]).note("and to the `scopes` of the issuer %s in the policy", s.External.Name)
}

// adviseConditions is for step 5.
func (d *decision) adviseConditions(code countersign.Code) *Change {
	call := d.grant.Call
	switch code {
	case countersign.CodeMayAct:
		return inToken(OpSet, "may_act", `{"sub": "`+d.in.Client.String()+`"}`)
	case countersign.CodeHops:
		if hops := len(d.in.Subject.Act.Chain()) + 1; hops <= deepest {
			return inPolicy(OpSet, "max_hops", strconv.Itoa(hops))
		}
		return command("let an earlier service of the chain call %s", call.To)
	case countersign.CodeReentry:
		return inPolicy(OpSet, callPath(call)+".reenter", "true")
	case countersign.CodeActor:
		return leaveOut("actor_token")
	case countersign.CodeCarry:
		return d.adviseCarry()
	}
	if call.When != "" {
		return inPolicy(OpRemove, callPath(call)+".when", "").note("or change it: %s", clip(call.When, 200))
	}
	return nil
}

// adviseCarry names the claim that is in the way: the issuer stops asserting it, or the policy stops carrying it.
func (d *decision) adviseCarry() *Change {
	s := d.in.Subject
	claim := longest(s.Carry)
	for name, raw := range s.Carry {
		if slices.Contains(own(), name) || !carriable(raw) {
			claim = name
			break
		}
	}
	issuer, known := d.p.Issuer(s.SubIssuer)
	if known && slices.Contains(issuer.Carry, claim) {
		return inPolicy(OpRemove, "issuers["+issuer.Name+"].carry", word(claim))
	}
	return inToken(OpRemove, claim, "")
}

// callPath names a call in the paths of changes.
func callPath(c *countersign.Call) string { return "calls[" + c.From + " -> " + c.To + "]" }

// ruleText is a call as its reader finds it, with what it allows; "" is none.
func ruleText(c *countersign.Call) string {
	if c == nil {
		return ""
	}
	var scopes []string
	for _, s := range c.Scopes {
		switch {
		case s.AnyUser:
			scopes = append(scopes, s.Name+" (any user)")
		case len(s.Needs) == 1 && s.Needs[0] == s.Name:
			scopes = append(scopes, s.Name)
		default:
			scopes = append(scopes, s.Name+" (needs "+strings.Join(s.Needs[:min(len(s.Needs), 4)], " or ")+")")
		}
	}
	if len(scopes) == 0 {
		return ruleOf(c) + ": mTLS only"
	}
	return ruleOf(c) + ": " + list(scopes)
}

func clip(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
