package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/countersign/countersign/api/client"
)

// A failed fsync ends the daemon with 74, and whoever it was about gets no answer; a restart is clean. Each thread's
// n-th fdatasync of the file fails: at n = 1 the first one, which is at start.
func TestFaultSync(t *testing.T) {
	bin := plainBinary(t)
	i := newInstance(t, bin)
	w := newWorker(t, i)
	for _, file := range []string{"countersign.db", "audit/00000000000000000001.segment"} {
		for _, n := range []int{1, 8, 16} {
			t.Run(fmt.Sprintf("%s %d", filepath.Ext(file), n), func(t *testing.T) {
				i.stop(t, syscall.SIGTERM)
				i.bin = wrapped(t, bin, strace(filepath.Join(i.dir, file), "fdatasync", "EIO", n)...)
				code := 0
				if n == 1 {
					var said string
					if code, said = i.startFails(t); !strings.Contains(said, "input/output error") {
						t.Errorf("the daemon does not say why: %s", said)
					}
				} else {
					i.start(t)
					w.untilDead(t)
					code = i.exits(t)
				}
				if code != exitDisk {
					t.Errorf("exit code %d instead of %d\n%s", code, exitDisk, i.logText())
				}
				i.bin = bin
				i.start(t)
				w.check()
			})
		}
	}
}

// untilDead mutates store and audit log, one request after the other, until one gets no answer. None may get an error
// as answer: of what a failed fsync leaves nothing is known.
func (w *worker) untilDead(t *testing.T) {
	t.Helper()
	c := w.service()
	var err error
	for range 100_000 {
		if err = w.token(t.Context(), c); err != nil {
			break
		}
		if err = w.enrol(t.Context()); err != nil {
			break
		}
	}
	var unreachable *client.UnreachableError
	if !errors.As(err, &unreachable) {
		t.Errorf("the request whose fsync failed was answered: %v", err)
	}
}
