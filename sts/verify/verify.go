// Package verify is the public SDK for services that receive relay tokens: it tells whether a token is one of the
// configured issuer for the configured audience, and what it says.
//
//	v, err := verify.New(verify.Config{Issuer: "https://countersign.shop.internal:8443", Audience: "orders", Roots: roots})
//	...
//	claims, err := v.Verify(r.Context(), token)
//
// It never takes a token of another issuer or for another audience, never a token without a lifetime, never follows
// what a token names, and has no option that leaves a check out. It does not compare `cnf` with the connection: where
// [Claims.Confirmation] is not empty, the token is bound to the certificate with that thumbprint (RFC 8705 3.1) and
// the service has to compare it.
package verify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

const defaultLeeway = 30 * time.Second

// Config says which tokens are taken. Issuer and Audience are required.
type Config struct {
	Issuer   string // compared exactly with `iss`: https, or http on loopback
	Audience string // the name of this service: `aud` must be exactly this one string
	JWKSURI  string // where the issuer's keys are; "": by discovery (RFC 8414) from Issuer

	Roots  *x509.CertPool // that the issuer's server certificate must chain to; nil: the system's
	Client *http.Client   // instead of Roots: one of your own, whose redirects are not followed

	Algorithms []string         // nil: ES256 and RS256
	Types      []string         // accepted `typ`, with or without "application/", in any case; nil: at+jwt and JWT
	Leeway     time.Duration    // how far clocks may differ, up to 60 s; 0: 30 s
	Now        func() time.Time // nil: time.Now
	Logger     *slog.Logger     // nil: nothing is logged
}

// Verifier verifies relay tokens. It is safe for concurrent use, keeps the issuer's keys and needs no Close.
type Verifier struct {
	cfg  Config
	keys *jwt.Remote
}

// New checks the configuration. It fetches nothing: the first Verify does.
func New(cfg Config) (*Verifier, error) {
	if cfg.Issuer == "" || cfg.Audience == "" {
		return nil, errors.New("verify: Issuer and Audience are required")
	}
	if cfg.Roots != nil && cfg.Client != nil {
		return nil, errors.New("verify: set Roots or Client, not both")
	}
	if cfg.Leeway < 0 || cfg.Leeway > jwt.MaxSkew {
		return nil, fmt.Errorf("verify: Leeway must be 0 to %s", jwt.MaxSkew)
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = defaultLeeway
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Algorithms = slices.Clone(cfg.Algorithms)
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{"ES256", "RS256"}
	}
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(jwt.Algorithms(), alg) {
			return nil, fmt.Errorf("verify: the algorithm %q can't be accepted; %q can", alg, jwt.Algorithms())
		}
	}
	cfg.Types = slices.Clone(cfg.Types)
	if len(cfg.Types) == 0 {
		cfg.Types = []string{"at+jwt", "JWT"}
	}
	if slices.Contains(cfg.Types, "") {
		return nil, errors.New("verify: an accepted type can't be empty")
	}
	if cfg.Roots != nil {
		cfg.Client = clientFor(cfg.Roots)
	}
	keys, err := jwt.NewRemote(jwt.RemoteConfig{
		Issuer: cfg.Issuer, JWKSURI: cfg.JWKSURI, Client: cfg.Client, Now: cfg.Now, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return &Verifier{cfg: cfg, keys: keys}, nil
}

func clientFor(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true, // a fetch every few minutes
	}}
}

// Verify returns what the token says if it is one that this service must take. Errors are of type [*Error].
//
// ctx bounds the wait for the issuer's keys, which are fetched at most every few minutes and when a new one signs.
func (v *Verifier) Verify(ctx context.Context, token string) (*Claims, error) {
	t, err := jwt.Parse(token)
	if err != nil {
		return nil, asError(err)
	}
	// What is cheap and needs no key comes first, so that strangers' tokens make no request to the issuer.
	if !slices.ContainsFunc(v.cfg.Types, t.HasType) {
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
	if aud, _, err := t.Claims.String("aud"); err != nil || aud != v.cfg.Audience {
		return nil, refuse(ReasonAudience, "the token is not for the audience %q alone", v.cfg.Audience)
	}
	if err := t.Claims.CheckTimes(v.cfg.Now(), v.cfg.Leeway); err != nil {
		return nil, asError(err)
	}
	claims, err := readClaims(t.Claims)
	if err != nil {
		return nil, asError(err)
	}
	return claims, nil
}
