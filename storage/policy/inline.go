package policy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/sts/jwt"
)

// Inlined is a certificate or key that [Inline] put into the document, by its fingerprint.
type Inlined struct {
	Key        string `json:"key"` // as "issuers[0].ca_file"
	Path       string `json:"path"`
	SHA256     string `json:"sha256,omitempty"`     // of a certificate (DER), lower-case hex
	KID        string `json:"kid,omitempty"`        // of a key that has one
	Thumbprint string `json:"thumbprint,omitempty"` // of a key: RFC 7638 with SHA-256, base64url
}

// FilesError is everything that is wrong with the files that a document names, in the document's order.
type FilesError struct {
	Faults []Fault
	causes []error
}

// Error lists the faults, one a line.
func (e *FilesError) Error() string {
	lines := make([]string, 0, len(e.Faults))
	for _, f := range e.Faults {
		lines = append(lines, fmt.Sprintf("line %d: %s: %s", f.Line, f.Path, f.Msg))
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives what was told by who read the files.
func (e *FilesError) Unwrap() []error { return e.causes }

// Inline puts the certificates of each `ca_file` and the public keys of each `jwks_file` in the place of its path, in
// double quotes and on the same line, so that every line keeps its number and faults still point into the author's file.
// It runs where the author is, never in the daemon; read gets the path as it is written. Only certificates and public
// keys are copied: a file with anything else is a fault of a *[FilesError], and its path stays in out as it is, for which
// [Parse] has a fault at the same path. A document that is no YAML comes back as it is, for Parse to say what is wrong with it.
func Inline(doc []byte, read func(name string) ([]byte, error)) (out []byte, files []Inlined, err error) {
	if len(doc) > MaxDocument {
		return doc, nil, nil
	}
	var tree yaml.Node
	if err := yaml.Unmarshal(doc, &tree); err != nil || len(tree.Content) == 0 {
		return doc, nil, nil
	}
	done, broken := 0, FilesError{}
	for _, file := range filesOf(tree.Content[0]) {
		fault := func(hint string, cause error) {
			broken.Faults = append(broken.Faults, Fault{Line: file.node.Line, Column: file.node.Column, Path: file.path(), Msg: cause.Error(), Hint: hint})
			broken.causes = append(broken.causes, cause)
		}
		begin, end, ok := extent(doc, file.node)
		if !ok || begin < done {
			fault("write it plain or in quotes", errors.New("the path must stand on one line"))
			continue
		}
		content, err := read(file.node.Value)
		if err != nil {
			fault("its path is counted from the policy's directory", err)
			continue
		}
		text, prints, hint, err := file.inline(string(content))
		if err != nil {
			fault(hint, fmt.Errorf("%s: %w", quoted(file.node.Value), err))
			continue
		}
		files = append(files, prints...)
		out = append(append(out, doc[done:begin]...), strconv.Quote(text)...) // ASCII: \n, \" and \\ are its only escapes, and YAML's too
		done = end
	}
	if out = append(out, doc[done:]...); len(broken.Faults) > 0 {
		return out, files, &broken
	}
	return out, files, nil
}

// file is a path in the document, and what puts the file's contents in its place.
type file struct {
	*place
	inline func(content string) (text string, prints []Inlined, hint string, err error)
}

// filesOf are the paths in the document, in its order. A key that stands twice is left to Parse.
func filesOf(root *yaml.Node) (found []file) {
	add := func(at *place, parse func(at *place, content string) (string, []Inlined, string, error)) {
		if isPath(at.node) {
			found = append(found, file{at, func(content string) (string, []Inlined, string, error) { return parse(at, content) }})
		}
	}
	top := &place{node: root}
	for _, issuer := range elements(top, "issuers") {
		for _, at := range members(issuer, "ca_file") {
			add(at, inlineRoots)
		}
		for _, at := range members(issuer, "jwks_file") {
			add(at, inlineKeys)
		}
	}
	for _, service := range elements(top, "services") {
		for _, keys := range members(service, "client_keys") {
			for _, at := range members(keys, "jwks_file") {
				add(at, inlineClientKeys)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b file) int {
		return cmp.Or(cmp.Compare(a.node.Line, b.node.Line), cmp.Compare(a.node.Column, b.node.Column))
	})
	return found
}

// elements are the items of the lists that stand under key.
func elements(at *place, key string) (found []*place) {
	for _, list := range members(at, key) {
		if list.node.Kind == yaml.SequenceNode {
			for i, item := range list.node.Content {
				found = append(found, &place{node: item, up: list, index: i})
			}
		}
	}
	return found
}

func isPath(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Anchor == "" && n.Style&yaml.TaggedStyle == 0 && n.ShortTag() == "!!str" &&
		n.Value != "" && !strings.Contains(n.Value, "-----BEGIN ") && !isJSON(n.Value)
}

func inlineRoots(at *place, content string) (string, []Inlined, string, error) {
	roots, hint, err := parseRoots(content)
	if err != nil {
		return "", nil, hint, err
	}
	return roots, fingerprints(at, roots), "", nil
}

func inlineKeys(at *place, content string) (string, []Inlined, string, error) {
	set, hint, err := parseKeys(content)
	if err != nil {
		return "", nil, hint, err
	}
	return string(set.JSON()), thumbprints(at, set), "", nil
}

func inlineClientKeys(at *place, content string) (string, []Inlined, string, error) {
	set, hint, err := parseClientKeys(content)
	if err != nil {
		return "", nil, hint, err
	}
	return string(set.JSON()), thumbprints(at, set), "", nil
}

func thumbprints(at *place, set *jwt.Set) (found []Inlined) {
	for _, key := range set.Keys() {
		found = append(found, Inlined{Key: at.path(), Path: at.node.Value, KID: key.KID, Thumbprint: key.Thumbprint()})
	}
	return found
}

func members(at *place, key string) (found []*place) {
	if at.node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(at.node.Content); i += 2 {
		if at.node.Content[i].Kind == yaml.ScalarNode && at.node.Content[i].Value == key {
			found = append(found, &place{node: at.node.Content[i+1], up: at, key: key})
		}
	}
	return found
}

// extent finds the bytes of a scalar that stands on one line, its quotes included.
func extent(doc []byte, n *yaml.Node) (begin, end int, ok bool) {
	for range n.Line - 1 {
		i := bytes.IndexByte(doc[begin:], '\n')
		if i < 0 {
			return 0, 0, false
		}
		begin += i + 1
	}
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(doc[begin:])
		begin += size
	}
	line := doc[begin:]
	if i := bytes.IndexAny(line, "\r\n"); i >= 0 {
		line = line[:i]
	}
	length := 0
	switch {
	case n.Style&yaml.DoubleQuotedStyle != 0:
		length = quotedLength(line, '"', '\\')
	case n.Style&yaml.SingleQuotedStyle != 0:
		length = quotedLength(line, '\'', '\'')
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 && bytes.HasPrefix(line, []byte(n.Value)):
		length = len(n.Value)
	}
	// The bytes must mean what the node says, alone: else the position was not what it seemed.
	var same yaml.Node
	if length == 0 || yaml.Unmarshal(line[:length], &same) != nil || len(same.Content) == 0 || same.Content[0].Value != n.Value {
		return 0, 0, false
	}
	return begin, begin + length, true
}

// quotedLength is the length of the quoted scalar at the start of line, 0 if it does not end there. escape takes the
// next byte with it; in single quotes only another quote is escaped.
func quotedLength(line []byte, quote, escape byte) int {
	if len(line) == 0 || line[0] != quote {
		return 0
	}
	for i := 1; i < len(line); i++ {
		switch {
		case line[i] == escape && quote != escape:
			i++
		case line[i] == quote && quote == escape && i+1 < len(line) && line[i+1] == quote:
			i++
		case line[i] == quote:
			return i + 1
		}
	}
	return 0
}

func fingerprints(at *place, roots string) (found []Inlined) {
	for rest := []byte(roots); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return found
		}
		sum := sha256.Sum256(block.Bytes)
		found = append(found, Inlined{Key: at.path(), Path: at.node.Value, SHA256: hex.EncodeToString(sum[:])})
	}
}
