package keyring

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

func (b *bench) upgraded(kek []byte) *Ring {
	b.t.Helper()
	cfg := b.config(kek)
	cfg.Upgrade = true
	r, err := Open(b.t.Context(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func (b *bench) step(r *Ring) {
	b.t.Helper()
	if _, err := r.step(b.t.Context(), b.clock.now()); err != nil {
		b.t.Fatal(err)
	}
}

// Keys of purpose svid rotate as those of purpose token do, and neither rotation touches the other's keys.
func TestRotateSVID(t *testing.T) {
	b := newBench(t)
	token := b.init()
	first, err := b.ring.Create(t.Context(), admin(), NewKey{Purpose: SVID, Alg: algES256})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := b.ring.Rotate(t.Context(), admin(), SVID, RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if plan.Purpose != SVID || len(plan.Keys) != 2 || !plan.SignsFrom.Equal(b.clock.now().Add(time.Hour)) {
		t.Errorf("the plan: %+v", plan)
	}
	for _, k := range plan.Keys {
		if k.Purpose != SVID || k.Alg != algES256 {
			t.Errorf("a rotation of svid made %+v", k)
		}
	}
	if got := b.ring.Keys(Token); len(got) != len(token) || !got[0].SignsUntil.IsZero() || !got[1].SignsUntil.IsZero() {
		t.Errorf("a rotation of svid changed the token keys: %+v", got)
	}
	_, err = b.ring.Rotate(t.Context(), admin(), SVID, RotateOptions{})
	wantCode(t, err, countersign.CodeRotationPending)
	if _, err := b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{}); err != nil {
		t.Errorf("a pending svid key holds up the token keys: %v", err)
	}
	if got := len(b.ring.Keys(SVID)); got != 2 {
		t.Errorf("a rotation of token left %d svid keys", got)
	}
	key, _, err := b.ring.Signer(SVID, algES256)
	if err != nil || key.ID != first[0].ID {
		t.Errorf("%s signs before the lead, %v", key.ID, err)
	}
	b.clock.add(time.Hour)
	key, _, err = b.ring.Signer(SVID, algES256)
	if err != nil || key.ID == first[0].ID || key.Purpose != SVID {
		t.Errorf("%s signs after the lead, %v", key.ID, err)
	}
	_, _, err = b.ring.Signer(SVID, algRS256)
	wantCode(t, err, countersign.CodeNoKey)
	_, err = b.ring.SignerByID(key.ID)
	wantCode(t, err, countersign.CodePurpose)
}

func TestRetireSVID(t *testing.T) {
	b := newBench(t)
	b.init()
	first, err := b.ring.Create(t.Context(), admin(), NewKey{Purpose: SVID, Alg: algES256})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.ring.Retire(t.Context(), admin(), first[0].ID, RetireOptions{})
	wantCode(t, err, countersign.CodeKeyInUse)
	plan, err := b.ring.Retire(t.Context(), admin(), first[0].ID, RetireOptions{Compromised: true})
	if err != nil || plan.Purpose != SVID {
		t.Fatalf("%+v, %v", plan, err)
	}
	keys := b.ring.Keys(SVID)
	if len(keys) != 1 || keys[0].ID == first[0].ID || keys[0].Purpose != SVID || keys[0].State(b.clock.now()) != Active {
		t.Errorf("after the retirement: %+v", keys)
	}
	if got := len(b.ring.Keys(Token)); got != 2 {
		t.Errorf("%d token keys", got)
	}
}

// A store from before the purpose gets its key once, published for the lead before it signs; without the KEK, by a clock that
// may be wrong, or in a store that nobody has set up, nothing is made.
func TestUpgradeMakesMissingKeys(t *testing.T) {
	b := newBench(t)
	empty := b.upgraded(b.kek)
	b.step(empty)
	if got := empty.Keys(SVID); len(got) != 0 {
		t.Errorf("an empty store got %v", got)
	}
	b.init()
	b.step(b.ring)
	if got := b.ring.Keys(SVID); len(got) != 0 {
		t.Errorf("without Upgrade it made %v", got)
	}
	sealed := b.upgraded(nil)
	b.step(sealed)
	if got := sealed.Keys(SVID); len(got) != 0 {
		t.Errorf("a sealed ring made %v", got)
	}
	cfg := b.config(b.kek)
	cfg.Upgrade, cfg.Guard = true, func() error { return errors.New("the clock leapt") }
	leapt, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.step(leapt)
	if got := leapt.Keys(SVID); len(got) != 0 {
		t.Errorf("a ring whose clock leapt made %v", got)
	}

	one, two := b.upgraded(b.kek), b.upgraded(b.kek)
	b.step(one)
	made := one.Keys(SVID)
	if len(made) != 1 || made[0].Alg != algES256 || !made[0].SignsFrom.Equal(b.clock.now().Add(time.Hour)) || made[0].State(b.clock.now()) != Pending {
		t.Fatalf("made %+v", made)
	}
	b.step(two)
	b.step(one)
	if got := two.Keys(SVID); len(got) != 1 || got[0].ID != made[0].ID || len(one.Keys(SVID)) != 1 {
		t.Errorf("the second node has %+v", got)
	}
	if !slices.ContainsFunc(b.records(), func(r audit.Record) bool {
		return r.Type == eventCreated && r.Subject == made[0].ID && r.By.Name == countersign.Daemon("keys of a new purpose").Name
	}) {
		t.Error("no record of the key that was made")
	}
}

// The svid key that ended last stays recorded, however old: the bundle's sequence counts from it.
func TestLastSVIDKeyStays(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var keys []Key
	for i, id := range []string{"a", "b", "c"} {
		end := t0.Add(time.Duration(i) * time.Hour)
		keys = append(keys, Key{ID: id, Purpose: SVID, SignsFrom: t0, SignsUntil: end, VerifiesUntil: end})
	}
	if got := deletable(keys, t0.AddDate(10, 0, 0)); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("deletable: %v", got)
	}
}
