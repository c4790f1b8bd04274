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
	ReasonIssuer   Reason = "iss"
	ReasonAudience Reason = "aud"
	ReasonType     Reason = "typ"
	ReasonKeys     Reason = "keys" // the issuer's keys can't be had: nothing is known about the token; try again later
)

// Error is every refusal. Msg may be shown to the client that sent the token; Err is for logs.
type Error struct {
	Reason Reason
	Msg    string
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
func (e *Error) Temporary() bool { return e.Reason == ReasonKeys }

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
