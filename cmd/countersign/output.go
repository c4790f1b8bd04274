package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// output remembers that standard output could not be written: a command that prints for a long time notices at its end.
type output struct {
	to  io.Writer
	err error
}

// Write writes, unless an earlier one failed.
func (o *output) Write(p []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.to.Write(p)
	if err != nil {
		o.err = &failure{Exit: exitLocal, What: "can't write to standard output", Why: cause(err), err: err,
			Next: "make space, or send it elsewhere; what the command changed stays changed"}
	}
	return n, o.err
}

func (o *output) failed() error { return o.err }

// show writes data to standard output: as JSON or YAML of v, or, for people, what table writes.
func (a *app) show(v any, table func(w *tabwriter.Writer)) error {
	switch a.output {
	case "json":
		encoder := json.NewEncoder(a.out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(v)
	case "yaml":
		return a.showYAML(v)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

func (a *app) showYAML(v any) error {
	body, err := asYAML(v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(body)
	return err
}

// asYAML goes through JSON, so that both formats have the same names.
func asYAML(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var plain any
	if err := decoder.Decode(&plain); err != nil {
		return nil, err
	}
	return yaml.Marshal(numbers(plain))
}

// numbers makes json.Number what YAML writes as a number.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case map[string]any:
		for key := range v {
			v[key] = numbers(v[key])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	}
	return v
}

// say writes prose to standard error.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

func (a *app) now() time.Time { return time.Now() }

// moment shows a time in UTC and how far it is: "2026-11-24 01:47:00Z (in 23h59m)".
func (a *app) moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z") + " (" + relative(t.Sub(a.now())) + ")"
}

func relative(d time.Duration) string {
	if d < 0 {
		return span(-d) + " ago"
	}
	return "in " + span(d)
}

// span keeps the two largest units.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return d.Round(100 * time.Millisecond).String()
}

// row writes one line of a table.
func row(w *tabwriter.Writer, cells ...string) {
	for i, cell := range cells {
		cells[i] = printable(cell)
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// printable is s without what would steer a terminal or break a table: names of users and of foreign certificates are
// written by strangers.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, s)
}

// dash is how a table shows nothing.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
