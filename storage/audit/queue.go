package audit

import (
	"encoding/json"
	"sync"
)

// request is one or several frames that become durable together. Its buffer holds, for each frame, frameHead bytes of
// room and the payload.
type request struct {
	kind kind
	buf  []byte
	ends []int // where each frame ends in buf

	signed uint64 // of a checkpoint: the sequence that it signs

	taken, gone bool // of the queue: taken up by the writer; given up by who waited

	wall int64 // set by the writer, like first and sums
	seqs uint64
	sums []hash

	done chan error // cap 1
}

func (r *request) reset(k kind) {
	r.kind, r.signed = k, 0
	r.buf, r.ends, r.sums = r.buf[:0], r.ends[:0], r.sums[:0]
	r.taken, r.gone = false, false
}

// add encodes v as the payload of one more frame.
func (r *request) add(v any) error {
	begin := len(r.buf)
	r.buf = append(r.buf, make([]byte, frameHead)...)
	if err := r.encode(v); err != nil {
		return err
	}
	return r.end(begin)
}

// encode appends v.
func (r *request) encode(v any) error {
	enc := json.NewEncoder((*payloadWriter)(r))
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	r.buf = r.buf[:len(r.buf)-1] // the encoder's newline
	return nil
}

// end ends the frame that begins at begin.
func (r *request) end(begin int) error {
	if size := len(r.buf) - begin - frameHead; size > maxPayload {
		return &tooLarge{size}
	}
	r.ends = append(r.ends, len(r.buf))
	return nil
}

// payloadWriter appends to a request's buffer.
type payloadWriter request

func (w *payloadWriter) Write(b []byte) (int, error) {
	w.buf = append(w.buf, b...)
	return len(b), nil
}

// queue holds the requests that wait for the writer.
type queue struct {
	mu       sync.Mutex
	max      int // events
	waiting  []*request
	events   int
	bytes    int
	refusing bool          // only the log itself may append
	over     bool          // the writer ends when nothing waits
	appended chan struct{} // nil: nobody asked
	wake     chan struct{} // cap 1
}

func (q *queue) init(limit int) {
	q.max = limit
	q.wake = make(chan struct{}, 1)
}

type queueVerdict uint8

const (
	queued queueVerdict = iota
	queueFull
	queueClosed
)

// put adds r. The log's own requests are taken also when others are refused.
func (q *queue) put(r *request, own bool) queueVerdict {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over || q.refusing && !own {
		return queueClosed
	}
	full := q.events+len(r.ends) > q.max || q.bytes+len(r.buf) > maxQueued
	if full && !own && q.events > 0 {
		return queueFull
	}
	q.waiting = append(q.waiting, r)
	q.events += len(r.ends)
	q.bytes += len(r.buf)
	q.wakeUp()
	return queued
}

// giveUp takes r back unless the writer has it already.
func (q *queue) giveUp(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r.taken {
		return false
	}
	r.gone = true // stays in the list, and counts, until the writer comes by: it is at most one drain away
	return true
}

// take appends to batch what waits, in order, as long as it fits into room bytes. next is the size of the first request
// that does not fit; 0 if there is none.
func (q *queue) take(batch []*request, room int64) (_ []*request, next int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, r := range q.waiting {
		if !r.gone {
			if int64(len(r.buf)) > room {
				next = len(r.buf)
				break
			}
			room -= int64(len(r.buf))
			r.taken = true
			batch = append(batch, r)
		}
		q.events -= len(r.ends)
		q.bytes -= len(r.buf)
		n++
	}
	rest := copy(q.waiting, q.waiting[n:])
	clear(q.waiting[rest:])
	q.waiting = q.waiting[:rest]
	return batch, next
}

// depth is the number of events that wait.
func (q *queue) depth() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.events
}

func (q *queue) refuse() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refusing = true
}

func (q *queue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.over = true
	q.wakeUp()
}

// ended tells whether the writer may end.
func (q *queue) ended() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.over && len(q.waiting) == 0
}

func (q *queue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) waitAppended() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.appended == nil {
		q.appended = make(chan struct{})
	}
	return q.appended
}

func (q *queue) tellAppended() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.appended != nil {
		close(q.appended)
		q.appended = nil
	}
}
