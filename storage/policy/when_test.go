package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	countersign "github.com/countersign/countersign"
)

const completeWhen = `when: caller.name == "gateway" && size(request.scopes) == 1`

// The place of a fault in an expression is its own wherever the expression stands as it is.
func TestWhenPlaces(t *testing.T) {
	base := string(testdata(t, "complete.yaml"))
	line := 1 + strings.Count(base[:strings.Index(base, completeWhen)], "\n")
	for _, c := range []struct {
		when         string
		line, column int // after the line of the key, and of the document
	}{
		{`when: true && callr.name == "x"`, 0, 24},
		{`when: "true && callr.name == 'x'"`, 0, 25},
		{`when: 'true && callr.name == "x"'`, 0, 25},
		{`when:   true && callr.name == "x" # so`, 0, 26},
		{"when: |\n      true &&\n      callr.name == 'x'", 2, 12},
		{"when: |-\n      true\n      && callr.name == 'x'\n", 2, 15},
		{"when: |\n          // why\n\n          callr.name == 'x'", 3, 16},
		{"when: |2\n        callr.name == 'x'", 1, 14},
		{"when: \"true \\u0026\\u0026 callr.name == 'x'\"", 0, 11}, // escaped: the value's own place
		{"when: >\n      true &&\n      callr.name == 'x'", 0, 11},
		{"when: true &&\n      callr.name == 'x'", 0, 11},
		{"when: 'true && callr.name == ''x'''", 0, 11},
	} {
		_, faults := Parse([]byte(strings.Replace(base, completeWhen, c.when, 1)), testEnv())
		if len(faults) != 1 {
			t.Errorf("%q: %s", c.when, report(faults))
			continue
		}
		f := faults[0]
		if f.Line != line+c.line || f.Column != c.column || f.Path != "calls[0].when" || f.Msg != "`when`: there is nothing called `callr.name`" || f.Hint != "did you mean `caller.name`?" {
			t.Errorf("%q: %+v, want line %d", c.when, f, line+c.line)
		}
	}
}

func TestWhenFaults(t *testing.T) {
	for _, c := range []struct{ when, msg string }{
		{`subject.tenant`, "`when`: it gives a claim as it is"},
		{`subject.a.exists(a, subject.b.exists(b, a == b))`, "`when`: it may take"},
		{`subject.a == `, "`when`: this is not CEL"},
		{`subject.a.matches(subject.b)`, "`when`: the pattern of `matches` must be"},
		{`"` + strings.Repeat("x", 2100) + `" == caller.name`, "`when`: it has 21"},
	} {
		_, faults := Parse([]byte(editOf(t, "complete.yaml", completeWhen, "when: '"+c.when+"'")), testEnv())
		if len(faults) != 1 || !strings.HasPrefix(faults[0].Msg, c.msg) || len(report(faults)) > 1000 {
			t.Errorf("%.60s: %.1000s", c.when, report(faults))
		}
	}
}

// Conditions are compiled when a document is read, so there is a bound on how many differ; the same one costs once.
func TestConditionsAreBounded(t *testing.T) {
	document := func(when func(i int) string, n int) []byte {
		var doc strings.Builder
		doc.WriteString("trust_domain: shop.internal\nservices: [{name: a}")
		for i := range n {
			fmt.Fprintf(&doc, ", {name: s%d}", i)
		}
		doc.WriteString("]\ncalls:\n")
		for i := range n {
			fmt.Fprintf(&doc, "- {from: a, to: s%d, when: %s}\n", i, when(i))
		}
		return []byte(doc.String())
	}
	if p, faults := Parse(document(func(int) string { return "request.machine" }, 3000), testEnv()); len(faults) > 0 || p.Calls[0].Condition != p.Calls[2999].Condition {
		t.Errorf("the same one: %.300s", report(faults))
	}
	_, faults := Parse(document(func(i int) string { return fmt.Sprintf("request.audience != 's%d'", i) }, maxConditions+2), testEnv())
	if len(faults) != 2 || !strings.Contains(faults[0].Msg, "more than 1000 different conditions") {
		t.Errorf("too many: %.300s", report(faults))
	}
}

// No way of a policy into force loses a condition or max_hops: apply, opening, another node, a state, a rollback.
func TestConditionsStay(t *testing.T) {
	h := newHouse(t)
	b := h.book
	holds := func(what string, p *countersign.Policy) {
		t.Helper()
		c, ok := p.Call("gateway", "orders")
		if !ok || p.MaxHops != 4 || c.When == "" || c.Condition == nil {
			t.Fatalf("%s: max_hops %d, %+v", what, p.MaxHops, c)
		}
		in := countersign.ConditionInput{Caller: countersign.Service{Name: "gateway"}, Scopes: []string{"a"}, Now: time.Now()}
		if ok, err := c.Condition.Holds(in); !ok || err != nil {
			t.Errorf("%s: %v, %v", what, ok, err)
		}
		in.Scopes = nil
		if ok, err := c.Condition.Holds(in); ok || err != nil {
			t.Errorf("%s: %v, %v", what, ok, err)
		}
		if self, _ := p.Call("orders", "orders"); !self.Reenter || self.Condition != nil {
			t.Errorf("%s: %+v", what, self)
		}
	}
	if _, err := b.Apply(t.Context(), admin(), testdata(t, "complete.yaml"), ApplyOptions{IfVersion: -1}); err != nil {
		t.Fatal(err)
	}
	holds("applied", b.Current())
	if err := b.SetDisabled(t.Context(), admin(), "reports", "x", true); err != nil {
		t.Fatal(err)
	}
	holds("with a state", b.Current())
	holds("opened again", h.open().Current())
	if _, err := b.Apply(t.Context(), admin(), testdata(t, "shop.yaml"), ApplyOptions{IfVersion: -1}); err != nil {
		t.Fatal(err)
	}
	if b.Current().MaxHops != 8 {
		t.Errorf("max_hops %d", b.Current().MaxHops)
	}
	if _, err := b.Rollback(t.Context(), admin(), 1); err != nil {
		t.Fatal(err)
	}
	holds("rolled back", b.Current())
	if _, err := b.Apply(t.Context(), admin(), []byte(editOf(t, "complete.yaml", "request.scopes", "request.scope")), ApplyOptions{IfVersion: -1}); err == nil || b.Current().Version != 3 {
		t.Errorf("a condition with a fault: %v", err)
	}
	holds("after a refusal", b.Current())
}
