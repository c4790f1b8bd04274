package main

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/countersign/countersign/ca/identity"
)

// onFirst is a file that does something before it takes its first bytes.
type onFirst struct {
	*os.File
	do func()
}

func (w *onFirst) Write(p []byte) (int, error) {
	if w.do != nil {
		w.do()
		w.do = nil
	}
	return w.File.Write(p)
}

// enlarge makes the database larger than what the buffers on a backup's way take.
func (w *worker) enlarge() {
	w.t.Helper()
	for range 3 {
		if err := w.applyPolicy(w.t.Context(), strings.Repeat(rand.Text(), 30<<10)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// restoredCounts are what `restore -o json` counts.
type restoredCounts struct {
	Replayed           struct{ Revoked, Blocked, Issued int }
	Disabled, Frozen   []string
	Withdrawn, Unknown []string
}

// What is revoked while a backup is sent is not in its copy of the database, and stands in its audit log: a restore has it in force,
// without a newer log too. And what a restore counts is what there was.
func TestRestoreCounts(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	w := newWorker(t, i)
	victim, err := identity.Load(i.join(t, "b"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := identity.Load(i.join(t, "c"))
	if err != nil {
		t.Fatal(err)
	}
	w.enlarge()
	path := filepath.Join(t.TempDir(), "backup")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	again := socketClient(t, i)
	err = w.admin.Backup(t.Context(), &onFirst{file, func() {
		i.run(t, "cert", "revoke", victim.Serial, "--reason", "keyCompromise")
		i.run(t, "freeze", "tokens", "--reason", "while it was sent")
		if err := again.DisableService(t.Context(), "d", "while it was sent"); err != nil {
			t.Error(err)
		}
		i.join(t, "b")
	}})
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	i.run(t, "thaw", "tokens", "--reason", "it was a false alarm")
	i.run(t, "cert", "revoke", "--lineage", held.Serial, "--reason", "keyCompromise")
	i.join(t, "b")
	i.join(t, "c")
	for _, comment := range []string{"one", "two"} {
		if err := w.applyPolicy(t.Context(), comment); err != nil {
			t.Fatal(err)
		}
	}
	i.stop(t, syscall.SIGTERM)

	for _, c := range []struct {
		newer                    bool
		revoked, blocked, issued int
		frozen                   string
	}{{false, 1, 0, 1, "tokens"}, {true, 1, 1, 3, ""}} {
		dir := filepath.Join(t.TempDir(), "restored")
		args := []string{"restore", path, "--dir", dir}
		if c.newer {
			args = append(args, "--audit", filepath.Join(i.dir, "audit"))
		}
		var got restoredCounts
		(&instance{bin: i.bin, dir: dir}).ask(t, &got, args...)
		r := got.Replayed
		if r.Revoked != c.revoked || r.Blocked != c.blocked || r.Issued != c.issued {
			t.Errorf("with the newer log %v: %+v", c.newer, got)
		}
		if strings.Join(got.Disabled, "") != "d" || strings.Join(got.Frozen, "") != c.frozen || len(got.Withdrawn) != 0 {
			t.Errorf("with the newer log %v: %+v", c.newer, got)
		}
		said := strings.Join(got.Unknown, "\n")
		for _, want := range []string{"3 certificates that were issued after", "2 policies that were applied after", "tokens were thawed after"} {
			if c.newer != strings.Contains(said, want) {
				t.Errorf("with the newer log %v, %q: %s", c.newer, want, said)
			}
		}
	}
}
