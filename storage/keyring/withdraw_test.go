package keyring

import (
	"slices"
	"testing"
	"time"
)

// A compromised key leaves the published ones without the KEK, whatever its state, is never used again when the KEK comes, and
// then each algorithm signs again.
func TestWithdrawSealed(t *testing.T) {
	for _, state := range []State{Active, Pending, Retired} {
		t.Run(state.String(), func(t *testing.T) {
			b := newBench(t)
			b.init()
			b.clock.add(24 * time.Hour)
			if state != Active {
				b.rotate(b.ring, RotateOptions{})
			}
			if state == Retired {
				b.clock.add(90 * time.Minute)
			}
			var gone Key
			for _, k := range b.ring.Keys(Token) {
				if k.Alg == algES256 && k.State(b.clock.now()) == state {
					gone = k
				}
			}
			b.stop()
			kek := b.kek
			b.kek = nil
			b.start()
			for _, want := range []bool{true, false} { // once is enough, and again does no harm
				if done, err := b.ring.Withdraw(t.Context(), admin(), gone.ID); err != nil || done != want {
					t.Fatalf("%v, %v", done, err)
				}
			}
			if done, err := b.ring.Withdraw(t.Context(), admin(), "unknown"); err != nil || done {
				t.Errorf("an unknown key: %v, %v", done, err)
			}
			if slices.ContainsFunc(b.ring.Keys(Token), func(k Key) bool { return k.ID == gone.ID }) {
				t.Fatal("it is still published")
			}
			b.stop()
			b.kek = kek
			b.start()
			b.step(b.ring)
			b.wantSigners(gone.ID)
			b.clock.add(40 * 24 * time.Hour)
			b.step(b.ring)
			b.clock.add(2 * time.Hour)
			b.step(b.ring)
			b.wantSigners(gone.ID)
		})
	}
}
