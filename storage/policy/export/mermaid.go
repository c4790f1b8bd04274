package export

import (
	"fmt"
	"strings"

	"github.com/countersign/countersign"
)

// mermaid draws the graph: issuers, entry points, calls with their scopes; calls by mTLS alone are dotted.
func (e *exporter) mermaid() {
	e.line("%%%% The call graph of %s.", e.p.TrustDomain)
	e.line("flowchart LR")
	for i := range e.p.Issuers {
		e.line("    i_%s([%s])", node(e.p.Issuers[i].Name), label("issuer "+e.p.Issuers[i].Name))
	}
	for i := range e.p.Services {
		s := &e.p.Services[i]
		class := ""
		if s.Disabled != nil {
			class = ":::disabled"
		}
		e.line("    s_%s[%s]%s", node(s.Name), label(s.Name), class)
	}
	for i := range e.p.Services {
		for _, a := range e.p.Services[i].Accepts {
			e.line("    i_%s -- %s --> s_%s", node(a.Issuer), label(strings.Join(a.Audiences, ", ")), node(e.p.Services[i].Name))
		}
	}
	for i := range e.p.Calls {
		c := &e.p.Calls[i]
		if len(c.Scopes) == 0 {
			e.line("    s_%s -. %s .-> s_%s", node(c.From), label("mTLS only"), node(c.To))
			continue
		}
		e.line("    s_%s -- %s --> s_%s", node(c.From), label(callLabel(c)), node(c.To))
	}
	e.line("    classDef disabled stroke-dasharray: 4 4,color:#888")
}

func callLabel(c *countersign.Call) string {
	var lines []string
	for _, s := range c.Scopes {
		line := s.Name
		switch {
		case s.AnyUser:
			line += " (any user)"
		case len(s.Needs) != 1 || s.Needs[0] != s.Name:
			line += " (needs " + strings.Join(s.Needs, " or ") + ")"
		}
		lines = append(lines, line)
	}
	if len(c.Machine) > 0 {
		lines = append(lines, "without a user: "+strings.Join(c.Machine, " "))
	}
	if c.When != "" {
		lines = append(lines, "when "+c.When)
	}
	return strings.Join(lines, "\n")
}

// node is a name as a node's: names of services hold letters, digits and hyphens only.
func node(name string) string { return strings.ReplaceAll(name, "-", "_") }

// label is a text in quotes. Mermaid reads entities in it; whatever could mean something to it becomes one.
func label(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '\n':
			b.WriteString("<br/>")
		case r == ' ' || r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("-_.,:/()", r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, "#%d;", r)
		}
	}
	return `"` + b.String() + `"`
}
