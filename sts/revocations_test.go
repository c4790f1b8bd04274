package sts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// Each kind reaches what it names and nothing else: at the exchange, at introspection, in the feed.
func TestRevoke(t *testing.T) {
	for _, c := range []struct {
		name  string
		of    func(t *testing.T, first, second string) RevokeRequest
		entry bool // the user's own token dies too
		first bool // the first hop's token dies
	}{
		{"the jti of the second hop", func(t *testing.T, _, second string) RevokeRequest {
			return RevokeRequest{JTI: claimOf(t, second, "jti")}
		}, false, false},
		{"the jti of the first hop", func(t *testing.T, first, _ string) RevokeRequest { return RevokeRequest{JTI: claimOf(t, first, "jti")} }, false, true},
		{"txn", func(t *testing.T, first, _ string) RevokeRequest {
			return RevokeRequest{Transaction: claimOf(t, first, "txn")}
		}, false, true},
		{"sub", func(*testing.T, string, string) RevokeRequest { return RevokeRequest{Subject: "alice"} }, true, true},
		{"sid", func(t *testing.T, first, _ string) RevokeRequest {
			return RevokeRequest{SessionID: "s1", Issuer: claimOf(t, first, "sub_iss")}
		}, true, true},
		{"the client by its name", func(*testing.T, string, string) RevokeRequest { return RevokeRequest{Service: "gateway"} }, false, true},
		{"an audience by its ID", func(*testing.T, string, string) RevokeRequest {
			return RevokeRequest{Service: idOf("inventory").String()}
		}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := openHouse(t)
			user, first, second := h.chain(map[string]any{"sid": "s1"})
			_, otherFirst, otherSecond := h.chain(map[string]any{"sub": "bob", "sid": "s2"})
			spared := !strings.Contains(c.name, "client") && !strings.Contains(c.name, "audience")
			h.pass(2 * time.Second)
			made := h.revoke(c.of(t, first, second))
			h.pass(2 * time.Second)
			if made.By != operator().Name || !h.inFeed(made) {
				t.Errorf("%+v is not in the feed", made)
			}
			want := func(dead bool) countersign.Code {
				if dead {
					return countersign.CodeRevoked
				}
				return ""
			}
			_, err := h.Token(t.Context(), as("gateway"), exchangeOf(user, "orders"))
			if codeOf(err) != want(c.entry) {
				t.Errorf("the user's token: %v", err)
			}
			if _, err = h.Token(t.Context(), as("orders"), exchangeOf(first, "inventory")); codeOf(err) != want(c.first) {
				t.Errorf("the first hop's token: %v", err)
			}
			if h.introspect(as("orders"), first)["active"] != !c.first || h.introspect(as("inventory"), second)["active"] != false {
				t.Errorf("introspection: %v, %v", h.introspect(as("orders"), first), h.introspect(as("inventory"), second))
			}
			if spared {
				h.must("orders", exchangeOf(otherFirst, "inventory"))
				if h.introspect(as("inventory"), otherSecond)["active"] != true {
					t.Error("another user's token is reached")
				}
			}
			if !c.entry {
				return
			}
			h.must("gateway", exchangeOf(h.user(map[string]any{"sid": "s3"}), "orders")) // who logs in again
		})
	}
}

// The denial is recorded with its step, and explained alike.
func TestRevokedIsExplained(t *testing.T) {
	h := openHouse(t)
	_, first, _ := h.chain(nil)
	h.revoke(RevokeRequest{JTI: claimOf(t, first, "jti"), Reason: "stolen"})
	h.refuses("revoked", as("orders"), exchangeOf(first, "inventory"), countersign.CodeRevoked)
	denials := h.records("token.denied")
	if len(denials) != 1 || !strings.Contains(string(denials[0].Detail), `"name":"subject-token","ok":false,"code":"CS3080"`) ||
		strings.Contains(string(denials[0].Detail), `"name":"call"`) {
		t.Errorf("%+v", denials)
	}
	e, err := h.Explain(t.Context(), ExplainRequest{From: "orders", To: "inventory", Token: first})
	if err != nil || e.Allowed || e.Steps[len(e.Steps)-1].Code != countersign.CodeRevoked || e.Steps[len(e.Steps)-1].Hint == "" {
		t.Errorf("%+v, %v", e, err)
	}
	if got := h.outcomes(); !slices.Equal(got, []audit.Outcome{audit.Intent, audit.OK}) {
		t.Errorf("recorded: %v", got)
	}
	page, next, err := h.Revocations(t.Context(), time.Time{}, 10)
	if err != nil || len(page) != 1 || page[0].Reason != "stolen" || !next.IsZero() {
		t.Errorf("%+v, %v, %v", page, next, err)
	}
}

// A token of the second of the revocation dies with it, and none is born dead: who asks is told to repeat.
func TestRevokeInTheSameSecond(t *testing.T) {
	h := openHouse(t)
	_, first, second := h.chain(nil)
	h.revoke(RevokeRequest{Subject: "alice"})
	h.refuses("of the same second", as("orders"), exchangeOf(first, "inventory"), countersign.CodeRevoked)
	if h.introspect(as("inventory"), second)["active"] != false {
		t.Error("a token of the same second is active")
	}
	h.pass(time.Second)
	h.refuses("an old login", as("orders"), exchangeOf(first, "inventory"), countersign.CodeRevoked)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))

	h.revoke(RevokeRequest{Service: "orders"})
	h.refuses("for a service that is being revoked", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeRevokedNow)
	h.refuses("by a machine", as("reports"), Request{GrantType: GrantClientCredentials}, countersign.CodeRevokedNow)
	h.pass(time.Second)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	h.must("reports", Request{GrantType: GrantClientCredentials})
}

// While a revocation is being stored its name is refused whatever the time says, so that no token gets an iat between the
// Before that is written and the answer.
func TestRevokeWhileItIsStored(t *testing.T) {
	h := openHouse(t)
	user, first, _ := h.chain(nil)
	h.pass(time.Second)
	asked := 0
	h.hook(func() error {
		asked++
		h.pass(3 * time.Second) // a slow disk: Before is in the past
		h.refuses("a fresh login meanwhile", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeRevoked)
		h.refuses("a relay token meanwhile", as("orders"), exchangeOf(first, "inventory"), countersign.CodeRevoked)
		return nil
	}, nil)
	made := h.revoke(RevokeRequest{Subject: "alice"})
	h.refuses("the old login", as("gateway"), exchangeOf(user, "orders"), countersign.CodeRevoked)
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	if asked != 1 || h.now().Sub(made.Before) < 3*time.Second {
		t.Errorf("stored %d times, before %s", asked, made.Before)
	}
}

// A revocation that comes while an exchange waits for the issuer's keys wins.
func TestRevokeDuringAnExchange(t *testing.T) {
	h := openHouse(t)
	user := h.user(nil)
	var made bool
	h.cfg.Policy = func() *countersign.Policy { // asked at the beginning of each judgment, and at its end
		if p := h.policy.Load(); made {
			return p
		}
		made = true
		h.cfg.Policy = h.policy.Load
		h.revoke(RevokeRequest{Subject: "alice"})
		return h.policy.Load()
	}
	h.refuses("revoked meanwhile", as("gateway"), exchangeOf(user, "orders"), countersign.CodeRevoked)

	// After the verdict, right before minting.
	other := h.user(map[string]any{"sub": "bob"})
	x, err := h.decide(t.Context(), as("gateway"), exchangeOf(other, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	h.revoke(RevokeRequest{Subject: "bob"})
	if err := h.stillGood(x); codeOf(err) != countersign.CodeRevoked {
		t.Errorf("right before minting: %v", err)
	}
}

// Crash points: what is left of a revocation in the log and the store, and what the next start makes of it.
func TestRevokeCrashes(t *testing.T) {
	died := errors.New("the process is gone")
	for _, c := range []struct {
		name          string
		before, after func() error
		code          countersign.Code
		here          bool // in force in the process that took it
		restarted     bool // in force after a restart
		outcomes      string
	}{
		{"before the record", func() error { panic(died) }, nil, "", false, true, "intent ok"},
		{"after the record, before the outcome", nil, func() error { panic(died) }, "", true, true, "intent ok"},
		{"the store is full", func() error { return storage.ErrBusy }, nil, countersign.CodeBusy, false, false, "intent failed"},
		{"unknown, and not stored", func() error { return storage.ErrUnknown }, nil, countersign.CodeUnknownOutcome, true, true, "intent ok"},
		{"unknown, and stored", nil, func() error { return storage.ErrUnknown }, countersign.CodeUnknownOutcome, true, true, "intent ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := openHouse(t)
			_, first, _ := h.chain(nil)
			h.pass(time.Second)
			h.hook(c.before, c.after)
			func() {
				defer func() {
					if p := recover(); p != nil && p != died {
						panic(p)
					}
				}()
				if _, err := h.Revoke(t.Context(), operator(), RevokeRequest{Subject: "alice"}); codeOf(err) != c.code {
					t.Errorf("answered %v", err)
				}
				if _, err := h.Token(t.Context(), as("orders"), exchangeOf(first, "inventory")); (codeOf(err) == countersign.CodeRevoked) != c.here {
					t.Errorf("afterwards, here: %v", err)
				}
			}()
			h.cfg.Store = h.store
			head := h.log.Head().Seq
			if err := h.moveMark(t.Context(), head); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second start finds nothing to do
				h.again(h.store)
				if _, err := h.Token(t.Context(), as("orders"), exchangeOf(first, "inventory")); (codeOf(err) == countersign.CodeRevoked) != c.restarted {
					t.Errorf("after a restart: %v", err)
				}
				if got := strings.Trim(fmt.Sprint(h.outcomes()), "[]"); got != c.outcomes {
					t.Errorf("the audit log has %s, want %s", got, c.outcomes)
				}
			}
			h.pass(time.Second)
			h.must("gateway", exchangeOf(h.user(nil), "orders"))
		})
	}
}

// What a process left open it settles itself, as soon as store and log answer again: the record, the outcome, the mark.
func TestLeftRevocationsAreSettled(t *testing.T) {
	for name, c := range map[string]struct{ before, after func() error }{
		"unknown, and not stored": {func() error { return storage.ErrUnknown }, nil},
		"unknown, and stored":     {nil, func() error { return storage.ErrUnknown }},
	} {
		h := openHouse(t)
		h.hook(c.before, c.after)
		if _, err := h.Revoke(t.Context(), operator(), RevokeRequest{JTI: "x", Reason: "why"}); codeOf(err) != countersign.CodeUnknownOutcome {
			t.Fatalf("%s: %v", name, err)
		}
		if n := len(h.revocations.leftovers()); n != 1 || h.revocations.settled(100) == 100 {
			t.Fatalf("%s: %d were left, and the mark would be %d", name, n, h.revocations.settled(100))
		}
		if c.before != nil { // it goes on
			if err := h.settleLeft(t.Context()); err == nil {
				t.Errorf("%s: settled while the store does not answer", name)
			}
		}
		h.cfg.Store = h.store
		for range 2 {
			if err := h.settleLeft(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		entry, err := revocationsTable().Get(t.Context(), h.store, "jti/x")
		if err != nil || entry.Value.Reason != "why" {
			t.Errorf("%s: %+v, %v", name, entry.Value, err)
		}
		if got := fmt.Sprint(h.outcomes()); got != "[intent ok]" || len(h.revocations.leftovers()) != 0 || h.revocations.settled(100) != 100 {
			t.Errorf("%s: %s, the mark would be %d", name, got, h.revocations.settled(100))
		}
		if got := values(t, h.page(0)); !slices.Equal(got, []string{"x"}) {
			t.Errorf("%s: the feed has %v", name, got)
		}
	}
}

// The housekeeping does that by itself.
func TestLeftRevocationsAreSettledInTime(t *testing.T) {
	inWorld(t, func(w *world) {
		store := w.cfg.Store
		w.cfg.Store = &hookedStore{Store: store, after: func() error { return storage.ErrUnknown }}
		if _, err := w.Revoke(w.t.Context(), operator(), RevokeRequest{JTI: "x"}); codeOf(err) != countersign.CodeUnknownOutcome {
			t.Fatal(err)
		}
		w.cfg.Store = store
		ctx, stop := context.WithCancel(w.t.Context())
		done := make(chan error)
		go func() { done <- w.FollowRevocations(ctx) }()
		time.Sleep(tick + time.Second)
		if n := len(w.revocations.leftovers()); n != 0 {
			t.Errorf("%d are still left", n)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// No audit record, no revocation.
func TestRevokeWithoutTheLog(t *testing.T) {
	h := openHouse(t)
	if err := h.log.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(t.Context(), operator(), RevokeRequest{Subject: "alice"}); err == nil {
		t.Error("revoked without a record")
	}
	if page, _, err := h.Revocations(t.Context(), time.Time{}, 10); err != nil || len(page) != 0 {
		t.Errorf("%v, %v", page, err)
	}
}

// A set that can't be read is no empty set.
func TestRevocationsUnread(t *testing.T) {
	h := openHouse(t)
	put, err := revocationsTable().Put("jti/x", revocation{Revocation: countersign.Revocation{Kind: "txn", Value: "x"}}, time.Time{}, storage.Cond{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.store.Apply(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	cfg := h.cfg
	cfg.Registerer = nil
	if _, err := New(t.Context(), cfg); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("opened with a record under the wrong key: %v", err)
	}
	if err := h.revocations.follow(t.Context(), h.store, func(error) {}); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("followed it: %v", err)
	}
	h.refuses("an exchange", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeRevocations)
	if _, err := h.Introspect(as("gateway"), TokenForm{Token: h.user(nil)}); err != nil {
		t.Errorf("a token that is not ours is not active, whatever is revoked: %v", err)
	}
	if _, err := h.Feed(0); codeOf(err) != countersign.CodeRevocations {
		t.Errorf("the feed: %v", err)
	}
	h.revocations.view.Store(nil)
	h.revocations.stale.Store(false)
	h.refuses("before anything was read", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeRevocations)
}

// What another node revokes is refused here soon, and what is over is removed.
func TestRevocationsAreFollowed(t *testing.T) {
	h := openHouse(t)
	cfg := h.cfg
	cfg.Registerer = nil
	other, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.FollowRevocations(ctx) }()
	_, first, _ := h.chain(nil)
	made, err := other.Revoke(t.Context(), operator(), RevokeRequest{Transaction: claimOf(t, first, "txn")})
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := h.Token(t.Context(), as("orders"), exchangeOf(first, "inventory")); codeOf(err) == countersign.CodeRevoked {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	h.clock.Store(int64(made.Until.Sub(noon)))
	if n, err := h.store.Prune(t.Context(), revocationsTable().Name, 10); n != 1 || err != nil {
		t.Errorf("%d records were over, %v", n, err)
	}
	if page, _, _ := h.Revocations(t.Context(), time.Time{}, 10); len(page) != 0 {
		t.Errorf("still listed: %+v", page)
	}
}

// A store that can't be read for a while is believed for a while, and no longer: what it has by then is not known.
func TestRevocationsUnreadForAWhile(t *testing.T) {
	h := openHouse(t)
	store := &hookedStore{Store: h.store}
	store.broken.Store(true)
	h.cfg.Store = store
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.FollowRevocations(ctx) }()
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
	h.pass(patience)
	until := func(code countersign.Code) {
		for {
			if _, err := h.Token(t.Context(), as("gateway"), exchangeOf(h.user(nil), "orders")); codeOf(err) == code && (err == nil) == (code == "") {
				return
			}
			h.pass(time.Second)
			time.Sleep(20 * time.Millisecond)
		}
	}
	until(countersign.CodeRevocations)
	store.broken.Store(false)
	until("")
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A revoked actor token proves nobody.
func TestRevokedActor(t *testing.T) {
	h := openHouse(t)
	g := h.graph()
	g.call("gateway", "billing").Machine = []string{"bill"}
	h.policy.Store(g.policy())
	actor := exchangeOf(h.user(nil), "orders")
	actor.ActorToken, actor.ActorTokenType = h.must("gateway", Request{GrantType: GrantClientCredentials}).AccessToken, TypeJWT
	h.must("gateway", actor)
	h.revoke(RevokeRequest{JTI: claimOf(t, actor.ActorToken, "jti")})
	h.refuses("revoked", as("gateway"), actor, countersign.CodeActor)
}

func TestRevokeRefusals(t *testing.T) {
	h := openHouse(t)
	viewer := operator()
	viewer.Role = countersign.RoleViewer
	for _, c := range []struct {
		name string
		by   countersign.Caller
		r    RevokeRequest
		code countersign.Code
	}{
		{"a viewer", viewer, RevokeRequest{Subject: "alice"}, countersign.CodeRole},
		{"a service", as("gateway"), RevokeRequest{Subject: "alice"}, countersign.CodeRole},
		{"nothing", operator(), RevokeRequest{Reason: "x"}, countersign.CodeRevocation},
		{"two", operator(), RevokeRequest{Subject: "alice", JTI: "x"}, countersign.CodeRevocation},
		{"a sid without its issuer", operator(), RevokeRequest{SessionID: "s"}, countersign.CodeRevocation},
		{"an issuer without a sid", operator(), RevokeRequest{Subject: "s", Issuer: idpURL}, countersign.CodeRevocation},
		{"a long jti", operator(), RevokeRequest{JTI: strings.Repeat("x", maxName+1)}, countersign.CodeRevocation},
		{"a line break", operator(), RevokeRequest{Transaction: "a\nb"}, countersign.CodeRevocation},
		{"a name of no service", operator(), RevokeRequest{Service: "No"}, countersign.CodeRevocation},
		{"another trust domain", operator(), RevokeRequest{Service: "spiffe://other/orders"}, countersign.CodeRevocation},
		{"an operator's ID", operator(), RevokeRequest{Service: operator().ID.String()}, countersign.CodeRevocation},
		{"a long reason", operator(), RevokeRequest{Subject: "alice", Reason: strings.Repeat("x", maxReason+1)}, countersign.CodeRevocation},
		{"a reason that does not print", operator(), RevokeRequest{Subject: "alice", Reason: "\u202e"}, countersign.CodeRevocation},
	} {
		if _, err := h.Revoke(t.Context(), c.by, c.r); codeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	if page, _, _ := h.Revocations(t.Context(), time.Time{}, 10); len(page) != 0 || len(h.outcomes()) != 13 {
		t.Errorf("%v, %v", page, h.outcomes())
	}
}

// There is room for so many and no more, of one client for less, and always for operators.
func TestRevocationsRoom(t *testing.T) {
	r := newRevokedSet(func() time.Time { return noon })
	fill := func(n int, client string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for len(r.all) < n {
			r.put(kept{Revocation: countersign.Revocation{Kind: countersign.RevokeJTI, Value: fmt.Sprint(len(r.all))}, client: client})
			r.recent = nil
		}
	}
	asked := func(client string, operator bool) countersign.Code {
		rev := revocation{Client: client}
		rev.Kind, rev.Value = countersign.RevokeJTI, "new"
		f, err := r.begin(rev, operator, 0)
		if err == nil {
			r.drop(f)
		}
		return codeOf(err)
	}
	fill(clientRoom, "a")
	if asked("a", false) != countersign.CodeRevocationsFull || asked("b", false) != "" {
		t.Error("a client's room is not its own")
	}
	fill(maxRevocations-operatorsRoom, "")
	if asked("b", false) != countersign.CodeRevocationsFull || asked("", true) != "" {
		t.Error("the operators' room is not theirs")
	}
	fill(maxRevocations, "")
	if asked("", true) != countersign.CodeRevocationsFull {
		t.Error("there is no end")
	}
}

// The list has pages, the newest first.
func TestRevocationsPages(t *testing.T) {
	h := openHouse(t)
	for n := range 5 {
		h.revoke(RevokeRequest{JTI: fmt.Sprint("j", n)})
	}
	h.revoke(RevokeRequest{JTI: "j1"}) // renewed
	var got []string
	for before, pages := (time.Time{}), 0; ; pages++ {
		page, next, err := h.Revocations(t.Context(), before, 2)
		if err != nil || pages > 5 {
			t.Fatal(pages, err)
		}
		for _, r := range page {
			got = append(got, r.Value)
		}
		if before = next; next.IsZero() {
			break
		}
	}
	if want := []string{"j1", "j4", "j3", "j2", "j0"}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
