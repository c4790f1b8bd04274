package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// Policy gives a version of the policy's document; 0 is the one in force.
func (c *Client) Policy(ctx context.Context, version int) (wire.PolicyDocument, error) {
	var out wire.PolicyDocument
	err := c.do(ctx, call{
		method: http.MethodGet, path: "/v1/policy", accept: wire.JSON, query: values("version", number(version)),
	}, &out)
	return out, err
}

// PolicyHistory gives the newest versions; a limit of 0 is the daemon's default.
func (c *Client) PolicyHistory(ctx context.Context, limit int) (wire.PolicyHistory, error) {
	var out wire.PolicyHistory
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/policy/history", query: values("limit", number(limit))}, &out)
	return out, err
}

// ApplyOptions of [Client.ApplyPolicy].
type ApplyOptions struct {
	IfVersion *int // apply only if this version is in force; nil: whichever is
	DryRun    bool // only say what would happen
}

// ApplyPolicy puts a document in force. Faults of the document are in the *APIError's Problem.
func (c *Client) ApplyPolicy(ctx context.Context, document []byte, o ApplyOptions) (wire.PolicyApplied, error) {
	rq := call{
		method: http.MethodPut, path: "/v1/policy", query: values("dry_run", flag(o.DryRun)),
		body: document, mediaType: wire.YAML, header: http.Header{},
	}
	if o.IfVersion != nil {
		rq.header.Set("If-Match", `"`+strconv.Itoa(*o.IfVersion)+`"`)
	}
	var out wire.PolicyApplied
	err := c.do(ctx, rq, &out)
	return out, err
}

// Rollback makes a new version with the document of an old one.
func (c *Client) Rollback(ctx context.Context, version int) (wire.PolicyApplied, error) {
	var out wire.PolicyApplied
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/policy/rollback", body: wire.Rollback{Version: version}}, &out)
	return out, err
}

// Explain tells how an exchange would be decided, step by step.
func (c *Client) Explain(ctx context.Context, rq wire.ExplainRequest) (wire.Explanation, error) {
	var out wire.Explanation
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/policy/explain", body: rq}, &out)
	return out, err
}

// Simulate decides the last exchanges of the audit log again by a draft; 0 is the daemon's default. Nothing is changed.
func (c *Client) Simulate(ctx context.Context, draft []byte, last int) (wire.Simulation, error) {
	var out wire.Simulation
	err := c.do(ctx, call{
		method: http.MethodPost, path: "/v1/policy/simulate", query: values("last", number(last)), body: draft, mediaType: wire.YAML,
	}, &out)
	return out, err
}

// Suggestions looks back over the days; 0 is the daemon's default.
func (c *Client) Suggestions(ctx context.Context, days int) (wire.Suggestions, error) {
	var out wire.Suggestions
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/policy/suggestions", query: values("days", number(days)), long: true}, &out)
	return out, err
}

// Services gives the services of the policy with their states.
func (c *Client) Services(ctx context.Context) (wire.Services, error) {
	var out wire.Services
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/services"}, &out)
	return out, err
}

// DisableService takes a service out of use at once.
func (c *Client) DisableService(ctx context.Context, name, reason string) error {
	return c.do(ctx, call{
		method: http.MethodPost, path: "/v1/services/" + url.PathEscape(name) + "/disable", body: wire.Reason{Reason: reason},
	}, nil)
}

// Freeze ends the issuing of tokens, certificates or all of them. It gives what is frozen after that.
func (c *Client) Freeze(ctx context.Context, rq wire.Freeze) (countersign.Frozen, error) {
	var out countersign.Frozen
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/freeze", body: rq}, &out)
	return out, err
}

// Thaw takes that back.
func (c *Client) Thaw(ctx context.Context, rq wire.Freeze) (countersign.Frozen, error) {
	var out countersign.Frozen
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/thaw", body: rq}, &out)
	return out, err
}

// EnableService takes a service into use again.
func (c *Client) EnableService(ctx context.Context, name, reason string) error {
	return c.do(ctx, call{
		method: http.MethodPost, path: "/v1/services/" + url.PathEscape(name) + "/enable", body: wire.Reason{Reason: reason},
	}, nil)
}
