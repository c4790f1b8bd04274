package policy

import (
	"fmt"
	"maps"
	"slices"

	countersign "github.com/countersign/countersign"
)

// check judges the parts against each other.
func (d *decoder) check(doc *document) {
	issuers := d.checkIssuers(doc.issuers)
	services := d.checkServices(doc, issuers)
	d.checkCalls(doc.calls, services)
	d.checkReach(doc, issuers)
}

func (d *decoder) checkIssuers(list []*issuer) map[string]*issuer {
	byName, byURL := make(map[string]*issuer), make(map[string]*issuer)
	var keeps *issuer
	users := 0
	for _, i := range list {
		if !i.other && i.use == countersign.UseUsers {
			users++
		}
	}
	for _, i := range list {
		if first, twice := byName[i.name.v]; twice && i.name.v != "" {
			d.fault(i.name.at, "rename one of them", "the issuer %q is declared twice; first in line %d", i.name.v, first.name.at.node.Line)
		} else {
			byName[i.name.v] = i
		}
		if first, twice := byURL[i.url.v]; twice && i.url.ok {
			d.fault(i.url.at, "remove one of them: the issuer of a token is found by its `iss`", "two issuers have the URL %s; the first in line %d", quoted(i.url.v), first.url.at.node.Line)
		} else if i.url.ok {
			byURL[i.url.v] = i
		}
		switch {
		case i.other || i.use != countersign.UseUsers:
		case i.subject.at == i.at && users > 1:
			d.fault(i.at, "add `subject: prefix`; at most one may have `subject: keep`", "`subject` is missing: with several issuers of users each must say how its subs stay apart from the others'")
		case i.subject.ok && i.subject.v == string(countersign.SubjectKeep) && keeps != nil:
			d.fault(i.subject.at, "write `subject: prefix`", "a second issuer keeps its subs: two users could become one; the first is in line %d", keeps.subject.at.node.Line)
		case i.subject.ok && i.subject.v == string(countersign.SubjectKeep):
			keeps = i
		}
	}
	delete(byName, "")
	return byName
}

func (d *decoder) checkServices(doc *document, issuers map[string]*issuer) map[string]*service {
	byName, byDNS := make(map[string]*service, len(doc.services)), make(map[string]*place)
	for _, s := range doc.services {
		if first, twice := byName[s.name.v]; twice && s.name.v != "" {
			d.fault(s.name.at, "rename one of them", "the service %q is declared twice; first in line %d", s.name.v, first.name.at.node.Line)
		} else {
			byName[s.name.v] = s
		}
		if s.name.ok {
			d.checkID(s)
		}
		for _, name := range s.dns {
			if first, twice := byDNS[name.v]; twice && name.ok {
				d.fault(name.at, "a name leads to one service", "the DNS name %q is given to two services; first in line %d", name.v, first.node.Line)
			} else if name.ok {
				byDNS[name.v] = name.at
			}
		}
		d.checkAccepts(s, issuers)
	}
	d.checkProofs(doc.services, issuers)
	delete(byName, "")
	return byName
}

func (d *decoder) checkID(s *service) {
	id, err := countersign.NewServiceID(d.env.TrustDomain, s.name.v)
	if err != nil {
		d.fault(s.name.at, "choose a shorter name", "the service can't have an ID: %s", err)
	}
	s.out.ID = id
}

func (d *decoder) checkAccepts(s *service, issuers map[string]*issuer) {
	seen := make(map[string]*place, len(s.accepts))
	for _, a := range s.accepts {
		if !a.issuer.ok {
			continue
		}
		if first, twice := seen[a.issuer.v]; twice {
			d.fault(a.issuer.at, "put the audiences into one item", "the issuer %q is accepted twice; first in line %d", a.issuer.v, first.node.Line)
			continue
		}
		seen[a.issuer.v] = a.issuer.at
		switch i, ok := issuers[a.issuer.v]; {
		case !ok:
			dangling(d, a.issuer.at, "issuer", a.issuer.v, issuers)
		case !i.other && i.use != countersign.UseUsers:
			d.fault(a.issuer.at, "name it under `enrol`, or accept an issuer with `use: users`",
				"the issuer %q is for %s: its tokens are no subject tokens", a.issuer.v, i.use)
		}
	}
}

func (d *decoder) checkCalls(calls []*call, services map[string]*service) {
	pairs := make(map[[2]string]*call, len(calls))
	defaults := make(map[string]*call)
	for _, c := range calls {
		for _, end := range []told[string]{c.from, c.to} {
			if _, ok := services[end.v]; !ok && end.ok {
				dangling(d, end.at, "service", end.v, services)
			}
		}
		if c.from.ok && c.to.ok {
			d.checkPair(c, pairs)
		}
		if c.asked != nil && c.from.ok {
			if first, twice := defaults[c.from.v]; twice {
				d.fault(c.asked, "keep one of them", "%q has two default calls; the first is in line %d", c.from.v, first.asked.node.Line)
			} else {
				defaults[c.from.v] = c
			}
		}
		if c.asked != nil && len(c.scopes) == 0 && c.whole {
			d.fault(c.asked, "add `scopes`, or remove `default`", "a call without scopes can't be the default: it has no tokens")
		}
		d.checkScopes(c, services)
	}
}

func (d *decoder) checkPair(c *call, pairs map[[2]string]*call) {
	pair := [2]string{c.from.v, c.to.v}
	if first, twice := pairs[pair]; twice {
		d.fault(c.at, "put the scopes into one call", "the call from %q to %q is declared twice; first in line %d", pair[0], pair[1], first.at.node.Line)
		return
	}
	pairs[pair] = c
	if pair[0] == pair[1] && !c.out.Reenter {
		d.fault(c.to.at, "remove the call, or add `reenter: true`", "%q calls itself; a relay token goes to another service unless the call has `reenter: true`", pair[0])
	}
}

func (d *decoder) checkScopes(c *call, services map[string]*service) {
	names := make(map[string]bool, len(c.scopes))
	from := services[c.from.v]
	for _, s := range c.scopes {
		names[s.name.v] = true
		if s.anyUser != nil && from != nil && len(from.accepts) == 0 {
			d.fault(s.anyUser, fmt.Sprintf("list the scopes that tokens for %s have", from.name.v), "`needs: any-user` may stand only on calls of an entry point, and %q accepts no issuer", from.name.v)
		}
	}
	for _, m := range c.machine {
		if m.ok && !names[m.v] && c.whole {
			d.fault(m.at, "add it to `scopes`, or remove it here", "the machine scope %q is none of the call's scopes", m.v)
		}
	}
}

// dangling tells of a reference to what is not declared. Only the first ones get a "did you mean": each costs a look at
// every name.
func dangling[T any](d *decoder, at *place, what, name string, known map[string]T) {
	hint := fmt.Sprintf("declare it under `%ss`", what)
	if d.guesses < maxGuesses {
		d.guesses++
		if near := countersign.Nearest(name, slices.Sorted(maps.Keys(known))); near != "" {
			hint = fmt.Sprintf("did you mean `%s`?", cut(near))
		}
	}
	d.fault(at, hint, "there is no %s %s", what, quoted(name))
}

// policy is the document without faults as the shared words have it.
func (doc *document) policy() *countersign.Policy {
	issuers := make([]countersign.Issuer, 0, len(doc.issuers))
	for _, i := range doc.issuers {
		i.out.Name, i.out.Use, i.out.URL, i.out.Scopes = i.name.v, i.use, i.url.v, values(i.scopes.v)
		issuers = append(issuers, i.out)
	}
	services := make([]countersign.Service, 0, len(doc.services))
	for _, s := range doc.services {
		s.out.Name, s.out.DNS = s.name.v, values(s.dns)
		for _, a := range s.accepts {
			s.out.Accepts = append(s.out.Accepts, countersign.Accept{Issuer: a.issuer.v, Audiences: a.audiences})
		}
		for _, e := range s.enrol {
			s.out.Enrol = append(s.out.Enrol, countersign.Enrol{Issuer: e.issuer.v, Subject: e.subject.v})
		}
		services = append(services, s.out)
	}
	calls := make([]countersign.Call, 0, len(doc.calls))
	for _, c := range doc.calls {
		c.out.From, c.out.To, c.out.Machine = c.from.v, c.to.v, values(c.machine)
		c.out.Scopes = make([]countersign.Scope, 0, len(c.scopes))
		for _, s := range c.scopes {
			c.out.Scopes = append(c.out.Scopes, countersign.Scope{Name: s.name.v, Needs: s.needs, AnyUser: s.anyUser != nil})
		}
		calls = append(calls, c.out)
	}
	p := countersign.NewPolicy(0, doc.trustDomain, issuers, services, calls)
	p.MaxHops = doc.maxHops
	return p
}
