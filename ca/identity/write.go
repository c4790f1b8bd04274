package identity

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	dataLink   = "..data"
	keptLink   = "..kept"  // made by the agent: leads to the version that a program still serves
	linkPrefix = "..data_" // a link on its way to becoming ..data
	hidden     = ".."      // what begins with it is ours
	stamp      = "20060102T150405.000000000Z"
)

// Write makes b the identity in dir, whole or not at all: after an error or a crash at any point, the links lead to the
// files that they led to before, or to all of the new ones. dir is created (0700) if it is absent. A directory that holds
// something else is refused. The version before stays, so that a reader that has just resolved ..data finds its files, and so
// does the one that a link ..kept leads to, which a program still serves (ca/agent); older ones are removed. Two writers of one
// directory wait for each other.
func Write(dir string, b Bundle) error {
	if err := write(dir, b); err != nil {
		return fmt.Errorf("write the identity directory %s: %w", dir, err)
	}
	return nil
}

func write(dir string, b Bundle) error {
	id, err := check(b.Key, b.Chain, b.Roots)
	if err != nil {
		return err
	}
	files, err := render(b, id)
	if err != nil {
		return err
	}
	lock, err := adopt(dir, files)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks

	before, err := current(dir)
	if err != nil {
		return err
	}
	version := hidden + time.Now().UTC().Format(stamp) + "-" + serialText(b.Chain[0])
	if err := writeVersion(filepath.Join(dir, version), files); err != nil {
		return err
	}
	if err := linkFiles(dir, files); err != nil {
		return err
	}
	// Crash point: until the version and the links are durable, ..data must not lead to it.
	if err := lock.Sync(); err != nil {
		return err
	}
	if err := flip(dir, version); err != nil {
		return err
	}
	if err := lock.Sync(); err != nil {
		return err
	}
	return sweep(dir, version, before)
}

// adopt opens dir and locks it against other writers; it creates an absent one and refuses one that is not ours.
func adopt(dir string, files []file) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := lockAndJudge(d, files); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func lockAndJudge(d *os.File, files []file) error {
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	entries, err := os.ReadDir(d.Name())
	if err != nil {
		return err
	}
	names := make(map[string]bool, len(files))
	for _, f := range files {
		names[f.name] = true
	}
	established := false
	for _, e := range entries {
		isLink := e.Type()&fs.ModeSymlink != 0
		switch {
		case e.Name() == dataLink && isLink:
			established = true
		case names[e.Name()] && !isLink:
			return fmt.Errorf("%s is there and not a link of an identity directory; choose another directory", e.Name())
		}
	}
	if established {
		return nil
	}
	for _, e := range entries {
		// A first Write that was cut off leaves versions and links, and nothing else.
		if !names[e.Name()] && !strings.HasPrefix(e.Name(), hidden) {
			return fmt.Errorf("it holds %s, so it is no identity directory; choose an empty or absent one", e.Name())
		}
	}
	return d.Chmod(0o700)
}

// current is the version that ..data leads to, "" if there is none yet.
func current(dir string) (string, error) {
	target, err := os.Readlink(filepath.Join(dir, dataLink))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(target, hidden) || strings.ContainsRune(target, '/') {
		return "", fmt.Errorf("%s leads to %q, which is no version of an identity directory", dataLink, target)
	}
	return target, nil
}

// writeVersion writes the files into a new directory and makes them durable.
func writeVersion(dir string, files []file) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	// Who gets this far is decided by the mode of D, which is 0700 unless its owner lets a group in.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.name), f); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func writeFile(path string, f file) error {
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Chmod(f.mode); err != nil { // whatever the umask
		return err
	}
	if _, err := w.Write(f.data); err != nil {
		return err
	}
	if err := w.Sync(); err != nil {
		return err
	}
	return w.Close()
}

// linkFiles makes the links that a first Write lacks. They lead nowhere until ..data is there.
func linkFiles(dir string, files []file) error {
	for _, f := range files {
		err := os.Symlink(filepath.Join(dataLink, f.name), filepath.Join(dir, f.name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// flip makes ..data lead to version, in one rename.
func flip(dir, version string) error {
	link := filepath.Join(dir, linkPrefix+rand.Text())
	if err := os.Symlink(version, link); err != nil {
		return err
	}
	if err := os.Rename(link, filepath.Join(dir, dataLink)); err != nil {
		os.Remove(link)
		return err
	}
	return nil
}

// sweep removes versions and links of ours but the new version, the one before it, and the one that is kept.
func sweep(dir, version, before string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	kept, err := os.Readlink(filepath.Join(dir, keptLink))
	if err != nil {
		kept = "" // none is kept, or it is no link
	}
	for _, e := range entries {
		name := e.Name()
		if name == dataLink || !ours(name) || name == version || name == before || name == kept {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// ours tells whether name is a link on its way, or a version: "..", a time, "-", a serial.
func ours(name string) bool {
	if strings.HasPrefix(name, linkPrefix) {
		return true
	}
	at, serial, ok := strings.Cut(strings.TrimPrefix(name, hidden), "-")
	if !ok || serial == "" || !strings.HasPrefix(name, hidden) {
		return false
	}
	_, err := time.Parse(stamp, at)
	return err == nil
}
