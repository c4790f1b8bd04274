package conf

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
)

// MaxSize is how large a configuration file may be.
const MaxSize = 1 << 20

const maxItems = 10_000 // of one list

// Read reads the document into the struct that into points to, by its `yaml` tags; what the document does not have stays as it
// was. It knows strings, booleans, integers, single values with UnmarshalText or UnmarshalYAML, structs, pointers to structs, and lists
// of these. An embedded struct with the tag ",inline" has its keys in the section of the outer one. A list that stands there
// and is empty is not nil.
//
// The Doc is never nil: its Err holds what is wrong so far, and the caller adds to it.
func Read(file string, doc []byte, into any) *Doc {
	d := &Doc{file: file, places: map[string]place{}, broken: map[string]bool{}}
	root := d.parse(doc)
	if root != nil {
		d.section(root, reflect.ValueOf(into).Elem(), "")
	}
	return d
}

// parse gives the root of the one document; nil: there is none, and Err says why unless it is empty.
func (d *Doc) parse(doc []byte) *yaml.Node {
	if len(doc) > MaxSize {
		d.add(Fault{Msg: fmt.Sprintf("the file has %d bytes, and at most %d are read", len(doc), MaxSize)})
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(doc))
	var root yaml.Node
	err := decoder.Decode(&root)
	switch {
	case errors.Is(err, io.EOF) || err == nil && len(root.Content) == 0:
		return nil // an empty file: the caller's checks say what is missing
	case err != nil:
		d.add(syntaxFault(err))
		return nil
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		d.add(Fault{Msg: "there is more after the first YAML document; one is read"})
		return nil
	}
	return root.Content[0]
}

// syntaxFault takes the line out of what the YAML parser says.
func syntaxFault(err error) Fault {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				return Fault{Line: line, Column: 1, Msg: "this is no YAML: " + text}
			}
		}
	}
	return Fault{Msg: "this is no YAML: " + msg}
}

func (d *Doc) wrong(n *yaml.Node, key, hint, format string, args ...any) {
	d.broken[key] = true
	d.add(Fault{Line: n.Line, Column: n.Column, Key: key, Msg: fmt.Sprintf(format, args...), Hint: hint})
}

// fieldsOf are the fields of a struct by their key, and the keys in their order.
func fieldsOf(v reflect.Value) (fields map[string]reflect.Value, names []string) {
	fields = map[string]reflect.Value{}
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			inner, innerNames := fieldsOf(v.Field(i))
			for _, n := range innerNames {
				fields[n] = inner[n]
			}
			names = append(names, innerNames...)
		case name != "" && name != "-":
			fields[name] = v.Field(i)
			names = append(names, name)
		}
	}
	return fields, names
}

func (d *Doc) section(n *yaml.Node, v reflect.Value, key string) {
	d.places[key] = place{n.Line, n.Column}
	if n.Kind != yaml.MappingNode {
		d.wrong(n, key, "", "must be a section of key: value lines, not %s", kindName(n))
		return
	}
	fields, names := fieldsOf(v)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		full := join(key, name.Value)
		field, ok := fields[name.Value]
		switch {
		case seen[name.Value]:
			d.wrong(name, full, "", "stands here twice")
		case !ok || name.Kind != yaml.ScalarNode:
			d.unknown(name, key, names)
		default:
			d.places[full] = place{name.Line, name.Column}
			d.value(value, field, full)
		}
		seen[name.Value] = true
	}
}

func (d *Doc) unknown(name *yaml.Node, key string, names []string) {
	if name.Kind != yaml.ScalarNode || len(name.Value) > 64 {
		d.wrong(name, key, "", "a key must be one of %s", strings.Join(names, ", "))
		return
	}
	hint := "there are " + strings.Join(slices.Sorted(slices.Values(names)), ", ")
	if near := countersign.Nearest(strings.ToLower(name.Value), names); near != "" {
		hint = "did you mean " + near + "?"
	}
	d.wrong(name, join(key, name.Value), hint, "there is no such key")
}

func (d *Doc) value(n *yaml.Node, v reflect.Value, key string) {
	decode, isText := decoderOf(v)
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.wrong(n, key, "write the value", "YAML anchors and aliases are not read here")
	case !isText && v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), key)
	case !isText && v.Kind() == reflect.Struct:
		d.section(n, v, key)
	case !isText && v.Kind() == reflect.Slice:
		d.list(n, v, key)
	case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
		d.wrong(n, key, "", "must be a single value, not %s", kindName(n))
	case isText:
		if err := decode(n); err != nil {
			d.wrong(n, key, "", "%s", strings.TrimPrefix(err.Error(), fmt.Sprintf("line %d: ", n.Line)))
		}
	default:
		d.scalar(n, v, key)
	}
}

// decoderOf is how a type reads a single value by itself.
func decoderOf(v reflect.Value) (decode func(*yaml.Node) error, ok bool) {
	switch t := v.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return func(n *yaml.Node) error { return t.UnmarshalText([]byte(n.Value)) }, true
	case yaml.Unmarshaler:
		return t.UnmarshalYAML, true
	}
	return nil, false
}

func (d *Doc) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode || len(n.Content) > maxItems {
		d.wrong(n, key, "", "must be a list of at most %d, not %s", maxItems, kindName(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", key, i)
		d.places[at] = place{item.Line, item.Column}
		d.value(item, v.Index(i), at)
	}
}

func (d *Doc) scalar(n *yaml.Node, v reflect.Value, key string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Tag != "!!bool" || n.Value != "true" && n.Value != "false" {
			d.wrong(n, key, "write true or false", "%.64q is neither true nor false", n.Value)
			return
		}
		v.SetBool(n.Value == "true")
	case reflect.Int, reflect.Int64:
		number, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil || n.Tag != "!!int" {
			d.wrong(n, key, "write a whole number", "%.64q is no whole number", n.Value)
			return
		}
		v.SetInt(number)
	default:
		panic("conf: a field of type " + v.Type().String() + " can't be read")
	}
}

func kindName(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a section"
	case n.Kind == yaml.SequenceNode:
		return fmt.Sprintf("a list of %d", len(n.Content))
	case n.Tag == "!!null":
		return "nothing"
	}
	return fmt.Sprintf("the single value %.64q", n.Value)
}
