package audit

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/countersign/countersign/storage"
)

// maxFaults bounds a report; what is found beyond it is only counted.
const maxFaults = 100

// Report is what a verification found.
type Report struct {
	Records     uint64   `json:"records"` // events
	Segments    uint64   `json:"segments"`
	Checkpoints uint64   `json:"checkpoints"` // with a good signature
	First       uint64   `json:"first"`       // sequence of the oldest record; 0: there is none
	Last        uint64   `json:"last"`        // sequence of the newest
	Head        Head     `json:"head"`        // the end that was found
	Unsigned    uint64   `json:"unsigned"`    // events after what the newest good checkpoint signs
	Torn        string   `json:"torn,omitempty"`
	Faults      []string `json:"faults"` // each with file, offset and sequence; empty: the log is whole
}

// OK tells whether the log is whole. A torn tail, which a crash leaves and the next start cuts off and records, is no
// fault: Torn describes it.
func (r Report) OK() bool { return len(r.Faults) == 0 }

// KeyFunc finds the public key of a kid, also of one that is retired.
type KeyFunc = func(kid string) (crypto.PublicKey, bool)

// Verify reads the whole log, up to the head at the time of the call, and checks every frame, the chain, the sequences,
// each checkpoint's signature, and that the head that the store remembers is in it. Faults are in the report; the error
// says that it could not be read to the end.
func (l *Log) Verify(ctx context.Context, key KeyFunc) (Report, error) {
	l.pruning.RLock() // no segment leaves meanwhile
	defer l.pruning.RUnlock()
	saved, err := LoadHead(ctx, l.cfg.Store)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return Report{}, err
	}
	v := newVerifier(key)
	if err != nil {
		v.fault("the store remembers no head")
	} else {
		v.heads = append(v.heads, saved)
	}
	now := l.Head() // after the stored one, so it is not behind it
	v.heads, v.until = append(v.heads, now), &now.Seq
	return v.run(ctx, l.cfg.Dir)
}

// VerifyDir is [Log.Verify] for a log that no daemon has open. head is what the store remembers ([LoadHead]); without
// it (the zero Head) a log that lost its end can't be told from a whole one.
func VerifyDir(ctx context.Context, dir string, head Head, key KeyFunc) (Report, error) {
	v := newVerifier(key)
	if head != (Head{}) {
		v.heads = append(v.heads, head)
	}
	return v.run(ctx, dir)
}

// place is what the verifier remembers of a frame.
type place struct {
	seq    uint64
	sum    hash
	events uint64 // up to and with it
}

type verifier struct {
	key   KeyFunc
	heads []Head  // must be in the log
	until *uint64 // the last sequence to read; nil: all

	report Report
	more   int // faults beyond maxFaults
	recent []place
	tip    place
	lost   bool    // a frame could not be read: the next one is taken as it comes
	pruned *pruned // of the newest "audit.pruned"
	signed place
	file   string
	off    int64
}

func newVerifier(key KeyFunc) *verifier {
	return &verifier{key: key, recent: make([]place, maxBehind+1), report: Report{Faults: []string{}}}
}

func (v *verifier) fault(format string, args ...any) {
	if len(v.report.Faults) == maxFaults {
		v.more++
		return
	}
	text := fmt.Sprintf(format, args...)
	if v.file != "" {
		text = fmt.Sprintf("%s at %d: %s", v.file, v.off, text)
	}
	v.report.Faults = append(v.report.Faults, text)
}

func (v *verifier) run(ctx context.Context, dir string) (Report, error) {
	firsts, err := listSegments(dir)
	if err != nil {
		return Report{}, fmt.Errorf("read the audit directory: %w", err)
	}
	var begin header
	for i, first := range firsts {
		if v.until != nil && first > *v.until {
			break
		}
		h, err := v.segment(ctx, dir, first, i+1 == len(firsts))
		if err != nil {
			return v.report, err
		}
		if i == 0 {
			begin = h
		}
		v.report.Segments++
	}
	v.file = ""
	v.checkEnds(begin)
	return v.report, nil
}

// checkEnds judges what only the whole log shows.
func (v *verifier) checkEnds(begin header) {
	if begin.first > 1 && !v.pruned.accountsFor(begin) {
		v.fault("the log begins with record %d, and no audit.pruned record accounts for those before it", begin.first)
	}
	for _, head := range v.heads {
		if head.Seq > v.tip.seq {
			v.fault("the log ends with record %d, and the store remembers %d", v.tip.seq, head.Seq)
		}
	}
	if v.more > 0 {
		v.report.Faults = append(v.report.Faults, fmt.Sprintf("and %d more", v.more))
	}
	v.report.Last = v.tip.seq
	v.report.Head = Head{Seq: v.tip.seq, Hash: hexHash(v.tip.sum)}
	v.report.Unsigned = v.tip.events - v.signed.events
}

// accountsFor tells whether all records before begin were removed as the event says. It may say more than was done yet:
// a crash before the last file went leaves that file, and what is in it is held to the chain like all else.
func (p *pruned) accountsFor(begin header) bool {
	if p == nil || p.Last < begin.first-1 {
		return false
	}
	return p.Last > begin.first-1 || p.Hash == hexHash(begin.prev)
}

// segment checks one file. Its error is one of reading, not of what was read.
func (v *verifier) segment(ctx context.Context, dir string, first uint64, last bool) (header, error) {
	v.file, v.off = segmentName(first), 0
	file, err := os.Open(filepath.Join(dir, v.file))
	if err != nil {
		return header{}, err
	}
	defer file.Close()
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(file, b); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return header{}, err
	}
	h, err := parseHeader(b)
	if err == nil && h.first != first {
		err = errHeader
	}
	if err != nil {
		v.fault("%v", err)
		v.lost = true
		h = header{first: first}
	} else {
		v.enter(h)
	}
	return h, v.frames(ctx, file, last)
}

// enter holds a segment's beginning to the end of the one before.
func (v *verifier) enter(h header) {
	switch {
	case v.report.Segments == 0:
		v.tip = place{seq: h.first - 1, sum: h.prev}
		v.remember(v.tip)
		if h.first == 1 && h.prev != (hash{}) {
			v.fault("the first record of the log continues another one")
		}
		v.checkHeads()
	case v.lost:
	case h.first != v.tip.seq+1:
		v.fault("records %d to %d are missing", v.tip.seq+1, h.first-1)
	case h.prev != v.tip.sum:
		v.fault("the segment does not continue record %d: one of them was changed", v.tip.seq)
	}
	if v.lost || h.first != v.tip.seq+1 {
		v.tip.seq, v.tip.sum = h.first-1, h.prev
	}
	v.lost = false
}

func (v *verifier) frames(ctx context.Context, file *os.File, last bool) error {
	r := newFrameReader(io.NewSectionReader(file, headerSize, 1<<62), headerSize)
	for {
		v.off = r.off
		if v.until != nil && v.tip.seq >= *v.until {
			return nil
		}
		f, raw, err := r.next()
		switch {
		case errors.Is(err, errZero):
			return v.ending(file, last)
		case errors.Is(err, errFrame):
			if last && v.pastHeads() {
				return v.ending(file, last)
			}
			v.fault("record %d is damaged", v.tip.seq+1)
			if raw == nil || v.lost {
				v.lost = true
				return nil // where the next one begins is not known
			}
			v.lost, r.off = true, r.off+int64(len(raw))
		case err != nil:
			return err
		default:
			v.frame(f, raw)
		}
		if v.tip.seq%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// pastHeads tells whether all that was acknowledged, as far as the heads know, was read: what follows may be torn.
func (v *verifier) pastHeads() bool {
	for _, head := range v.heads {
		if v.tip.seq < head.Seq {
			return false
		}
	}
	return v.until == nil
}

// ending judges what follows the last whole frame of a segment: nothing but zeros, or what a crash left.
func (v *verifier) ending(file *os.File, last bool) error {
	torn, err := findTorn(file, &tail{tip: tip{seq: v.tip.seq}, off: v.off})
	switch {
	case err != nil || torn == nil:
		return err
	case last && v.pastHeads():
		v.report.Torn = torn.String()
	default:
		v.fault("after record %d stands something that is no record", v.tip.seq)
		v.lost = true
	}
	return nil
}

func (v *verifier) frame(f frame, raw []byte) {
	switch {
	case v.lost:
	case f.seq != v.tip.seq+1:
		v.fault("record %d stands where record %d should", f.seq, v.tip.seq+1)
	case f.prev != v.tip.sum:
		v.fault("record %d does not continue record %d: one of them was changed", f.seq, v.tip.seq)
	}
	v.lost = false
	v.tip.seq, v.tip.sum = f.seq, hashFrame(raw)
	if f.kind == kindEvent {
		v.tip.events++
		v.report.Records++
		v.event(f)
	} else {
		v.checkpoint(f)
	}
	if v.report.First == 0 {
		v.report.First = f.seq
	}
	v.remember(v.tip)
	v.checkHeads()
}

func (v *verifier) remember(p place) { v.recent[p.seq%uint64(len(v.recent))] = p }

func (v *verifier) checkHeads() {
	for _, head := range v.heads {
		if head.Seq == v.tip.seq && head.Hash != hexHash(v.tip.sum) {
			v.fault("record %d has the hash %s, and the store remembers %s", head.Seq, hexHash(v.tip.sum), head.Hash)
		}
	}
}

func (v *verifier) event(f frame) {
	if !json.Valid(f.payload) {
		v.fault("record %d is no JSON", f.seq)
		return
	}
	if !bytes.Contains(f.payload, []byte(`"audit.pruned"`)) {
		return
	}
	var p struct {
		Type   string `json:"type"`
		Detail pruned `json:"detail"`
	}
	if json.Unmarshal(f.payload, &p) == nil && p.Type == "audit.pruned" {
		v.pruned = &p.Detail
	}
}

func (v *verifier) checkpoint(f frame) {
	c, err := parseCheckpoint(f.payload)
	if err != nil {
		v.fault("checkpoint %d can't be read", f.seq)
		return
	}
	p := v.recent[c.Seq%uint64(len(v.recent))]
	if c.Seq >= f.seq || p.seq != c.Seq {
		v.fault("checkpoint %d signs record %d, which is none of those before it", f.seq, c.Seq)
		return
	}
	if err := c.check(p.sum, v.key); err != nil {
		v.fault("checkpoint %d: %v", f.seq, err)
		return
	}
	v.report.Checkpoints++
	v.signed = p
}
