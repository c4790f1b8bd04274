package verify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	feedMember  = "revocations_uri" // of the issuer's metadata
	feedTimeout = 5 * time.Second   // of one request
	noFeedTime  = time.Minute       // how long it is believed that an issuer has no list
	maxPages    = 256               // of one fetch
	maxRevoked  = 1 << 20           // that are kept
)

// feed keeps what the issuer revoked. Like [jwt.Remote] it needs no Close: a fetch begins only on a call, at most one at a
// time, in a goroutine that belongs to no caller and ends by itself.
//
// Nothing that was once read is forgotten before no token that it reaches can be alive: answers are merged, one that is older
// than what was read is refused, and the cursor never goes back.
type feed struct {
	cfg Config

	mu      sync.Mutex
	set     *countersign.Revocations // nil: none yet
	none    bool                     // the issuer has no list
	fetched time.Time                // when the last good fetch began
	tried   time.Time                // when the last fetch ended
	next    time.Time                // when to fetch again
	failed  error                    // of the last fetch
	flight  chan struct{}            // closed when the fetch that runs ends; nil: none

	source feedSource // of the goroutine that fetches
}

// feedSource is where the list is and what is known of it.
type feedSource struct {
	keys   *jwt.Remote
	client *http.Client
	uri    string // "": not discovered yet
	since  int64  // the cursor to ask with
	etag   string // of the last answer to since
	issued time.Time
	until  time.Time // when the last signed answer ends: a 304 does not carry it further
	known  map[revoked]countersign.Revocation
}

type revoked struct {
	kind  countersign.RevocationKind
	value string
}

func newFeed(cfg Config, keys *jwt.Remote) (*feed, error) {
	if cfg.RevocationsURI != "" {
		if err := jwt.CheckURL(cfg.RevocationsURI); err != nil {
			return nil, fmt.Errorf("RevocationsURI: %w", err)
		}
	}
	client := *cfg.Client
	client.Jar = nil
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &feed{cfg: cfg, source: feedSource{keys: keys, client: &client, uri: cfg.RevocationsURI, known: map[revoked]countersign.Revocation{}}}, nil
}

// check refuses a token that is revoked, and every token when what is revoked is not known.
func (f *feed) check(ctx context.Context, c *Claims) error {
	set, err := f.current(ctx)
	if err != nil {
		return &Error{Reason: ReasonRevocations, Msg: "what the issuer has revoked can't be had at the moment", Err: err}
	}
	if set == nil || set.Len() == 0 {
		return nil
	}
	if r, ok := set.Find(c.facts()); ok {
		return refuse(ReasonRevoked, "the token is revoked by its %s", r.Kind)
	}
	return nil
}

// facts is what revocations know the token by.
func (c *Claims) facts() countersign.TokenFacts {
	services := append([]string{c.ClientID}, c.Chain()...)
	if id, err := countersign.ParseID(c.ClientID); err == nil {
		if own, err := countersign.NewServiceID(id.TrustDomain(), c.Audience); err == nil {
			services = append(services, own.String())
		}
	}
	return countersign.TokenFacts{
		ID: c.ID, Transaction: c.Transaction, Subject: c.Subject, SessionIssuer: c.SubjectIssuer, SessionID: c.SessionID,
		Services: services, IssuedAt: c.IssuedAt,
	}
}

// current is what is revoked, as far as it may be used. It waits for a fetch only if there has been none with success, or if
// nobody has asked for so long that the list may be outdated and the issuer is not known to be down. Who gives up waiting gets the
// list at hand if it may still be used.
func (f *feed) current(ctx context.Context) (*countersign.Revocations, error) {
	f.mu.Lock()
	now := f.cfg.Now()
	wait := f.plan(now)
	set, err := f.usable(now)
	f.mu.Unlock()
	if wait == nil {
		return set, err
	}
	select {
	case <-wait:
	case <-ctx.Done():
		if err != nil {
			return nil, context.Cause(ctx)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.usable(f.cfg.Now())
}

// plan starts a fetch if one is due, and returns what this caller has to wait for; nil: nothing. f.mu is held.
func (f *feed) plan(now time.Time) chan struct{} {
	if f.flight == nil && !now.Before(f.next) {
		f.start(now)
	}
	if _, err := f.usable(now); err != nil || now.Sub(f.tried) >= 2*f.cfg.Poll && !f.none && f.failed == nil {
		return f.flight
	}
	return nil
}

func (f *feed) usable(now time.Time) (*countersign.Revocations, error) {
	if f.none || !f.fetched.IsZero() && now.Sub(f.fetched) <= f.cfg.MaxStale {
		return f.set, nil
	}
	switch {
	case f.failed != nil && f.fetched.IsZero():
		return nil, f.failed
	case f.failed != nil:
		return nil, fmt.Errorf("the last list is of %s: %w", f.fetched.Format(time.RFC3339), f.failed)
	}
	return nil, errors.New("they were not asked for yet")
}

// start begins a fetch. f.mu is held.
func (f *feed) start(now time.Time) {
	done := make(chan struct{})
	f.flight = done
	go func() {
		set, err := f.source.fetch(f.cfg, now)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.flight = nil
		f.tried = f.cfg.Now()
		f.next = f.tried.Add(f.cfg.Poll)
		f.note(set, err, now)
		close(done)
	}()
}

var errNoFeed = errors.New("the issuer has no list of revocations")

// note takes what a fetch that began at began has found out. f.mu is held.
func (f *feed) note(set *countersign.Revocations, err error, began time.Time) {
	log := f.cfg.Logger.With(slog.String("issuer", f.cfg.Issuer))
	if set != nil {
		f.set = set // also of a fetch that came half way: what it found is revoked
	}
	switch {
	case errors.Is(err, errNoFeed) && f.fetched.IsZero():
		f.none, f.failed, f.next = true, nil, f.tried.Add(noFeedTime)
	case err != nil:
		if f.failed == nil {
			log.Warn("the revocations of an issuer can't be fetched; tokens are taken by the last list for a while",
				"error", err, "last_good", f.fetched, "max_stale", f.cfg.MaxStale)
		}
		f.failed = err
	default:
		if f.failed != nil {
			log.Info("the revocations of an issuer are fetched again")
		}
		f.none, f.failed, f.fetched = false, nil, began
	}
}

func (f *feed) fetchedAt() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetched
}

// fetch asks for what is new, page by page. The set is nil if nothing changed; it may come with an error.
func (s *feedSource) fetch(cfg Config, now time.Time) (*countersign.Revocations, error) {
	if s.uri == "" {
		uri, err := jwt.DiscoverURI(s.client, cfg.Issuer, feedMember)
		if err != nil {
			return nil, fmt.Errorf("discover where the revocations are: %w", err)
		}
		if uri == "" {
			return nil, errNoFeed
		}
		s.uri = uri
	}
	changed, err := s.pages(cfg, now)
	if err != nil {
		s.etag = ""
		if cfg.RevocationsURI == "" {
			s.uri = "" // it may have moved
		}
	}
	maps.DeleteFunc(s.known, func(_ revoked, r countersign.Revocation) bool {
		over := now.After(r.Until.Add(jwt.MaxSkew)) // tokens are taken that much longer
		changed = changed || over
		return over
	})
	if !changed {
		return nil, err
	}
	return countersign.NewRevocations(slices.Collect(maps.Values(s.known))), err
}

func (s *feedSource) pages(cfg Config, now time.Time) (changed bool, err error) {
	for range maxPages {
		p, err := s.page(cfg, now)
		if err != nil {
			return changed, err
		}
		if p == nil { // not modified
			return changed, nil
		}
		for _, r := range p.list {
			key := revoked{r.Kind, r.Value}
			if old, ok := s.known[key]; ok {
				if !r.Until.After(old.Until) && !r.Before.After(old.Before) {
					continue
				}
				r.Until, r.Before = latest(old.Until, r.Until), latest(old.Before, r.Before)
			}
			s.known[key] = r
			changed = true
		}
		if len(s.known) > maxRevoked {
			return changed, fmt.Errorf("the issuer has revoked more than %d things", maxRevoked)
		}
		if !p.more {
			return changed, nil
		}
	}
	return changed, fmt.Errorf("the list of revocations has more than %d pages", maxPages)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
