package observe

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/countersign/countersign"
)

// Fault is one place of a request that breaks a rule. It never holds a value of the request.
type Fault struct {
	In      string `json:"in"`                // body, query, path, header or cookie
	Name    string `json:"name,omitempty"`    // of the parameter
	Pointer string `json:"pointer,omitempty"` // into the body or the parameter's value (RFC 6901); "": all of it
	Reason  string `json:"reason"`            // the rule that it breaks
}

// FaultsError is an error that names places.
type FaultsError struct {
	Err    *countersign.Error
	Faults []Fault
}

// Error is the error's own; the places are for the one who asked.
func (e *FaultsError) Error() string { return e.Err.Error() }

// Unwrap gives the error itself to errors.As.
func (e *FaultsError) Unwrap() error { return e.Err }

// problem is the body of every refusal (RFC 9457).
type problem struct {
	Type      string           `json:"type"`
	Title     string           `json:"title"`
	Status    int              `json:"status"`
	Detail    string           `json:"detail,omitempty"`
	Code      countersign.Code `json:"code"`
	Hint      string           `json:"hint,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
	Errors    []Fault          `json:"errors,omitempty"`
}

// CodeHeader is on every answer that the relay gave in place of an upstream, with the error's code, and on no other: the
// application tells by it who refused.
const CodeHeader = "X-Countersign-Error"

// StatusOf is the one place where an error of the relay becomes an HTTP status.
func StatusOf(e *countersign.Error) int {
	switch e.Code {
	case countersign.CodeRelayMethod:
		return http.StatusMethodNotAllowed
	case countersign.CodeRelayContentType:
		return http.StatusUnsupportedMediaType
	case countersign.CodeRelayQuery:
		return http.StatusRequestURITooLong
	case countersign.CodeRelayHeader:
		return http.StatusRequestHeaderFieldsTooLarge
	case countersign.CodeRelayUpstream:
		return http.StatusBadGateway
	case countersign.CodeRelayTimeout:
		return http.StatusGatewayTimeout
	case countersign.CodeRelayStalled:
		return http.StatusRequestTimeout
	}
	return e.Kind.HTTPStatus()
}

// Refuse answers with err and says in log and metrics why. Headers that the refusal needs beside (Allow, WWW-Authenticate)
// stand in w already. What is no [countersign.Error] shows nothing of itself.
func Refuse(w http.ResponseWriter, r *http.Request, err error) {
	e := countersign.AsError(err)
	request, status := From(r.Context()), StatusOf(e)
	request.setCode(e.Code)
	request.mu.Lock()
	if e.Err != nil && request.cause == nil {
		request.cause = e.Err
	}
	request.mu.Unlock()
	body := problem{
		Type: "urn:countersign:error:" + string(e.Code), Title: e.Code.Info().Title, Status: status,
		Detail: e.Msg, Code: e.Code, Hint: e.Hint, RequestID: request.ID,
	}
	switch {
	case e.Kind == countersign.Internal:
		body.Detail, body.Hint = "", ""
	case body.Hint == "":
		body.Hint = e.Code.Info().Next
	}
	var faulty *FaultsError
	if errors.As(err, &faulty) {
		body.Errors = faulty.Faults
	}
	encoded, err := json.Marshal(body)
	if err != nil { // strings and numbers
		encoded = []byte("{}")
	}
	h := w.Header()
	for _, name := range []string{"ETag", "Content-Encoding", "Content-Length", "Last-Modified"} {
		h.Del(name)
	}
	h.Set(CodeHeader, string(e.Code))
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/problem+json")
	h.Set("X-Content-Type-Options", "nosniff")
	if e.Kind == countersign.Limited || e.Kind == countersign.Unavailable {
		h.Set("Retry-After", retryAfter(e.RetryAfter))
	}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(encoded, '\n')) // the peer is gone; nothing to tell it
	}
}

// retryAfter is in whole seconds (RFC 9110 10.2.3), rounded up, at least one.
func retryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}
