package verify

import (
	"errors"
	"net/http"
	"strings"
)

// Middleware lets requests with a good token through, and answers all others as [Verifier.Refuse] does. The handler finds
// the claims by [FromContext].
func (v *Verifier) Middleware(next http.Handler) http.Handler { return v.RequireScope()(next) }

// RequireScope is Middleware that also demands all of these scopes. It may stand within Middleware or by itself.
func (v *Verifier) RequireScope(scopes ...string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, err := v.VerifyRequest(r)
			if err == nil {
				err = claims.RequireScope(scopes...)
			}
			if err != nil {
				v.Refuse(w, err)
				return
			}
			next.ServeHTTP(w, r.WithContext(v.NewContext(r, claims)))
		})
	}
}

// Nonce is what a proof that was refused with [ReasonNonce] has to be made with (RFC 9449 9), for adapters that answer by
// something else than [Verifier.Refuse]; "": Config.Nonces is not set.
func (v *Verifier) Nonce() string {
	if v.proofs == nil || v.proofs.nonces == nil {
		return ""
	}
	return v.proofs.nonces.issue(v.cfg.Now())
}

// challenges are the values of WWW-Authenticate, made once.
type challenges struct {
	metadata string // the parameter resource_metadata (RFC 9728 5.1); "": none
	algs     string // the parameter algs (RFC 9449 7.1)
}

func newChallenges(v *Verifier) challenges {
	c := challenges{algs: `algs="` + strings.Join(proofAlgorithms(), " ") + `"`}
	if v.base != nil {
		c.metadata = `resource_metadata="` + v.metadataURL() + `"`
	}
	return c
}

func challenge(scheme string, params ...string) string {
	var set []string
	for _, p := range params {
		if p != "" {
			set = append(set, p)
		}
	}
	if len(set) == 0 {
		return scheme
	}
	return scheme + " " + strings.Join(set, ", ")
}

// Refuse answers a request whose token was refused with err: 401 and 403 with the challenges of RFC 6750 3, RFC 9449 7.1 and
// RFC 9728 5.1, 400 for two tokens or none that can be read, 503 when nothing could be found out. The client learns the standard
// error and nothing else; the reason goes to Config.Logger.
func (v *Verifier) Refuse(w http.ResponseWriter, err error) {
	status := v.Challenge(w.Header(), err)
	http.Error(w, http.StatusText(status), status)
}

// Challenge is Refuse for who writes a body of his own: it sets the headers of the answer in h, logs the reason, and gives the
// status that the answer has to have.
func (v *Verifier) Challenge(h http.Header, err error) (status int) {
	var e *Error
	if !errors.As(err, &e) {
		e = asError(err)
	}
	v.cfg.Logger.Info("a request was refused", "reason", string(e.Reason), "error", e)
	h.Set("Cache-Control", "no-store")
	return v.answer(h, e)
}

func (v *Verifier) answer(h http.Header, e *Error) int {
	bearer := func(params ...string) {
		h.Add("WWW-Authenticate", challenge("Bearer", append(params, v.challenges.metadata)...))
	}
	proof := func(params ...string) {
		if v.proofs != nil {
			h.Add("WWW-Authenticate", challenge("DPoP", append(params, v.challenges.algs, v.challenges.metadata)...))
		}
	}
	switch e.Reason {
	case ReasonKeys, ReasonRevocations, ReasonReplays:
		h.Set("Retry-After", "5")
		return http.StatusServiceUnavailable
	case ReasonRequest:
		bearer(`error="invalid_request"`)
		return http.StatusBadRequest
	case ReasonScope:
		scope := ""
		if allScopes(e.Scopes) && len(e.Scopes) > 0 {
			scope = `scope="` + strings.Join(e.Scopes, " ") + `"`
		}
		bearer(`error="insufficient_scope"`, scope)
		return http.StatusForbidden
	case ReasonCredential: // RFC 6750 3.1: no error where there was no token
		bearer()
		proof()
	case ReasonProof:
		proof(`error="invalid_dpop_proof"`)
	case ReasonNonce:
		if nonce := v.Nonce(); nonce != "" {
			h.Set("DPoP-Nonce", nonce)
		}
		proof(`error="use_dpop_nonce"`)
	default:
		bearer(`error="invalid_token"`)
		proof(`error="invalid_token"`)
	}
	return http.StatusUnauthorized
}
