package sts

import (
	"fmt"
	"strings"
)

// The places where a [Change] is made.
const (
	InPolicy  = "policy"  // the document: Path and Value are YAML
	InRequest = "request" // a parameter of the token request
	InToken   = "token"   // a claim of the subject token: its issuer, or the hop before, has to make another one
	InCommand = "command" // Value is what an operator types, or does
)

// What a [Change] does at its Path.
const (
	OpAdd    = "add"    // to a list
	OpSet    = "set"    // a value, whatever was there
	OpRemove = "remove" // Value from a list; without Value the whole key
)

// Change is the smallest change with which a step that failed would pass. It is data, so that tools can apply it: a test
// applies every kind. It says what would allow the exchange, never that it should be allowed: that is the operator's to say.
type Change struct {
	In    string `json:"in"`
	Op    string `json:"op"`
	Path  string `json:"path,omitempty"`  // as "calls[gateway -> orders].scopes", "audience", "scope"
	Value string `json:"value,omitempty"` // of the policy: YAML in one line
	Note  string `json:"note,omitempty"`
}

// String is the change in one line, for people.
func (c Change) String() string {
	s := ""
	switch c.In {
	case InPolicy:
		s = "in the policy, " + c.Op + " " + c.Path + ": " + c.Value
		switch {
		case c.Op == OpAdd:
			s = "in the policy, add to " + c.Path + ": " + c.Value
		case c.Op == OpRemove && c.Value == "":
			s = "in the policy, remove " + c.Path
		case c.Op == OpRemove:
			s = "in the policy, remove from " + c.Path + ": " + c.Value
		}
	case InRequest:
		s = "send " + c.Path + "=" + c.Value
		if c.Op == OpRemove {
			s = "leave out " + c.Path
		}
	case InToken:
		s = "a subject token with " + c.Path + " " + c.Value
		if c.Op == OpRemove {
			s = "a subject token without " + c.Path
		} else if c.Op == OpAdd {
			s = "a subject token whose " + c.Path + " also holds " + c.Value
		}
	default:
		s = c.Value
	}
	if c.Note != "" {
		s += " (" + c.Note + ")"
	}
	return s
}

func inPolicy(op, path, value string) *Change {
	return &Change{In: InPolicy, Op: op, Path: path, Value: value}
}

func inRequest(parameter, value string) *Change {
	return &Change{In: InRequest, Op: OpSet, Path: parameter, Value: value}
}

func leaveOut(parameter string) *Change {
	return &Change{In: InRequest, Op: OpRemove, Path: parameter}
}

func inToken(op, claim, value string) *Change {
	return &Change{In: InToken, Op: op, Path: claim, Value: value}
}

func command(format string, args ...any) *Change {
	return &Change{In: InCommand, Op: OpSet, Value: fmt.Sprintf(format, args...)}
}

func (c *Change) note(format string, args ...any) *Change {
	c.Note = fmt.Sprintf(format, args...)
	return c
}

// word is s as a YAML scalar in a flow: plain where that is safe.
func word(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./", r)
	}
	switch strings.ToLower(s) {
	case "", "true", "false", "yes", "no", "on", "off", "null", "y", "n":
		return quote(s)
	}
	first := s[0]
	letter := first >= 'a' && first <= 'z' || first >= 'A' && first <= 'Z'
	if letter && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return quote(s)
}

func flow(words []string) string {
	quoted := make([]string, 0, len(words))
	for _, w := range words {
		quoted = append(quoted, word(w))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// scopeItem is an item of `scopes`. Nil needs is any-user.
func scopeItem(name string, needs []string) string {
	switch {
	case len(needs) == 1 && needs[0] == name:
		return word(name)
	case len(needs) == 0:
		return "{name: " + word(name) + ", needs: any-user}"
	}
	return "{name: " + word(name) + ", needs: " + flow(needs) + "}"
}
