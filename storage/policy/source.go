package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const nestingHint = "a right policy is never nested deeper than 6: look for a bracket that is not closed"

// readYAML gives the root of the one document that doc holds. What the YAML library would misread or count otherwise
// than an editor does is refused first, so that the lines and columns of faults are those that the author sees.
func readYAML(doc []byte, found *faults) (*yaml.Node, bool) {
	if len(doc) > MaxDocument {
		found.add(Fault{Line: 1, Column: 1,
			Msg:  fmt.Sprintf("the document has %d bytes; at most %d are allowed", len(doc), MaxDocument),
			Hint: "split the services between several authorities"})
		return nil, false
	}
	if checkText(doc, found); !found.none() {
		return nil, false
	}
	if line, column := nesting(doc); line > 0 {
		found.add(Fault{Line: line, Column: column, Msg: fmt.Sprintf("this is nested more than %d deep", maxDepth), Hint: nestingHint})
		return nil, false
	}
	reader := yaml.NewDecoder(bytes.NewReader(doc))
	var first, second yaml.Node
	if err := reader.Decode(&first); err != nil {
		found.add(syntaxFault(err))
		return nil, false
	}
	err := reader.Decode(&second)
	switch {
	case err == nil:
		found.add(Fault{Line: second.Line, Column: second.Column,
			Msg:  "a second document begins here; a policy is one document",
			Hint: "remove the `---` and what follows it"})
	case !errors.Is(err, io.EOF):
		found.add(syntaxFault(err))
	}
	root := first.Content[0]
	if root.Line > 1+bytes.Count(doc, []byte("\n")) {
		root.Line, root.Column = 1, 1 // a document that is only `---`: the library puts its nothing after the end
	}
	if !checkTree(&place{node: root}, 1, found) {
		return nil, false
	}
	return root, true
}

// checkText refuses what is no plain UTF-8 text: lines end by LF or CRLF only, indentation is spaces, and nothing in it
// is invisible or reorders what is seen.
func checkText(doc []byte, found *faults) {
	if len(bytes.TrimSpace(doc)) == 0 {
		found.add(Fault{Line: 1, Column: 1, Msg: "the document is empty",
			Hint: "the smallest one is `trust_domain: …`"})
		return
	}
	line := 1
	for text := range bytes.Lines(doc) {
		checkLine(text, line, found)
		line++
	}
}

func checkLine(text []byte, line int, found *faults) {
	column, indent := 0, true
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		column++
		fault := Fault{Line: line, Column: column}
		switch {
		case r == utf8.RuneError && size == 1:
			fault.Msg, fault.Hint = "this byte is not UTF-8", "save the file as UTF-8"
		case r == '\t' && indent:
			fault.Msg, fault.Hint = "a tab stands in the indentation, which YAML does not allow", "indent with spaces"
		case r == '\r' && !bytes.HasPrefix(text[i:], []byte("\r\n")):
			fault.Msg, fault.Hint = "a carriage return stands inside a line", "end lines with LF or CRLF"
		case r == '\uFEFF' && line == 1 && column == 1: // a byte order mark: editors do not show it
			column = 0
		case hidden(r):
			fault.Msg = fmt.Sprintf("the character U+%04X is not allowed: it is invisible or changes what is shown", r)
			fault.Hint = "remove it; in a value write it as an escape in double quotes"
		}
		if fault.Msg != "" {
			found.add(fault)
			return // one per line is enough: such faults come in runs
		}
		indent = indent && r == ' '
		i += size
	}
}

// hidden tells of control characters, Unicode line breaks and marks of direction and of byte order.
func hidden(r rune) bool {
	switch {
	case r == '\t' || r == '\n' || r == '\r':
		return false
	case r < ' ' || r >= 0x7f && r < 0xa0:
		return true
	}
	return r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2060 && r <= 0x206f || r == 0xfeff || r == 0xfffe || r == 0xffff
}

// syntaxFault keeps the one position that the library gives: a line, sometimes none.
func syntaxFault(err error) Fault {
	if errors.Is(err, io.EOF) {
		return Fault{Line: 1, Column: 1, Msg: "the document is empty", Hint: "the smallest one is `trust_domain: …`"}
	}
	fault := Fault{Line: 1, Column: 1, Hint: "look at this line and the one before it"}
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(msg); m != nil {
		fault.Line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	fault.Msg = "this is not YAML: " + msg
	return fault
}

// checkTree refuses everywhere what no document needs: anchors, aliases and merge keys (they make a small document
// large, and hide who may do what), tags, and nesting without end. It tells whether the tree is safe to walk.
func checkTree(at *place, depth int, found *faults) (safe bool) {
	n := at.node
	fault := checkNode(n, depth)
	if fault.Msg != "" {
		fault.Path = at.path()
		found.add(fault)
	}
	if depth > maxDepth {
		return false
	}
	safe = n.Kind != yaml.AliasNode
	for i, child := range n.Content {
		here := &place{node: child, up: at, index: i}
		if n.Kind == yaml.MappingNode {
			here.key = n.Content[i-i%2].Value
		}
		safe = checkTree(here, depth+1, found) && safe
	}
	return safe
}

func checkNode(n *yaml.Node, depth int) Fault {
	fault := Fault{Line: n.Line, Column: n.Column}
	switch {
	case depth > maxDepth:
		fault.Msg, fault.Hint = fmt.Sprintf("this is nested more than %d deep", maxDepth), nestingHint
	case n.Kind == yaml.AliasNode:
		fault.Msg, fault.Hint = "an alias (`*…`) is not allowed in a policy", "write the value out"
	case n.Anchor != "":
		fault.Msg, fault.Hint = "an anchor (`&…`) is not allowed in a policy", "write the value out where it is needed"
	case n.ShortTag() == "!!merge":
		fault.Msg, fault.Hint = "a merge key (`<<`) is not allowed in a policy", "write the keys out"
	case n.Style&yaml.TaggedStyle != 0:
		fault.Msg, fault.Hint = "a tag (`!…`) is not allowed in a policy", "remove it"
	}
	return fault
}

// quoted repeats a value in a message, cut short and with nothing in it that a terminal would obey.
func quoted(s string) string {
	if len(s) > maxQuotedText {
		return strconv.Quote(strings.ToValidUTF8(s[:maxQuotedText], "")) + "…"
	}
	return strconv.Quote(s)
}
