package jwt

import "fmt"

// Reason is the stable word for why a token or key set is refused. Code may compare it; Msg is for people.
type Reason string

// The reasons.
const (
	ReasonSize      Reason = "size"      // longer than MaxToken, or a key set over its limits
	ReasonParts     Reason = "parts"     // not exactly three parts: JWE, JSON serialization, opaque
	ReasonBase64    Reason = "base64"    // not canonical base64url (RFC 7515 2)
	ReasonJSON      Reason = "json"      // not a JSON object in UTF-8 with finite numbers, and nothing after it
	ReasonDuplicate Reason = "duplicate" // a member stands twice in one object
	ReasonDepth     Reason = "depth"     // nested deeper than MaxDepth
	ReasonHeader    Reason = "header"    // a header parameter is of the wrong form or one of the refused ones
	ReasonAlg       Reason = "alg"       // not allowed, or not the key's own
	ReasonKID       Reason = "kid"       // names no key of the set, or is missing though there are several
	ReasonSignature Reason = "signature" // of the wrong size or range, or not made with the key
	ReasonClaim     Reason = "claim"     // a claim is missing or of the wrong type
	ReasonExpired   Reason = "exp"       // now is at or after exp
	ReasonNotYet    Reason = "nbf"       // now is before nbf
	ReasonFuture    Reason = "iat"       // iat is in the future
	ReasonKey       Reason = "key"       // a key that must not be in a set
)

// Error is every refusal of a token or key set. Msg holds nothing secret: no part of a signature, at most the start
// of a name.
type Error struct {
	Reason Reason
	Msg    string
}

// Error is the message.
func (e *Error) Error() string { return e.Msg }

func refuse(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Msg: fmt.Sprintf(format, args...)}
}
