package ca

import (
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// TestReplayCounts: a replay of what the store has counts nothing and changes nothing; what it lacks is counted once.
func TestReplayCounts(t *testing.T) {
	h := newHouse(t, nil)
	ctx, by := t.Context(), countersign.Daemon("restore")
	first, second := h.join("orders", newKey(t, "")), h.join("orders", newKey(t, ""))
	h.must(h.Revoke(ctx, admin(), first.Serial, reasonKeyCompromise))
	replay := func(want Replayed) {
		t.Helper()
		if got, err := h.Replay(ctx, by, 0); err != nil || got != want {
			t.Errorf("got %+v, want %+v: %v", got, want, err)
		}
	}
	replay(Replayed{})
	entry, err := certificatesTable().Get(ctx, h.bolt, first.Serial)
	h.must(err)
	old := entry.Value
	old.State, old.Reason, old.RevokedAt = StateValid, "", time.Time{}
	put, err := certificatesTable().Put(entry.Key, old, entry.Expires, storage.Cond{Rev: entry.Rev})
	h.must(err)
	_, err = h.bolt.Apply(ctx, put, certificatesTable().Delete(second.Serial, storage.Cond{}))
	h.must(err)
	replay(Replayed{Revoked: 1, Issued: 1})
	replay(Replayed{Issued: 1})
}
