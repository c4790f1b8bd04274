package sts

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign"
)

// badUpstreams are the answers of an issuer that is broken, or of somebody in its place. None of them may do harm.
func badUpstreams(t *testing.T) map[string]http.HandlerFunc {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := keySetOf(key, "k1", "k2") // a set that must not be taken where it comes in a wrong way
	entry := strings.TrimSuffix(strings.TrimPrefix(keySetOf(key, "k1"), `{"keys":[`), `]}`)
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusTemporaryRedirect)
			fmt.Fprint(w, good)
		}
	}
	return map[string]http.HandlerFunc{
		"dead":  nil,
		"hangs": hang,
		"hangs in the middle": func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, good[:20])
			w.(http.Flusher).Flush()
			hang(w, r)
		},
		"redirects to itself":  redirect(hrURL + "/jwks"),
		"redirects to another": redirect(idpURL + "/jwks"),
		"10 MB":                body(good[:len(good)-1] + strings.Repeat(" ", 10<<20) + "}"),
		"500 with keys": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, good)
		},
		"empty":       body(""),
		"no keys":     body(`{"keys":[]}`),
		"HTML":        body("<html>maintenance</html>"),
		"kid twice":   body(`{"keys":[` + entry + "," + entry + `]}`),
		"wrong kty":   body(strings.Replace(good, `"kty":"EC"`, `"kty":"RSA"`, 1)),
		"unknown kty": body(`{"keys":[{"kty":"AKP","kid":"k1","pub":"AAAA"}]}`),
		"only oct":    body(`{"keys":[{"kty":"oct","kid":"k1","k":"c2VjcmV0"}]}`),
		"oct beside":  body(`{"keys":[{"kty":"oct","kid":"s","k":"c2VjcmV0"},` + entry + `]}`),
	}
}

// TestUpstreamFaults: without usable keys an issuer's tokens are refused as temporarily_unavailable, in bounded time; with keys
// from before they go on working, whatever the issuer answers now, and bad ones are still bad. Tokens of another issuer notice
// nothing at all.
func TestUpstreamFaults(t *testing.T) {
	for name, answer := range badUpstreams(t) {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.hr.serve(answer)
				w.neighbour("the keys of the neighbour are fetched")
				done := make(chan bool)
				go func() {
					defer close(done)
					w.answers("without keys", w.user(w.hr.key, "k1"), countersign.CodeIssuerDown, fetchLimit)
				}()
				synctest.Wait() // it waits for keys, or was answered
				w.neighbour("while one waits")
				<-done
				w.wantMetrics("without keys", -1, 0, 1)

				w.hr.publish("k1")
				time.Sleep(time.Minute)
				w.works("published at last")
				w.wantMetrics("published at last", 0, 1, 1)
				published := time.Now()

				w.hr.serve(answer)
				time.Sleep(6 * time.Minute) // a refresh is due
				w.works("with keys from before")
				w.answers("a kid that was never published", w.user(w.hr.key, "k2"), countersign.CodeSubjectKey, fetchLimit)
				w.answers("a forged token", w.user(w.idp.key, "k1"), countersign.CodeSubjectToken, 0)
				w.works("after the bad ones")
				time.Sleep(fetchLimit)
				w.wantMetrics("with keys from before", time.Since(published), 1, w.hr.count()-1)
			})
		})
	}
}

// unpublished is token with another kid. Its signature does not matter: no key of that name is ever found.
func unpublished(token, kid string) string {
	header := fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"at+jwt"}`, kid)
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + token[strings.IndexByte(token, '.'):]
}

// flood sends count tokens with kids that were never published, many at a time, and good ones among them, none of which may
// fail or wait.
func (w *world) flood(wave string, count int) {
	w.t.Helper()
	const senders, between = 50, 40
	good := w.user(w.hr.key, "k1")
	var all sync.WaitGroup
	for s := range senders {
		all.Go(func() {
			for n := range count / senders {
				kid := fmt.Sprintf("%s-%d-%d", wave, s, n)
				w.answers(kid, unpublished(good, kid), countersign.CodeSubjectKey, fetchLimit)
				if n%between == 0 {
					w.answers(wave+": a good token", good, "", 0)
				}
			}
		})
	}
	all.Wait()
	w.neighbour(wave)
}

// TestUpstreamFlood: whoever invents kids drives no more than one unplanned fetch per 30 s to the issuer, and harms no good token,
// whether the issuer is well or not.
func TestUpstreamFlood(t *testing.T) {
	for _, c := range []struct {
		name    string
		answer  http.HandlerFunc // nil: it is well
		kids    int
		planned int // a failed fetch is tried again by plan, at growing distance; the flood looks twice in 30 s
	}{
		{"well", nil, 10_000, 0},
		{"failing", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, 500, 2},
		{"hanging", hang, 500, 2},
		{"poisoned", body(`{"keys":[]}`), 500, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.works("before")
				if c.answer != nil {
					w.hr.serve(c.answer)
				}
				before := w.hr.count()
				w.flood("the first wave", c.kids)
				if n := w.hr.count() - before; n != 1 {
					t.Errorf("the first wave made %d fetches", n)
				}
				for _, pause := range []time.Duration{30 * time.Second, 30 * time.Second} {
					time.Sleep(pause)
					before := w.hr.count()
					w.flood("the next wave", 200)
					time.Sleep(fetchLimit + time.Second)
					w.flood("and the next", 200)
					if n := w.hr.count() - before; n < 1 || n > 1+c.planned {
						t.Errorf("%d fetches within 30 s", n)
					}
				}
			})
		})
	}
}

// TestUpstreamRotation: a new key works at its first token, a key that the issuer takes back works until the next refresh at
// most, and an issuer that shrinks to nothing usable is one that is broken.
func TestUpstreamRotation(t *testing.T) {
	inWorld(t, func(w *world) {
		w.works("at first")
		w.hr.publish("k1", "k2")
		w.answers("the first token of a new key", w.user(w.hr.key, "k2"), "", 0)
		w.answers("a token of the old key", w.user(w.hr.key, "k1"), "", 0)
		if n := w.hr.count(); n != 2 {
			t.Errorf("%d fetches", n)
		}
		w.hr.publish("k2")
		time.Sleep(5*time.Minute - time.Second)
		w.answers("a key taken back, before the refresh", w.user(w.hr.key, "k1"), "", 0)
		time.Sleep(time.Second)
		w.answers("the token that starts the refresh", w.user(w.hr.key, "k2"), "", 0)
		synctest.Wait()
		w.answers("a key taken back", w.user(w.hr.key, "k1"), countersign.CodeSubjectKey, 0)
		w.answers("the key that stayed", w.user(w.hr.key, "k2"), "", 0)

		// The same kid, another key: only what is published counts.
		old := w.hr.key
		w.hr.key = w.idp.key
		w.hr.publish("k2")
		time.Sleep(20 * time.Minute) // long enough that the next one waits for the refresh
		w.answers("a replaced key", w.user(old, "k2"), countersign.CodeSubjectToken, 0)
		w.answers("the key in its place", w.user(w.hr.key, "k2"), "", 0)
	})
}

// logged counts the lines of the log with this level about this issuer.
func (w *world) logged(level, issuer string) int {
	synctest.Wait()
	n := 0
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "level="+level) && strings.Contains(line, issuer) {
			n++
		}
	}
	return n
}

// TestUpstreamStale: keys serve 24 h after the last good fetch and not longer; a metric and one line of the log tell of it in
// time, another one when it is too late.
func TestUpstreamStale(t *testing.T) {
	inWorld(t, func(w *world) {
		w.works("at first")
		fetched := time.Now()
		w.hr.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		for hour := 1; hour <= 24; hour++ {
			time.Sleep(time.Hour)
			w.works(fmt.Sprintf("after %d h", hour))
			synctest.Wait() // a fetch may go on behind the answer
			w.wantMetrics(fmt.Sprintf("after %d h", hour), time.Since(fetched), 1, w.hr.count()-1)
			if warnings, errors := w.logged("WARN", hrURL), w.logged("ERROR", hrURL); warnings != 1 || errors != 0 {
				t.Fatalf("after %d h there are %d warnings and %d errors:\n%s", hour, warnings, errors, w.log)
			}
		}
		time.Sleep(time.Nanosecond)
		w.answers("after 24 h", w.user(w.hr.key, "k1"), countersign.CodeIssuerDown, fetchLimit)
		for range 3 {
			time.Sleep(time.Minute)
			w.answers("later", w.user(w.hr.key, "k1"), countersign.CodeIssuerDown, fetchLimit)
			w.neighbour("later")
		}
		if warnings, errors := w.logged("WARN", hrURL), w.logged("ERROR", hrURL); warnings != 1 || errors != 1 {
			t.Errorf("too late: %d warnings, %d errors:\n%s", warnings, errors, w.log)
		}
		w.hr.publish("k1")
		time.Sleep(30 * time.Second)
		w.works("when it is back")
		synctest.Wait()
		w.wantMetrics("when it is back", 0, 2, w.hr.count()-2)
		if n := w.logged("INFO", hrURL); n != 1 {
			t.Errorf("%d lines say that it is back:\n%s", n, w.log)
		}
		if n := w.logged("level", idpURL); n != 0 {
			t.Errorf("%d lines are about an issuer that did nothing wrong:\n%s", n, w.log)
		}
	})
}

// TestUpstreamsSideBySide: Run has every issuer's keys at hand before the first token, also while another one hangs.
func TestUpstreamsSideBySide(t *testing.T) {
	inWorld(t, func(w *world) {
		w.idp.serve(hang)
		w.wantMetrics("before", -1, 0, 0)
		ctx, cancel := context.WithCancel(w.t.Context()) // of the bubble
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait() // no time passes: idp hangs still
		if w.idp.count() != 1 || w.hr.count() != 1 {
			t.Errorf("%d and %d fetches", w.idp.count(), w.hr.count())
		}
		w.wantMetrics("at once", 0, 1, 0)
		w.answers("a good token", w.user(w.hr.key, "k1"), "", 0)
		time.Sleep(time.Hour)
		if n := w.hr.count(); n < 12 || n > 13 {
			t.Errorf("%d fetches in an hour without a token; every 5 min is planned", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
