package keyring

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestKEKRoundTrip(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	dir := t.TempDir()
	if _, err := ReadKEK(dir); !errors.Is(err, ErrNoKEK) {
		t.Fatalf("no file: %v", err)
	}
	kek := NewKEK()
	if err := WriteKEK(dir, kek); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "kek"))
	if err != nil || info.Mode() != 0o400 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	got, err := ReadKEK(dir)
	if err != nil || !bytes.Equal(got, kek) {
		t.Fatalf("read back: %v", err)
	}
	if err := WriteKEK(dir, NewKEK()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a KEK was replaced: %v", err)
	}
	if got, err := ReadKEK(dir); err != nil || !bytes.Equal(got, kek) {
		t.Error("the refused write changed the KEK")
	}
	if err := WriteKEK(t.TempDir(), kek[:31]); err == nil {
		t.Error("a short KEK was written")
	}
	if err := WriteKEK(filepath.Join(dir, "nowhere"), kek); err == nil {
		t.Error("written into no directory")
	}
	if bytes.Equal(NewKEK(), NewKEK()) {
		t.Error("two KEKs are alike")
	}
}

// put writes a KEK file and makes its mode exactly mode.
func put(t *testing.T, dir, text string, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, "kek")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestReadKEKPlacesAndModes(t *testing.T) {
	text := base64.StdEncoding.EncodeToString(NewKEK())
	for _, tt := range []struct {
		credentials bool
		mode        fs.FileMode
		ok          bool
	}{
		{false, 0o400, true}, {false, 0o600, true}, {false, 0o440, false}, {false, 0o404, false}, {false, 0o420, false},
		{false, 0o401, false}, {false, 0o644, false}, {false, 0o666, false},
		{true, 0o400, true}, {true, 0o440, true}, {true, 0o640, true}, {true, 0o460, false}, {true, 0o450, false},
		{true, 0o444, false}, {true, 0o402, false},
	} {
		dir, credentials := t.TempDir(), t.TempDir()
		t.Setenv("CREDENTIALS_DIRECTORY", credentials)
		place := dir
		if tt.credentials {
			place = credentials
		}
		put(t, place, text, tt.mode)
		_, err := ReadKEK(dir)
		if (err == nil) != tt.ok {
			t.Errorf("credentials %v, mode %04o: %v", tt.credentials, tt.mode, err)
		}
		if err != nil && (errors.Is(err, ErrNoKEK) || !strings.Contains(err.Error(), "chmod 04")) {
			t.Errorf("mode %04o: the error does not say how to mend it: %v", tt.mode, err)
		}
	}
}

func TestReadKEKPrefersTheCredential(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	first, second := NewKEK(), NewKEK()
	put(t, dir, base64.StdEncoding.EncodeToString(second), 0o400)
	if got, err := ReadKEK(dir); err != nil || !bytes.Equal(got, second) {
		t.Errorf("without a credential: %v", err)
	}
	put(t, credentials, base64.StdEncoding.EncodeToString(first)+"\n", 0o400)
	if got, err := ReadKEK(dir); err != nil || !bytes.Equal(got, first) {
		t.Errorf("with a credential: %v", err)
	}
	// A bad credential is an error, never a reason to take the other file.
	if err := os.Chmod(filepath.Join(credentials, "kek"), 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKEK(dir); err == nil || errors.Is(err, ErrNoKEK) {
		t.Errorf("a bad credential: %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "relative")
	if _, err := ReadKEK(dir); err == nil {
		t.Error("a relative directory was accepted")
	}
}

func TestReadKEKRefusesWhatIsNoFileOfOurs(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	good := base64.StdEncoding.EncodeToString(NewKEK())
	for name, make := range map[string]func(t *testing.T, path string) error{
		"directory": func(_ *testing.T, path string) error { return os.Mkdir(path, 0o700) },
		"fifo":      func(_ *testing.T, path string) error { return syscall.Mkfifo(path, 0o400) },
		"link": func(t *testing.T, path string) error {
			put(t, t.TempDir(), good, 0o400)
			other := t.TempDir()
			put(t, other, good, 0o400)
			return os.Symlink(filepath.Join(other, "kek"), path)
		},
		"dangling link": func(_ *testing.T, path string) error { return os.Symlink("nowhere", path) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := make(t, filepath.Join(dir, "kek")); err != nil {
				t.Fatal(err)
			}
			if _, err := ReadKEK(dir); err == nil || errors.Is(err, ErrNoKEK) {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKEK(file); err == nil || errors.Is(err, ErrNoKEK) {
			t.Errorf("%v", err)
		}
	})
}

// owned is a file of another user, which only root could make.
type owned struct {
	fs.FileInfo
	uid uint32
}

func (o owned) Sys() any { return &syscall.Stat_t{Uid: o.uid} }

func TestKEKOwner(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "", 0o400)
	info, err := os.Stat(filepath.Join(dir, "kek"))
	if err != nil {
		t.Fatal(err)
	}
	self := uint32(os.Geteuid())
	for uid, ok := range map[uint32]bool{self: true, 0: true, self + 1: false, 65534: false} {
		if err := checkKEKFile("kek", owned{info, uid}, 0o077, "0400"); (err == nil) != ok {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
}

func TestParseKEK(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfb, 0xff}, 16))
	for _, text := range []string{good, good + "\n"} {
		if kek, err := parseKEK([]byte(text)); err != nil || len(kek) != 32 {
			t.Errorf("%q: %v", text, err)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "newline": "\n", "two newlines": good + "\n\n", "carriage return": good + "\r\n", "space before": " " + good,
		"space after": good + " ", "short": good[4:], "31 bytes": base64.StdEncoding.EncodeToString(make([]byte, 31)),
		"33 bytes": base64.StdEncoding.EncodeToString(make([]byte, 33)), "raw": string(make([]byte, 32)),
		"hex": strings.Repeat("0a", 32), "url alphabet": base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xfb, 0xff}, 16)),
		"no padding": strings.TrimRight(good, "="), "trailing bits": good[:42] + "9=", "newline inside": good[:20] + "\n" + good[21:],
		"newline for a character": good[:43] + "\n", "long": strings.Repeat("A", 128), "two keys": good + good,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseKEK([]byte(text))
			if err == nil {
				t.Fatal("accepted")
			}
			if len(text) > 20 && strings.Contains(err.Error(), text[:8]) {
				t.Errorf("the error shows the content: %v", err)
			}
		})
	}
}

func FuzzParseKEK(f *testing.F) {
	good := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, seed := range []string{"", good, good + "\n", good[:43], "\n" + good, strings.Repeat("\n", 44)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		kek, err := parseKEK(bytes.Clone(text))
		if err != nil {
			return
		}
		again := base64.StdEncoding.EncodeToString(kek)
		if len(kek) != 32 || (again != string(text) && again+"\n" != string(text)) {
			t.Errorf("%q was read as a KEK of %d bytes that is written otherwise", text, len(kek))
		}
	})
}
