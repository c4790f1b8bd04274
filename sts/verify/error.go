package verify

import (
	"errors"
	"fmt"

	"github.com/countersign/countersign/sts/jwt"
)

// Reason is the stable word for why a token is refused: one of those below or of [jwt.Reason].
type Reason string

// The reasons that are added to those of package jwt.
const (
	ReasonIssuer     Reason = "iss"
	ReasonAudience   Reason = "aud"
	ReasonType       Reason = "typ"
	ReasonCredential Reason = "credential" // the request has no token
	ReasonRequest    Reason = "request"    // the request's Authorization can't be read, or there are two
	ReasonBinding    Reason = "cnf"        // the token is bound to a key, and the key of the connection or proof is another
	ReasonProof      Reason = "dpop"       // the DPoP proof is missing or not good for this request
	ReasonNonce      Reason = "nonce"      // the DPoP proof lacks a nonce of ours, or it is old
	ReasonRevoked    Reason = "revoked"
	ReasonScope      Reason = "scope" // the token is good and lacks a scope

	// These say nothing about the token. Try again later.
	ReasonKeys        Reason = "keys"        // the issuer's keys can't be had
	ReasonRevocations Reason = "revocations" // the issuer's revocations can't be had, or are older than MaxStale
	ReasonReplays     Reason = "replays"     // more DPoP proofs at a time than are remembered
)

// Error is every refusal. Msg is for logs and for people who debug, Err for logs only; [Verifier.Refuse] shows a client
// neither. None of them holds a token.
type Error struct {
	Reason Reason
	Msg    string
	Scopes []string // of ReasonScope: all that are needed
	Err    error
}

// Error is for logs: message and cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Msg + ": " + e.Err.Error()
	}
	return e.Msg
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// Temporary tells that the token was not judged and may be good: answer 503, not 401.
func (e *Error) Temporary() bool {
	return e.Reason == ReasonKeys || e.Reason == ReasonRevocations || e.Reason == ReasonReplays
}

func refuse(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Msg: fmt.Sprintf(format, args...)}
}

// asError makes every error of the packages below one of ours.
func asError(err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var e *jwt.Error
	if errors.As(err, &e) {
		return &Error{Reason: Reason(e.Reason), Msg: e.Msg}
	}
	return &Error{Reason: Reason(jwt.ReasonClaim), Msg: "the token can't be read", Err: err}
}
