package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/storage/policy/condition"
)

// The keys that docs/policy.md takes for those of a cluster and of a service.
const (
	docK8sKeys = `{"keys":[{"kty":"EC","crv":"P-256","kid":"k8s-1","alg":"ES256","use":"sig","x":"0c5pPtXDaQF-gPxpOmqI3PzU59ckrB7W6R50QkvDxrw","y":"M4TUnhdB585IzoNnrybU96vGLTnDt_kX15G9CtlAN4Y"}]}`
	docOwnKeys = `{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"reports-1","alg":"EdDSA","x":"qar07az9dEMkTGHuLR1qQBuJ9RDAV-3vkjFNRZjhr90"}]}`
)

// TestPolicyDocument does what docs/policy.md says: its documents are applied by the binary, its parts in the place of the same
// parts of the whole one, its expressions are judged on its token.
func TestPolicyDocument(t *testing.T) {
	const path = "../../docs/policy.md"
	work, out := t.TempDir(), t.TempDir()
	ca, err := os.ReadFile("../../storage/policy/testdata/root.pem")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"k8s.json": docK8sKeys, "reports.json": docOwnKeys, "idp-ca.pem": string(ca)}
	var whole string
	var claims json.RawMessage
	var commands []block
	judged := 0
	for _, b := range blocks(t, path) {
		name, named := strings.CutPrefix(strings.SplitN(b.text, "\n", 2)[0], "# ")
		switch {
		case b.language == "yaml" && named:
			files[name] = b.text
			if name == "policy.yaml" {
				whole = b.text
			}
		case b.language == "yaml":
			if faults := faultsOf(t, work, inPlace(whole, b.text), files); len(faults) > 0 {
				t.Errorf("%s:%d: %v", path, b.line, faults)
			}
		case b.language == "json":
			claims = json.RawMessage(b.text)
		case b.language == "cel":
			judged += judgeExpressions(t, b, claims)
		default:
			commands = append(commands, b)
		}
	}
	if judged < 10 || whole == "" {
		t.Errorf("%d expressions were judged", judged)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(work, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i := newInstance(t, plainBinary(t))
	script, transcripts := session(t, commands)
	script = "alias countersign=" + strconv.Quote(i.bin) + "\n" + strings.Replace(script, "\nalias", "\n# alias", 1)
	runSession(t, work, "shopt -s expand_aliases\n"+script, "COUNTERSIGN_DIR="+i.dir, "OUT="+out)
	for n, tr := range transcripts {
		got, err := os.ReadFile(filepath.Join(out, strconv.Itoa(n)))
		if err != nil {
			t.Fatal(err)
		}
		if !tr.pattern().Match(got) {
			t.Errorf("docs/policy.md:%d: `%s` printed\n%s", tr.line, tr.command, got)
		}
	}
}

// inPlace is a document with some of its top-level parts replaced.
func inPlace(whole, part string) string {
	sections := func(doc string) (order []string, text map[string]string) {
		text = make(map[string]string)
		key := ""
		for line := range strings.Lines(doc) {
			if name, _, ok := strings.Cut(line, ":"); ok && !strings.ContainsAny(line[:1], " #-\n") {
				key = name
				order = append(order, key)
			}
			text[key] += line
		}
		return order, text
	}
	order, text := sections(whole)
	_, changed := sections(part)
	var doc strings.Builder
	for _, key := range order {
		section, ok := changed[key]
		if !ok {
			section = text[key]
		}
		// What only the part of the document knows stays away: the services and calls of the whole one around it.
		if ok && key == "services" {
			section += "  - {name: orders}\n  - {name: inventory}\n  - {name: reports}\n"
		}
		doc.WriteString(section)
	}
	return doc.String()
}

func faultsOf(t *testing.T, dir, doc string, files map[string]string) []policy.Fault {
	t.Helper()
	inlined, _, err := policy.Inline([]byte(doc), func(name string) ([]byte, error) { return []byte(files[name]), nil })
	if err != nil {
		t.Fatalf("%s: %v\n%s", dir, err, doc)
	}
	_, faults := policy.Parse(inlined, policy.Env{TrustDomain: "shop.internal", Issuer: "https://cs.example"})
	return faults
}

func judgeExpressions(t *testing.T, b block, claims json.RawMessage) (judged int) {
	t.Helper()
	reader := json.NewDecoder(strings.NewReader(string(claims)))
	reader.UseNumber()
	var subject map[string]any
	if err := reader.Decode(&subject); err != nil {
		t.Fatal(err)
	}
	for name, value := range subject {
		if n, ok := value.(json.Number); ok {
			whole, err := n.Int64()
			if err != nil {
				t.Fatal(err)
			}
			subject[name] = whole
		}
	}
	compiler, err := condition.New()
	if err != nil {
		t.Fatal(err)
	}
	in := countersign.ConditionInput{
		Subject: subject, Caller: countersign.Service{Name: "orders"}, Audience: "inventory", Scopes: []string{"stock:read"},
		Now: time.Date(2026, 11, 24, 12, 30, 0, 0, time.UTC),
	}
	for n, line := range strings.Split(strings.TrimSuffix(b.text, "\n"), "\n") {
		compiled, problems := compiler.Compile(line)
		if compiled == nil {
			t.Errorf("docs/policy.md:%d: %s: %+v", b.line+1+n, line, problems)
			continue
		}
		if holds, err := compiled.Holds(in); !holds || err != nil {
			t.Errorf("docs/policy.md:%d: %s: %v, %v", b.line+1+n, line, holds, err)
		}
		judged++
	}
	return judged
}
