package countersign_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/countersign/countersign"
)

// goFiles are the module's Go files that are no tests, by directory.
func goFiles(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for dir, set := range imports(t) {
		_ = set
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if name := entry.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
				found[dir] = append(found[dir], filepath.Join(dir, name))
			}
		}
	}
	return found
}

func functionName(decl ast.Decl) string {
	if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
		return f.Name.Name
	}
	return ""
}

// Every package has a doc comment that also says what the package never does (house.md).
func TestPackageComments(t *testing.T) {
	never := regexp.MustCompile(`\b([Nn]ever|[Nn]either|[Nn]o|not)\b`)
	for dir, files := range goFiles(t) {
		var doc string
		for _, path := range files {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			doc += file.Doc.Text()
		}
		if doc == "" {
			t.Errorf("the package %s has no comment", dir)
		} else if !never.MatchString(doc) {
			t.Errorf("the comment of package %s does not say what the package never does:\n%s", dir, doc)
		}
	}
}

// Files under 500 lines or so, functions under 60 or so: the hard limits are 600 and 80.
func TestSizes(t *testing.T) {
	for _, files := range goFiles(t) {
		for _, path := range files {
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if lines := set.File(file.Pos()).LineCount(); lines > 600 {
				t.Errorf("%s has %d lines: is it two concepts?", path, lines)
			}
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok {
					if lines := set.Position(f.End()).Line - set.Position(f.Pos()).Line + 1; lines > 80 && f.Name.Name != "Codes" {
						t.Errorf("%s: %s has %d lines", path, f.Name.Name, lines)
					}
				}
			}
		}
	}
}

// A code is in the table once, and every code that the source names is in the table.
func TestCodes(t *testing.T) {
	seen := map[countersign.Code]bool{}
	for _, info := range countersign.Codes() {
		if seen[info.Code] {
			t.Errorf("%s stands in the table twice", info.Code)
		}
		seen[info.Code] = true
		if info.Title == "" || info.Next == "" || !regexp.MustCompile(`^CS[0-9]{4}$`).MatchString(string(info.Code)) {
			t.Errorf("the row of %s is not whole", info.Code)
		}
	}
	source, err := os.ReadFile("codes.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range regexp.MustCompile(`Code = "(CS[0-9]{4})"`).FindAllSubmatch(source, -1) {
		if !seen[countersign.Code(code[1])] {
			t.Errorf("%s is no row of the table", code[1])
		}
	}
}

// No test may skip itself: a test that does not run proves nothing.
func TestNoSkips(t *testing.T) {
	skip := regexp.MustCompile(`\bt\.Skip|\bb\.Skip|InsecureSkipVerify:\s*true`)
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || path == "house_test.go" {
			return err
		}
		source, err := os.ReadFile(path)
		if found := skip.Find(source); found != nil && path != filepath.Join("api", "client", "pin.go") {
			t.Errorf("%s holds %q", path, found)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Every parser of what others write has a fuzz target with a corpus that is kept; scripts/fuzz.sh finds them by their
// name.
func TestFuzzTargets(t *testing.T) {
	for parser, target := range map[string]string{
		"policy":             "storage/policy FuzzParse",
		"configuration":      "cmd/countersign/daemon FuzzParse",
		"backup":             "cmd/countersign/daemon/archive FuzzArchive",
		"agent.yaml":         "ca/agent FuzzParse",
		"JWT":                "sts/jwt FuzzParse",
		"JWKS":               "sts/jwt FuzzParseSet",
		"form":               "api FuzzForm",
		"JSON body":          "api FuzzJSON",
		"token request":      "sts FuzzParseRequest",
		"CSR":                "ca FuzzCSR",
		"OCSP request":       "ca FuzzOCSP",
		"proof of renewal":   "ca FuzzProof",
		"join string":        "api/client FuzzParseJoin",
		"audit segment":      "storage/audit FuzzSegment",
		"identity directory": "ca/identity FuzzLoad",
		"callers.json":       "ca/mtls FuzzCallersFile",
		"ID":                 ". FuzzParseID",
		"KEK":                "storage/keyring FuzzParseKEK",
		"place of keys":      "storage/keyring FuzzParsePlace",
		"record":             "storage/bolt FuzzRecord",
		"database pages":     "storage/bolt FuzzPages",
		"path":               "sts/relay/filter FuzzPath",
		"relay":              "sts/relay FuzzParseConfig",
		"routes":             "sts/relay/filter FuzzRoutes",
		"OpenAPI document":   "sts/relay/filter FuzzDocument",
		"trace context":      "sts/relay/observe FuzzTrace",
		"rules of callers":   "ca/agent/local FuzzDecide",
		"exchange request":   "ca/agent/local FuzzExchangeRequest",
		"xDS subscription":   "ca/agent/local FuzzSubscription",
	} {
		dir, name, _ := strings.Cut(target, " ")
		files, err := filepath.Glob(filepath.Join(filepath.FromSlash(dir), "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, path := range files {
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found = found || regexp.MustCompile(`(?m)^func `+name+`\(f \*testing\.F\)`).Match(source)
		}
		if !found {
			t.Errorf("%s: there is no %s", parser, target)
		}
		if kept, err := os.ReadDir(filepath.Join(filepath.FromSlash(dir), "testdata", "fuzz", name)); err != nil || len(kept) == 0 {
			t.Errorf("%s: no corpus of %s is kept: %v", parser, target, err)
		}
	}
}
