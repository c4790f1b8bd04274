package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	segmentSuffix = ".segment"
	newSuffix     = ".new"
	step          = 4 << 20  // zeros are written ahead by this much: overwriting them is twice as fast as growing
	smallStep     = 64 << 10 // the same, when the disk is full and only the log's own event is to be written
	zeroChunk     = 256 << 10
)

// segmentName sorts by number as text does.
func segmentName(first uint64) string { return fmt.Sprintf("%020d", first) + segmentSuffix }

func parseSegmentName(name string) (first uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	first, err := strconv.ParseUint(digits, 10, 64)
	return first, err == nil && first > 0
}

// listSegments are the first sequences of the segment files in dir, ascending. Other files are none of the log's.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, e := range entries {
		if first, ok := parseSegmentName(e.Name()); ok {
			firsts = append(firsts, first)
		}
	}
	slices.Sort(firsts)
	return firsts, nil
}

// readHeader reads the header of the segment that begins with first, and holds it to the file's name.
func readHeader(dir string, first uint64) (header, error) {
	f, err := os.Open(filepath.Join(dir, segmentName(first)))
	if err != nil {
		return header{}, err
	}
	defer f.Close()
	b := make([]byte, headerSize)
	if _, err := f.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return header{}, errHeader
	} else if err != nil {
		return header{}, err
	}
	h, err := parseHeader(b)
	if err == nil && h.first != first {
		err = errHeader
	}
	return h, err
}

// syncError is a failed fsync: what is on the disk is not known, and asking again would be answered with a lie.
type syncError struct{ err error }

func (e *syncError) Error() string { return "fsync: " + e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

// diskFull tells want of space from all other errors.
func diskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// segment is the file that is written. Only the writer uses it.
type segment struct {
	file  *os.File
	path  string
	off   int64 // end of the durable frames
	size  int64 // zeros are written, and durable, up to here
	limit int64
	torn  bool // a write failed: there may be a part of it behind off
}

// createSegment makes the file under another name, so that a segment file always has a whole header, and returns when
// the file and its name are durable.
func createSegment(dir string, h header, limit, ahead int64) (_ *segment, err error) {
	path := filepath.Join(dir, segmentName(h.first))
	f, err := os.OpenFile(path+newSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(path + newSuffix) // gives the space back; Open removes it too
		}
	}()
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return nil, err
	}
	s := &segment{file: f, path: path, off: headerSize, size: headerSize, limit: limit}
	if err := s.grow(0, ahead); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, s.syncFailed(err)
	}
	// Opened before the file has its name: after that only a failed fsync, which ends the log, may keep it from being
	// written on. A segment with a name that the log went on without would be a hole that no start takes.
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := os.Rename(path+newSuffix, path); err != nil {
		return nil, err
	}
	if err := d.Sync(); err != nil {
		return nil, &syncError{err}
	}
	return s, nil
}

// room is how much more may be written before the next segment must begin.
func (s *segment) room() int64 { return s.limit - s.off }

// grow writes zeros ahead, by the given step, unless n bytes fit into those that are there. After an error that is no
// syncError the file is as it was.
func (s *segment) grow(n, by int64) error {
	need := s.off + n
	if need <= s.size && n > 0 {
		return nil
	}
	target := max(need, min(s.size+by, s.limit))
	zeros := make([]byte, zeroChunk)
	for at := s.size; at < target; {
		w, err := s.file.WriteAt(zeros[:min(zeroChunk, target-at)], at)
		if err != nil {
			return errors.Join(err, s.file.Truncate(s.size))
		}
		at += int64(w)
	}
	if err := s.datasync(); err != nil {
		if !diskFull(err) {
			return err
		}
		// A file system that allocates late says so only now. Nothing but zeros is lost with these pages.
		return errors.Join(unwrapSync(err), s.file.Truncate(s.size))
	}
	s.size = target
	return nil
}

// write puts b behind the durable frames and makes it durable. The caller has grown the file. After an error that is no
// syncError, mend must be done before the next write.
func (s *segment) write(b []byte) error {
	if _, err := s.file.WriteAt(b, s.off); err != nil {
		s.torn = true
		return err
	}
	if err := s.datasync(); err != nil {
		return err
	}
	s.off += int64(len(b))
	return nil
}

// mend removes the torn part of a failed write.
func (s *segment) mend() error {
	if !s.torn {
		return nil
	}
	return s.cutBack()
}

// cutBack removes everything behind the durable frames, also the zeros.
func (s *segment) cutBack() error {
	if err := s.file.Truncate(s.off); err != nil {
		return err
	}
	s.size, s.torn = s.off, false
	return nil
}

// finish gives the zeros of a full segment back. It need not be durable: readers stop at zeros as at the end.
func (s *segment) finish() error {
	return errors.Join(s.file.Truncate(s.off), s.file.Close())
}

// present tells whether the file that is written is still the one that has its name.
func (s *segment) present() error {
	named, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	open, err := s.file.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(named, open) {
		return fmt.Errorf("%s was replaced: %w", s.path, fs.ErrNotExist)
	}
	return nil
}

func (s *segment) datasync() error {
	for {
		err := unix.Fdatasync(int(s.file.Fd()))
		if err == nil {
			return nil
		}
		if err != unix.EINTR { // a signal, no verdict (as os.File.Sync treats it); any other failure is never tried again
			return s.syncFailed(err)
		}
	}
}

func (s *segment) syncFailed(err error) error {
	return &syncError{&fs.PathError{Op: "fdatasync", Path: s.path, Err: err}}
}

func unwrapSync(err error) error {
	var failed *syncError
	if errors.As(err, &failed) {
		return failed.err
	}
	return err
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return &syncError{err}
	}
	return nil
}
