package keyring

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

func (b *bench) retire(id string, o RetireOptions) Plan {
	b.t.Helper()
	plan, err := b.ring.Retire(b.t.Context(), admin(), id, o)
	if err != nil {
		b.t.Fatal(err)
	}
	return plan
}

// wantSigners fails unless each algorithm has a key that signs, is published and is not gone; it gives their kids.
func (b *bench) wantSigners(gone string) map[string]string {
	b.t.Helper()
	ids := map[string]string{}
	for _, alg := range algsOf(Token) {
		k, s, err := b.ring.Signer(Token, alg)
		if err != nil {
			b.t.Fatalf("%s: nothing signs %s: %v", b.clock.now(), alg, err)
		}
		verify(b.t, s, k.Public)
		if k.ID == gone || !slices.ContainsFunc(b.ring.Keys(Token), func(p Key) bool { return p.ID == k.ID }) {
			b.t.Fatalf("%s: key %s signs %s", b.clock.now(), k.ID, alg)
		}
		ids[alg] = k.ID
	}
	if slices.ContainsFunc(b.ring.Keys(Token), func(k Key) bool { return k.ID == gone }) {
		b.t.Fatalf("%s: key %s is still published", b.clock.now(), gone)
	}
	return ids
}

func TestRetireActiveCompromised(t *testing.T) {
	b := newBench(t)
	old := b.init()
	b.clock.add(24 * time.Hour)
	before := b.events()
	dry := b.retire(old[0].ID, RetireOptions{Compromised: true, DryRun: true})
	if got := b.events(); !slices.Equal(got, before) || len(b.ring.Keys(Token)) != 2 {
		t.Fatalf("a dry run changed something: %v", got)
	}
	changed := b.ring.Changed()
	plan := b.retire(old[0].ID, RetireOptions{Compromised: true})
	select {
	case <-changed:
	default:
		t.Error("nobody is told that the key is gone")
	}
	ids := b.wantSigners(old[0].ID)
	if ids[algRS256] != old[1].ID {
		t.Error("the key of the other algorithm was replaced")
	}
	blank := slices.Clone(plan.Keys)
	for i := range blank {
		if blank[i].New {
			if blank[i].ID != ids[algES256] {
				t.Errorf("another key was made than the one that signs: %+v", blank[i])
			}
			blank[i].ID = ""
		}
	}
	if diff := cmp.Diff(dry.Keys, blank); diff != "" || !dry.DryRun || dry.Note != plan.Note {
		t.Errorf("the dry run planned otherwise (-dry +made):\n%s\n%s\n%s", diff, dry.Note, plan.Note)
	}
	if !strings.Contains(plan.Note, "a new key signs at once") || !plan.SignsFrom.Equal(b.clock.now()) {
		t.Errorf("the plan does not say what signs: %+v", plan)
	}
	gone, ok := b.ring.Key(old[0].ID)
	if now := b.clock.now(); !ok || !gone.SignsUntil.Equal(now) || !gone.VerifiesUntil.Equal(now) || !gone.SignsFrom.Equal(old[0].SignsFrom) {
		t.Errorf("retired key: %+v", gone)
	}
	// Repeated, it does nothing and records nothing.
	before = b.events()
	again := b.retire(old[0].ID, RetireOptions{Compromised: true})
	if got := b.events(); !slices.Equal(got, before) || !strings.Contains(again.Note, "nothing is left to do") {
		t.Errorf("repeated: %v, %+v", got[len(before):], again)
	}
	b.stop()
	b.start()
	if got := b.wantSigners(old[0].ID); got[algES256] != ids[algES256] {
		t.Errorf("after a restart %s signs", got[algES256])
	}
	// The schedule goes on: the next rotation finds all as it should be.
	b.rotate(b.ring, RotateOptions{})
	b.clock.add(time.Hour)
	b.wantSigners(old[0].ID)
}

func TestRetireActiveWithAPendingKey(t *testing.T) {
	b := newBench(t)
	old := b.init()
	next := b.rotate(b.ring, RotateOptions{}).Keys
	b.clock.add(time.Minute)
	plan := b.retire(old[0].ID, RetireOptions{Compromised: true})
	ids := b.wantSigners(old[0].ID)
	if !slices.ContainsFunc(next, func(k PlannedKey) bool { return k.ID == ids[algES256] && k.New }) || len(b.ring.Keys(Token)) != 3 {
		t.Errorf("the key that waited does not sign: %+v", plan.Keys)
	}
	if ids[algRS256] != old[1].ID || !strings.Contains(plan.Note, ids[algES256]) {
		t.Errorf("the other algorithm's key %s, note %q", ids[algRS256], plan.Note)
	}
	b.clock.set(next[len(next)-1].SignsFrom)
	if got := b.wantSigners(old[0].ID); got[algRS256] == old[1].ID || got[algES256] != ids[algES256] {
		t.Errorf("at the end of the lead: %v", got)
	}
}

// A pending key that leaked is replaced by one that waits for the full lead, and the active one signs until then.
func TestRetirePending(t *testing.T) {
	b := newBench(t)
	old := b.init()
	b.rotate(b.ring, RotateOptions{})
	b.clock.add(50 * time.Minute)
	var leaked Key
	for _, k := range b.ring.Keys(Token) {
		if k.Alg == algES256 && k.State(b.clock.now()) == Pending {
			leaked = k
		}
	}
	_, err := b.ring.Retire(t.Context(), admin(), leaked.ID, RetireOptions{})
	wantCode(t, err, countersign.CodeKeyInUse)
	plan := b.retire(leaked.ID, RetireOptions{Compromised: true})
	if want := b.clock.now().Add(time.Hour); !plan.SignsFrom.Equal(want) {
		t.Errorf("the new key signs from %s, want %s", plan.SignsFrom, want)
	}
	for _, at := range []time.Time{b.clock.now(), leaked.SignsFrom, plan.SignsFrom.Add(-1)} {
		b.clock.set(at)
		if got := b.wantSigners(leaked.ID); got[algES256] != old[0].ID {
			t.Errorf("%s signs at %s", got[algES256], at)
		}
	}
	b.clock.set(plan.SignsFrom)
	if got := b.wantSigners(leaked.ID); got[algES256] == old[0].ID {
		t.Error("the old key signs on")
	}
	b.clock.add(time.Hour + time.Minute - 1)
	if k, _ := b.ring.Key(old[0].ID); k.State(b.clock.now()) != Retired {
		t.Errorf("the last token of the old key is not covered: %+v", k)
	}
}

// Without --compromised a key goes only when its last token has expired; the refusal says when that is.
func TestRetireInTime(t *testing.T) {
	b := newBench(t)
	old := b.init()
	try := func(want countersign.Code, says string) {
		t.Helper()
		_, err := b.ring.Retire(t.Context(), admin(), old[0].ID, RetireOptions{})
		wantCode(t, err, want)
		if e := countersign.AsError(err); !strings.Contains(e.Msg, says) || !strings.Contains(e.Hint, "--compromised") {
			t.Errorf("refused with %q, %q; want %q", e.Msg, e.Hint, says)
		}
	}
	try(countersign.CodeKeyInUse, "after it was rotated out")
	signs := b.rotate(b.ring, RotateOptions{}).SignsFrom
	last := signs.Add(time.Hour)
	try(countersign.CodeKeyInUse, last.Format(time.RFC3339))
	b.clock.set(last.Add(-1))
	try(countersign.CodeKeyInUse, last.Format(time.RFC3339))
	b.clock.set(last)
	plan := b.retire(old[0].ID, RetireOptions{})
	b.wantSigners(old[0].ID)
	if len(b.ring.Keys(Token)) != 3 || !plan.SignsFrom.IsZero() || !strings.Contains(plan.Note, "its last token has expired") {
		t.Errorf("%+v", plan)
	}
	if k, _ := b.ring.Key(old[0].ID); !k.SignsUntil.Equal(signs) {
		t.Errorf("it was told to have signed until %s, not %s", k.SignsUntil, signs)
	}
	// The other one leaks a moment before its end: nothing takes its place, since nothing is missing.
	b.retire(old[1].ID, RetireOptions{Compromised: true})
	b.wantSigners(old[1].ID)
	if got := len(b.ring.Keys(Token)); got != 2 {
		t.Errorf("%d keys", got)
	}
}

func TestRetireRefusals(t *testing.T) {
	b := newBench(t)
	token := b.init()[0]
	others, err := b.ring.Create(t.Context(), admin(), NewKey{Purpose: CA, Alg: algES256}, NewKey{Purpose: Audit, Alg: algES256})
	if err != nil {
		t.Fatal(err)
	}
	sealed := b.open(nil)
	by := func(r countersign.Role) countersign.Caller { return countersign.Caller{Name: "somebody", Role: r} }
	leak := RetireOptions{Compromised: true}
	for _, tt := range []struct {
		name    string
		ring    *Ring
		by      countersign.Caller
		id      string
		o       RetireOptions
		code    countersign.Code
		subject string
	}{
		{"a service", b.ring, by(countersign.RoleNone), token.ID, leak, countersign.CodeRole, token.ID},
		{"a viewer", b.ring, by(countersign.RoleViewer), token.ID, leak, countersign.CodeRole, token.ID},
		{"an operator", b.ring, by(countersign.RoleOperator), token.ID, leak, countersign.CodeRole, token.ID},
		{"an operator, dry", b.ring, by(countersign.RoleOperator), token.ID, RetireOptions{DryRun: true}, countersign.CodeRole, token.ID},
		{"an unknown kid", b.ring, admin(), "nobody\n", leak, countersign.CodeNoKey, ""},
		{"no kid", b.ring, admin(), "", leak, countersign.CodeNoKey, ""},
		{"a ca key", b.ring, admin(), others[0].ID, leak, countersign.CodePurpose, others[0].ID},
		{"the audit key", b.ring, admin(), others[1].ID, leak, countersign.CodePurpose, others[1].ID},
		{"before its time", b.ring, admin(), token.ID, RetireOptions{}, countersign.CodeKeyInUse, token.ID},
		{"sealed", sealed, admin(), token.ID, leak, countersign.CodeSealed, token.ID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(b.records())
			_, err := tt.ring.Retire(t.Context(), tt.by, tt.id, tt.o)
			wantCode(t, err, tt.code)
			got := b.records()[before:]
			if tt.o.DryRun {
				if len(got) != 0 {
					t.Errorf("a dry run was audited: %v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Type != "key.retired" || got[0].Outcome != audit.Denied || got[0].Code != tt.code || got[0].Subject != tt.subject {
				t.Errorf("audited: %+v", got)
			}
		})
	}
	if got := len(b.ring.Keys(Token)); got != 2 {
		t.Errorf("%d keys after refusals", got)
	}
	b.log.Close()
	_, err = b.ring.Retire(t.Context(), admin(), token.ID, RetireOptions{})
	if code := countersign.AsError(err).Code; code == countersign.CodeKeyInUse {
		t.Error("a refusal that could not be audited was answered as if it was")
	}
}

// Crash and failure points of a retirement: what is in force, what is told, and what a restart makes of it.
func TestRetireCrashPoints(t *testing.T) {
	broken := errors.New("power cut")
	onKeys := func(do func() error) func([]storage.Op) error {
		return func(ops []storage.Op) error {
			if writesKeys(ops) {
				return do()
			}
			return nil
		}
	}
	for _, tt := range []struct {
		name   string
		break_ func(b *bench)
		fails  bool
		gone   bool // after the failure and after a restart
		events []string
	}{
		{"before the intent", func(b *bench) { b.log.Close() }, true, false, nil},
		{"crash between intent and apply", func(b *bench) {
			b.store.before = onKeys(func() error { b.log.Close(); return broken })
		}, true, false, []string{"intent"}},
		{"store refuses", func(b *bench) {
			b.store.before = onKeys(func() error { return storage.ErrBusy })
		}, true, false, []string{"intent", "failed"}},
		{"outcome unknown, applied", func(b *bench) {
			b.store.after = onKeys(func() error { return storage.ErrUnknown })
		}, false, true, []string{"intent", "ok"}},
		{"crash between apply and outcome", func(b *bench) {
			b.store.after = onKeys(func() error { b.log.Close(); return nil })
		}, true, true, []string{"intent", "ok recovered"}},
		{"crash before it is settled", func(b *bench) {
			b.store.before = func(ops []storage.Op) error {
				if !writesKeys(ops) {
					return broken
				}
				return nil
			}
		}, false, true, []string{"intent", "ok", "ok recovered"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			id := b.init()[0].ID
			tt.break_(b)
			if _, err := b.ring.Retire(t.Context(), admin(), id, RetireOptions{Compromised: true}); (err != nil) != tt.fails {
				t.Fatal(err)
			}
			check := func(when string) {
				t.Helper()
				b.wantSigners("")
				if got := slices.ContainsFunc(b.ring.Keys(Token), func(k Key) bool { return k.ID == id }); got == tt.gone || len(b.ring.Keys(Token)) != 2 {
					t.Errorf("%s: published %v, %d keys", when, got, len(b.ring.Keys(Token)))
				}
			}
			check("after the failure")
			b.log.Close()
			if err := b.store.Close(); err != nil {
				t.Fatal(err)
			}
			b.start()
			check("after a restart")
			b.clock.add(settleAfter)
			for range 2 { // the second finds nothing to do
				if _, err := b.ring.step(t.Context(), b.clock.now()); err != nil {
					t.Fatal(err)
				}
			}
			var got []string
			for _, r := range b.records()[2:] {
				var d detail
				if err := json.Unmarshal(r.Detail, &d); err != nil {
					t.Fatal(err)
				}
				if r.Type != "key.retired" || r.Subject != id || !d.Compromised || len(d.Keys) != 3 {
					t.Errorf("event %s %s %+v", r.Type, r.Subject, d)
				}
				text := string(r.Outcome)
				if d.Recovered {
					text += " recovered"
				}
				got = append(got, text)
			}
			if !slices.Equal(got, tt.events) {
				t.Errorf("events %v, want %v", got, tt.events)
			}
		})
	}
}

// A change of another node in between is read and planned upon, not written over.
func TestRetireAfterAnotherNode(t *testing.T) {
	b := newBench(t)
	old := b.init()
	other := b.open(b.kek)
	var once bool
	b.store.before = func(ops []storage.Op) error {
		if writesKeys(ops) && !once {
			once = true
			b.rotate(other, RotateOptions{})
		}
		return nil
	}
	b.retire(old[0].ID, RetireOptions{Compromised: true})
	b.wantSigners(old[0].ID)
	if got := len(b.ring.Keys(Token)); got != 3 {
		t.Errorf("%d keys: the one that the other node had made was not used", got)
	}
}
