package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
)

const (
	longestWait = 30 * time.Second // of a long poll; less than deadline
	maxWaiters  = 256              // long polls of one service at a time; of all, as many as there are connections and streams

	callersRest  = 100 * time.Millisecond // between two makings of one service's answer: many changes in a row are few answers
	callersAge   = time.Minute            // after which an answer is made anew though nothing changed: revocations end
	callersKept  = 16384                  // services whose answer is kept
	callersBytes = 32 << 20               // of answers that are kept
)

// callers tells the service that asks who may call it, and what of theirs is revoked. With `wait` and an If-None-Match that
// holds, the answer comes at the next change, or as 304 when the time is over or the daemon stops.
func (s *Server) callers(rq *request) error {
	wait, err := rq.span("wait", longestWait)
	if err != nil {
		return err
	}
	known := rq.Request().Header.Values("If-None-Match")
	now, err := s.callersBook.get(rq.Request().Context(), rq.caller.ID)
	if err == nil && wait > 0 && matches(known, now.etag) {
		now, err = s.awaitCallers(rq, now, known, wait)
	}
	if err != nil {
		return err
	}
	rq.Response().Header().Set("ETag", now.etag)
	if matches(known, now.etag) {
		return rq.NoContent(http.StatusNotModified)
	}
	return rq.Blob(http.StatusOK, wire.JSON, now.body)
}

// awaitCallers waits for another answer than the one that is known.
func (s *Server) awaitCallers(rq *request, now callersAnswer, known []string, wait time.Duration) (callersAnswer, error) {
	if !s.waiters.enter(rq.caller.ID) {
		return now, countersign.Errorf(countersign.CodeWaiters, "%d requests by %s wait already", maxWaiters, rq.caller.ID).After(5 * time.Second)
	}
	defer s.waiters.leave(rq.caller.ID)
	if t := trackOf(rq); t != nil {
		t.stream = true
	}
	// net/http has no read deadline any more once it waits for the end of the connection.
	if err := http.NewResponseController(rq.Response()).SetWriteDeadline(time.Now().Add(wait + streamPatience)); err != nil {
		return now, fmt.Errorf("move the write deadline: %w", err)
	}
	ctx, timer := rq.Request().Context(), time.NewTimer(wait)
	defer timer.Stop()
	for over := false; !over && matches(known, now.etag); {
		select {
		case <-now.policy:
		case <-now.revoked:
		case <-timer.C:
			over = true
		case <-s.stopping:
			over = true
		case <-ctx.Done():
			return now, ctx.Err()
		}
		if err := rq.still(); err != nil {
			return now, s.refused(rq.Context, rq.caller, err)
		}
		if over {
			break
		}
		var err error
		if now, err = s.callersBook.get(ctx, rq.caller.ID); err != nil {
			return now, err
		}
	}
	return now, nil
}

// span reads a query parameter that is a duration from 0 to most; absent is 0.
func (rq *request) span(name string, most time.Duration) (time.Duration, error) {
	text, ok := rq.query[name]
	if !ok {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > most {
		return 0, countersign.Errorf(countersign.CodeParameter, "%s must be a duration from 0s to %s, with its unit", name, most)
	}
	return d, nil
}

// callersAnswer is an answer that stands until one of the channels is closed. Its body must not be changed.
type callersAnswer struct {
	body            []byte
	etag            string
	policy, revoked <-chan struct{}
	made            time.Time
}

func (c callersAnswer) stands() bool {
	if c.body == nil || time.Since(c.made) > callersAge {
		return false
	}
	select {
	case <-c.policy:
		return false
	case <-c.revoked:
		return false
	default:
		return true
	}
}

// callersBook keeps the answers, so that thousands who are woken by one change cost one making for each service. The number
// of services and the bytes are bounded; when one is reached, all are forgotten.
type callersBook struct {
	ca      *ca.Authority
	changed func() <-chan struct{} // of the policy

	mu    sync.Mutex
	pages map[countersign.ID]*callersPage
	bytes int
}

// callersPage is one service's place; who has its turn may look at the answer, and make it.
type callersPage struct {
	turn   chan struct{}
	answer callersAnswer
}

// get is the answer as it is now.
func (b *callersBook) get(ctx context.Context, id countersign.ID) (callersAnswer, error) {
	page := b.page(id)
	select {
	case page.turn <- struct{}{}:
	case <-ctx.Done():
		return callersAnswer{}, ctx.Err()
	}
	defer func() { <-page.turn }()
	if page.answer.stands() {
		return page.answer, nil
	}
	if rest := callersRest - time.Since(page.answer.made); rest > 0 {
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return callersAnswer{}, ctx.Err()
		}
	}
	made, err := b.make(ctx, id)
	if err != nil {
		return callersAnswer{}, err
	}
	b.account(id, page, len(made.body)-len(page.answer.body))
	page.answer = made
	return made, nil
}

func (b *callersBook) page(id countersign.ID) *callersPage {
	b.mu.Lock()
	defer b.mu.Unlock()
	page, ok := b.pages[id]
	if !ok {
		if len(b.pages) >= callersKept || b.pages == nil {
			b.pages, b.bytes = map[countersign.ID]*callersPage{}, 0
		}
		page = &callersPage{turn: make(chan struct{}, 1)}
		b.pages[id] = page
	}
	return page
}

// account counts the bytes of a page that is still kept.
func (b *callersBook) account(id countersign.ID, page *callersPage, more int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pages[id] != page {
		return
	}
	if b.bytes += more; b.bytes > callersBytes {
		b.pages, b.bytes = nil, 0
	}
}

// make takes the channels first: what changes while it reads makes the answer stale.
func (b *callersBook) make(ctx context.Context, id countersign.ID) (callersAnswer, error) {
	out := callersAnswer{policy: b.changed(), revoked: b.ca.Revoked(), made: time.Now()}
	found, err := b.ca.Callers(ctx, id)
	if err != nil {
		return out, err
	}
	said := wire.Callers{
		Service: id, Version: found.Version, Callers: make([]wire.Caller, 0, len(found.Callers)),
		Revoked: wire.Revoked{Serials: found.Serials, Keys: found.Keys},
	}
	for _, c := range found.Callers {
		said.Callers = append(said.Callers, wire.Caller(c))
	}
	body, err := json.Marshal(said)
	if err != nil {
		return out, fmt.Errorf("encode the callers: %w", err)
	}
	sum := sha256.Sum256(body)
	out.body, out.etag = append(body, '\n'), `"`+hex.EncodeToString(sum[:16])+`"`
	return out, nil
}

// waiters counts the long polls of each service.
type waiters struct {
	mu sync.Mutex
	by map[countersign.ID]int
}

func (w *waiters) enter(id countersign.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[id] >= maxWaiters {
		return false
	}
	if w.by == nil {
		w.by = map[countersign.ID]int{}
	}
	w.by[id]++
	return true
}

func (w *waiters) leave(id countersign.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by[id]--; w.by[id] == 0 {
		delete(w.by, id)
	}
}
