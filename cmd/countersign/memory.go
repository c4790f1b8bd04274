package main

import (
	"os"
	"runtime/debug"
)

// gcPercent lets garbage grow to half of what is in use before it is collected, not to as much again as is Go's default:
// a crowd with large bodies then costs the daemon less memory than 16 MiB. What is in use is small, so that a collection
// takes a millisecond or two.
const gcPercent = 50

// tuneMemory is for the daemon. Who sets GOGC knows better.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
