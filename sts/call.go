package sts

import (
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
)

// call is step 3: the one edge that the request means.
func (d *decision) call() Step {
	if len(d.in.Audiences)+len(d.in.Resources) == 0 {
		return d.inferCall()
	}
	to, step := targetOf(d.p, d.in.Audiences, d.in.Resources)
	if !step.OK {
		return step
	}
	from := d.grant.Client.Name
	call, ok := d.p.Call(from, to.Name)
	if !ok {
		return denied(countersign.CodeNoCall, "", "the policy has no call %s -> %s", from, to.Name).
			hint("%s may call: %s", from, list(callees(d.p.CallsFrom(from))))
	}
	return d.choose(call)
}

// inferCall settles the audience of a request that names none (Spring's client never does) from the scopes asked for.
func (d *decision) inferCall() Step {
	from := d.grant.Client.Name
	fits := slices.DeleteFunc(slices.Clone(d.p.CallsFrom(from)), func(c *countersign.Call) bool {
		return len(c.Scopes) == 0 || slices.ContainsFunc(d.in.Scopes, func(name string) bool { _, ok := c.Scope(name); return !ok })
	})
	if len(fits) == 0 {
		return denied(countersign.CodeTargetAmbiguous, "", "no audience was sent and no call of %s has all of the scopes asked for: %s",
			from, list(d.in.Scopes)).hint("%s may call: %s", from, list(callees(d.p.CallsFrom(from))))
	}
	if d.userless() {
		all := fits
		fits = slices.DeleteFunc(slices.Clone(fits), func(c *countersign.Call) bool { return !d.openToMachines(c) })
		if len(fits) == 0 {
			return d.choose(all[0])
		}
	}
	if len(fits) == 1 {
		return d.choose(fits[0])
	}
	defaults := slices.DeleteFunc(slices.Clone(fits), func(c *countersign.Call) bool { return !c.Default })
	if len(defaults) != 1 {
		return denied(countersign.CodeTargetAmbiguous, "", "no audience was sent and several calls of %s fit: %s", from, list(callees(fits))).
			hint("send audience=NAME, or scopes that only one of these calls has, or mark one call `default: true` in the policy")
	}
	return d.choose(defaults[0])
}

// choose judges the one edge that the request turned out to mean.
func (d *decision) choose(call *countersign.Call) Step {
	rule := ruleOf(call)
	to, ok := d.p.Service(call.To)
	switch {
	case !ok:
		return denied(countersign.CodeNoCall, rule, "%s leads to no service of the policy", rule)
	case to.Disabled != nil:
		return denied(countersign.CodeNoCall, rule, "the service %s is disabled, so no token is made for it", to.Name).
			hint("countersign service enable %s", to.Name)
	case len(call.Scopes) == 0:
		return denied(countersign.CodeNoCall, rule, "%s has no scopes: it is open by mTLS alone, and there is no token for it", rule)
	case d.in.Machine && len(call.Machine) == 0:
		return denied(countersign.CodeMachine, rule, "%s is not open to client_credentials", rule).
			hint("exchange the token of the user that this is done for, or add `machine: [SCOPE]` to the call")
	case !d.in.Machine && d.userless() && !d.openToMachines(call):
		return denied(countersign.CodeNoUser, rule, "the subject token has no user, and %s does not take that for the scopes asked for", rule).
			hint("without a user the call is open for: %s", list(call.Machine))
	}
	d.grant.Call, d.grant.Audience = call, to
	return d.passed(func() Step { return passed(rule, "audience %s", to.Name) })
}

// userless tells whether there is no user behind the request.
func (d *decision) userless() bool { return d.in.Machine || d.in.Subject.Machine(d.in.Issuer) }

// openToMachines tells whether a call is open without a user for every scope asked for; none asked: for any at all.
func (d *decision) openToMachines(c *countersign.Call) bool {
	return len(c.Machine) > 0 &&
		!slices.ContainsFunc(d.in.Scopes, func(name string) bool { return !slices.Contains(c.Machine, name) })
}

func callees(calls []*countersign.Call) []string {
	names := make([]string, 0, len(calls))
	for _, c := range calls {
		names = append(names, c.To)
	}
	return names
}

// targetOf finds the one service that all targets mean (RFC 8693 2.1, RFC 8707 2).
func targetOf(p *countersign.Policy, audiences, resources []string) (*countersign.Service, Step) {
	var found *countersign.Service
	merge := func(parameter, value string, s *countersign.Service) Step {
		switch {
		case s == nil:
			return denied(countersign.CodeTarget, "", "%s %s names no service of the policy", parameter, quote(value)).
				hint("audience: a service's name or ID; resource: its ID, or https:// and one of its DNS names")
		case found != nil && found != s:
			return denied(countersign.CodeTarget, "", "the request names two services, %s and %s; a token is for one", found.Name, s.Name)
		}
		found = s
		return Step{OK: true}
	}
	for _, a := range audiences {
		if step := merge("audience", a, byNameOrID(p, a)); !step.OK {
			return nil, step
		}
	}
	for _, r := range resources {
		if step := merge("resource", r, byResource(p, r)); !step.OK {
			return nil, step
		}
	}
	return found, Step{OK: true}
}

func byNameOrID(p *countersign.Policy, audience string) *countersign.Service {
	if s, ok := p.Service(audience); ok {
		return s
	}
	return byID(p, audience)
}

func byID(p *countersign.Policy, text string) *countersign.Service {
	id, err := countersign.ParseID(text)
	if err != nil {
		return nil
	}
	s, _ := p.ServiceByID(id)
	return s
}

// byResource reads a resource indicator: a service's ID or https://<one of its DNS names>, whose port and path count for
// nothing. User information, a query or a fragment make it something else (RFC 8707 2).
func byResource(p *countersign.Policy, resource string) *countersign.Service {
	if s := byID(p, resource); s != nil {
		return s
	}
	u, err := url.Parse(resource)
	if err != nil || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(resource, "#") {
		return nil
	}
	s, _ := p.ServiceByDNS(strings.ToLower(u.Hostname()))
	return s
}

// quote shows a value of the request, cut: it may be long and is the sender's.
func quote(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return strconv.QuoteToASCII(s)
}
