package relay

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// again verifies the token once more: its times, its issuer's keys, its transaction's revocation. The proof of its key was seen
// when it came in.
func (a *admitted) again(ctx context.Context) error {
	_, err := a.verifier.VerifyPeer(ctx, a.token, a.peer)
	var e *verify.Error
	// The binding is judged last, so with a token that is bound by DPoP everything else was found right. Its proof was made for
	// the request that came in, and can't be made again.
	if a.proved && errors.As(err, &e) && e.Reason == verify.ReasonBinding {
		return nil
	}
	return err
}

// still is again for a request that is being served. A request that was begun in time may end after its token has; another
// protocol on its connection may not, since it has no end of its own.
func (a *admitted) still(ctx context.Context, upgraded bool) error {
	err := a.again(ctx)
	var e *verify.Error
	if !upgraded && errors.As(err, &e) && e.Reason == verify.Reason(jwt.ReasonExpired) {
		return nil
	}
	return err
}

// refuseToken answers for a token that v refused with err.
func refuseToken(w http.ResponseWriter, r *http.Request, v *verify.Verifier, err error) {
	var e *verify.Error
	if !errors.As(err, &e) {
		e = &verify.Error{Reason: verify.Reason(jwt.ReasonClaim), Msg: "the token can't be read", Err: err}
	}
	v.Challenge(w.Header(), e)
	refuse(w, r, tokenError(e))
}

// tokenError is what the caller is told: RFC 6750's class of error, and for the rest the log is there.
func tokenError(e *verify.Error) *countersign.Error {
	switch {
	case e.Temporary():
		return countersign.Errorf(countersign.CodeRelayUnjudged, "the token can't be judged at the moment").Because(e)
	case e.Reason == verify.ReasonCredential:
		return countersign.Errorf(countersign.CodeRelayNoToken, "the request has no token").Because(e)
	case e.Reason == verify.ReasonRequest:
		return countersign.Errorf(countersign.CodeRelayTwo, "the Authorization header does not hold exactly one token").Because(e)
	case e.Reason == verify.ReasonScope:
		return countersign.Errorf(countersign.CodeRelayScope, "the route needs the scopes %q", strings.Join(e.Scopes, " ")).Because(e)
	}
	return countersign.Errorf(countersign.CodeRelayToken, "the token is not one that is taken here").Because(e)
}

// bearer is the token of the one Authorization header, whatever its scheme: the verifier has judged that.
func bearer(h http.Header) string {
	_, token, _ := strings.Cut(h.Get("Authorization"), " ")
	return strings.TrimLeft(token, " ")
}

// needsAll tells whether the claims have all scopes, as an error that v answers.
func needsAll(c *verify.Claims, scopes []string) error {
	if len(scopes) == 0 {
		return nil
	}
	return c.RequireScope(slices.Clone(scopes)...)
}
