package ca

import (
	"testing"

	"github.com/countersign/countersign"
)

func TestMarkNeverPassesAnOpenIntent(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	h.join("orders", newKey(t, ""))
	h.flights.begin("01", countersign.ID{}, 5)
	stored := func() uint64 {
		t.Helper()
		head := h.log.Head().Seq
		if err := h.housekeep(ctx, head, 0); err != nil {
			t.Fatal(err)
		}
		entry, err := stateTable().Get(ctx, h.bolt, markKey)
		if err != nil {
			t.Fatal(err)
		}
		return entry.Value.Seq
	}
	if got := stored(); got != 5 {
		t.Fatalf("the mark is %d while an intent after 5 is open", got)
	}
	h.flights.leave("01") // its outcome could not be written: housekeeping writes it
	head := h.log.Head().Seq
	if got := stored(); got < head {
		t.Fatalf("the mark is %d, the head was %d", got, head)
	}
	if got := h.events(eventAbandoned); len(got) != 1 || got[0].Subject != "01" {
		t.Fatalf("events %+v", got)
	}
}
