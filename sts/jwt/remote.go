package jwt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// The limits and defaults of a [Remote].
const (
	defaultRefresh  = 5 * time.Minute
	defaultCooldown = 30 * time.Second
	defaultStale    = 24 * time.Hour
	minMaxAge       = time.Minute // bounds of what an issuer may ask for by Cache-Control
	maxMaxAge       = time.Hour
	firstRetry      = time.Second // after a failure; doubled up to the cooldown
	fetchTimeout    = 3 * time.Second
)

// RemoteConfig says whose keys are kept, and how.
type RemoteConfig struct {
	Issuer   string           // the issuer identifier: https, or http on a loopback address; no query, no fragment
	JWKSURI  string           // where its keys are, https or http on loopback; "": by discovery, RFC 8414, then OpenID
	Client   *http.Client     // nil: one with the system's roots. Its redirect policy and cookies are not used
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: nothing is logged
	MaxAge   time.Duration    // the longest that an issuer may ask for by max-age: 1 min to 1 h; 0: 1 h
	Refresh  time.Duration    // how old keys get before they are fetched again, if the issuer does not say; default 5 min
	Cooldown time.Duration    // the least time between fetches for a kid that is not known; default 30 s
	Stale    time.Duration    // how long keys are used when the issuer is down; default 24 h
}

// Remote keeps the keys of one issuer. It is safe for concurrent use and needs no Close: a fetch begins only on a
// call of Set and ends by itself.
//
// A successful fetch replaces the set, so that a key that the issuer took back is gone. Any other answer, also one
// without a usable key, changes nothing. Fetches are of two kinds, and at most one runs at a time. Planned ones
// follow the schedule: every Refresh (or the issuer's max-age, within 1 min and MaxAge), after failures sooner, at
// growing distance up to Cooldown. Unplanned ones are for a kid that is not in the set, at most one per Cooldown
// whatever callers ask for, so that nobody can drive requests to the issuer by inventing kids.
type Remote struct {
	cfg     RemoteConfig
	client  *http.Client
	timeout time.Duration // of one HTTP request

	mu        sync.Mutex
	set       *Set          // the last good one; nil: none yet
	fetched   time.Time     // when set came
	lifetime  time.Duration // of set, before it is fetched again
	tried     time.Time     // when the last fetch ended
	failures  int           // since the last good one
	lastErr   error
	stopped   bool // the set got too old, and that was logged
	good, bad uint64
	next      time.Time // the next planned fetch
	unplanned time.Time // the last unplanned fetch
	flight    *flight   // the fetch that runs; nil: none

	source source // of the goroutine that fetches
}

// flight is a fetch that several callers wait for.
type flight struct{ done chan struct{} }

// NewRemote checks the URLs and fetches nothing yet.
func NewRemote(cfg RemoteConfig) (*Remote, error) {
	if err := checkIssuer(cfg.Issuer); err != nil {
		return nil, err
	}
	if cfg.JWKSURI != "" {
		if _, err := checkURL(cfg.JWKSURI); err != nil {
			return nil, fmt.Errorf("the jwks_uri %w", err)
		}
	}
	if cfg.Refresh < 0 || cfg.Cooldown < 0 || cfg.Stale < 0 {
		return nil, errors.New("the durations of an issuer's key cache can't be negative")
	}
	if cfg.MaxAge != 0 && (cfg.MaxAge < minMaxAge || cfg.MaxAge > maxMaxAge) {
		return nil, fmt.Errorf("the MaxAge of an issuer's keys must be %s to %s", minMaxAge, maxMaxAge)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.MaxAge = orDefault(cfg.MaxAge, maxMaxAge)
	cfg.Refresh = orDefault(cfg.Refresh, defaultRefresh)
	cfg.Cooldown = orDefault(cfg.Cooldown, defaultCooldown)
	cfg.Stale = orDefault(cfg.Stale, defaultStale)
	return &Remote{cfg: cfg, client: newClient(cfg.Client), timeout: fetchTimeout}, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Set returns the issuer's keys: with kid, if the issuer publishes it and it may be fetched now; kid may be "". It
// waits for a fetch only if there are no keys, if nobody has asked for them for so long that they may be outdated, or
// if kid is not among them. The error says that there are no keys to be had, or is ctx's where kid is not among those
// that may be used: one caller who gives up does not end the fetch for the others. A set without kid is no error; [Token.Verify] refuses then with [ReasonKID].
func (r *Remote) Set(ctx context.Context, kid string) (*Set, error) {
	r.mu.Lock()
	now := r.cfg.Now()
	wait := r.plan(now, kid)
	set, err := r.usable(now)
	r.mu.Unlock()
	if wait == nil {
		return set, err
	}
	select {
	case <-wait.done:
	case <-ctx.Done():
		if set == nil || kid != "" && !set.Has(kid) { // what signed is not known, which says nothing about the token
			return nil, fmt.Errorf("wait for the keys of %s: %w", r.cfg.Issuer, context.Cause(ctx))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.usable(r.cfg.Now())
}

// Ready is [Remote.Set] for who does not want to wait: false where Set would, or has an error.
func (r *Remote) Ready(kid string) (*Set, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	wait := r.plan(now, kid)
	set, err := r.usable(now)
	return set, wait == nil && err == nil
}

// Fetched tells when the last good answer came and what the last fetch failed with; nil if it did not.
func (r *Remote) Fetched() (at time.Time, lastErr error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fetched, r.lastErr
}

// Fetches tells how many fetches there were since the start, good and failed ones.
func (r *Remote) Fetches() (good, failed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.good, r.bad
}

// usable is the set as long as it may be used.
func (r *Remote) usable(now time.Time) (*Set, error) {
	if r.set != nil && now.Sub(r.fetched) <= r.cfg.Stale {
		return r.set, nil
	}
	if r.lastErr != nil {
		return nil, fmt.Errorf("there are no keys of %s: %w", r.cfg.Issuer, r.lastErr)
	}
	return nil, fmt.Errorf("there are no keys of %s yet", r.cfg.Issuer)
}

// plan starts a fetch if one is due, and returns the one that this caller has to wait for; nil: none. r.mu is held.
func (r *Remote) plan(now time.Time, kid string) *flight {
	set, _ := r.usable(now)
	if r.flight == nil && !now.Before(r.next) {
		r.start()
	}
	if set == nil {
		return r.flight
	}
	if kid != "" && !set.Has(kid) {
		if r.flight == nil && now.Sub(r.unplanned) >= r.cfg.Cooldown {
			r.unplanned = now
			r.start()
		}
		return r.flight
	}
	// While tokens come, a refresh is never waited for. After a long silence it is: the set may hold a key that the
	// issuer took back in the meantime, and it is not known that the issuer is down.
	if now.Sub(r.tried) >= 2*r.lifetime && r.failures == 0 {
		return r.flight
	}
	return nil
}

// start begins a fetch. Its goroutine belongs to no caller, so that none can cancel it for others; it ends with the
// timeout of its requests at the latest. r.mu is held.
func (r *Remote) start() {
	f := &flight{done: make(chan struct{})}
	r.flight = f
	go func() {
		set, maxAge, err := r.fetch()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.flight = nil
		r.tried = r.cfg.Now()
		if err != nil {
			r.failed(err)
		} else {
			r.succeeded(set, maxAge)
		}
		close(f.done)
	}()
}

func (r *Remote) failed(err error) {
	r.failures++
	r.bad++
	r.lastErr = err
	r.next = r.tried.Add(min(firstRetry<<min(r.failures-1, 20), r.cfg.Cooldown))
	switch { // one line for a row of failures, and one when it has lasted too long
	case r.failures == 1 && r.set == nil:
		r.cfg.Logger.Warn("the keys of an issuer can't be fetched, and there are none yet", "issuer", r.cfg.Issuer, "error", err)
	case r.failures == 1:
		r.cfg.Logger.Warn("the keys of an issuer can't be fetched; the last ones stay in use",
			"issuer", r.cfg.Issuer, "error", err, "last_good", r.fetched, "until", r.fetched.Add(r.cfg.Stale))
	}
	if r.set != nil && !r.stopped && r.tried.Sub(r.fetched) > r.cfg.Stale {
		r.stopped = true
		r.cfg.Logger.Error("the keys of an issuer are too old to be used any longer",
			"issuer", r.cfg.Issuer, "error", err, "last_good", r.fetched)
	}
}

func (r *Remote) succeeded(set *Set, maxAge time.Duration) {
	if r.failures > 0 {
		r.cfg.Logger.Info("the keys of an issuer are fetched again", "issuer", r.cfg.Issuer, "failures", r.failures)
	}
	r.good++
	r.set, r.fetched, r.failures, r.lastErr, r.stopped = set, r.tried, 0, nil, false
	r.lifetime = orDefault(min(maxAge, r.cfg.MaxAge), r.cfg.Refresh)
	r.next = r.fetched.Add(r.lifetime)
}
