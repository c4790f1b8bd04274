package mtls

import (
	"time"

	"github.com/countersign/countersign"
)

// EventKind is what happened to a [Source].
type EventKind string

// What happens.
const (
	Enrolled EventKind = "enrolled" // the first certificate, or one after a fall back to join string or attestation
	Renewed  EventKind = "renewed"
	Reloaded EventKind = "reloaded" // somebody else wrote the identity directory
	NewRoots EventKind = "roots"    // the authority's roots changed; the certificate did not
	Failed   EventKind = "failed"   // see Reason and Err
	Expired  EventKind = "expired"  // the certificate is over. It goes on trying
	Skewed   EventKind = "skew"     // the clock here and the authority's differ by more than half a minute
)

// Reason is why something failed, in a word for metrics.
type Reason string

// Why things fail.
const (
	Unreachable   Reason = "unreachable"   // no answer: network, handshake, time
	Busy          Reason = "busy"          // 429 or 503
	Refused       Reason = "refused"       // the authority said no
	BadAnswer     Reason = "answer"        // what came is no certificate of ours
	Clock         Reason = "clock"         // the clock here is so wrong that the authority can't be verified
	Directory     Reason = "directory"     // Dir can't be read
	Write         Reason = "write"         // Dir can't be written; the identity in it is used on
	Configuration Reason = "configuration" // join string or attestation can't be had
)

// Event is one thing that happened.
type Event struct {
	Kind   EventKind
	At     time.Time
	Serial string // of the certificate as it is now; "": none
	Reason Reason // of Failed
	Err    error  // of Failed; says what to do. It holds no secret
	Skew   time.Duration
}

// Status is the state of a [Source] for people, metrics and readiness.
type Status struct {
	ID        countersign.ID
	Serial    string // "": there is no identity
	NotBefore time.Time
	NotAfter  time.Time
	RenewAt   time.Time // drawn once per certificate; zero: ReadOnly, or none
	Next      time.Time // when the authority is asked next, after a failure earlier or later than RenewAt; zero: never
	Server    string    // the authority's URL

	LastAttempt time.Time
	LastSuccess time.Time
	LastError   error // of the last attempt or look at Dir; nil: it succeeded
	Failures    int   // attempts that failed since the last one that succeeded

	// Skew is how far the clock here is ahead of the authority's (negative: behind), to about a second, by the last answer.
	// When no answer could be verified for the clock's sake it is the least that it must be.
	Skew time.Duration
	// Budget is how long the authority may be gone from now on without harm: until the certificate is over. 0: it is.
	Budget time.Duration
	// Unwritten: there is a newer identity, or there are newer roots, that can't be written into Dir at the moment.
	Unwritten bool
}
