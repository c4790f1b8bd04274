package policy

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// derivable is policy.md's definition, word by word: start from nothing, and add what is reachable from what is there
// until nothing more is.
func derivable(g *graph) [][]bool {
	reached := make([][]bool, len(g.edges))
	for e := range g.edges {
		reached[e] = make([]bool, len(g.edges[e].scopes))
	}
	for changed := true; changed; {
		changed = false
		for e, edge := range g.edges {
			for s, scope := range edge.scopes {
				if !reached[e][s] && step(g, reached, edge.from, scope) {
					reached[e][s], changed = true, true
				}
			}
		}
	}
	return reached
}

func step(g *graph, reached [][]bool, from string, scope edgeScope) bool {
	held, entry := g.entries[from]
	if scope.machine || entry && scope.anyUser {
		return true
	}
	for _, need := range scope.needs {
		if held[need] {
			return true
		}
		for e, edge := range g.edges {
			for s := range edge.scopes {
				if edge.to == from && reached[e][s] && edge.scopes[s].name == need {
					return true
				}
			}
		}
	}
	return false
}

func drawGraph(t *rapid.T) graph {
	word := func(kind string, n int) string {
		return fmt.Sprintf("%s%d", kind, rapid.IntRange(0, n-1).Draw(t, kind))
	}
	g := graph{entries: make(map[string]map[string]bool)}
	for range rapid.IntRange(0, 2).Draw(t, "entries") {
		held := make(map[string]bool)
		for range rapid.IntRange(0, 2).Draw(t, "held") {
			held[word("s", 5)] = true
		}
		g.entries[word("n", 6)] = held
	}
	for range rapid.IntRange(0, 12).Draw(t, "edges") {
		e := edge{from: word("n", 6), to: word("n", 6)}
		for range rapid.IntRange(0, 3).Draw(t, "scopes") {
			s := edgeScope{name: word("s", 5), anyUser: rapid.IntRange(0, 9).Draw(t, "any") == 0, machine: rapid.IntRange(0, 9).Draw(t, "machine") == 0}
			for range rapid.IntRange(0, 2).Draw(t, "needs") {
				s.needs = append(s.needs, word("s", 5))
			}
			e.scopes = append(e.scopes, s)
		}
		g.edges = append(g.edges, e)
	}
	return g
}

func TestReachIsTheLeastFixpoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGraph(t)
		got, want := g.reach(), derivable(&g)
		for e := range want {
			if !slices.Equal(got[e], want[e]) {
				t.Fatalf("edge %d %+v: %v, want %v", e, g.edges[e], got[e], want[e])
			}
		}
	})
}

// A misspelt name is one fault, whatever lies behind it; a real one elsewhere is still told.
func TestNoConsequentialFaults(t *testing.T) {
	for _, c := range []struct{ old, with string }{
		{"to: orders\n    scopes:\n", "to: ordres\n    scopes:\n"},
		{"- {name: orders:write, needs: [shop.write]}", "- {name: orders:write, needs: [shop.write], x: 1}"},
		{"scopes: [shop.read, shop.write, orders:read]", "scopes: {a: b}"},
		{"[{issuer: idp, audiences: [shop-web]}]", "idp"},
		{"- orders:read\n", "- [orders:read]\n"},
	} {
		if _, faults := Parse([]byte(edit(t, c.old, c.with)), testEnv()); len(faults) != 1 {
			t.Errorf("%q: %s", c.with, report(faults))
		}
	}
	_, faults := Parse([]byte(edit(t, "{from: reports, to: inventory}", "{from: reports, to: inventroy}\n  - {from: inventory, to: gateway, scopes: [no.such]}")), testEnv())
	if len(faults) != 2 {
		t.Errorf("%s", report(faults))
	}
}
