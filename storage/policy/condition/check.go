package condition

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"

	countersign "github.com/countersign/countersign"
)

// problemsOf says what CEL found, in our words where they help more.
func problemsOf(issues *cel.Issues) []Problem {
	var found []Problem
	for _, issue := range issues.Errors() {
		p := Problem{Line: max(issue.Location.Line(), 1), Column: max(issue.Location.Column(), 0) + 1}
		p.Msg, p.Hint = say(issue.Message)
		if !slices.Contains(found, p) {
			found = append(found, p)
		}
		if len(found) == maxProblems {
			break
		}
	}
	return found
}

func say(msg string) (what, hint string) {
	msg, rest, found := strings.Cut(msg, " (did you mean ")
	if found {
		hint = "did you mean `" + strings.Trim(rest, "'?)") + "`?"
	}
	name := between(msg, "undeclared reference to '", "'")
	switch {
	case name == "caller" || name == "request":
		return fmt.Sprintf("`%s` alone has no value", name), "the names are " + strings.Join(Names(), ", ")
	case name != "":
		if near := countersign.Nearest(name, slices.Concat(Names(), functions())); near != "" && hint == "" {
			hint = fmt.Sprintf("did you mean `%s`?", near)
		}
		if hint == "" {
			hint = "the names are " + strings.Join(Names(), ", ") + "; the functions are those of CEL's standard library"
		}
		return fmt.Sprintf("there is nothing called `%s`", cut(name)), hint
	case strings.HasPrefix(msg, "Syntax error"):
		return "this is not CEL: " + cut(firstOf(strings.TrimPrefix(msg, "Syntax error: "), " expecting ")), "look at what stands before this place"
	case strings.Contains(msg, "nesting limit"):
		return fmt.Sprintf("exists, all, map and filter stand more than %d deep in each other", maxNesting), "write it simpler"
	case strings.HasPrefix(msg, "found no matching overload for "):
		return cut(msg), "the kinds do not fit; claims can be converted: int(subject.level), string(subject.sub)"
	case strings.Contains(msg, "invalid matches argument"):
		return "the pattern is no regular expression (RE2)", ""
	}
	return cut(msg), hint
}

func firstOf(s, sep string) string {
	first, _, _ := strings.Cut(s, sep)
	return first
}

func between(s, begin, end string) string {
	_, rest, ok := strings.Cut(s, begin)
	if !ok {
		return ""
	}
	return firstOf(rest, end)
}

// cut bounds what of an expression or a library's message is repeated.
func cut(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.ReplaceAll(s, "`", "'")
}

// functions are those of the standard library that authors use, for "did you mean".
func functions() []string {
	return []string{
		"has", "all", "exists", "exists_one", "filter", "map", "size", "contains", "startsWith", "endsWith", "matches", "type",
		"bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "uint",
		"getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds",
	}
}

// literals demands that patterns and time zones stand in the expression itself. A pattern from a token could be made to
// cost much memory; a zone by name makes the daemon open a file.
func literals(checked *cel.Ast) (found []Problem) {
	tree := checked.NativeRep()
	offset := regexp.MustCompile(`^[+-][0-9]{2}:[0-9]{2}$`)
	celast.PostOrderVisit(tree.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.CallKind {
			return
		}
		call := e.AsCall()
		args := len(call.Args())
		if args == 0 || len(found) == maxProblems {
			return
		}
		last := call.Args()[args-1]
		text, literal := "", false
		if last.Kind() == celast.LiteralKind {
			if s, ok := last.AsLiteral().(types.String); ok {
				text, literal = string(s), true
			}
		}
		at := tree.SourceInfo().GetStartLocation(last.ID())
		p := Problem{Line: max(at.Line(), 1), Column: max(at.Column(), 0) + 1}
		switch name := call.FunctionName(); {
		case name == "matches" && !literal:
			p.Msg, p.Hint = "the pattern of `matches` must be a text that stands here", "no token may bring a pattern of its own; use contains, startsWith or =="
		case strings.HasPrefix(name, "get") && slices.Contains(functions(), name) && (!literal || text != "UTC" && !offset.MatchString(text)):
			p.Msg, p.Hint = fmt.Sprintf("the time zone of `%s` must be an offset that stands here", name), "write it as \"+01:00\", or leave it out for UTC"
		default:
			return
		}
		found = append(found, p)
	}))
	return found
}

func typeName(t *cel.Type) string {
	switch t.Kind() {
	case types.StringKind:
		return "a text"
	case types.IntKind, types.UintKind, types.DoubleKind:
		return "a number"
	case types.ListKind:
		return "a list"
	case types.MapKind:
		return "an object"
	}
	return "a value of type " + cut(t.String())
}

func many(n uint64) string {
	if n == math.MaxUint64 {
		return "any number of"
	}
	return fmt.Sprint(n)
}

// sizes are what the estimate takes claims and the request for.
type sizes struct{}

// EstimateSize implements [cost.Estimator].
func (sizes) EstimateSize(node cost.AstNode) *cost.SizeEstimate {
	path := node.Path()
	switch {
	case len(path) == 0:
		return nil
	case path[0] == RequestScopes && len(path) == 1:
		return &cost.SizeEstimate{Max: usualScopes}
	}
	return &cost.SizeEstimate{Max: usualSize}
}

// EstimateCallCost implements [cost.Estimator]: CEL's own is taken.
func (sizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}
