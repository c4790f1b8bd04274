package keyring

import (
	"cmp"
	"crypto"
	"slices"
	"strings"
	"time"
)

// Purpose is what a key is for. A key has one, and it is bound to the key's sealing.
type Purpose string

// The purposes.
const (
	CA    Purpose = "ca"    // certificates; times are set by package ca
	Token Purpose = "token" // relay tokens; rotated here
	SVID  Purpose = "svid"  // SPIFFE JWT-SVIDs; rotated here, apart from the relay tokens' keys
	Audit Purpose = "audit" // checkpoints of the audit log
	OCSP  Purpose = "ocsp"  // OCSP responses; times are set by package ca
)

// Purposes lists them all.
func Purposes() []Purpose { return []Purpose{CA, Token, SVID, Audit, OCSP} }

// named are the purposes whose keys are made, used and deleted one by one: a certificate names each.
func (p Purpose) named() bool { return p == CA || p == OCSP }

// rotated are the purposes whose keys are rotated and retired here.
func rotated() []Purpose { return []Purpose{Token, SVID} }

// State is what a key may be used for at one instant.
type State uint8

// The states, in the order in which a key passes through them.
const (
	Pending State = iota // published, does not sign yet
	Active               // signs and verifies
	Retired              // verifies only
	Expired              // neither
)

// String is the state's name in the API.
func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Active:
		return "active"
	case Retired:
		return "retired"
	}
	return "expired"
}

// skew is how far the clock of a verifier or of another node may be off (standards.md: at most 60 s).
const skew = time.Minute

// Key is the public half of a signing key, and its times. Nothing in it is secret.
type Key struct {
	ID            string           `json:"kid"` // RFC 7638 thumbprint, SHA-256, base64url
	Purpose       Purpose          `json:"purpose"`
	Alg           string           `json:"alg"` // of JWA: "ES256" or "RS256"
	Public        crypto.PublicKey `json:"-"`
	Published     time.Time        `json:"published"`
	SignsFrom     time.Time        `json:"signs_from"`
	SignsUntil    time.Time        `json:"signs_until,omitzero"`    // zero: open
	VerifiesUntil time.Time        `json:"verifies_until,omitzero"` // zero: open
	KMS           string           `json:"kms,omitempty"`           // URI of a key in a token; "": sealed in the store
}

// State is the key's state at now. Each interval holds its first instant and not its last.
func (k Key) State(now time.Time) State {
	switch {
	case ended(k.VerifiesUntil, now):
		return Expired
	case ended(k.SignsUntil, now):
		return Retired
	case now.Before(k.SignsFrom):
		return Pending
	}
	return Active
}

// Planned is the key as key list and a dry run show it.
func (k Key) Planned(now time.Time) PlannedKey {
	return PlannedKey{
		ID: k.ID, Purpose: k.Purpose, Alg: k.Alg, State: k.State(now).String(), Published: k.Published,
		SignsFrom: k.SignsFrom, SignsUntil: k.SignsUntil, VerifiesUntil: k.VerifiesUntil, KMS: k.KMS,
	}
}

// Token is the URI of the token that holds the key, "" if it is sealed in the store.
func (k Key) Token() string {
	token, _, _ := strings.Cut(k.KMS, ";id=")
	return token
}

// ended tells whether the instant until, if there is one, has come.
func ended(until, now time.Time) bool { return !until.IsZero() && !now.Before(until) }

// PlannedKey is one row of a timeline.
type PlannedKey struct {
	ID            string    `json:"kid"` // "" for a key that a dry run did not make
	Purpose       Purpose   `json:"purpose"`
	Alg           string    `json:"alg"`
	State         string    `json:"state"` // at the plan's At
	Published     time.Time `json:"published"`
	SignsFrom     time.Time `json:"signs_from"`
	SignsUntil    time.Time `json:"signs_until,omitzero"`    // zero: open
	VerifiesUntil time.Time `json:"verifies_until,omitzero"` // zero: open
	KMS           string    `json:"kms,omitempty"`           // URI of a key in a token; "": sealed in the store, or not made
	New           bool      `json:"new"`
}

// Plan is the timeline of one purpose after a rotation or a retirement, oldest key first; expired keys are left out, but
// for the one that was just retired.
type Plan struct {
	Purpose   Purpose      `json:"purpose"`
	At        time.Time    `json:"at"`                  // when the change was made, or would have been
	SignsFrom time.Time    `json:"signs_from,omitzero"` // when the newest keys begin to sign; zero: no key takes over
	Note      string       `json:"note,omitempty"`      // of a retirement: what becomes of tokens, and which key signs now
	DryRun    bool         `json:"dry_run"`
	Keys      []PlannedKey `json:"keys"`
}

// sortKeys puts the oldest first; the order is the same on every node.
func sortKeys(keys []Key) {
	slices.SortFunc(keys, func(a, b Key) int {
		return cmp.Or(a.Published.Compare(b.Published), a.SignsFrom.Compare(b.SignsFrom),
			cmp.Compare(a.Alg, b.Alg), cmp.Compare(a.ID, b.ID))
	})
}
