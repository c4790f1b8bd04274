package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/countersign/countersign/api/wire"
)

// Join gets the first certificate with a join token. The token is sent only over a connection that was verified.
func (c *Client) Join(ctx context.Context, token string, rq wire.CertificateRequest) (wire.Certificate, error) {
	var out wire.Certificate
	err := c.do(ctx, call{
		method: http.MethodPost, path: "/v1/certificates", body: rq,
		header: http.Header{"Authorization": {"Bearer " + token}},
	}, &out)
	return out, err
}

// Attest gets a certificate with a token of the workload, which the policy enrols (`enrol`) and which is for the daemon's
// issuer identifier alone. It may be repeated with the same token and key, and with no other key. The token is sent only over
// a connection that was verified.
func (c *Client) Attest(ctx context.Context, jwt string, rq wire.CertificateRequest) (wire.Certificate, error) {
	return c.Join(ctx, jwt, rq)
}

// Renew gets the next certificate for the identity that the connection proves. Where the daemon saw no client certificate, because
// a proxy before it ends the TLS connection, the identity's key signs a [Proof] for it.
func (c *Client) Renew(ctx context.Context, rq wire.CertificateRequest) (wire.Certificate, error) {
	var out wire.Certificate
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/certificates", body: rq}, &out)
	if c.identity == nil || !sawNoCertificate(err) {
		return out, err
	}
	metadata, err := c.Metadata(ctx)
	if err != nil {
		return out, err
	}
	proof, err := Proof(c.identity, metadata.Issuer, []byte(rq.CSR), c.now())
	if err != nil {
		return out, err
	}
	return c.RenewBy(ctx, proof, rq)
}

// CertificateQuery chooses certificates of the inventory; the zero one is the first page of all.
type CertificateQuery struct {
	Service string // a service's name
	State   string // valid, revoked or expired
	After   string // the Next of the page before
	Limit   int    // 1 to 1000; 0: the daemon's default
}

// Certificates gives one page of the inventory.
func (c *Client) Certificates(ctx context.Context, q CertificateQuery) (wire.Certificates, error) {
	query := values("service", q.Service, "state", q.State, "after", q.After, "limit", number(q.Limit))
	var out wire.Certificates
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/certificates", query: query}, &out)
	return out, err
}

// Certificate gives the record of one certificate.
func (c *Client) Certificate(ctx context.Context, serial string) (wire.CertificateRecord, error) {
	var out wire.CertificateRecord
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/certificates/" + url.PathEscape(serial)}, &out)
	return out, err
}

// Revoke revokes one certificate at once. The reason is an RFC 5280 5.3.1 name.
func (c *Client) Revoke(ctx context.Context, serial, reason string) error {
	return c.do(ctx, call{
		method: http.MethodPost, path: "/v1/certificates/" + url.PathEscape(serial) + "/revoke",
		body: wire.Revocation{Reason: reason},
	}, nil)
}

// RevokeMany revokes a lineage, all live lineages of a service, or a key.
func (c *Client) RevokeMany(ctx context.Context, rq wire.Revocations) (wire.RevokedLineages, error) {
	var out wire.RevokedLineages
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/revocations", body: rq, long: true}, &out)
	return out, err
}

// CreateJoinToken makes a join token. The answer holds its secret.
func (c *Client) CreateJoinToken(ctx context.Context, rq wire.JoinTokenRequest) (wire.JoinToken, error) {
	var out wire.JoinToken
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/join-tokens", body: rq}, &out)
	return out, err
}

// AddOperator certifies an operator's key.
func (c *Client) AddOperator(ctx context.Context, rq wire.OperatorRequest) (wire.Certificate, error) {
	var out wire.Certificate
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/operators", body: rq}, &out)
	return out, err
}

// Token sends a token request (RFC 6749 3.2) as the service of the identity. Errors of the endpoint are *OAuthError.
func (c *Client) Token(ctx context.Context, form url.Values) (wire.Token, error) {
	var out wire.Token
	err := c.do(ctx, call{
		method: http.MethodPost, path: "/oauth2/token", body: []byte(form.Encode()), mediaType: wire.Form, accept: wire.JSON,
	}, &out)
	return out, err
}

// Metadata gives the authorization server's metadata (RFC 8414 3), where the issuer identifier has no path.
func (c *Client) Metadata(ctx context.Context) (wire.Metadata, error) {
	var out wire.Metadata
	err := c.do(ctx, call{method: http.MethodGet, path: "/.well-known/oauth-authorization-server"}, &out)
	return out, err
}

// JWKS gives the public token keys (RFC 7517) as they were sent.
func (c *Client) JWKS(ctx context.Context) ([]byte, error) {
	return c.bytes(ctx, call{method: http.MethodGet, path: "/.well-known/jwks.json"})
}

// RootsPEM gives the trust anchors.
func (c *Client) RootsPEM(ctx context.Context) ([]byte, error) {
	return c.bytes(ctx, call{method: http.MethodGet, path: "/roots.pem"})
}

// Bundle gives the trust anchors as a SPIFFE bundle.
func (c *Client) Bundle(ctx context.Context) (wire.Bundle, error) {
	var out wire.Bundle
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/bundle"}, &out)
	return out, err
}

// JWTSVID gets a JWT-SVID of the service of the identity, for audiences that it may call, by name or ID.
func (c *Client) JWTSVID(ctx context.Context, audiences []string) (wire.JWTSVID, error) {
	var out wire.JWTSVID
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/jwt-svid", body: wire.JWTSVIDRequest{Audience: audiences}}, &out)
	return out, err
}

// Authority describes the roots and intermediates; with holders also who has live certificates of them, for which the
// daemon reads its whole inventory.
func (c *Client) Authority(ctx context.Context, holders bool) (wire.Authority, error) {
	var out wire.Authority
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/authority", query: values("holders", flag(holders)), long: holders}, &out)
	return out, err
}

// RotateAuthority makes the successor of the signing intermediate, or of its root, or tells what that would do.
func (c *Client) RotateAuthority(ctx context.Context, rq wire.AuthorityRotation) (wire.AuthorityPlan, error) {
	var out wire.AuthorityPlan
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/authority/rotations", body: rq}, &out)
	return out, err
}

// RequestIntermediate gives the open request of an intermediate, for a root elsewhere; one is made if there is none.
func (c *Client) RequestIntermediate(ctx context.Context) (wire.IntermediateRequest, error) {
	var out wire.IntermediateRequest
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/authority/request"}, &out)
	return out, err
}

// ImportIntermediate gives the daemon the certificate for that request, as PEM.
func (c *Client) ImportIntermediate(ctx context.Context, certificate string) (wire.AuthorityCertificate, error) {
	var out wire.AuthorityCertificate
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/authority/intermediates", body: wire.IntermediateImport{Certificate: certificate}}, &out)
	return out, err
}

// RollbackAuthority takes the last rotation back. It gives what was taken back.
func (c *Client) RollbackAuthority(ctx context.Context) (wire.AuthorityCertificate, error) {
	var out wire.AuthorityCertificate
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/authority/rollback"}, &out)
	return out, err
}

// RetireAuthority takes a root or intermediate out of bundle and chains, and destroys its key.
func (c *Client) RetireAuthority(ctx context.Context, serial string) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/authority/" + url.PathEscape(serial) + "/retire", long: true}, nil)
}

// Status gives the daemon's state in short.
func (c *Client) Status(ctx context.Context) (wire.Status, error) {
	var out wire.Status
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/status"}, &out)
	return out, err
}

// Clock tells whether the daemon believes its clock, and what the clocks say.
func (c *Client) Clock(ctx context.Context) (wire.Clock, error) {
	var out wire.Clock
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/clock"}, &out)
	return out, err
}

// ConfirmClock says that the daemon's wall clock is right, having seen what time it is. It gives the state after that.
func (c *Client) ConfirmClock(ctx context.Context, rq wire.ClockConfirmation) (wire.Clock, error) {
	var out wire.Clock
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/clock/confirm", body: rq}, &out)
	return out, err
}

// Keys gives the public halves of all keys.
func (c *Client) Keys(ctx context.Context) (wire.Keys, error) {
	var out wire.Keys
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/keys"}, &out)
	return out, err
}

// Rotate rotates the keys of a purpose, or tells what that would do.
func (c *Client) Rotate(ctx context.Context, purpose string, rq wire.RotateRequest) (wire.KeyPlan, error) {
	var out wire.KeyPlan
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/keys/" + url.PathEscape(purpose) + "/rotate", body: rq}, &out)
	return out, err
}

// RotateKEK puts all keys under a new key-encryption key.
func (c *Client) RotateKEK(ctx context.Context) (wire.KEKRotation, error) {
	var out wire.KEKRotation
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/kek/rotate"}, &out)
	return out, err
}

// Retire takes the key kid out of the published ones, or tells what that would do.
func (c *Client) Retire(ctx context.Context, kid string, rq wire.RetireRequest) (wire.KeyPlan, error) {
	var out wire.KeyPlan
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/keys/" + url.PathEscape(kid) + "/retire", body: rq}, &out)
	return out, err
}

// values makes a query of pairs, without those that have no value.
func values(pairs ...string) url.Values {
	query := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
	return query
}

func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func flag(set bool) string {
	if set {
		return "true"
	}
	return ""
}
