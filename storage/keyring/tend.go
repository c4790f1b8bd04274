package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

// The events of tokens. Keys that are sealed in the store have none: they can't be lost by themselves.
const (
	eventLost = "kms.lost" // nothing is signed with the keys of a token, and why by its code
	eventBack = "kms.back" // all of them are there again
)

// maxPIN is the longest PIN that is read, in bytes.
const maxPIN = 256

// readPIN reads the PIN of a token from the file that its place names, else from pinFile: the first line, in a regular file of the
// process's user or root that nobody else may use. Errors name the file and never what is in it.
func readPIN(p Place, pinFile string) (string, error) {
	path := p.pin
	if path == "" {
		path = pinFile
	}
	if path == "" {
		return "", errors.New("no file with it is named: add ?pin-source=/path to the URI, or set COUNTERSIGN_KEYS_PIN_FILE")
	}
	forbidden, mode := os.FileMode(0o077), "0400"
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && filepath.Dir(path) == filepath.Clean(dir) {
		forbidden, mode = 0o037, "0440" // systemd grants access by an ACL, as with the KEK
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return "", fmt.Errorf("%s is a symbolic link: name the file itself", path)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if err := checkKEKFile(path, info, forbidden, mode); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPIN+2))
	defer clear(text)
	if err != nil {
		return "", err
	}
	pin := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if pin == "" || len(pin) > maxPIN || strings.ContainsAny(pin, "\r\n\x00") {
		return "", fmt.Errorf("%s must hold the PIN and nothing else, in one line of at most %d bytes", path, maxPIN)
	}
	return pin, nil
}

// tend looks at the token from time to time, and opens it again when it was lost, until ctx ends. Both are told in the audit
// log, each once.
func (r *Ring) tend(ctx context.Context, d *device) {
	told := false // that it is lost
	for {
		wait := probeEvery
		lost := d.usable()
		if lost == nil {
			d.probe()
			lost = d.usable()
		}
		if lost != nil && ctx.Err() == nil {
			if !told {
				told = r.tell(ctx, d, eventLost, audit.Failed, countersign.AsError(lost))
			}
			wait = reviveEvery
			if d.attempt(ctx, r) {
				wait = probeEvery
			}
		}
		if told && d.usable() == nil {
			told = !r.tell(ctx, d, eventBack, audit.OK, nil)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-d.woken:
		case <-timer.C:
		}
		timer.Stop()
		if d.usable() != nil && wait == reviveEvery { // losses come in swarms: no attempt follows another at once
			select {
			case <-ctx.Done():
				return
			case <-time.After(reviveEvery / 5):
			}
		}
	}
}

// Retry has lost tokens looked at at once, also those that refused the PIN: who asks has put another one in place.
func (r *Ring) Retry() {
	for _, d := range r.devices {
		d.mu.Lock()
		d.final = false
		d.mu.Unlock()
		d.wake()
	}
}

// tell puts an event of a token into audit log and log.
func (r *Ring) tell(ctx context.Context, d *device, event string, outcome audit.Outcome, why *countersign.Error) bool {
	e := audit.Event{Type: event, Outcome: outcome, By: countersign.Daemon("key manager"), Subject: d.place.String()}
	if why != nil {
		e.Code = why.Code
		r.cfg.Logger.Error("keyring: a token is lost, and nothing is signed with its keys", "token", d.place.String(), "error", why)
	} else {
		r.cfg.Logger.Info("keyring: a token is back, with all of its keys", "token", d.place.String())
	}
	_, err := r.cfg.Audit.Append(ctx, e)
	return err == nil
}

// attempt revives the token unless that hangs: then the goroutine of it is waited for in the next attempt.
func (d *device) attempt(ctx context.Context, r *Ring) bool {
	done := make(chan error, 1)
	go func() { done <- d.revive() }()
	select {
	case err := <-done:
		if err != nil {
			r.cfg.Logger.Warn("keyring: a token can't be opened again yet", "token", d.place.String(), "error", err)
		}
		return err == nil
	case <-ctx.Done():
	case <-time.After(callWait):
	}
	return false
}

// probe finds out whether a token that is open still has its keys, by one of them.
func (d *device) probe() {
	d.mu.Lock()
	km := d.km
	uris := slices.Sorted(maps.Keys(d.keys))
	var k *heldKey
	if len(uris) > 0 {
		k = d.keys[uris[0]]
	}
	d.mu.Unlock()
	if km == nil || k == nil {
		return
	}
	if _, err := d.find(km, k.uri, k.public); err != nil {
		d.lose(km, err)
	}
}

// revive closes a token that was lost and opens it anew. It is in use again only when all keys were found, each as it is
// recorded.
func (d *device) revive() error {
	if !d.opening.TryLock() {
		return errHangs // of an attempt before
	}
	defer d.opening.Unlock()
	d.mu.Lock()
	old, down, final := d.km, d.down, d.final || d.ended
	d.mu.Unlock()
	if down == nil {
		return nil
	}
	if final {
		return down
	}
	if old != nil {
		// The module is told to end and to begin again: many find their token only then. It waits for calls that still run.
		_ = old.Close()
		d.mu.Lock()
		d.km = nil
		d.mu.Unlock()
	}
	km, err := d.open()
	if err != nil {
		d.mu.Lock()
		d.down, d.final = d.gone(err), refused(err)
		d.mu.Unlock()
		return err
	}
	found := map[string]*openKey{}
	d.mu.Lock()
	keys := maps.Clone(d.keys)
	d.mu.Unlock()
	for uri, k := range keys {
		signer, err := d.find(km, uri, k.public)
		if err != nil {
			_ = d.call(km.Close)
			return err
		}
		found[uri] = &openKey{km, signer}
	}
	for uri, in := range found {
		keys[uri].in.Store(in)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		go func() { _ = km.Close() }()
		return d.down
	}
	d.km, d.down = km, nil
	return nil
}
