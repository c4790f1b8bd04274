package jwt

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth is how deep objects and arrays may be nested in a token or key set; the outermost object counts.
const MaxDepth = 16

// parseObject reads b as one JSON object: valid UTF-8, nothing but white space around it, no member twice in any
// object, at most MaxDepth deep, every number finite as a float64, no lone surrogate. Two readers of such a text
// can't understand it differently, which is what signature checkers and claim checkers rely on.
//
// The grammar is encoding/json's to judge; the scanner then only adds what encoding/json lets pass.
func parseObject(b []byte) (Claims, error) {
	if !utf8.Valid(b) || !json.Valid(b) {
		return Claims{}, refuse(ReasonJSON, "not JSON in UTF-8")
	}
	s := scanner{b: b}
	s.space()
	if b[s.i] != '{' {
		return Claims{}, refuse(ReasonJSON, "not a JSON object")
	}
	return s.object(1)
}

// parseInner reads an object that stands in one that parseObject took: nothing about it is open any more.
func parseInner(raw json.RawMessage) (Claims, error) {
	s := scanner{b: raw}
	return s.object(1)
}

// scanner walks a text that is known to be grammatical, so it never looks for the end of the input.
type scanner struct {
	b []byte
	i int
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

func (s *scanner) object(depth int) (Claims, error) {
	if depth > MaxDepth {
		return Claims{}, refuse(ReasonDepth, "JSON nested deeper than %d", MaxDepth)
	}
	var c Claims
	s.i++
	s.space()
	for s.b[s.i] != '}' {
		name, err := s.name()
		if err != nil {
			return Claims{}, err
		}
		s.space()
		s.i++ // the colon
		s.space()
		start := s.i
		if err := s.value(depth + 1); err != nil {
			return Claims{}, err
		}
		if !c.add(name, s.b[start:s.i:s.i]) {
			return Claims{}, refuse(ReasonDuplicate, "the member %.40q stands twice in one object", name)
		}
		s.comma()
	}
	s.i++
	return c, nil
}

func (s *scanner) array(depth int) error {
	if depth > MaxDepth {
		return refuse(ReasonDepth, "JSON nested deeper than %d", MaxDepth)
	}
	s.i++
	s.space()
	for s.b[s.i] != ']' {
		if err := s.value(depth + 1); err != nil {
			return err
		}
		s.comma()
	}
	s.i++
	return nil
}

// comma moves past a comma and the white space around it, if there is one.
func (s *scanner) comma() {
	s.space()
	if s.b[s.i] == ',' {
		s.i++
		s.space()
	}
}

// value moves past one value; depth is that of an object or array that begins here.
func (s *scanner) value(depth int) error {
	switch c := s.b[s.i]; {
	case c == '{':
		_, err := s.object(depth)
		return err
	case c == '[':
		return s.array(depth)
	case c == '"':
		_, err := s.text()
		return err
	case c == '-' || '0' <= c && c <= '9':
		return s.number()
	}
	for s.i < len(s.b) && 'a' <= s.b[s.i] && s.b[s.i] <= 'z' { // true, false, null
		s.i++
	}
	return nil
}

// number moves past a number. One of at most 300 characters without exponent is finite.
func (s *scanner) number() error {
	start, exponent := s.i, false
	for s.i < len(s.b) && numeric(s.b[s.i]) {
		exponent = exponent || s.b[s.i]|0x20 == 'e'
		s.i++
	}
	if !exponent && s.i-start <= 300 {
		return nil
	}
	f, err := strconv.ParseFloat(string(s.b[start:s.i]), 64)
	if err != nil || math.IsInf(f, 0) {
		return refuse(ReasonJSON, "a number is not finite")
	}
	return nil
}

func numeric(c byte) bool {
	return '0' <= c && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

func (s *scanner) name() (string, error) {
	raw, err := s.text()
	if err != nil {
		return "", err
	}
	return unquote(raw)
}

// text moves past a string and returns it as it stands, with its quotes.
func (s *scanner) text() ([]byte, error) {
	start := s.i
	for s.i++; s.b[s.i] != '"'; s.i++ {
		if s.b[s.i] != '\\' {
			continue
		}
		s.i++
		if s.b[s.i] == 'u' && !s.escape() {
			return nil, refuse(ReasonJSON, "a string holds half a surrogate pair")
		}
	}
	s.i++
	return s.b[start:s.i], nil
}

// escape moves to the last byte of the \u escape, or pair of them, at whose "u" the scanner stands. It is false for
// half a pair: encoding/json would read every such half as the same character.
func (s *scanner) escape() bool {
	first := s.hex(s.i + 1)
	s.i += 4
	if !utf16.IsSurrogate(first) {
		return true
	}
	if s.b[s.i+1] != '\\' || s.b[s.i+2] != 'u' {
		return false
	}
	second := s.hex(s.i + 3)
	s.i += 6
	return utf16.DecodeRune(first, second) != utf8.RuneError
}

func (s *scanner) hex(at int) rune {
	n, _ := strconv.ParseUint(string(s.b[at:at+4]), 16, 16) // the grammar says that these are hex digits
	return rune(n)
}

// unquote decodes a string that the scanner passed.
func unquote(raw json.RawMessage) (string, error) {
	if raw[0] != '"' {
		return "", errNotString
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", errNotString
	}
	return s, nil
}

var errNotString = errors.New("not a string") // every caller has a refusal of its own
