package jwt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// issuer is a real HTTP server whose answers a test sets. It serves keys at /jwks and counts what it is asked for.
type issuer struct {
	*httptest.Server
	mu      sync.Mutex
	answers map[string]http.HandlerFunc
	asked   map[string]int
}

func newIssuer(t *testing.T, start func(*httptest.Server)) *issuer {
	i := &issuer{answers: make(map[string]http.HandlerFunc), asked: make(map[string]int)}
	i.Server = httptest.NewUnstartedServer(i)
	i.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that tests have fail
	start(i.Server)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.asked[r.URL.Path]++
	answer := i.answers[r.URL.Path]
	i.mu.Unlock()
	if answer == nil {
		answer = http.NotFound
	}
	answer(w, r)
}

func (i *issuer) serve(path string, answer http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answers[path] = answer
}

func (i *issuer) count(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// keysNamed is a set of the P-256 key under each of these kids.
func keysNamed(kids ...string) string {
	var keys []PublicKey
	for _, kid := range kids {
		keys = append(keys, PublicKey{KID: kid, Alg: "ES256", Key: p256().Public()})
	}
	return string(must(NewSet(keys...)).JSON())
}

// clock is a wall clock that a test moves.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time { return now().Add(time.Duration(c.at.Load())) }

func (c *clock) add(d time.Duration) { c.at.Add(int64(d)) }

// bench is a Remote, the issuer that it asks and the clock that it reads.
type bench struct {
	*Remote
	t      *testing.T
	issuer *issuer
	clock  *clock
	log    *bytes.Buffer
}

func newBench(t *testing.T, change func(*RemoteConfig)) *bench {
	t.Helper()
	b := &bench{t: t, issuer: newIssuer(t, (*httptest.Server).Start), clock: new(clock), log: new(bytes.Buffer)}
	b.issuer.serve("/jwks", text(keysNamed("k1")))
	cfg := RemoteConfig{
		Issuer: b.issuer.URL, JWKSURI: b.issuer.URL + "/jwks", Now: b.clock.now,
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	r, err := NewRemote(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.timeout = 100 * time.Millisecond
	b.Remote = r
	t.Cleanup(b.settle)
	return b
}

// settle waits for the fetch that runs in the background, if any.
func (b *bench) settle() {
	b.mu.Lock()
	f := b.flight
	b.mu.Unlock()
	if f != nil {
		<-f.done
	}
}

// has asks for kid, lets the fetch that this may have started end, and tells whether kid was in the answer.
func (b *bench) has(kid string) bool {
	b.t.Helper()
	s, err := b.Set(b.t.Context(), kid)
	b.settle()
	return err == nil && s.Has(kid)
}

func (b *bench) want(kid string, has bool) {
	b.t.Helper()
	if got := b.has(kid); got != has {
		_, err := b.Fetched()
		b.t.Fatalf("has %q: %t, want %t (last error: %v)", kid, got, has, err)
	}
}

func (b *bench) wantFetches(n int) {
	b.t.Helper()
	if got := b.issuer.count("/jwks"); got != n {
		b.t.Fatalf("%d fetches, want %d", got, n)
	}
}

// badAnswers are all that an issuer, or somebody in its place, can send instead of its keys.
func badAnswers() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"empty body":    text(``),
		"empty set":     text(`{"keys":[]}`),
		"no set":        text(`{"error":"not now"}`),
		"HTML":          text(`<html></html>`),
		"cut off":       text(keysNamed("k1")[:40]),
		"10 MB":         text(`{"keys":[]` + strings.Repeat(" ", 10<<20) + `}`),
		"65 keys":       text(set(strings.Split(strings.Repeat(`"kty":"X"|`, 64)+`"kty":"X"`, "|")...)),
		"oct":           text(set(`"kid":"k1",`+ecNumbers(), `"kid":"s","kty":"oct","k":"c2VjcmV0"`)),
		"only oct":      text(set(`"kid":"k1","kty":"oct","k":"c2VjcmV0"`)),
		"kid twice":     text(set(`"kid":"k1",`+ecNumbers(), `"kid":"k1",`+goodRSA())),
		"only enc":      text(set(`"kid":"k1","use":"enc",` + ecNumbers())),
		"private key":   text(set(`"kid":"k1","d":"AAAA",` + ecNumbers())),
		"500":           status(http.StatusInternalServerError),
		"404 with keys": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); fmt.Fprint(w, keysNamed("k1", "k2")) },
		"204":           status(http.StatusNoContent),
		"redirect":      func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"redirect 308": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusPermanentRedirect)
		},
		"redirect, keys": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(301)
			fmt.Fprint(w, keysNamed("k1", "k2"))
		},
		"hangs": hang,
		"hangs inside": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"keys":`)
			w.(http.Flusher).Flush()
			hang(w, r)
		},
		"breaks off": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// TestBadAnswers holds "no redirects, at most 256 KiB and 64 keys, no oct", and that a bad answer is an error without
// keys, evicts nothing with keys, and is forgotten with the next good one.
func TestBadAnswers(t *testing.T) {
	for name, answer := range badAnswers() {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.issuer.serve("/elsewhere", text(keysNamed("k1", "k2")))
			b.issuer.serve("/jwks", answer)
			if s, err := b.Set(t.Context(), "k1"); err == nil {
				t.Fatalf("taken without keys: %s", s.JSON())
			}
			b.clock.add(time.Minute)
			b.issuer.serve("/jwks", text(keysNamed("k1")))
			b.want("k1", true)

			b.issuer.serve("/jwks", answer)
			b.clock.add(6 * time.Minute)
			b.want("k1", true)
			if at, err := b.Fetched(); err == nil || b.clock.now().Sub(at) != 6*time.Minute {
				t.Errorf("last good %v, last error %v", at, err)
			}
			b.want("k2", false)
			b.want("k1", true)
			if n := b.issuer.count("/elsewhere"); n != 0 {
				t.Errorf("a redirect was followed %d times", n)
			}
		})
	}
}

func TestDeadIssuer(t *testing.T) {
	b := newBench(t, nil)
	b.want("k1", true)
	b.issuer.Close()
	b.clock.add(10 * time.Minute)
	b.want("k1", true)
	if _, err := b.Fetched(); err == nil {
		t.Error("the failure is not told")
	}
}

// TestReplaced holds "replaced not merged": a key that the issuer took back is gone after a good fetch.
func TestReplaced(t *testing.T) {
	b := newBench(t, nil)
	b.issuer.serve("/jwks", text(keysNamed("k1", "k2")))
	b.want("k1", true)
	b.issuer.serve("/jwks", text(keysNamed("k2")))
	b.clock.add(5*time.Minute - time.Second)
	b.want("k1", true) // not yet fetched again
	b.clock.add(time.Second)
	b.has("k2") // starts the planned fetch and lets it end
	b.want("k2", true)
	b.want("k1", false)
}

// TestSilence: after a time without tokens the first one waits for the refresh, so that a key taken back meanwhile is
// not used once more; if the issuer is down the old keys are.
func TestSilence(t *testing.T) {
	b := newBench(t, nil)
	b.want("k1", true)
	b.issuer.serve("/jwks", text(keysNamed("k2")))
	b.clock.add(time.Hour)
	b.want("k1", false)
	b.issuer.serve("/jwks", hang)
	b.clock.add(time.Hour)
	b.want("k2", true)
}

// TestSilenceOfACaller: who has less time than the refresh after a silence takes gets the keys that may still be used, and
// once the issuer is known to be down nobody waits for it.
func TestSilenceOfACaller(t *testing.T) {
	b := newBench(t, nil)
	b.want("k1", true)
	b.issuer.serve("/jwks", hang)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.clock.add(time.Hour)
	if s, err := b.Set(ctx, "k1"); err != nil || !s.Has("k1") {
		t.Errorf("the keys at hand are kept from who can't wait: %v", err)
	}
	if _, err := b.Set(ctx, "k2"); !errors.Is(err, context.Canceled) {
		t.Errorf("a key that is not known yet: %v", err)
	}
	b.settle()
	b.timeout = time.Hour
	release := make(chan struct{})
	b.issuer.serve("/jwks", func(http.ResponseWriter, *http.Request) { <-release })
	b.clock.add(time.Hour)
	if s, err := b.Set(t.Context(), "k1"); err != nil || !s.Has("k1") { // would never end if it waited
		t.Error(err)
	}
	close(release)
	b.settle()
	b.clock.add(24 * time.Hour)
	b.issuer.serve("/jwks", hang)
	b.timeout = 100 * time.Millisecond
	if _, err := b.Set(ctx, "k1"); err == nil {
		t.Error("keys that are too old are used")
	}
}

// TestSlowIssuer: callers whose key is known never wait for a refresh while tokens come.
func TestSlowIssuer(t *testing.T) {
	b := newBench(t, nil)
	b.want("k1", true)
	release := make(chan struct{})
	b.issuer.serve("/jwks", func(http.ResponseWriter, *http.Request) { <-release })
	b.timeout = time.Hour
	b.clock.add(5 * time.Minute)
	for range 100 { // would never end if they waited
		if s, err := b.Set(t.Context(), "k1"); err != nil || !s.Has("k1") {
			t.Fatal(err)
		}
	}
	close(release)
	b.settle()
	b.wantFetches(2)
}

func TestRotation(t *testing.T) {
	b := newBench(t, nil)
	b.want("k1", true)
	b.issuer.serve("/jwks", text(keysNamed("k1", "k2")))
	b.want("k2", true) // at once, by an unplanned fetch
	b.wantFetches(2)
	b.issuer.serve("/jwks", text(keysNamed("k1", "k2", "k3")))
	b.want("k3", false) // cooling down
	b.clock.add(30*time.Second - 1)
	b.want("k3", false)
	b.wantFetches(2)
	b.clock.add(1)
	b.want("k3", true)
	b.wantFetches(3)
}

// TestFlood: whatever kids strangers invent, one unplanned fetch per 30 s, and no good token fails.
func TestFlood(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"issuer up": text(keysNamed("k1")), "issuer failing": status(500), "issuer poisoned": text(`{"keys":[]}`),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.want("k1", true)
			b.issuer.serve("/jwks", answer)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					for j := range 5000 {
						_, _ = b.Set(context.Background(), fmt.Sprintf("random-%d-%d", i, j))
						if s, err := b.Set(context.Background(), "k1"); err != nil || !s.Has("k1") {
							t.Errorf("a good token fails: %v", err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.settle()
			b.wantFetches(2)
			b.clock.add(30 * time.Second)
			before := b.issuer.count("/jwks")
			for i := range 1000 {
				b.has(fmt.Sprintf("more-%d", i))
			}
			// A failed fetch is followed by one planned attempt besides the unplanned one.
			if n := b.issuer.count("/jwks") - before; n < 1 || n > 2 {
				t.Errorf("%d fetches in the next 30 s", n)
			}
			b.want("k1", true)
		})
	}
}

// TestSingleFlight: callers who need keys at the same time share one fetch.
func TestSingleFlight(t *testing.T) {
	b := newBench(t, nil)
	b.timeout = time.Minute
	release, arrived := make(chan struct{}), make(chan struct{}, 100)
	b.issuer.serve("/jwks", func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		fmt.Fprint(w, keysNamed("k1"))
	})
	// The first caller gives up; the fetch goes on for the others.
	ctx, cancel := context.WithCancelCause(t.Context())
	first := make(chan error, 1)
	go func() { _, err := b.Set(ctx, "k1"); first <- err }()
	<-arrived
	gone := errors.New("gone")
	cancel(gone)
	if err := <-first; !errors.Is(err, gone) {
		t.Error("the caller who gave up got", err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if s, err := b.Set(context.Background(), "k1"); err != nil || !s.Has("k1") {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	b.wantFetches(1)
}

// TestStale holds "stale served up to 24 h when the issuer is down".
func TestStale(t *testing.T) {
	b := newBench(t, nil)
	b.want("k1", true)
	b.issuer.serve("/jwks", status(503))
	for range 24 {
		b.clock.add(time.Hour)
		b.want("k1", true)
	}
	if n := strings.Count(b.log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings for one row of failures:\n%s", n, b.log)
	}
	b.clock.add(1)
	b.want("k1", false)
	if _, err := b.Set(t.Context(), "k1"); err == nil {
		t.Error("keys older than 24 h are used")
	}
	b.issuer.serve("/jwks", text(keysNamed("k1")))
	b.clock.add(30 * time.Second)
	b.want("k1", true)
	if at, err := b.Fetched(); err != nil || !at.Equal(b.clock.now()) || !strings.Contains(b.log.String(), "level=INFO") {
		t.Error(at, err, b.log)
	}
}

// TestRetries: without keys a dead issuer is asked again after 1, 2, 4, 8, 16, 30, 30 s, not by every caller.
func TestRetries(t *testing.T) {
	b := newBench(t, nil)
	b.issuer.serve("/jwks", status(500))
	var asked []int
	last := 0
	for second := range 92 {
		for range 10 {
			b.has("k1")
		}
		if n := b.issuer.count("/jwks"); n != last {
			asked, last = append(asked, second), n
		}
		b.clock.add(time.Second)
	}
	if got, want := fmt.Sprint(asked), "[0 1 3 7 15 31 61 91]"; got != want || last != 8 {
		t.Errorf("asked at %s (%d times), want %s", got, last, want)
	}
}

func TestMaxAge(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": 5 * time.Minute, "no-store": 5 * time.Minute, "max-age=600": 10 * time.Minute,
		"public, Max-Age=600, must-revalidate": 10 * time.Minute, `max-age="600"`: 10 * time.Minute,
		"max-age=0": time.Minute, "max-age=31536000": time.Hour, "max-age=-1": 5 * time.Minute, "max-age=x": 5 * time.Minute,
		"max-age=99999999999999999999": 5 * time.Minute, "s-maxage=600": 5 * time.Minute,
	} {
		t.Run(header, func(t *testing.T) {
			b := newBench(t, nil)
			b.issuer.serve("/jwks", func(w http.ResponseWriter, _ *http.Request) {
				if header != "" {
					w.Header().Set("Cache-Control", header)
				}
				fmt.Fprint(w, keysNamed("k1"))
			})
			b.want("k1", true)
			b.clock.add(want - 1)
			b.want("k1", true)
			b.wantFetches(1)
			b.clock.add(1)
			b.want("k1", true)
			b.wantFetches(2)
		})
	}
}

// TestMaxAgeIsCapped: an issuer that asks for more than its user takes is asked again sooner.
func TestMaxAgeIsCapped(t *testing.T) {
	for header, want := range map[string]time.Duration{"max-age=3600": 5 * time.Minute, "max-age=120": 2 * time.Minute} {
		b := newBench(t, func(cfg *RemoteConfig) { cfg.MaxAge = 5 * time.Minute })
		b.issuer.serve("/jwks", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Cache-Control", header)
			fmt.Fprint(w, keysNamed("k1"))
		})
		b.want("k1", true)
		b.clock.add(want - 1)
		b.want("k1", true)
		b.wantFetches(1)
		b.clock.add(1)
		b.want("k1", true)
		b.wantFetches(2)
	}
	for _, wrong := range []time.Duration{-1, time.Second, 2 * time.Hour} {
		if _, err := NewRemote(RemoteConfig{Issuer: "https://cs.shop.internal", MaxAge: wrong}); err == nil {
			t.Errorf("a MaxAge of %s is taken", wrong)
		}
	}
}
