package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	File   string `json:"file"`
	Line   int    `json:"line"` // from 1; 0: it has no place
	Column int    `json:"column"`
	Key    string `json:"key"` // as public.routes[0].path; "": the document itself
	Msg    string `json:"message"`
	Hint   string `json:"hint,omitempty"`
}

// String is "file:line:column: key: message; hint", as far as the parts are known.
func (f Fault) String() string {
	var b strings.Builder
	if f.File != "" {
		fmt.Fprintf(&b, "%s:", f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", f.Line, f.Column)
		}
		b.WriteByte(' ')
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Msg)
	if f.Hint != "" {
		b.WriteString("; " + f.Hint)
	}
	return b.String()
}

// Error is everything that is wrong with a configuration.
type Error struct{ Faults []Fault }

// Error lists the faults, one a line.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// maxFaults bounds what is told of one document: a wrong file is told by its first lines.
const maxFaults = 100

// Doc is a document that was read: where its keys stand, and its faults so far.
type Doc struct {
	file   string
	places map[string]place
	broken map[string]bool // keys whose value could not be read: what they mean is not judged too
	faults []Fault
}

type place struct{ line, column int }

// Err is all that is wrong, in the order of the document, or nil.
func (d *Doc) Err() error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Error{Faults: d.faults}
}

func (d *Doc) add(f Fault) {
	if len(d.faults) < maxFaults {
		f.File = d.file
		d.faults = append(d.faults, f)
	}
}

// Check tells what is wrong with the section or value at key ("" is the document).
func (d *Doc) Check(key string) Check { return Check{doc: d, key: key} }

// Check collects the faults of one section. Its keys are those of the section.
type Check struct {
	doc *Doc
	key string
}

// In is the Check of a section or value of this one.
func (c Check) In(key string) Check { return Check{doc: c.doc, key: join(c.key, key)} }

// Item is the Check of the i-th element of this list.
func (c Check) Item(i int) Check { return Check{doc: c.doc, key: fmt.Sprintf("%s[%d]", c.key, i)} }

// Is tells whether this is the Check of the section with that key.
func (c Check) Is(key string) bool { return c.key == key }

// Has tells whether the document has this key, whatever its value.
func (c Check) Has(key string) bool {
	_, ok := c.doc.places[join(c.key, key)]
	return ok
}

// Fault says what is wrong with key ("" is the section itself) and, unless hint is "", what to do. A key whose value could not even
// be read has its fault already. One that is missing has the place of its section.
func (c Check) Fault(key, hint, format string, args ...any) {
	full := join(c.key, key)
	if c.doc.broken[full] {
		return
	}
	f := Fault{Key: full, Msg: fmt.Sprintf(format, args...), Hint: hint}
	for at := full; ; at = parent(at) {
		if p, ok := c.doc.places[at]; ok {
			f.Line, f.Column = p.line, p.column
			break
		}
		if at == "" {
			break
		}
	}
	c.doc.add(f)
}

func join(section, key string) string {
	if section == "" || key == "" {
		return section + key
	}
	return section + "." + key
}

func parent(key string) string {
	i := strings.LastIndexAny(key, ".[")
	return key[:max(i, 0)]
}
