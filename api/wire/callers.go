package wire

import "github.com/countersign/countersign"

// Callers is the answer to GET /v1/callers: who may call the service that asks. Who is not in it may not.
type Callers struct {
	Service countersign.ID `json:"service"` // that asks
	Version int            `json:"version"` // of the policy
	Callers []Caller       `json:"callers"` // by name
	Revoked Revoked        `json:"revoked"`
}

// Caller is a service that may call.
type Caller struct {
	ID     countersign.ID `json:"id"`
	Name   string         `json:"name"`
	Scopes []string       `json:"scopes"` // of the call, sorted; empty: mTLS only, no token
}

// Revoked is what of the callers' certificates must be refused all the same, sorted. It holds what is not over, by a clock
// that is up to ten minutes behind.
type Revoked struct {
	Serials []string `json:"serials"` // lower-case hex, 32 digits
	Keys    []string `json:"keys"`    // lower-case hex SHA-256 of the SubjectPublicKeyInfo: no certificate with it is any good
}
