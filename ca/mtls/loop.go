package mtls

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/countersign/countersign/ca/identity"
)

const (
	firstRoots = time.Minute // the roots are asked for at a random point of the first minute, and then as the authority says
	leastRoots = time.Minute
	mostRoots  = time.Hour
)

// run is the life of the source: one goroutine that looks, asks and waits, and never gives up.
func (s *Source) run() {
	defer close(s.done)
	for s.life.Err() == nil {
		s.look()
		s.tellOver()
		waiters := s.takeWaiters()
		now := s.now()
		switch next := s.next(now); {
		case len(waiters) > 0 || !next.IsZero() && !now.Before(next):
			err := s.attempt(s.life)
			for _, w := range waiters {
				w <- err
			}
		case s.rootsDue(now):
			s.refreshRoots(s.life)
		default:
			s.sleep(next.Sub(now), !next.IsZero())
		}
	}
}

func (s *Source) takeWaiters() []chan error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiters
	s.waiters = nil
	return w
}

// next is when the authority is asked for a certificate; zero: never by itself.
func (s *Source) next(now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextAttempt(now)
}

// nextAttempt is next, for who holds the lock.
func (s *Source) nextAttempt(now time.Time) time.Time {
	switch {
	case s.cfg.ReadOnly || s.cur == nil && !s.cfg.enrols() || s.state.held != nil:
		return time.Time{} // what is held has to be written, not asked for again
	case !s.state.retryAt.IsZero():
		// A clock that was set back must not make a wait of a second one of an hour.
		if latest := now.Add(s.state.waits); s.state.retryAt.After(latest) {
			s.state.retryAt = latest
		}
		return s.state.retryAt
	case s.cur == nil:
		return now
	}
	return s.state.renewAt
}

// sleep waits for at most d, if it counts, but looks at the wall clock and at Dir again before long.
func (s *Source) sleep(d time.Duration, counts bool) {
	most := recheck
	if s.cfg.ReadOnly {
		most = watching
	}
	if !counts || d > most {
		d = most
	}
	timer := time.NewTimer(max(d, time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.wake:
	case <-s.life.Done():
	}
}

// tellOver says once that the certificate is over.
func (s *Source) tellOver() {
	s.mu.Lock()
	over := s.cur != nil && s.now().After(s.cur.NotAfter) && !s.state.overTold
	s.state.overTold = s.state.overTold || over
	s.mu.Unlock()
	if over {
		s.cfg.Logger.Error("the certificate is over; a new one is asked for until it comes")
		s.emit(Event{Kind: Expired})
	}
}

// attempt asks once, by all ways that there are, and settles when to ask again.
func (s *Source) attempt(ctx context.Context) error {
	if s.cfg.ReadOnly {
		return ErrReadOnly
	}
	s.mu.Lock()
	s.state.lastAttempt = s.now()
	had, held := s.cur, s.state.held != nil
	s.mu.Unlock()
	if held { // it has to be written, not asked for once more
		s.store()
		return s.heldBack()
	}

	got, kind, err := s.obtain(ctx, had)
	if ctx.Err() != nil {
		return ErrClosed
	}
	if err != nil {
		return s.failed(err)
	}
	s.mu.Lock()
	s.state.lastSuccess, s.state.lastErr, s.state.failures = s.now(), nil, 0
	s.state.retryAt, s.state.waits = time.Time{}, 0
	s.state.held, s.state.heldKind, s.state.unwritten = got, kind, s.cfg.Dir != ""
	if s.cfg.Dir == "" {
		s.use(true)
	}
	s.mu.Unlock()
	if s.cfg.Dir == "" {
		s.cfg.Logger.Info("a new certificate", "how", kind, "id", got.ID.String(), "serial", got.Serial, "not_after", got.NotAfter)
		s.emit(Event{Kind: kind})
	}
	s.store()
	s.tellSkew()
	return s.heldBack()
}

// heldBack is why a new identity is not used yet; nil: none waits.
func (s *Source) heldBack() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.held == nil {
		return nil
	}
	return s.state.lastErr
}

// failed settles when to ask again, and says what went wrong as loudly as the end is near. It gives err with what it knows.
func (s *Source) failed(err error) error {
	s.mu.Lock()
	now := s.now()
	var left, life time.Duration
	if s.cur != nil {
		left, life = s.cur.NotAfter.Sub(now), s.cur.NotAfter.Sub(s.cur.NotBefore)
	}
	if err = s.nameSkew(err); s.state.dirErr != nil {
		err = errors.Join(err, s.state.dirErr)
	}
	s.state.waits = nextWait(err, s.state.waits, left, s.cur == nil, random(), random())
	s.state.retryAt = now.Add(s.state.waits)
	s.state.lastErr = err
	s.state.failures++
	wait, failures := s.state.waits, s.state.failures
	s.mu.Unlock()

	level := slog.LevelInfo
	switch {
	case left < life/6 || life == 0:
		level = slog.LevelError
	case left < life/3:
		level = slog.LevelWarn
	}
	s.cfg.Logger.Log(context.Background(), level, "no new certificate", "error", err, "failures", failures, "again_in", wait, "left", left)
	s.emit(Event{Kind: Failed, Reason: reasonOf(err), Err: err})
	s.tellSkew()
	return err
}

// rootsDue tells whether the authority is to be asked for its roots.
func (s *Source) rootsDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.cfg.ReadOnly && s.cur != nil && !now.Before(s.state.rootsAt)
}

// refreshRoots takes over the authority's roots between renewals: new ones must be trusted before certificates under them
// are around. The authority is told of as whole: a root that it no longer names is no longer trusted, but for the one that
// the own certificate stands under.
func (s *Source) refreshRoots(ctx context.Context) {
	s.mu.Lock()
	had := s.cur
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	roots, again, err := s.from.roots(ctx, had)
	s.mu.Lock()
	again = min(max(again, leastRoots), mostRoots)
	s.state.rootsAt = s.now().Add(again/2 + part(again/2, random()))
	if err != nil || s.cur != had {
		s.mu.Unlock()
		if err != nil && s.life.Err() == nil {
			s.cfg.Logger.Info("the roots could not be asked for", "error", err)
		}
		return
	}
	next, err := withRoots(had, roots)
	if err != nil || sameRoots(next.Roots, had.Roots) {
		s.mu.Unlock()
		if err != nil {
			s.cfg.Logger.Error("the authority's roots can't be used", "error", err)
		}
		return
	}
	s.replace(next)
	s.state.unwritten = s.cfg.Dir != ""
	s.mu.Unlock()
	s.cfg.Logger.Info("the authority's roots changed", "roots", len(next.Roots))
	s.store()
	s.emit(Event{Kind: NewRoots})
}

// withRoots is had under the given roots, and under its own if they don't hold it.
func withRoots(had *identity.Identity, roots []*x509.Certificate) (*identity.Identity, error) {
	b := had.Bundle()
	b.Roots = roots
	next, err := identity.New(b)
	if err == nil {
		return next, nil
	}
	b.Roots = append(slices.Clone(roots), had.Roots...)
	return identity.New(b)
}
