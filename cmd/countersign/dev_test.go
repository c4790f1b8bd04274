package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// signalWriter keeps what is written and tells each time.
type signalWriter struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (w *signalWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default:
	}
	return w.text.Write(p)
}

func (w *signalWriter) String() string { w.mu.Lock(); defer w.mu.Unlock(); return w.text.String() }

// What `dev` says to type next works when it is typed as it stands.
func TestDev(t *testing.T) {
	work := t.TempDir()
	cmd := exec.Command(plainBinary(t), "dev")
	cmd.Dir = work
	cmd.Env = os.Environ()
	for _, name := range []string{"COUNTERSIGN_LISTEN", "COUNTERSIGN_OPS_LISTEN"} {
		address, err := freeLoopback()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, name+"="+address)
	}
	said := &signalWriter{more: make(chan struct{}, 1)}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	const last = "is its root certificate.\n"
	for until := time.After(30 * time.Second); !strings.Contains(said.String(), last); {
		select {
		case <-said.more:
		case <-until:
			_ = cmd.Process.Kill()
			t.Fatalf("dev does not say what to type:\n%s", said)
		}
	}
	text := said.String()
	begin, end := strings.Index(text, "cat > "), strings.Index(text, "Ctrl-C stops")
	runSession(t, work, "set -euo pipefail\n"+text[begin:end])
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v\n%s", err, said)
	}
}
