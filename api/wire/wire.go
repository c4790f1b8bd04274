// Package wire holds the bodies of the HTTP API as plain structs: what the daemon writes and its clients read.
//
// The names and meanings of JSON members are stable: a member is added, never renamed, and never changes its meaning.
// Times are RFC 3339 in UTC, durations are written as time.Duration does ("24h0m0s"). Clients ignore members that they
// don't know; the daemon refuses them.
//
// It never decides anything and imports only the shared words.
package wire

import "github.com/countersign/countersign"

// MediaTypes of the API.
const (
	JSON    = "application/json"
	Problem = "application/problem+json" // RFC 9457
	NDJSON  = "application/x-ndjson"
	YAML    = "application/yaml" // RFC 9512
	Form    = "application/x-www-form-urlencoded"
	PEM     = "application/x-pem-file"
	Archive = "application/vnd.countersign.backup"
	JWT     = "application/jwt"          // RFC 7519 10.3.1
	JWKSet  = "application/jwk-set+json" // RFC 7517 8.5.2
)

// RequestID is the header that names a request in the daemon's log and audit log.
const RequestID = "X-Request-Id"

// Error is the body of every error under /v1 (RFC 9457 3). Code and RequestID are stable for scripts; Detail and Hint
// are for people.
type Error struct {
	Type      string           `json:"type"`  // urn:countersign:error:CSnnnn
	Title     string           `json:"title"` // what the code means, constant
	Status    int              `json:"status"`
	Detail    string           `json:"detail,omitempty"`
	Code      countersign.Code `json:"code"`
	Hint      string           `json:"hint,omitempty"` // what to do next
	RequestID string           `json:"request_id"`
	Faults    []Fault          `json:"faults,omitempty"` // of CS4001 only: all of the document's

	KeyTypes []string `json:"key_types,omitempty"` // of CS2081 only: with a key of one of them it would be right
}

// Fault is one fault of a policy document. Line and Column count from 1; both are 0 when the fault has no place.
type Fault struct {
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Path   string `json:"path,omitempty"`
	Msg    string `json:"msg"`
	Hint   string `json:"hint,omitempty"`
}

// OAuthError is the body of every error under /oauth2 (RFC 6749 5.2), with our code and request id as further members.
type OAuthError struct {
	Error       string           `json:"error"`
	Description string           `json:"error_description,omitempty"`
	Code        countersign.Code `json:"code,omitempty"`
	RequestID   string           `json:"request_id,omitempty"`
}

// Metadata is what clients of ours read of the authorization server's metadata (RFC 8414 2).
type Metadata struct {
	Issuer string `json:"issuer"`
}

// Token is a successful token response (RFC 6749 5.1, RFC 8693 2.2.1).
type Token struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type,omitempty"` // of a token exchange only
	TokenType       string `json:"token_type"`
	ExpiresIn       int    `json:"expires_in"` // seconds
	Scope           string `json:"scope"`
}
