package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

// result is what a run of the command line gave.
type result struct {
	args           []string
	code           int
	stdout, stderr string
}

// runHere runs the command line in this process.
func runHere(t *testing.T, args ...string) result {
	t.Helper()
	return runWith(t, strings.NewReader(""), args...)
}

func runWith(t *testing.T, in io.Reader, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, in, &stdout, &stderr)
	return result{args, code, stdout.String(), stderr.String()}
}

// refused wants the three parts of an error, in text, JSON and YAML, each in its place and the same in all. It gives the
// JSON form.
func refused(t *testing.T, code int, args ...string) failure {
	t.Helper()
	text := runHere(t, args...)
	text.whole(t, code)
	var forms [2]failure
	for i, format := range []string{"json", "yaml"} {
		// In front, as a flag that can't be parsed ends the parsing; but what follows -- is no flag.
		got := runHere(t, append([]string{"-o", format}, args...)...)
		if got.code != code {
			t.Errorf("%q: exit code %d instead of %d with -o %s", args, got.code, code, format)
		}
		stderr := dropProse(got.stderr)
		var err error
		if format == "json" {
			err = json.Unmarshal([]byte(stderr), &forms[i])
		} else {
			var plain any
			if err = yaml.Unmarshal([]byte(stderr), &plain); err == nil {
				body, _ := json.Marshal(plain)
				err = json.Unmarshal(body, &forms[i])
			}
		}
		f := forms[i]
		if err != nil || f.Exit != code || f.What == "" || f.Why == "" || f.Next == "" || f.What == noWords {
			t.Errorf("%q -o %s: %v: %s", args, format, err, got.stderr)
		}
	}
	if forms[0].What != forms[1].What || forms[0].Next != forms[1].Next && forms[0].RequestID == "" {
		t.Errorf("%q: JSON and YAML differ: %+v, %+v", args, forms[0], forms[1])
	}
	return forms[0]
}

// dropProse leaves out what a command said before it failed: the error is the last thing.
func dropProse(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, `{"exit"`) || strings.HasPrefix(line, "code:") || strings.HasPrefix(line, "details:") || strings.HasPrefix(line, "error:") {
			return strings.Join(lines[i:], "")
		}
	}
	return s
}

// whole wants what, why and next, once each and in this order.
func (r result) whole(t *testing.T, code int) {
	t.Helper()
	what, why, next := -1, -1, -1
	for i, line := range strings.Split(r.stderr, "\n") {
		for prefix, at := range map[string]*int{"countersign: ": &what, "  why:  ": &why, "  next: ": &next} {
			if text, ok := strings.CutPrefix(line, prefix); ok && strings.TrimSpace(text) != "" {
				if *at >= 0 {
					t.Errorf("%q says %q twice:\n%s", r.args, prefix, r.stderr)
				}
				*at = i
			}
		}
	}
	if strings.Contains(r.stderr, noWords) || r.code != code || what < 0 || why < what || next < why {
		t.Errorf("%q: exit code %d instead of %d, or no what, why and next:\n%s", r.args, r.code, code, r.stderr)
	}
}

// Every failure that the source makes has its three parts, and commands make no other errors.
func TestFailuresAreWhole(t *testing.T) {
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	// Their errors are the Why of their callers.
	parts := []string{"parseCertificates", "readSmall", "fail", "run"}
	found := 0
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			bare := !slices.Contains(parts, f.Name.Name)
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if name, ok := n.Type.(*ast.Ident); ok && name.Name == "failure" {
						found++
						wholeLiteral(t, set, n)
					}
				case *ast.AssignStmt:
					emptied(t, set, n)
				case *ast.CallExpr:
					if calls(n, "badAnswer") {
						return false
					}
					if bare && (calls(n, "errors.New") || calls(n, "fmt.Errorf")) {
						t.Errorf("%s: an error that is no failure: what should one do next?", set.Position(n.Pos()))
					}
				}
				return true
			})
		}
	}
	if found < 50 {
		t.Errorf("only %d failures are in the source: is this test blind?", found)
	}
}

func wholeLiteral(t *testing.T, set *token.FileSet, n *ast.CompositeLit) {
	t.Helper()
	given := map[string]bool{}
	for _, element := range n.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			given[pair.Key.(*ast.Ident).Name] = !isEmpty(pair.Value)
		}
	}
	for _, name := range []string{"Exit", "What", "Why", "Next"} {
		if !given[name] {
			t.Errorf("%s: a failure without %s", set.Position(n.Pos()), name)
		}
	}
}

func emptied(t *testing.T, set *token.FileSet, n *ast.AssignStmt) {
	t.Helper()
	for i, left := range n.Lhs {
		field, ok := left.(*ast.SelectorExpr)
		if ok && slices.Contains([]string{"What", "Why", "Next"}, field.Sel.Name) && i < len(n.Rhs) && isEmpty(n.Rhs[i]) {
			t.Errorf("%s: %s is emptied", set.Position(n.Pos()), field.Sel.Name)
		}
	}
}

func isEmpty(e ast.Expr) bool {
	literal, ok := e.(*ast.BasicLit)
	return ok && literal.Value == `""`
}

func calls(n *ast.CallExpr, name string) bool {
	switch f := n.Fun.(type) {
	case *ast.Ident:
		return f.Name == name
	case *ast.SelectorExpr:
		of, ok := f.X.(*ast.Ident)
		return ok && of.Name+"."+f.Sel.Name == name
	}
	return false
}

// Every code has its three parts, whatever the daemon says besides, from each kind of route and from the inside; and so
// has an error that nobody thought of.
func TestEveryCodeIsExplained(t *testing.T) {
	check := func(name string, err error) {
		t.Helper()
		if f := explain(err); f.Exit == 0 || f.What == "" || f.Why == "" || f.Next == "" || f.What == f.Why {
			t.Errorf("%s: %+v", name, f)
		}
	}
	for _, info := range countersign.Codes() {
		code := string(info.Code)
		check(code+" alone", &client.APIError{Status: 400, Problem: wire.Error{Code: info.Code}})
		check(code, &client.APIError{Status: 400, Problem: wire.Error{Code: info.Code, Title: info.Title, Detail: "detail", Hint: "hint"}})
		check(code+" repeated", &client.APIError{Status: 400, Problem: wire.Error{Code: info.Code, Title: info.Title, Detail: info.Title}})
		check(code+" inside", countersign.Errorf(info.Code, "message"))
		if info.OAuth != "" {
			check(code+" OAuth", &client.OAuthError{Status: 400, Body: wire.OAuthError{Error: info.OAuth, Code: info.Code}})
		}
	}
	check("a code of a later version", &client.APIError{Status: 400, Problem: wire.Error{Code: "CS9999"}})
	check("no answer of ours", &client.APIError{Status: 502})
	check("OAuth of another", &client.OAuthError{Status: 400, Body: wire.OAuthError{Error: "invalid_grant"}})
	check("no words", errors.New("x"))
}

// A command that can't print says so, and does not end with 0.
func TestFullOutput(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"--help"}, {"--version"}, {"help", "policy"}, {"policy"}, {"completion", "bash"}, {"cert", "inspect", "../../storage/policy/testdata/root.pem"}} {
		var stderr bytes.Buffer
		code := run(t.Context(), args, strings.NewReader(""), full, &stderr)
		result{args: args, code: code, stderr: stderr.String()}.whole(t, exitLocal)
		if !strings.Contains(stderr.String(), "can't write to standard output") {
			t.Errorf("%q: %s", args, stderr.String())
		}
	}
}
