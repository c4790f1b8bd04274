package wire

import (
	"encoding/json"
	"time"

	"github.com/countersign/countersign"
)

// AuditRecord is one record of the audit log. Hash is the chain's hash after it, in hex.
type AuditRecord struct {
	Seq       uint64           `json:"seq"`
	Time      time.Time        `json:"time"`
	Type      string           `json:"type"`
	Outcome   string           `json:"outcome"` // ok, denied, failed or intent
	By        AuditCaller      `json:"by"`
	Subject   string           `json:"subject,omitempty"`
	Code      countersign.Code `json:"code,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
	Detail    json.RawMessage  `json:"detail,omitempty"`
	Hash      string           `json:"hash"`
}

// AuditCaller is who asked, as the transport proved it.
type AuditCaller struct {
	Name      string `json:"name,omitempty"`
	Method    string `json:"method,omitempty"`
	ID        string `json:"id,omitempty"`
	Role      string `json:"role,omitempty"`
	Serial    string `json:"serial,omitempty"`
	Proxy     string `json:"proxy,omitempty"`     // the ID of the proxy that vouched for the certificate
	Assertion string `json:"assertion,omitempty"` // the jti of the client assertion or workload token
	Addr      string `json:"addr,omitempty"`
	JoinToken string `json:"join_token,omitempty"` // the id, never the secret
}

// AuditRecords is the answer to GET /v1/audit without follow, in the order that was asked for.
type AuditRecords struct {
	Records []AuditRecord `json:"records"`
}

// AuditVerification is the answer to GET /v1/audit/verification.
type AuditVerification struct {
	OK          bool     `json:"ok"`
	Records     uint64   `json:"records"`
	Segments    uint64   `json:"segments"`
	Checkpoints uint64   `json:"checkpoints"`
	First       uint64   `json:"first"`
	Last        uint64   `json:"last"`
	Hash        string   `json:"hash"`     // the chain's hash after the last record
	Unsigned    uint64   `json:"unsigned"` // records after the last checkpoint
	Faults      []string `json:"faults,omitempty"`
}

// Status is the answer to GET /v1/status.
type Status struct {
	Version       string             `json:"version"`
	Issuer        string             `json:"issuer"`
	URL           string             `json:"url,omitempty"` // where clients reach the public listener
	TrustDomain   string             `json:"trust_domain"`
	Time          time.Time          `json:"time"` // the daemon's clock
	Sealed        bool               `json:"sealed"`
	Ready         bool               `json:"ready"`
	Reasons       []string           `json:"reasons,omitempty"` // why it is not ready
	Frozen        countersign.Frozen `json:"frozen,omitzero"`
	PolicyVersion int                `json:"policy_version"`
	Services      int                `json:"services"`
	Issued        uint64             `json:"certificates_issued"` // since the daemon started
	Denied        uint64             `json:"certificates_denied"` // since the daemon started
	AuditSeq      uint64             `json:"audit_seq"`

	Issuers []IssuerKeys `json:"issuers,omitempty"` // of the policy in force
}

// IssuerKeys is how the daemon stands with the keys of an issuer of the policy in force.
type IssuerKeys struct {
	Issuer  string    `json:"issuer"`            // its name in the policy
	Pinned  bool      `json:"pinned,omitempty"`  // they stand in the policy: nothing is fetched
	Fetched time.Time `json:"fetched,omitzero"`  // the last good fetch; absent: there was none
	Failing bool      `json:"failing,omitempty"` // the last fetch was no good
}

// Readiness is the answer to GET /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`
}
