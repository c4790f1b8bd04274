package mtls

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/countersign/countersign/ca/identity"
)

// Somebody else may renew the directory, as `countersign cert renew`.
func TestDirectoryOfOthersIsTakenOver(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	var seen events
	s := k.source(Config{Dir: dir, OnEvent: seen.take})
	old := k.wait(s)
	k.must(identity.Write(dir, k.bundle("orders", 0)))
	s.nudge()
	k.eventually("the new one", func() bool { i, err := s.Identity(); return err == nil && i.Serial != old.Serial })
	k.must(identity.Write(dir, k.bundle("inventory", 0)))
	s.nudge()
	k.eventually("the refusal", func() bool { return seen.has(Failed, Directory) })
	if i, err := s.Identity(); err != nil || i.ID != k.id("orders") {
		t.Errorf("it became another service: %v", err)
	}
}

func TestReadOnlyFollowsAndNeverWrites(t *testing.T) {
	k := newKit(t, nil)
	dir := filepath.Join(t.TempDir(), "id")
	s := k.source(Config{Dir: dir, ReadOnly: true})
	if err := s.Renew(t.Context()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("%v", err)
	}
	k.must(identity.Write(dir, k.bundle("orders", 0)))
	first := k.wait(s)
	k.must(identity.Write(dir, k.bundle("orders", 0)))
	k.eventually("the next", func() bool { i, _ := s.Identity(); return i.Serial != first.Serial })
	want := fileNames(dir)
	Server(s, Callers())
	k.eventually("the callers", func() bool { g, _ := s.feed.now(); return g != nil })
	if got := fileNames(dir); !slices.Equal(got, want) {
		t.Errorf("the directory held %v and holds %v", want, got)
	}
	if st := s.Status(); !st.RenewAt.IsZero() && !st.Next.IsZero() {
		t.Errorf("a read-only source wants to renew: %+v", st)
	}
}

// torn damages the key of a directory.
func torn(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, identity.KeyFile)
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body[:len(body)/2], 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUnreadableKeyIsNeverReplaced(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	torn(t, dir)
	want := fileNames(dir)
	s := k.source(Config{Dir: dir, Join: k.joinString("orders")})
	k.wait(s) // by the join string, in memory
	if st := s.Status(); st.LastError == nil || !strings.Contains(st.LastError.Error(), "not replaced") || !st.Unwritten {
		t.Errorf("%+v", st)
	}
	k.must(s.Renew(t.Context()))
	if got := fileNames(dir); !slices.Equal(got, want) {
		t.Errorf("the directory held %v and holds %v", want, got)
	}
	if _, err := identity.Load(dir); err == nil {
		t.Error("the key was replaced")
	}
	k.must(os.RemoveAll(dir)) // what the error says
	s.nudge()
	i, err := s.Identity()
	k.must(err)
	k.eventually("the directory", func() bool { got, err := identity.Load(dir); return err == nil && got.Serial == i.Serial })
	k.eventually("the status", func() bool { st := s.Status(); return st.LastError == nil && !st.Unwritten })
}

func TestUnreadableKeyWithoutAnotherWay(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	key, err := os.ReadFile(filepath.Join(dir, identity.KeyFile))
	k.must(err)
	torn(t, dir)
	s := k.source(Config{Dir: dir})
	if _, err := s.Identity(); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "join again") {
		t.Errorf("the error does not say what to do: %v", err)
	}
	k.must(os.WriteFile(filepath.Join(dir, identity.KeyFile), key, 0o600)) // mended by hand
	s.nudge()
	k.wait(s)
}

// A directory that can't be written: nobody comes with the new identity before it is there, since the one in the directory
// would be taken for a copy after that; and it is used as soon as it can be written.
func TestUnwritableDirectory(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	var seen events
	s := k.source(Config{Dir: dir, OnEvent: seen.take})
	old := k.wait(s)
	aside := dir + ".aside"
	k.must(os.Rename(dir, aside))
	k.must(os.WriteFile(dir, nil, 0o600)) // what is no directory can't be written into, by root neither
	if err := s.Renew(t.Context()); !errors.Is(err, errWrite) {
		t.Errorf("the renewal says %v", err)
	}
	i, err := s.Identity()
	k.must(err)
	if i.Serial != old.Serial || !s.Status().Unwritten {
		t.Errorf("%+v", s.Status())
	}
	k.must(os.Remove(dir))
	k.must(os.Rename(aside, dir))
	if got, err := identity.Load(dir); err != nil || got.Serial != old.Serial {
		t.Errorf("the directory is not as it was: %v", err)
	}
	s.nudge()
	k.eventually("the directory", func() bool {
		got, err := identity.Load(dir)
		now, _ := s.Identity()
		return err == nil && got.Serial != old.Serial && got.Serial == now.Serial
	})
	k.must(s.Renew(t.Context())) // the line goes on
}
