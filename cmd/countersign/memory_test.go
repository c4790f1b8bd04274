package main

import "testing"

// However little is in use, garbage may grow to 6 MiB; from 12 MiB on to half of what is in use, as ever.
func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 50, 1: 150, 3 << 20: 150, 4 << 20: 150, 6 << 20: 100, 8 << 20: 75, 12 << 20: 50, 1 << 30: 50} {
		if got := percentFor(live); got != want {
			t.Errorf("%d bytes: %d, want %d", live, got, want)
		}
	}
}
