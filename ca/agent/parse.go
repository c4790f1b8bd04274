package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
)

// MaxConfig bounds a configuration file, in bytes.
const MaxConfig = 1 << 20

// maxIdentities bounds what one agent keeps: each is a goroutine and a directory that is written.
const maxIdentities = 1000

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	File   string
	Line   int // 0: not known, as for a flag
	Column int
	Key    string // "identities[0].dir"
	Msg    string
}

// String is "file:line:column: key: message", as far as the parts are known.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
		}
		b.WriteByte(' ')
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	return b.String() + p.Msg
}

// ConfigError is everything that is wrong with a configuration, at once.
type ConfigError struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Parse reads a configuration. Every mistake is told at once, with its place, as a *ConfigError: unknown keys, keys that
// stand twice, values of the wrong kind, and all that [Config.Validate] knows. file only names the document in errors.
func Parse(file string, doc []byte) (Config, error) {
	if len(doc) > MaxConfig {
		return Config{}, &ConfigError{[]Problem{{File: file, Msg: fmt.Sprintf("it is larger than %d bytes", MaxConfig)}}}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(doc))
	var root yaml.Node
	err := decoder.Decode(&root)
	switch {
	case errors.Is(err, io.EOF):
		return Config{}, &ConfigError{[]Problem{{File: file, Msg: "it is empty: at least one of `identities` is needed"}}}
	case err != nil:
		return Config{}, &ConfigError{[]Problem{{File: file, Msg: strings.TrimPrefix(err.Error(), "yaml: ")}}}
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, &ConfigError{[]Problem{{File: file, Msg: "there is more than one YAML document; only one is read"}}}
	}
	w := walk{file: file, places: map[string]*yaml.Node{}}
	w.value(root.Content[0], reflect.TypeFor[Config](), "")
	if len(w.problems) > 0 {
		return Config{}, &ConfigError{w.problems}
	}
	var cfg Config
	if err := root.Decode(&cfg); err != nil { // the walk has seen every value, so this is a fault of the walk's
		return Config{}, &ConfigError{[]Problem{{File: file, Msg: err.Error()}}}
	}
	problems := cfg.Validate()
	for i := range problems {
		w.locate(&problems[i])
	}
	if len(problems) > 0 {
		return Config{}, &ConfigError{problems}
	}
	return cfg, nil
}

// walk holds a document to the types that it is decoded into, and notes where each key stands.
type walk struct {
	file     string
	problems []Problem
	places   map[string]*yaml.Node
}

func (w *walk) add(n *yaml.Node, key, format string, args ...any) {
	w.problems = append(w.problems, Problem{File: w.file, Line: n.Line, Column: n.Column, Key: key, Msg: fmt.Sprintf(format, args...)})
}

// locate gives p the place of its key, or of the nearest section around it.
func (w *walk) locate(p *Problem) {
	p.File = w.file
	for key := p.Key; ; key = key[:strings.LastIndexAny(key, ".[")] {
		if n, ok := w.places[key]; ok {
			p.Line, p.Column = n.Line, n.Column
			return
		}
		if !strings.ContainsAny(key, ".[") {
			return
		}
	}
}

func (w *walk) value(n *yaml.Node, t reflect.Type, key string) {
	if key != "" {
		w.places[key] = n
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	_, text := reflect.New(t).Interface().(interface{ UnmarshalText([]byte) error })
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		w.add(n, key, "YAML anchors and aliases are not read here: write the value")
	case t.Kind() == reflect.Struct && !text:
		w.section(n, t, key)
	case t.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			w.add(n, key, "must be a list, not %s", kindName(n))
			return
		}
		for i, item := range n.Content {
			w.value(item, t.Elem(), fmt.Sprintf("%s[%d]", key, i))
		}
	case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
		w.add(n, key, "must be a single value, not %s", kindName(n))
	default:
		if err := n.Decode(reflect.New(t).Interface()); err != nil {
			w.add(n, key, "%s", scalarError(err, n.Value))
		}
	}
}

func (w *walk) section(n *yaml.Node, t reflect.Type, key string) {
	if n.Kind != yaml.MappingNode {
		w.add(n, key, "must be a section of key: value lines, not %s", kindName(n))
		return
	}
	prefix := ""
	if key != "" {
		prefix = key + "."
	}
	fields, names := map[string]reflect.Type{}, []string{}
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("yaml"); name != "" && name != "-" {
			fields[name] = t.Field(i).Type
			names = append(names, name)
		}
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		field, ok := fields[name.Value]
		switch {
		case name.Kind != yaml.ScalarNode:
			w.add(name, key, "a key must be one word, not %s", kindName(name))
		case seen[name.Value]:
			w.add(name, prefix+name.Value, "stands here twice")
		case !ok:
			w.unknown(name, prefix, names)
		default:
			w.value(value, field, prefix+name.Value)
		}
		seen[name.Value] = true
	}
}

func (w *walk) unknown(name *yaml.Node, prefix string, names []string) {
	if near := countersign.Nearest(strings.ToLower(name.Value), names); near != "" {
		w.add(name, prefix+name.Value, "there is no such key; did you mean %s?", prefix+near)
		return
	}
	w.add(name, prefix+name.Value, "there is no such key; there are %s", strings.Join(slices.Sorted(slices.Values(names)), ", "))
}

// scalarError strips yaml's own position and Go type names from a decoding error.
func scalarError(err error, value string) string {
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) {
		return fmt.Sprintf("%q is not of the right kind", value)
	}
	return err.Error()
}

func kindName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a section"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return fmt.Sprintf("the single value %q", n.Value)
}
