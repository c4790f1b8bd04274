package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/countersign/countersign/ca/identity"
)

// A backup is taken while certificates are issued, and holds no secret in clear; the restored authority is the same one: keys,
// roots, serials, a token and a renewal. What was revoked after the backup is revoked in it, by the newer audit log.
func TestBackupAndRestore(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	w := newWorker(t, i)
	keeper, victim, held := i.join(t, "a"), i.join(t, "b"), i.join(t, "b")
	work := t.TempDir()
	token := filepath.Join(work, "token")
	mustWrite(t, token, []byte(i.run(t, "token", "request", "--identity", keeper, "--audience", "b")))
	jwks, err := w.admin.JWKS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := i.run(t, "ca", "root")

	issued, stop := load(t, w)
	backup := filepath.Join(work, "backup")
	before := issued.Load()
	var shown shownBackup
	i.ask(t, &shown, "backup", backup)
	for issued.Load() < before+5 { // the daemon goes on while and after a backup is taken
		if t.Context().Err() != nil {
			t.Fatal("nothing was issued meanwhile")
		}
	}
	stop()
	checkNoSecrets(t, i, backup)

	var revoked identity.Identity
	if id, err := identity.Load(victim); err != nil {
		t.Fatal(err)
	} else {
		revoked = *id
	}
	i.run(t, "cert", "revoke", revoked.Serial, "--reason", "keyCompromise")
	copied, err := identity.Load(held)
	if err != nil {
		t.Fatal(err)
	}
	i.run(t, "cert", "revoke", "--lineage", copied.Serial, "--reason", "keyCompromise")
	i.run(t, "service", "disable", "d", "--reason", "test")
	i.run(t, "token", "revoke", "--subject", "mallory", "--reason", "left")
	late := i.join(t, "c")
	var leaked keyList
	if err := json.Unmarshal(jwks, &leaked); err != nil {
		t.Fatal(err)
	}
	i.run(t, "key", "retire", leaked.Keys[0].ID, "--compromised")
	i.run(t, "freeze", "tokens", "--reason", "the key leaked")
	i.stop(t, syscall.SIGTERM)

	for _, withLog := range []bool{true, false} {
		dir := filepath.Join(t.TempDir(), "restored")
		args := []string{"restore", backup, "--dir", dir}
		if withLog {
			args = append(args, "--audit", filepath.Join(i.dir, "audit"))
		}
		again := &instance{bin: i.bin, dir: dir, public: i.public, ops: i.ops}
		var done struct {
			Replayed          struct{ Revoked, Issued int }
			Disabled          []string
			Frozen, Withdrawn []string
			Unknown           []string
		}
		again.ask(t, &done, args...)
		if withLog != (done.Replayed.Revoked == 1) || withLog != (strings.Join(done.Disabled, "") == "d") || len(done.Unknown) == 0 {
			t.Errorf("with the log %v: %+v", withLog, done)
		}
		if withLog != (strings.Join(done.Frozen, "") == "tokens") || withLog != (strings.Join(done.Withdrawn, "") == leaked.Keys[0].ID) {
			t.Errorf("with the log %v: %+v", withLog, done)
		}
		kek, err := os.ReadFile(filepath.Join(i.dir, "kek"))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, filepath.Join(dir, "kek"), kek)
		again.start(t)
		same, err := socketClient(t, again).JWKS(t.Context())
		if err != nil || !withLog && !bytes.Equal(same, jwks) || withLog && bytes.Contains(same, []byte(leaked.Keys[0].ID)) {
			t.Errorf("with the log %v: the JWKS: %s, %v", withLog, same, err)
		}
		var status struct {
			Frozen struct{ Tokens *struct{ Reason string } }
		}
		if again.ask(t, &status, "status"); withLog != (status.Frozen.Tokens != nil) {
			t.Errorf("with the log %v: frozen is %+v", withLog, status)
		}
		if again.run(t, "ca", "root") != roots {
			t.Error("the root is another one")
		}
		if !withLog {
			again.run(t, "token", "verify", token, "--audience", "b")
		}
		again.run(t, "audit", "verify")
		for name, id := range map[string]string{"issued after the backup": late, "revoked": victim, "of a revoked lineage": held} {
			renewed := runHere(t, "cert", "renew", "--out", id).code == exitOK
			if want := id != late && !withLog; renewed != want {
				t.Errorf("with the log %v: a certificate that was %s renews: %v", withLog, name, renewed)
			}
		}
		if withLog {
			again.run(t, "cert", "renew", "--out", keeper)
			if found := again.run(t, "token", "revocations"); !strings.Contains(found, "mallory") {
				t.Errorf("the revocation of tokens is lost: %s", found)
			}
		}
		again.run(t, "doctor")
		again.stop(t, syscall.SIGTERM)
	}
}

// keyList is a JWKS by its kids.
type keyList struct {
	Keys []struct {
		ID string `json:"kid"`
	}
}

// load enrols services until stop.
func load(t *testing.T, w *worker) (issued *atomic.Int64, stop func()) {
	t.Helper()
	issued = new(atomic.Int64)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := w.enrol(ctx); err == nil {
					issued.Add(1)
				} else if ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return issued, func() { cancel(); all.Wait() }
}

func checkNoSecrets(t *testing.T, i *instance, backup string) {
	t.Helper()
	body, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	kek, err := os.ReadFile(filepath.Join(i.dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(i.dir, "server", "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{"the KEK": bytes.TrimSpace(kek), "the server's key": key[30:90], "a private key": []byte("PRIVATE KEY")} {
		if bytes.Contains(body, secret) {
			t.Errorf("%s is in the backup", name)
		}
	}
	if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A backup that is not whole, was changed, or names what it must not is refused, and nothing is left behind. A place that is
// taken or lies beside the key-encryption key too.
func TestBadBackups(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	work := t.TempDir()
	backup := filepath.Join(work, "backup")
	i.run(t, "backup", backup)
	body, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, exitCondition, "backup", backup, "--dir", i.dir)
	refused(t, exitCondition, "backup", filepath.Join(i.dir, "x"), "--dir", i.dir)
	refused(t, exitCondition, "backup", filepath.Join(i.dir, "audit", "x"), "--dir", i.dir)
	refused(t, exitLocal, "backup", filepath.Join(work, "none", "x"), "--dir", i.dir)
	refused(t, exitCondition, "restore", backup, "--dir", i.dir)
	refused(t, exitLocal, "restore", filepath.Join(work, "none"), "--dir", filepath.Join(work, "r"))

	flip := func(at int) []byte { b := bytes.Clone(body); b[at] ^= 1; return b }
	named := func(name string) []byte { // a sound form with a file that no backup holds
		b := append([]byte("countersign backup 1\nF"), binary.BigEndian.AppendUint32(nil, uint32(len(name)))...)
		return append(append(b, name...), body[len("countersign backup 1\n"):]...)
	}
	for name, content := range map[string][]byte{
		"empty": nil, "another file": []byte("hello"), "cut in the middle": body[:len(body)/2], "without its end": body[:len(body)-37],
		"one byte short": body[:len(body)-1], "one byte more": append(bytes.Clone(body), 0), "a bit of the database": flip(5000),
		"a bit of the manifest": flip(len(body) - 60), "a bit of the end": flip(len(body) - 1), "a newer format": flip(len("countersign backup ")),
		"a way out": named("../../etc/passwd"), "a key": named("kek"), "an absolute path": named("/etc/passwd"), "a way out of audit": named("audit/../x"),
		"a server's key": named("server/tls.key"),
	} {
		path, dir := filepath.Join(work, "bad"), filepath.Join(work, "dir")
		mustWrite(t, path, content)
		got := refused(t, exitLocal, "restore", path, "--dir", dir)
		if !strings.Contains(got.What, "backup") {
			t.Errorf("%s: %+v", name, got)
		}
		if left, err := os.ReadDir(dir); err == nil {
			t.Errorf("%s: %v is left", name, left)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if sha256.Sum256(body) != sha256.Sum256(mustRead(t, backup)) {
		t.Error("the backup was changed")
	}

	// The audit log of another authority; the own one, cut before the backup's end.
	other := newInstance(t, plainBinary(t))
	dir := filepath.Join(work, "dir")
	refused(t, exitCondition, "restore", backup, "--dir", dir, "--audit", filepath.Join(other.dir, "audit"))
	refused(t, exitCondition, "restore", backup, "--dir", dir, "--audit", work)
	if _, err := os.Stat(dir); err == nil {
		t.Error("something is left")
	}
}
