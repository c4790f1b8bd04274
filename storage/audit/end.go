package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ReadEnd finds the newest whole record of the log in dir, which nobody needs to have open, and holds it to head, what
// the store remembers. It reads the segments from head on and changes nothing. A log that does not reach head or differs from
// it is a [*TamperedError]; what a crash left behind the last whole record is not looked at.
func ReadEnd(ctx context.Context, dir string, head Head) (Head, error) {
	firsts, err := listSegments(dir)
	if err != nil {
		return Head{}, fmt.Errorf("read the audit directory: %w", err)
	}
	if len(firsts) == 0 {
		if head.Seq > 0 {
			return Head{}, tampered("the store remembers record %d, and %s holds no segment", head.Seq, dir)
		}
		return Head{Hash: hexHash(hash{})}, nil
	}
	begin := len(firsts) - 1
	for begin > 0 && firsts[begin] > head.Seq+1 {
		begin--
	}
	if firsts[begin] > head.Seq+1 {
		return Head{}, tampered("the store remembers record %d, and the log begins with %d", head.Seq, firsts[begin])
	}
	var t tail
	for i, first := range firsts[begin:] {
		h, err := readHeader(dir, first)
		if err != nil {
			return Head{}, tampered("%s: %s", segmentName(first), err)
		}
		if i == 0 {
			t.tip = tip{seq: first - 1, hash: h.prev}
		}
		if t.seq+1 != first || t.hash != h.prev {
			return Head{}, tampered("%s does not continue the segment before", segmentName(first))
		}
		if err := t.readFrames(ctx, filepath.Join(dir, segmentName(first)), head); err != nil {
			return Head{}, err
		}
	}
	if t.seq < head.Seq {
		return Head{}, tampered("it can be read up to record %d, and the store remembers %d", t.seq, head.Seq)
	}
	return Head{Seq: t.seq, Hash: hexHash(t.hash)}, nil
}

// readFrames goes on over the whole frames of one segment.
func (t *tail) readFrames(ctx context.Context, path string, head Head) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	defer file.Close()
	if err := t.fits(head); err != nil {
		return err
	}
	r := newFrameReader(io.NewSectionReader(file, headerSize, 1<<62), headerSize)
	for {
		f, raw, err := r.next()
		if errors.Is(err, errZero) || errors.Is(err, errFrame) || err == nil && (f.seq != t.seq+1 || f.prev != t.hash) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the audit log: %w", err)
		}
		if f.seq%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		t.seq, t.hash = f.seq, hashFrame(raw)
		if err := t.fits(head); err != nil {
			return err
		}
	}
}
