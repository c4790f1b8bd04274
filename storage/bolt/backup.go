package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

const (
	backupRate = 256 << 20 // bytes per second that a backup takes from the disk
	backupStep = 1 << 20
)

// Backup writes a consistent copy of the file, which [Open] opens. While a read transaction is open bbolt reuses no page
// and the file grows with each commit, and bbolt can't resume a copy; so the copy goes into a nameless file beside
// the store, at the disk's pace, and from there to w at w's. It needs that much room: without it, storage.ErrBusy.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	file, err := os.CreateTemp(s.dir, ".backup-*")
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer file.Close() //nolint:errcheck // it has no name any more
	if err := os.Remove(file.Name()); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	slow := &throttle{ctx: ctx, w: file, start: time.Now(), rate: backupRate}
	if err := s.view(ctx, func(tx *bbolt.Tx) error { _, err := tx.WriteTo(slow); return err }); err != nil {
		if isFullErrno(err) {
			err = errors.Join(storage.ErrBusy, err)
		}
		return fmt.Errorf("backup: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if _, err := io.CopyBuffer(&throttle{ctx: ctx, w: w}, struct{ io.Reader }{file}, make([]byte, backupStep)); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// throttle ends with ctx and, if rate is not 0, lets that many bytes per second through.
type throttle struct {
	ctx   context.Context //nolint:containedctx // io.Writer has no other way
	w     io.Writer
	start time.Time
	rate  int64
	n     int64
}

func (t *throttle) Write(b []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.w.Write(b)
	t.n += int64(n)
	if t.rate == 0 || err != nil {
		return n, err
	}
	ahead := time.Duration(t.n*int64(time.Second)/t.rate) - time.Since(t.start)
	if ahead < 10*time.Millisecond { // shorter sleeps only cost
		return n, nil
	}
	select {
	case <-time.After(ahead):
		return n, nil
	case <-t.ctx.Done():
		return n, t.ctx.Err()
	}
}
