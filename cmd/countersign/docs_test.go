package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/cmd/countersign/daemon"
)

// block is a fenced code block of a document.
type block struct {
	language string
	line     int
	text     string
}

func blocks(t *testing.T, path string) []block {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	var open *block
	for n, line := range strings.Split(string(body), "\n") {
		language, fence := strings.CutPrefix(line, "```")
		if trimmed := strings.TrimSpace(line); !fence && (strings.HasPrefix(trimmed, "```") || strings.HasPrefix(trimmed, "~~~")) {
			t.Errorf("%s:%d: a fence that this test does not see as one", path, n+1)
		}
		switch {
		case fence && open == nil:
			open = &block{language: language, line: n + 1}
		case fence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	return all
}

// transcript is one command of a console block with what it must print; … stands for anything within a line, and alone
// on a line for any lines.
type transcript struct {
	line          int
	command, want string
}

// session makes one bash script of a document's blocks: sh blocks as they are, and of console blocks the commands, with
// what they print in files.
func session(t *testing.T, all []block) (script string, transcripts []transcript) {
	t.Helper()
	var b strings.Builder
	b.WriteString("set -euo pipefail\nshopt -s expand_aliases\n")
	for _, block := range all {
		if strings.HasPrefix(block.text, "$ make demo-chain\n") {
			continue // TestChain of examples/chain runs that, and holds what it prints to the documents
		}
		switch block.language {
		case "sh":
			b.WriteString(block.text)
		case "console":
			for n, line := range strings.Split(strings.TrimSuffix(block.text, "\n"), "\n") {
				if command, ok := strings.CutPrefix(line, "$ "); ok {
					fmt.Fprintf(&b, "{ %s\n} > \"$OUT/%d\" 2>&1 || true\n", command, len(transcripts))
					transcripts = append(transcripts, transcript{line: block.line + 1 + n, command: command})
					continue
				}
				transcripts[len(transcripts)-1].want += line + "\n"
			}
		default:
			t.Errorf("line %d: a code block of language %q is executed by nothing", block.line, block.language)
		}
	}
	return b.String(), transcripts
}

func (tr transcript) pattern() *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`(?m)\A`)
	for line := range strings.SplitSeq(strings.TrimSuffix(tr.want, "\n"), "\n") {
		if line == "…" {
			b.WriteString(`(?:.*\n)*?`)
			continue
		}
		b.WriteString(strings.ReplaceAll(regexp.QuoteMeta(strings.TrimRight(line, " ")), "…", `.*`) + " *\n")
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}

// TestREADME types what the README says, in its order, in a directory of its own, as a newcomer would.
func TestREADME(t *testing.T) { runDocument(t, "README.md", "try", tokens{"user.jwt": nil}) }

// TestPolicyToolsDocument does the same with the page about the policy tools.
func TestPolicyToolsDocument(t *testing.T) {
	runDocument(t, "docs/policy-tools.md", "try", tokens{"user.jwt": nil})
}

// TestRelayDocument types docs/relay.md: an authority, three relays and two applications, all of them processes.
func TestRelayDocument(t *testing.T) { runDocument(t, "docs/relay.md", "try", tokens{"user.jwt": nil}) }

// TestClientsDocument does the same with docs/clients.md; there the provider is a cluster that makes tokens for workloads.
func TestClientsDocument(t *testing.T) {
	runDocument(t, "docs/clients.md", "try", tokens{"pod.jwt": {
		"(typ)=JWT", "sub=system:serviceaccount:shop:batch", "aud=https://localhost:8443", "scope=", "email=",
	}, "enrol.jwt": {
		"(typ)=JWT", "sub=system:serviceaccount:shop:batch", "aud=https://localhost:8443", "scope=", "email=", "jti=another",
	}})
}

// TestConformanceDocument does the same with docs/conformance.md.
func TestConformanceDocument(t *testing.T) {
	runDocument(t, "docs/conformance.md", "try", tokens{
		"user.jwt": nil, "foreign.jwt": {"aud=another"}, "expired.jwt": {"iat=1700000000", "exp=1700000600"},
	})
}

// TestAgentDocument does the same with docs/agent.md.
func TestAgentDocument(t *testing.T) { runDocument(t, "docs/agent.md", "try", tokens{}) }

// tokens are of the provider IDP: their files, each with the changes of its claims.
type tokens map[string][]string

// runDocument types a document's blocks. The tokens that it speaks of lie in dir.
func runDocument(t *testing.T, name, dir string, files tokens) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	script, transcripts := session(t, blocks(t, filepath.Join(root, name)))
	work, out := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(work, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plainBinary(t), filepath.Join(work, "bin", "countersign")); err != nil {
		t.Fatal(err)
	}
	issuer, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"8443", "8444", "9001", "9443", "9444", "9445", "9446", "9447", "9448", "9449"} { // others may use them on this machine
		address, err := freeLoopback()
		if err != nil {
			t.Fatal(err)
		}
		replacement := address[strings.LastIndexByte(address, ':'):]
		script = strings.ReplaceAll(script, ":"+port, replacement)
		for _, claims := range files {
			for i := range claims {
				claims[i] = strings.ReplaceAll(claims[i], ":"+port, replacement)
			}
		}
	}
	for file, claims := range files {
		token, err := issuer.token(claims...)
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(work, dir, file), []byte(token+"\n"))
	}
	// make builds into the source tree and would run this very test: here it is enough that the targets exist.
	script = regexp.MustCompile(`(?m)^make `).ReplaceAllString(script, "make -n -C "+root+" ")
	runSession(t, work, script, "IDP="+issuer.URL, "OUT="+out)
	compare(t, name, out, transcripts)
}

// compare holds what the commands of a document printed to what it says.
func compare(t *testing.T, document, out string, transcripts []transcript) {
	t.Helper()
	for n, tr := range transcripts {
		got, err := os.ReadFile(filepath.Join(out, fmt.Sprint(n)))
		if err != nil {
			t.Fatal(err)
		}
		if !tr.pattern().Match(got) {
			t.Errorf("%s:%d: `%s` printed\n%s", document, tr.line, tr.command, got)
		}
	}
}

// TestOperations types what docs/operations.md says, on the machine of a daemon that is at work: with a token that was
// stolen in stolen.jwt.
func TestOperations(t *testing.T) {
	script, transcripts := session(t, blocks(t, "../../docs/operations.md"))
	i := newInstance(t, plainBinary(t))
	i.apply(t, `trust_domain: shop.internal
services: [{name: reports}, {name: orders}]
calls: [{from: reports, to: orders, scopes: [x], machine: [x]}]
`)
	reports := i.join(t, "reports")
	work, out := t.TempDir(), t.TempDir()
	stolen := i.run(t, "token", "request", "--identity", reports, "--audience", "orders")
	mustWrite(t, filepath.Join(work, "stolen.jwt"), []byte(stolen))
	if err := os.Symlink(plainBinary(t), filepath.Join(work, "countersign")); err != nil {
		t.Fatal(err)
	}
	runSession(t, work, script, "OUT="+out, "COUNTERSIGN_DIR="+i.dir, "PATH="+work+":"+os.Getenv("PATH"))
	compare(t, "docs/operations.md", out, transcripts)
}

// TestAuthorityDocument types what docs/authority.md says, on the machine of a daemon that was just made.
func TestAuthorityDocument(t *testing.T) {
	script, transcripts := session(t, blocks(t, "../../docs/authority.md"))
	pki, err := freeLoopback()
	if err != nil {
		t.Fatal(err)
	}
	i := newInstance(t, plainBinary(t), "COUNTERSIGN_PKI_LISTEN="+pki, "COUNTERSIGN_PKI_URL=http://"+pki)
	i.apply(t, "trust_domain: shop.internal\nservices: [{name: reports}]\n")
	work, out := t.TempDir(), t.TempDir()
	if err := os.Symlink(i.join(t, "reports"), filepath.Join(work, "reports")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plainBinary(t), filepath.Join(work, "countersign")); err != nil {
		t.Fatal(err)
	}
	runSession(t, work, script, "OUT="+out, "COUNTERSIGN_DIR="+i.dir, "PATH="+work+":"+os.Getenv("PATH"))
	compare(t, "docs/authority.md", out, transcripts)
}

// TestBackupDocument types what docs/backup.md says, on the machine of a daemon at work.
func TestBackupDocument(t *testing.T) {
	script, transcripts := session(t, blocks(t, "../../docs/backup.md"))
	i := newInstance(t, plainBinary(t))
	i.apply(t, "trust_domain: shop.internal\nservices: [{name: orders}]\n")
	orders := i.join(t, "orders")
	work, out := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Symlink(plainBinary(t), filepath.Join(work, "countersign")), os.Symlink(orders, filepath.Join(work, "orders"))); err != nil {
		t.Fatal(err)
	}
	runSession(t, work, script, "OUT="+out, "COUNTERSIGN_DIR="+i.dir, "PATH="+work+":"+os.Getenv("PATH"))
	compare(t, "docs/backup.md", out, transcripts)
}

// runSession runs a script in a process group of its own, and ends all that it started.
func runSession(t *testing.T, dir, script string, env ...string) {
	t.Helper()
	cmd := exec.Command("bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log // a file: the background daemon would hold a pipe open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	if err != nil {
		body, _ := os.ReadFile(log.Name())
		t.Fatalf("%v\n%s", err, body)
	}
}

// Every other document has no code block that nothing executes, and names every key of the configuration.
func TestDocuments(t *testing.T) {
	paths, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	adrs, err := filepath.Glob("../../docs/adr/*.md")
	if err != nil {
		t.Fatal(err)
	}
	typed := map[string]string{ // documents whose blocks have a test of their own
		"agent.md":        "TestAgentDocument",
		"authority.md":    "TestAuthorityDocument",
		"backup.md":       "TestBackupDocument",
		"chain.md":        "TestChain and TestDocument of examples/chain",
		"clients.md":      "TestClientsDocument",
		"conformance.md":  "TestConformanceDocument",
		"hsm.md":          "TestHSMDocument",
		"mtls.md":         "TestSDKDocuments",
		"operations.md":   "TestOperations",
		"policy-tools.md": "TestPolicyToolsDocument",
		"policy.md":       "TestPolicyDocument",
		"relay.md":        "TestRelayDocument",
		"spring.md":       "TestDocument of examples/spring",
		"verify.md":       "TestSDKDocuments",
		"workload-api.md": "TestDocument of ca/agent/local",
	}
	for _, path := range slices.Concat(paths, adrs) {
		if test, ok := typed[filepath.Base(path)]; ok {
			t.Logf("%s: %s", path, test)
			continue
		}
		if found := blocks(t, path); len(found) > 0 {
			t.Errorf("%s:%d: this code block is executed by nothing", path, found[0].line)
		}
	}
	operations, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range daemon.Keys() {
		if !strings.Contains(string(operations), "`"+key+"`") {
			t.Errorf("docs/operations.md does not explain %s", key)
		}
	}
}

// TestSDKDocuments: each block of these documents is a part of an example of its package, which compiles and prints what it says.
func TestSDKDocuments(t *testing.T) {
	for document, path := range map[string]string{
		"docs/verify.md": "sts/verify/example_http_test.go",
		"docs/mtls.md":   "ca/mtls/example_test.go",
	} {
		inExamples(t, document, path)
	}
}

func inExamples(t *testing.T, document, path string) {
	t.Helper()
	flat := func(text string) string {
		var b strings.Builder
		for line := range strings.SplitSeq(text, "\n") {
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
		return b.String()
	}
	examples, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	code := flat(string(examples))
	found := blocks(t, "../../"+document)
	for _, block := range found {
		if block.language != "go" || !strings.Contains(code, "\n"+flat(strings.TrimSuffix(block.text, "\n"))) {
			t.Errorf("%s:%d: this block stands in no example", document, block.line)
		}
	}
	if len(found) == 0 {
		t.Errorf("%s has no code blocks any more", document)
	}
}
