package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// vault is a directory as a daemon has it, with the KEK in it.
type vault struct {
	t     *testing.T
	dir   string
	store *bolt.Store
	log   *audit.Log
	ring  *Ring
	keys  []Key
}

func newVault(t *testing.T) *vault {
	t.Helper()
	v := &vault{t: t, dir: t.TempDir()}
	if err := WriteKEK(v.dir, NewKEK()); err != nil {
		t.Fatal(err)
	}
	v.open()
	var err error
	v.keys, err = v.ring.Create(t.Context(), admin(), NewKey{Purpose: Token, Alg: algES256}, NewKey{Purpose: Token, Alg: algRS256}, NewKey{Purpose: Audit, Alg: algES256})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// openVault is what the daemon does at its start.
func openVault(dir string, wrap func(storage.Store) storage.Store) (*bolt.Store, *audit.Log, *Ring, error) {
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "db")})
	if err != nil {
		return nil, nil, nil, err
	}
	log, err := audit.Open(context.Background(), audit.Config{Dir: filepath.Join(dir, "audit"), Store: store, Segment: 1 << 20, Reserve: -1})
	if err != nil {
		return nil, nil, nil, errors.Join(err, store.Close())
	}
	kek, err := ReadKEK(dir)
	if err != nil {
		return nil, nil, nil, errors.Join(err, log.Close(), store.Close())
	}
	ring, err := Open(context.Background(), Config{Store: wrap(store), Audit: log, KEK: kek, KEKDir: dir})
	if err != nil {
		return nil, nil, nil, errors.Join(err, log.Close(), store.Close())
	}
	return store, log, ring, nil
}

func (v *vault) open() {
	v.t.Helper()
	var err error
	if v.store, v.log, v.ring, err = openVault(v.dir, func(s storage.Store) storage.Store { return s }); err != nil {
		v.t.Fatal(err)
	}
	store, log := v.store, v.log
	v.t.Cleanup(func() { log.Close(); store.Close() })
}

func (v *vault) stop() {
	v.t.Helper()
	if err := errors.Join(v.log.Close(), v.store.Close()); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vault) kek() []byte {
	v.t.Helper()
	body, err := os.ReadFile(filepath.Join(v.dir, kekName))
	if err != nil {
		v.t.Fatal(err)
	}
	return body
}

func (v *vault) next() bool {
	_, err := os.Lstat(filepath.Join(v.dir, nextKEK))
	return !errors.Is(err, fs.ErrNotExist)
}

// whole demands that each key that was made signs.
func (v *vault) whole() {
	v.t.Helper()
	for _, k := range v.keys {
		got, s, err := v.ring.Signer(k.Purpose, k.Alg)
		if err != nil || got.ID != k.ID {
			v.t.Fatalf("%s %s: %v", k.Purpose, k.Alg, err)
		}
		verify(v.t, s, k.Public)
	}
}

func TestRotateKEK(t *testing.T) {
	v := newVault(t)
	old := v.kek()
	if err := os.WriteFile(filepath.Join(v.dir, nextKEK), old[:10], 0o400); err != nil { // broken off while it was written
		t.Fatal(err)
	}
	v.stop()
	v.open()
	v.whole()
	n, err := v.ring.RotateKEK(t.Context(), admin())
	if err != nil || n != len(v.keys) {
		t.Fatalf("%d %v", n, err)
	}
	info, err := os.Stat(filepath.Join(v.dir, kekName))
	if err != nil || info.Mode().Perm() != 0o400 || bytes.Equal(v.kek(), old) || v.next() {
		t.Errorf("%v %v", info, err)
	}
	v.whole()
	if _, err := v.ring.Rotate(t.Context(), admin(), Token, RotateOptions{Now: true}); err != nil { // seals under the new one
		t.Fatal(err)
	}
	v.keys = v.ring.All(Audit)
	for _, alg := range []string{algES256, algRS256} {
		k, _, err := v.ring.Signer(Token, alg)
		if err != nil {
			t.Fatal(err)
		}
		v.keys = append(v.keys, k)
	}
	v.stop()
	v.open()
	v.whole()
	if _, err := v.ring.RotateKEK(t.Context(), admin()); err != nil {
		t.Fatal(err)
	}
	v.stop()
	// The old KEK opens nothing any more.
	if err := errors.Join(os.Remove(filepath.Join(v.dir, kekName)), os.WriteFile(filepath.Join(v.dir, kekName), old, 0o400)); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := openVault(v.dir, func(s storage.Store) storage.Store { return s }); !errors.Is(err, ErrKEK) {
		t.Errorf("the old KEK: %v", err)
	}
}

func TestRotateKEKRefusals(t *testing.T) {
	v := newVault(t)
	want := func(code countersign.Code, by countersign.Caller) {
		t.Helper()
		old := v.kek()
		if _, err := v.ring.RotateKEK(t.Context(), by); err == nil || countersign.AsError(err).Code != code {
			t.Errorf("got %v, want %s", err, code)
		}
		if !bytes.Equal(v.kek(), old) || v.next() {
			t.Error("something was written")
		}
		v.whole()
	}
	operator := admin()
	operator.Role = countersign.RoleOperator
	want(countersign.CodeRole, operator)
	t.Setenv("CREDENTIALS_DIRECTORY", v.dir)
	want(countersign.CodeKEKPlace, admin())
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	mine := v.kek()
	replace := func(kek []byte) {
		t.Helper()
		path := filepath.Join(v.dir, kekName)
		if err := errors.Join(os.Remove(path), os.WriteFile(path, kek, 0o400)); err != nil {
			t.Fatal(err)
		}
	}
	replace(append(bytes.Repeat([]byte("A"), 43), '='))
	want(countersign.CodeKEKPlace, admin())
	replace(mine)
	v.ring.cfg.KEKDir = ""
	want(countersign.CodeKEKPlace, admin())
	sealed, err := Open(t.Context(), Config{Store: v.store, Audit: v.log, KEKDir: v.dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sealed.RotateKEK(t.Context(), admin()); err == nil || countersign.AsError(err).Code != countersign.CodeSealed {
		t.Error(err)
	}
}

// The process is killed at every step of a rotation: whatever the step, the next start reads every key, and the rotation can
// be made anew.
func TestRotateKEKKilled(t *testing.T) {
	for _, c := range []struct {
		point   string
		rotated bool // the new KEK is in force
		left    bool // kek.next is there after the kill
	}{
		{"before 1", false, true}, // kek.next is durable, and nothing else
		{"after 1", true, true},   // all keys are re-wrapped
		{"before 2", true, true},  // the outcome is in the audit log
		{"after 2", true, true},   // and the change is settled
		{"done", true, false},
	} {
		t.Run(c.point, func(t *testing.T) {
			v := newVault(t)
			old := v.kek()
			v.stop()
			v.killed(c.point)
			if v.next() != c.left {
				t.Fatalf("kek.next is there: %v", v.next())
			}
			v.open()
			v.whole()
			if bytes.Equal(v.kek(), old) == c.rotated || v.next() && c.rotated {
				t.Errorf("after the start: old KEK %v, kek.next %v", bytes.Equal(v.kek(), old), v.next())
			}
			v.stop() // what the first start did must do for the second
			v.open()
			v.whole()
			between := v.kek()
			if _, err := v.ring.RotateKEK(t.Context(), admin()); err != nil {
				t.Fatal(err)
			}
			v.stop()
			v.open()
			v.whole()
			if bytes.Equal(v.kek(), between) || v.next() {
				t.Error("the rotation after it did nothing")
			}
		})
	}
}

const killVar = "KEYRING_TEST_KILL"

// killed runs a rotation in a process of its own, which kills itself at the point.
func (v *vault) killed(point string) {
	v.t.Helper()
	cmd := exec.CommandContext(v.t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), killVar+"="+point, killVar+"_DIR="+v.dir)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		v.t.Fatalf("%v: %s", err, out)
	}
}

// lethal kills the process before or after one Apply of the ring's.
type lethal struct {
	storage.Store
	point string
	n     int
}

func (l *lethal) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	l.n++
	l.at("before")
	rev, err := l.Store.Apply(ctx, ops...)
	l.at("after")
	return rev, err
}

func (l *lethal) at(when string) {
	if l.point == fmt.Sprintf("%s %d", when, l.n) {
		die()
	}
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func rotateAndDie(dir, point string) {
	_, _, ring, err := openVault(dir, func(s storage.Store) storage.Store { return &lethal{Store: s, point: point} })
	if err == nil {
		_, err = ring.RotateKEK(context.Background(), admin())
	}
	if err != nil || !strings.HasPrefix(point, "done") {
		fmt.Println("not killed:", err)
		os.Exit(1)
	}
	die()
}
