package wire

import (
	"time"

	"github.com/countersign/countersign"
)

// PolicyVersion describes one version of the policy.
type PolicyVersion struct {
	Version int       `json:"version"`
	At      time.Time `json:"at,omitzero"`
	By      string    `json:"by,omitempty"`
	SHA256  string    `json:"sha256,omitempty"` // hex, of the document
	Comment string    `json:"comment,omitempty"`
}

// PolicyDocument is the answer to GET /v1/policy as JSON.
type PolicyDocument struct {
	PolicyVersion
	Document string `json:"document"` // the YAML, byte by byte
}

// PolicyHistory is the answer to GET /v1/policy/history, newest first.
type PolicyHistory struct {
	Versions []PolicyVersion `json:"versions"`
}

// PolicyApplied is the answer to PUT /v1/policy and POST /v1/policy/rollback.
type PolicyApplied struct {
	Version   int      `json:"version"`
	Previous  int      `json:"previous"`
	Diff      string   `json:"diff,omitempty"` // unified text
	Warnings  []string `json:"warnings,omitempty"`
	Unchanged bool     `json:"unchanged,omitempty"` // the document is the one in force; nothing was written
	DryRun    bool     `json:"dry_run,omitempty"`   // nothing was written
}

// Rollback is the body of POST /v1/policy/rollback.
type Rollback struct {
	Version int `json:"version"`
}

// ExplainRequest is the body of POST /v1/policy/explain.
type ExplainRequest struct {
	From          string   `json:"from"`
	To            string   `json:"to"`
	Scopes        []string `json:"scopes,omitempty"`
	Token         string   `json:"token,omitempty"` // a subject token; verified, never stored or logged
	SubjectScopes []string `json:"subject_scopes,omitempty"`
}

// Explanation is the answer to POST /v1/policy/explain.
type Explanation struct {
	Allowed  bool                 `json:"allowed"`
	Audience string               `json:"audience,omitempty"` // the service that the call goes to
	Scope    string               `json:"scope,omitempty"`
	TTL      countersign.Duration `json:"ttl,omitzero"`
	Version  int                  `json:"version"` // of the policy that decided
	Steps    []Step               `json:"steps"`
}

// Step is one step of a decision, in the order of policy.md.
type Step struct {
	Name string           `json:"name"`
	OK   bool             `json:"ok"`
	Code countersign.Code `json:"code,omitempty"`
	Msg  string           `json:"msg,omitempty"`
	Rule string           `json:"rule,omitempty"`
	Hint string           `json:"hint,omitempty"`
}

// Services is the answer to GET /v1/services, in the document's order.
type Services struct {
	Version  int       `json:"version"` // of the policy
	Services []Service `json:"services"`
}

// Service is one service of the policy with its state.
type Service struct {
	Name            string                `json:"name"`
	ID              countersign.ID        `json:"id"`
	DNS             []string              `json:"dns,omitempty"`
	Accepts         []string              `json:"accepts,omitempty"` // names of issuers; not empty: an entry point
	Calls           []string              `json:"calls,omitempty"`   // names of services that it may call
	CertificateTTL  countersign.Duration  `json:"certificate_ttl,omitzero"`
	CertificateKeys []string              `json:"certificate_keys"`
	TokenAlg        string                `json:"token_alg"`
	TokenTyp        string                `json:"token_typ"`
	Disabled        *countersign.Disabled `json:"disabled,omitempty"`
}

// Reason is the body of POST /v1/services/{name}/disable and /enable.
type Reason struct {
	Reason string `json:"reason"`
}
