package verify

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strings"
)

// VerifyRequest is Verify for the token of a request, with the proof of a bound token's key where it has to be: the request's
// TLS connection, the header DPoP. The token is in one Authorization header and nowhere else (RFC 6750 2.1). A request that
// this verifier's middleware has passed is not judged twice, as long as its Authorization is the same: another request under its
// context is. [Verifier.Refuse] answers the error.
func (v *Verifier) VerifyRequest(r *http.Request) (*Claims, error) {
	if claims, ok := v.passed(r); ok {
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

// inContext are the claims of a request, who verified them and the hash of the Authorization that they were in: what one
// verifier took says nothing to another, nor about another token under the same context.
type inContext struct {
	by     *Verifier
	claims *Claims
	sum    [sha256.Size]byte
	token  string // the one that was verified; "": not known
}

// NewContext is the context of r with the claims that v returned for r, for [FromContext]. Middleware does this; it is exported
// for adapters. A request under this context is not judged again only if its Authorization is that of r.
func (v *Verifier) NewContext(r *http.Request, claims *Claims) context.Context {
	sum, ok := sumOf(r.Header)
	in := inContext{claims: claims}
	if ok {
		in.by, in.sum = v, sum
		if _, token, err := credential(r.Header); err == nil {
			in.token = token
		}
	}
	return context.WithValue(r.Context(), contextKey{}, in)
}

// sumOf is the hash of the one Authorization header; false: there is none, or more.
func sumOf(h http.Header) (sum [sha256.Size]byte, ok bool) {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return sum, false
	}
	return sha256.Sum256([]byte(values[0])), true
}

// FromContext finds the claims of the request's token; false: no middleware has verified the request.
func FromContext(ctx context.Context) (*Claims, bool) {
	in, ok := ctx.Value(contextKey{}).(inContext)
	return in.claims, ok && in.claims != nil
}

// TokenFromContext finds the token itself, for who exchanges it for one for the next hop. It is secret, and good for nobody
// but its audience: it is never passed on as it is. false: no middleware has verified the request.
func TokenFromContext(ctx context.Context) (string, bool) {
	in, ok := ctx.Value(contextKey{}).(inContext)
	return in.token, ok && in.claims != nil && in.token != ""
}

func (v *Verifier) passed(r *http.Request) (*Claims, bool) {
	in, ok := r.Context().Value(contextKey{}).(inContext)
	if !ok || in.by != v || in.claims == nil {
		return nil, false
	}
	sum, ok := sumOf(r.Header)
	return in.claims, ok && sum == in.sum
}
