package policy

import (
	"fmt"
	"slices"
	"strings"

	countersign "github.com/countersign/countersign"
)

const maxWarnings = 100

// Warnings tell what next may do to those who rely on prev, in the order of next. They refuse nothing. prev may be nil.
func Warnings(prev, next *countersign.Policy) []string {
	if prev == nil {
		prev = countersign.NewPolicy(0, next.TrustDomain, nil, nil, nil)
	}
	var w []string
	w = append(w, removedServices(prev, next)...)
	w = append(w, subjectChanges(prev, next)...)
	w = append(w, idleParts(next)...)
	for i := range next.Services {
		w = append(w, audienceChanges(prev, next, next.Services[i].Name)...)
	}
	if len(w) > maxWarnings {
		more := len(w) - maxWarnings
		w = append(w[:maxWarnings], fmt.Sprintf("and %d more warnings", more))
	}
	return w
}

func removedServices(prev, next *countersign.Policy) (w []string) {
	for i := range prev.Services {
		name := prev.Services[i].Name
		if _, ok := next.Service(name); !ok {
			w = append(w, fmt.Sprintf("%s leaves the policy: it gets no tokens from now on, and can't renew its certificates", name))
		}
	}
	return w
}

// subjectChanges: who is known to resource servers by `sub` would become somebody else.
func subjectChanges(prev, next *countersign.Policy) (w []string) {
	for i := range next.Issuers {
		now := &next.Issuers[i]
		was, ok := prev.Issuer(now.URL)
		switch {
		case !ok || now.Use != countersign.UseUsers:
		case was.Use != now.Use:
			// It had no users before.
		case was.Subject != now.Subject:
			w = append(w, fmt.Sprintf("the issuer %s changes from `subject: %s` to `subject: %s`: all its users get another `sub`", now.Name, was.Subject, now.Subject))
		case was.Name != now.Name && now.Subject == countersign.SubjectPrefix:
			w = append(w, fmt.Sprintf("the issuer %s was called %s: all its users get another `sub`", now.Name, was.Name))
		}
	}
	return w
}

// idleParts are declared and do nothing.
func idleParts(next *countersign.Policy) (w []string) {
	accepted, inCalls := make(map[string]bool), make(map[string]bool)
	for i := range next.Calls {
		inCalls[next.Calls[i].From], inCalls[next.Calls[i].To] = true, true
	}
	for i := range next.Services {
		for _, a := range next.Services[i].Accepts {
			accepted[a.Issuer] = true
		}
		for _, e := range next.Services[i].Enrol {
			accepted[e.Issuer] = true
			if strings.Contains(e.Subject, "*") {
				w = append(w, fmt.Sprintf("the subject %s that proves %s holds a *, which stands for nothing but itself", quoted(e.Subject), next.Services[i].Name))
			}
		}
		if !inCalls[next.Services[i].Name] {
			w = append(w, next.Services[i].Name+" stands in no call: it calls nobody and nobody calls it")
		}
	}
	for i := range next.Issuers {
		switch {
		case accepted[next.Issuers[i].Name]:
		case next.Issuers[i].Use == countersign.UseWorkloads:
			w = append(w, fmt.Sprintf("no service enrols with tokens of the issuer %s", next.Issuers[i].Name))
		default:
			w = append(w, fmt.Sprintf("no service accepts tokens of the issuer %s", next.Issuers[i].Name))
		}
	}
	return w
}

// audienceChanges: a client that names a scope and no audience, as Spring's does, relies on there being one call (or a
// default) for it. It warns where prev settled the audience and next settles it otherwise or not at all.
func audienceChanges(prev, next *countersign.Policy, client string) (w []string) {
	type change struct {
		was, now string
		userless bool
	}
	var order []change
	scopes := make(map[change][]string)
	noteOf := func(scope string, userless bool) {
		was, _ := settled(prev, client, scope, userless)
		now, ok := settled(next, client, scope, userless)
		if was == "" || !ok || was == now {
			return // not settled before, or the call is gone, which the author said himself
		}
		if userless && slices.Contains(scopes[change{was, now, false}], scope) {
			return // told already, of requests with a user
		}
		c := change{was, now, userless}
		if scopes[c] == nil {
			order = append(order, c)
		}
		scopes[c] = append(scopes[c], scope)
	}
	note := func(scope string) {
		noteOf(scope, false)
		noteOf(scope, true)
	}
	note("")
	seen := make(map[string]bool)
	for _, c := range next.CallsFrom(client) {
		for _, s := range c.Scopes {
			if !seen[s.Name] {
				seen[s.Name] = true
				note(s.Name)
			}
		}
	}
	for _, c := range order {
		what := "is refused: several calls allow that and none is the default"
		if c.now != "" {
			what = "is for " + c.now
		}
		without := "an audience"
		if c.userless {
			without = "a user or an audience"
		}
		w = append(w, fmt.Sprintf("a token request of %s without %s (%s) was for %s and now %s", client, without, asked(scopes[c]), c.was, what))
	}
	return w
}

func asked(scopes []string) string {
	words := make([]string, 0, len(scopes))
	for _, s := range scopes {
		if s == "" {
			words = append(words, "no scope")
		} else {
			words = append(words, "scope "+s)
		}
	}
	if len(words) > 4 {
		words = append(words[:4], fmt.Sprintf("%d more", len(words)-4))
	}
	return strings.Join(words, "; ")
}

// settled is the audience of a request that names none (policy.md, step 3): the one call that allows the scope (the one
// call with scopes, if none is asked), else the default among them. Without a user only calls with machine scopes count.
// ok: at least one allows it.
func settled(p *countersign.Policy, client, scope string, userless bool) (to string, ok bool) {
	count := 0
	byDefault := ""
	for _, c := range p.CallsFrom(client) {
		if _, has := c.Scope(scope); !has && (scope != "" || len(c.Scopes) == 0) {
			continue
		}
		if userless && (len(c.Machine) == 0 || scope != "" && !slices.Contains(c.Machine, scope)) {
			continue
		}
		to, count = c.To, count+1
		if c.Default {
			byDefault = c.To
		}
	}
	if count > 1 {
		to = byDefault
	}
	return to, count > 0
}
