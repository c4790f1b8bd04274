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

	Nearest string  `json:"nearest,omitempty"` // of a step that failed: the rule that comes nearest to allowing it
	Change  *Change `json:"change,omitempty"`  // of a step that failed: the smallest change with which it would pass
}

// Change is the smallest change that would let a step pass. It does not say that it should be made.
type Change struct {
	In    string `json:"in"`              // policy, request, token or command
	Op    string `json:"op"`              // add, set or remove
	Path  string `json:"path,omitempty"`  // as "calls[gateway -> orders].scopes", "audience"
	Value string `json:"value,omitempty"` // in the policy: YAML in one line
	Note  string `json:"note,omitempty"`
	Text  string `json:"text"` // all of it, for people
}

// Simulation is the answer to POST /v1/policy/simulate.
type Simulation struct {
	Against    int               `json:"against"`        // exchanges that were asked for
	Replayed   int               `json:"replayed"`       // exchanges that there were
	Since      time.Time         `json:"since,omitzero"` // of the oldest
	Until      time.Time         `json:"until,omitzero"` // of the newest
	Version    int               `json:"version"`        // of the policy in force
	Unchanged  int               `json:"unchanged"`
	Unreadable int               `json:"unreadable,omitempty"` // records of an older version, which hold too little
	Breaking   int               `json:"breaking"`             // allowed ones that the draft would deny and the policy in force would not
	Counts     map[string]int    `json:"counts"`               // by change
	Groups     []SimulationGroup `json:"groups"`               // the most frequent first
	Dropped    int               `json:"dropped,omitempty"`    // exchanges of groups beyond the first 1000
}

// SimulationGroup is exchanges along one call that would change in the same way.
type SimulationGroup struct {
	Change    string           `json:"change"` // "allowed -> denied", "denied -> allowed", "other scopes", "other lifetime", ...
	From      string           `json:"from"`
	To        string           `json:"to,omitempty"`
	Code      countersign.Code `json:"code,omitempty"`
	Why       string           `json:"why,omitempty"`
	Before    string           `json:"before,omitempty"`
	After     string           `json:"after,omitempty"`
	When      string           `json:"when,omitempty"`
	Already   bool             `json:"already,omitempty"` // the policy in force decides like the draft
	Count     int              `json:"count"`
	RequestID string           `json:"request_id,omitempty"` // of the newest, for `audit search --request`
	Newest    time.Time        `json:"newest,omitzero"`
	Fix       string           `json:"fix,omitempty"` // the smallest change of the draft that would allow it
}

// Suggestions is the answer to GET /v1/policy/suggestions.
type Suggestions struct {
	Version     int               `json:"version"`      // of the policy in force
	VersionFrom time.Time         `json:"version_from"` // when it was applied
	Asked       string            `json:"asked"`        // the period that was asked for
	Since       time.Time         `json:"since,omitzero"`
	Until       time.Time         `json:"until"`
	Short       bool              `json:"short,omitempty"` // the log reaches back less far than was asked for
	Requests    int               `json:"requests"`        // that were read
	Unused      []UnusedRule      `json:"unused"`          // calls that no token was made for
	Scopes      []UnusedRule      `json:"scopes"`          // scopes, of calls in use, that no token held
	Denials     []IntendedRequest `json:"denials"`         // requests that look as if they were meant to work
	MTLS        int               `json:"mtls_only"`       // calls without scopes: their use is not seen here
	Dropped     int               `json:"dropped,omitempty"`
}

// UnusedRule is a call, or a scope of one.
type UnusedRule struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Scope string `json:"scope,omitempty"`
}

// IntendedRequest is what a service tried several times and is still denied.
type IntendedRequest struct {
	From      string           `json:"from"`
	To        string           `json:"to"`
	Scope     string           `json:"scope,omitempty"`
	Code      countersign.Code `json:"code"`
	Count     int              `json:"count"`
	Tokens    int              `json:"tokens"` // different subject tokens among them, counted up to 3
	First     time.Time        `json:"first"`
	Last      time.Time        `json:"last"`
	RequestID string           `json:"request_id,omitempty"`
	Why       string           `json:"why"`
	Change    *Change          `json:"change"`
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

// Freeze is the body of POST /v1/freeze and /v1/thaw, whose answer is countersign.Frozen.
type Freeze struct {
	What   string `json:"what"`             // tokens, certificates or all
	Reason string `json:"reason,omitempty"` // to freeze it is needed
}

// Reason is the body of POST /v1/services/{name}/disable and /enable.
type Reason struct {
	Reason string `json:"reason"`
}
