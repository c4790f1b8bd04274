package verify

import (
	"context"
	"net/http"
	"strings"
)

// VerifyRequest is Verify for the token of a request, with the proof of a bound token's key where it has to be: the request's
// TLS connection, the header DPoP. The token is in one Authorization header and nowhere else (RFC 6750 2.1). A request that
// this verifier's middleware has passed is not judged twice. [Verifier.Refuse] answers the error.
func (v *Verifier) VerifyRequest(r *http.Request) (*Claims, error) {
	if claims, ok := v.passed(r.Context()); ok {
		return claims, nil
	}
	scheme, token, err := credential(r.Header)
	if err != nil {
		return nil, err
	}
	how := presented{peer: Peer(r.TLS), request: r}
	switch {
	case strings.EqualFold(scheme, "Bearer"):
	case strings.EqualFold(scheme, "DPoP") && v.proofs != nil:
		how.dpop = true
	default:
		return nil, refuse(ReasonCredential, "the scheme %.20q of the Authorization header is not taken here", scheme)
	}
	if token == "" || strings.ContainsAny(token, " \t,") {
		return nil, refuse(ReasonRequest, "the Authorization header does not hold exactly one token")
	}
	return v.verify(r.Context(), token, how)
}

// credential splits the one Authorization header into its scheme and what comes after it (RFC 9110 11.4).
func credential(h http.Header) (scheme, token string, err error) {
	values := h.Values("Authorization")
	switch {
	case len(values) == 0:
		return "", "", refuse(ReasonCredential, "the request has no token")
	case len(values) > 1:
		return "", "", refuse(ReasonRequest, "the request has more than one Authorization header")
	}
	scheme, token, _ = strings.Cut(values[0], " ")
	return scheme, strings.TrimLeft(token, " "), nil
}

type contextKey struct{}

// inContext are the claims of a request and who verified them: what one verifier took says nothing to another.
type inContext struct {
	by     *Verifier
	claims *Claims
}

// NewContext puts claims that v returned into a context, for [FromContext]. Middleware does this; it is exported for adapters.
func (v *Verifier) NewContext(ctx context.Context, claims *Claims) context.Context {
	return context.WithValue(ctx, contextKey{}, inContext{by: v, claims: claims})
}

// FromContext finds the claims of the request's token; false: no middleware has verified the request.
func FromContext(ctx context.Context) (*Claims, bool) {
	in, ok := ctx.Value(contextKey{}).(inContext)
	return in.claims, ok && in.claims != nil
}

func (v *Verifier) passed(ctx context.Context) (*Claims, bool) {
	in, ok := ctx.Value(contextKey{}).(inContext)
	return in.claims, ok && in.by == v && in.claims != nil
}
