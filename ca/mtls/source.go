package mtls

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
)

// What [Source.Identity] and [Source.Renew] may say.
var (
	ErrNone     = errors.New("mtls: there is no identity yet")
	ErrExpired  = errors.New("mtls: the certificate is over")
	ErrClosed   = errors.New("mtls: the source is closed")
	ErrReadOnly = errors.New("mtls: somebody else renews this identity: the source is read-only")
)

// Source is an identity that stays good. It is safe for concurrent use.
type Source struct {
	cfg   Config
	from  authority
	stop  context.CancelFunc
	life  context.Context // until Close
	done  chan struct{}   // closed when the loop has ended
	wake  chan struct{}   // somebody waits for an attempt
	feed  *callersFeed
	conns *conns
	begun time.Time

	joined, attested *pin   // of the loop only
	keyType          string // of each new key: cfg.KeyType, or what the authority asked for; of the loop only

	mu      sync.Mutex
	cur     *identity.Identity // nil: none. Never changed, only replaced
	changed chan struct{}      // closed when cur is replaced
	client  *client.Client     // of cur; nil: not made yet
	waiters []chan error
	state   state
}

// state is what Status tells and the loop goes by. The lock of the Source guards it.
type state struct {
	link      string // what ..data led to when Dir was read last
	dirErr    error  // Dir can't be read: nothing is written into it
	unwritten bool   // cur, or held, is not in Dir

	// held is a new identity that waits to be written. Nobody comes with it before: the authority takes the one in Dir for
	// a copied key from the moment that its successor was seen, and a restart begins with Dir.
	held     *identity.Identity
	inDir    bool // an identity of cur's serial is in Dir
	heldKind EventKind

	renewAt time.Time     // of cur
	retryAt time.Time     // after a failure; zero: the last attempt succeeded
	waits   time.Duration // the wait until retryAt

	rootsAt time.Time // when the roots are asked for next

	lastAttempt, lastSuccess time.Time
	lastErr                  error
	failures                 int
	skew                     time.Duration
	skewAtLeast              bool // skew is a bound: no answer could be verified
	skewTold, overTold       bool
}

// Open begins to keep an identity. It waits for nobody: faults of the configuration are its only errors, and everything
// else is tried until it succeeds, as [Source.Status] and the events tell. ctx bounds Open alone; Close ends the source.
func Open(ctx context.Context, cfg Config) (*Source, error) {
	return open(ctx, cfg, nil)
}

// open takes the authority, for the tests that have it in process; nil: the daemon.
func open(ctx context.Context, cfg Config, from authority) (*Source, error) {
	if err := cfg.settle(); err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg, from: from, keyType: cfg.KeyType, done: make(chan struct{}), wake: make(chan struct{}, 1), changed: make(chan struct{})}
	if s.from == nil {
		s.from = daemon{s}
	}
	s.begun = s.now()
	s.life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.feed, s.conns = newCallersFeed(s), newConns()
	s.look()
	s.mu.Lock()
	s.state.rootsAt = s.begun.Add(part(firstRoots, random()))
	s.mu.Unlock()
	go s.run()
	return s, nil
}

// now is the wall clock: a machine that slept wakes up to the true time.
func (s *Source) now() time.Time { return s.cfg.Now().Round(0) }

// Identity is the identity as it is now. ErrNone: there is none yet. With ErrExpired it is given all the same, for who
// wants to tell which one is over.
func (s *Source) Identity() (*identity.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity()
}

func (s *Source) identity() (*identity.Identity, error) {
	switch {
	case s.cur == nil:
		for _, why := range []error{s.state.lastErr, s.state.dirErr} {
			if why != nil {
				return nil, fmt.Errorf("%w: %w", ErrNone, why)
			}
		}
		return nil, ErrNone
	case s.now().After(s.cur.NotAfter):
		return s.cur, ErrExpired
	}
	return s.cur, nil
}

// Wait waits until there is an identity whose certificate is not over.
func (s *Source) Wait(ctx context.Context) error {
	for {
		changed := s.Changed()
		_, err := s.Identity()
		if err == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-s.life.Done():
			return ErrClosed
		}
	}
}

// Changed is closed at the next change of the identity or its roots. Call it, then read, then wait.
func (s *Source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Renew gets a new certificate now. Callers at the same time share one attempt.
func (s *Source) Renew(ctx context.Context) error {
	if s.cfg.ReadOnly {
		return ErrReadOnly
	}
	answer := make(chan error, 1)
	s.mu.Lock()
	s.waiters = append(s.waiters, answer)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.life.Done():
		return ErrClosed
	}
}

// Status is how things stand.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		LastAttempt: s.state.lastAttempt, LastSuccess: s.state.lastSuccess, LastError: s.state.lastErr,
		Failures: s.state.failures, Skew: s.state.skew, Unwritten: s.state.unwritten, ID: s.cfg.ID, Server: s.server(s.cur),
	}
	if s.state.lastErr == nil {
		st.LastError = s.state.dirErr
	}
	if !s.cfg.ReadOnly {
		st.Next = s.nextAttempt(s.now())
	}
	if i := s.cur; i != nil {
		st.ID, st.Serial, st.NotBefore, st.NotAfter = i.ID, i.Serial, i.NotBefore, i.NotAfter
		st.RenewAt = s.state.renewAt
		st.Budget = max(0, i.NotAfter.Sub(s.now()))
	}
	return st
}

// server is where the authority is; "": not known. The caller holds the lock or has i to itself.
func (s *Source) server(i *identity.Identity) string {
	if s.cfg.Server != "" {
		return s.cfg.Server
	}
	if j, err := client.ParseJoin(s.cfg.Join); err == nil {
		return j.URL
	}
	if i != nil {
		return i.Server
	}
	return ""
}

// Client is the client of the authority with the identity as it is now. It is shared, and must not be closed. A call after
// a change gives the next one.
func (s *Source) Client() (*client.Client, error) {
	c, _, err := s.clientNow()
	return c, err
}

// clientNow gives the identity of the client too: what the two do must not fall apart when a renewal comes in between.
func (s *Source) clientNow() (*client.Client, *identity.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, err := s.identity()
	if i == nil {
		return nil, nil, err
	}
	if s.life.Err() != nil {
		return nil, nil, ErrClosed
	}
	if s.client == nil {
		s.client, err = client.New(client.Config{
			URL: s.server(i), Identity: i, Roots: s.pool(i), TrustDomain: i.ID.TrustDomain(), Date: s.heard, Now: s.cfg.Now,
		})
		if err != nil {
			return nil, nil, fmt.Errorf("mtls: the authority's address: %w", err)
		}
	}
	return s.client, i, nil
}

// replace makes i the identity. The caller holds the lock.
func (s *Source) replace(i *identity.Identity) {
	s.cur = i
	s.state.renewAt = renewAt(i.Serial, i.NotBefore, i.NotAfter, i.RenewAfter, i.RenewBefore)
	s.state.overTold = false
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// Close ends the source: nothing is renewed any more, servers with its configs admit nobody.
func (s *Source) Close() error {
	s.stop()
	<-s.done
	s.feed.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.Close()
		s.client = nil
	}
	return nil
}

func (s *Source) emit(e Event) {
	s.mu.Lock()
	e.At, e.Skew = s.now(), s.state.skew
	if s.cur != nil {
		e.Serial = s.cur.Serial
	}
	s.mu.Unlock()
	if s.cfg.OnEvent != nil {
		s.cfg.OnEvent(e)
	}
}
