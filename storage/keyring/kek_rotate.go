package keyring

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// A rotation of the KEK replaces the file <dir>/kek and the wrapping of every key. Where it may crash:
//
//	while kek.next is written:  the store and kek are as they were; the next rotation replaces what is left.
//	before the one Apply:       the same.
//	after it:                   all keys are under kek.next, and kek fits no longer. Whoever opens the ring with kek finds
//	                            that, takes kek.next in its place, and renames it.
//	after the rename:           all is done; the outcome may be missing in the audit log, and is told as of all changes.
//
// One Apply re-wraps all keys, so no moment has keys under both.

const (
	nextKEK      = "kek.next"
	eventRewrap  = "kek.rotated"
	maxRewrapped = storage.MaxOps - 2 // besides the head and the check value
)

// rewrap is the part of a change that puts all keys under another KEK.
type rewrap struct {
	kek     cipher.AEAD
	entries []entry
	check   []byte
}

// rewrapped is s with its data key under another KEK. The private half is not touched.
func rewrapped(from, to cipher.AEAD, id string, purpose Purpose, s sealed) (sealed, error) {
	ad := additionalData(labelDataKey, id, purpose, s.Version)
	dataKey, err := from.Open(nil, nil, s.DataKey, ad)
	defer clear(dataKey)
	if err != nil {
		return sealed{}, errors.New("its data key does not unseal")
	}
	s.DataKey = to.Seal(nil, nil, dataKey, ad)
	return s, nil
}

// RotateKEK makes a new KEK, re-wraps all keys with it, and puts its file in the place of the old one's in Config.KEKDir. It
// tells how many keys it re-wrapped. Keys sign all the while. After a crash in the middle, opening the ring finishes it.
// The caller must be an admin. Codes: CodeRole, CodeSealed, CodeKEKPlace, CodeKeysMany, CodeBusy, CodeUnknownOutcome, CodeAudit.
func (r *Ring) RotateKEK(ctx context.Context, by countersign.Caller) (int, error) {
	n, err := r.rotateKEK(ctx, by)
	if code := countersign.AsError(err).Code; err != nil && (code == countersign.CodeRole || code == countersign.CodeKEKPlace || code == countersign.CodeKeysMany) {
		event := audit.Event{Type: eventRewrap, Outcome: audit.Denied, By: by, Code: code}
		if _, untold := r.cfg.Audit.Append(ctx, event); untold != nil {
			return 0, untold
		}
	}
	return n, err
}

func (r *Ring) rotateKEK(ctx context.Context, by countersign.Caller) (int, error) {
	if by.Role < countersign.RoleAdmin {
		return 0, countersign.Errorf(countersign.CodeRole, "the KEK is rotated by an admin; %s has the role %s", by.Name, by.Role)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kek == nil {
		return 0, sealedError()
	}
	st, err := load(ctx, r.cfg.Store)
	if err != nil {
		return 0, storeError(err)
	}
	if len(st.entries) > maxRewrapped {
		return 0, countersign.Errorf(countersign.CodeKeysMany, "there are %d keys on record, and at most %d can be re-wrapped at once", len(st.entries), maxRewrapped).
			WithHint("expired keys leave the store 30 days after their end")
	}
	if err := r.checkPlace(st); err != nil {
		return 0, err
	}
	raw := NewKEK()
	defer clear(raw)
	next, err := newAEAD(raw)
	if err != nil {
		return 0, err
	}
	c, err := rewrapAll(st, r.kek, next)
	if err != nil {
		return 0, storeError(err)
	}
	if err := writeNextKEK(r.cfg.KEKDir, raw); err != nil {
		return 0, errPlace("the new KEK can't be written to %s", r.cfg.KEKDir).Because(err)
	}
	err = r.commit(ctx, by, st, c)
	if !fits(next, r.snap.Load().state.check) {
		// Unless it may still happen: then the file is what the next start needs.
		if known := countersign.AsError(err); known.Code != countersign.CodeUnknownOutcome && known.Code != countersign.CodeInternal {
			_ = os.Remove(filepath.Join(r.cfg.KEKDir, nextKEK))
		}
		return 0, storeError(err)
	}
	r.kek = next
	if place := placeKEK(r.cfg.KEKDir); place != nil {
		return 0, errPlace("all keys are under the new KEK, but its file can't take the place of the old one's").
			WithHint("keep %s in the daemon's directory: the next start takes it. Mend the directory, then start the daemon anew", nextKEK).Because(place)
	}
	if err != nil {
		return 0, err
	}
	return len(c.rewrap.entries), nil
}

func errPlace(format string, a ...any) *countersign.Error {
	return countersign.Errorf(countersign.CodeKEKPlace, format, a...)
}

// checkPlace demands that the KEK in force is the file that a rotation would replace. r.mu is held.
func (r *Ring) checkPlace(st state) error {
	if r.cfg.KEKDir == "" || credentialKEK() {
		return errPlace("the KEK does not come from the daemon's directory, so it can't be replaced there").
			WithHint("a KEK that systemd or another keeper hands over stays with it; move it to <dir>/%s, mode 0400, to rotate it here", kekName)
	}
	raw, err := ReadKEK(r.cfg.KEKDir)
	if err != nil {
		return errPlace("the KEK's file can't be read").WithHint("put it back as <dir>/%s, mode 0400", kekName).Because(err)
	}
	defer clear(raw)
	aead, err := newAEAD(raw)
	if err != nil {
		return err
	}
	if !fits(aead, st.check) || !fits(r.kek, st.check) {
		return errPlace("the KEK's file is not the one that is in force").
			WithHint("if a rotation was broken off, start the daemon anew: it finishes that")
	}
	return nil
}

// rewrapAll is the change that puts all keys of st under another KEK.
func rewrapAll(st state, from, to cipher.AEAD) (change, error) {
	c := change{event: eventRewrap, rewrap: &rewrap{kek: to, check: checkValue(to)}}
	for id, e := range st.entries {
		var err error
		if e.record.Sealed, err = rewrapped(from, to, id, e.key.Purpose, e.record.Sealed); err != nil {
			return change{}, damaged("key %s: %v", id, err)
		}
		c.rewrap.entries = append(c.rewrap.entries, e)
	}
	return c, nil
}

// ops are those of a change that puts all keys of st under another KEK; head is the one that writes the head.
func (w *rewrap) ops(st state, head storage.Op) ([]storage.Op, error) {
	put, err := checkRecords().Put(kekKey, check{Value: w.check}, time.Time{}, unchanged(st.checkRev))
	ops := []storage.Op{head, put}
	for _, e := range w.entries {
		if err != nil {
			break
		}
		put, err = keyRecords().Put(e.key.ID, e.record, time.Time{}, storage.Cond{Rev: e.rev})
		ops = append(ops, put)
	}
	return ops, err
}

// credentialKEK tells whether [ReadKEK] takes the KEK from $CREDENTIALS_DIRECTORY.
func credentialKEK() bool {
	credentials := os.Getenv("CREDENTIALS_DIRECTORY")
	if credentials == "" {
		return false
	}
	_, err := os.Lstat(filepath.Join(credentials, kekName))
	return !errors.Is(err, fs.ErrNotExist)
}

// writeNextKEK writes kek.next, durably. What a broken-off rotation left there is in force nowhere: the caller has seen that
// the file kek is.
func writeNextKEK(dir string, kek []byte) error {
	path := filepath.Join(dir, nextKEK)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeKEKFile(path, kek)
}

// placeKEK makes kek.next the KEK's file; the old one is gone with that.
func placeKEK(dir string) error {
	if err := os.Rename(filepath.Join(dir, nextKEK), filepath.Join(dir, kekName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// finishRotation gives the KEK that a broken-off rotation put the store under, once the file kek does not fit any more, and
// puts its file in place. false: there was no such rotation, or none that fits.
func (r *Ring) finishRotation(st state) (cipher.AEAD, bool, error) {
	if r.cfg.KEKDir == "" || st.checkRev == 0 {
		return nil, false, nil
	}
	raw, err := readKEKFile(filepath.Join(r.cfg.KEKDir, nextKEK), 0o077, "0400")
	if err != nil { // also one that is short: it was never in force
		return nil, false, nil
	}
	defer clear(raw)
	aead, err := newAEAD(raw)
	if err != nil || !fits(aead, st.check) {
		return nil, false, nil
	}
	if credentialKEK() { // what is placed in the directory would not be read there
		return aead, true, nil
	}
	if err := placeKEK(r.cfg.KEKDir); err != nil {
		return nil, false, fmt.Errorf("finish a rotation of the KEK: %w", err)
	}
	r.cfg.Logger.Warn("keyring: a rotation of the KEK was broken off, and is finished now")
	return aead, true, nil
}
