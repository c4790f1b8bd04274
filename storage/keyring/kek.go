package keyring

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	kekSize = 32 // bytes: AES-256
	kekName = "kek"
)

// What the KEK may be wrong about. Match them with errors.Is.
var (
	ErrNoKEK  = errors.New("keyring: there is no KEK")                   // no file where one may be
	ErrKEK    = errors.New("keyring: the KEK does not fit the store")    // never answered by making a new key
	ErrSealed = errors.New("keyring: sealed, no KEK has been given yet") // nothing can be signed
)

// NewKEK is 32 random bytes.
func NewKEK() []byte {
	kek := make([]byte, kekSize)
	_, _ = rand.Read(kek) // never fails: crypto/rand ends the process instead
	return kek
}

// ReadKEK reads the KEK from $CREDENTIALS_DIRECTORY/kek, else from <dir>/kek: 32 bytes as padded standard base64 with
// an optional final newline, in a regular file (no link) that belongs to the process's user or to root. Nobody else may
// have any right to <dir>/kek (0400, 0600). Under $CREDENTIALS_DIRECTORY its group may read (0440): systemd grants access
// by an ACL, whose mask shows as the group's bits.
//
// It is [ErrNoKEK] if the file is in neither place. Every other error says what is wrong and how to mend it, never what
// the file holds. The caller clears the result when it is no longer needed.
func ReadKEK(dir string) ([]byte, error) {
	if credentials := os.Getenv("CREDENTIALS_DIRECTORY"); credentials != "" {
		if !filepath.IsAbs(credentials) {
			return nil, fmt.Errorf("$CREDENTIALS_DIRECTORY is %q: it must be an absolute path", credentials)
		}
		kek, err := readKEKFile(filepath.Join(credentials, kekName), 0o037, "0440")
		if !errors.Is(err, fs.ErrNotExist) {
			return kek, err
		}
	}
	kek, err := readKEKFile(filepath.Join(dir, kekName), 0o077, "0400")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: neither $CREDENTIALS_DIRECTORY/%s nor %s exists", ErrNoKEK, kekName, filepath.Join(dir, kekName))
	}
	return kek, err
}

// readKEKFile opens first and judges the open file: a check of the path could be overtaken by a rename.
func readKEKFile(path string, forbidden fs.FileMode, mode string) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link: put the file itself there", path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the KEK: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the KEK: %w", err)
	}
	if err := checkKEKFile(path, info, forbidden, mode); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, 128))
	defer clear(text)
	if err != nil {
		return nil, fmt.Errorf("read the KEK: %w", err)
	}
	kek, err := parseKEK(text)
	if err != nil {
		return nil, fmt.Errorf("%s %w: restore it from where it was kept when the daemon was initialised", path, err)
	}
	return kek, nil
}

func checkKEKFile(path string, info fs.FileInfo, forbidden fs.FileMode, mode string) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file (%s): put the file itself there", path, info.Mode().Type())
	}
	if info.Mode().Perm()&forbidden != 0 {
		return fmt.Errorf("%s has mode %04o, others than its owner may use it: chmod %s %s", path, info.Mode().Perm(), mode, path)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: its owner can't be told on this system", path)
	}
	if self := uint32(os.Geteuid()); stat.Uid != self && stat.Uid != 0 {
		return fmt.Errorf("%s belongs to uid %d, neither to uid %d nor to root: chown %d %s", path, stat.Uid, self, self, path)
	}
	return nil
}

// parseKEK reads the one accepted form. Its errors never hold any of text.
func parseKEK(text []byte) ([]byte, error) {
	want := base64.StdEncoding.EncodedLen(kekSize)
	if n := len(text); n == want+1 && text[n-1] == '\n' {
		text = text[:n-1]
	}
	if len(text) != want {
		return nil, fmt.Errorf("has %d bytes, not the %d characters of a KEK", len(text), want)
	}
	kek := make([]byte, base64.StdEncoding.DecodedLen(want))
	n, err := base64.StdEncoding.Strict().Decode(kek, text)
	// The decoder skips line breaks, so a full-length text with one decodes to fewer bytes.
	if err != nil || n != kekSize {
		clear(kek)
		return nil, fmt.Errorf("does not hold %d bytes in padded standard base64", kekSize)
	}
	return kek[:n:n], nil
}

// WriteKEK creates <dir>/kek with mode 0400, durably. It never replaces a file: one that exists is an error that
// matches fs.ErrExist. A file that could not be written in full is removed again; a crash in between leaves a short
// one, which [ReadKEK] refuses.
func WriteKEK(dir string, kek []byte) error {
	if len(kek) != kekSize {
		return fmt.Errorf("a KEK has %d bytes, this one has %d", kekSize, len(kek))
	}
	return writeKEKFile(filepath.Join(dir, kekName), kek)
}

func writeKEKFile(path string, kek []byte) error {
	text := append(base64.StdEncoding.AppendEncode(nil, kek), '\n')
	defer clear(text)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o400)
	if err != nil {
		return fmt.Errorf("write the KEK: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the KEK: %w", errors.Join(err, os.Remove(path)))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write the KEK: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write the KEK: %w", err)
	}
	return nil
}
