package mtls

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/ca/identity"
)

// fleet is the authority for many sources in process: the real one without HTTP, which can be away, and which counts what
// it issues in each second.
type fleet struct {
	k    *kit
	away atomic.Bool

	mu     sync.Mutex
	begun  time.Time
	issued map[int]int // by second since begun
	asked  map[int]int

	once map[string]string // workloads' tokens that are good for one key: here that is a join token
	lose int               // so many answers get lost
}

func newFleet(k *kit) *fleet {
	return &fleet{k: k, begun: time.Now(), issued: map[int]int{}, asked: map[int]int{}, once: map[string]string{}}
}

var errAway = errors.New("connection refused")

func (f *fleet) second() int { return int(time.Since(f.begun) / time.Second) }

func (f *fleet) issue(ctx context.Context, by func() (countersign.Caller, error), rq wire.CertificateRequest) (wire.Certificate, error) {
	f.mu.Lock()
	f.asked[f.second()]++
	f.mu.Unlock()
	if f.away.Load() {
		return wire.Certificate{}, errAway
	}
	caller, err := by()
	if err != nil {
		return wire.Certificate{}, err
	}
	c, err := f.k.ca.Issue(ctx, caller, ca.IssueRequest{CSR: []byte(rq.CSR), TTL: time.Duration(rq.TTL)})
	if err != nil {
		return wire.Certificate{}, err
	}
	f.mu.Lock()
	f.issued[f.second()]++
	lost := f.lose > 0
	if lost {
		f.lose--
	}
	f.mu.Unlock()
	if lost {
		return wire.Certificate{}, errAway
	}
	return wire.Certificate{
		Certificate: pemOf(c.Chain), Roots: pemOf(f.k.ca.Roots()), ID: c.ID, Serial: c.Serial,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, RenewAfter: c.RenewAfter, RenewBefore: c.RenewBefore,
	}, nil
}

// renew is judged as the API judges it: an expired certificate is refused.
func (f *fleet) renew(ctx context.Context, had *identity.Identity, rq wire.CertificateRequest) (wire.Certificate, error) {
	return f.issue(ctx, func() (countersign.Caller, error) {
		return f.k.ca.PeerCaller(ctx, had.Chain[0], countersign.Caller{})
	}, rq)
}

func (f *fleet) join(context.Context, client.JoinString, wire.CertificateRequest) (wire.Certificate, error) {
	return wire.Certificate{}, errAway
}

// attest takes a new join token for a workload that proved itself; for a token that begins with "once" the same one always.
func (f *fleet) attest(ctx context.Context, _ *identity.Identity, token string, rq wire.CertificateRequest) (wire.Certificate, error) {
	return f.issue(ctx, func() (countersign.Caller, error) {
		if !strings.HasPrefix(token, "once") {
			return f.k.joiner("orders")
		}
		f.mu.Lock()
		secret := f.once[token]
		f.mu.Unlock()
		if secret == "" {
			operator := countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin, Name: "test"}
			made, err := f.k.ca.CreateJoinToken(ctx, operator, "orders", time.Hour)
			if err != nil {
				return operator, err
			}
			secret = made.Secret
			f.mu.Lock()
			f.once[token] = secret
			f.mu.Unlock()
		}
		return f.k.ca.JoinCaller(ctx, secret, countersign.Caller{})
	}, rq)
}

func (f *fleet) roots(context.Context, *identity.Identity) ([]*x509.Certificate, time.Duration, error) {
	if f.away.Load() {
		return nil, 0, errAway
	}
	return f.k.ca.Roots(), time.Hour, nil
}

// between gives the sum and the peak of a second of counts in [from, to).
func (f *fleet) between(counts map[int]int, from, to int) (sum, peak int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := from; i < to; i++ {
		sum += counts[i]
		peak = max(peak, counts[i])
	}
	return sum, peak
}

const fleetLife = 80 * time.Second

// open opens n sources, spread over the time in which all renew once.
func (f *fleet) open(n int) []*Source {
	sources := make([]*Source, n)
	for i := range sources {
		s, err := open(context.Background(), f.config(), f)
		f.k.must(err)
		sources[i] = s
		time.Sleep(fleetLife / 2 / time.Duration(n))
	}
	return sources
}

// config is that of a source which enrols with the authority in process.
func (f *fleet) config() Config {
	return Config{
		Server: "https://localhost:8443", ID: f.k.id("orders"), TTL: fleetLife, KeyType: "Ed25519",
		Attest: func(context.Context) (string, error) { return "jwt", nil },
	}
}

func healthy(sources []*Source) int {
	n := 0
	for _, s := range sources {
		if _, err := s.Identity(); err == nil {
			n++
		}
	}
	return n
}

// steadyRate is how many certificates are issued in a second when nothing is wrong: each source's renewals are as far apart as
// its time of renewal says.
func steadyRate(sources []*Source) float64 {
	rate := 0.0
	for _, s := range sources {
		st := s.Status()
		rate += 1 / st.RenewAt.Sub(st.LastSuccess).Seconds()
	}
	return rate
}

// A fleet outlives an authority that is gone for as long as it likes: all are back within a minute of its return. And they come
// spread: a thousand, whose certificates were over, with a peak of at most twice the rate of their renewals.
func TestFleetReturns(t *testing.T) {
	for _, c := range []struct {
		lifetimes float64
		size      int
		peak      bool
	}{{0.5, 1000, true}, {1, 100, false}, {3, 1000, true}, {10, 100, false}} {
		t.Run(fmt.Sprintf("%d, gone for %v lifetimes", c.size, c.lifetimes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &kit{TB: t, now: time.Now}
				k.issuing(testPolicy)
				f := newFleet(k)
				sources := f.open(c.size)
				defer func() {
					for _, s := range sources {
						s.Close()
					}
				}()
				time.Sleep(5 * time.Second)
				steady, to := steadyRate(sources), f.second()
				f.away.Store(true)
				time.Sleep(part(fleetLife, c.lifetimes))
				f.away.Store(false)
				back := f.second()
				time.Sleep(time.Minute)
				if n := healthy(sources); n != c.size {
					t.Errorf("%d of %d are healthy a minute after the authority's return", n, c.size)
				}
				_, peak := f.between(f.issued, back, f.second())
				asked, mostAsked := f.between(f.asked, to, back)
				t.Logf("steady %.1f/s, peak %d/s after the return; while it was gone %d/s asked, at most %d/s", steady, peak, asked/max(1, back-to), mostAsked)
				if c.peak && float64(peak) > 2*steady {
					t.Errorf("the peak after the return is %d/s, over twice the steady %.1f/s", peak, steady)
				}
			})
		})
	}
}

// alone runs one source in a bubble, under a clock that can be turned.
func alone(t *testing.T, test func(f *fleet, clock *turned, s *Source)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		clock := &turned{}
		k := &kit{TB: t, now: clock.now}
		k.issuing(testPolicy)
		f := newFleet(k)
		cfg := f.config()
		cfg.TTL, cfg.Now = time.Hour, clock.now
		s, err := open(context.Background(), cfg, f)
		k.must(err)
		defer s.Close()
		k.must(s.Wait(context.Background()))
		test(f, clock, s)
	})
}

// The renewal comes at the drawn time and not before, with another key.
func TestRenewsAtTheDrawnTime(t *testing.T) {
	alone(t, func(f *fleet, _ *turned, s *Source) {
		st := s.Status()
		if life := st.NotAfter.Sub(st.NotBefore); st.RenewAt.Before(st.NotBefore.Add(life/2-time.Minute)) || st.RenewAt.After(st.NotBefore.Add(part(life, lastFraction))) {
			t.Fatalf("%+v", st)
		}
		time.Sleep(time.Until(st.RenewAt) - time.Second)
		if now := s.Status(); now.Serial != st.Serial {
			t.Error("it was renewed before the time that was drawn")
		}
		time.Sleep(2 * time.Second)
		if now := s.Status(); now.Serial == st.Serial {
			t.Error("it was not renewed at the time that was drawn")
		}
	})
}

// A machine that slept over the renewal wakes up by the wall clock, which timers do not follow.
func TestSleepIsNoticed(t *testing.T) {
	alone(t, func(f *fleet, clock *turned, s *Source) {
		st := s.Status()
		clock.turn(45 * time.Minute)
		time.Sleep(recheck + time.Second)
		if now := s.Status(); now.Serial == st.Serial {
			t.Errorf("half a minute after the sleep it is not renewed: %+v", now)
		}
		st = s.Status()
		clock.turn(5 * time.Hour)
		time.Sleep(recheck + time.Second)
		if now := s.Status(); now.Serial == st.Serial || now.Budget == 0 {
			t.Errorf("half a minute after a sleep past the end there is no certificate: %+v", now)
		}
	})
}

// A clock that is set back must not make of a wait of seconds one of hours.
func TestClockSetBackDoesNotStopRetries(t *testing.T) {
	alone(t, func(f *fleet, clock *turned, s *Source) {
		f.away.Store(true)
		time.Sleep(time.Until(s.Status().RenewAt) + 5*time.Minute)
		if s.Status().Failures == 0 {
			t.Fatal("nothing failed")
		}
		clock.turn(-20 * time.Minute)
		before := s.Status().Failures
		time.Sleep(longRetry + recheck)
		if now := s.Status(); now.Failures == before {
			t.Errorf("it did not try again: %+v", now)
		}
	})
}

// It tries on for ever: after a hundred lifetimes too it is back within a minute.
func TestNeverGivesUp(t *testing.T) {
	alone(t, func(f *fleet, _ *turned, s *Source) {
		f.away.Store(true)
		time.Sleep(30 * time.Hour)
		if st := s.Status(); st.Failures < 1000 || st.Budget != 0 {
			t.Errorf("%+v", st)
		}
		f.away.Store(false)
		time.Sleep(time.Minute)
		if _, err := s.Identity(); err != nil {
			t.Error(err)
		}
	})
}

// A workload's token is good for one key. An answer that got lost is had by asking again with the same, and a source whose
// token was used up by then goes on until there is a fresh one.
func TestLostAnswerOfAnAttestation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &kit{TB: t, now: time.Now}
		k.issuing(testPolicy)
		f := newFleet(k)
		f.lose = 2
		cfg := f.config()
		token := "once 1"
		var mu sync.Mutex
		cfg.Attest = func(context.Context) (string, error) { mu.Lock(); defer mu.Unlock(); return token, nil }
		s, err := open(context.Background(), cfg, f)
		k.must(err)
		defer s.Close()
		time.Sleep(time.Minute)
		first, err := s.Identity()
		k.must(err)

		f.away.Store(true)
		time.Sleep(10 * time.Minute)
		f.away.Store(false)
		time.Sleep(2 * time.Minute)
		if _, err := s.Identity(); !errors.Is(err, ErrExpired) {
			t.Errorf("a certificate that is over came back as a new one: %v", err)
		}
		mu.Lock()
		token = "once 2"
		mu.Unlock()
		time.Sleep(time.Minute)
		next, err := s.Identity()
		if err != nil || next.Serial == first.Serial || next.Chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(first.Chain[0].PublicKey) {
			t.Errorf("%v", err)
		}
	})
}
