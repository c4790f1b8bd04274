package client

import (
	"bufio"
	"context"
	"encoding/json"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/countersign/countersign/api/wire"
)

// maxRecord bounds one line of a followed audit log.
const maxRecord = 4 << 20

// AuditQuery chooses records; the zero one is the oldest of all.
type AuditQuery struct {
	After        uint64    // only records with a higher sequence
	Since, Until time.Time // zero: open
	Type         string    // exactly, like "token.issued"
	Subject      string
	By           string // the caller's name or ID
	RequestID    string
	Text         string // anywhere in the record
	Outcome      string // ok, denied, failed or intent
	Limit        int    // 1 to 1000; 0: the daemon's default
	Newest       bool   // newest first
}

func (q AuditQuery) values() url.Values {
	query := values("type", q.Type, "subject", q.Subject, "by", q.By, "request_id", q.RequestID, "text", q.Text,
		"outcome", q.Outcome, "limit", number(q.Limit), "newest", flag(q.Newest))
	if q.After != 0 {
		query.Set("after", strconv.FormatUint(q.After, 10))
	}
	if !q.Since.IsZero() {
		query.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if !q.Until.IsZero() {
		query.Set("until", q.Until.UTC().Format(time.RFC3339Nano))
	}
	return query
}

// Audit searches the audit log.
func (c *Client) Audit(ctx context.Context, q AuditQuery) (wire.AuditRecords, error) {
	var out wire.AuditRecords
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audit", query: q.values()}, &out)
	return out, err
}

// FollowAudit gives the chosen records and then each further one as it becomes durable, until ctx ends, the daemon
// stops or the loop does. Without After it begins with what is appended from now on. It ends after the first error.
func (c *Client) FollowAudit(ctx context.Context, q AuditQuery) iter.Seq2[wire.AuditRecord, error] {
	query := q.values()
	query.Set("follow", "true")
	return func(yield func(wire.AuditRecord, error) bool) {
		rq := call{method: http.MethodGet, path: "/v1/audit", query: query, accept: wire.NDJSON}
		response, err := c.send(ctx, rq)
		if err != nil {
			yield(wire.AuditRecord{}, err)
			return
		}
		defer response.Body.Close()
		lines := bufio.NewScanner(response.Body)
		lines.Buffer(nil, maxRecord)
		for lines.Scan() {
			if len(lines.Bytes()) == 0 { // keeps the connection alive
				continue
			}
			var record wire.AuditRecord
			if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
				yield(wire.AuditRecord{}, &AnswerError{Method: rq.method, Path: rq.path, Err: err})
				return
			}
			if !yield(record, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil && ctx.Err() == nil {
			yield(wire.AuditRecord{}, &AnswerError{Method: rq.method, Path: rq.path, Err: err})
		}
	}
}

// VerifyAudit has the daemon verify its whole audit log.
func (c *Client) VerifyAudit(ctx context.Context) (wire.AuditVerification, error) {
	var out wire.AuditVerification
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/audit/verification", long: true}, &out)
	return out, err
}
