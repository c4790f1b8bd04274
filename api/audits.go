package api

import (
	"crypto"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

const (
	streamPage     = 500
	streamBeat     = 15 * time.Second // an empty line: it keeps proxies patient and finds readers that are gone
	streamPatience = 30 * time.Second // for one page to be taken
)

func auditParameters() []string {
	return []string{"after", "since", "until", "type", "subject", "by", "request_id", "text", "outcome", "limit", "newest", "follow"}
}

// searchAudit gives the chosen records, or follows the log.
func (s *Server) searchAudit(rq *request) error {
	query, err := auditQuery(rq)
	if err != nil {
		return err
	}
	follow, err := rq.flag("follow")
	if err != nil {
		return err
	}
	if follow {
		return s.followAudit(rq, query)
	}
	records, err := s.Audit.Search(rq.Request().Context(), query)
	if err != nil {
		return err
	}
	out := wire.AuditRecords{Records: make([]wire.AuditRecord, 0, len(records))}
	for _, r := range records {
		out.Records = append(out.Records, auditRecord(r))
	}
	return rq.answer(http.StatusOK, out)
}

func auditQuery(rq *request) (audit.Query, error) {
	q := audit.Query{
		Type: rq.query["type"], Subject: rq.query["subject"], By: rq.query["by"],
		RequestID: rq.query["request_id"], Text: rq.query["text"],
	}
	outcome, err := rq.choice("outcome", string(audit.OK), string(audit.Denied), string(audit.Failed), string(audit.Intent))
	if err != nil {
		return q, err
	}
	q.Outcome = audit.Outcome(outcome)
	if after := rq.query["after"]; after != "" {
		if q.After, err = strconv.ParseUint(after, 10, 63); err != nil {
			return q, countersign.Errorf(countersign.CodeParameter, "after must be a record's sequence number")
		}
	}
	if q.Limit, err = rq.number("limit", 1, 1000, 100); err != nil {
		return q, err
	}
	if q.Newest, err = rq.flag("newest"); err != nil {
		return q, err
	}
	if q.Since, err = rq.instant("since"); err != nil {
		return q, err
	}
	q.Until, err = rq.instant("until")
	return q, err
}

func auditRecord(r audit.Record) wire.AuditRecord {
	return wire.AuditRecord{
		Seq: r.Seq, Time: r.Time, Type: r.Type, Outcome: string(r.Outcome), By: wire.AuditCaller(r.By), Subject: r.Subject,
		Code: r.Code, RequestID: r.RequestID, Detail: r.Detail, Hash: r.Hash,
	}
}

// followAudit streams the records after q.After, one JSON object a line, and then each further one as it becomes
// durable. Without `after` it begins with what is appended from now on. It ends with the request or the daemon; a limit
// has no meaning here.
func (s *Server) followAudit(rq *request, q audit.Query) error {
	if q.Newest || rq.query["limit"] != "" {
		return countersign.Errorf(countersign.CodeParameter, "follow goes from old to new without a limit")
	}
	if rq.query["after"] == "" && q.Since.IsZero() {
		q.After = s.Audit.Head().Seq
	}
	q.Limit = streamPage
	if t := trackOf(rq); t != nil {
		t.stream = true
	}
	stream := http.NewResponseController(rq.Response())
	// The timeouts of requests are no good for a stream: it may be read for ever, and written as long as it is taken.
	if err := stream.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lift the read deadline: %w", err)
	}
	rq.Response().Header().Set("Content-Type", wire.NDJSON)
	rq.Response().WriteHeader(http.StatusOK)
	beat := time.NewTicker(streamBeat)
	defer beat.Stop()
	for {
		appended := s.Audit.Appended()
		next, full, err := s.writePage(rq, stream, q)
		if err != nil {
			return err
		}
		q.After = next
		if full {
			continue
		}
		select {
		case <-appended:
		case <-beat.C:
			if err := writeStream(rq, stream, []byte("\n")); err != nil {
				return err
			}
		case <-rq.Request().Context().Done():
			return nil
		case <-s.stopping:
			return nil
		}
	}
}

// writePage writes the records after q.After and says from where to go on: past all that was looked at, not only past
// the last match, or a rare match would cost a walk through the log each time.
func (s *Server) writePage(rq *request, stream *http.ResponseController, q audit.Query) (next uint64, full bool, err error) {
	head := s.Audit.Head().Seq // before the search, which sees at least as much
	records, err := s.Audit.Search(rq.Request().Context(), q)
	if err != nil {
		return 0, false, err
	}
	var page []byte
	for _, r := range records {
		line, err := json.Marshal(auditRecord(r))
		if err != nil {
			return 0, false, fmt.Errorf("encode record %d: %w", r.Seq, err)
		}
		page = append(append(page, line...), '\n')
		q.After = r.Seq
	}
	full = len(records) == q.Limit
	if !full {
		q.After = max(q.After, head)
	}
	return q.After, full, writeStream(rq, stream, page)
}

func writeStream(rq *request, stream *http.ResponseController, page []byte) error {
	if err := stream.SetWriteDeadline(time.Now().Add(streamPatience)); err != nil {
		return fmt.Errorf("set the write deadline: %w", err)
	}
	if _, err := rq.Response().Write(page); err != nil {
		return fmt.Errorf("write to the stream: %w", err)
	}
	if err := stream.Flush(); err != nil {
		return fmt.Errorf("write to the stream: %w", err)
	}
	return nil
}

// patient lifts the connection's deadlines, for work that grows with the log.
func patient(rq *request) error {
	stream := http.NewResponseController(rq.Response())
	if err := stream.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lift the write deadline: %w", err)
	}
	if err := stream.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lift the read deadline: %w", err)
	}
	return nil
}

// verifyAudit reads and checks the whole log, with the audit keys that the ring has on record.
func (s *Server) verifyAudit(rq *request) error {
	if err := patient(rq); err != nil {
		return err
	}
	report, err := s.Audit.Verify(rq.Request().Context(), func(kid string) (crypto.PublicKey, bool) {
		key, ok := s.Keys.Key(kid)
		return key.Public, ok && key.Purpose == keyring.Audit
	})
	if err != nil {
		return err
	}
	return rq.answer(http.StatusOK, wire.AuditVerification{
		OK: report.OK(), Records: report.Records, Segments: report.Segments, Checkpoints: report.Checkpoints,
		First: report.First, Last: report.Last, Hash: report.Head.Hash, Unsigned: report.Unsigned, Faults: report.Faults,
	})
}
