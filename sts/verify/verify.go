package verify

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// Verifier verifies the tokens of one issuer for one service. It is safe for concurrent use, keeps the issuer's keys and
// revocations, and needs no Close.
type Verifier struct {
	cfg        Config
	keys       *jwt.Remote
	feed       *feed    // nil: external
	external   bool     // the issuer is not a Countersign
	audiences  []string // of an external issuer
	base       *url.URL // Config.URL; nil: not set
	proofs     *proofs  // nil: DPoP is not taken
	challenges challenges
}

// presented is how a token came.
type presented struct {
	peer    *x509.Certificate // whose key the other end of the connection holds; nil: not known
	request *http.Request     // nil: there is none, or its proof does not matter
	dpop    bool              // by the scheme DPoP
}

// Verify returns what the token says if it is one that this service must take. Errors are of type [*Error].
//
// It sees the token and not who sent it: a token that is bound to a key is refused ([ReasonBinding]). Where there is a request
// use [Verifier.VerifyRequest], where there is another kind of connection [Verifier.VerifyPeer].
//
// ctx bounds the wait for the issuer's keys and revocations, which is rare: both are kept.
func (v *Verifier) Verify(ctx context.Context, token string) (*Claims, error) {
	return v.verify(ctx, token, presented{})
}

// VerifyPeer is Verify for a token that came over a connection whose other end has proved to hold the key of peer: by
// mutual TLS, whose verified certificate [Peer] finds. It is on the caller to have verified the certificate's chain. A nil
// peer proves nothing; tokens that are not bound need none.
func (v *Verifier) VerifyPeer(ctx context.Context, token string, peer *x509.Certificate) (*Claims, error) {
	return v.verify(ctx, token, presented{peer: peer})
}

func (v *Verifier) verify(ctx context.Context, token string, how presented) (*Claims, error) {
	now := v.cfg.Now()
	t, err := v.judge(ctx, token)
	if err != nil {
		return nil, err
	}
	if err := t.Claims.CheckTimes(now, v.cfg.Leeway); err != nil {
		return nil, asError(err)
	}
	var claims *Claims
	if v.external {
		claims, err = v.readExternal(t)
	} else {
		claims, err = readClaims(t.Claims)
	}
	if err != nil {
		return nil, asError(err)
	}
	if v.feed != nil {
		if err := v.feed.check(ctx, claims); err != nil {
			return nil, err
		}
	}
	// Last, because a proof that was good is used up.
	if err := v.checkBinding(claims, token, how, now); err != nil {
		return nil, err
	}
	return claims, nil
}

// judge finds out whether the token is the issuer's and for us.
func (v *Verifier) judge(ctx context.Context, token string) (*jwt.Token, error) {
	t, err := jwt.Parse(token)
	if err != nil {
		return nil, asError(err)
	}
	// What is cheap and needs no key comes first, so that strangers' tokens make no request to the issuer.
	if !v.takesType(t) {
		return nil, refuse(ReasonType, "the token's typ %q is not one that is accepted", t.Typ)
	}
	if iss, _, err := t.Claims.String("iss"); err != nil || iss != v.cfg.Issuer {
		return nil, refuse(ReasonIssuer, "the token is not of the issuer %s", v.cfg.Issuer)
	}
	if !slices.Contains(v.cfg.Algorithms, t.Alg) {
		return nil, refuse(Reason(jwt.ReasonAlg), "the algorithm %q is not accepted", t.Alg)
	}
	keys, err := v.keys.Set(ctx, t.KID)
	if err != nil {
		return nil, &Error{Reason: ReasonKeys, Msg: "the issuer's keys can't be had at the moment", Err: err}
	}
	if err := t.Verify(keys, v.cfg.Algorithms); err != nil {
		return nil, asError(err)
	}
	if !v.external {
		if aud, _, err := t.Claims.String("aud"); err != nil || aud != v.cfg.Audience {
			return nil, refuse(ReasonAudience, "the token is not for the audience %q alone", v.cfg.Audience)
		}
	}
	return t, nil
}

// takesType judges the header's typ. Many an identity provider sends none; their tokens are told apart by their claims.
func (v *Verifier) takesType(t *jwt.Token) bool {
	if t.Typ == "" {
		return v.external && slices.Contains(v.cfg.Types, "JWT")
	}
	for _, typ := range v.cfg.Types {
		if t.HasType(typ) {
			return true
		}
	}
	return false
}

// Fetched tells when the issuer's keys and its revocations were last asked for with success: for readiness and alarms. The
// zero time: never, or, of revocations, that the issuer has no list.
func (v *Verifier) Fetched() (keys, revocations time.Time) {
	keys, _ = v.keys.Fetched()
	if v.feed != nil {
		revocations = v.feed.fetchedAt()
	}
	return keys, revocations
}
