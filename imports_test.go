package countersign_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/countersign/countersign"

// walls says which packages of ours each package may import: the table of docs/ARCHITECTURE.md. "*" is everything.
// Tests are free: they put real parts together.
func walls() map[string][]string {
	return map[string][]string{
		".":                              {},
		"storage":                        {},
		"storage/bolt":                   {"storage"},
		"storage/storetest":              {"storage"},
		"storage/audit":                  {".", "storage"},
		"storage/policy":                 {".", "storage", "storage/audit", "storage/policy/condition", "sts/jwt"},
		"storage/policy/export":          {"."},
		"storage/keyring":                {".", "storage", "storage/audit"},
		"ca":                             {".", "storage", "storage/audit", "storage/keyring", "sts/jwt"},
		"ca/identity":                    {"."},
		"ca/agent":                       {".", "ca/agent/local", "ca/identity", "ca/mtls"},
		"ca/mtls":                        {".", "api/wire", "api/client", "ca/identity", "sts/verify"},
		"ca/agent/local":                 {".", "api/client", "api/wire", "ca/identity", "ca/mtls"},
		"sts/jwt":                        {"."},
		"sts":                            {".", "storage", "storage/audit", "storage/keyring", "sts/jwt"},
		"sts/review":                     {".", "sts", "storage/audit"},
		"sts/verify":                     {".", "sts/jwt"},
		"sts/verify/echoverify":          {".", "sts/verify"},
		"sts/verify/grpcverify":          {".", "sts/verify"},
		"sts/relay":                      {".", "api/client", "ca/mtls", "sts/jwt", "sts/verify", "sts/relay/conf", "sts/relay/filter", "sts/relay/limit", "sts/relay/observe"},
		"sts/relay/conf":                 {"."},
		"sts/relay/observe":              {"."},
		"sts/relay/limit":                {".", "sts/relay/observe"},
		"sts/relay/filter":               {".", "sts/relay/observe"},
		"api":                            {".", "api/pace", "api/wire", "ca", "sts", "sts/review", "storage", "storage/audit", "storage/keyring", "storage/policy"},
		"api/pace":                       {"."},
		"api/wire":                       {"."},
		"api/client":                     {".", "api/wire", "ca/identity", "sts/jwt"},
		"cmd/countersign":                {"*"},
		"cmd/countersign/daemon":         {"*"},
		"cmd/countersign/daemon/archive": {}, // small, so that it is fuzzed and not all the daemon
		"cmd/countersign/demo":           {"*"},
		"cmd/countersign/bench":          {"*"},
		"cmd/countersign/local":          {"*"},

		"examples/spring":          {},
		"examples/chain":           {".", "ca/identity", "cmd/countersign/local"}, // all else it does as its reader would: by the command line
		"examples/chain/inventory": {"ca/mtls", "sts/verify"},                     // the SDK is enough

		"storage/policy/condition":    {"."},
		"cmd/countersign/conformance": {}, // knows nothing of the server that it tests
	}
}

// onlyIn names foreign packages that live behind one wall: a prefix of the import path, and the packages that may.
func onlyIn() map[string][]string {
	return map[string][]string{
		"github.com/getkin/kin-openapi":          {"sts/relay/filter"},
		"github.com/santhosh-tekuri/jsonschema":  {"sts/relay/filter"},
		"github.com/labstack/echo/v4":            {"api", "sts/verify/echoverify"},
		"google.golang.org/grpc":                 {"sts/verify/grpcverify", "ca/agent/local"},
		"github.com/spiffe/go-spiffe/v2":         {"ca/agent/local"},
		"github.com/envoyproxy/go-control-plane": {"ca/agent/local"},
		"github.com/spf13/viper":                 {"cmd/countersign/daemon"},
		"github.com/spf13/cobra":                 {"cmd/countersign", "cmd/countersign/demo"},
		"go.etcd.io/bbolt":                       {"storage/bolt"},
		"cel.dev/cel-go":                         {"storage/policy/condition"},
		"go.step.sm/crypto/kms":                  {"storage/keyring"},
		"golang.org/x/crypto/ocsp":               {"ca"},
	}
}

// imports parses every Go file of the module in process. `go list` would be cached, and then passes a forbidden import.
func imports(t *testing.T) map[string]map[string]string {
	t.Helper()
	found := map[string]map[string]string{} // package: import: file
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (path == "scripts" || entry.Name() == "testdata" || strings.HasPrefix(entry.Name(), ".") && path != "."):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		if found[dir] == nil {
			found[dir] = map[string]string{}
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			found[dir][name] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestImports(t *testing.T) {
	table := walls()
	for dir, set := range imports(t) {
		allowed, ok := table[dir]
		if !ok {
			t.Errorf("the package %s stands in no row of walls(): add it, and to docs/ARCHITECTURE.md", dir)
			continue
		}
		for name, file := range set {
			checkImport(t, dir, name, file, allowed)
		}
	}
}

func checkImport(t *testing.T, dir, name, file string, allowed []string) {
	t.Helper()
	if name == module || strings.HasPrefix(name, module+"/") {
		ours := strings.TrimPrefix(strings.TrimPrefix(name, module), "/")
		if ours == "" {
			ours = "."
		}
		if !slices.Contains(allowed, ours) && !slices.Contains(allowed, "*") {
			t.Errorf("%s imports %s: %s may import only %v of ours", file, name, dir, allowed)
		}
		return
	}
	for prefix, may := range onlyIn() {
		if (name == prefix || strings.HasPrefix(name, prefix+"/")) && !slices.Contains(may, dir) {
			t.Errorf("%s imports %s, which lives in %v only", file, name, may)
		}
	}
}

// Who imports sts/verify pays for our three packages, go-jose, which itself needs the standard library only, and x/crypto's reader
// of ASN.1: for no framework, no store, and no language of conditions.
func TestVerifyIsLight(t *testing.T) {
	all := imports(t)
	seen := map[string]bool{}
	var visit func(dir string)
	visit = func(dir string) {
		if seen[dir] {
			return
		}
		seen[dir] = true
		for name, file := range all[dir] {
			first, _, _ := strings.Cut(name, "/")
			switch {
			case name == module:
				visit(".")
			case strings.HasPrefix(name, module+"/"):
				visit(strings.TrimPrefix(name, module+"/"))
			case !strings.Contains(first, ".") || strings.HasPrefix(name, "github.com/go-jose/go-jose/v4"),
				strings.HasPrefix(name, "golang.org/x/crypto/cryptobyte"):
			default:
				t.Errorf("%s imports %s, and users of sts/verify pay for it", file, name)
			}
		}
	}
	visit("sts/verify")
	if want := map[string]bool{"sts/verify": true, "sts/jwt": true, ".": true}; !maps.Equal(seen, want) {
		t.Errorf("sts/verify brings %v, want %v", seen, want)
	}
}

func TestNoInit(t *testing.T) {
	for dir, files := range goFiles(t) {
		for _, path := range files {
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, decl := range file.Decls {
				if name := functionName(decl); name == "init" {
					t.Errorf("%s has an init function: state is handed to %s, not kept in it", path, dir)
				}
			}
		}
	}
}
