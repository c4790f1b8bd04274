package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/pace"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

// crowded stands before a daemon, with its certificate, and puts off so many requests for certificates as the pacer does.
type crowded struct {
	*httptest.Server
	off, asked atomic.Int32
	after      atomic.Int32 // Retry-After, in seconds
}

func crowdBefore(t *testing.T, i *instance) *crowded {
	t.Helper()
	id, err := identity.Load(filepath.Join(i.dir, "server"))
	if err != nil {
		t.Fatal(err)
	}
	pool := id.Pool()
	forward := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: "localhost:" + i.port()}) },
		Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}},
	}
	c := &crowded{}
	c.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/certificates" && c.asked.Add(1) > 0 && c.off.Add(-1) >= 0 {
			w.Header().Set("Content-Type", wire.Problem)
			w.Header().Set("Retry-After", fmt.Sprint(c.after.Load()))
			w.WriteHeader(http.StatusServiceUnavailable)
			_ = json.NewEncoder(w).Encode(wire.Error{Status: 503, Code: countersign.CodePaced, Detail: "crowded"})
			return
		}
		forward.ServeHTTP(w, r)
	}))
	shown := id.TLS()
	for _, root := range id.Roots { // who joins knows the root by its fingerprint alone
		shown.Certificate = append(shown.Certificate, root.Raw)
	}
	c.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{shown}}
	c.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.StartTLS()
	t.Cleanup(c.Close)
	t.Cleanup(forward.Transport.(*http.Transport).CloseIdleConnections)
	return c
}

func (c *crowded) port() string { return c.URL[strings.LastIndex(c.URL, ":")+1:] }

func (c *crowded) puts(off, after int32) {
	c.asked.Store(0)
	c.off.Store(off)
	c.after.Store(after)
}

// Who is put off comes again at his place and is served; for one that is too far away no command waits; Ctrl-C ends the waiting.
func TestCommandsWaitForTheirPlace(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	i.apply(t, "trust_domain: shop.internal\nservices: [{name: orders}]\n")
	c := crowdBefore(t, i)
	var token struct{ Join string }
	i.ask(t, &token, "join-token", "create", "orders")
	join, out := strings.Replace(token.Join, ":"+i.port()+"#", ":"+c.port()+"#", 1), filepath.Join(t.TempDir(), "orders")

	c.puts(9, 121)
	f := refused(t, exitRemote, "join", join, "--out", out)
	if f.Code != countersign.CodePaced || !strings.Contains(f.Next, "in 2m1s") && !strings.Contains(f.Next, "in 2m2s") || c.asked.Load() != 3 { // in three forms
		t.Errorf("a place in 121 s: asked %d times, %+v", c.asked.Load(), f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.puts(9, 60)
	go func() {
		for c.asked.Load() == 0 && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond) // it waits by then, most likely; TestWaitIsBounded is sure
		cancel()
	}()
	if code := run(ctx, []string{"join", join, "--out", out}, strings.NewReader(""), io.Discard, io.Discard); code != exitInterrupted || c.asked.Load() != 1 {
		t.Errorf("Ctrl-C while it waits: exit code %d, asked %d times", code, c.asked.Load())
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("who was not served has an identity directory")
	}

	c.puts(1, 1)
	got := runHere(t, "join", join, "--out", out, "-o", "json")
	var shown shownIdentity
	if json.Unmarshal([]byte(got.stdout), &shown) != nil || got.code != exitOK || got.stderr != "" || c.asked.Load() != 2 {
		t.Fatalf("join: asked %d times, exit code %d\n%s%s", c.asked.Load(), got.code, got.stdout, got.stderr)
	}
	c.puts(1, 1) // the proxy ends TLS: each try has a proof of its own
	if got = runHere(t, "cert", "renew", "--out", out); got.code != exitOK || got.stderr != "" || !strings.Contains(got.stdout, "orders") {
		t.Errorf("renew: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}

// By the real pacer who waits gets his place, and nobody waits for longer than the bound in all, whatever he is told.
func TestWaitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pacer, err := pace.New(pace.Config{Work: 1})
		if err != nil {
			t.Fatal(err)
		}
		leave, err := pacer.Enter(t.Context(), pace.Request{})
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Second, leave)
		a, asked := &app{err: io.Discard, output: defaultOutput}, 0
		ask := func() (wire.Certificate, error) {
			asked++
			leave, err := pacer.Enter(t.Context(), pace.Request{Line: pace.Enrolments, Key: "me"})
			if err != nil {
				return wire.Certificate{}, pacedAnswer(countersign.AsError(err).RetryAfter)
			}
			leave()
			return wire.Certificate{Serial: "1"}, nil
		}
		if cert, err := a.atItsPlace(t.Context(), ask); err != nil || cert.Serial != "1" || asked < 2 {
			t.Errorf("asked %d times: %v", asked, err)
		}
		for _, told := range []time.Duration{0, time.Second, 50 * time.Second, waitMost, time.Hour} {
			begun := time.Now()
			_, err := a.atItsPlace(t.Context(), func() (wire.Certificate, error) { return wire.Certificate{}, pacedAnswer(told) })
			if f := explain(err); time.Since(begun) > waitMost || f.Code != countersign.CodePaced || !strings.HasPrefix(f.Next, "run this again in ") {
				t.Errorf("told %s each time: %s, %v", told, time.Since(begun), err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begun := time.Now()
		_, err = a.atItsPlace(ctx, func() (wire.Certificate, error) { return wire.Certificate{}, pacedAnswer(time.Minute) })
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != 5*time.Second {
			t.Errorf("it waits for %s, though its context ended after 5 s: %v", time.Since(begun), err)
		}
		asked = 0
		_, err = a.atItsPlace(t.Context(), func() (wire.Certificate, error) {
			asked++
			return wire.Certificate{}, &client.APIError{Status: 503, RetryAfter: time.Second, Problem: wire.Error{Code: countersign.CodeBusy}}
		})
		if err == nil || asked != 1 {
			t.Errorf("asked %d times for something that may have been done", asked)
		}
	})
}

func pacedAnswer(after time.Duration) error {
	return &client.APIError{Status: 503, RetryAfter: after, Problem: wire.Error{Status: 503, Code: countersign.CodePaced}}
}
