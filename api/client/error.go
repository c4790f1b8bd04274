package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// APIError is an answer that is no success, from a route under /v1.
type APIError struct {
	Status     int
	Problem    wire.Error    // zero but for Status when the answer was none of the daemon's
	RetryAfter time.Duration // when it is worth asking again; 0: not said
}

// Error says what went wrong, with its code and, on a second line, what to do next.
func (e *APIError) Error() string {
	if e.Problem.Code == "" {
		return fmt.Sprintf("the server answered %d %s, which is no answer of a Countersign daemon", e.Status, http.StatusText(e.Status))
	}
	text := e.Problem.Detail
	if text == "" {
		text = e.Problem.Title
	}
	return describe(text, e.Problem.Hint, e.Problem.Code, e.Problem.RequestID)
}

// Code is the daemon's code, "" when the answer was none of the daemon's.
func (e *APIError) Code() countersign.Code { return e.Problem.Code }

// OtherKey is the key type with which what was refused would be right: ok if err is the refusal of a key's type (CS2081).
// Who has no reason for the type of his key makes one of that type and asks once more.
func OtherKey(err error) (alg string, ok bool) {
	var refused *APIError
	if !errors.As(err, &refused) || refused.Code() != countersign.CodeKeyType || len(refused.Problem.KeyTypes) == 0 {
		return "", false
	}
	return refused.Problem.KeyTypes[0], true
}

// UnreachableError says that there was no answer: no connection, no handshake, no HTTP, or none in time.
type UnreachableError struct {
	Method, Path string
	Err          error
}

// Error names the call and the cause.
func (e *UnreachableError) Error() string { return e.Method + " " + e.Path + ": " + e.Err.Error() }

// Unwrap gives the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// AnswerError says that there was an answer that can't be read: broken off, too large, or of another form. Whether the
// call was carried out is not known.
type AnswerError struct {
	Method, Path string
	Err          error
}

// Error names the call and the cause.
func (e *AnswerError) Error() string {
	return "read the answer to " + e.Method + " " + e.Path + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *AnswerError) Unwrap() error { return e.Err }

// OAuthError is an answer that is no success, from a route under /oauth2.
type OAuthError struct {
	Status     int
	Body       wire.OAuthError
	RetryAfter time.Duration
}

// Error says what went wrong, with the RFC 6749 error.
func (e *OAuthError) Error() string {
	return e.Body.Error + ": " + describe(e.Body.Description, "", e.Body.Code, e.Body.RequestID)
}

// Code is the daemon's code.
func (e *OAuthError) Code() countersign.Code { return e.Body.Code }

func describe(text, hint string, code countersign.Code, requestID string) string {
	var b strings.Builder
	b.WriteString(text)
	if code != "" {
		b.WriteString(" (" + string(code))
		if requestID != "" {
			b.WriteString(", request " + requestID)
		}
		b.WriteString(")")
	}
	if hint != "" {
		b.WriteString("\n" + hint)
	}
	return b.String()
}

// responseError reads an error's body by its media type: a proxy's page is not mistaken for an answer of the daemon's.
func responseError(response *http.Response, rq call) error {
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return &AnswerError{Method: rq.method, Path: rq.path, Err: fmt.Errorf("%s: %w", response.Status, err)}
	}
	mediaType, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	after := retryAfter(response.Header)
	if strings.HasPrefix(rq.path, "/oauth2/") && mediaType == wire.JSON {
		e := &OAuthError{Status: response.StatusCode, RetryAfter: after}
		if json.Unmarshal(body, &e.Body) == nil && e.Body.Error != "" {
			return e
		}
	}
	e := &APIError{Status: response.StatusCode, RetryAfter: after}
	if mediaType != wire.Problem || json.Unmarshal(body, &e.Problem) != nil {
		e.Problem = wire.Error{Status: response.StatusCode}
	}
	return e
}

func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 || seconds > 86400 {
		return 0
	}
	return time.Duration(seconds) * time.Second
}
