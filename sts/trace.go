package sts

import (
	"fmt"
	"strings"

	"github.com/countersign/countersign"
)

// The steps of an exchange, in the order in which they are judged (policy.md). A later one is not judged when an earlier
// one fails.
const (
	StepClient     = "client"
	StepRequest    = "request" // stands in a trace only if the parameters contradict each other
	StepSubject    = "subject-token"
	StepCall       = "call"
	StepScope      = "scope"
	StepConditions = "conditions"
	StepLifetime   = "lifetime"
	StepBinding    = "binding" // of a real request only: nobody's certificate is known when an exchange is explained
)

// Step is how one step went.
type Step struct {
	Name string           `json:"name"` // one of the Step constants
	OK   bool             `json:"ok"`
	Code countersign.Code `json:"code,omitempty"` // of a step that failed
	Msg  string           `json:"msg,omitempty"`  // what was found
	Rule string           `json:"rule,omitempty"` // the part of the policy that decided: "call gateway -> orders"
	Hint string           `json:"hint,omitempty"` // of a step that failed: what there is instead

	// Of a step that failed. Nearest is the rule that comes nearest to allowing it, "" if there is none; Change is never nil.
	Nearest string  `json:"nearest,omitempty"`
	Change  *Change `json:"change,omitempty"`
}

// Trace explains a decision: every step up to the one that failed, or all of them.
type Trace struct {
	Steps []Step `json:"steps"`
}

// Err is the denial, nil if every step passed. A trace without steps is a denial too.
func (t Trace) Err() *countersign.Error {
	if len(t.Steps) == 0 {
		return countersign.Errorf(countersign.CodeInternal, "nothing was decided")
	}
	last := t.Steps[len(t.Steps)-1]
	if last.OK {
		return nil
	}
	return &countersign.Error{Kind: last.Code.Info().Kind, Code: last.Code, Msg: last.Msg, Hint: last.Hint}
}

func passed(rule, format string, args ...any) Step {
	return Step{OK: true, Rule: rule, Msg: fmt.Sprintf(format, args...)}
}

func denied(code countersign.Code, rule, format string, args ...any) Step {
	return Step{Code: code, Rule: rule, Msg: fmt.Sprintf(format, args...)}
}

func (s Step) hint(format string, args ...any) Step {
	s.Hint = fmt.Sprintf(format, args...)
	return s
}

// failed makes a step of an error that verification found.
func failed(name string, err error) Step {
	e := countersign.AsError(err)
	return Step{Name: name, Code: e.Code, Msg: e.Msg, Hint: e.Hint}
}

// ruleOf names an edge as the policy's reader finds it: from and to are its key in the document.
func ruleOf(c *countersign.Call) string { return "call " + c.From + " -> " + c.To }

// list shows at most ten words; an error must not grow with the policy.
func list(words []string) string {
	const most = 10
	if len(words) == 0 {
		return "none"
	}
	if len(words) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
	}
	return strings.Join(words, ", ")
}
