package main

import "testing"

// The heap at which a collection comes: the floor while little is in use, half as much again as is in use beyond that.
func TestPercent(t *testing.T) {
	for live, want := range map[uint64]uint64{0: gcFloor, 3 << 20: gcFloor, 8 << 20: gcFloor, 9 << 20: 9 << 20 * 3 / 2, 40 << 20: 60 << 20} {
		used := max(live, 1<<20)
		got := used + used*uint64(percentFor(live))/100
		if got > want || got < want-want/50 {
			t.Errorf("with %d bytes in use a collection comes at %d, want %d", live, got, want)
		}
	}
}
