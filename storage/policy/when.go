package policy

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/storage/policy/condition"
)

// when reads and compiles the condition of a call.
func (d *decoder) when(at *place, c *call) {
	text := d.text(at)
	switch {
	case !text.ok:
		return
	case strings.TrimSpace(text.v) == "":
		d.fault(at, "leave `when` out: then there is no condition", "`when` is empty")
		return
	}
	if d.conditions == nil {
		compiler, err := condition.New()
		if err != nil {
			d.fault(at, "this is a fault of the daemon's; report it", "`when` can't be compiled: %s", err)
			return
		}
		d.conditions = compiler
	}
	if d.conditions.Distinct() >= maxConditions && !d.conditions.Has(text.v) {
		d.fault(at, "say it with fewer different expressions; the same one may stand on many calls", "the policy has more than %d different conditions", maxConditions)
		return
	}
	compiled, problems := d.conditions.Compile(text.v)
	if len(problems) > 0 {
		for _, p := range problems {
			d.faultIn(at, p)
		}
		return
	}
	c.out.When, c.out.Condition = text.v, compiled
}

// faultIn tells of a problem at its own place if the expression stands in the document as it is, else at the value's.
func (d *decoder) faultIn(at *place, p condition.Problem) {
	line, column, ok := d.inside(at.node, p.Line, p.Column)
	if !ok {
		line, column = at.node.Line, at.node.Column
	}
	hint := p.Hint
	if hint == "" {
		hint = "docs/policy.md tells what a condition may say"
	}
	d.faults.add(Fault{Line: line, Column: column, Path: at.path(), Msg: "`when`: " + p.Msg, Hint: hint})
}

// inside translates a place in the text of a scalar to one in the document: of a plain or quoted scalar on one line that
// needs no escapes, and of a literal block (`|`). What stands there is compared, so a wrong guess is never told.
func (d *decoder) inside(n *yaml.Node, line, column int) (int, int, bool) {
	if n.Style&yaml.LiteralStyle == 0 {
		begin, end, ok := extent(d.doc, n)
		if !ok || line != 1 {
			return 0, 0, false
		}
		quote := 0
		if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
			quote = 1
		}
		if string(d.doc[begin+quote:end-quote]) != n.Value {
			return 0, 0, false
		}
		return n.Line, n.Column + quote + column - 1, true
	}
	lines, texts := bytes.Split(d.doc, []byte("\n")), strings.Split(n.Value, "\n")
	at := n.Line + line - 1 // the first line of the text is the one after the `|`, and lines counts from 0
	if at >= len(lines) || line > len(texts) {
		return 0, 0, false
	}
	source, text := strings.TrimSuffix(string(lines[at]), "\r"), texts[line-1]
	indent, ok := strings.CutSuffix(source, text)
	if !ok || strings.Trim(indent, " ") != "" {
		return 0, 0, false
	}
	return at + 1, utf8.RuneCountInString(indent) + column, true
}
