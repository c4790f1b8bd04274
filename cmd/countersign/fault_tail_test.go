package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/countersign/countersign/api/client"
)

// What a crash leaves behind the last record that the store remembers is cut off and told; records that the store
// remembers and the log does not hold are tampering, and the daemon does not start.
func TestFaultTail(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	w := newWorker(t, i)
	if err := w.enrol(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.stop(t, syscall.SIGTERM)
	store, segment := filepath.Join(i.dir, "countersign.db"), filepath.Join(i.dir, "audit", "00000000000000000001.segment")
	before, head := used(t, segment), mustRead(t, store)
	i.start(t)
	if err := w.token(t.Context(), w.service()); err != nil {
		t.Fatal(err)
	}
	i.stop(t, syscall.SIGTERM)
	whole := mustRead(t, segment)
	end := used(t, segment)
	for name, c := range map[string]struct {
		store []byte
		log   []byte
		want  string
	}{
		"cut off":            {mustRead(t, store), whole[:before], "the records after it were cut off"},
		"cut within a frame": {mustRead(t, store), whole[:end-10], "what follows is damaged"},
		"all gone":           {mustRead(t, store), nil, "holds no segment"},
	} {
		t.Run(name, func(t *testing.T) {
			mustWrite(t, store, c.store)
			if c.log == nil {
				if err := os.Remove(segment); err != nil {
					t.Fatal(err)
				}
			} else {
				mustWrite(t, segment, c.log)
			}
			code, said := i.startFails(t)
			if code != exitLocal {
				t.Errorf("exit code %d", code)
			}
			for _, want := range []string{"tampered with", c.want, "keep a copy", "restore", "same backup"} {
				if !strings.Contains(said, want) {
					t.Errorf("the message does not say %q:\n%s", want, said)
				}
			}
		})
	}
	// The head that the store remembers is older than the record that is torn: a power cut.
	w.acked.tokens = nil
	mustWrite(t, store, head)
	mustWrite(t, segment, whole[:end-10])
	i.start(t)
	w.check()
	if !strings.Contains(i.logText(), "torn end of the audit log") {
		t.Errorf("the log does not tell of the torn end:\n%s", i.logText())
	}
	found, err := w.admin.Audit(t.Context(), client.AuditQuery{Type: "audit.torn-tail"})
	if err != nil || len(found.Records) != 1 {
		t.Errorf("%d records of a torn end, %v", len(found.Records), err)
	}
}

// used is the length of a file without the zeros that are written ahead.
func used(t *testing.T, path string) int {
	t.Helper()
	return len(bytes.TrimRight(mustRead(t, path), "\x00"))
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func mustWrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
