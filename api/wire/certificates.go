package wire

import (
	"time"

	"github.com/countersign/countersign"
)

// CertificateRequest is the body of POST /v1/certificates.
type CertificateRequest struct {
	CSR string               `json:"csr"`          // PEM; only its key and its signature count
	TTL countersign.Duration `json:"ttl,omitzero"` // absent: what the policy gives
}

// Certificate is the answer to POST /v1/certificates and POST /v1/operators.
type Certificate struct {
	Certificate string         `json:"certificate"` // PEM, leaf first, then the intermediates
	Roots       string         `json:"roots"`       // PEM of all roots
	ID          countersign.ID `json:"id"`
	Serial      string         `json:"serial"` // lower-case hex
	NotBefore   time.Time      `json:"not_before"`
	NotAfter    time.Time      `json:"not_after"`
	RenewAfter  time.Time      `json:"renew_after"`  // renewing earlier is no use
	RenewBefore time.Time      `json:"renew_before"` // renewing later is a risk
}

// CertificateRecord is what the inventory knows of one certificate.
type CertificateRecord struct {
	Serial      string         `json:"serial"`
	ID          countersign.ID `json:"id"`
	Kind        string         `json:"kind"`
	State       string         `json:"state"` // valid, revoked or expired
	NotBefore   time.Time      `json:"not_before"`
	NotAfter    time.Time      `json:"not_after"`
	IssuedAt    time.Time      `json:"issued_at"`
	RevokedAt   time.Time      `json:"revoked_at,omitzero"`
	Reason      string         `json:"reason,omitempty"` // an RFC 5280 5.3.1 name
	KeyAlg      string         `json:"key_alg"`
	SPKI        string         `json:"spki"`        // hex SHA-256 of the SubjectPublicKeyInfo
	Fingerprint string         `json:"fingerprint"` // hex SHA-256 of the certificate
	Issuer      string         `json:"issuer"`
	IssuedTo    string         `json:"issued_to"` // the caller that asked, as the audit log shows it

	Lineage      string `json:"lineage,omitempty"`       // the serial of the enrolment that it comes from; none: the daemon's own
	Successor    string `json:"successor,omitempty"`     // the serial that it was renewed to
	SupersededBy string `json:"superseded_by,omitempty"` // the serial that took its place before anybody came with it

	PEM string `json:"pem"`
}

// Certificates is one page of the inventory.
type Certificates struct {
	Certificates []CertificateRecord `json:"certificates"`
	Next         string              `json:"next,omitempty"` // the `after` of the next page; absent on the last one
}

// Revocation is the body of POST /v1/certificates/{serial}/revoke.
type Revocation struct {
	Reason string `json:"reason"` // an RFC 5280 5.3.1 name; "unspecified" is one
}

// Revocations is the body of POST /v1/revocations: exactly one of lineage, service and key, and the reason.
type Revocations struct {
	Lineage string `json:"lineage,omitempty"` // the serial of the enrolment
	Service string `json:"service,omitempty"` // its name: all its live lineages
	Key     string `json:"key,omitempty"`     // hex SHA-256 of the SubjectPublicKeyInfo, certified or not
	Reason  string `json:"reason"`            // an RFC 5280 5.3.1 name
}

// RevokedLineages is its answer.
type RevokedLineages struct {
	Lineages int `json:"lineages"` // that were blocked by it
}

// JoinTokenRequest is the body of POST /v1/join-tokens.
type JoinTokenRequest struct {
	Service string               `json:"service"`
	TTL     countersign.Duration `json:"ttl,omitzero"` // absent: 10 minutes
}

// JoinToken is the answer to POST /v1/join-tokens. Token and Join are secret, and shown this once.
type JoinToken struct {
	Join        string    `json:"join,omitempty"` // https://host:port#<token>.<fingerprint>, if the daemon knows its address
	Token       string    `json:"token"`
	ID          string    `json:"id"`
	Fingerprint string    `json:"fingerprint"` // hex SHA-256 of the root
	Service     string    `json:"service"`
	ExpiresAt   time.Time `json:"expires_at"`
}

// OperatorRequest is the body of POST /v1/operators.
type OperatorRequest struct {
	Name string `json:"name"`
	Role string `json:"role"` // viewer, operator or admin; not above the caller's own
	CSR  string `json:"csr"`  // PEM
}

// Authority is the answer to GET /v1/authority.
type Authority struct {
	TrustDomain   string                 `json:"trust_domain"`
	Roots         []AuthorityCertificate `json:"roots"`
	Intermediates []AuthorityCertificate `json:"intermediates"`
}

// AuthorityCertificate describes one certificate of the authority itself.
type AuthorityCertificate struct {
	Subject     string    `json:"subject"`
	Serial      string    `json:"serial"`
	State       string    `json:"state"`       // pending, signing, verifying, withdrawn, expired
	Fingerprint string    `json:"fingerprint"` // hex SHA-256 of the certificate
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	SignsFrom   time.Time `json:"signs_from,omitzero"` // of an intermediate that was made to wait
	Root        string    `json:"root,omitempty"`      // of an intermediate: the serial of its root
	KeyID       string    `json:"key_id,omitempty"`    // in the keyring
	Own         bool      `json:"own,omitempty"`       // a root that was brought, or signed by one elsewhere
	Offline     bool      `json:"offline,omitempty"`   // of a root: its key is not in the keyring
	Holders     []Holder  `json:"holders,omitempty"`   // of an intermediate, if asked for: who has live certificates of it
	PEM         string    `json:"pem"`
}

// Holder is an owner of live certificates of one intermediate.
type Holder struct {
	ID    countersign.ID `json:"id"`
	Count int            `json:"count"`
	Until time.Time      `json:"until"` // when the last of them ends
}

// AuthorityRotation is the body of POST /v1/authority/rotations.
type AuthorityRotation struct {
	Role   string    `json:"role"`          // intermediate or root
	At     time.Time `json:"at,omitzero"`   // when the successor begins to sign; absent: as soon as it may
	Now    bool      `json:"now,omitempty"` // a new root need not wait until everybody has it
	DryRun bool      `json:"dry_run,omitempty"`
}

// AuthorityPlan is its answer.
type AuthorityPlan struct {
	Role      string                 `json:"role"`
	At        time.Time              `json:"at"`
	SignsFrom time.Time              `json:"signs_from"`
	DryRun    bool                   `json:"dry_run"`
	New       []AuthorityCertificate `json:"new"`
}

// IntermediateRequest is the answer to POST /v1/authority/request: what a root elsewhere is to sign.
type IntermediateRequest struct {
	CSR   string    `json:"csr"` // PEM
	KeyID string    `json:"key_id"`
	Made  time.Time `json:"made"`
}

// IntermediateImport is the body of POST /v1/authority/intermediates: the certificate for that request.
type IntermediateImport struct {
	Certificate string `json:"certificate"` // PEM
}
