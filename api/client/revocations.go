package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/countersign/countersign/api/wire"
)

// RevokeTokens revokes what an operator names.
func (c *Client) RevokeTokens(ctx context.Context, rq wire.TokenRevocationRequest) (wire.TokenRevocation, error) {
	var out wire.TokenRevocation
	err := c.do(ctx, call{method: http.MethodPost, path: "/v1/tokens/revocations", body: rq}, &out)
	return out, err
}

// TokenRevocations gives a page of what is revoked, the newest first. after is the Next of the page before, "" for the
// first; limit is 1 to 1000, 0 for the daemon's default.
func (c *Client) TokenRevocations(ctx context.Context, after string, limit int) (wire.TokenRevocations, error) {
	var out wire.TokenRevocations
	err := c.do(ctx, call{
		method: http.MethodGet, path: "/v1/tokens/revocations", query: values("after", after, "limit", number(limit)),
	}, &out)
	return out, err
}

// RevokeToken revokes a token that was issued to the service of the identity (RFC 7009 2.1). Errors are *OAuthError.
func (c *Client) RevokeToken(ctx context.Context, token string) error {
	return c.do(ctx, tokenCall("/oauth2/revoke", token), nil)
}

// Introspect asks whether a token is active (RFC 7662 2.1), and gives the answer as it was sent. Errors are *OAuthError.
func (c *Client) Introspect(ctx context.Context, token string) ([]byte, error) {
	return c.bytes(ctx, tokenCall("/oauth2/introspect", token))
}

func tokenCall(path, token string) call {
	return call{
		method: http.MethodPost, path: path, body: []byte(url.Values{"token": {token}}.Encode()), mediaType: wire.Form, accept: wire.JSON,
	}
}
