package audit

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzSegment feeds the readers of headers and frames: they never panic, and accept nothing that is not written so.
func FuzzSegment(f *testing.F) {
	h := header{first: 7, prevFirst: 3, oldest: 1, newest: 2, prev: hash{9}}
	first := append(make([]byte, frameHead), `{"type":"a.b"}`...)
	sum := frame{kind: kindEvent, seq: 7, wall: 1, mono: 2, prev: h.prev}.seal(first)
	second := append(make([]byte, frameHead), `{"seq":7}`...)
	frame{kind: kindCheckpoint, seq: 8, wall: 1, mono: 2, prev: sum}.seal(second)
	whole := bytes.Join([][]byte{h.encode(), first, second, make([]byte, 100)}, nil)
	f.Add(whole)
	f.Add(whole[:len(whole)-110])
	f.Add(h.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err == nil && !bytes.Equal(h.encode(), b[:headerSize]) {
			t.Errorf("a header that nobody writes is accepted: %+v", h)
		}
		if len(b) < headerSize {
			return
		}
		r := newFrameReader(bytes.NewReader(b[headerSize:]), headerSize)
		for at := r.off; ; at = r.off {
			f, raw, err := r.next()
			if err != nil {
				if !errors.Is(err, errZero) && !errors.Is(err, errFrame) {
					t.Errorf("error %v", err)
				}
				return
			}
			again := append(make([]byte, frameHead), f.payload...)
			sum := f.seal(again)
			if !bytes.Equal(again, b[at:r.off]) || !bytes.Equal(again, raw) || sum != hashFrame(raw) {
				t.Errorf("a frame that nobody writes is accepted at %d: %+v", at, f)
			}
		}
	})
}

// The seal is the file format: what it makes of known values must never change.
func TestSealIsStable(t *testing.T) {
	b := append(make([]byte, frameHead), "{}"...)
	sum := frame{kind: kindEvent, seq: 1, wall: 2, mono: 3, prev: hash{4}}.seal(b)
	if got, want := hexHash(sum), "0119a75b214c63bf4592024cf7b9d6091e53291c6003e3d649f3e4503a197277"; got != want {
		t.Errorf("the hash is %s, want %s", got, want)
	}
}

func TestQueueBounds(t *testing.T) {
	var q queue
	q.init(2)
	request := func(size, events int) *request {
		return &request{buf: make([]byte, size), ends: make([]int, events)}
	}
	a, b, own := request(10, 1), request(10, 1), request(10, 3)
	if q.put(a, false) != queued || q.put(b, false) != queued {
		t.Error("there is room for two")
	}
	if q.put(request(10, 1), false) != queueFull {
		t.Error("a third one is taken")
	}
	if q.put(own, true) != queued {
		t.Error("the log's own is not taken")
	}
	if !q.giveUp(a) {
		t.Error("a waiting one can't be given up")
	}
	batch, next := q.take(nil, 15)
	if len(batch) != 1 || batch[0] != b || next != 10 {
		t.Errorf("took %d, next has %d bytes", len(batch), next)
	}
	if q.giveUp(b) {
		t.Error("one that is taken up can be given up")
	}
	if batch, next = q.take(nil, 15); len(batch) != 1 || next != 0 || q.depth() != 0 {
		t.Errorf("took %d, next has %d bytes, %d wait", len(batch), next, q.depth())
	}
	if q.put(request(maxQueued, 1), false) != queued || q.put(request(1, 1), false) != queueFull {
		t.Error("bytes are not counted")
	}
	q.refuse()
	if q.put(request(1, 1), false) != queueClosed || q.put(request(1, 1), true) != queued {
		t.Error("a closing queue takes its own only")
	}
	q.finish()
	if q.put(request(1, 1), true) != queueClosed {
		t.Error("a queue that is over takes something")
	}
}
