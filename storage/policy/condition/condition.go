// Package condition compiles the `when` of a call: an expression in CEL, the Common Expression Language, over the claims
// of the subject token, the caller and the request.
//
// A condition is pure and bounded: it reads what it is given and nothing else, and stops at [MaxCost]. It never opens a
// file (no time zones by name), never builds a pattern from what a token says, and never gives a true that an error or a
// missing claim stood in the way of. Its errors name claims that the expression names, and never a claim's value.
package condition

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"

	countersign "github.com/countersign/countersign"
)

// The bounds of a condition.
const (
	MaxSource = 2048    // bytes of an expression
	MaxCost   = 100_000 // steps, as CEL counts them: of the estimate for a token of usual size, and of each evaluation

	maxNodes    = 1000 // of the syntax tree, expanded macros included
	maxDepth    = 32   // of brackets and operators
	maxNesting  = 2    // of exists, all, map and filter in each other
	maxRegexp   = 500  // instructions of a compiled pattern
	maxProblems = 10   // told of one expression

	// What the estimate takes for the size of a claim: characters of a string, items of a list. A token may have more;
	// then the evaluation itself is stopped at MaxCost.
	usualSize   = 256
	usualScopes = 32
)

// The names that an expression may use.
const (
	Subject         = "subject"          // map(string, dyn): the claims of the verified subject token; empty without one
	CallerName      = "caller.name"      // string: the authenticated client's name in the policy
	CallerID        = "caller.id"        // string: its ID
	RequestAudience = "request.audience" // string: the name of the service that the token would be for
	RequestScopes   = "request.scopes"   // list(string): the scopes that would be granted
	RequestMachine  = "request.machine"  // bool: client_credentials
	RequestTime     = "request.time"     // timestamp, in UTC
)

// Names are all of them, in the order in which they are documented.
func Names() []string {
	return []string{Subject, CallerName, CallerID, RequestAudience, RequestScopes, RequestMachine, RequestTime}
}

// Problem is one thing that is wrong with an expression.
type Problem struct {
	Line, Column int // in the expression, from 1, in characters
	Msg, Hint    string
}

// Compiler compiles expressions. It is not safe for concurrent use; what it compiles is.
type Compiler struct {
	env  *cel.Env
	done map[string]compiled // by source: the calls of a policy often have the same condition
}

type compiled struct {
	condition *Condition
	problems  []Problem
}

// New makes a compiler. The error is a fault of this package.
func New() (*Compiler, error) {
	env, err := cel.NewEnv(
		cel.Variable(Subject, cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(CallerName, cel.StringType),
		cel.Variable(CallerID, cel.StringType),
		cel.Variable(RequestAudience, cel.StringType),
		cel.Variable(RequestScopes, cel.ListType(cel.StringType)),
		cel.Variable(RequestMachine, cel.BoolType),
		cel.Variable(RequestTime, cel.TimestampType),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(MaxSource), cel.ParserRecursionLimit(maxDepth), cel.ParserErrorRecoveryLimit(4),
		cel.ExpressionNodeLimit(maxNodes), cel.RegexProgramSizeLimit(maxRegexp),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateComprehensionNestingLimit(maxNesting)),
	)
	if err != nil {
		return nil, fmt.Errorf("condition: %w", err)
	}
	return &Compiler{env: env, done: make(map[string]compiled)}, nil
}

// Compile checks an expression and gives the condition, or what is wrong with the expression, never both. The same source
// gives the same condition.
func (c *Compiler) Compile(source string) (*Condition, []Problem) {
	if done, ok := c.done[source]; ok {
		return done.condition, done.problems
	}
	condition, problems := c.compile(source)
	if len(problems) > 0 {
		condition = nil
	}
	c.done[source] = compiled{condition, problems}
	return condition, problems
}

// Has tells whether source was compiled already.
func (c *Compiler) Has(source string) bool { _, ok := c.done[source]; return ok }

// Distinct is how many different expressions were compiled.
func (c *Compiler) Distinct() int { return len(c.done) }

func (c *Compiler) compile(source string) (*Condition, []Problem) {
	if len(source) > MaxSource {
		return nil, []Problem{{1, 1, fmt.Sprintf("it has %d bytes; at most %d are allowed", len(source), MaxSource), "say it shorter, or on several calls"}}
	}
	checked, issues := c.env.Compile(source)
	if issues.Err() != nil {
		return nil, problemsOf(issues)
	}
	if problems := literals(checked); len(problems) > 0 {
		return nil, problems
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		what := "it gives " + typeName(t) + ", not true or false"
		if t.IsExactType(cel.DynType) {
			what = "it gives a claim as it is, which need not be true or false"
		}
		return nil, []Problem{{1, 1, what, "compare it with something, as in `subject.vip == true`"}}
	}
	estimate, err := c.env.EstimateCost(checked, sizes{})
	switch {
	case err != nil:
		return nil, []Problem{{1, 1, "its cost can't be told", "write it simpler"}}
	case estimate.Max > MaxCost:
		return nil, []Problem{{1, 1, fmt.Sprintf("it may take %s steps for one token; at most %d are allowed", many(estimate.Max), MaxCost),
			"do not go through one list for each item of another, and keep patterns short"}}
	}
	program, err := c.env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(MaxCost))
	if err != nil {
		return nil, []Problem{{1, 1, "it can't be planned: " + cut(err.Error()), "write it simpler"}}
	}
	return &Condition{source: source, program: program, words: words(checked)}, nil
}

// Condition is a compiled expression. It is immutable and safe for concurrent use.
type Condition struct {
	source  string
	program cel.Program
	words   map[string]bool // that the expression itself names: they may be told
}

// String is the source.
func (c *Condition) String() string { return c.source }

// Holds evaluates the condition. Any error denies: a claim that is missing, a value of a kind that an operator does not
// take, an evaluation that takes more than MaxCost steps. It tells no value of a claim.
func (c *Condition) Holds(in countersign.ConditionInput) (bool, error) {
	out, _, err := c.program.Eval(activation{&in})
	if err != nil {
		return false, c.explain(err)
	}
	holds, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("it gave neither true nor false")
	}
	return bool(holds), nil
}

// activation gives CEL the input by its names.
type activation struct{ in *countersign.ConditionInput }

// Parent implements [cel.Activation]: there is none.
func (activation) Parent() cel.Activation { return nil }

// ResolveName implements [cel.Activation].
func (a activation) ResolveName(name string) (any, bool) {
	switch name {
	case Subject:
		if a.in.Subject == nil {
			return map[string]any{}, true
		}
		return a.in.Subject, true
	case CallerName:
		return a.in.Caller.Name, true
	case CallerID:
		return a.in.Caller.ID.String(), true
	case RequestAudience:
		return a.in.Audience, true
	case RequestScopes:
		return a.in.Scopes, true
	case RequestMachine:
		return a.in.Machine, true
	case RequestTime:
		return a.in.Now.UTC(), true
	}
	return nil, false
}

// explain says why there is no verdict, with nothing of what stood in the token. CEL's own messages may repeat values.
func (c *Condition) explain(err error) error {
	msg := err.Error()
	if key, ok := strings.CutPrefix(msg, "no such key: "); ok {
		if c.words[key] {
			return fmt.Errorf("there is no %q", key)
		}
		return errors.New("a key that it looks up is not there")
	}
	for _, known := range []struct{ part, say string }{
		{"cost limit", fmt.Sprintf("it takes more than %d steps for this token", MaxCost)},
		{"no such overload", "a value is of a kind that an operator does not take"},
		{"unsupported", "a value is of a kind that an operator does not take"},
		{"expected iterable", "what it goes through is no list and no object"},
		{"index out of bounds", "a list is shorter than its index"},
		{"divi", "it divides by zero"},
		{"modulus", "it divides by zero"},
		{"overflow", "a number gets too large"},
		{"no such attribute", "a part of what it looks up is not there"},
	} {
		if strings.Contains(msg, known.part) {
			return errors.New(known.say)
		}
	}
	return errors.New("a value can't be used as it is written")
}

// words are the member names and texts that stand in the expression.
func words(checked *cel.Ast) map[string]bool {
	found := make(map[string]bool)
	celast.PostOrderVisit(checked.NativeRep().Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		switch e.Kind() {
		case celast.SelectKind:
			found[e.AsSelect().FieldName()] = true
		case celast.LiteralKind:
			if s, ok := e.AsLiteral().(types.String); ok {
				found[string(s)] = true
			}
		}
	}))
	return found
}
