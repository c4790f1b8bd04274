package review

import (
	"cmp"
	"slices"

	"github.com/countersign/countersign"
)

// maxStates bounds the search of [Reach]. What it leaves open is reported as possible.
const maxStates = 50_000

// deepest is the longest chain that a token can hold, whatever max_hops says: sts mints no longer one.
const deepest = 15

// Hop is one exchange of a path.
type Hop struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Scope string `json:"scope"`          // that the new token holds
	When  string `json:"when,omitempty"` // the call's condition, which must hold
}

// Reached is a scope that a user's token can become at a service.
type Reached struct {
	Service  string `json:"service"`
	Scope    string `json:"scope"`
	Issuer   string `json:"issuer,omitempty"` // of the user's token
	Path     []Hop  `json:"path,omitempty"`   // a shortest one; its first From is the entry point
	Possible bool   `json:"possible"`         // not proved: the search was ended before a path was found, and there may be none
}

// Reach tells what a holder of the scopes can reach by any path (policy.md, "Attenuation"): a user whose token one of the
// issuers asserts one of them in, at every entry point that takes it, over every chain of exchanges that the policy allows.
// What `needs: any-user` opens, every user whose token is accepted can reach, whatever scopes it holds.
// Conditions are taken to hold; the hops name them. To limits the answer to one service, "" does not. It is pure; the order
// is by service and scope.
func Reach(p *countersign.Policy, scopes []string, to string) []Reached {
	s := search{p: p, found: map[word]*state{}, frontier: map[word][]*state{}}
	complete := s.run(scopes)
	var out []Reached
	for at, end := range s.found {
		if to == "" || at.service == to {
			out = append(out, end.reached())
		}
	}
	if !complete {
		for at := range s.relaxed(scopes) {
			if s.found[at] == nil && (to == "" || at.service == to) {
				out = append(out, Reached{Service: at.service, Scope: at.scope, Possible: true})
			}
		}
	}
	slices.SortFunc(out, func(a, b Reached) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Scope, b.Scope))
	})
	return out
}

// word is a scope in the hands of a service.
type word struct{ service, scope string }

// state is a token: who holds it, with the one scope that matters (a scope needs one of several, so one suffices), and
// which services it has passed through.
type state struct {
	at     word
	issuer *countersign.Issuer // of a user's token; nil: a relay token
	before *state
	when   string
	passed []string // act, the oldest first
}

func (s *state) reached() Reached {
	r := Reached{Service: s.at.service, Scope: s.at.scope}
	for ; s.before != nil; s = s.before {
		r.Path = append(r.Path, Hop{From: s.before.at.service, To: s.at.service, Scope: s.at.scope, When: s.when})
	}
	slices.Reverse(r.Path)
	r.Issuer = s.issuer.Name
	return r
}

type search struct {
	p        *countersign.Policy
	found    map[word]*state   // the first one to get there, which came by a shortest path
	frontier map[word][]*state // states that no other makes needless
	states   int
}

// run goes level by level, so that the first path found is a shortest one. False: there were too many states.
func (s *search) run(scopes []string) bool {
	level := s.entries(scopes)
	for len(level) > 0 {
		var next []*state
		for _, from := range level {
			for _, call := range s.p.CallsFrom(from.at.service) {
				next = s.follow(from, call, next)
				if s.states > maxStates {
					return false
				}
			}
		}
		level = next
	}
	return true
}

// entries are the users' tokens: one for each entry point and issuer that may assert the scope, and one with no scope, which
// `needs: any-user` asks for no more than.
func (s *search) entries(scopes []string) []*state {
	var out []*state
	for i := range s.p.Services {
		service := &s.p.Services[i]
		for j := range s.p.Issuers {
			issuer := &s.p.Issuers[j]
			if len(service.AudiencesFor(issuer.Name)) == 0 {
				continue
			}
			for _, scope := range scopes {
				if slices.Contains(issuer.Scopes, scope) {
					out = append(out, &state{at: word{service.Name, scope}, issuer: issuer})
				}
			}
			out = append(out, &state{at: word{service.Name, ""}, issuer: issuer})
		}
	}
	return out
}

// follow makes the exchanges of one token along one call.
func (s *search) follow(from *state, call *countersign.Call, next []*state) []*state {
	if !s.open(from, call) {
		return next
	}
	for i := range call.Scopes {
		scope := &call.Scopes[i]
		if !slices.Contains(scope.Needs, from.at.scope) && !(scope.AnyUser && from.issuer != nil) {
			continue
		}
		to := &state{
			at: word{call.To, scope.Name}, before: from, when: call.When,
			passed: append(slices.Clip(from.passed), from.at.service),
		}
		if s.needless(to) {
			continue
		}
		s.states++
		s.frontier[to.at] = append(s.frontier[to.at], to)
		if s.found[to.at] == nil {
			s.found[to.at] = to
		}
		next = append(next, to)
	}
	return next
}

// open tells whether a token that passed through the services so far may go along the call (policy.md step 5).
func (s *search) open(from *state, call *countersign.Call) bool {
	for _, end := range []string{call.From, call.To} {
		if service, ok := s.p.Service(end); !ok || service.Disabled != nil {
			return false
		}
	}
	if len(from.passed) >= min(s.p.MaxHops, deepest) {
		return false
	}
	return call.Reenter || call.From != call.To && !slices.Contains(from.passed, call.From) && !slices.Contains(from.passed, call.To)
}

// needless tells whether a token with the same scope at the same service, which passed through no service that this one did
// not, was found before: it can go wherever this one can.
func (s *search) needless(to *state) bool {
	return slices.ContainsFunc(s.frontier[to.at], func(other *state) bool {
		return len(other.passed) <= len(to.passed) &&
			!slices.ContainsFunc(other.passed, func(name string) bool { return !slices.Contains(to.passed, name) })
	})
}

// relaxed is what could be reached if a chain might meet a service again: never less than what can.
func (s *search) relaxed(scopes []string) map[word]bool {
	reached := map[word]bool{}
	todo := s.entries(scopes)
	for len(todo) > 0 {
		from := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, call := range s.p.CallsFrom(from.at.service) {
			for i := range call.Scopes {
				at := word{call.To, call.Scopes[i].Name}
				if allows := slices.Contains(call.Scopes[i].Needs, from.at.scope) || call.Scopes[i].AnyUser && from.issuer != nil; allows && !reached[at] {
					reached[at] = true
					todo = append(todo, &state{at: at})
				}
			}
		}
	}
	return reached
}
