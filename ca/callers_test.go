package ca

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// calls puts edges into the policy in force.
func (h *house) calls(calls ...countersign.Call) {
	p := h.current()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.policy = countersign.NewPolicy(p.Version+1, domain, nil, p.Services, calls)
}

// TestCallersOfAnOlderStore: what was revoked before there was an index is in it after the next start.
func TestCallersOfAnOlderStore(t *testing.T) {
	h := newHouse(t, nil)
	h.calls(countersign.Call{From: "gateway", To: "orders"})
	key := newKey(t, "")
	first := h.join("gateway", key)
	second, err := h.Issue(t.Context(), h.peer(first), IssueRequest{CSR: request(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Certificate{h.join("gateway", newKey(t, "")), second} {
		if err := h.Revoke(t.Context(), admin(), c.Serial, "keyCompromise"); err != nil {
			t.Fatal(err)
		}
	}
	id := service("orders").ID
	want, err := h.Callers(t.Context(), id)
	if err != nil || len(want.Serials) != 3 || len(want.Keys) != 2 || want.Version != 2 {
		t.Fatalf("%+v, %v", want, err)
	}
	ops := []storage.Op{stateTable().Delete(indexedKey, storage.Cond{})}
	for entry, err := range revokedTable().All(t.Context(), h.bolt, "") {
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, revokedTable().Delete(entry.Key, storage.Cond{}))
	}
	if _, err := h.bolt.Apply(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
	if none, err := h.Callers(t.Context(), id); err != nil || len(none.Serials) != 0 {
		t.Fatalf("the index is still there: %+v, %v", none, err)
	}
	h.reopen()
	got, err := h.Callers(t.Context(), id)
	if err != nil || !slices.Equal(got.Serials, want.Serials) || !slices.Equal(got.Keys, want.Keys) {
		t.Errorf("%+v, want %+v, %v", got, want, err)
	}
}

// TestCallersKeyOutlivesItsCertificate: a compromised key is told of as long as any certificate with it could be shown.
func TestCallersKeyOutlivesItsCertificate(t *testing.T) {
	h := newHouse(t, nil)
	h.calls(countersign.Call{From: "gateway", To: "orders"})
	key := newKey(t, "")
	first := h.join("gateway", key)
	h.clock.add(12 * time.Hour)
	if _, err := h.Issue(t.Context(), h.peer(first), IssueRequest{CSR: request(t, key)}); err != nil {
		t.Fatal(err)
	}
	if err := h.Revoke(t.Context(), admin(), first.Serial, "keyCompromise"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		later         time.Duration
		serials, keys int
	}{{0, 2, 1}, {12 * time.Hour, 2, 1}, {time.Hour, 1, 1}, {12 * time.Hour, 0, 0}} {
		h.clock.add(tt.later)
		got, err := h.Callers(t.Context(), service("orders").ID)
		if err != nil || len(got.Serials) != tt.serials || len(got.Keys) != tt.keys {
			t.Errorf("%v later: %+v, %v", tt.later, got, err)
		}
	}
}

// TestCallersAreNeverCutShort: beyond the bound is an error, and the revocations of others cost nothing.
func TestCallersAreNeverCutShort(t *testing.T) {
	h := newHouse(t, nil)
	h.calls(countersign.Call{From: "gateway", To: "orders"}, countersign.Call{From: "orders", To: "inventory"})
	var ops []storage.Op
	for i := range maxRevoked + 1 {
		r := Record{Serial: fmt.Sprintf("%032x", i), ID: service("gateway").ID, Kind: string(ProfileService), NotAfter: h.clock.now().Add(day)}
		more, err := revokedOps(r, keyRecord{})
		if err != nil {
			t.Fatal(err)
		}
		if ops = append(ops, more...); len(ops) == storage.MaxOps || i == maxRevoked {
			if _, err := h.bolt.Apply(t.Context(), ops...); err != nil {
				t.Fatal(err)
			}
			ops = nil
		}
	}
	_, err := h.Callers(t.Context(), service("orders").ID)
	wantCode(t, err, countersign.CodeRevokedMany)
	got, err := h.Callers(t.Context(), service("inventory").ID)
	if err != nil || len(got.Callers) != 1 || len(got.Serials) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
