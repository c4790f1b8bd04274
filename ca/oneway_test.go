package ca

import (
	"crypto"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// countedSigner counts how often a key is used.
type countedSigner struct {
	crypto.Signer
	used int
}

func (s *countedSigner) Sign(random io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	s.used++
	return s.Signer.Sign(random, digest, o)
}

// TestZeroValueIsNotSigned: what no check made is refused before the key is used.
func TestZeroValueIsNotSigned(t *testing.T) {
	key := &countedSigner{Signer: newKey(t, "")}
	if _, err := sign(checkedTBS{}, key); err == nil || key.used != 0 {
		t.Errorf("%v; the key was used %d times", err, key.used)
	}
	if _, err := (checkedBytes{raw: []byte{1}}).sign(key); err == nil || key.used != 0 {
		t.Errorf("%v; the key was used %d times", err, key.used)
	}
}

// TestSignersGoToSignOnly reads the module: the authority's keys are had in this package alone, and what SignerByID gives
// goes nowhere but to sign, which takes checked bytes; and no checked value is made but by a check, also not empty.
func TestSignersGoToSignOnly(t *testing.T) {
	had := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		here := filepath.Dir(path) == filepath.Join("..", "ca")
		for _, found := range signersOf(file) {
			had++
			if !here || found.escapes {
				t.Errorf("%s: %s takes a key of the authority elsewhere than to sign", path, found.in)
			}
		}
		if here && !strings.HasPrefix(filepath.Base(path), "tbs") {
			for _, made := range checkedMadeIn(file) {
				t.Errorf("%s makes a %s without a check", path, made)
			}
		}
		return nil
	})
	if err != nil || had == 0 {
		t.Fatal(had, err)
	}
	for name, source := range map[string]string{
		"another use":  `func f() { signer, err := k.SignerByID(x); use(signer) }`,
		"a method":     `func f() { signer, err := k.SignerByID(x); signer.Sign(r, d, h) }`,
		"not assigned": `func f() { use(k.SignerByID(x)) }`,
		"returned":     `func f() any { s, _ := k.SignerByID(x); return s }`,
		"a field":      `func f() { a.s, _ = k.SignerByID(x) }`,
		"as a value":   `func f() { get := k.SignerByID; use(get) }`,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if found := signersOf(file); len(found) == 0 || !found[0].escapes {
			t.Errorf("%s: not noticed", name)
		}
	}
	for _, source := range []string{"var c checkedTBS", "func f() { c := new(checkedList) }", "func f() { g(checkedBytes(c)) }", "func f() { var c struct { checkedTBS } }"} {
		file, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+source, 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(checkedMadeIn(file)) == 0 {
			t.Errorf("%s: not noticed", source)
		}
	}
}

type signerUse struct {
	in      string
	escapes bool
}

// signersOf finds each mention of SignerByID outside of declarations, and tells whether what it gives may go elsewhere
// than to sign: it is not assigned to a name, or the name is used otherwise.
func signersOf(file *ast.File) []signerUse {
	var found []signerUse
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || f.Body == nil {
			continue
		}
		fine, mentions, names := 0, 0, map[string]bool{}
		ast.Inspect(f.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if n.Sel.Name == "SignerByID" {
					mentions++
				}
			case *ast.AssignStmt:
				call, ok := n.Rhs[0].(*ast.CallExpr)
				if !ok {
					break
				}
				to, named := n.Lhs[0].(*ast.Ident)
				if from, ok := call.Fun.(*ast.SelectorExpr); ok && from.Sel.Name == "SignerByID" && named && n.Tok == token.DEFINE {
					fine++
					names[to.Name] = true
				}
			}
			return true
		})
		if mentions == 0 {
			continue
		}
		uses, signs := 0, 0
		ast.Inspect(f.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				if names[n.Name] {
					uses++
				}
			case *ast.CallExpr:
				name := ""
				switch fun := n.Fun.(type) {
				case *ast.Ident:
					name = fun.Name
				case *ast.SelectorExpr:
					name = fun.Sel.Name
				}
				if last := len(n.Args) - 1; name == "sign" && last >= 0 {
					if id, ok := n.Args[last].(*ast.Ident); ok && names[id.Name] {
						signs++
					}
				}
			}
			return true
		})
		found = append(found, signerUse{f.Name.Name, fine != mentions || uses != fine+signs})
	}
	return found
}

// checkedMadeIn finds variables, fields, new and conversions of the types that may be signed.
func checkedMadeIn(file *ast.File) []string {
	var made []string
	is := func(e ast.Expr) {
		if id, ok := e.(*ast.Ident); ok && strings.HasPrefix(id.Name, "checked") && len(id.Name) > len("checked") && id.Name != "checkedMadeIn" {
			made = append(made, id.Name)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			is(n.Type)
		case *ast.StructType:
			for _, f := range n.Fields.List {
				is(f.Type)
			}
		case *ast.CallExpr:
			is(n.Fun)
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "new" && len(n.Args) == 1 {
				is(n.Args[0])
			}
		}
		return true
	})
	return made
}
