package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/countersign/countersign/storage"

	countersign "github.com/countersign/countersign"
)

// TamperedError says that the log is not the one that the store remembers: records that were acknowledged are missing
// or changed. No crash leaves this behind, so the daemon must not start on it.
type TamperedError struct{ Msg string }

// Error says what does not fit.
func (e *TamperedError) Error() string { return "the audit log was tampered with or lost: " + e.Msg }

func tampered(format string, args ...any) error {
	return &TamperedError{Msg: fmt.Sprintf(format, args...)}
}

// tornTail is what a crash left behind the last whole record: a write that nobody was told the end of.
type tornTail struct {
	Segment string `json:"segment"`
	Offset  int64  `json:"offset"`
	Bytes   int64  `json:"bytes"` // up to the last one that is not zero
	SHA256  string `json:"sha256"`
	After   uint64 `json:"after"` // the sequence of the last whole record
}

func (t *tornTail) String() string {
	return fmt.Sprintf("%d bytes at offset %d of %s, after record %d", t.Bytes, t.Offset, t.Segment, t.After)
}

// tail is what the scan of the newest segments found.
type tail struct {
	tip
	off    int64  // of the last segment: the end of the last whole frame
	signed uint64 // by the newest checkpoint in it
}

// recover finds the end of the log and opens its last segment for writing.
func (l *Log) recover(ctx context.Context) (*tornTail, error) {
	firsts, err := l.tidy()
	if err != nil {
		return nil, fmt.Errorf("read the audit directory: %w", err)
	}
	head, err := LoadHead(ctx, l.cfg.Store)
	absent := errors.Is(err, storage.ErrNotFound)
	if err != nil && !absent {
		return nil, fmt.Errorf("read the head of the audit log: %w", err)
	}
	switch {
	case len(firsts) == 0 && (absent || head.Seq == 0):
		return nil, l.begin(ctx, absent)
	case len(firsts) == 0:
		return nil, tampered("the store remembers record %d, and %s holds no segment", head.Seq, l.cfg.Dir)
	case absent:
		// Never "a new store": to forget the head would be the easiest way to shorten the log.
		return nil, tampered("%s holds records, and the store remembers none: they do not belong together", l.cfg.Dir)
	}
	return l.continueAt(ctx, firsts, head)
}

// tidy removes files that never became segments and lists those that are.
func (l *Log) tidy() ([]uint64, error) {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), newSuffix) {
			if err := os.Remove(filepath.Join(l.cfg.Dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	return listSegments(l.cfg.Dir)
}

// begin starts a new log. The store learns of it first: from then on, records without a head are refused.
func (l *Log) begin(ctx context.Context, absent bool) error {
	if absent {
		if err := putHead(ctx, l.cfg.Store, Head{Hash: hexHash(hash{})}); err != nil {
			return fmt.Errorf("store the head of the new audit log: %w", err)
		}
	}
	seg, err := createSegment(l.cfg.Dir, header{first: 1}, l.cfg.Segment, l.ahead())
	if err != nil {
		return fmt.Errorf("begin the audit log: %w", err)
	}
	l.seg = seg
	l.index.add(segmentInfo{first: 1})
	l.head.Store(&tip{})
	return nil
}

// continueAt holds the log to the stored head and opens the last segment. Only that one is read, and those since the
// head, which is at most a second older.
func (l *Log) continueAt(ctx context.Context, firsts []uint64, head Head) (*tornTail, error) {
	headers, err := l.checkHeaders(ctx, firsts)
	if err != nil {
		return nil, err
	}
	begin := len(firsts) - 1
	for begin > 0 && firsts[begin] > head.Seq+1 {
		begin--
	}
	if firsts[begin] > head.Seq+1 {
		return nil, tampered("the store remembers record %d, and the log begins with %d", head.Seq, firsts[begin])
	}
	for i := range firsts {
		info := segmentInfo{first: firsts[i]}
		if i+1 < len(firsts) {
			info.oldest, info.newest = headers[i+1].oldest, headers[i+1].newest
		}
		l.index.add(info)
	}
	t := tail{tip: tip{seq: firsts[begin] - 1, hash: headers[begin].prev}}
	var file *os.File
	for i := begin; i < len(firsts); i++ {
		if t.seq+1 != firsts[i] || t.hash != headers[i].prev {
			return nil, tampered("%s does not continue the segment before", segmentName(firsts[i]))
		}
		last := i+1 == len(firsts)
		if file, err = l.scanTail(ctx, firsts[i], last, head, &t); err != nil {
			return nil, err
		}
	}
	if t.seq < head.Seq {
		return nil, errors.Join(l.short(file, &t, head), file.Close())
	}
	l.storedHead = head.Seq
	return l.openTail(file, &t)
}

// short tells a log that was cut from one whose records are damaged; neither is what a crash leaves.
func (l *Log) short(file *os.File, t *tail, head Head) error {
	torn, err := findTorn(file, t)
	if err != nil {
		return err
	}
	if torn == nil {
		return tampered("it ends with record %d, and the store remembers %d: the records after it were cut off",
			t.seq, head.Seq)
	}
	return tampered("it can be read up to record %d, and the store remembers %d: what follows is damaged (%s)",
		t.seq, head.Seq, torn)
}

// checkHeaders reads the header of each segment: they name their predecessors, so none can be missing unnoticed.
func (l *Log) checkHeaders(ctx context.Context, firsts []uint64) ([]header, error) {
	oldest, err := loadBase(ctx, l.cfg.Store)
	if err != nil {
		return nil, fmt.Errorf("read where the audit log begins: %w", err)
	}
	if firsts[0] > oldest.First {
		return nil, tampered("it begins with record %d, and should with %d", firsts[0], oldest.First)
	}
	headers := make([]header, len(firsts))
	for i, first := range firsts {
		if headers[i], err = readHeader(l.cfg.Dir, first); err != nil {
			if errors.Is(err, errHeader) {
				return nil, tampered("%s: %s", segmentName(first), err)
			}
			return nil, fmt.Errorf("%s: %w", segmentName(first), err)
		}
		if i > 0 && headers[i].prevFirst != firsts[i-1] {
			return nil, tampered("the segment %s is missing", segmentName(headers[i].prevFirst))
		}
	}
	return headers, nil
}

// scanTail walks the whole frames of one segment from its beginning. It returns the open file of the last segment.
func (l *Log) scanTail(ctx context.Context, first uint64, last bool, head Head, t *tail) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(l.cfg.Dir, segmentName(first)), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	err = l.scanFrames(ctx, file, first, head, t)
	if err != nil || !last {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (l *Log) scanFrames(ctx context.Context, file *os.File, first uint64, head Head, t *tail) error {
	if err := t.fits(head); err != nil {
		return err
	}
	var info segmentInfo
	r := newFrameReader(io.NewSectionReader(file, headerSize, 1<<62), headerSize)
	for {
		t.off = r.off
		f, raw, err := r.next()
		if errors.Is(err, errZero) || errors.Is(err, errFrame) || err == nil && (f.seq != t.seq+1 || f.prev != t.hash) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the audit log: %w", err)
		}
		if f.seq%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		info.note(f.seq, t.off, f.wall)
		t.seq, t.hash = f.seq, hashFrame(raw)
		if f.kind == kindEvent {
			t.event = f.seq
		} else {
			t.signed = signedBy(f.payload)
		}
		if err := t.fits(head); err != nil {
			return err
		}
	}
	l.index.scanned(first, info)
	return nil
}

// fits holds the record that the store remembers to the hash that it remembers.
func (t *tail) fits(head Head) error {
	if t.seq == head.Seq && hexHash(t.hash) != head.Hash {
		return tampered("record %d has the hash %s, and the store remembers %s", t.seq, hexHash(t.hash), head.Hash)
	}
	return nil
}

func signedBy(payload []byte) uint64 {
	c, err := parseCheckpoint(payload)
	if err != nil {
		return 0 // Verify reports it; here it only means that the next checkpoint comes soon
	}
	return c.Seq
}

// openTail cuts off what is behind the last whole frame, if that is more than zeros, and makes file the written one.
func (l *Log) openTail(file *os.File, t *tail) (*tornTail, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	l.seg = &segment{
		file: file, path: file.Name(),
		off: t.off, size: info.Size(), limit: l.cfg.Segment,
	}
	torn, err := findTorn(file, t)
	if err != nil {
		return nil, err
	}
	if torn != nil {
		if err := errors.Join(l.seg.cutBack(), file.Sync()); err != nil {
			return nil, fmt.Errorf("cut off the torn end of the audit log: %w", err)
		}
	}
	l.head.Store(&t.tip)
	l.marked.Store(t.signed)
	return torn, nil
}

// findTorn looks for anything but zeros behind the last whole frame; nil: there is nothing.
func findTorn(file *os.File, t *tail) (*tornTail, error) {
	end, err := lastUsed(file, t.off)
	if err != nil || end == t.off {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(file, t.off, end-t.off)); err != nil {
		return nil, fmt.Errorf("read the end of the audit log: %w", err)
	}
	return &tornTail{
		Segment: filepath.Base(file.Name()), Offset: t.off, Bytes: end - t.off,
		SHA256: hex.EncodeToString(sum.Sum(nil)), After: t.seq,
	}, nil
}

// lastUsed is the end of the last byte from off on that is not zero; off if there is none.
func lastUsed(file *os.File, off int64) (int64, error) {
	end, buf := off, make([]byte, zeroChunk)
	for at := off; ; {
		n, err := file.ReadAt(buf, at)
		if used := len(bytes.TrimRight(buf[:n], "\x00")); used > 0 {
			end = at + int64(used)
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return end, nil
		}
		if err != nil {
			return 0, fmt.Errorf("read the end of the audit log: %w", err)
		}
	}
}

// reportTorn logs and records what was cut off. That it can't be recorded, on a full disk, does not keep the daemon
// from starting.
func (l *Log) reportTorn(ctx context.Context, torn *tornTail) {
	l.logger.Warn("the torn end of the audit log, which a crash left, was cut off", "torn", torn.String())
	err := l.appendOwn(ctx, Event{
		Type: "audit.torn-tail", Outcome: OK, By: countersign.Daemon("audit log"), Subject: torn.Segment, Detail: torn,
	})
	if err != nil {
		l.logger.Error("the torn end of the audit log can't be recorded", "err", err)
	}
}
