package audit_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// bulky is an event of 100 KB, so that few of them fill a segment.
func bulky() audit.Event {
	return audit.Event{Type: "policy.applied", Outcome: audit.OK, Detail: strings.Repeat("x", 100<<10)}
}

// fill appends bulky events and some small ones until there are n segments.
func (b *bench) fill(n int) {
	b.t.Helper()
	for len(b.segments()) < n {
		if _, err := b.log.Append(context.Background(), bulky()); err != nil {
			b.t.Fatal(err)
		}
		b.append(2)
	}
	b.append(3)
}

// edit changes one segment file as a whole.
func (b *bench) edit(path string, change func(content []byte, frames []audit.FrameAt) []byte) {
	b.t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	frames, err := audit.Frames(path)
	if err != nil {
		b.t.Fatal(err)
	}
	b.write(path, change(content, frames))
}

// rewrite changes a word in the first payload that has it and makes the frame's CRC, and with chain also everything
// after it in the file, right again. It returns the head that then results.
func rewrite(b *bench, path string, chain bool) (head audit.Head) {
	b.edit(path, func(content []byte, frames []audit.FrameAt) []byte {
		var sum []byte
		for _, f := range frames {
			payload := content[f.Offset+audit.PayloadAt : f.End]
			if at := bytes.Index(payload, []byte("orders")); sum == nil && at >= 0 {
				payload[at] = 'O'
				sum = audit.Reseal(content[f.Offset:f.End], nil)
			} else if sum != nil && chain {
				sum = audit.Reseal(content[f.Offset:f.End], sum)
			}
			head = audit.Head{Seq: f.Seq, Hash: hex.EncodeToString(sum)}
		}
		return content
	})
	return head
}

func remove(b *bench, path string) {
	b.t.Helper()
	if err := os.Remove(path); err != nil {
		b.t.Fatal(err)
	}
}

func TestTampering(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		tamper  func(b *bench, segs []string)
		verify  string // in one of the faults
		refused bool   // by Open, which reads the newest segment only
	}{
		{"nothing", func(*bench, []string) {}, "", false},
		{"payload, CRC made right", func(b *bench, segs []string) { rewrite(b, segs[0], false) }, "one of them was changed", false},
		{"payload in the newest segment", func(b *bench, segs []string) { rewrite(b, segs[2], false) }, "one of them was changed", true},
		{"chain made right to the end", func(b *bench, segs []string) { rewrite(b, segs[2], true) }, "the store remembers", true},
		{"chain and the store's head made right", func(b *bench, segs []string) {
			b.putHead(rewrite(b, segs[2], true))
		}, "signs another record", false},
		{"two frames swapped", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte {
				return bytes.Join([][]byte{
					c[:f[1].Offset], c[f[2].Offset:f[2].End], c[f[1].Offset:f[1].End], c[f[2].End:],
				}, nil)
			})
		}, "stands where record", false},
		{"a frame removed", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte {
				return bytes.Join([][]byte{c[:f[1].Offset], c[f[1].End:]}, nil)
			})
		}, "record 3 stands where record 2 should", false},
		{"bytes changed", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte { c[f[1].Offset+90]++; return c })
		}, "record 2 is damaged", false},
		{"a length changed", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte { c[f[1].Offset+1]++; return c })
		}, "record 2 is damaged", false},
		{"a length made zero", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte {
				clear(c[f[1].Offset : f[1].Offset+4])
				return c
			})
		}, "record 2 is damaged", false},
		{"zeros in the middle", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte {
				clear(c[f[1].Offset:f[1].End])
				return c
			})
		}, "is no record", false},
		{"the end of an old segment", func(b *bench, segs []string) {
			b.edit(segs[0], func(c []byte, f []audit.FrameAt) []byte { return c[:f[len(f)-1].Offset] })
		}, "are missing", false},
		{"the oldest segment removed", func(b *bench, segs []string) { remove(b, segs[0]) }, "no audit.pruned record", true},
		{"a middle segment removed", func(b *bench, segs []string) { remove(b, segs[1]) }, "are missing", true},
		{"the newest segment removed", func(b *bench, segs []string) { remove(b, segs[2]) }, "the store remembers", true},
		{"all segments removed", func(b *bench, segs []string) {
			for _, s := range segs {
				remove(b, s)
			}
		}, "the store remembers", true},
		{"a header damaged", func(b *bench, segs []string) {
			b.edit(segs[1], func(c []byte, _ []audit.FrameAt) []byte { c[50]++; return c })
		}, "no header", true},
		{"a segment under another name", func(b *bench, segs []string) {
			if err := os.Rename(segs[1], filepath.Join(b.dir, "00000000000000000002.segment")); err != nil {
				b.t.Fatal(err)
			}
		}, "no header", true},
	}
	whole := newBench(t)
	whole.open()
	whole.append(4)
	whole.fill(3)
	whole.close()
	if err := whole.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := whole.copy(t)
			test.tamper(b, b.segments())
			report := b.verifyDir()
			if test.verify == "" != report.OK() || !strings.Contains(strings.Join(report.Faults, "\n"), test.verify) {
				t.Errorf("faults %q, want %q", report.Faults, test.verify)
			}
			_, err := b.tryOpen()
			var tampered *audit.TamperedError
			if errors.As(err, &tampered) != test.refused || err != nil && !test.refused {
				t.Errorf("open: %v, want refused: %v", err, test.refused)
			}
		})
	}
}

// A store that has forgotten the log is no new store: to forget the head would be the easiest way to shorten the log.
func TestForgottenHead(t *testing.T) {
	b := newBench(t)
	b.open()
	b.append(1)
	b.close()
	op := storage.Table[audit.Head]{Name: "audit_head"}.Delete("head", storage.Cond{})
	if _, err := b.store.Apply(context.Background(), op); err != nil {
		t.Fatal(err)
	}
	_, err := b.tryOpen()
	var tampered *audit.TamperedError
	if !errors.As(err, &tampered) {
		t.Errorf("got %v, want a TamperedError", err)
	}
}

func TestCheckpointKeys(t *testing.T) {
	b := newBench(t)
	b.open()
	b.append(3)
	b.close()
	ctx := context.Background()
	report, err := audit.VerifyDir(ctx, b.dir, b.head(), func(string) (crypto.PublicKey, bool) { return nil, false })
	if err != nil || len(report.Faults) != 1 || !strings.Contains(report.Faults[0], `unknown key "k1"`) || report.Unsigned != 3 {
		t.Errorf("an unknown kid: %+v %v", report, err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	report, err = audit.VerifyDir(ctx, b.dir, b.head(), func(string) (crypto.PublicKey, bool) { return other.Public(), true })
	if err != nil || len(report.Faults) != 1 || !strings.Contains(report.Faults[0], "signature is wrong") {
		t.Errorf("another key: %+v %v", report, err)
	}
}

// Each byte that is in the log counts.
func TestEachByteCounts(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.open(func(c *audit.Config) { c.Reserve = -1 })
	appendSmall(b, 4)
	b.close()
	path := b.segment()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content = bytes.TrimRight(content, "\x00")
	for i := range content {
		content[i] ^= 1
		b.write(path, content)
		if report := b.verifyDir(); report.OK() {
			t.Errorf("a change of byte %d is not noticed", i)
		}
		content[i] ^= 1
	}
	b.write(path, content)
	if report := b.verifyDir(); !report.OK() {
		t.Errorf("%q", report.Faults)
	}
}
