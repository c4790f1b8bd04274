package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// source is where the services' sources are: this directory.
func source(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// buildCountersign builds what users get.
func buildCountersign(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "countersign")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, "../../cmd/countersign")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestChain plays `make demo-chain` to its end: nothing of it may differ from what is expected, the documents show what it prints, the
// agent writes the file of examples/spring, and nothing is left behind.
func TestChain(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out bytes.Buffer
	var generated []byte
	err := Run(t.Context(), Options{
		Countersign: buildCountersign(t), Source: source(t), Out: &out,
		Look: func(dir string) (err error) {
			generated, err = os.ReadFile(filepath.Join(dir, orders, "application-countersign.yaml"))
			generated = bytes.ReplaceAll(generated, []byte(filepath.Join(dir, orders)), []byte("/var/lib/orders/identity"))
			return err
		},
	})
	t.Logf("\n%s", out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range []string{"../../README.md", "../../docs/chain.md"} {
		if !shows(t, document).Match(out.Bytes()) {
			t.Errorf("%s shows something else than what is printed", document)
		}
	}
	example, err := os.ReadFile("../spring/application-countersign.yaml")
	if err != nil {
		t.Fatal(err)
	}
	generated = regexp.MustCompile(`https://localhost:\d+`).ReplaceAll(generated, []byte("https://countersign.shop.internal:8443"))
	if !bytes.Equal(example, generated) {
		t.Errorf("examples/spring/application-countersign.yaml is not what the agent writes:\n%s", generated)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if found := processes(t, tmp); len(found) > 0 {
		t.Errorf("processes left behind: %q", found)
	}
}

// shows is the pattern of what a document says that `make demo-chain` prints; … stands for anything within a line.
func shows(t *testing.T, document string) *regexp.Regexp {
	t.Helper()
	body, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(body), "```console\n$ make demo-chain\n")
	text, _, closed := strings.Cut(text, "```\n")
	if !ok || !closed {
		t.Fatalf("%s does not show `make demo-chain`", document)
	}
	pattern := strings.ReplaceAll(regexp.QuoteMeta(text), "…\n", ".*\n")
	pattern = strings.ReplaceAll(pattern, "\n.*\n", "\n(?:.*\n)*?")
	return regexp.MustCompile(`(?m)^` + strings.ReplaceAll(pattern, "…", ".*"))
}

// processes are the command lines of this machine's processes that hold text.
func processes(t *testing.T, text string) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no processes are seen: %v", err)
	}
	var found []string
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err == nil && bytes.Contains(line, []byte(text)) {
			found = append(found, string(line))
		}
	}
	return found
}

// Each block of code of docs/chain.md stands in one of the sources.
func TestDocument(t *testing.T) {
	flat := func(text string) string {
		var b strings.Builder
		for line := range strings.SplitSeq(text, "\n") {
			b.WriteString(strings.TrimSpace(line) + "\n")
		}
		return b.String()
	}
	var sources strings.Builder
	for _, name := range []string{"policy.yaml", "inventory/main.go", "warehouse/warehouse.mjs"} {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources.WriteString("\n" + flat(string(body)))
	}
	document, err := os.ReadFile("../../docs/chain.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$").FindAllStringSubmatch(string(document), -1)
	for _, block := range found {
		if block[1] == "console" && strings.HasPrefix(block[2], "$ make demo-chain\n") { // TestChain
			continue
		}
		if !strings.Contains(sources.String(), "\n"+flat(strings.TrimSuffix(block[2], "\n"))) {
			t.Errorf("this block of docs/chain.md stands in no source:\n%s", block[2])
		}
	}
	if len(found) < 5 || strings.Count(string(document), "```") != 2*len(found) {
		t.Errorf("docs/chain.md has %d blocks, and other fences", len(found))
	}
}
