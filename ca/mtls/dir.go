package mtls

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/identity"
)

// dataLink is the one link that a writer of an identity directory renames (package identity): as long as it leads to the
// same place, nothing changed.
const dataLink = "..data"

// look takes over what is in Dir when it is newer than what is had, and writes what could not be written before.
func (s *Source) look() {
	if s.cfg.Dir == "" {
		return
	}
	link, linkErr := os.Readlink(filepath.Join(s.cfg.Dir, dataLink))
	s.mu.Lock()
	same := linkErr == nil && link == s.state.link && s.state.dirErr == nil
	unwritten := s.state.unwritten
	s.mu.Unlock()
	if !same {
		s.reload(link, errors.Is(linkErr, fs.ErrNotExist))
	}
	if unwritten {
		s.store()
	}
}

func (s *Source) reload(link string, unlinked bool) {
	found, err := identity.Load(s.cfg.Dir)
	s.mu.Lock()
	before := s.state.dirErr
	s.state.dirErr = s.judgeDir(found, err, unlinked)
	bad := s.state.dirErr
	if bad == nil {
		s.state.link = link
	}
	taken := bad == nil && found != nil && s.newer(found)
	if taken {
		s.replace(found)
		s.state.unwritten, s.state.held, s.state.inDir = false, nil, true
		s.state.retryAt, s.state.waits, s.state.failures, s.state.lastErr = time.Time{}, 0, 0, nil
	}
	s.mu.Unlock()
	switch {
	case taken:
		s.cfg.Logger.Info("the identity was read", "dir", s.cfg.Dir, "id", found.ID.String(), "serial", found.Serial, "not_after", found.NotAfter)
		s.emit(Event{Kind: Reloaded})
	case bad != nil && (before == nil || before.Error() != bad.Error()):
		s.cfg.Logger.Error("the identity directory can't be used", "error", bad)
		s.emit(Event{Kind: Failed, Reason: Directory, Err: bad})
	}
}

// judgeDir tells why Dir is not to be touched; nil: it holds an identity that is good, or none at all. The caller holds the
// lock. A key that can't be read is never replaced: it may be the only one, and whoever made it unreadable has to know.
func (s *Source) judgeDir(found *identity.Identity, err error, unlinked bool) error {
	dir := s.cfg.Dir
	want := s.cfg.ID
	if s.cur != nil {
		want = s.cur.ID
	}
	switch {
	case err != nil && unlinked && errors.Is(err, fs.ErrNotExist):
		if _, keyErr := os.Lstat(filepath.Join(dir, identity.KeyFile)); errors.Is(keyErr, fs.ErrNotExist) {
			if s.cfg.ReadOnly || !s.cfg.enrols() && s.cur == nil {
				return fmt.Errorf("%s holds no identity yet: join with `countersign join STRING --out %s`, or wait for the agent that fills it", dir, dir)
			}
			return nil
		}
		return errDir(dir, err)
	case err != nil:
		return errDir(dir, err)
	case !want.IsZero() && found.ID != want:
		return fmt.Errorf("%s holds the identity of %s, and this is %s: start anew to be another service, or name another directory", dir, found.ID, want)
	case found.ID.Kind() != countersign.ServiceID:
		return fmt.Errorf("%s holds the identity of %s, which is no service", dir, found.ID)
	}
	return nil
}

func errDir(dir string, err error) error {
	return fmt.Errorf("%w; the key there is not replaced: let this user read it, or put the directory back from a copy, or move %s away and join again", err, dir)
}

// newer tells whether found, in Dir, was issued after what is had. The caller holds the lock.
func (s *Source) newer(found *identity.Identity) bool {
	switch {
	case s.cur == nil || s.cfg.ReadOnly && found.Serial != s.cur.Serial:
		return true
	case found.Serial == s.cur.Serial:
		return !s.state.unwritten && !sameRoots(found.Roots, s.cur.Roots)
	case s.state.unwritten: // times are whole seconds
		return found.NotBefore.After(s.cur.NotBefore)
	}
	return !found.NotBefore.Before(s.cur.NotBefore)
}

// store writes what is new into Dir, and makes an identity that was held the one that is used. While it can't, as on a full
// disk, the old one is used on and each look tries again; only when that is over, or is not in Dir either, the new one is
// used from memory, since nothing is to be lost then.
func (s *Source) store() {
	s.mu.Lock()
	i, unwritten, bad, failedBefore := s.cur, s.state.unwritten, s.state.dirErr, errors.Is(s.state.lastErr, errWrite)
	if s.state.held != nil {
		i = s.state.held
	}
	s.mu.Unlock()
	if s.cfg.Dir == "" || s.cfg.ReadOnly || !unwritten || i == nil {
		return
	}
	err := bad
	if err == nil {
		b := i.Bundle()
		b.Password = s.cfg.Password
		err = identity.Write(s.cfg.Dir, b)
	}
	if err != nil {
		err = fmt.Errorf("%w: %w; %s keeps the identity before, which is used until it is over, and writing is tried again", errWrite, err, s.cfg.Dir)
	}
	s.mu.Lock()
	if err == nil {
		s.state.unwritten, s.state.inDir = false, true
		s.state.link = "" // another writer may have come after: the next look reads
	}
	if err != nil || failedBefore {
		s.state.lastErr = err
	}
	used, kind := s.use(err == nil), s.state.heldKind
	s.mu.Unlock()
	if err != nil && !failedBefore {
		s.cfg.Logger.Error("the identity can't be written", "error", err)
		s.emit(Event{Kind: Failed, Reason: Write, Err: err})
	}
	if used != nil {
		s.cfg.Logger.Info("a new certificate", "how", kind, "id", used.ID.String(), "serial", used.Serial, "not_after", used.NotAfter)
		s.emit(Event{Kind: kind})
	}
}

// use makes the held identity the one that is used, if it is written or the other is over; nil: it is not. The caller holds
// the lock.
func (s *Source) use(written bool) *identity.Identity {
	i, now := s.state.held, s.now()
	switch {
	case i == nil:
		return nil
	case !written && now.After(i.NotAfter): // it came to nothing
		s.state.held, s.state.unwritten = nil, false
		return nil
	case !written && s.cur != nil && s.state.inDir && !now.After(s.cur.NotAfter):
		return nil
	}
	s.state.held, s.state.inDir = nil, written
	s.replace(i)
	return i
}

var errWrite = errors.New("mtls: write the identity")

func readAll(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	return b, err
}
