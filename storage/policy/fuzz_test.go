package policy

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

func seeds(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		doc, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Add([]byte("trust_domain: shop.internal\nissuers: [{name: i, use: users, issuer: https://i.example, ca_file: 'it''s.pem'}]\n"))
	f.Add([]byte("issuers:\n- ca_file: \"a\\\"b\"\n- {ca_file: c.pem} # x\n- ca_file: |\n    d\n"))
	f.Add([]byte("services:\n- {name: a, client_keys: {jwks_file: a.json}}\nissuers: [{name: i, jwks_file: \"i.json\", ca_file: i.pem}]\n"))
	f.Add([]byte("? a\n: b\n--- !x\n...\n"))
}

// Parse never panics, gives either a policy or faults, and what it gives hangs together.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, doc []byte) {
		p, faults := Parse(doc, testEnv())
		if (p == nil) == (len(faults) == 0) {
			t.Fatalf("%v and %v", p, faults)
		}
		again, faultsAgain := Parse(doc, testEnv())
		if !slices.Equal(faults, faultsAgain) || (again == nil) != (p == nil) {
			t.Fatal("not deterministic")
		}
		for _, fault := range faults {
			if fault.Line < 1 || fault.Column < 1 || fault.Msg == "" || fault.Hint == "" || fault.Line > 1+bytes.Count(doc, []byte("\n")) {
				t.Fatalf("%+v", fault)
			}
		}
		if p != nil {
			wellFormed(t, p)
		}
	})
}

func wellFormed(t *testing.T, p *countersign.Policy) {
	t.Helper()
	if p.TrustDomain != testEnv().TrustDomain {
		t.Fatal("another trust domain")
	}
	if p.MaxHops < 1 || p.MaxHops > 16 {
		t.Fatal(p.MaxHops)
	}
	issuers, workloads := make(map[string]bool), make(map[string]bool)
	proofs := make(map[countersign.Enrol]bool)
	for _, i := range p.Issuers {
		if i.JWKS != "" {
			wellFormedKeys(t, i.JWKS)
		}
		if i.Use == countersign.UseWorkloads {
			workloads[i.Name] = true
			continue
		}
		if i.Use != countersign.UseUsers || issuers[i.Name] || countersign.CheckName(i.Name) != nil || i.URL == testEnv().Issuer || len(i.Algorithms) == 0 || slices.ContainsFunc(i.Carry, countersign.ReservedClaim) {
			t.Fatalf("%+v", i)
		}
		issuers[i.Name] = true
	}
	for _, s := range p.Services {
		if found, ok := p.ServiceByID(s.ID); !ok || found.Name != s.Name || len(s.KeyTypes) == 0 {
			t.Fatalf("%+v", s)
		}
		if s.ClientKeys != "" {
			wellFormedKeys(t, s.ClientKeys)
		}
		for _, e := range s.Enrol {
			if !workloads[e.Issuer] || e.Subject == "" || proofs[e] {
				t.Fatalf("%+v", e)
			}
			proofs[e] = true
		}
		for _, a := range s.Accepts {
			if !issuers[a.Issuer] || len(a.Audiences) == 0 {
				t.Fatalf("%+v", a)
			}
		}
	}
	for i := range p.Calls {
		c := &p.Calls[i]
		_, from := p.Service(c.From)
		_, to := p.Service(c.To)
		if found, ok := p.Call(c.From, c.To); !from || !to || !ok || found != c || c.From == c.To && !c.Reenter {
			t.Fatalf("%+v", c)
		}
		for _, s := range c.Scopes {
			if s.Name == "" || s.AnyUser != (len(s.Needs) == 0) {
				t.Fatalf("%+v", s)
			}
		}
		for _, m := range c.Machine {
			if _, ok := c.Scope(m); !ok {
				t.Fatalf("%+v", c)
			}
		}
	}
}

func wellFormedKeys(t *testing.T, set string) {
	t.Helper()
	if parsed, err := jwt.ParseSet([]byte(set)); err != nil || parsed.Len() == 0 || parsed.Skipped() > 0 {
		t.Fatalf("%v in %s", err, set)
	}
}

// Inline keeps every line where it is, and adds nothing that Parse would not have told of before, but the file.
func FuzzInline(f *testing.F) {
	seeds(f)
	root, err := os.ReadFile("testdata/root.pem") // fixed: the fuzzer needs the same coverage each time
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		out, files, err := Inline(doc, func(string) ([]byte, error) { return root, nil })
		var broken *FilesError
		if err != nil && !errors.As(err, &broken) {
			t.Fatal(err)
		}
		if bytes.Count(out, []byte("\n")) != bytes.Count(doc, []byte("\n")) {
			t.Fatalf("lines moved: %q", out)
		}
		if len(files) == 0 && !bytes.Equal(out, doc) {
			t.Fatalf("changed without a file: %q", out)
		}
		again, more, err := Inline(out, func(string) ([]byte, error) { return root, nil })
		if (err == nil) != (broken == nil) || len(more) > 0 || !bytes.Equal(again, out) {
			t.Fatalf("a second time: %v %v\n%q\n%q", more, err, out, again)
		}
		_, before := Parse(doc, testEnv())
		_, after := Parse(out, testEnv())
		if len(doc) < MaxDocument/100 && len(after) > len(before) {
			t.Fatalf("%v, was %v\n%q", after, before, out)
		}
	})
}
