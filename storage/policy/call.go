package policy

import (
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	countersign "github.com/countersign/countersign"
)

const (
	anyUser    = "any-user"
	leastTTL   = 10 * time.Second
	mostTTL    = time.Hour
	defaultTTL = 5 * time.Minute
)

func (d *decoder) call(at *place) *call {
	c := &call{at: at, from: told[string]{at: at}, to: told[string]{at: at}}
	fields := d.fields(at, shape{
		what:  "a call",
		known: []string{"from", "to", "scopes", "ttl", "machine", "when", "default", "reenter"},
	})
	if fields == nil {
		return c
	}
	c.from = d.end(at, fields["from"], "from")
	c.to = d.end(at, fields["to"], "to")
	c.whole = true
	if at := fields["scopes"]; at != nil {
		d.scopes(at, c)
	}
	c.out.TTL = countersign.Duration(defaultTTL)
	if at := fields["ttl"]; at != nil {
		c.out.TTL = countersign.Duration(d.duration(at, leastTTL, mostTTL))
	}
	if at := fields["machine"]; at != nil {
		c.machine = d.texts(at, maxList, checkScope).v
	}
	if at := fields["default"]; at != nil {
		if c.out.Default = d.truth(at); c.out.Default {
			c.asked = at
		}
	}
	if at := fields["reenter"]; at != nil {
		c.out.Reenter = d.truth(at)
	}
	if at := fields["when"]; at != nil {
		d.when(at, c)
	}
	return c
}

func (d *decoder) end(of, at *place, key string) told[string] {
	if at == nil {
		d.fault(of, fmt.Sprintf("add `%s: NAME`, a name of `services`", key), "`%s` is missing", key)
		return told[string]{at: of}
	}
	return d.text(at)
}

func (d *decoder) scopes(at *place, c *call) {
	list, ok := d.items(at, maxList)
	c.whole = ok
	seen := make(map[string]*place, len(list))
	for _, item := range list {
		s := d.scope(item)
		if s.name.ok {
			if first, twice := seen[s.name.v]; twice {
				d.fault(s.name.at, "keep one of them; `needs` may list several scopes", "the scope %q stands twice on one call; first in line %d", s.name.v, first.node.Line)
				s.whole = false
			} else {
				seen[s.name.v] = s.name.at
			}
		}
		c.whole = c.whole && s.whole
		c.scopes = append(c.scopes, s)
	}
}

// scope reads the short form (a name, which needs itself) or the long one.
func (d *decoder) scope(at *place) *scope {
	s := &scope{at: at, name: told[string]{at: at}}
	if at.node.Kind == yaml.ScalarNode {
		s.name = d.scopeName(at)
		s.needs, s.whole = []string{s.name.v}, s.name.ok
		return s
	}
	fields := d.fields(at, shape{what: "a scope", known: []string{"name", "needs"}})
	if fields == nil {
		return s
	}
	if name := fields["name"]; name != nil {
		s.name = d.scopeName(name)
	} else {
		d.fault(at, "add `name: …`", "the name of the scope is missing")
	}
	needs := fields["needs"]
	if needs == nil {
		s.needs, s.whole = []string{s.name.v}, s.name.ok
		return s
	}
	whole := d.needs(needs, s)
	s.whole = whole && s.name.ok
	return s
}

func (d *decoder) scopeName(at *place) told[string] {
	name := d.text(at)
	if name.ok {
		if hint, err := checkScope(name.v); err != nil {
			d.fault(at, hint, "%s", err)
			name.ok = false
		}
	}
	return name
}

func (d *decoder) needs(at *place, s *scope) (whole bool) {
	if at.node.Kind == yaml.ScalarNode && at.node.Value == anyUser && at.node.ShortTag() == "!!str" {
		s.anyUser = at
		return true
	}
	if at.node.Kind == yaml.ScalarNode && at.node.ShortTag() == "!!str" {
		d.fault(at, fmt.Sprintf("write `needs: [%s]`", cut(at.node.Value)), "`needs` must be a list of scopes, or the word any-user")
		return false
	}
	needs := d.texts(at, maxList, checkScope)
	if needs.ok && len(needs.v) == 0 {
		d.fault(at, "leave `needs` out to need the same scope; `needs: any-user`, on a call of an entry point, needs none", "`needs` is empty, so nothing could ever hold it")
		return false
	}
	s.needs = values(needs.v)
	return needs.ok
}

// checkScope holds a scope to RFC 6749 3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ).
func checkScope(s string) (string, error) {
	switch {
	case s == "":
		return "name a scope, or remove the item", fmt.Errorf("a scope is empty")
	case s == anyUser:
		return "write `needs: any-user`, on a call of an entry point", fmt.Errorf("any-user is no scope")
	case len(s) > maxScope:
		return "choose a shorter name", fmt.Errorf("the scope %s has %d bytes; at most %d are allowed", quoted(s), len(s), maxScope)
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return "one scope has no spaces, quotes, backslashes or letters beyond ASCII", fmt.Errorf("the scope %s holds a character that no scope may hold (RFC 6749 3.3)", quoted(s))
		}
	}
	return "", nil
}
