package wire

import "time"

// TokenRevocationRequest is the body of POST /v1/tokens/revocations: exactly one of jti, txn, sub, sid and service.
type TokenRevocationRequest struct {
	JTI         string `json:"jti,omitempty"`     // the token, and all that were made from it
	Transaction string `json:"txn,omitempty"`     // all tokens of one user request
	Subject     string `json:"sub,omitempty"`     // all tokens of a subject, as it stands in our tokens, issued until now
	SessionID   string `json:"sid,omitempty"`     // all tokens of a session at its issuer
	Issuer      string `json:"issuer,omitempty"`  // with sid: the issuer identifier
	Service     string `json:"service,omitempty"` // name or ID: all tokens issued until now that it asked for, passed on or that are for it
	Reason      string `json:"reason,omitempty"`
}

// TokenRevocation is a revocation of tokens in force: the answer to POST /v1/tokens/revocations.
type TokenRevocation struct {
	Kind   string    `json:"kind"`           // jti, txn, sub, sid or service
	Value  string    `json:"value"`          // of sub and sid a hash, as the feed has it
	Name   string    `json:"name,omitempty"` // the sub or sid itself
	Issuer string    `json:"issuer,omitempty"`
	Before time.Time `json:"before,omitzero"` // sub and service: what was issued at or before it is revoked
	Until  time.Time `json:"until"`           // then nothing that it reaches can be alive, and it is forgotten
	MadeAt time.Time `json:"made_at"`
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by,omitempty"`
}

// TokenRevocations is one page of them, the newest first.
type TokenRevocations struct {
	Revocations []TokenRevocation `json:"revocations"`
	Next        string            `json:"next,omitempty"` // the `after` of the next page; absent on the last one
}

// Introspection is the answer to POST /oauth2/introspect (RFC 7662 2.2) as far as this client reads it. Inactive tokens
// have nothing but Active.
type Introspection struct {
	Active    bool     `json:"active"`
	TokenType string   `json:"token_type,omitempty"`
	Issuer    string   `json:"iss,omitempty"`
	Subject   string   `json:"sub,omitempty"`
	SubIssuer string   `json:"sub_iss,omitempty"`
	Audience  string   `json:"aud,omitempty"`
	ClientID  string   `json:"client_id,omitempty"`
	Scope     string   `json:"scope,omitempty"`
	Txn       string   `json:"txn,omitempty"`
	ID        string   `json:"jti,omitempty"`
	SessionID string   `json:"sid,omitempty"`
	IssuedAt  int64    `json:"iat,omitempty"` // seconds since 1970
	NotBefore int64    `json:"nbf,omitempty"`
	Expires   int64    `json:"exp,omitempty"`
	Actor     *Actor   `json:"act,omitempty"`
	Confirms  *Confirm `json:"cnf,omitempty"`
}

// Actor is a link of the chain (RFC 8693 4.1), the current one outermost.
type Actor struct {
	Sub string `json:"sub"`
	Act *Actor `json:"act,omitempty"`
}

// Confirm is what a token is bound to (RFC 7800).
type Confirm struct {
	Thumbprint string `json:"x5t#S256,omitempty"` // RFC 8705 3.1
}
