package verify

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

const (
	defaultLeeway   = 30 * time.Second
	defaultPoll     = 5 * time.Second
	defaultMaxStale = 5 * time.Minute // as long as relay tokens live unless the policy says otherwise
	minPoll         = time.Second
	maxPoll         = time.Minute
	maxMaxStale     = 24 * time.Hour
	maxKeysAge      = 5 * time.Minute // of our issuer's keys, whatever it says: how long a key that leaked goes on being good here
)

// Config says which tokens are taken. Issuer and Audience are required.
type Config struct {
	Issuer   string // compared exactly with `iss`: https, or http on loopback
	Audience string // New: the name of this service, which `aud` must be exactly. NewExternal: what must be in `aud`
	JWKSURI  string // where the issuer's keys are; "": by discovery (RFC 8414) from Issuer

	Roots  *x509.CertPool // that the issuer's server certificate must chain to; nil: the system's
	Client *http.Client   // instead of Roots: one of your own, whose redirects are not followed

	Algorithms []string         // nil: ES256 and RS256; NewExternal: PS256 and EdDSA too
	Types      []string         // accepted `typ`, with or without "application/", in any case; nil: at+jwt and JWT
	Leeway     time.Duration    // how far clocks may differ, up to 60 s; 0: 30 s
	Now        func() time.Time // nil: time.Now
	Logger     *slog.Logger     // nil: nothing is logged

	// URL is where clients reach what the handlers here see as "/": https://orders.shop.example, or with the path that a
	// proxy takes away. It is the resource identifier of RFC 9728 (no query, no fragment), by which clients find the
	// metadata that [Verifier.Metadata] serves, and what the `htu` of a DPoP proof is compared with: the Host header is
	// never asked. "": challenges name no metadata, and tokens that are bound by DPoP are refused.
	URL    string
	Scopes []string // `scopes_supported` of the metadata; says nothing about which are needed

	// MaxStale is the longest that tokens are taken by an old list of revocations when the issuer can't be asked, counted
	// from when the last good answer was asked for: how long a revoked token can go on being taken, and how long the
	// issuer may be down before this service refuses all tokens ([ReasonRevocations]). With the issuer up a revocation
	// reaches this verifier within Poll, or twice that after a pause without requests. MaxStale is Poll to 24 h; 0: 5 min,
	// which is how long a token lives by default. An issuer whose metadata names no list has none, and its tokens are taken; for
	// that it is asked again every minute, until it has one.
	MaxStale       time.Duration
	Poll           time.Duration // how old the list gets before it is asked for again: 1 s to 1 min; 0: 5 s
	RevocationsURI string        // where the list is; "": by discovery (`revocations_uri`) from Issuer, also when JWKSURI is set

	// For NewExternal only.
	Audiences  []string // more that may be in `aud`, beside Audience
	ScopeClaim string   // "scope", a string (RFC 9068), or "scp"; each may be an array too. "": scope
	Nonces     bool     // demand a nonce of ours in DPoP proofs (RFC 9449 9). They are good at the verifier that gave them only
}

// New makes a verifier of relay tokens. It fetches nothing: the first Verify does.
func New(cfg Config) (*Verifier, error) {
	if len(cfg.Audiences) > 0 || cfg.ScopeClaim != "" || cfg.Nonces {
		return nil, errors.New("verify: Audiences, ScopeClaim and Nonces are for NewExternal")
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{"ES256", "RS256"}
	}
	v, err := newVerifier(cfg, maxKeysAge)
	if err != nil {
		return nil, err
	}
	if v.feed, err = newFeed(v.cfg, v.keys); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return v, nil
}

// NewExternal makes a verifier of the access tokens of another issuer, for the services at which users' requests enter. It
// tells access tokens from ID tokens, logout tokens and refresh tokens (RFC 8725 3.11), takes `aud` as an array too, and takes
// tokens that are bound by DPoP where Config.URL is set. Such an issuer has no list of revocations.
func NewExternal(cfg Config) (*Verifier, error) {
	if cfg.MaxStale != 0 || cfg.Poll != 0 || cfg.RevocationsURI != "" {
		return nil, errors.New("verify: MaxStale, Poll and RevocationsURI are for New")
	}
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	}
	if cfg.ScopeClaim == "" {
		cfg.ScopeClaim = "scope"
	}
	if cfg.ScopeClaim != "scope" && cfg.ScopeClaim != "scp" {
		return nil, errors.New("verify: ScopeClaim is scope or scp")
	}
	if slices.Contains(cfg.Audiences, "") {
		return nil, errors.New("verify: an audience can't be empty")
	}
	if cfg.Nonces && cfg.URL == "" {
		return nil, errors.New("verify: Nonces needs URL, without which no proof is taken")
	}
	v, err := newVerifier(cfg, 0)
	if err != nil {
		return nil, err
	}
	v.external = true
	v.audiences = slices.Concat([]string{cfg.Audience}, cfg.Audiences)
	if v.base != nil {
		v.proofs = newProofs(v.cfg)
	}
	return v, nil
}

func newVerifier(cfg Config, keysAge time.Duration) (*Verifier, error) {
	if cfg.Issuer == "" || cfg.Audience == "" {
		return nil, errors.New("verify: Issuer and Audience are required")
	}
	if cfg.Roots != nil && cfg.Client != nil {
		return nil, errors.New("verify: set Roots or Client, not both")
	}
	if err := cfg.settle(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	v := &Verifier{cfg: cfg}
	if cfg.URL != "" {
		var err error
		if v.base, err = readBase(cfg.URL); err != nil {
			return nil, fmt.Errorf("verify: the URL %w", err)
		}
	}
	v.challenges = newChallenges(v)
	var err error
	v.keys, err = jwt.NewRemote(jwt.RemoteConfig{
		Issuer: cfg.Issuer, JWKSURI: cfg.JWKSURI, Client: cfg.Client, Now: cfg.Now, Logger: cfg.Logger,
		MaxAge: keysAge,
	})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return v, nil
}

// settle judges what can be judged alone, fills the defaults in and copies what is the caller's.
func (cfg *Config) settle() error {
	if cfg.Leeway < 0 || cfg.Leeway > jwt.MaxSkew {
		return fmt.Errorf("the Leeway must be 0 to %s", jwt.MaxSkew)
	}
	cfg.Leeway = orDefault(cfg.Leeway, defaultLeeway)
	if cfg.Poll != 0 && (cfg.Poll < minPoll || cfg.Poll > maxPoll) {
		return fmt.Errorf("the Poll must be %s to %s", minPoll, maxPoll)
	}
	cfg.Poll = orDefault(cfg.Poll, defaultPoll)
	if cfg.MaxStale != 0 && (cfg.MaxStale < cfg.Poll || cfg.MaxStale > maxMaxStale) {
		return fmt.Errorf("the MaxStale must be Poll to %s", maxMaxStale)
	}
	cfg.MaxStale = orDefault(cfg.MaxStale, defaultMaxStale)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Algorithms = slices.Clone(cfg.Algorithms)
	for _, alg := range cfg.Algorithms {
		if !slices.Contains(jwt.Algorithms(), alg) {
			return fmt.Errorf("the algorithm %q can't be accepted; %q can", alg, jwt.Algorithms())
		}
	}
	cfg.Types = slices.Clone(cfg.Types)
	if len(cfg.Types) == 0 {
		cfg.Types = []string{"at+jwt", "JWT"}
	}
	if slices.Contains(cfg.Types, "") {
		return errors.New("an accepted type can't be empty")
	}
	cfg.Scopes = slices.Clone(cfg.Scopes)
	if !allScopes(cfg.Scopes) {
		return errors.New("the Scopes hold something that is no scope (RFC 6749 3.3)")
	}
	if cfg.Client == nil {
		cfg.Client = clientFor(cfg.Roots)
	}
	return nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// clientFor keeps one connection while the list of revocations is polled. Without requests it closes by itself, so that a
// verifier that nobody uses any more leaves nothing behind.
func clientFor(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		MaxConnsPerHost:        2,
		IdleConnTimeout:        15 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}}
}

// readBase reads Config.URL. The slash at its end, if there is one, belongs to the paths that come after it.
func readBase(raw string) (*url.URL, error) {
	if err := jwt.CheckURL(raw); err != nil {
		return nil, err
	}
	u, err := url.Parse(strings.TrimSuffix(raw, "/"))
	if err != nil || u.RawQuery != "" || u.ForceQuery {
		return nil, fmt.Errorf("%.100q has a query", raw)
	}
	return u, nil
}
