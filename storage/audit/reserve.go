package audit

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// fillBuffer is how much of the reserve is written at a time.
const fillBuffer = 64 << 10

// reserve is a file whose only use is to be given up when the disk is full, so that this can be recorded. It is
// allocated at once and then overwritten, step by step, with bytes that no file system can compress or share: on some,
// allocated space is only promised.
type reserve struct {
	path string
	want int64 // 0: none is kept

	mu      sync.Mutex // the writer gives up, the log's loop fills
	file    *os.File
	written int64
	noise   *rand.ChaCha8
}

func newReserve(path string, want int64) *reserve {
	return &reserve{path: path, want: max(want, 0), noise: rand.NewChaCha8([32]byte{})}
}

// hold allocates the file, all of it or nothing. Nothing is done when it is held already.
func (r *reserve) hold() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.want == 0 || r.file != nil {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if info.Size() == r.want { // of an earlier run, perhaps not filled to the end: that is done again, once
		r.file, r.written = f, 0
		return nil
	}
	err = f.Truncate(0)
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, r.want)
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return errors.Join(err, f.Truncate(0), f.Close())
	}
	r.file, r.written = f, 0
	return nil
}

// roomBeside tells, by an error, that the disk has no n bytes more than the reserve holds. Without it, a disk with
// space for the reserve and nothing else would be found full and free again in turn.
func (r *reserve) roomBeside(n int64) error {
	f, err := os.OpenFile(r.path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // the next growth will tell
	}
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// fill overwrites one more step of the file. It is called once a second, so that a start costs no burst of writes.
func (r *reserve) fill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.written >= r.want {
		return nil
	}
	b := make([]byte, fillBuffer) // small, or each step would be a collection of garbage in a daemon that has just begun
	end := min(r.written+step, r.want)
	for at := r.written; at < end; {
		part := b[:min(fillBuffer, end-at)]
		_, _ = r.noise.Read(part) // never fails
		if _, err := r.file.WriteAt(part, at); err != nil {
			return err
		}
		at += int64(len(part))
	}
	if err := unix.Fdatasync(int(r.file.Fd())); err != nil {
		return err
	}
	r.written = end
	return nil
}

// full tells whether fill has nothing left to do.
func (r *reserve) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file == nil || r.written >= r.want
}

// giveUp frees the space.
func (r *reserve) giveUp() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := errors.Join(r.file.Truncate(0), r.file.Close())
	r.file = nil
	return err
}

func (r *reserve) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}
