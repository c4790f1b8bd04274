package local

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/mtls"
)

const (
	bodyTime = 10 * time.Second // to send a request that is no stream
	maxToken = 16 << 10
)

// serve tells gRPC from HTTP. Both are for callers that a rule names, so many at one time of each user.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	isGRPC := r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
	refuse := refuseHTTP
	if isGRPC {
		refuse = refuseGRPC
	}
	conn, ok := r.Context().Value(connectionKey{}).(*connection)
	if !ok {
		refuse(w, codes.Internal, "who is connected is not known")
		return
	}
	if !s.calls.enter(conn.peer.uid) {
		refuse(w, codes.ResourceExhausted, "this user has as many calls under way as are allowed")
		return
	}
	defer s.calls.leave(conn.peer.uid)
	id := conn.identity()
	if id == nil {
		refuse(w, codes.PermissionDenied, "no identity is for this caller; the agent's log has the reason")
		return
	}
	if isGRPC {
		s.serveGRPC(w, r, id)
		return
	}
	if r.URL.Path != "/exchange" {
		answerError(w, http.StatusNotFound, wire.OAuthError{Error: "invalid_request", Description: "there is nothing at this path; /exchange is"})
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	s.exchange(w, r, id)
}

// refuseGRPC is an answer of trailers only (gRPC over HTTP/2, Responses).
func refuseGRPC(w http.ResponseWriter, code codes.Code, message string) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", strconv.Itoa(int(code)))
	h.Set("Grpc-Message", message)
	w.WriteHeader(http.StatusOK)
}

func refuseHTTP(w http.ResponseWriter, code codes.Code, message string) {
	switch code {
	case codes.PermissionDenied:
		answerError(w, http.StatusForbidden, wire.OAuthError{Error: "access_denied", Description: message})
	case codes.ResourceExhausted:
		w.Header().Set("Retry-After", "1")
		answerError(w, http.StatusTooManyRequests, wire.OAuthError{Error: "temporarily_unavailable", Description: message})
	default:
		answerError(w, http.StatusInternalServerError, wire.OAuthError{Error: "server_error", Description: message})
	}
}

func answerError(w http.ResponseWriter, status int, body wire.OAuthError) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="countersign"`)
	}
	answerJSON(w, status, body)
}

func answerJSON(w http.ResponseWriter, status int, body any) {
	encoded, err := json.Marshal(body)
	if err != nil { // the bodies are strings and numbers
		status, encoded = http.StatusInternalServerError, []byte(`{}`)
	}
	h := w.Header()
	h.Set("Content-Type", wire.JSON)
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	w.WriteHeader(status)
	_, _ = w.Write(append(encoded, '\n'))
}

// exchange answers POST /exchange: the token of the Authorization header for one of another audience (RFC 8693), as the caller's
// identity. A token never stands in the URL, which gets into logs.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request, id *served) {
	invalid := func(text string) {
		answerError(w, http.StatusBadRequest, wire.OAuthError{Error: "invalid_request", Description: text})
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		answerError(w, http.StatusMethodNotAllowed, wire.OAuthError{Error: "invalid_request", Description: "POST is needed"})
		return
	}
	audience, scopes, fault := exchangeQuery(r.URL.RawQuery)
	token, tokenFault := bearer(r.Header.Values("Authorization"))
	switch {
	case fault != "":
		invalid(fault)
		return
	case r.ContentLength != 0:
		invalid("no body is taken: the audience is in the query, the token in the Authorization header")
		return
	case tokenFault != "":
		answerError(w, http.StatusUnauthorized, wire.OAuthError{Error: "invalid_token", Description: tokenFault})
		return
	}
	if _, err := id.source.Identity(); err != nil { // what is over is not shown to the authority for the authority to say so
		s.exchangeFailed(w, id, err)
		return
	}
	got, err := id.tokens.Exchange(r.Context(), token, audience, scopes...)
	if err != nil {
		s.exchangeFailed(w, id, err)
		return
	}
	left := int(got.Expires.Sub(s.cfg.Now()) / time.Second)
	if left <= 0 {
		answerError(w, http.StatusServiceUnavailable, wire.OAuthError{Error: "temporarily_unavailable", Description: "the token is over already; compare the clocks"})
		return
	}
	answerJSON(w, http.StatusOK, wire.Token{
		AccessToken: got.Value, TokenType: "Bearer", ExpiresIn: left, Scope: strings.Join(got.Scopes, " "),
		IssuedTokenType: "urn:ietf:params:oauth:token-type:access_token",
	})
}

// exchangeFailed passes the authority's refusal on, and says nothing of other causes.
func (s *Server) exchangeFailed(w http.ResponseWriter, id *served, err error) {
	var refused *client.OAuthError
	if errors.As(err, &refused) && refused.Body.Error != "" {
		if refused.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(refused.RetryAfter.Seconds()))))
		}
		status := refused.Status
		if status == http.StatusUnauthorized { // the identity is refused, not the caller's token: that is the agent's matter
			status = http.StatusServiceUnavailable
		}
		answerError(w, status, refused.Body)
		return
	}
	s.log.Warn("local API: exchange failed", "identity", id.name, "error", err)
	text := "the authority can't be asked at the moment"
	if errors.Is(err, mtls.ErrExpired) || errors.Is(err, mtls.ErrNone) {
		text = "there is no valid certificate at the moment"
	}
	w.Header().Set("Retry-After", "1")
	answerError(w, http.StatusServiceUnavailable, wire.OAuthError{Error: "temporarily_unavailable", Description: text})
}

// exchangeQuery reads audience and scope, or tells what is wrong. It is pure.
func exchangeQuery(raw string) (audience string, scopes []string, fault string) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return "", nil, "the query can't be read"
	}
	for name, values := range query {
		switch {
		case name != "audience" && name != "scope":
			return "", nil, "audience and scope are the only parameters"
		case len(values) > 1:
			return "", nil, name + " is sent twice"
		}
	}
	audience = query.Get("audience")
	if audience == "" || len(audience) > 512 {
		return "", nil, "audience is needed: a service's name or ID"
	}
	return audience, strings.Fields(query.Get("scope")), ""
}

// bearer is the one token of the Authorization header (RFC 6750 2.1), or what is wrong. It is pure.
func bearer(values []string) (token, fault string) {
	if len(values) != 1 {
		return "", "one Authorization header is needed: Bearer and the token that came with the request"
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" || len(token) > maxToken || strings.ContainsAny(token, " \t") {
		return "", "the Authorization header holds no bearer token"
	}
	return token, ""
}
