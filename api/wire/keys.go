package wire

import "time"

// Keys is the answer to GET /v1/keys: public halves only, oldest first within a purpose.
type Keys struct {
	Keys []Key `json:"keys"`
}

// Key is one signing key on its way through pending, active, retired and expired.
type Key struct {
	ID            string    `json:"kid"` // RFC 7638 thumbprint
	Purpose       string    `json:"purpose"`
	Alg           string    `json:"alg"`
	State         string    `json:"state"` // at the time of the answer
	Published     time.Time `json:"published"`
	SignsFrom     time.Time `json:"signs_from"`
	SignsUntil    time.Time `json:"signs_until,omitzero"`    // absent: open
	VerifiesUntil time.Time `json:"verifies_until,omitzero"` // absent: open
	KMS           string    `json:"kms,omitempty"`           // URI of a key in a token (RFC 7512); absent: sealed in the database
	New           bool      `json:"new,omitempty"`           // made, or to be made, by this rotation
}

// RotateRequest is the body of POST /v1/keys/{purpose}/rotate.
type RotateRequest struct {
	Now    bool `json:"now,omitempty"` // sign at once; needs the role admin
	DryRun bool `json:"dry_run,omitempty"`
}

// RetireRequest is the body of POST /v1/keys/{kid}/retire.
type RetireRequest struct {
	Compromised bool `json:"compromised,omitempty"` // before its last token has expired: those tokens die
	DryRun      bool `json:"dry_run,omitempty"`
}

// KeyPlan is the answer to POST /v1/keys/{purpose}/rotate and /v1/keys/{kid}/retire: the timeline of all keys of the
// purpose.
type KeyPlan struct {
	At     time.Time `json:"at"`
	DryRun bool      `json:"dry_run,omitempty"`
	Note   string    `json:"note,omitempty"` // of a retirement: what becomes of tokens, and which key signs now
	Keys   []Key     `json:"keys"`
}

// JWK is one key of the trust bundle (RFC 7517; SPIFFE Trust Domain and Bundle 4.2).
type JWK struct {
	Use string   `json:"use"`           // x509-svid or jwt-svid
	KID string   `json:"kid,omitempty"` // of jwt-svid
	Kty string   `json:"kty"`
	Crv string   `json:"crv,omitempty"`
	X   string   `json:"x,omitempty"`
	Y   string   `json:"y,omitempty"`
	N   string   `json:"n,omitempty"`
	E   string   `json:"e,omitempty"`
	X5C []string `json:"x5c,omitempty"` // of x509-svid
}

// Bundle is the answer to GET /v1/bundle: the trust domain's SPIFFE bundle.
type Bundle struct {
	Keys        []JWK `json:"keys"`
	Sequence    int64 `json:"spiffe_sequence"`
	RefreshHint int   `json:"spiffe_refresh_hint"` // seconds
}

// JWTSVIDRequest is the body of POST /v1/jwt-svid.
type JWTSVIDRequest struct {
	Audience []string `json:"audience"` // 1 to 16 names or IDs of services: the caller itself, or one that it may call
}

// JWTSVID is the answer to POST /v1/jwt-svid.
type JWTSVID struct {
	SVID      string    `json:"svid"` // SPIFFE JWT-SVID, compact
	ExpiresAt time.Time `json:"expires_at"`
}

// KEKRotation is the answer to POST /v1/kek/rotate.
type KEKRotation struct {
	Keys int `json:"keys"` // that were re-wrapped: all
}
