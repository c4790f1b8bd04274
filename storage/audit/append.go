package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	countersign "github.com/countersign/countersign"
)

const (
	retryAfter = time.Second
	maxGroup   = 768 << 10 // bytes of the frames of one AppendAll: they must fit into the smallest segment
)

// payload is the JSON of an event; sequence, time and hash are the frame's.
type payload struct {
	Type      string           `json:"type"`
	Outcome   Outcome          `json:"outcome"`
	By        By               `json:"by"`
	Subject   string           `json:"subject,omitempty"`
	Code      countersign.Code `json:"code,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
	Detail    any              `json:"detail,omitempty"`
}

type tooLarge struct{ size int }

func (e *tooLarge) Error() string {
	return fmt.Sprintf("an event of %d bytes; at most %d can be recorded", e.size, maxPayload)
}

// Append records e and returns when it is durable. Its errors are *countersign.Error: CodeAuditFull when the queue is
// full and CodeAudit when nothing can be written; both are temporary unless the daemon's log says otherwise. CodeInternal
// is an event that can't be recorded as it is: of a malformed type, with a detail that is no JSON, over 512 KiB.
//
// When ctx ends before the writer took the event up, it is not recorded. Afterwards the true outcome is awaited, which
// takes as long as one fdatasync: nobody learns "not recorded" of something that is.
func (l *Log) Append(ctx context.Context, e Event) (Record, error) {
	r := l.newRequest(kindEvent)
	if err := l.encode(r, e); err != nil {
		return Record{}, err
	}
	if err := l.submit(ctx, r, false); err != nil {
		return Record{}, err
	}
	rec, err := decodeRecord(r.seqs, r.wall, r.buf[frameHead:], r.sums[0])
	if err != nil {
		return Record{}, countersign.Errorf(countersign.CodeInternal, "internal error").Because(err)
	}
	l.pool.Put(r)
	return rec, nil
}

// AppendAll is Append for several events that follow each other without a gap and become durable together: all of them
// or, after an error, none. Together they may have 768 KiB.
func (l *Log) AppendAll(ctx context.Context, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	r := l.newRequest(kindEvent)
	for _, e := range events {
		if err := l.encode(r, e); err != nil {
			return err
		}
	}
	if err := l.submit(ctx, r, false); err != nil {
		return err
	}
	l.pool.Put(r)
	return nil
}

// appendOwn records events of the log itself; they are taken also when the queue is full or closing.
func (l *Log) appendOwn(ctx context.Context, events ...Event) error {
	r := l.newRequest(kindEvent)
	for _, e := range events {
		if err := r.addEvent(e); err != nil {
			return err
		}
	}
	return l.submit(ctx, r, true)
}

func (l *Log) newRequest(k kind) *request {
	r := l.pool.Get().(*request)
	r.reset(k)
	return r
}

// encode runs in the caller's goroutine, so that JSON costs the writer nothing.
func (l *Log) encode(r *request, e Event) error {
	if !validType(e.Type) || strings.HasPrefix(e.Type, ownPrefix) || !validOutcome(e.Outcome) {
		return unrecordable(fmt.Errorf("audit: no event: type %q, outcome %q", e.Type, e.Outcome))
	}
	if err := r.addEvent(e); err != nil {
		return unrecordable(fmt.Errorf("audit: encode %s: %w", e.Type, err))
	}
	if len(r.buf) > maxGroup {
		return unrecordable(&tooLarge{len(r.buf)})
	}
	return nil
}

func unrecordable(err error) error {
	return countersign.Errorf(countersign.CodeInternal, "internal error").Because(err)
}

// submit queues r and waits for its outcome. After nil, r is the caller's again; after an error it must be left alone.
func (l *Log) submit(ctx context.Context, r *request, own bool) error {
	if err := ctx.Err(); err != nil {
		return notRecorded(err)
	}
	if t := l.trouble.Load(); t != nil {
		l.refused.Add(uint64(len(r.ends)))
		return l.unavailable(t)
	}
	switch l.queue.put(r, own) {
	case queueFull:
		return countersign.Errorf(countersign.CodeAuditFull, "the audit log has too many events waiting").After(retryAfter)
	case queueClosed:
		return countersign.Errorf(countersign.CodeAudit, "the audit log is closed")
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		if l.queue.giveUp(r) {
			return notRecorded(ctx.Err())
		}
		return <-r.done
	}
}

func notRecorded(err error) error {
	return countersign.Errorf(countersign.CodeAudit, "the request ended before it could be recorded").Because(err)
}

// stored is payload as it is read.
type stored struct {
	payload
	Detail json.RawMessage `json:"detail"`
}

// decodeRecord makes a Record that shares no memory with the buffer.
func decodeRecord(seq uint64, wall int64, b []byte, sum hash) (Record, error) {
	var p stored
	if err := json.Unmarshal(b, &p); err != nil {
		return Record{}, fmt.Errorf("decode record %d: %w", seq, err)
	}
	return Record{
		Seq: seq, Time: time.Unix(0, wall).UTC(), Type: p.Type, Outcome: p.Outcome, By: p.By, Subject: p.Subject,
		Code: p.Code, RequestID: p.RequestID, Detail: p.Detail, Hash: hexHash(sum),
	}, nil
}
