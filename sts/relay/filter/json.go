package filter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxValues bounds what validating one body costs: its values, those within others too.
const maxValues = 50_000

// parseJSON reads a body as every parser reads it: UTF-8, no member twice (parsers differ in which one they take), no
// number that is no double (RFC 7493 2.2; its exact value could fill the memory), bounded in depth and number of values. Errors say
// what and never quote the body.
func parseJSON(body []byte, depth int) (any, error) {
	if !utf8.Valid(body) {
		return nil, errors.New("it is no UTF-8")
	}
	if !json.Valid(body) {
		return nil, errors.New("it is no JSON")
	}
	p := &jsonParser{decoder: json.NewDecoder(bytes.NewReader(body)), left: maxValues}
	p.decoder.UseNumber()
	return p.value(depth)
}

type jsonParser struct {
	decoder *json.Decoder
	left    int
}

func (p *jsonParser) value(depth int) (any, error) {
	token, err := p.decoder.Token()
	if err != nil {
		return nil, errors.New("it is no JSON")
	}
	if p.left--; p.left < 0 {
		return nil, fmt.Errorf("it has over %d values", maxValues)
	}
	switch t := token.(type) {
	case json.Delim:
		if depth == 0 {
			return nil, errors.New("it is nested too deeply")
		}
		if t == '{' {
			return p.object(depth - 1)
		}
		return p.array(depth - 1)
	case json.Number:
		if f, err := strconv.ParseFloat(string(t), 64); err != nil || len(t) > 64 || f == 0 && strings.ContainsAny(mantissa(string(t)), "123456789") {
			return nil, errors.New("it has a number that is no double (RFC 7493 2.2)")
		}
	}
	return token, nil
}

// mantissa is a number without its exponent.
func mantissa(number string) string {
	m, _, _ := strings.Cut(strings.ToLower(number), "e")
	return m
}

func (p *jsonParser) object(depth int) (any, error) {
	object := map[string]any{}
	for p.decoder.More() {
		name, err := p.decoder.Token()
		if err != nil {
			return nil, errors.New("it is no JSON")
		}
		key, _ := name.(string) // it is valid JSON
		if _, twice := object[key]; twice {
			return nil, errors.New("an object has a member twice")
		}
		if object[key], err = p.value(depth); err != nil {
			return nil, err
		}
	}
	_, err := p.decoder.Token()
	return object, err
}

func (p *jsonParser) array(depth int) (any, error) {
	array := []any{}
	for p.decoder.More() {
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
	_, err := p.decoder.Token()
	return array, err
}
