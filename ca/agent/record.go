package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	recordFile = "agent.json" // beside the links
	keptLink   = "..kept"     // leads to the version that the program was last seen to serve
	dataLink   = "..data"     // leads to the version that is current (package identity)
)

// record is what the agent notes of an identity directory: which files were delivered to the program.
type record struct {
	Serial   string    `json:"serial"` // hooks went well, and it was served if that is looked at
	Roots    string    `json:"roots"`  // hash of the roots that came with it: hooks run for new roots too
	At       time.Time `json:"at"`
	Verified bool      `json:"verified"` // it was seen to be served
}

// readRecord gives the zero record when there is none or it can't be read: then the hooks run once more, which does no harm.
func readRecord(dir string) record {
	var r record
	body, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil || json.Unmarshal(body, &r) != nil {
		return record{}
	}
	return r
}

func writeRecord(dir string, r record) error {
	body, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, recordFile), append(body, '\n'), 0o644)
}

// versionOf is the version directory with the certificate serial that ..data leads to; "" if another one is current by now.
func versionOf(dir, serial string) (string, error) {
	target, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(target, "-"+serial) {
		return "", nil
	}
	return target, nil
}

// keep makes ..kept lead to the version of serial, which the program serves: renewals leave it alone from now on
// (identity.Write), and the one that was kept before may go.
func keep(dir, serial string) error {
	version, err := versionOf(dir, serial)
	if err != nil || version == "" {
		return err
	}
	link := filepath.Join(dir, keptLink)
	if now, err := os.Readlink(link); err == nil && now == version {
		return nil
	}
	next := link + "_next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(version, next); err != nil {
		return err
	}
	return os.Rename(next, link)
}

// kept is the path of the version that the program was last seen to serve; "" if none is held.
func kept(dir string) string {
	version, err := os.Readlink(filepath.Join(dir, keptLink))
	if err != nil {
		return ""
	}
	return filepath.Join(dir, version)
}
