package verify_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// revoker is an authority with a list of revocations, a verifier that polls it, and the clock of both.
type revoker struct {
	*authority
	*verify.Verifier
	t   *testing.T
	at  atomic.Int64
	log bytes.Buffer // of the verifier; it is written to by one goroutine at a time

	mu     sync.Mutex
	list   []map[string]any
	cursor int64
	status int                       // answer this instead
	change func(page map[string]any) // of what is signed
	typ    string
	asked  []string // since, and the If-None-Match
	hold   chan struct{}
}

func (r *revoker) clock() time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(r.at.Load()))
}

func (r *revoker) pass(d time.Duration) { r.at.Add(int64(d)) }

func newRevoker(t *testing.T, change func(*verify.Config)) *revoker {
	t.Helper()
	r := &revoker{authority: newAuthority(), t: t, typ: "revocations+jwt"}
	t.Cleanup(r.Close)
	handler := http.HandlerFunc(r.answer)
	r.feed.Store(&handler)
	cfg := verify.Config{
		Issuer: r.URL, Audience: "inventory", Roots: r.roots(), Now: r.clock, Leeway: time.Second,
		Logger: slog.New(slog.NewTextHandler(&r.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	v, err := verify.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Verifier = v
	return r
}

// answer is one page with all that is revoked, as the contract in house.md has it.
func (r *revoker) answer(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, _ := strconv.ParseInt(req.URL.Query().Get("since"), 10, 64)
	r.asked = append(r.asked, fmt.Sprint(since, req.Header.Get("If-None-Match")))
	if r.hold != nil {
		<-r.hold
	}
	if r.status != 0 {
		w.WriteHeader(r.status)
		return
	}
	tag := fmt.Sprintf(`"%d-%d"`, since, len(r.list))
	if req.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	now := r.clock().Unix()
	page := map[string]any{
		"iss": r.URL, "iat": now, "exp": now + 300, "since": since, "cursor": max(r.cursor, since), "more": false, "revocations": r.list,
	}
	if r.list == nil {
		page["revocations"] = []any{}
	}
	if r.change != nil {
		r.change(page)
	}
	token, err := jwt.Sign(r.key, "ES256", "k1", r.typ, page)
	if err != nil {
		r.t.Error(err)
	}
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Type", "application/jwt")
	_, _ = w.Write([]byte(token))
}

func (r *revoker) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// revoke puts one into the list: before and until as they count now.
func (r *revoker) revoke(kind countersign.RevocationKind, value string) {
	now := r.clock()
	r.set(func() {
		r.cursor++
		r.list = append(r.list, map[string]any{
			"kind": string(kind), "value": value, "before": now.Unix(), "until": now.Add(time.Hour).Unix(),
		})
	})
}

func (r *revoker) requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

// token is a good one of the moment, but for these claims in pairs.
func (r *revoker) token(change ...any) string {
	r.t.Helper()
	c := maps.Clone(r.claims(r.clock()))
	c["exp"] = r.clock().Add(48 * time.Hour).Unix()
	for i := 0; i < len(change); i += 2 {
		c[change[i].(string)] = change[i+1]
	}
	return r.sign(r.t, "at+jwt", c)
}

func (r *revoker) want(token string, reason verify.Reason) {
	r.t.Helper()
	_, err := r.Verify(context.Background(), token)
	var e *verify.Error
	if errors.As(err, &e); (e == nil) != (reason == "") || e != nil && e.Reason != reason {
		r.t.Fatalf("got %v, want %q", err, reason)
	}
}

// settle lets the fetch that runs in the background end well.
func (r *revoker) settle() {
	for {
		if _, at := r.Fetched(); at.Equal(r.clock()) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestRevoked holds what each kind of revocation reaches.
func TestRevoked(t *testing.T) {
	type kind = countersign.RevocationKind
	for _, tt := range []struct {
		kind  kind
		value string
		hit   bool
	}{
		{countersign.RevokeJTI, "aaaa.bbbb", true},
		{countersign.RevokeJTI, "aaaa", true}, // what it was made from
		{countersign.RevokeJTI, "aaa", false},
		{countersign.RevokeJTI, "aaaa.bbbb.cccc", false}, // what was made from it
		{countersign.RevokeJTI, "bbbb", false},
		{countersign.RevokeTransaction, "t1", true},
		{countersign.RevokeTransaction, "t2", false},
		{countersign.RevokeSession, countersign.RevokedSession(idp, "s1"), true},
		{countersign.RevokeSession, countersign.RevokedSession("https://other.example", "s1"), false},
		{countersign.RevokeSession, "s1", false},
		{countersign.RevokeSubject, countersign.RevokedSubject("alice"), true},
		{countersign.RevokeSubject, countersign.RevokedSubject("Alice"), false},
		{countersign.RevokeSubject, "alice", false},
		{countersign.RevokeService, orders, true},
		{countersign.RevokeService, gateway, true},                            // in its act
		{countersign.RevokeService, "spiffe://shop.internal/inventory", true}, // its audience
		{countersign.RevokeService, "spiffe://shop.internal/reports", false},
	} {
		t.Run(fmt.Sprint(tt.kind, " ", tt.value), func(t *testing.T) {
			r := newRevoker(t, nil)
			token := r.token()
			r.revoke(tt.kind, tt.value)
			if !tt.hit {
				r.want(token, "")
				return
			}
			r.want(token, verify.ReasonRevoked)
			r.pass(time.Second)
			byTime := tt.kind == countersign.RevokeSubject || tt.kind == countersign.RevokeService
			if later := r.token(); byTime {
				r.want(later, "") // issued after that
			} else {
				r.want(later, verify.ReasonRevoked)
			}
		})
	}
}

// TestFeedPolls: the list is waited for on the first call and after a silence; while tokens come it is fetched beside them,
// every 5 s.
func TestFeedPolls(t *testing.T) {
	r := newRevoker(t, nil)
	token := r.token()
	for range 100 {
		r.want(token, "")
	}
	r.revoke(countersign.RevokeTransaction, "t1")
	r.pass(5*time.Second - 1)
	for range 100 {
		r.want(token, "")
	}
	if n := len(r.requests()); n != 1 {
		t.Fatalf("%d requests in 5 s", n)
	}
	r.pass(1)
	hold := make(chan struct{})
	r.set(func() { r.hold = hold })
	r.want(token, "") // starts the fetch and does not wait for it
	close(hold)
	r.settle()
	r.want(token, verify.ReasonRevoked)

	quiet := newRevoker(t, nil)
	token = quiet.token()
	quiet.want(token, "")
	quiet.revoke(countersign.RevokeTransaction, "t1")
	quiet.pass(10 * time.Second)
	quiet.want(token, verify.ReasonRevoked)
}

// TestFeedIsStale holds MaxStale: tokens are taken by the old list that long and no longer, and none without a list.
func TestFeedIsStale(t *testing.T) {
	r := newRevoker(t, nil)
	token := r.token()
	r.set(func() { r.status = 503 })
	r.want(token, verify.ReasonRevocations)
	_, err := r.Verify(t.Context(), token)
	var e *verify.Error
	if !errors.As(err, &e) || !e.Temporary() || errors.Unwrap(e) == nil {
		t.Error(err)
	}
	r.pass(5 * time.Second)
	r.set(func() { r.status = 0 })
	r.revoke(countersign.RevokeTransaction, "t2")
	r.want(token, "")
	r.set(func() { r.status, r.asked = 503, nil })
	for range 30 {
		r.pass(10 * time.Second)
		r.want(token, "")
		r.want(r.token("txn", "t2"), verify.ReasonRevoked)
	}
	if n := len(r.requests()); n > 30 {
		t.Errorf("%d requests in 30 times 10 s", n)
	}
	r.pass(1)
	r.want(token, verify.ReasonRevocations)
	r.set(func() { r.status = 0 })
	r.pass(5 * time.Second)
	r.want(token, "")
	if log := r.log.String(); strings.Count(log, "level=WARN") != 2 || strings.Count(log, "level=INFO") != 2 {
		t.Errorf("not one line for each change:\n%s", log)
	}
}

// TestFeedRefuses: an answer that is not exactly what was asked for is none.
func TestFeedRefuses(t *testing.T) {
	set := func(name string, value any) func(*revoker) {
		return func(r *revoker) {
			r.change = func(page map[string]any) {
				if page[name] = value; value == nil {
					delete(page, name)
				}
			}
		}
	}
	entry := func(name string, value any) func(*revoker) {
		return func(r *revoker) {
			e := map[string]any{"kind": "sub", "value": "x", "before": 1, "until": 1_900_000_000}
			if e[name] = value; value == nil {
				delete(e, name)
			}
			r.list = append(r.list, e)
		}
	}
	now := time.Unix(1_800_000_000, 0).Unix()
	for name, change := range map[string]func(*revoker){
		"typ at+jwt":                 func(r *revoker) { r.typ = "at+jwt" },
		"typ JWT":                    func(r *revoker) { r.typ = "JWT" },
		"another issuer":             set("iss", "https://evil.example"),
		"no issuer":                  set("iss", nil),
		"of the future":              set("iat", now+2),
		"no iat":                     set("iat", nil),
		"over":                       set("exp", now-1),
		"no exp":                     set("exp", nil),
		"of another question":        set("since", 7),
		"no since":                   set("since", nil),
		"a negative cursor":          set("cursor", -1),
		"a cursor that is a string":  set("cursor", "1"),
		"no cursor":                  set("cursor", nil),
		"more and no way on":         set("more", true),
		"more as a string":           set("more", "true"),
		"no more":                    set("more", nil),
		"no revocations":             set("revocations", nil),
		"revocations null":           set("revocations", []any{nil}),
		"a revocation as a string":   set("revocations", []any{"x"}),
		"an unknown kind":            entry("kind", "planet"),
		"a kind in upper case":       entry("kind", "SUB"),
		"no kind":                    entry("kind", nil),
		"no value":                   entry("value", nil),
		"an empty value":             entry("value", ""),
		"a huge value":               entry("value", strings.Repeat("x", 1025)),
		"no before":                  entry("before", nil),
		"a before that is no time":   entry("before", "1"),
		"no until":                   entry("until", nil),
		"not found":                  func(r *revoker) { r.status = 404 },
		"not modified, unasked":      func(r *revoker) { r.status = 304 },
		"moved":                      func(r *revoker) { r.status = 302 },
		"empty":                      func(r *revoker) { r.status = 200 },
		"by a key that is no longer": func(r *revoker) { r.key = newKey() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRevoker(t, nil)
			token := r.token()
			r.set(func() { change(r) })
			r.want(token, verify.ReasonRevocations)
		})
	}
	t.Run("an access token", func(t *testing.T) {
		r := newRevoker(t, nil)
		token := r.token()
		handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(token)) })
		r.feed.Store(&handler)
		r.want(token, verify.ReasonRevocations)
	})
	t.Run("RS256", func(t *testing.T) {
		r := newRevoker(t, nil)
		now := r.clock().Unix()
		list, err := jwt.Sign(rsaKey(), "RS256", "k2", "revocations+jwt", map[string]any{
			"iss": r.URL, "iat": now, "exp": now + 300, "since": 0, "cursor": 0, "more": false, "revocations": []any{}})
		if err != nil {
			t.Fatal(err)
		}
		handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(list)) })
		r.feed.Store(&handler)
		r.want(r.token(), verify.ReasonRevocations)
	})
	t.Run("endless", func(t *testing.T) {
		r := newRevoker(t, nil)
		handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(bytes.Repeat([]byte("a."), 1<<20)) })
		r.feed.Store(&handler)
		r.want(r.token(), verify.ReasonRevocations)
	})
	t.Run("the list as an access token", func(t *testing.T) {
		r := newRevoker(t, nil)
		c := r.claims(r.clock())
		_, err := r.Verify(t.Context(), r.sign(t, "revocations+jwt", c))
		wantReason(t, err, verify.ReasonType)
	})
}

// TestFeedForgetsNothing: what was revoked stays so, whatever later answers say, until no such token can be alive.
func TestFeedForgetsNothing(t *testing.T) {
	r := newRevoker(t, nil)
	token := r.token()
	r.revoke(countersign.RevokeTransaction, "t1")
	r.want(token, verify.ReasonRevoked)
	r.pass(10 * time.Second)
	r.set(func() { r.list = nil; r.change = func(page map[string]any) { page["cursor"] = 0 } })
	r.want(token, verify.ReasonRevoked)
	r.pass(10 * time.Second)
	r.want(token, verify.ReasonRevoked)
	if got := fmt.Sprint(r.requests()); !strings.HasPrefix(got, "[0 1 1") {
		t.Errorf("asked with %s: the cursor went back", got)
	}
	// An older answer, replayed: it is not taken, and what is known counts on.
	r.pass(10 * time.Second)
	stamp := r.clock().Add(-95 * time.Second).Unix()
	r.revoke(countersign.RevokeTransaction, "t9")
	r.set(func() { r.change = func(page map[string]any) { page["iat"], page["exp"] = stamp, stamp+300 } })
	r.want(token, verify.ReasonRevoked)
	if _, at := r.Fetched(); at.Equal(r.clock()) {
		t.Error("an older answer was taken")
	}
	r.set(func() { r.change = nil })
	r.pass(time.Hour - 30*time.Second + time.Minute)
	r.want(token, verify.ReasonRevoked)
	r.pass(10 * time.Second)
	r.want(token, "")
}

// TestFeedPages: `more` is asked for at once.
func TestFeedPages(t *testing.T) {
	r := newRevoker(t, nil)
	r.set(func() {
		r.change = func(page map[string]any) {
			n := page["since"].(int64)
			if n < 5 {
				page["more"], page["cursor"] = true, n+1
			}
			page["revocations"] = []any{map[string]any{"kind": "txn", "value": fmt.Sprint("t", n), "until": 1_900_000_000}}
		}
	})
	for n := range 6 {
		r.want(r.token("txn", fmt.Sprint("t", n)), verify.ReasonRevoked)
	}
	r.want(r.token("txn", "t6"), "")
	if got := fmt.Sprint(r.requests()); got != "[0 1 2 3 4 5]" {
		t.Error(got)
	}
	// A list that never ends is no list, but what it said counts.
	endless := newRevoker(t, nil)
	endless.set(func() {
		endless.change = func(page map[string]any) { page["more"], page["cursor"] = true, page["since"].(int64)+1 }
	})
	endless.want(endless.token(), verify.ReasonRevocations)
	if n := len(endless.requests()); n != 256 {
		t.Errorf("%d requests", n)
	}
}

// TestFeedNotModified: an unchanged list is not sent again, but signed anew before the last one ends.
func TestFeedNotModified(t *testing.T) {
	r := newRevoker(t, nil)
	token := r.token()
	for range 32 {
		r.want(token, "")
		r.pass(10 * time.Second)
	}
	asked := r.requests()
	for i, got := range asked {
		if want := map[bool]string{true: "0", false: `0"0-0"`}[i == 0 || i == 30]; got != want {
			t.Errorf("request %d after %d s: %q, want %q", i, 10*i, got, want)
		}
	}
	if len(asked) != 32 {
		t.Error(len(asked))
	}
}

// TestNoFeed: an issuer whose metadata names no list has none, which is believed for a minute; once it has one, it has one.
func TestNoFeed(t *testing.T) {
	r := newRevoker(t, nil)
	handler := r.feed.Swap(nil)
	token := r.token()
	for range 100 {
		r.want(token, "")
		r.pass(500 * time.Millisecond)
	}
	if n := len(r.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	if n := r.described.Load(); n != 2 { // for the keys and for the list
		t.Errorf("the metadata was read %d times in 50 s", n)
	}
	r.revoke(countersign.RevokeTransaction, "t1")
	r.feed.Store(handler)
	r.pass(10 * time.Second) // a minute after it was looked for
	r.want(token, "")        // looks for it
	r.settle()
	r.want(token, verify.ReasonRevoked)
	r.feed.Store(nil)
	r.pass(10 * time.Second)
	other := r.token("txn", "t2")
	r.want(other, "")
	r.pass(5 * time.Minute)
	r.want(other, verify.ReasonRevocations)
}

// TestFeedConfigured: with RevocationsURI nothing is discovered, and with JWKSURI alone the list still is.
func TestFeedConfigured(t *testing.T) {
	a := newRevoker(t, nil)
	for _, uri := range []string{"", a.URL + "/oauth2/revocations"} {
		r := newRevoker(t, func(cfg *verify.Config) { cfg.JWKSURI, cfg.RevocationsURI = cfg.Issuer+"/oauth2/jwks", "" })
		if uri != "" {
			r = newRevoker(t, func(cfg *verify.Config) { cfg.RevocationsURI = cfg.Issuer + "/oauth2/revocations?tenant=1" })
		}
		r.revoke(countersign.RevokeTransaction, "t1")
		r.want(r.token(), verify.ReasonRevoked)
	}
	for _, cfg := range []verify.Config{
		{RevocationsURI: "http://cs.shop.internal/revoked"}, {Poll: time.Millisecond}, {Poll: time.Hour},
		{MaxStale: time.Second}, {MaxStale: 25 * time.Hour}, {MaxStale: -1}, {Audiences: []string{"x"}}, {ScopeClaim: "scp"}, {Nonces: true},
	} {
		cfg.Issuer, cfg.Audience = "https://cs.shop.internal", "orders"
		if _, err := verify.New(cfg); err == nil {
			t.Errorf("%+v: taken", cfg)
		}
	}
}

// TestFeedSingleFlight: callers who come at the same time share one fetch, and one who gives up does not end it.
func TestFeedSingleFlight(t *testing.T) {
	r := newRevoker(t, nil)
	token := r.token()
	hold := make(chan struct{})
	r.set(func() { r.hold = hold })
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := r.Verify(ctx, token); !errors.Is(err, gone) { // nothing is known yet
		t.Error(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := r.Verify(context.Background(), token); err != nil {
				t.Error(err)
			}
		})
	}
	close(hold)
	wg.Wait()
	if n := len(r.requests()); n != 1 {
		t.Errorf("%d requests", n)
	}
	r.pass(10 * time.Second)
	block := make(chan struct{})
	r.set(func() { r.hold = block })
	if _, err := r.Verify(ctx, token); err != nil {
		t.Errorf("who can't wait is not judged by the list at hand: %v", err)
	}
	close(block)
	r.settle()
}

// TestFeedIsDown: once the issuer is known to be down nobody waits for it, until the last list is too old.
func TestFeedIsDown(t *testing.T) {
	r := newRevoker(t, nil)
	r.revoke(countersign.RevokeTransaction, "t2")
	token, revoked := r.token(), r.token("txn", "t2")
	r.want(token, "")
	r.set(func() { r.status = 503 })
	r.pass(10 * time.Second)
	r.want(token, "") // waits, and finds it down
	hold := make(chan struct{})
	r.set(func() { r.status, r.hold = 0, hold })
	r.pass(10 * time.Second)
	r.want(token, "")
	r.want(revoked, verify.ReasonRevoked)
	close(hold)
	r.settle() // would never end if they had waited: the request is given up after 5 s
}

// TestFlood: strangers' kids cost the issuer one fetch in 30 s, and no good token fails (issue 4).
func TestFlood(t *testing.T) {
	r := newRevoker(t, nil)
	good := r.token()
	r.want(good, "")
	before := r.fetches.Load()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 250 {
				token, err := jwt.Sign(r.key, "ES256", fmt.Sprintf("invented-%d-%d", i, j), "at+jwt", r.claims(r.clock()))
				if err != nil {
					t.Error(err)
				}
				if _, err := r.Verify(context.Background(), token); err == nil {
					t.Error("an invented kid is taken")
				}
				if _, err := r.Verify(context.Background(), good); err != nil {
					t.Errorf("a good token fails: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if n := r.fetches.Load() - before; n != 1 {
		t.Errorf("%d fetches", n)
	}
}
