package sts

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
)

// minLeft is the lifetime below which minting is pointless: the token would expire on its way.
const minLeft = 5 * time.Second

// Actor is one link of the `act` chain (RFC 8693 4.1): the outermost is the current actor, the inner ones are history.
type Actor struct {
	Sub string `json:"sub"` // a service's ID
	Act *Actor `json:"act,omitempty"`
}

// Chain lists the actors, the current one first.
func (a *Actor) Chain() []string {
	var ids []string
	for ; a != nil; a = a.Act {
		ids = append(ids, a.Sub)
	}
	return ids
}

// Input is what [Decide] judges. Everything in it is verified, except what the request asks for.
type Input struct {
	Now    time.Time
	Issuer string         // our issuer identifier
	Client countersign.ID // as the transport proved it

	Machine bool     // client_credentials; Subject is nil then and only then
	Subject *Subject // the verified subject token

	ActorSent bool           // the request has an actor_token
	Actor     countersign.ID // whom it proves; zero: nobody

	Audiences, Resources, Scopes []string // as asked
}

// Grant is what may be minted. Its parts are decided by the policy and the subject token; only the random identifiers
// are still missing.
type Grant struct {
	Call             *countersign.Call
	Client, Audience *countersign.Service
	Scopes           []string  // not empty, each once
	IssuedAt         time.Time // whole seconds, not after Input.Now
	Expires          time.Time // whole seconds, not after the subject token's
	Sub, SubIssuer   string
	Transaction      string // "": a new one begins
	Parent           string // the subject token's jti if it is ours, else ""
	SessionID        string
	Act              *Actor                     // nil only for client_credentials
	Thumbprint       *[32]byte                  // what the token is bound to (RFC 8705 3.1); nil: nothing
	Carry            map[string]json.RawMessage // claims kept as they were
}

// Decide judges steps 3 to 6 of "What an exchange must satisfy" in policy.md, and of step 1 what the policy says about
// the client. It is pure and denies by default: the Grant is valid only if the Trace has no error.
func Decide(p *countersign.Policy, in Input) (Grant, Trace) {
	d := decision{p: p, in: in}
	steps := []struct {
		name  string
		judge func() Step
	}{
		{StepClient, d.client}, {StepSubject, d.subject}, {StepCall, d.call},
		{StepScope, d.scope}, {StepConditions, d.conditions}, {StepLifetime, d.lifetime},
	}
	trace := Trace{Steps: make([]Step, 0, len(steps))}
	for _, s := range steps {
		step := s.judge()
		step.Name = s.name
		if !step.OK {
			trace.Steps = append(trace.Steps, d.advise(step))
			return Grant{}, trace
		}
		trace.Steps = append(trace.Steps, step)
	}
	return d.grant, trace
}

// grantOf is Decide for who wants no explanation, as most do: it tells whether Decide grants, and what. Nothing is put into
// words for the steps that pass.
func grantOf(p *countersign.Policy, in Input) (Grant, bool) {
	d := decision{p: p, in: in, quiet: true}
	granted := d.client().OK && d.subject().OK && d.call().OK && d.scope().OK && d.conditions().OK && d.lifetime().OK
	if !granted {
		return Grant{}, false
	}
	return d.grant, true
}

// decision is the state of one Decide: each step may rely on what the ones before it put into grant.
type decision struct {
	p     *countersign.Policy
	in    Input
	grant Grant
	quiet bool // steps that pass need no words
}

func (d *decision) client() Step {
	service, denial := findClient(d.p, d.in.Client)
	d.grant.Client = service
	if denial != nil {
		return *denial
	}
	return d.passed(func() Step { return admitted(service) })
}

// passed is a step that passed. say puts it into words.
func (d *decision) passed(say func() Step) Step {
	if d.quiet {
		return Step{OK: true}
	}
	return say()
}

// admitClient is step 1 as far as the policy decides it.
func admitClient(p *countersign.Policy, id countersign.ID) (*countersign.Service, Step) {
	service, denial := findClient(p, id)
	if denial != nil {
		return nil, *denial
	}
	return service, admitted(service)
}

func admitted(service *countersign.Service) Step {
	return passed("service "+service.Name, "%s", service.ID)
}

// findClient is the service that a client is, or why it is none.
func findClient(p *countersign.Policy, id countersign.ID) (*countersign.Service, *Step) {
	refuse := func(s Step) (*countersign.Service, *Step) { return nil, &s }
	service, ok := p.ServiceByID(id)
	switch {
	case p.Version == 0:
		return refuse(denied(countersign.CodeClient, "", "no policy is in force, so nobody is a client").
			hint("apply one: countersign policy apply FILE"))
	case !ok:
		return refuse(denied(countersign.CodeClient, "", "%s is no service of policy version %d", idText(id), p.Version).
			hint("add it to services in the policy"))
	case service.Disabled != nil:
		return refuse(denied(countersign.CodeServiceDisabled, "service "+service.Name, "the service %s is disabled", service.Name).
			hint("countersign service enable %s", service.Name))
	}
	return service, nil
}

func idText(id countersign.ID) string {
	if id.IsZero() {
		return "a caller without an ID"
	}
	return id.String()
}

func (d *decision) subject() Step {
	s := d.in.Subject
	switch {
	case d.in.Machine && s != nil, !d.in.Machine && s == nil:
		return denied(countersign.CodeSubjectToken, "", "an exchange has a subject token, client_credentials has none")
	case d.in.Machine:
		d.grant.Sub, d.grant.SubIssuer = d.in.Client.String(), d.in.Issuer
		return d.passed(func() Step { return passed("", "none: client_credentials") })
	}
	d.grant.Sub, d.grant.SubIssuer = s.Sub, s.SubIssuer
	d.grant.Transaction, d.grant.Parent, d.grant.SessionID = s.Transaction, s.ID, s.SessionID
	return d.passed(func() Step { return passed(s.rule(), "%s", s.describe()) })
}

// scope is step 4: what was asked must be allowed in full; if nothing was asked, all that is allowed is granted.
func (d *decision) scope() Step {
	call := d.grant.Call
	for _, name := range d.in.Scopes {
		if step := d.asked(name); !step.OK {
			return step
		}
		if !slices.Contains(d.grant.Scopes, name) {
			d.grant.Scopes = append(d.grant.Scopes, name)
		}
	}
	if len(d.in.Scopes) > 0 {
		return d.passed(func() Step {
			return passed(ruleOf(call), "asked and allowed: %s", strings.Join(d.grant.Scopes, " "))
		})
	}
	for i := range call.Scopes {
		if d.allows(&call.Scopes[i]) {
			d.grant.Scopes = append(d.grant.Scopes, call.Scopes[i].Name)
		}
	}
	if len(d.grant.Scopes) == 0 {
		rule := ruleOf(call)
		return denied(countersign.CodeScopeNone, rule, "the subject token holds nothing that a scope of %s needs", rule).
			hint("it holds: %s; needed is one of: %s", list(d.held()), list(needsOf(call)))
	}
	return d.passed(func() Step {
		return passed(ruleOf(call), "none asked; allowed: %s", strings.Join(d.grant.Scopes, " "))
	})
}

func (d *decision) asked(name string) Step {
	call := d.grant.Call
	scope, ok := call.Scope(name)
	if ok && (!d.in.Machine || slices.Contains(call.Machine, name)) && d.allows(scope) {
		return Step{OK: true}
	}
	rule := ruleOf(call)
	switch {
	case !ok:
		return denied(countersign.CodeScope, rule, "%s has no scope %q", rule, name).
			hint("it has: %s", list(namesOf(call)))
	case d.in.Machine && !slices.Contains(call.Machine, name):
		return denied(countersign.CodeScope, rule, "the scope %s of %s needs a user", name, rule).
			hint("open to client_credentials are: %s", list(call.Machine))
	}
	return denied(countersign.CodeScopeNotHeld, rule, "the subject token does not hold what %s on %s needs", name, rule).
		hint("it needs one of: %s; the token holds: %s", list(scope.Needs), list(d.held()))
}

// allows tells whether what is held suffices for a scope of the chosen call.
func (d *decision) allows(scope *countersign.Scope) bool {
	forMachine := slices.Contains(d.grant.Call.Machine, scope.Name)
	switch {
	case d.in.Machine:
		return forMachine
	case d.in.Subject.Machine(d.in.Issuer) && !forMachine:
		return false
	case scope.AnyUser && d.in.Subject.External != nil:
		return true
	}
	return slices.ContainsFunc(scope.Needs, func(need string) bool { return slices.Contains(d.in.Subject.Scopes, need) })
}

func (d *decision) held() []string {
	if d.in.Subject == nil {
		return nil
	}
	return d.in.Subject.Scopes
}

// lifetime is step 6.
func (d *decision) lifetime() Step {
	why := d.grant.live(d.in.Now, d.in.Subject)
	if left := d.grant.Expires.Sub(d.in.Now); left < minLeft {
		return denied(countersign.CodeLifetime, ruleOf(d.grant.Call), "by %s a new token would live for %s; at least %s are needed",
			why, max(left, 0).Truncate(time.Millisecond), minLeft).
			hint("get a fresh token from the one who called you")
	}
	return d.passed(func() Step {
		return passed(ruleOf(d.grant.Call), "%s, by %s", d.grant.Expires.Sub(d.grant.IssuedAt), why)
	})
}

// live sets the times of a token that is minted at now, and tells what ends it. They are whole seconds, cut down: a token never
// outlives what it was made from.
func (g *Grant) live(now time.Time, subject *Subject) (why string) {
	expires, why := now.Add(time.Duration(g.Call.TTL)), "the call's ttl"
	if subject != nil && subject.Expires.Before(expires) {
		expires, why = subject.Expires, "the subject token's exp"
	}
	g.IssuedAt, g.Expires = now.Truncate(time.Second), expires.Truncate(time.Second)
	return why
}

func namesOf(c *countersign.Call) []string {
	names := make([]string, 0, len(c.Scopes))
	for _, s := range c.Scopes {
		names = append(names, s.Name)
	}
	return names
}

func needsOf(c *countersign.Call) []string {
	var needs []string
	for _, s := range c.Scopes {
		for _, need := range s.Needs {
			if !slices.Contains(needs, need) {
				needs = append(needs, need)
			}
		}
	}
	return needs
}
