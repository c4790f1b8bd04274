package countersign

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// RevocationKind says what a [Revocation] reaches.
type RevocationKind string

// The kinds of revocation. Those of a token, a transaction and a session reach whatever bears the name; those of a
// subject and a service reach what was issued at or before an instant, so that who logs in again is not locked out.
const (
	RevokeJTI         RevocationKind = "jti"     // the token with this jti, and all that were made from it
	RevokeTransaction RevocationKind = "txn"     // all tokens of one user request
	RevokeSession     RevocationKind = "sid"     // all tokens of one session at its issuer
	RevokeSubject     RevocationKind = "sub"     // all tokens of one subject under our issuer
	RevokeService     RevocationKind = "service" // all tokens that were made for, addressed to or passed on by a service
)

// Revocation is one revocation that is in force. It holds no name of a person: see [RevokedSubject], [RevokedSession].
type Revocation struct {
	Kind   RevocationKind `json:"kind"`
	Value  string         `json:"value"`
	Before time.Time      `json:"before"` // whole seconds; counts for RevokeSubject and RevokeService
	Until  time.Time      `json:"until"`  // whole seconds; from then on no token that it reaches can be alive
}

// RevokedSubject is the Value of a revocation of sub: its SHA-256 in lower-case hex. The list is public, and a sub may be
// an address of e-mail.
func RevokedSubject(sub string) string { return hexSum(sub) }

// RevokedSession is the Value of a revocation of sid, which is unique only together with its issuer (OpenID Connect
// Front-Channel Logout 1.0, 3).
func RevokedSession(issuer, sid string) string { return hexSum(issuer + "\x00" + sid) }

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// TokenFacts is what revocations know a token by. What a token lacks is "".
type TokenFacts struct {
	ID, Transaction          string
	Subject                  string // under our issuer
	SessionIssuer, SessionID string
	Services                 []string // the IDs of its client and of all in its act, and its audience's ID
	IssuedAt                 time.Time
}

// Revocations is a set of revocations. It is immutable; the zero value is empty.
type Revocations struct{ by map[revocationKey]Revocation }

type revocationKey struct {
	kind  RevocationKind
	value string
}

// NewRevocations makes a set. Of two with one kind and value, the later Before and Until count.
func NewRevocations(list []Revocation) *Revocations {
	set := &Revocations{by: make(map[revocationKey]Revocation, len(list))}
	for _, r := range list {
		key := revocationKey{r.Kind, r.Value}
		if old, ok := set.by[key]; ok {
			r.Before, r.Until = later(old.Before, r.Before), later(old.Until, r.Until)
		}
		set.by[key] = r
	}
	return set
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Len tells how many there are.
func (s *Revocations) Len() int { return len(s.by) }

// Find returns a revocation that reaches the token, if there is one. It costs a few map accesses and, where subjects or
// sessions are revoked at all, a hash.
func (s *Revocations) Find(t TokenFacts) (Revocation, bool) {
	if s == nil || len(s.by) == 0 {
		return Revocation{}, false
	}
	for id := t.ID; id != ""; id = parentID(id) {
		if r, ok := s.by[revocationKey{RevokeJTI, id}]; ok {
			return r, true
		}
	}
	if r, ok := s.by[revocationKey{RevokeTransaction, t.Transaction}]; ok && t.Transaction != "" {
		return r, true
	}
	if t.SessionID != "" {
		if r, ok := s.by[revocationKey{RevokeSession, RevokedSession(t.SessionIssuer, t.SessionID)}]; ok {
			return r, true
		}
	}
	issued := t.IssuedAt.Truncate(time.Second) // Before has whole seconds, an `iat` may have a fraction
	if t.Subject != "" {
		if r, ok := s.by[revocationKey{RevokeSubject, RevokedSubject(t.Subject)}]; ok && !issued.After(r.Before) {
			return r, true
		}
	}
	for _, id := range t.Services {
		if r, ok := s.by[revocationKey{RevokeService, id}]; ok && !issued.After(r.Before) {
			return r, true
		}
	}
	return Revocation{}, false
}

// parentID is the jti that a jti was made from: "" for the first of a chain.
func parentID(id string) string {
	i := strings.LastIndexByte(id, '.')
	if i < 0 {
		return ""
	}
	return id[:i]
}
