package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// putHead makes the store remember h.
func (b *bench) putHead(h audit.Head) {
	b.t.Helper()
	op, err := storage.Table[audit.Head]{Name: "audit_head"}.Put("head", h, time.Time{}, storage.Cond{})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.store.Apply(context.Background(), op); err != nil {
		b.t.Fatal(err)
	}
}

func small(c *audit.Config) { c.Sign, c.Reserve = nil, -1 }

// tailBench is a closed log of three records that the store knows, and a fourth one behind them.
func tailBench(t *testing.T) (b *bench, content []byte, known audit.Head, last audit.FrameAt) {
	b = newBench(t)
	b.open(small)
	appendSmall(b, 3)
	known = b.log.Head()
	appendSmall(b, 1)
	b.close()
	content, err := os.ReadFile(b.segment())
	if err != nil {
		t.Fatal(err)
	}
	frames, err := audit.Frames(b.segment())
	if err != nil || len(frames) != 4 {
		t.Fatalf("%d frames: %v", len(frames), err)
	}
	return b, content[:frames[3].End], known, frames[3]
}

func appendSmall(b *bench, n int) {
	b.t.Helper()
	for range n {
		if _, err := b.log.Append(context.Background(), audit.Event{Type: "a.b", Outcome: audit.OK}); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) write(path string, content []byte) {
	b.t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// A crash in the middle of a write leaves any part of it. It is cut off, reported, and the log goes on.
func TestTornTailAtEachByte(t *testing.T) {
	t.Parallel()
	b, content, known, last := tailBench(t)
	path := b.segment()
	for cut := last.Offset; cut < last.End; cut++ {
		left := content[:cut]
		if cut%2 == 0 {
			left = append(bytes.Clone(left), make([]byte, 5000)...) // zeros that were written ahead
		}
		b.write(path, left)
		b.putHead(known)
		checkTorn(b, int64(len(bytes.TrimRight(content[last.Offset:cut], "\x00"))), 3)
		if t.Failed() {
			t.Fatalf("cut at %d of %d to %d", cut, last.Offset, last.End)
		}
	}
}

func TestTornTailDamaged(t *testing.T) {
	b, content, known, last := tailBench(t)
	path := b.segment()
	for at := last.Offset; at < last.End; at += 7 {
		left := bytes.Clone(content)
		left[at] ^= 0x10
		b.write(path, left)
		b.putHead(known)
		checkTorn(b, int64(len(bytes.TrimRight(left[last.Offset:], "\x00"))), 3)
		if t.Failed() {
			t.Fatalf("changed at %d of %d to %d", at, last.Offset, last.End)
		}
	}
}

// checkTorn opens the log and wants the event of a torn tail of so many bytes, none for 0, and a log that goes on.
func checkTorn(b *bench, torn int64, records int) {
	b.t.Helper()
	if report := b.verifyDir(); !report.OK() || (report.Torn != "") != (torn > 0) {
		b.t.Errorf("before the start: torn %q, faults %q", report.Torn, report.Faults)
	}
	b.open(small)
	recs := b.records()
	if torn > 0 {
		records++
	}
	if len(recs) != records {
		b.t.Fatalf("%d records, want %d", len(recs), records)
	}
	if torn > 0 {
		var detail struct{ Bytes, Offset int64 }
		if err := json.Unmarshal(recs[records-1].Detail, &detail); err != nil {
			b.t.Fatal(err)
		}
		if recs[records-1].Type != "audit.torn-tail" || detail.Bytes != torn {
			b.t.Errorf("event %+v with detail %s, want %d bytes", recs[records-1], recs[records-1].Detail, torn)
		}
		if !strings.Contains(b.lines.String(), "was cut off") {
			b.t.Errorf("nothing of it in the daemon's log: %s", b.lines)
		}
	}
	appendSmall(b, 1)
	b.close()
	if report := b.verifyDir(); !report.OK() || report.Torn != "" || report.Records != uint64(records+1) {
		b.t.Errorf("at the end: %+v", report)
	}
}

// What the store remembers was acknowledged: that it is gone is no crash.
func TestCutBeforeTheHead(t *testing.T) {
	b, content, _, last := tailBench(t)
	path := b.segment()
	for cut := last.Offset; cut < last.End; cut++ {
		b.write(path, content[:cut])
		_, err := b.tryOpen(small)
		var tampered *audit.TamperedError
		if !errors.As(err, &tampered) {
			t.Fatalf("cut at %d: got %v, want a TamperedError", cut, err)
		}
		want := "damaged"
		if len(bytes.Trim(content[last.Offset:cut], "\x00")) == 0 {
			want = "cut off"
		}
		if !strings.Contains(tampered.Msg, want) {
			t.Fatalf("cut at %d: %q does not say %q", cut, tampered.Msg, want)
		}
		if report := b.verifyDir(); report.OK() {
			t.Fatalf("cut at %d: verify finds nothing", cut)
		}
	}
	b.write(path, content)
	b.open(small)
}

// A torn part that is longer than what is written next must not show behind it.
func TestLongTornTail(t *testing.T) {
	b := newBench(t)
	b.open(small)
	appendSmall(b, 3)
	known := b.log.Head()
	if _, err := b.log.Append(context.Background(), bulky()); err != nil {
		t.Fatal(err)
	}
	b.close()
	frames, err := audit.Frames(b.segment())
	if err != nil {
		t.Fatal(err)
	}
	b.edit(b.segment(), func(c []byte, _ []audit.FrameAt) []byte { return c[:frames[3].End-10] })
	b.putHead(known)
	checkTorn(b, frames[3].End-10-frames[3].Offset, 3)
}
