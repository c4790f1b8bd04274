package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/policy"
)

// statusOf is the one place where an error becomes an HTTP status.
func statusOf(kind countersign.Kind, code countersign.Code) int {
	switch code {
	case countersign.CodeMethod:
		return http.StatusMethodNotAllowed
	case countersign.CodeContentType:
		return http.StatusUnsupportedMediaType
	}
	return kind.HTTPStatus()
}

// oauthStatus is the status at an OAuth endpoint (RFC 6749 5.2): 401 for invalid_client and 400 for the rest, but for
// what no OAuth error describes.
func oauthStatus(kind countersign.Kind, code countersign.Code) int {
	if code.Info().OAuth == "invalid_client" {
		return http.StatusUnauthorized
	}
	switch kind {
	case countersign.Internal, countersign.TooLarge, countersign.Limited, countersign.Unavailable:
		return statusOf(kind, code)
	}
	if code == countersign.CodeMethod {
		return http.StatusMethodNotAllowed
	}
	return http.StatusBadRequest
}

// asError finds what a caller may be told about err. What domains did not translate is translated here; all that is
// unknown shows nothing.
func asError(err error) *countersign.Error {
	var known *countersign.Error
	var fromEcho *echo.HTTPError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &tooLarge):
		return countersign.Errorf(countersign.CodeTooLarge, "the body has over %d bytes", tooLarge.Limit)
	case errors.As(err, &fromEcho) && fromEcho.Code == http.StatusNotFound:
		return countersign.Errorf(countersign.CodeNoRoute, "there is nothing at this path")
	case errors.As(err, &fromEcho) && fromEcho.Code == http.StatusMethodNotAllowed:
		return countersign.Errorf(countersign.CodeMethod, "this path does not take this method").WithHint("see the Allow header")
	case errors.Is(err, storage.ErrUnknown):
		return countersign.Errorf(countersign.CodeUnknownOutcome, "it is not known whether the change was made").
			WithHint("read the state before you repeat this").Because(err)
	case errors.Is(err, storage.ErrBusy):
		return countersign.Errorf(countersign.CodeBusy, "the store is busy or the disk is full").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrCorrupt):
		return countersign.Errorf(countersign.CodeDamaged, "a record in the store is damaged").Because(err)
	case errors.Is(err, storage.ErrClosed):
		return countersign.Errorf(countersign.CodeStopping, "the daemon is stopping").After(5 * time.Second).Because(err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return countersign.Errorf(countersign.CodeTimeout, "the request was not served in time").After(time.Second).Because(err)
	}
	return countersign.AsError(err)
}

// writeError answers with err, unless an answer has begun. Headers go before the status, and what isn't for the caller
// goes to the log only.
func (s *Server) writeError(c echo.Context, err error, oauth bool) {
	e := asError(err)
	status := statusOf(e.Kind, e.Code)
	if oauth {
		status = oauthStatus(e.Kind, e.Code)
	}
	s.logError(c, e, err, status)
	if c.Response().Committed {
		return
	}
	h := c.Response().Header()
	for _, name := range []string{"ETag", "Content-Encoding", "Content-Length", "Last-Modified"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	if e.Kind == countersign.Limited || e.Kind == countersign.Unavailable {
		h.Set("Retry-After", retryAfter(e.RetryAfter))
	}
	if status == http.StatusUnauthorized {
		challenge(c, e.Code)
	}
	var body any
	mediaType := wire.Problem
	if oauth {
		mediaType, body = wire.JSON, oauthBody(e, requestID(c))
		h.Set("Pragma", "no-cache")
	} else {
		body = problemBody(e, err, status, requestID(c))
	}
	encoded, err := json.Marshal(body)
	if err != nil { // the bodies are strings and numbers
		status, encoded = http.StatusInternalServerError, []byte(`{}`)
	}
	if err := c.Blob(status, mediaType, append(encoded, '\n')); err != nil {
		s.Logger.Debug("write an error", "error", err, "request_id", requestID(c))
	}
}

// logError tells the cause of our own faults once, with the request's id.
func (s *Server) logError(c echo.Context, e *countersign.Error, err error, status int) {
	level := slog.LevelDebug
	switch {
	case errors.Is(err, context.Canceled): // the caller went away
	case status == http.StatusServiceUnavailable:
		level = slog.LevelWarn
	case status >= http.StatusInternalServerError:
		level = slog.LevelError
	}
	s.Logger.Log(c.Request().Context(), level, "request failed", "request_id", requestID(c),
		"method", c.Request().Method, "route", c.Path(), "code", string(e.Code), "error", err)
}

func problemBody(e *countersign.Error, err error, status int, id string) wire.Error {
	body := wire.Error{
		Type: "urn:countersign:error:" + string(e.Code), Title: e.Code.Info().Title, Status: status,
		Detail: e.Msg, Code: e.Code, Hint: e.Hint, RequestID: id,
	}
	if e.Kind == countersign.Internal {
		body.Detail, body.Hint = "", ""
	}
	var faults *policy.FaultsError
	if errors.As(err, &faults) {
		for _, f := range faults.Faults {
			body.Faults = append(body.Faults, wire.Fault{Line: f.Line, Column: f.Column, Path: f.Path, Msg: f.Msg, Hint: f.Hint})
		}
	}
	var key *ca.KeyTypeError
	if errors.As(err, &key) {
		body.KeyTypes = key.Allowed
	}
	return body
}

func oauthBody(e *countersign.Error, id string) wire.OAuthError {
	body := wire.OAuthError{Error: e.Code.Info().OAuth, Code: e.Code, RequestID: id}
	if body.Error == "" { // a code that can't occur here all the same did
		body.Error = "invalid_request"
	}
	if e.Kind != countersign.Internal {
		hint := e.Hint
		if e.Kind == countersign.Denied { // it tells of the call graph and of how to change it: that is for operators
			hint = ""
		}
		body.Description = description(e.Msg, hint)
	}
	return body
}

// description keeps to the characters of RFC 6749 5.2: %x20-21 / %x23-5B / %x5D-7E.
func description(msg, hint string) string {
	if hint != "" {
		msg += "; " + hint
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r == '\\':
			return '/'
		case r == '\n' || r == '\t':
			return ' '
		case r < 0x20 || r > 0x7e:
			return '?'
		}
		return r
	}, msg)
}

// retryAfter is in whole seconds (RFC 9110 10.2.3), rounded up, at least one.
func retryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// challenge is sent where the Authorization header was used, or would help. There is no registered scheme that would ask
// for a client certificate.
func challenge(c echo.Context, code countersign.Code) {
	used := c.Request().Header.Get("Authorization")
	join := code == countersign.CodeNoCredential && c.Request().Method == http.MethodPost && c.Path() == "/v1/certificates"
	if used == "" && !join {
		return
	}
	scheme := "Bearer"
	if first, _, _ := strings.Cut(used, " "); strings.EqualFold(first, "Basic") {
		scheme = "Basic"
	}
	c.Response().Header().Set("WWW-Authenticate", scheme+` realm="countersign"`)
}
