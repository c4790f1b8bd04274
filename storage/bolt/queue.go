package bolt

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/countersign/countersign/storage"
)

// Bounds of what waits, and of what shares one commit.
const (
	maxWaiting      = 4096     // requests
	maxWaitingBytes = 64 << 20 // of keys and values
	maxGroup        = 1024     // requests
	maxGroupBytes   = 8 << 20  // of keys and values; one request always fits
	maxGather       = 8        // times that the writer lets others run before a commit
)

// request is one caller's batch. Its results are set before done is closed.
type request struct {
	size int
	do   func(*txn) (storage.Rev, error) // may run again if a commit is split up: its only effect is on the txn
	done chan struct{}
	rev  storage.Rev
	err  error
}

// queue is bounded: a caller is told at once that there's no room. There is one taker.
type queue struct {
	mu      sync.Mutex
	waiting []*request
	bytes   int
	closed  error
	wake    chan struct{} // holds one token
}

func (q *queue) init() { q.wake = make(chan struct{}, 1) }

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) put(r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
	}
	if len(q.waiting) >= maxWaiting || q.bytes+r.size > maxWaitingBytes {
		return fmt.Errorf("%w: %d batches are waiting", storage.ErrBusy, len(q.waiting))
	}
	q.waiting = append(q.waiting, r)
	q.bytes += r.size
	q.signal()
	return nil
}

// withdraw takes r back; false if it is taken up already.
func (q *queue) withdraw(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, r)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	q.bytes -= r.size
	return true
}

// gather lets others run first as long as they add to what waits: who is at work has most likely something to write too, and a
// commit costs hardly more for it. No time is waited for: on an idle machine it returns at once.
func (q *queue) gather() {
	for have, tries := q.depth(), 0; have > 0 && tries < maxGather; tries++ {
		runtime.Gosched()
		now := q.depth()
		if now <= have {
			return
		}
		have = now
	}
}

func (q *queue) depth() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// take waits for requests and takes up as many as one commit holds, in order; none once the queue is closed.
func (q *queue) take() []*request {
	for {
		q.gather()
		if group, closed := q.tryTake(); closed || len(group) > 0 {
			return group
		}
		<-q.wake
	}
}

func (q *queue) tryTake() (group []*request, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, bytes := 0, 0
	for n < len(q.waiting) && n < maxGroup && (n == 0 || bytes+q.waiting[n].size <= maxGroupBytes) {
		bytes += q.waiting[n].size
		n++
	}
	group = slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.bytes -= bytes
	return group, q.closed != nil
}

// close refuses what comes and what waits.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return
	}
	q.closed = err
	for _, r := range q.waiting {
		r.err = err
		close(r.done)
	}
	q.waiting, q.bytes = nil, 0
	q.signal()
}

// submit hands r to the writer and waits for its outcome; ctx counts only until r is taken up.
func (s *Store) submit(ctx context.Context, r *request) (storage.Rev, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	r.done = make(chan struct{})
	if err := s.queue.put(r); err != nil {
		return 0, err
	}
	select {
	case <-r.done:
		return r.rev, r.err
	case <-ctx.Done():
	}
	if s.queue.withdraw(r) {
		return 0, ctx.Err()
	}
	<-r.done
	return r.rev, r.err
}
