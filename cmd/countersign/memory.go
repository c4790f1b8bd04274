package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// gcPercent lets garbage grow to half of what is in use before it is collected, not to as much again as is Go's default:
// a crowd with large bodies then costs the daemon less memory than 16 MiB.
const gcPercent = 50

// gcFloor is the heap that is never collected below. In use are 3 to 4 MiB, half of which a few dozen token requests
// allocate: collecting that often cost as much CPU time as their signatures. With a floor, instead of a larger
// percentage, a crowd costs no more than before.
const gcFloor = 12 << 20 // bytes

// tuneMemory is for the daemon. Who sets GOGC knows better.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		keepFloor()
	}
}

// keepFloor sets the percentage by which the next collection comes at gcFloor or at gcPercent, whichever is later, and does
// so again after each collection: then what nobody refers to is cleaned up.
func keepFloor() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(percentFor(live[0].Value.Uint64()))
	runtime.AddCleanup(new([64]byte), func(struct{}) { keepFloor() }, struct{}{})
}

// percentFor is the percentage for a heap of which live bytes are in use.
func percentFor(live uint64) int {
	const least = 1 << 20 // before the first collection nothing is known to be in use
	return max(gcPercent, int(gcFloor*100/max(live, least))-100)
}
