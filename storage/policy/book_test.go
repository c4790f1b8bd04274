package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// wrapped is the real store; each Apply that touches a table of ours may be made to fail.
type wrapped struct {
	storage.Store
	applies int
	fail    func(n int, ops []storage.Op) (before, after error) // n from 1; may be nil
}

func (w *wrapped) Apply(ctx context.Context, ops ...storage.Op) (storage.Rev, error) {
	ours := ops[0].Table == currents().Name || ops[0].Table == serviceStates().Name || ops[0].Table == versions().Name || ops[0].Table == freezes().Name
	if !ours || w.fail == nil {
		return w.Store.Apply(ctx, ops...)
	}
	w.applies++
	before, after := w.fail(w.applies, ops)
	if before != nil {
		return 0, before
	}
	rev, err := w.Store.Apply(ctx, ops...)
	if after != nil {
		return 0, after
	}
	return rev, err
}

type house struct {
	t     *testing.T
	dir   string
	store *wrapped
	audit *audit.Log
	book  *Book
	now   time.Time
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(h.dir, "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	h.store = &wrapped{Store: store}
	h.openLog()
	h.book = h.open()
	return h
}

func (h *house) openLog() {
	h.t.Helper()
	log, err := audit.Open(h.t.Context(), audit.Config{Dir: filepath.Join(h.dir, "audit"), Store: h.store.Store, Segment: 1 << 20, Reserve: -1})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = log.Close() })
	h.audit = log
}

func (h *house) config() Config {
	return Config{Store: h.store, Audit: h.audit, Env: testEnv(), Now: func() time.Time { return h.now }}
}

func (h *house) open() *Book {
	h.t.Helper()
	b, err := Open(h.t.Context(), h.config())
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

func admin() countersign.Caller {
	return countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin, Name: "uid 0", RequestID: "r1"}
}

func (h *house) apply(b *Book, doc string) Applied {
	h.t.Helper()
	done, err := b.Apply(h.t.Context(), admin(), []byte(doc), ApplyOptions{IfVersion: -1})
	if err != nil {
		h.t.Fatal(err)
	}
	return done
}

// events are the types, outcomes and subjects of all audit records.
func (h *house) events() string {
	h.t.Helper()
	var list []string
	for r, err := range h.audit.Records(h.t.Context(), 0) {
		if err != nil {
			h.t.Fatal(err)
		}
		s := fmt.Sprintf("%s %s %s", r.Type, r.Outcome, r.Subject)
		if strings.Contains(string(r.Detail), `"recovered":true`) {
			s += " recovered"
		}
		if r.Code != "" {
			s += " " + string(r.Code)
		}
		list = append(list, s)
	}
	return strings.Join(list, "\n")
}

func code(err error) countersign.Code {
	if err == nil {
		return ""
	}
	return countersign.AsError(err).Code
}

const small = "trust_domain: shop.internal\nservices: [{name: orders}, {name: stock}]\n"

func TestApplyHistoryRollback(t *testing.T) {
	h := newHouse(t)
	b, ctx := h.book, t.Context()
	if p := b.Current(); p.Version != 0 || p.TrustDomain != "shop.internal" || len(p.Services) != 0 {
		t.Fatalf("%+v", p)
	}
	if _, _, err := b.Document(ctx, 0); code(err) != countersign.CodeNoPolicy {
		t.Error(err)
	}
	changed := b.Changed()
	if done := h.apply(b, small); done.Version != 1 || done.Previous != 0 || !strings.Contains(done.Diff, "+services: [") {
		t.Errorf("%+v", done)
	}
	select {
	case <-changed:
	default:
		t.Error("Changed was not closed")
	}
	if done := h.apply(b, small); !done.Unchanged || done.Version != 1 {
		t.Errorf("%+v", done)
	}
	shop := string(testdata(t, "shop.yaml"))
	if done, err := b.Apply(ctx, admin(), []byte(shop), ApplyOptions{IfVersion: 1, DryRun: true}); err != nil || done.Version != 2 || len(done.Warnings) == 0 || b.Current().Version != 1 {
		t.Errorf("%+v %v", done, err)
	}
	before := h.events()
	if _, err := b.Apply(ctx, admin(), []byte(shop), ApplyOptions{IfVersion: 0, DryRun: true}); code(err) != countersign.CodePolicyConflict || h.events() != before {
		t.Error(err)
	}
	if _, err := b.Apply(ctx, admin(), []byte(shop), ApplyOptions{IfVersion: 0}); code(err) != countersign.CodePolicyConflict {
		t.Error(err)
	}
	if done, err := b.Apply(ctx, admin(), []byte(shop), ApplyOptions{IfVersion: 1}); err != nil || done.Version != 2 {
		t.Errorf("%+v %v", done, err)
	}
	if _, err := b.Rollback(ctx, admin(), 3); code(err) != countersign.CodePolicyVersion {
		t.Error(err)
	}
	if done, err := b.Rollback(ctx, admin(), 1); err != nil || done.Version != 3 || done.Previous != 2 {
		t.Errorf("%+v %v", done, err)
	}
	v, doc, err := b.Document(ctx, 0)
	if err != nil || string(doc) != small || v.Version != 3 || v.Comment != "rollback to 1" || v.By != "uid 0" || !v.At.Equal(h.now) || v.SHA256 != sumOf(doc) {
		t.Errorf("%+v %v", v, err)
	}
	list, err := b.History(ctx, 2)
	if err != nil || len(list) != 2 || list[0].Version != 3 || list[1].Version != 2 {
		t.Errorf("%+v %v", list, err)
	}
	want := `policy.applied intent 1
policy.applied ok 1
policy.refused denied  CS4003
policy.applied intent 2
policy.applied ok 2
policy.refused denied  CS4002
policy.rolled-back intent 3
policy.rolled-back ok 3`
	if got := h.events(); got != want {
		t.Errorf("events:\n%s", got)
	}
	again := h.open()
	if again.Current().Version != 3 || len(again.Current().Services) != 2 || h.events() != want {
		t.Errorf("after a restart: %+v\n%s", again.Current(), h.events())
	}
}

func TestRefusedDocument(t *testing.T) {
	h := newHouse(t)
	_, err := h.book.Apply(t.Context(), admin(), testdata(t, "broken.yaml"), ApplyOptions{IfVersion: -1})
	var faults *FaultsError
	if !errors.As(err, &faults) || len(faults.Faults) < 50 || code(err) != countersign.CodePolicyFaults {
		t.Fatal(err)
	}
	for r, err := range h.audit.Records(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		var detail refusedDetail
		if err := json.Unmarshal(r.Detail, &detail); err != nil || detail.Faults != len(faults.Faults) || detail.SHA256 != sumOf(testdata(t, "broken.yaml")) || strings.Contains(string(r.Detail), "idp") {
			t.Errorf("%s %v", r.Detail, err)
		}
	}
	if h.events() != "policy.refused denied  CS4001" {
		t.Error(h.events())
	}
	viewer := admin()
	viewer.Role = countersign.RoleOperator
	if _, err := h.book.Apply(t.Context(), viewer, []byte(small), ApplyOptions{IfVersion: -1}); code(err) != countersign.CodeRole {
		t.Error(err)
	}
	if _, err := h.book.Rollback(t.Context(), viewer, 1); code(err) != countersign.CodeRole {
		t.Error(err)
	}
}

func TestDisable(t *testing.T) {
	h := newHouse(t)
	b, ctx := h.book, t.Context()
	if err := b.SetDisabled(ctx, admin(), "orders", "", true); code(err) != countersign.CodeNoService {
		t.Error(err)
	}
	h.apply(b, small)
	if err := b.SetDisabled(ctx, admin(), "orders", "", false); code(err) != countersign.CodeServiceState {
		t.Error(err)
	}
	if err := b.SetDisabled(ctx, admin(), "orders", "stolen\n", true); code(err) != countersign.CodeParameter {
		t.Error(err)
	}
	viewer := admin()
	viewer.Role = countersign.RoleViewer
	if err := b.SetDisabled(ctx, viewer, "orders", "", true); code(err) != countersign.CodeRole {
		t.Error(err)
	}
	if err := b.SetDisabled(ctx, admin(), "orders", "stolen", true); err != nil {
		t.Fatal(err)
	}
	at := h.now
	check := func(b *Book, disabled bool) {
		t.Helper()
		s, ok := b.Current().Service("orders")
		if !ok || (s.Disabled != nil) != disabled || !s.VoidBefore.Equal(at) {
			t.Fatalf("%+v", s)
		}
		if disabled && (s.Disabled.Reason != "stolen" || s.Disabled.By != "uid 0" || !s.Disabled.At.Equal(at)) {
			t.Fatalf("%+v", s.Disabled)
		}
	}
	check(b, true)
	h.apply(b, small+"# two\n")
	check(b, true)
	h.apply(b, "trust_domain: shop.internal\n")
	h.apply(b, small)
	check(b, true) // left the policy and came back
	if _, err := b.Rollback(ctx, admin(), 2); err != nil {
		t.Fatal(err)
	}
	check(b, true)
	check(h.open(), true)
	if err := b.SetDisabled(ctx, admin(), "orders", "", true); code(err) != countersign.CodeServiceState {
		t.Error(err)
	}
	h.now = h.now.Add(time.Hour)
	if err := b.SetDisabled(ctx, admin(), "orders", "", false); err != nil {
		t.Fatal(err)
	}
	at = h.now // a join token that was made while the service was being disabled is void too
	check(b, false)
	check(h.open(), false)
	if !strings.HasSuffix(h.events(), "service.enabled intent orders\nservice.enabled ok orders") {
		t.Error(h.events())
	}
}

// Wherever a change stops, nothing is in force without a durable record, and a restart settles it.
func TestCrashPoints(t *testing.T) {
	crash := errors.New("crash")
	for _, c := range []struct {
		name   string
		fail   func(h *house) func(n int, ops []storage.Op) (error, error)
		code   countersign.Code // of the apply
		before int              // version in force after it
		after  int              // and after a restart
		events string           // after the restart
	}{
		{"the change is refused", func(*house) func(int, []storage.Op) (error, error) {
			return func(int, []storage.Op) (error, error) { return storage.ErrBusy, nil }
		}, countersign.CodeBusy, 1, 1, "policy.applied intent 2\npolicy.applied failed 2 CS6001"},
		{"the outcome is unknown, and it was made", func(*house) func(int, []storage.Op) (error, error) {
			return func(n int, _ []storage.Op) (error, error) {
				if n == 1 {
					return nil, storage.ErrUnknown
				}
				return nil, nil
			}
		}, "", 2, 2, "policy.applied intent 2\npolicy.applied ok 2"},
		{"the outcome is unknown, and it was not made", func(*house) func(int, []storage.Op) (error, error) {
			return func(int, []storage.Op) (error, error) { return storage.ErrUnknown, nil }
		}, countersign.CodePolicyConflict, 1, 1, "policy.applied intent 2\npolicy.applied failed 2 CS4003"},
		{"the event can't be written, the change is taken back", func(h *house) func(int, []storage.Op) (error, error) {
			return func(n int, _ []storage.Op) (error, error) {
				if n == 1 {
					_ = h.audit.Close()
				}
				return nil, nil
			}
		}, "audit", 1, 1, "policy.applied intent 2"},
		{"crash between the change and its event", func(h *house) func(int, []storage.Op) (error, error) {
			return func(n int, _ []storage.Op) (error, error) {
				if n == 1 {
					_ = h.audit.Close()
					return nil, nil
				}
				return crash, nil
			}
		}, "audit", 1, 2, "policy.applied intent 2\npolicy.applied ok 2 recovered"},
		{"crash between the event and the mark", func(*house) func(int, []storage.Op) (error, error) {
			return func(n int, _ []storage.Op) (error, error) {
				if n == 2 {
					return crash, nil
				}
				return nil, nil
			}
		}, "", 2, 2, "policy.applied intent 2\npolicy.applied ok 2\npolicy.applied ok 2 recovered"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			h.apply(h.book, small)
			h.store.fail = c.fail(h)
			_, err := h.book.Apply(t.Context(), admin(), testdata(t, "shop.yaml"), ApplyOptions{IfVersion: -1})
			got := code(err)
			if c.code == "audit" && err != nil && (got == countersign.CodeAudit || got == countersign.CodeAuditFull || got == countersign.CodeStopping) {
				got = "audit"
			}
			if got != c.code || h.book.Current().Version != c.before {
				t.Errorf("%v; version %d is in force", err, h.book.Current().Version)
			}
			h.store.fail = nil
			_ = h.audit.Close()
			h.openLog()
			b := h.open()
			if b.Current().Version != c.after {
				t.Errorf("version %d is in force after a restart", b.Current().Version)
			}
			want := "policy.applied intent 1\npolicy.applied ok 1\n" + c.events
			if got := h.events(); got != want {
				t.Errorf("events:\n%s", got)
			}
			if b = h.open(); h.events() != want {
				t.Errorf("a second restart added events:\n%s", h.events())
			}
			if next := h.apply(b, small+"# next\n"); next.Version != c.after+1 {
				t.Errorf("%+v", next)
			}
		})
	}
}

func TestStoredVersionWithFaults(t *testing.T) {
	h := newHouse(t)
	h.apply(h.book, string(testdata(t, "shop.yaml")))
	cfg := h.config()
	cfg.Env.ReservedDNS = []string{"orders.shop.internal"}
	_, err := Open(t.Context(), cfg)
	var faults *FaultsError
	if !errors.As(err, &faults) || !strings.Contains(err.Error(), "version 1 of the policy, which is in force") {
		t.Error(err)
	}
	put := storage.Op{Kind: storage.Put, Table: documents, Key: versionKey(1), Value: []byte(small)}
	if _, err := h.store.Apply(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), h.config()); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("another document was taken: %v", err)
	}
}

func TestOldVersionsLeave(t *testing.T) {
	h := newHouse(t)
	h.apply(h.book, small)
	put := mustPut(currents().Put(currentKey, pointer{Version: keepNewest, SHA256: sumOf([]byte(small)), Recorded: true}, time.Time{}, storage.Cond{}))
	describe := mustPut(versions().Put(versionKey(keepNewest), Version{Version: keepNewest, SHA256: sumOf([]byte(small))}, time.Time{}, storage.Cond{}))
	doc := storage.Op{Kind: storage.Put, Table: documents, Key: versionKey(keepNewest), Value: []byte(small)}
	if _, err := h.store.Apply(t.Context(), put, describe, doc); err != nil {
		t.Fatal(err)
	}
	h.apply(h.book, small+"# new\n")
	if _, _, err := h.book.Document(t.Context(), 1); code(err) != countersign.CodePolicyVersion {
		t.Error(err)
	}
	if list, err := h.book.History(t.Context(), 0); err != nil || len(list) != 2 || list[0].Version != keepNewest+1 {
		t.Errorf("%+v %v", list, err)
	}
}

// wait until p is in force on b, by Changed only.
func waitFor(t *testing.T, b *Book, ok func(*countersign.Policy) bool) {
	t.Helper()
	for {
		changed := b.Changed()
		if ok(b.Current()) {
			return
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("not in force")
		}
	}
}

func TestTwoBooks(t *testing.T) {
	h := newHouse(t)
	one, two := h.book, h.open()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- two.Run(ctx) }()
	h.apply(one, small)
	waitFor(t, two, func(p *countersign.Policy) bool { return p.Version == 1 })
	if err := one.SetDisabled(ctx, admin(), "stock", "", true); err != nil {
		t.Fatal(err)
	}
	waitFor(t, two, func(p *countersign.Policy) bool { s, ok := p.Service("stock"); return ok && s.Disabled != nil })
	h.apply(two, small+"# by two\n")
	if _, err := one.Apply(ctx, admin(), []byte(small), ApplyOptions{IfVersion: 1}); code(err) != countersign.CodePolicyConflict {
		t.Errorf("a stale IfVersion: %v", err)
	}
	if one.Current().Version != 2 {
		t.Error("what a refused apply has seen is not in force")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A change of another node that died before it recorded it waits for a while, and is recorded by who is left.
func TestAnotherNodeDied(t *testing.T) {
	h := newHouse(t)
	h.apply(h.book, small)
	two := h.open()
	h.store.fail = func(n int, _ []storage.Op) (error, error) {
		if n == 1 {
			_ = h.audit.Close()
			return nil, nil
		}
		return errors.New("dead"), nil
	}
	if _, err := h.book.Apply(t.Context(), admin(), []byte(small+"# 2\n"), ApplyOptions{IfVersion: -1}); err == nil {
		t.Fatal("applied without a record")
	}
	h.store.fail = nil
	h.openLog()
	two.audit = h.audit
	for range 3 {
		if again, err := two.follow(t.Context()); err != nil || !again || two.Current().Version != 1 {
			t.Fatalf("%v %v %d", again, err, two.Current().Version)
		}
	}
	h.now = h.now.Add(patience)
	if again, err := two.follow(t.Context()); err != nil || again || two.Current().Version != 2 {
		t.Fatalf("%v %v %d", again, err, two.Current().Version)
	}
	if !strings.HasSuffix(h.events(), "policy.applied ok 2 recovered") {
		t.Error(h.events())
	}
}
