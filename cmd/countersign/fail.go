package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
)

// The exit codes of interfaces.md.
const (
	exitOK          = 0
	exitLocal       = 1 // local or usage
	exitRemote      = 2
	exitDenied      = 3
	exitCondition   = 4 // asked for something that is not so
	exitNotFound    = 5
	exitDisk        = 74 // EX_IOERR: the disk failed under the daemon; start it again
	exitInterrupted = 130
)

// failure is an error of the command line: what happened, why, and what to do next. None of the three is ever empty:
// fail_test.go holds the source to it. The names are stable with -o json.
type failure struct {
	Exit      int              `json:"exit"`
	What      string           `json:"error"`
	Why       string           `json:"why"`
	Next      string           `json:"next"`
	Code      countersign.Code `json:"code,omitempty"`
	OAuth     string           `json:"oauth_error,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
	Details   []string         `json:"details,omitempty"`
	err       error
}

// Error is the one-line form.
func (f *failure) Error() string { return f.What + ": " + f.Why }

// Unwrap gives the cause.
func (f *failure) Unwrap() error { return f.err }

// fail shows err on standard error, in the format that was asked for, and returns its exit code.
func (a *app) fail(err error) int {
	f := explain(err)
	switch a.output {
	case "json":
		encoder := json.NewEncoder(a.err)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(f) // there is nowhere else to tell it
		return f.Exit
	case "yaml":
		if body, err := asYAML(f); err == nil {
			_, _ = a.err.Write(body)
			return f.Exit
		}
	}
	fmt.Fprintf(a.err, "countersign: %s\n", indented(f.What))
	for _, line := range f.Details {
		fmt.Fprintf(a.err, "  %s\n", indented(line))
	}
	fmt.Fprintf(a.err, "  why:  %s\n", indented(f.Why))
	fmt.Fprintf(a.err, "  next: %s\n", indented(f.Next))
	var tags []string
	if f.Code != "" {
		tags = append(tags, "code "+string(f.Code))
	}
	if f.RequestID != "" {
		tags = append(tags, "request "+f.RequestID)
	}
	if len(tags) > 0 {
		fmt.Fprintf(a.err, "  (%s)\n", strings.Join(tags, ", "))
	}
	return f.Exit
}

// indented keeps further lines of a text under the first. What strangers wrote does not steer the terminal.
func indented(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, line := range lines {
		lines[i] = printable(line)
	}
	return strings.Join(lines, "\n        ")
}

func quoted(s string) string { return strconv.Quote(s) }
