package keyring

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// states are the states of the token keys of alg, oldest first.
func states(r *Ring, alg string) []string {
	var got []string
	for _, k := range r.Keys(Token) {
		if k.Alg == alg {
			got = append(got, k.State(r.cfg.Now()).String())
		}
	}
	return got
}

func TestRotateWithTheLead(t *testing.T) {
	b := newBench(t)
	old := b.init()
	b.clock.add(24 * time.Hour)
	before := b.events()
	dry := b.rotate(b.ring, RotateOptions{DryRun: true})
	if got := b.events(); !slices.Equal(got, before) || len(b.ring.Keys(Token)) != 2 {
		t.Fatalf("a dry run changed something: %v", got)
	}
	plan := b.rotate(b.ring, RotateOptions{})
	blank := slices.Clone(plan.Keys)
	for i := range blank {
		if blank[i].New {
			blank[i].ID = ""
		}
	}
	if !dry.DryRun || plan.DryRun || !dry.At.Equal(plan.At) || !dry.SignsFrom.Equal(plan.SignsFrom) {
		t.Errorf("dry run %+v, rotation %+v", dry, plan)
	}
	if diff := cmp.Diff(dry.Keys, blank); diff != "" {
		t.Errorf("the dry run planned otherwise (-dry +made):\n%s", diff)
	}
	start := b.clock.now()
	signs := start.Add(time.Hour)
	gone := signs.Add(time.Hour + time.Minute)
	for _, tt := range []struct {
		at     time.Time
		states []string
		old    bool // the old key signs
	}{
		{start, []string{"active", "pending"}, true},
		{signs.Add(-1), []string{"active", "pending"}, true},
		{signs, []string{"retired", "active"}, false},
		{gone.Add(-1), []string{"retired", "active"}, false},
		{gone, []string{"active"}, false},
	} {
		b.clock.set(tt.at)
		for _, o := range old {
			if got := states(b.ring, o.Alg); !slices.Equal(got, tt.states) {
				t.Errorf("%s at %s: %v, want %v", o.Alg, tt.at, got, tt.states)
			}
			k, s, err := b.ring.Signer(Token, o.Alg)
			if err != nil || (k.ID == o.ID) != tt.old {
				t.Fatalf("%s at %s: %s signs, %v", o.Alg, tt.at, k.ID, err)
			}
			verify(t, s, k.Public)
		}
	}
	if _, ok := b.ring.Key(old[0].ID); !ok {
		t.Error("an expired key is not found by its kid")
	}
}

func TestRotateRefusals(t *testing.T) {
	b := newBench(t)
	_, err := b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{})
	wantCode(t, err, countersign.CodeNoKey)
	b.init()
	by := func(r countersign.Role) countersign.Caller { return countersign.Caller{Name: "somebody", Role: r} }
	for _, tt := range []struct {
		name    string
		by      countersign.Caller
		purpose Purpose
		o       RotateOptions
		code    countersign.Code
	}{
		{"a service", by(countersign.RoleNone), Token, RotateOptions{}, countersign.CodeRole},
		{"a viewer", by(countersign.RoleViewer), Token, RotateOptions{}, countersign.CodeRole},
		{"a viewer, dry", by(countersign.RoleViewer), Token, RotateOptions{DryRun: true}, countersign.CodeRole},
		{"an operator with --now", by(countersign.RoleOperator), Token, RotateOptions{Now: true}, countersign.CodeRole},
		{"ca keys", admin(), CA, RotateOptions{}, countersign.CodePurpose},
		{"the audit key", admin(), Audit, RotateOptions{}, countersign.CodePurpose},
		{"an unknown purpose", admin(), "svid\n", RotateOptions{}, countersign.CodePurpose},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(b.records())
			_, err := b.ring.Rotate(t.Context(), tt.by, tt.purpose, tt.o)
			wantCode(t, err, tt.code)
			got := b.records()[before:]
			if tt.o.DryRun {
				if len(got) != 0 {
					t.Errorf("a dry run was audited: %v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Type != "key.rotated" || got[0].Outcome != audit.Denied || got[0].Code != tt.code || got[0].By.Name != tt.by.Name {
				t.Errorf("audited: %+v", got)
			}
		})
	}
	if got := len(b.ring.Keys(Token)); got != 2 {
		t.Errorf("%d keys after refusals", got)
	}
	if _, err := b.ring.Rotate(t.Context(), by(countersign.RoleOperator), Token, RotateOptions{}); err != nil {
		t.Errorf("an operator may rotate with the lead: %v", err)
	}
	_, err = b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{})
	wantCode(t, err, countersign.CodeRotationPending)
	b.log.Close()
	_, err = b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{})
	if code := countersign.AsError(err).Code; code == countersign.CodeRotationPending {
		t.Error("a refusal that could not be audited was answered as if it was")
	}
}

func TestRotateNow(t *testing.T) {
	b := newBench(t)
	old := b.init()
	b.rotate(b.ring, RotateOptions{})
	b.clock.add(time.Minute)
	var pending Key
	for _, k := range b.ring.Keys(Token) {
		if k.Alg == algES256 && k.State(b.clock.now()) == Pending {
			pending = k
		}
	}
	plan := b.rotate(b.ring, RotateOptions{Now: true})
	if got, _, err := b.ring.Signer(Token, algES256); err != nil || got.ID != pending.ID || !got.SignsFrom.Equal(b.clock.now()) {
		t.Errorf("the pending key does not sign: %+v, %v", got, err)
	}
	if got := len(b.ring.Keys(Token)); got != 4 || slices.ContainsFunc(plan.Keys, func(k PlannedKey) bool { return k.New }) {
		t.Errorf("keys were made although some waited: %d", got)
	}
	k, _ := b.ring.Key(old[0].ID)
	if want := b.clock.now().Add(time.Hour + time.Minute); !k.VerifiesUntil.Equal(want) || !k.SignsUntil.Equal(b.clock.now()) {
		t.Errorf("old key: %+v", k)
	}
	b.clock.add(time.Minute)
	b.rotate(b.ring, RotateOptions{Now: true})
	if got, _, err := b.ring.Signer(Token, algES256); err != nil || got.ID == pending.ID || len(b.ring.Keys(Token)) != 6 {
		t.Errorf("no new key: %+v, %v", got, err)
	}
}

func TestEventDetail(t *testing.T) {
	b := newBench(t)
	b.init()
	plan := b.rotate(b.ring, RotateOptions{})
	records := b.records()
	var intent, done detail
	if err := json.Unmarshal(records[len(records)-2].Detail, &intent); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(records[len(records)-1].Detail, &done); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(intent, done); diff != "" || intent.Change == "" {
		t.Errorf("intent and outcome differ: %s", diff)
	}
	if diff := cmp.Diff(plan.Keys, done.Keys); diff != "" {
		t.Errorf("the event tells other keys than the plan: %s", diff)
	}
	if s := records[len(records)-1].Subject; s != "token" {
		t.Errorf("subject %q", s)
	}
}

// Two nodes on one store rotate at the same moment, in all three ways: one does, the other says so.
func TestTwoNodesRotateOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    RotateOptions
	}{{"lead", RotateOptions{}}, {"now", RotateOptions{Now: true}}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.init()
			other := b.open(b.kek)
			// Both have read before either writes.
			var writers atomic.Int32
			gate := make(chan struct{})
			b.store.before = func(ops []storage.Op) error {
				if writesKeys(ops) && writers.Add(1) == 1 {
					<-gate
				}
				return nil
			}
			errs := make(chan error, 2)
			for _, r := range []*Ring{b.ring, other} {
				go func() {
					_, err := r.Rotate(t.Context(), admin(), Token, tt.o)
					errs <- err
					if err == nil {
						close(gate)
					}
				}()
			}
			var failed []error
			for range 2 {
				if err := <-errs; err != nil {
					failed = append(failed, err)
				}
			}
			if len(failed) != 1 {
				t.Fatalf("%d of 2 rotations failed: %v", len(failed), failed)
			}
			wantCode(t, failed[0], countersign.CodeRotationPending)
			if got := len(b.open(b.kek).Keys(Token)); got != 4 {
				t.Errorf("%d keys, want 4", got)
			}
			want := []string{"key.created intent", "key.created ok", "key.rotated denied", "key.rotated failed", "key.rotated intent", "key.rotated intent", "key.rotated ok"}
			got := b.events()
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("events %v", got)
			}
		})
	}
}

// Crash and failure points of a rotation: after each step, what is in force, what is told, and what a restart makes of it.
func TestCrashPoints(t *testing.T) {
	broken := errors.New("power cut")
	for _, tt := range []struct {
		name   string
		break_ func(b *bench)
		code   countersign.Code // of the answer; "" for success
		keys   int              // in force after a restart
		events []string         // of the rotation, after a restart and the grace
	}{
		{"before the intent", func(b *bench) { b.log.Close() }, countersign.CodeAudit, 2, nil},
		{"store refuses: nothing applied", func(b *bench) {
			b.store.before = func(ops []storage.Op) error {
				if writesKeys(ops) {
					return storage.ErrBusy
				}
				return nil
			}
		}, countersign.CodeBusy, 2, []string{"key.rotated intent", "key.rotated failed"}},
		{"crash between intent and apply", func(b *bench) {
			b.store.before = func(ops []storage.Op) error {
				if writesKeys(ops) {
					b.log.Close()
					return broken
				}
				return nil
			}
		}, countersign.CodeInternal, 2, []string{"key.rotated intent"}},
		{"outcome unknown, applied", func(b *bench) {
			b.store.after = func(ops []storage.Op) error {
				if writesKeys(ops) {
					return storage.ErrUnknown
				}
				return nil
			}
		}, "", 4, []string{"key.rotated intent", "key.rotated ok"}},
		{"outcome unknown, not applied", func(b *bench) {
			b.store.before = func(ops []storage.Op) error {
				if writesKeys(ops) {
					return storage.ErrUnknown
				}
				return nil
			}
		}, countersign.CodeUnknownOutcome, 2, []string{"key.rotated intent", "key.rotated failed"}},
		{"crash between apply and outcome", func(b *bench) {
			b.store.after = func(ops []storage.Op) error {
				if writesKeys(ops) {
					b.log.Close()
				}
				return nil
			}
		}, countersign.CodeAudit, 4, []string{"key.rotated intent", "key.rotated ok recovered"}},
		{"crash before it is settled", func(b *bench) {
			b.store.before = func(ops []storage.Op) error {
				if !writesKeys(ops) {
					return broken
				}
				return nil
			}
		}, "", 4, []string{"key.rotated intent", "key.rotated ok", "key.rotated ok recovered"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.init()
			tt.break_(b)
			_, err := b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{})
			switch {
			case tt.code == "" && err != nil:
				t.Fatal(err)
			case tt.code == countersign.CodeAudit:
				// The log is closed: any of its codes.
				if err == nil {
					t.Fatal("answered as if it was recorded")
				}
			case tt.code != "":
				wantCode(t, err, tt.code)
			}
			published := len(b.ring.Keys(Token))
			if published != tt.keys {
				t.Errorf("%d keys published after the failure, want %d", published, tt.keys)
			}
			b.log.Close()
			if err := b.store.Close(); err != nil {
				t.Fatal(err)
			}
			b.start()
			if got := len(b.ring.Keys(Token)); got != tt.keys {
				t.Errorf("%d keys after a restart, want %d", got, tt.keys)
			}
			if _, err := b.ring.step(t.Context(), b.clock.now()); err != nil {
				t.Fatal(err)
			}
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
				text := r.Type + " " + string(r.Outcome)
				if d.Recovered {
					text += " recovered"
					if d.By != admin().Name || len(d.Keys) != 4 {
						t.Errorf("recovered event: %+v", d)
					}
				}
				got = append(got, text)
			}
			if !slices.Equal(got, tt.events) {
				t.Errorf("events %v, want %v", got, tt.events)
			}
			if b.ring.snap.Load().state.head.Unsettled != nil {
				t.Error("the change is still unsettled")
			}
			// Whatever happened, the next rotation goes through or is told to wait.
			_, err = b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{})
			if tt.keys == 4 {
				wantCode(t, err, countersign.CodeRotationPending)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// A change that comes before the one before it is settled takes its place in the head, and must not take its outcome along.
func TestNextChangeTellsTheOneBefore(t *testing.T) {
	b := newBench(t)
	b.init()
	b.store.after = func(ops []storage.Op) error {
		if writesKeys(ops) {
			b.log.Close()
		}
		return nil
	}
	if _, err := b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{}); err == nil {
		t.Fatal("answered as if it was recorded")
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.rotate(b.ring, RotateOptions{Now: true})
	outcomes := map[string]string{}
	for _, r := range b.records() {
		var d detail
		if err := json.Unmarshal(r.Detail, &d); err != nil {
			t.Fatal(err)
		}
		outcomes[d.Change] += " " + string(r.Outcome)
		if d.Recovered && d.By != admin().Name {
			t.Errorf("recovered event: %+v", d)
		}
	}
	for change, got := range outcomes {
		if got != " intent ok" {
			t.Errorf("change %s:%s", change, got)
		}
	}
	if len(outcomes) != 3 {
		t.Errorf("%d changes", len(outcomes))
	}
}

func TestCancelledBeforeApply(t *testing.T) {
	b := newBench(t)
	b.init()
	ctx, cancel := context.WithCancel(t.Context())
	b.store.before = func(ops []storage.Op) error {
		if writesKeys(ops) {
			cancel()
		}
		return nil
	}
	_, err := b.ring.Rotate(ctx, admin(), Token, RotateOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if got := b.events(); got[len(got)-1] != "key.rotated failed" || len(b.ring.Keys(Token)) != 2 {
		t.Errorf("events %v, %d keys", got, len(b.ring.Keys(Token)))
	}
}

func TestNodesOnOneStoreShareTheKEK(t *testing.T) {
	// Two nodes start at once on an empty store with different KEKs: one is the store's, the other is refused.
	b := newBench(t)
	b.kek = nil
	dir := t.TempDir()
	b.dir = dir
	b.start()
	keks := [][]byte{NewKEK(), NewKEK()}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range keks {
		wg.Go(func() { _, errs[i] = Open(t.Context(), b.config(keks[i])) })
	}
	wg.Wait()
	if fmt.Sprint(errs[0] == nil, errs[1] == nil) == "true true" || (errs[0] != nil && errs[1] != nil) {
		t.Fatalf("errors %v", errs)
	}
	if !errors.Is(errors.Join(errs...), ErrKEK) {
		t.Errorf("errors %v", errs)
	}
}
