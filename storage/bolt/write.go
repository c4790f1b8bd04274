package bolt

import (
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/countersign/countersign/storage"
)

// write is the one writer. It commits as soon as there is something and the commit before is durable; whatever comes
// meanwhile shares the next one.
func (s *Store) write() {
	defer close(s.stopped)
	for {
		group := s.queue.take()
		if len(group) == 0 || !s.serve(group) {
			return
		}
	}
}

// serve answers each request of group; false after a fatal error.
func (s *Store) serve(group []*request) bool {
	err := s.commit(group)
	if errors.Is(err, storage.ErrCorrupt) && len(group) > 1 {
		// Somebody's batch met a damaged page. Callers don't share outcomes: each gets a transaction of its own.
		for i := range group {
			if !s.serve(group[i : i+1]) {
				finish(group[i+1:], fmt.Errorf("%w: %w", storage.ErrClosed, s.gate.failed))
				return false
			}
		}
		return true
	}
	s.noteFull(err)
	switch {
	case err == nil:
		finish(group, nil)
		return true
	case errors.Is(err, storage.ErrBusy), errors.Is(err, storage.ErrCorrupt):
		finish(group, err)
		return true
	default:
		s.fail(err)
		finish(group, fmt.Errorf("%w: %w", storage.ErrUnknown, err))
		return false
	}
}

// finish answers the requests, all with err if there is one: an outcome that was judged by a transaction that didn't
// become durable is none.
func finish(group []*request, err error) {
	for _, r := range group {
		if err != nil {
			r.rev, r.err = 0, err
		}
		close(r.done)
	}
}

// fail ends the store. The queue is closed before Fatal, so that nobody is taken up after an unknown state.
func (s *Store) fail(err error) {
	s.gate.move(s.gate.last(), err)
	s.queue.close(fmt.Errorf("%w: %w", storage.ErrClosed, err))
	s.fatal.Do(func() { s.onFatal(fmt.Errorf("storage/bolt: commit: %w", err)) })
}

func (s *Store) noteFull(err error) {
	full := errors.Is(err, storage.ErrBusy)
	if s.full.Swap(full) == full {
		return
	}
	if full {
		s.log.Error("store: disk full, changes are refused", "err", err)
	} else {
		s.log.Info("store: there is room again")
	}
}

// commit evaluates the requests one after the other in one transaction and commits it. Its error is storage.ErrBusy
// (full) or storage.ErrCorrupt, both with nothing applied, or fatal.
func (s *Store) commit(group []*request) error {
	tx, err := s.beginWrite()
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	t := newTxn(tx, s.now(), s.rev, s.sums)
	id := tx.ID()
	err = s.evaluate(t, group)
	if err == nil && t.dirty {
		err = commitTx(tx)
	}
	s.rev = t.rev // also if it failed: a revision that somebody might have seen is never given out again
	if rollbackErr := rollbackTx(tx); rollbackErr != nil {
		return fmt.Errorf("roll back: %w", errors.Join(rollbackErr, err)) // bbolt's writer lock is lost: fatal
	}
	switch {
	case err != nil && errors.Is(err, storage.ErrCorrupt):
		s.log.Error("store: damaged", "err", err)
		return err
	case err != nil:
		return s.judge(err)
	case t.dirty:
		s.sums = t.sums
		s.gate.move(id, nil)
		s.changes.announce(t.changed)
	}
	return nil
}

// evaluate runs the requests. An error spoils the transaction for all of them; each one's own outcome is in the request.
func (s *Store) evaluate(t *txn, group []*request) (err error) {
	defer protect(&err)()
	if last := s.gate.last(); t.tx.ID() != last+1 {
		return fmt.Errorf("%w: transaction %d follows %d: a meta page is lost", storage.ErrCorrupt, t.tx.ID(), last)
	}
	for _, r := range group {
		r.rev, r.err = r.do(t)
		if t.spoiled != nil {
			return fmt.Errorf("%w: %w", storage.ErrCorrupt, t.spoiled)
		}
	}
	if t.dirty {
		return t.saveRev()
	}
	return nil
}

func (s *Store) beginWrite() (tx *bbolt.Tx, err error) {
	defer protect(&err)()
	return s.begin(true)
}

func commitTx(tx *bbolt.Tx) (err error) {
	defer protect(&err)()
	return tx.Commit()
}

// rollbackTx ends what is still open. It hides the corruption that it meets from errors.Is: after a commit that has
// ended there's nothing to do, and before that it touches memory only.
func rollbackTx(tx *bbolt.Tx) error {
	var err error
	func() {
		defer protect(&err)()
		if e := tx.Rollback(); e != nil && !errors.Is(e, bbolterrors.ErrTxClosed) {
			err = e
		}
	}()
	if err != nil {
		return errors.New(err.Error())
	}
	return nil
}

// judge finds out whether a failed commit is a full disk with nothing applied. All else is fatal: after a failed fsync
// of the meta page readers see the commit, and the kernel has forgotten that it's not on the disk.
func (s *Store) judge(err error) error {
	full := writeWasRefused(err)
	if !full && growWasRefused(err) {
		full = s.growIsRefused()
	}
	if !full {
		return err
	}
	id, viewErr := s.snapshot(func(*bbolt.Tx) error { return nil })
	if viewErr != nil || id != s.gate.last() {
		return fmt.Errorf("%w (then: %v, transaction %d)", err, viewErr, id) // the meta page was written after all
	}
	return fmt.Errorf("%w: %w", storage.ErrBusy, err)
}

// growIsRefused repeats what bbolt did, to see the cause that it hides: making the file longer. If that works now there
// was a cause that has gone, and the next commit uses the room. Nothing was written, so neither case loses anything.
func (s *Store) growIsRefused() bool {
	file, err := os.OpenFile(s.db.Path(), os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	defer file.Close() //nolint:errcheck // nothing was written
	info, err := file.Stat()
	if err != nil {
		return false
	}
	err = file.Truncate(info.Size() + int64(s.db.AllocSize))
	return err == nil || isFullErrno(err)
}
