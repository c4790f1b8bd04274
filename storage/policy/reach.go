package policy

import (
	"fmt"

	countersign "github.com/countersign/countersign"
)

// graph is what reachability is decided from: calls and words, without positions. It is a type of its own so that the
// rule can be tested against the definition of policy.md.
type graph struct {
	entries map[string]map[string]bool // of each entry point: the scopes that an issuer it accepts may assert
	edges   []edge

	// What could not be read is taken as generously as possible, so that a misspelt name is one fault and not one for
	// each scope behind it.
	wild  map[string]bool // services where anything may arrive
	loose map[string]bool // scopes that may arrive anywhere
	blind bool            // anything may arrive anywhere
}

type edge struct {
	from, to string
	scopes   []edgeScope
}

type edgeScope struct {
	name    string
	needs   []string
	anyUser bool
	machine bool
}

// reach is the least fixpoint: which scopes of which edges a token can ever hold. A scope is reachable if it is a
// machine scope; if its edge leaves an entry point and one of its needs may be asserted there, or it needs any user; or
// if one of its needs is reachable on an edge into `from`. Each scope and need is looked at once.
func (g *graph) reach() [][]bool {
	type wait struct{ edge, scope int }
	type word struct{ service, scope string }
	waiting, held := make(map[word][]wait), make(map[word]bool)
	reached := make([][]bool, len(g.edges))
	var todo []wait
	mark := func(w wait) {
		if !reached[w.edge][w.scope] {
			reached[w.edge][w.scope] = true
			todo = append(todo, w)
		}
	}
	for e := range g.edges {
		reached[e] = make([]bool, len(g.edges[e].scopes))
		for s := range g.edges[e].scopes {
			if g.begins(e, s) {
				mark(wait{e, s})
			}
			for _, need := range g.edges[e].scopes[s].needs {
				at := word{g.edges[e].from, need}
				waiting[at] = append(waiting[at], wait{e, s})
			}
		}
	}
	for len(todo) > 0 {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		arrives := word{g.edges[w.edge].to, g.edges[w.edge].scopes[w.scope].name}
		if held[arrives] {
			continue
		}
		held[arrives] = true
		for _, next := range waiting[arrives] {
			mark(next)
		}
	}
	return reached
}

// begins tells whether a scope is reachable without any other edge.
func (g *graph) begins(e, s int) bool {
	scope := &g.edges[e].scopes[s]
	entry, isEntry := g.entries[g.edges[e].from]
	if g.blind || g.wild[g.edges[e].from] || scope.machine || scope.anyUser && isEntry {
		return true
	}
	for _, need := range scope.needs {
		if entry[need] || g.loose[need] {
			return true
		}
	}
	return false
}

// checkReach tells of scopes that no token can ever hold.
func (d *decoder) checkReach(doc *document, issuers map[string]*issuer) {
	g, at := doc.graph(issuers)
	called := make(map[string]bool, len(g.edges))
	for _, e := range g.edges {
		called[e.to] = true
	}
	for e, scopes := range g.reach() {
		from := g.edges[e].from
		_, entry := g.entries[from]
		for s, reached := range scopes {
			if !reached && at[e][s].anyUser == nil { // checkScopes told of that one
				d.unreachable(at[e][s], from, entry, called[from])
			}
		}
	}
}

func (d *decoder) unreachable(s *scope, from string, entry, called bool) {
	needs := "it needs " + either(s.needs)
	hint := fmt.Sprintf("add a call to %s with such a scope, or change `needs`", from)
	switch {
	case entry && called:
		needs += fmt.Sprintf(", which no issuer that %q accepts may assert and no call to it hands on", from)
		hint = "add it to the `scopes` of the issuer, or change `needs`"
	case entry:
		needs += fmt.Sprintf(", which no issuer that %q accepts may assert", from)
		hint = "add it to the `scopes` of the issuer, or change `needs`"
	case called:
		needs += fmt.Sprintf(", and no call to %q hands that on", from)
	default:
		needs += fmt.Sprintf(", but %q is no entry point and nobody calls it", from)
		hint = fmt.Sprintf("give %s `accepts`, add a call to it, or list the scope under `machine`", from)
	}
	d.fault(s.name.at, hint, "the scope %q can never be held: %s", s.name.v, needs)
}

func either(words []string) string {
	if len(words) > 4 {
		return fmt.Sprintf("%q or one of %d others", words[0], len(words)-1)
	}
	s := ""
	for i, word := range words {
		if i > 0 {
			s += " or "
		}
		s += fmt.Sprintf("%q", word)
	}
	return s
}

// graph also gives the place of each scope of each edge.
func (doc *document) graph(issuers map[string]*issuer) (graph, [][]*scope) {
	g := graph{entries: make(map[string]map[string]bool), wild: make(map[string]bool), loose: make(map[string]bool)}
	services := make(map[string]bool, len(doc.services))
	for _, s := range doc.services {
		services[s.name.v] = s.name.v != ""
		g.addEntry(s, issuers)
	}
	var at [][]*scope
	for _, c := range doc.calls {
		known := services[c.from.v] && services[c.to.v]
		if !known || !c.whole {
			g.forgive(c, services)
		}
		machine := make(map[string]bool, len(c.machine))
		for _, m := range c.machine {
			machine[m.v] = true
		}
		var scopes []edgeScope
		var places []*scope
		for _, s := range c.scopes {
			if s.whole && known {
				scopes = append(scopes, edgeScope{s.name.v, s.needs, s.anyUser != nil, machine[s.name.v]})
				places = append(places, s)
			}
		}
		g.edges = append(g.edges, edge{c.from.v, c.to.v, scopes})
		at = append(at, places)
	}
	return g, at
}

// forgive assumes the most of a call that could not be read whole.
func (g *graph) forgive(c *call, services map[string]bool) {
	if services[c.to.v] {
		g.wild[c.to.v] = true
		return
	}
	g.blind = g.blind || !c.whole
	for _, s := range c.scopes {
		g.loose[s.name.v] = true
	}
}

func (g *graph) addEntry(s *service, issuers map[string]*issuer) {
	if len(s.accepts) > 0 && g.entries[s.name.v] == nil {
		g.entries[s.name.v] = make(map[string]bool)
	}
	for _, a := range s.accepts {
		i, ok := issuers[a.issuer.v]
		if !ok || i.other || i.use != countersign.UseUsers || !i.scopes.ok {
			g.wild[s.name.v] = true // an issuer that could not be read might assert anything
			continue
		}
		for _, scope := range i.scopes.v {
			g.entries[s.name.v][scope.v] = true
		}
	}
}
