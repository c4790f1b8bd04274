// Package audit is the append-only history of the authority: a hash-chained log in segment files, durable before
// [Log.Append] returns, whose head stands in the store and is signed every second.
//
// What the chain gives: a record that was changed, removed or put between others no longer fits its successor; the head
// in the store and the signed checkpoints fix the newest end, so that a shortened or rewritten log is noticed too.
//
// The package never drops an event that it accepted, never holds a secret, never changes or removes a record (whole
// segments leave when they are older than Config.Keep), never repeats a failed fsync, and never opens a log that is
// shorter than the store remembers.
package audit

import (
	"encoding/json"
	"log/slog"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// Outcome is how what an [Event] tells of ended.
type Outcome string

// The outcomes.
const (
	OK     Outcome = "ok"
	Denied Outcome = "denied" // refused by a rule or for want of a credential
	Failed Outcome = "failed" // allowed, but could not be done
	Intent Outcome = "intent" // about to be done; another event tells how it ended
)

// Event is what is appended.
type Event struct {
	Type    string // two words, [a-z-]+.[a-z-]+; the first word "audit" is the log's own
	Outcome Outcome
	By      countersign.Caller
	Subject string           // what it is about: a service's name, a serial, a kid, a version
	Code    countersign.Code // of a denial
	Detail  any              // marshalled to JSON in Append; never a secret
}

// By is the part of a [countersign.Caller] that is recorded.
type By struct {
	Name      string `json:"name,omitempty"`
	Method    string `json:"method,omitempty"`
	ID        string `json:"id,omitempty"`
	Role      string `json:"role,omitempty"` // of operators and the admin socket
	Serial    string `json:"serial,omitempty"`
	Proxy     string `json:"proxy,omitempty"`     // the ID of the proxy that vouched for the certificate
	Assertion string `json:"assertion,omitempty"` // the jti of the client assertion
	Addr      string `json:"addr,omitempty"`
	JoinToken string `json:"join_token,omitempty"` // its id, a hash
}

// Record is what is read. Seq has gaps: checkpoints take a number too, so that all that is in the chain is counted.
type Record struct {
	Seq       uint64           `json:"seq"`
	Time      time.Time        `json:"time"` // by the daemon's clock when the record was taken up; UTC
	Type      string           `json:"type"`
	Outcome   Outcome          `json:"outcome"`
	By        By               `json:"by"`
	Subject   string           `json:"subject,omitempty"`
	Code      countersign.Code `json:"code,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
	Detail    json.RawMessage  `json:"detail,omitempty"`
	Hash      string           `json:"hash"` // hex SHA-256: the chain's hash after this record
}

// Head is the newest end of the chain. Seq 0 is the empty log.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"` // lower-case hex
}

// Config of a [Log]. Dir and Store are required.
type Config struct {
	Dir        string // created 0700; one Log at a time
	Store      storage.Store
	Now        func() time.Time // nil: time.Now
	Logger     *slog.Logger     // nil: discards
	Segment    int64            // bytes of a segment file: 1 MiB to 1 GiB, default 64 MiB
	Keep       time.Duration    // how long records stay at least, default 400 d; negative: for ever
	Reserve    int64            // bytes held so that "disk full" can be recorded, default 64 MiB; negative: none
	Queue      int              // events that may wait, default 4096; more: CodeAuditFull
	Sign       Signer           // see SetSigner; may be nil
	Fatal      func(error)      // called once when an fsync failed: must end the process. nil: panics
	Registerer prometheus.Registerer
}

// Signer signs the payload of a checkpoint with the audit key kid; [Sign] makes sig from a crypto.Signer. After an
// error (a sealed daemon) the checkpoint is put off, not skipped.
type Signer = func(payload []byte) (kid string, sig []byte, err error)

const (
	day            = 24 * time.Hour
	defaultSegment = 64 << 20
	minSegment     = 1 << 20
	maxSegment     = 1 << 30
	defaultReserve = 64 << 20
	defaultKeep    = 400 * day
	defaultQueue   = 4096
	maxQueued      = 32 << 20 // bytes of waiting events, whatever their number
	maxPayload     = 512 << 10
	ownPrefix      = "audit."
)

func validOutcome(o Outcome) bool {
	switch o {
	case OK, Denied, Failed, Intent:
		return true
	}
	return false
}

// validType accepts two words of lower-case letters and hyphens with a dot between them.
func validType(s string) bool {
	area, what, ok := strings.Cut(s, ".")
	return ok && word(area) && word(what)
}

func word(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}
