package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/cmd/countersign/daemon/archive"
)

// killed runs a command and kills it with -9 after a while; false: it had ended by itself before.
func killed(t *testing.T, after time.Duration, bin string, args ...string) bool {
	t.Helper()
	cmd := exec.Command(bin, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode() < 0
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// backupAgain takes a backup, once the daemon has given up the one before, whose reader is gone.
func (i *instance) backupAgain(t *testing.T, path string) result {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got := runHere(t, "-o", "json", "backup", path, "--dir", i.dir)
		if time.Now().After(until) || !strings.Contains(got.stderr, "another backup is being made") {
			return got
		}
	}
}

// wants wants a refusal in JSON.
func (r result) wants(t *testing.T, code int, words ...string) {
	t.Helper()
	var f failure
	if err := json.Unmarshal([]byte(dropProse(r.stderr)), &f); err != nil || r.code != code || f.Next == "" {
		t.Errorf("exit code %d: %s, %v", r.code, r.stderr, err)
	}
	for _, word := range words {
		if !strings.Contains(f.What+"\n"+f.Why+"\n"+f.Next, word) {
			t.Errorf("%q is not in %+v", word, f)
		}
	}
}

// checkRestored wants the event that a restore ends with in the log: all that it puts in force again comes before.
func checkRestored(t *testing.T, dir string) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "audit", "*.segment"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	if !bytes.Contains(mustRead(t, segments[len(segments)-1]), []byte("daemon.restored")) {
		t.Error("the directory has its configuration, and the restore did not end")
	}
}

// kill -9 at any moment of a backup or a restore leaves nothing that looks whole and is not, and nothing that keeps it from being done
// again: a backup has its name only when it is whole, and a directory its configuration.
func TestFaultBackupKilled(t *testing.T) {
	bin := plainBinary(t)
	i := newInstance(t, bin)
	w := newWorker(t, i)
	w.enlarge()
	work := t.TempDir()
	backup, dir := filepath.Join(work, "backup"), filepath.Join(work, "restored")
	took := func(do func()) time.Duration { begun := time.Now(); do(); return time.Since(begun) }

	whole := took(func() { i.run(t, "backup", backup) })
	cut := 0
	for n := range 8 {
		path := filepath.Join(work, "backup-"+string(rune('a'+n)))
		if killed(t, rand.N(whole), bin, "backup", path, "--dir", i.dir) {
			cut++
		}
		if exists(t, path) {
			if _, err := archive.Check(path); err != nil {
				t.Errorf("a backup that was killed has its name, and is not whole: %v", err)
			}
			continue
		}
		if got := i.backupAgain(t, path); got.code != exitOK {
			t.Fatalf("it can't be done again: %+v", got)
		}
	}
	left, err := filepath.Glob(filepath.Join(work, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if strings.HasSuffix(path, ".new") { // what docs/backup.md tells of
			continue
		}
		if _, err := archive.Check(path); err != nil {
			t.Errorf("%s is there, and is no whole backup: %v", path, err)
		}
	}
	i.stop(t, syscall.SIGTERM)

	whole = took(func() { i.run(t, "restore", backup, "--dir", dir) })
	for range 8 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if killed(t, rand.N(whole), bin, "restore", backup, "--dir", dir) {
			cut++
		}
		if exists(t, filepath.Join(dir, "countersign.yaml")) {
			i.run(t, "db", "check", "--dir", dir)
			checkRestored(t, dir)
			continue
		}
		if _, said := (&instance{bin: bin, dir: dir}).startFails(t); !strings.Contains(said, "next:") {
			t.Errorf("a start on half a restore: %s", said)
		}
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			if got := refused(t, exitCondition, "restore", backup, "--dir", dir); !strings.Contains(got.Next, "remove") {
				t.Errorf("%+v", got)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		i.run(t, "restore", backup, "--dir", dir)
		i.run(t, "db", "check", "--dir", dir)
		checkRestored(t, dir)
	}
	if cut == 0 {
		t.Error("nothing was killed before it had ended")
	}
	t.Logf("%d of 16 were killed before they had ended", cut)
}

// leave gives back so much of a disk that is full.
func (d *smallDisk) leave(t *testing.T, bytes int64) {
	t.Helper()
	d.fill(t)
	path := filepath.Join(d.path, "filler")
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, max(0, info.Size()-bytes))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// On a disk without room a backup and a restore say so, what to do, and leave nothing; neither does a daemon's disk without room
// for the copy give half a backup.
func TestFaultBackupFullDisk(t *testing.T) {
	disk, daemons := newSmallDisk(t, "24m"), newSmallDisk(t, "24m")
	i := instanceAt(t, plainBinary(t), filepath.Join(daemons.path, "ca"), smallLog()...)
	w := newWorker(t, i)
	w.enlarge()
	good := filepath.Join(t.TempDir(), "backup")
	i.run(t, "backup", good)
	empty := func(what string) {
		t.Helper()
		entries, err := os.ReadDir(disk.path)
		if err != nil || len(entries) != 1 || entries[0].Name() != "filler" {
			t.Errorf("%s leaves %v, %v", what, entries, err)
		}
	}
	path, dir := filepath.Join(disk.path, "backup"), filepath.Join(disk.path, "restored")
	for _, room := range []int64{0, 1 << 20} {
		disk.leave(t, room)
		i.backupAgain(t, path).wants(t, exitLocal, "can't write "+path, "no space left on device", "with room for")
		empty("a backup")
	}
	daemons.leave(t, 1<<20) // for the record of it, and not for the copy
	got := i.backupAgain(t, filepath.Join(filepath.Dir(good), "none"))
	got.wants(t, exitRemote, "disk")
	t.Log(got.stderr)
	daemons.free(t)
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(good), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	w.eventually(t, func() error { return w.admin.Backup(t.Context(), io.Discard) })
	i.stop(t, syscall.SIGTERM)

	for _, room := range []int64{0, 1 << 20, 5 << 20} {
		disk.leave(t, room)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		runHere(t, "-o", "json", "restore", good, "--dir", dir).wants(t, exitLocal, "there is no room", "no space left on device", "make space on the disk of "+dir)
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			t.Errorf("a restore with room for %d leaves %v", room, entries)
		}
	}
	disk.free(t)
	i.run(t, "restore", good, "--dir", dir)
	i.run(t, "db", "check", "--dir", dir)
}
