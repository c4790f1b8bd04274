package mtls

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/ca/identity"
)

// events keeps what a source tells.
type events struct {
	mu  sync.Mutex
	all []Event
}

func (e *events) take(v Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, v)
}

func (e *events) has(kind EventKind, reason Reason) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.all, func(v Event) bool { return v.Kind == kind && v.Reason == reason })
}

// turned is a wall clock that a test may turn.
type turned struct {
	mu sync.Mutex
	by time.Duration
}

func (c *turned) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *turned) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += d
}

// nudge makes the loop look again now.
func (s *Source) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func TestConfigFaults(t *testing.T) {
	id, err := countersign.NewServiceID("td", "a")
	if err != nil {
		t.Fatal(err)
	}
	operator, err := countersign.NewOperatorID("td", "a")
	if err != nil {
		t.Fatal(err)
	}
	attest := func(context.Context) (string, error) { return "", nil }
	for name, cfg := range map[string]Config{
		"nothing":                  {},
		"a torn join string":       {Join: "https://localhost#x"},
		"Join and JoinFile":        {Join: "https://localhost#a." + strings.Repeat("00", 32), JoinFile: "x"},
		"ReadOnly without Dir":     {ReadOnly: true, JoinFile: "x"},
		"ReadOnly that enrols":     {ReadOnly: true, Dir: "x", JoinFile: "x"},
		"Attest without Server":    {Attest: attest, ID: id},
		"Attest without ID":        {Attest: attest, Server: "https://localhost"},
		"Attest for an operator":   {Attest: attest, Server: "https://localhost", ID: operator},
		"a key type of no policy":  {Dir: "x", KeyType: "DSA"},
		"a negative TTL":           {Dir: "x", TTL: -1},
		"a Server without TLS":     {Dir: "x", Server: "http://localhost"},
		"a Server that is no URL":  {Dir: "x", Server: "localhost:8443"},
		"a Server with a bad port": {Dir: "x", Server: "https://localhost:x"},
	} {
		if s, err := Open(t.Context(), cfg); err == nil {
			s.Close()
			t.Errorf("%s: it was opened", name)
		}
	}
}

func TestEnrolsByJoinString(t *testing.T) {
	k := newKit(t, nil)
	var seen events
	dir := filepath.Join(t.TempDir(), "id")
	s := k.source(Config{Dir: dir, Join: k.joinString("orders"), KeyType: "P-384", OnEvent: seen.take})
	i := k.wait(s)
	if i.ID != k.id("orders") || i.Server != k.url {
		t.Errorf("%+v", i)
	}
	k.eventually("the event", func() bool { return seen.has(Enrolled, "") })
	k.eventually("the directory", func() bool { got, err := identity.Load(dir); return err == nil && got.Serial == i.Serial })
	k.must(s.Renew(t.Context()))
	got, err := identity.Load(dir)
	k.must(err)
	if now, err := s.Identity(); err != nil || got.Serial != now.Serial || got.Serial == i.Serial {
		t.Errorf("the directory holds %s after a renewal: %v", got.Serial, err)
	}
}

// The operator puts the join string there when he gets to it: the file is read anew for each attempt.
func TestJoinFileIsReadAnew(t *testing.T) {
	k := newKit(t, nil)
	var seen events
	file := filepath.Join(t.TempDir(), "join")
	s := k.source(Config{JoinFile: file, OnEvent: seen.take})
	k.eventually("the failure", func() bool { return seen.has(Failed, Configuration) })
	k.must(os.WriteFile(file, []byte("\n"), 0o600))
	k.must(os.WriteFile(file, []byte(k.joinString("orders")+"\n"), 0o600))
	k.wait(s)
}

func TestOpenWaitsForNobody(t *testing.T) {
	k := newKit(t, nil)
	join := k.joinString("orders")
	k.gone()
	s := k.source(Config{Join: join})
	if _, err := s.Identity(); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
	k.eventually("the failure", func() bool { return s.Status().LastError != nil })
	k.back()
	k.wait(s)
	if st := s.Status(); st.LastError != nil || st.Failures != 0 {
		t.Errorf("%+v", st)
	}
}

// losing lets the daemon do its work and loses the answer.
func losing(times int) func(http.Handler) http.Handler {
	var mu sync.Mutex
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			lose := r.URL.Path == "/v1/certificates" && times > 0
			if lose {
				times--
			}
			mu.Unlock()
			if lose {
				h.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, r)
		})
	}
}

func TestLostAnswerOfARenewal(t *testing.T) {
	k := newKit(t, nil)
	s := k.ready("orders")
	k.before(losing(1))
	if err := s.Renew(t.Context()); err == nil {
		t.Fatal("the answer was not lost")
	}
	k.must(s.Renew(t.Context()))
}

// The join token is used up when the answer gets lost. The next attempt has the same key, and gets the same certificate.
func TestLostAnswerOfAJoin(t *testing.T) {
	k := newKit(t, nil)
	join := k.joinString("orders")
	k.before(losing(2))
	s := k.source(Config{Join: join})
	k.wait(s)
	page, err := k.adminC.Certificates(t.Context(), client.CertificateQuery{Service: "orders"})
	if err != nil || len(page.Certificates) != 1 {
		t.Errorf("%d certificates were issued: %v", len(page.Certificates), err)
	}
}

func TestOverFallsBackToTheJoinString(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	var seen events
	file := filepath.Join(t.TempDir(), "join")
	dir := k.dir("orders", time.Minute)
	s := k.source(Config{Dir: dir, JoinFile: file, OnEvent: seen.take})
	before := k.wait(s)
	clock.turn(2 * time.Minute)
	s.nudge()
	k.eventually("the end", func() bool { return seen.has(Expired, "") && seen.has(Failed, Refused) })
	if i, err := s.Identity(); !errors.Is(err, ErrExpired) || i.Serial != before.Serial {
		t.Errorf("%v", err)
	}
	if st := s.Status(); st.Budget != 0 || st.Next.IsZero() || st.LastError == nil {
		t.Errorf("%+v", st)
	}
	k.must(os.WriteFile(file, []byte(k.joinString("orders")), 0o600))
	k.must(s.Renew(t.Context()))
	if got, err := identity.Load(dir); err != nil || got.Serial == before.Serial || !seen.has(Enrolled, "") {
		t.Errorf("%v, %+v", err, seen.all)
	}
}

// A revoked certificate is not waited for until it is over.
func TestRevokedFallsBackToTheJoinString(t *testing.T) {
	k := newKit(t, nil)
	s := k.source(Config{Dir: k.dir("orders", 0), Join: k.joinString("orders")})
	i := k.wait(s)
	k.must(k.adminC.Revoke(t.Context(), i.Serial, "superseded"))
	k.must(s.Renew(t.Context()))
}

// changing alters the answers to POST /v1/certificates.
func changing(change func(*wire.Certificate)) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/certificates" {
				h.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			var c wire.Certificate
			if json.Unmarshal(rec.Body.Bytes(), &c) == nil {
				change(&c)
			}
			w.Header().Set("Content-Type", wire.JSON)
			w.WriteHeader(rec.Code)
			_ = json.NewEncoder(w).Encode(c)
		})
	}
}

func TestWrongAnswersAreRefused(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	other := newKit(t, nil)
	for name, change := range map[string]func(*wire.Certificate){
		"another key":     func(c *wire.Certificate) { c.Certificate = pemOf(k.bundle("orders", 0).Chain) },
		"another service": func(c *wire.Certificate) { c.Certificate = pemOf(k.bundle("inventory", 0).Chain) },
		"other roots":     func(c *wire.Certificate) { c.Roots = pemOf(other.ca.Roots()) },
		"no roots":        func(c *wire.Certificate) { c.Roots = "" },
		"no chain":        func(c *wire.Certificate) { c.Certificate = "" },
		"half a chain":    func(c *wire.Certificate) { c.Certificate = c.Certificate[:len(c.Certificate)-60] },
		"an authority":    func(c *wire.Certificate) { c.Certificate = c.Roots },
		"rubbish":         func(c *wire.Certificate) { c.Certificate = "x" },
		"no intermediate": func(c *wire.Certificate) {
			c.Certificate = c.Certificate[:strings.Index(c.Certificate, "-----END CERTIFICATE-----\n")+26]
		},
		"rubbish as a root":  func(c *wire.Certificate) { c.Roots += "x" },
		"another's key type": func(c *wire.Certificate) { c.Certificate = pemOf(other.bundle("orders", 0).Chain) },
	} {
		s := k.source(Config{Dir: dir})
		old := k.wait(s)
		k.before(changing(change))
		err := s.Renew(t.Context())
		if err == nil || reasonOf(err) != BadAnswer {
			t.Errorf("%s: %v", name, err)
		}
		if got, loadErr := identity.Load(dir); loadErr != nil || got.Serial != old.Serial {
			t.Errorf("%s: the directory changed: %v", name, loadErr)
		}
		k.before(nil)
		k.must(s.Close())
	}
}

// An authority that is mistaken about who asks must not make this another service.
func TestAnotherServicesCertificateIsRefused(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	s := k.source(Config{Dir: dir})
	old := k.wait(s)
	k.before(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var rq wire.CertificateRequest
			_ = json.NewDecoder(r.Body).Decode(&rq)
			by, err := k.joiner("inventory")
			if err != nil {
				t.Error(err)
				return
			}
			c, err := k.ca.Issue(r.Context(), by, ca.IssueRequest{CSR: []byte(rq.CSR)})
			if err != nil {
				t.Error(err)
				return
			}
			w.Header().Set("Content-Type", wire.JSON)
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(wire.Certificate{Certificate: pemOf(c.Chain), Roots: pemOf(k.ca.Roots())})
		})
	})
	if err := s.Renew(t.Context()); reasonOf(err) != BadAnswer || !strings.Contains(err.Error(), "inventory") {
		t.Errorf("%v", err)
	}
	if got, err := identity.Load(dir); err != nil || got.Serial != old.Serial {
		t.Errorf("the directory changed: %v", err)
	}
}

// A busy authority is asked by no other way either.
func TestBusyEndsTheAttempt(t *testing.T) {
	k := newKit(t, nil)
	s := k.ready("orders")
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		if s.goesOn(nil, &client.APIError{Status: status}) {
			t.Errorf("%d: another way is tried", status)
		}
	}
	if !s.goesOn(nil, &client.APIError{Status: http.StatusUnauthorized}) {
		t.Error("a refusal ends the attempt")
	}
}

// A join token's roots must hold the one that it was made by.
func TestJoinDemandsThePinnedRoot(t *testing.T) {
	k := newKit(t, nil)
	join := k.joinString("orders")
	other := newKit(t, nil)
	k.before(changing(func(c *wire.Certificate) {
		b := other.bundle("orders", 0)
		c.Certificate, c.Roots = pemOf(b.Chain), pemOf(b.Roots)
	}))
	var seen events
	k.source(Config{Join: join, OnEvent: seen.take})
	k.eventually("the refusal", func() bool { return seen.has(Failed, BadAnswer) })
	if seen.has(Enrolled, "") {
		t.Error("it enrolled under another root")
	}
}

// busy answers as an authority with too much to do.
func busy(status int) func(http.Handler) http.Handler {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", wire.Problem)
			w.Header().Set("Retry-After", "100")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"code": "CS1020", "detail": "too much"}`)
		})
	}
}

func TestRetryAfterIsHonoured(t *testing.T) {
	k := newKit(t, nil)
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		s := k.source(Config{Dir: k.dir("orders", 0), Join: k.joinString("orders")})
		k.wait(s)
		k.before(busy(status))
		asked := k.asked.Load()
		if err := s.Renew(t.Context()); reasonOf(err) != Busy {
			t.Fatalf("%v", err)
		}
		if wait := s.Status().Next.Sub(s.Status().LastAttempt); wait < 100*time.Second || wait > 201*time.Second {
			t.Errorf("it asks again after %s", wait)
		}
		if n := k.asked.Load() - asked; n != 1 {
			t.Errorf("it asked %d times in one window", n)
		}
		k.before(nil)
	}
}

func TestClockBehindIsNamed(t *testing.T) {
	k := newKit(t, nil)
	var seen events
	s := k.source(Config{Dir: k.dir("orders", 0), OnEvent: seen.take, Now: func() time.Time { return time.Now().Add(-5 * time.Minute) }})
	err := s.Renew(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the clock here is at least ") || !strings.Contains(err.Error(), "behind the authority's") {
		t.Errorf("%v", err)
	}
	if !seen.has(Failed, Clock) || !seen.has(Skewed, "") || s.Status().Skew > -3*time.Minute {
		t.Errorf("%+v, %+v", seen.all, s.Status())
	}
}

// An authority that answers says exactly how far the clocks are apart.
func TestClockAheadIsNamed(t *testing.T) {
	k := newKit(t, nil)
	var seen events
	s := k.source(Config{Dir: k.dir("orders", 0), OnEvent: seen.take, Now: func() time.Time { return time.Now().Add(252 * time.Second) }})
	k.must(s.Renew(t.Context()))
	k.eventually("the event", func() bool { return seen.has(Skewed, "") })
	if d := s.Status().Skew; d < 250*time.Second || d > 254*time.Second {
		t.Errorf("the skew is %s", d)
	}
	k.before(busy(http.StatusServiceUnavailable))
	if err := s.Renew(t.Context()); err == nil || !strings.Contains(err.Error(), "the clock here is 4m1") || !strings.Contains(err.Error(), "ahead of the authority's") {
		t.Errorf("%v", err)
	}
}

func TestRestartDoesNotDrawAgain(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	first := k.source(Config{Dir: dir}).Status()
	again := k.source(Config{Dir: dir}).Status()
	i, err := identity.Load(dir)
	k.must(err)
	if !first.RenewAt.Equal(again.RenewAt) || first.RenewAt.Before(i.RenewAfter) || first.RenewAt.After(i.RenewBefore) {
		t.Errorf("%s, then %s; the window is %s to %s", first.RenewAt, again.RenewAt, i.RenewAfter, i.RenewBefore)
	}
}

// withRoot adds roots to the bundle.
func withRoot(roots func() []*x509.Certificate) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/bundle" {
				h.ServeHTTP(w, r)
				return
			}
			var b wire.Bundle
			for _, root := range roots() {
				b.Keys = append(b.Keys, wire.JWK{Use: "x509-svid", X5C: []string{encode64(root.Raw)}})
			}
			b.Keys = append(b.Keys, wire.JWK{Use: "jwt-svid", Kty: "EC"})
			w.Header().Set("Content-Type", wire.JSON)
			_ = json.NewEncoder(w).Encode(b)
		})
	}
}

// Trust grows before leaves change: a new root is taken over between renewals, and the old one leaves only when the
// authority no longer names it and the own certificate is not under it.
func TestRootsGrowBetweenRenewals(t *testing.T) {
	k, other := newKit(t, nil), newKit(t, nil)
	dir := k.dir("orders", 0)
	var seen events
	s := k.source(Config{Dir: dir, OnEvent: seen.take})
	old := k.wait(s)
	ask := func() {
		s.mu.Lock()
		s.state.rootsAt = time.Time{}
		s.mu.Unlock()
		s.nudge()
	}
	roots := other.ca.Roots() // without the one that the own certificate stands under
	k.before(withRoot(func() []*x509.Certificate { return roots }))
	ask()
	k.eventually("the roots", func() bool { return seen.has(NewRoots, "") })
	got, err := identity.Load(dir)
	k.must(err)
	if got.Serial != old.Serial || !sameRoots(got.Roots, append(k.ca.Roots(), other.ca.Roots()...)) {
		t.Errorf("the directory holds %d roots and the certificate %s", len(got.Roots), got.Serial)
	}
	k.before(nil)
	ask()
	k.eventually("the end of the other", func() bool { i, _ := s.Identity(); return sameRoots(i.Roots, k.ca.Roots()) })
}

func TestRenewIsSingleFlight(t *testing.T) {
	k := newKit(t, nil)
	s := k.ready("orders")
	hold := make(chan struct{})
	var once sync.Once
	held := make(chan struct{})
	k.before(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			once.Do(func() { close(held) })
			<-hold
			h.ServeHTTP(w, r)
		})
	})
	asked := k.asked.Load()
	answers := make(chan error, 9)
	go func() { answers <- s.Renew(t.Context()) }()
	<-held
	for range 8 {
		go func() { answers <- s.Renew(t.Context()) }()
	}
	k.eventually("the waiters", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.waiters) == 8 })
	close(hold)
	for range 9 {
		k.must(<-answers)
	}
	if n := k.asked.Load() - asked; n > 2 {
		t.Errorf("nine calls asked %d times", n)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	k := newKit(t, nil)
	s := k.ready("orders")
	k.must(s.Close())
	if err := s.Renew(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Renew: %v", err)
	}
	if _, err := s.Client(); !errors.Is(err, ErrClosed) {
		t.Errorf("Client: %v", err)
	}
	if err := s.Wait(t.Context()); err != nil && !errors.Is(err, ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
	k.must(s.Close())
}
