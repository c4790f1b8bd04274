package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
)

// ConfigFile is the configuration's name inside the daemon's directory. It is written last by [Init], so its presence
// says that the directory is whole.
const ConfigFile = "countersign.yaml"

const (
	envPrefix     = "COUNTERSIGN"
	maxConfigFile = 1 << 20
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	File   string
	Line   int
	Column int
	Key    string
	Msg    string
}

// String is "file:line:column: key: message", as far as the parts are known.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		fmt.Fprintf(&b, "%s:", p.File)
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

// ConfigError is everything that is wrong with the configuration, at once.
type ConfigError struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *ConfigError) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Loaded is a valid configuration and where its values came from.
type Loaded struct {
	Config   Config
	Origin   map[string]string // key: "flag", "environment COUNTERSIGN_…", "file …" or "default"
	Warnings []string          // unknown COUNTERSIGN_* variables
}

// LoadOptions say what overrides the file.
type LoadOptions struct {
	Flags   map[string]any // key: value, of the flags that were given
	Environ []string       // os.Environ()
	Known   []string       // variables of the command line that are no configuration
}

// Load reads dir's configuration. Precedence: flag, environment, file, default. Every mistake is reported at once, as a
// *ConfigError; a missing file is fs.ErrNotExist.
func Load(dir string, o LoadOptions) (Loaded, error) {
	path := filepath.Join(dir, ConfigFile)
	doc, err := readBounded(path, maxConfigFile)
	if err != nil {
		return Loaded{}, err
	}
	return parse(path, doc, o)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	doc, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(doc)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return doc, err
}

// parse is Load without the disk.
func parse(path string, doc []byte, o LoadOptions) (Loaded, error) {
	if problems := checkDocument(path, doc); len(problems) > 0 {
		return Loaded{}, &ConfigError{problems}
	}
	keys := leafKeys(reflect.TypeFor[Config](), "")
	v := viper.NewWithOptions(viper.ExperimentalBindStruct())
	v.SetConfigType("yaml")
	v.SetEnvPrefix(envPrefix)
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_"))
	v.AutomaticEnv()
	for key, value := range Defaults().Values() { // viper must know every key, or the environment can't reach it
		v.SetDefault(key, value)
	}
	if err := v.ReadConfig(bytes.NewReader(doc)); err != nil {
		return Loaded{}, &ConfigError{[]Problem{{File: path, Msg: err.Error()}}}
	}
	for key, value := range o.Flags {
		v.Set(key, value)
	}
	loaded := Loaded{Origin: origins(v, path, keys, o), Warnings: unknownVariables(keys, o)}
	if err := v.UnmarshalExact(&loaded.Config, viper.DecodeHook(mapstructure.ComposeDecodeHookFunc(
		mapstructure.TextUnmarshallerHookFunc(), splitList))); err != nil {
		return Loaded{}, &ConfigError{decodeProblems(err)}
	}
	if problems := loaded.Config.Validate(); len(problems) > 0 {
		for i, p := range problems {
			problems[i].Msg += " (from " + loaded.Origin[p.Key] + ")"
		}
		return Loaded{}, &ConfigError{problems}
	}
	return loaded, nil
}

// splitList makes the environment reach lists of scalars: "a,b" is [a b].
func splitList(from, to reflect.Type, data any) (any, error) {
	if from.Kind() != reflect.String || to.Kind() != reflect.Slice {
		return data, nil
	}
	items := strings.FieldsFunc(data.(string), func(r rune) bool { return r == ',' || r == ' ' })
	return items, nil
}

func decodeProblems(err error) []Problem {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []Problem{{Msg: err.Error()}}
	}
	var problems []Problem
	for _, e := range joined.Unwrap() {
		problems = append(problems, Problem{Msg: e.Error()})
	}
	return problems
}

// Values are the values of c by key.
func (c Config) Values() map[string]any {
	values := map[string]any{}
	var walk func(v reflect.Value, prefix string)
	walk = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			key := prefix + v.Type().Field(i).Tag.Get("mapstructure")
			if v.Field(i).Kind() == reflect.Struct {
				walk(v.Field(i), key+".")
				continue
			}
			values[key] = v.Field(i).Interface()
		}
	}
	walk(reflect.ValueOf(c), "")
	return values
}

// leafKeys are the keys of the configuration, in the order of the struct.
func leafKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		key := prefix + t.Field(i).Tag.Get("mapstructure")
		if t.Field(i).Type.Kind() == reflect.Struct {
			keys = append(keys, leafKeys(t.Field(i).Type, key+".")...)
			continue
		}
		keys = append(keys, key)
	}
	return keys
}

// Keys are the keys of the configuration, in the order of the documentation.
func Keys() []string { return leafKeys(reflect.TypeFor[Config](), "") }

// Variable is the environment variable of a key.
func Variable(key string) string {
	return envPrefix + "_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func origins(v *viper.Viper, path string, keys []string, o LoadOptions) map[string]string {
	origin := make(map[string]string, len(keys))
	for _, key := range keys {
		switch {
		case o.Flags[key] != nil:
			origin[key] = "flag"
		case slices.ContainsFunc(o.Environ, func(e string) bool {
			name, value, _ := strings.Cut(e, "=")
			return name == Variable(key) && value != "" // viper takes an empty variable for none
		}):
			origin[key] = "environment " + Variable(key)
		case v.InConfig(key):
			origin[key] = "file " + path
		default:
			origin[key] = "default"
		}
	}
	return origin
}

// unknownVariables warns of COUNTERSIGN_* variables that nothing reads: most are misspelt.
func unknownVariables(keys []string, o LoadOptions) []string {
	known := slices.Clone(o.Known)
	for _, key := range keys {
		known = append(known, Variable(key))
	}
	var warnings []string
	for _, e := range o.Environ {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, envPrefix+"_") || slices.Contains(known, name) {
			continue
		}
		warning := fmt.Sprintf("nothing reads the environment variable %s", name)
		if near := countersign.Nearest(name, known); near != "" {
			warning += "; did you mean " + near + "?"
		}
		warnings = append(warnings, warning)
	}
	slices.Sort(warnings)
	return warnings
}

// checkDocument finds what viper would swallow: more than one document, unknown keys, keys that differ in case only,
// scalars for sections, values of the wrong kind. All of them, with their places.
func checkDocument(path string, doc []byte) []Problem {
	decoder := yaml.NewDecoder(bytes.NewReader(doc))
	var root yaml.Node
	err := decoder.Decode(&root)
	if errors.Is(err, io.EOF) {
		return nil // an empty file is all defaults; Validate will say what is missing
	}
	if err != nil {
		return []Problem{{File: path, Msg: strings.TrimPrefix(err.Error(), "yaml: ")}}
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return []Problem{{File: path, Msg: "there is more than one YAML document; only one is read"}}
	}
	c := documentCheck{file: path}
	c.mapping(root.Content[0], reflect.TypeFor[Config](), "")
	return c.problems
}

type documentCheck struct {
	file     string
	problems []Problem
}

func (c *documentCheck) add(n *yaml.Node, key, format string, args ...any) {
	c.problems = append(c.problems, Problem{File: c.file, Line: n.Line, Column: n.Column, Key: key, Msg: fmt.Sprintf(format, args...)})
}

func (c *documentCheck) mapping(n *yaml.Node, t reflect.Type, prefix string) {
	if n.Kind != yaml.MappingNode {
		c.add(n, strings.TrimSuffix(prefix, "."), "must be a section of key: value lines, not %s", kindName(n))
		return
	}
	fields := map[string]reflect.Type{}
	var names []string
	for i := range t.NumField() {
		name := t.Field(i).Tag.Get("yaml")
		fields[name] = t.Field(i).Type
		names = append(names, name)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field, ok := fields[key.Value]
		switch {
		case seen[key.Value]:
			c.add(key, prefix+key.Value, "stands here twice")
		case !ok:
			c.unknown(key, prefix, names)
		default:
			c.value(value, field, prefix+key.Value)
		}
		seen[key.Value] = true
	}
}

func (c *documentCheck) unknown(key *yaml.Node, prefix string, names []string) {
	if near := countersign.Nearest(strings.ToLower(key.Value), names); near != "" {
		c.add(key, prefix+key.Value, "there is no such key; did you mean %s?", prefix+near)
		return
	}
	c.add(key, prefix+key.Value, "there is no such key; there are %s", strings.Join(names, ", "))
}

func (c *documentCheck) value(n *yaml.Node, t reflect.Type, key string) {
	switch {
	case n.Kind == yaml.AliasNode:
		c.add(n, key, "YAML aliases are not read here: write the value")
	case t.Kind() == reflect.Struct:
		c.mapping(n, t, key+".")
	case t.Kind() == reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			c.add(n, key, "must be a list, not %s", kindName(n))
			return
		}
		for _, item := range n.Content {
			if t.Elem() == reflect.TypeFor[TLSProxy]() && item.Kind == yaml.ScalarNode && item.Tag != "!!null" {
				c.add(item, key, "%s", plainProxy(item.Value))
				continue
			}
			c.value(item, t.Elem(), key)
		}
	case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
		c.add(n, key, "must be a single value, not %s", kindName(n))
	default:
		if err := n.Decode(reflect.New(t).Interface()); err != nil {
			c.add(n, key, "%s", scalarError(err, n.Value))
		}
	}
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

// NotInitialised tells whether err of [Load] means that dir was never initialised.
func NotInitialised(err error) bool { return errors.Is(err, fs.ErrNotExist) }
