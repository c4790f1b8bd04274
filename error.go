package countersign

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Kind is the class of an [Error]: it decides the HTTP status and the exit code of the command line, in one place each.
type Kind uint8

// The kinds of error.
const (
	Internal        Kind = iota // our fault; nothing of it is shown
	Invalid                     // the request can't be right, whoever sends it
	Unauthenticated             // nobody, or not provably somebody
	Denied                      // somebody, who may not
	NotFound
	Conflict // right in itself, but not in the present state
	TooLarge
	Limited     // too often; RetryAfter says when again
	Unavailable // not now: sealed, full, stopping; RetryAfter says when again
)

// HTTPStatus is the status of an answer about an error of this kind (RFC 9110 15; 429: RFC 6585 4), unless its code has one of
// its own. The daemon and the relay each turn errors into answers in one place, by this.
func (k Kind) HTTPStatus() int {
	switch k {
	case Invalid:
		return http.StatusBadRequest
	case Unauthenticated:
		return http.StatusUnauthorized
	case Denied:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case Conflict:
		return http.StatusConflict
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case Limited:
		return http.StatusTooManyRequests
	case Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// Error is what domain packages return for everything that a caller may be told. Msg and Hint may be shown; Err is only
// logged. A Msg never holds a token, a key or a join token.
type Error struct {
	Kind       Kind
	Code       Code
	Msg        string        // what and why, for the one who asked
	Hint       string        // what to do next; may be empty
	RetryAfter time.Duration // of Limited and Unavailable; 0: not said
	Err        error         // the cause; never leaves the daemon
}

// Errorf makes an Error of code's kind. The format takes no %w: a cause would leak into Msg; see [Error.Because].
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Kind: code.Info().Kind, Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Because sets the cause, which is logged and never shown.
func (e *Error) Because(err error) *Error { e.Err = err; return e }

// WithHint sets what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// After sets when it is worth asking again.
func (e *Error) After(d time.Duration) *Error { e.RetryAfter = d; return e }

// Error is for logs: message and cause.
func (e *Error) Error() string {
	if e.Err != nil {
		return string(e.Code) + ": " + e.Msg + ": " + e.Err.Error()
	}
	return string(e.Code) + ": " + e.Msg
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// AsError finds the Error in err's chain, or wraps err as an internal one that shows nothing of it.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Errorf(CodeInternal, "internal error").Because(err)
}
