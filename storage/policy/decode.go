package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy/condition"
)

// decoder reads the tree and tells every fault. It goes on after each, with the part left out or kept as it stands.
type decoder struct {
	env     Env
	faults  *faults
	guesses int // made by dangling
	doc     []byte

	conditions *condition.Compiler // nil: there was no `when` yet
}

// place is a node and the way to it; the way is written out only when a fault needs it.
type place struct {
	node  *yaml.Node
	up    *place
	key   string // of a mapping's member; "" for an item of a list
	index int
}

func (p *place) path() string {
	if p == nil || p.up == nil {
		return ""
	}
	up := p.up.path()
	switch {
	case p.key == "":
		return fmt.Sprintf("%s[%d]", up, p.index)
	case up == "":
		return p.key
	}
	return up + "." + p.key
}

// told is a value of the document: where it stands, and whether it could be read.
type told[T any] struct {
	v  T
	at *place // never nil: of the mapping that lacks it, if it is missing
	ok bool
}

func (d *decoder) fault(at *place, hint, format string, args ...any) {
	d.faults.add(Fault{Line: at.node.Line, Column: at.node.Column, Path: at.path(), Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// shape says what a mapping may hold.
type shape struct {
	what  string            // as messages call it
	known []string          // in the order in which a hint lists them
	later map[string]string // keys that are refused by their name, and what to do instead
}

// fields reads a mapping with known keys. What is no mapping gives none, and a fault.
func (d *decoder) fields(at *place, s shape) map[string]*place {
	if at.node.Kind != yaml.MappingNode {
		d.fault(at, "write `key: value` pairs: "+strings.Join(s.known, ", "), "%s must be a mapping, not %s", s.what, kindName(at.node))
		return nil
	}
	found := make(map[string]*place, len(at.node.Content)/2)
	for i := 0; i+1 < len(at.node.Content); i += 2 {
		key, value := at.node.Content[i], at.node.Content[i+1]
		here := &place{node: key, up: at, key: key.Value}
		if key.ShortTag() == "!!merge" {
			continue // told by checkTree
		}
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" || key.Value == "" {
			d.fault(&place{node: key, up: at.up, key: at.key, index: at.index}, "the keys are "+strings.Join(s.known, ", "), "a key must be a word")
			continue
		}
		if first, ok := found[key.Value]; ok {
			d.fault(here, "keep one of them", "the key `%s` occurs twice in this mapping; first in line %d", cut(key.Value), first.node.Line)
			continue
		}
		found[key.Value] = &place{node: value, up: at, key: key.Value}
		d.checkKey(here, s)
	}
	return found
}

func (d *decoder) checkKey(key *place, s shape) {
	name := key.node.Value
	for _, known := range s.known {
		if name == known {
			return
		}
	}
	if hint, ok := s.later[name]; ok {
		d.fault(key, hint, "`%s` is not supported by this version of Countersign", name)
		return
	}
	hint := "the keys are " + strings.Join(s.known, ", ")
	if near := countersign.Nearest(name, s.known); near != "" {
		hint = fmt.Sprintf("did you mean `%s`?", near)
	}
	d.fault(key, hint, "%s has no key `%s`", s.what, cut(name))
}

// items reads a list of at most limit items.
func (d *decoder) items(at *place, limit int) ([]*place, bool) {
	if at.node.Kind != yaml.SequenceNode {
		d.fault(at, "write `[a, b]`, or one `- item` per line; leave the key out if there is none", "`%s` must be a list, not %s", at.key, kindName(at.node))
		return nil, false
	}
	if n := len(at.node.Content); n > limit {
		d.fault(at, fmt.Sprintf("keep %d of them", limit), "`%s` has %d items; at most %d are allowed", at.key, n, limit)
		return nil, false
	}
	list := make([]*place, 0, len(at.node.Content))
	for i, item := range at.node.Content {
		list = append(list, &place{node: item, up: at, index: i})
	}
	return list, true
}

// text reads a string. Numbers and the like are no strings: what looks like one must be quoted, not guessed.
func (d *decoder) text(at *place) told[string] {
	n := at.node
	switch {
	case n.Style&yaml.TaggedStyle != 0: // told by checkTree
	case n.Kind != yaml.ScalarNode:
		d.fault(at, "write one value", "%s must be a text, not %s", at.name(), kindName(n))
	case n.ShortTag() == "!!str" || n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		return told[string]{v: n.Value, at: at, ok: true}
	case n.ShortTag() == "!!null":
		d.fault(at, "give it a value or leave the key out", "%s is empty", at.name())
	default:
		d.fault(at, "put it in quotes if it is meant as text", "%s must be a text, not %s", at.name(), kindName(n))
	}
	return told[string]{v: n.Value, at: at}
}

// texts reads a list of strings without repetitions; check judges each, with a hint.
func (d *decoder) texts(at *place, limit int, check func(string) (hint string, err error)) told[[]told[string]] {
	list, ok := d.items(at, limit)
	out := told[[]told[string]]{at: at, ok: ok}
	seen := make(map[string]*place, len(list))
	for _, item := range list {
		text := d.text(item)
		if text.ok {
			if hint, err := check(text.v); err != nil {
				d.fault(item, hint, "%s", err)
				text.ok = false
			} else if first, ok := seen[text.v]; ok {
				d.fault(item, "keep one of them", "%s stands twice in `%s`; first in line %d", quoted(text.v), at.key, first.node.Line)
				text.ok = false
			} else {
				seen[text.v] = item
			}
		}
		out.ok = out.ok && text.ok
		out.v = append(out.v, text)
	}
	return out
}

// oneOf reads one word of a few.
func (d *decoder) oneOf(at *place, words ...string) told[string] {
	text := d.text(at)
	if text.ok {
		if hint, err := isOneOf(at.name(), words)(text.v); err != nil {
			d.fault(at, hint, "%s", err)
			text.ok = false
		}
	}
	return text
}

func isOneOf(what string, words []string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, word := range words {
			if s == word {
				return "", nil
			}
		}
		hint := "write one of these"
		if near := countersign.Nearest(s, words); near != "" {
			hint = fmt.Sprintf("did you mean `%s`?", near)
		}
		return hint, fmt.Errorf("%s can't be %s; it is one of %s", what, quoted(s), strings.Join(words, ", "))
	}
}

// truth reads true or false, and none of YAML's other spellings.
func (d *decoder) truth(at *place) bool {
	if at.node.Kind != yaml.ScalarNode || at.node.ShortTag() != "!!bool" || at.node.Value != "true" && at.node.Value != "false" {
		d.fault(at, fmt.Sprintf("write `%s: true`, or leave the key out", cut(at.key)), "`%s` must be true or false", at.key)
		return false
	}
	return at.node.Value == "true"
}

// number reads a whole number, in decimal digits only, between least and most.
func (d *decoder) number(at *place, least, most int) int {
	n, err := strconv.Atoi(at.node.Value)
	switch {
	case at.node.Kind != yaml.ScalarNode || at.node.ShortTag() != "!!int" || err != nil || strconv.Itoa(n) != at.node.Value:
		d.fault(at, "write it in digits, without quotes", "`%s` must be a whole number between %d and %d", at.key, least, most)
	case n < least || n > most:
		d.fault(at, fmt.Sprintf("write `%s: %d`", cut(at.key), max(least, min(n, most))), "`%s` must be between %d and %d, not %d", at.key, least, most, n)
	default:
		return n
	}
	return least
}

// duration reads a duration with its unit, between least and most.
func (d *decoder) duration(at *place, least, most time.Duration) time.Duration {
	n := at.node
	span, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode:
		d.fault(at, durationHint(""), "`%s` must be a duration, not %s", at.key, kindName(n))
	case n.ShortTag() == "!!int" || n.ShortTag() == "!!float":
		d.fault(at, fmt.Sprintf("write %ss, %sm or %sh", cut(n.Value), cut(n.Value), cut(n.Value)), "`%s` is a duration and needs a unit", at.key)
	case err != nil:
		d.fault(at, durationHint(n.Value), "`%s` is no duration: %s", at.key, quoted(n.Value))
	case span%time.Second != 0:
		d.fault(at, durationHint(""), "`%s` must be whole seconds, not %s", at.key, span)
	case span < least || span > most:
		d.fault(at, fmt.Sprintf("write `%s: %s`", cut(at.key), short(max(least, min(span, most)))), "`%s` must be between %s and %s, not %s", at.key, short(least), short(most), short(span))
	default:
		return span
	}
	return 0
}

func durationHint(s string) string {
	if days, err := strconv.ParseUint(strings.TrimSuffix(s, "d"), 10, 16); err == nil && strings.HasSuffix(s, "d") {
		return fmt.Sprintf("there is no unit for days: write %dh", days*24)
	}
	return "write it as 90s, 5m or 24h"
}

// short writes 24h0m0s as 24h.
func short(span time.Duration) string {
	s := span.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// name is how messages call the value at p.
func (p *place) name() string {
	if p.key != "" {
		return "`" + cut(p.key) + "`"
	}
	if p.up != nil && p.up.key != "" {
		return "an item of `" + cut(p.up.key) + "`"
	}
	return "the value"
}

// cut is a key as messages show it: escaped, and short.
func cut(s string) string {
	q := quoted(s)
	end := strings.LastIndexByte(q, '"')
	return strings.ReplaceAll(q[1:end]+q[end+1:], "`", "'")
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!timestamp":
		return "a date"
	}
	return "a text"
}
