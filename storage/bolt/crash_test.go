package bolt_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign/countersign/storage/bolt"
)

// acks reads "ack key revision" lines from r, at most n, and gives the key of each revision.
func acks(t *testing.T, r *bufio.Reader, n int, into map[string]string) {
	t.Helper()
	for range n {
		line, err := r.ReadString('\n')
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			return // a torn last line is no answer
		}
		var key, rev string
		if _, err := fmt.Sscanf(line, "ack %s %s", &key, &rev); err != nil {
			t.Fatalf("the child says %q", line)
		}
		if other, ok := into[rev]; ok {
			t.Fatalf("revision %s of %s is that of %s too", rev, key, other)
		}
		into[rev] = key
	}
}

// allThere opens the store and looks for each record.
func allThere(t *testing.T, path string, acked map[string]string) {
	t.Helper()
	s := open(t, bolt.Config{Path: path})
	for rev, key := range acked {
		got, err := s.Get(t.Context(), "things", key)
		if err != nil || string(got.Value) != valueOf(key) || fmt.Sprint(got.Rev) != rev {
			t.Fatalf("%s was acknowledged at %s: got %.20q at %d, %v", key, rev, got.Value, got.Rev, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestKillLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	acked := map[string]string{}
	for round := range 12 {
		cmd := child(t, "write", path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		acks(t, lines, round*17+1, acked)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		acks(t, lines, 1<<30, acked)
		_ = cmd.Wait()
		allThere(t, path, acked)
	}
	t.Logf("%d acknowledged", len(acked))
}

// made makes a store, so that the child's first fdatasync is that of a batch.
func made(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "store.db")
	if err := open(t, bolt.Config{Path: path}).Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAnswerFollowsSync reads the system calls of a child: each answer comes after all that was written is synced,
// which is twice: the pages, then the meta page that names them.
func TestAnswerFollowsSync(t *testing.T) {
	path, trace := made(t), filepath.Join(t.TempDir(), "trace")
	out, err := child(t, "write-one", path, "strace", "-f", "-qq", "-e", "trace=pwrite64,fdatasync,write", "-o", trace).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	log, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	answers, syncs, dirty := 0, 0, false
	for line := range strings.Lines(string(log)) {
		switch {
		case strings.Contains(line, "pwrite64("):
			dirty = true
		case strings.Contains(line, "fdatasync") && strings.HasSuffix(strings.TrimSpace(line), "= 0"):
			syncs, dirty = syncs+1, false
		case strings.Contains(line, `"ack `):
			answers++
			if dirty || syncs < 2 {
				t.Fatalf("answer %d after %d syncs, unsynced: %v:\n%s", answers, syncs, dirty, log)
			}
			syncs = 0
		}
	}
	if answers != 50 {
		t.Errorf("%d answers in the trace, want 50", answers)
	}
}

// inject makes each thread's n-th fdatasync fail. The first is that of the pages, the second that of the meta page.
func inject(n int) []string {
	return []string{"strace", "-f", "-qq", "-e", "trace=fdatasync", "-e", fmt.Sprintf("inject=fdatasync:error=EIO:when=%d", n), "-o", os.DevNull}
}

func TestFailedSyncIsFatal(t *testing.T) {
	for n := 1; n <= 4; n++ {
		path := made(t)
		out, err := child(t, "write-one", path, inject(n)...).Output()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitFatal || !bytes.Contains(out, []byte("fatal: storage/bolt: commit: ")) {
			t.Fatalf("sync %d: got %v, want exit %d:\n%s", n, err, exitFatal, out)
		}
		acked := map[string]string{}
		lines, _, _ := strings.Cut(string(out), "fatal:")
		acks(t, bufio.NewReader(strings.NewReader(lines)), 1<<30, acked)
		allThere(t, path, acked)
	}
}

func TestAfterFatal(t *testing.T) {
	for n := 1; n <= 2; n++ {
		out, err := child(t, "outlive", made(t), inject(n)...).Output()
		if want := "unknown: true apply closed: true get closed: true calls: 1\n"; err != nil || !strings.HasSuffix(string(out), want) {
			t.Errorf("sync %d: %v: got %q, want %q", n, err, out, want)
		}
	}
}

func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	out, err := child(t, "full", path).Output()
	var n int
	if _, scanErr := fmt.Sscanf(string(out), "records: %d", &n); err != nil || scanErr != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s := open(t, bolt.Config{Path: path})
	for i := range n {
		if _, err := s.Get(t.Context(), "things", fmt.Sprint("full-", i)); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
}

func TestHeldByAnotherProcess(t *testing.T) {
	path := made(t)
	cmd := child(t, "hold", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	_, err = bolt.Open(bolt.Config{Path: path, LockTimeout: 1})
	var locked *bolt.LockedError
	if !errors.As(err, &locked) || locked.PID != cmd.Process.Pid || locked.Path != path {
		t.Errorf("got %v, want held by pid %d", err, cmd.Process.Pid)
	}
	if want := fmt.Sprintf("open store: %s is held by pid %d", path, cmd.Process.Pid); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	open(t, bolt.Config{Path: path})
}
