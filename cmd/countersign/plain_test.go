package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// plainBinary builds what users get: static, pure Go, without -race.
func plainBinary(t *testing.T) string {
	t.Helper()
	path, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildPlain = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "countersign-plain-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "countersign")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// CEL, which conditions are written in (issue 4), brings 6 MiB of protocol buffers and its parser along; the agent's local API
// (issue 5) brings 5 MiB of gRPC and of Envoy's and SPIFFE's messages.
// The relay brings 2 MiB more with OpenAPI: 35.6 MiB in all.
const maxBinary, maxIdle = 38 << 20, 20 << 20

func TestPlainBinary(t *testing.T) {
	path := plainBinary(t)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the binary has %.1f MiB", float64(info.Size())/(1<<20))
	if info.Size() >= maxBinary {
		t.Errorf("the binary has %d bytes; the limit is %d", info.Size(), maxBinary)
	}
	file, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, program := range file.Progs {
		if program.Type == elf.PT_INTERP {
			t.Error("the binary is not static")
		}
	}
}

// A daemon that idles takes little of what others can't use.
func TestIdleMemory(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	time.Sleep(2 * time.Second) // not a measurement of time: what start-up needed is given back
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", i.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no RssAnon in %s", status)
	}
	kib, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("RssAnon %.1f MiB", float64(kib)/1024)
	if kib<<10 >= maxIdle {
		t.Errorf("RssAnon is %d kB", kib)
	}
}

// The demo is the main job: it plays to its end, says what a newcomer needs, and leaves nothing behind.
func TestDemo(t *testing.T) {
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), plainBinary(t), "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.Bytes(), stderr.Bytes())
	}
	for _, want := range []string{
		"1. An authority", "via orders <- gateway", "through the chain, 0 failed", "CS3021", "NO  call", "signed checkpoints", "All as expected, in ",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("the demo does not say %q:\n%s", want, stdout.Bytes())
		}
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if found := processes(t, tmp); len(found) > 0 {
		t.Errorf("processes left behind: %q", found)
	}
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
