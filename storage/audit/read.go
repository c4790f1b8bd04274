package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	countersign "github.com/countersign/countersign"
)

const readBuffer = 256 << 10

// frameReader reads the frames of one segment in order. What it returns is valid until the next call.
type frameReader struct {
	br  *bufio.Reader
	buf []byte
	off int64 // where the next frame begins
}

func newFrameReader(r io.Reader, off int64) *frameReader {
	return &frameReader{br: bufio.NewReaderSize(r, readBuffer), off: off}
}

// next reads one frame. errZero: zeros or the end of the file follow; errFrame: something that is no whole frame does.
func (r *frameReader) next() (f frame, raw []byte, err error) {
	head, err := r.br.Peek(frameHead)
	if err != nil && !errors.Is(err, io.EOF) {
		return frame{}, nil, err
	}
	if len(bytes.Trim(head, "\x00")) == 0 {
		return frame{}, nil, errZero
	}
	if len(head) < frameHead {
		return frame{}, nil, errFrame
	}
	n, err := payloadSize(head)
	if err != nil {
		return frame{}, nil, errFrame
	}
	size := frameHead + n
	if cap(r.buf) < size {
		r.buf = make([]byte, size, max(size, 4<<10))
	}
	raw = r.buf[:size]
	if _, err := io.ReadFull(r.br, raw); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errFrame
		}
		return frame{}, nil, err
	}
	f, _, err = parseFrame(raw)
	if err != nil {
		return frame{}, raw, errFrame
	}
	r.off += int64(size)
	return f, raw, nil
}

// scan calls visit for the durable frames of a segment from m on, up to the sequence last, until visit returns false.
// Anything that is not the next frame is an error of CodeDamaged.
func (l *Log) scan(ctx context.Context, seg segmentInfo, m mark, last uint64, visit func(frame, hash) bool) error {
	file, err := os.Open(filepath.Join(l.cfg.Dir, segmentName(seg.first)))
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(m.offset, io.SeekStart); err != nil {
		return err
	}
	r := newFrameReader(file, m.offset)
	for seq := m.seq; seq <= last; seq++ {
		if seq%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		f, raw, err := r.next()
		if err == nil && f.seq != seq {
			err = fmt.Errorf("record %d stands there", f.seq)
		}
		if err != nil {
			return damaged(seg.first, r.off, seq, err)
		}
		if !visit(f, hashFrame(raw)) {
			return nil
		}
	}
	return nil
}

func damaged(first uint64, offset int64, seq uint64, err error) error {
	return countersign.Errorf(countersign.CodeDamaged, "the audit log is damaged at record %d", seq).
		WithHint("countersign audit verify tells the extent").
		Because(fmt.Errorf("%s at %d: %w", segmentName(first), offset, err))
}

// lastOf is the last sequence of segs[i], as far as it is durable.
func lastOf(segs []segmentInfo, i int, head uint64) uint64 {
	if i+1 < len(segs) {
		return min(head, segs[i+1].first-1)
	}
	return head
}

// Records yields the events with sequences from on, in order, up to the newest that is durable when the iteration
// begins. It starts at the segment that holds from; records that retention removed are passed over. After an error, of
// which a damaged record is one, it ends.
func (l *Log) Records(ctx context.Context, from uint64) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		head := l.head.Load().seq // before the index: a segment that begins later has nothing to yield
		segs := l.index.all()
		for i := range segs {
			last := lastOf(segs, i, head)
			if last < from {
				continue
			}
			more := true
			err := l.scan(ctx, segs[i], segs[i].from(from), last, func(f frame, sum hash) bool {
				if f.kind != kindEvent || f.seq < from {
					return true
				}
				rec, err := decodeRecord(f.seq, f.wall, f.payload, sum)
				more = yield(rec, err) && err == nil
				return more
			})
			if l.removed(segs[i].first, err) {
				continue
			}
			if err != nil {
				yield(Record{}, err)
				return
			}
			if !more {
				return
			}
		}
	}
}

// removed tells whether a segment could not be opened because retention removed it in the meantime.
func (l *Log) removed(first uint64, err error) bool {
	return errors.Is(err, fs.ErrNotExist) && !l.index.has(first)
}
