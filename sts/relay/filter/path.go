package filter

import (
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	maxPath  = 4096 // bytes of a path as it came
	maxDepth = 64   // segments
)

// checkPath tells why a path is not forwarded; "": it is one that every server reads alike. What servers and frameworks are
// known to read differently is refused: dot segments in any spelling, empty segments, encoded slashes, backslashes,
// percent signs (decoded twice somewhere) and semicolons (path parameters to Tomcat, which cuts them off), segments that end
// in a dot or a space (Windows cuts those off), control characters, line separators and what is no UTF-8. One slash at the
// end is a matter of routes.
//
// Reasons name the rule and never quote the path.
func checkPath(u *url.URL) string {
	raw := u.EscapedPath()
	switch {
	case u.RawPath != "" && u.RawPath != raw:
		return "it has characters that must be percent-encoded"
	case raw == "" || raw[0] != '/':
		return "it does not begin with a slash"
	case len(raw) > maxPath:
		return fmt.Sprintf("it has over %d bytes", maxPath)
	}
	for i := range len(raw) {
		if c := raw[i]; !isPathByte(c) {
			return fmt.Sprintf("the character %q may not stand in it", rune(c))
		}
	}
	segments := strings.Split(raw[1:], "/")
	if len(segments) > maxDepth {
		return fmt.Sprintf("it has over %d segments", maxDepth)
	}
	for i, segment := range segments {
		if segment == "" && i == len(segments)-1 {
			return "" // "/", or one slash at the end
		}
		decoded, err := url.PathUnescape(segment)
		if err != nil {
			return "it has a broken percent-encoding"
		}
		if reason := checkSegment(decoded); reason != "" {
			return reason
		}
	}
	return ""
}

// checkSegment judges a segment, decoded once.
func checkSegment(s string) string {
	switch {
	case s == "":
		return "it has an empty segment"
	case strings.Trim(s, ".") == "", strings.HasSuffix(s, "."):
		return "it has a dot segment, or a segment that ends in a dot"
	case strings.HasSuffix(s, " "):
		return "it has a segment that ends in a space"
	case !utf8.ValidString(s):
		return "it is no UTF-8"
	}
	for _, r := range s {
		switch {
		case r == '/' || r == '\\' || r == '%' || r == ';':
			return fmt.Sprintf("the character %q may not stand in it, encoded or not", r)
		case unicode.IsControl(r) || r == '\u2028' || r == '\u2029':
			return "it has a control character"
		}
	}
	return ""
}

// isPathByte knows the characters of RFC 3986 3.3, without the semicolon.
func isPathByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~!$&'()*+,=:@/%", c) >= 0
}

// fold is the path as an application sees it that minds neither letter case nor a last slash.
func fold(path string) string {
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	return strings.ToLower(path)
}

// pattern is a route's path.
type pattern struct {
	text     string // as the configuration has it
	segments []segment
	slash    bool // one slash at the end
}

type segment struct {
	literal string
	name    string // of a wildcard; "": literal
	rest    bool   // takes all that follows
}

// parsePattern reads a path of the configuration; see [Router].
func parsePattern(text string) (pattern, error) {
	p := pattern{text: text}
	if !strings.HasPrefix(text, "/") || len(text) > maxPath {
		return p, fmt.Errorf("the path %.64q does not begin with a slash", text)
	}
	parts := strings.Split(text[1:], "/")
	seen := map[string]bool{}
	for i, part := range parts {
		last := i == len(parts)-1
		if part == "" && last {
			p.slash = i > 0
			break
		}
		s, err := parseSegment(part, last)
		if err != nil {
			return p, fmt.Errorf("the path %.64q: %w", text, err)
		}
		if s.name != "" && seen[s.name] {
			return p, fmt.Errorf("the path %.64q has the wildcard %s twice", text, s.name)
		}
		seen[s.name] = true
		p.segments = append(p.segments, s)
	}
	if len(p.segments) > maxDepth {
		return p, fmt.Errorf("the path has over %d segments", maxDepth)
	}
	return p, nil
}

func parseSegment(part string, last bool) (segment, error) {
	if !strings.ContainsAny(part, "{}") {
		if reason := checkSegment(part); reason != "" { // such a path never comes through
			return segment{}, fmt.Errorf("%s", reason)
		}
		return segment{literal: part}, nil
	}
	name, ok := strings.CutPrefix(part, "{")
	name, closed := strings.CutSuffix(name, "}")
	name, rest := strings.CutSuffix(name, "...")
	if !ok || !closed || !isName(name) {
		return segment{}, fmt.Errorf("%.64q is no wildcard: a whole segment {name}, or {name...} at the end", part)
	}
	if rest && !last {
		return segment{}, fmt.Errorf("{%s...} stands before the end", name)
	}
	return segment{name: name, rest: rest}, nil
}

// isName knows the names of wildcards.
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' && (i == 0 || c < '0' || c > '9') && (i == 0 || c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// mux is the pattern in the words of http.ServeMux, with wildcards named by their place: patterns that take the same paths
// are equal. Folded, it is the pattern that takes what fold makes of its paths.
func (p pattern) mux(folded bool) string {
	var b strings.Builder
	for i, s := range p.segments {
		switch {
		case s.rest:
			fmt.Fprintf(&b, "/{w%d...}", i)
		case s.name != "":
			fmt.Fprintf(&b, "/{w%d}", i)
		case folded:
			b.WriteString("/" + url.PathEscape(strings.ToLower(s.literal)))
		default:
			b.WriteString("/" + url.PathEscape(s.literal))
		}
	}
	if len(p.segments) == 0 || p.slash && !folded {
		b.WriteString("/{$}")
	}
	return b.String()
}

// covers tells whether p takes every path that q takes, letter case and a last slash aside.
func (p pattern) covers(q pattern) bool {
	for i, s := range p.segments {
		switch {
		case s.rest:
			return true
		case i >= len(q.segments) || q.segments[i].rest:
			return false
		case s.name == "" && (q.segments[i].name != "" || !strings.EqualFold(s.literal, q.segments[i].literal)):
			return false
		}
	}
	return len(p.segments) == len(q.segments)
}
