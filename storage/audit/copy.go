package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Copy hands the log out as whole segment files up to the head at the time when before has returned, and gives that head. before
// is where the store is copied: the log of a copy must reach what its store remembers, so the store's comes first, and no
// segment leaves meanwhile. Every frame is checked on its way; a damaged one ends the copy. [ValidSegment] holds of each name.
func (l *Log) Copy(ctx context.Context, before func() error, segment func(name string, write func(io.Writer) error) error) (Head, error) {
	l.pruning.RLock()
	defer l.pruning.RUnlock()
	if err := before(); err != nil {
		return Head{}, err
	}
	head := l.Head()
	segs := l.index.all()
	for i, seg := range segs {
		if seg.first > head.Seq {
			break
		}
		err := segment(segmentName(seg.first), func(w io.Writer) error {
			return copySegment(ctx, filepath.Join(l.cfg.Dir, segmentName(seg.first)), seg.first, lastOf(segs, i, head.Seq), w)
		})
		if err != nil {
			return Head{}, fmt.Errorf("copy %s: %w", segmentName(seg.first), err)
		}
	}
	return head, nil
}

// ValidSegment tells whether name is that of a segment file.
func ValidSegment(name string) bool {
	_, ok := parseSegmentName(name)
	return ok
}

// copySegment writes the header and the frames up to the sequence last.
func copySegment(ctx context.Context, path string, first, last uint64, w io.Writer) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(file, head); err != nil {
		return err
	}
	if h, err := parseHeader(head); err != nil || h.first != first {
		return errors.Join(errHeader, err)
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	r := newFrameReader(file, headerSize)
	for seq := first; seq <= last; seq++ {
		if seq%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		f, raw, err := r.next()
		if err == nil && f.seq != seq {
			err = fmt.Errorf("record %d stands there", f.seq)
		}
		if err != nil {
			return damaged(first, r.off, seq, err)
		}
		if _, err := w.Write(raw); err != nil {
			return err
		}
	}
	return nil
}
