package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Garbage may grow to half of what is in use before it is collected, not to as much again as is Go's default: a crowd with
// large bodies then costs the daemon less memory than 16 MiB. But a daemon at rest has 3 MB in use, and under load would collect
// a hundred times a second to keep to half of that. So garbage may always grow to minGarbage; from 12 MB in use on that is
// nothing more than half.
const (
	gcPercent  = 50
	maxPercent = 150
	minGarbage = 6 << 20
)

// tuneMemory is for the daemon. Who sets GOGC or GOMEMLIMIT knows better.
func tuneMemory() {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(gcPercent)
	watchGarbage(&garbage{percent: gcPercent, live: []metrics.Sample{{Name: "/gc/heap/live:bytes"}}})
}

// garbage is the present setting. It is only used by one cleanup after the other.
type garbage struct {
	percent int
	live    []metrics.Sample
}

// watchGarbage adjusts g after the next collection, and after each one behind it: the runtime cleans up after something
// that nobody has any more.
func watchGarbage(g *garbage) {
	runtime.AddCleanup(new([64]byte), func(g *garbage) {
		g.adjust()
		watchGarbage(g)
	}, g)
}

func (g *garbage) adjust() {
	metrics.Read(g.live)
	percent := percentFor(g.live[0].Value.Uint64())
	if change := percent - g.percent; change > 10 || change < -10 || percent == gcPercent && change != 0 {
		g.percent = percent
		debug.SetGCPercent(percent) // stops the world, so not for little
	}
}

// percentFor is the collector's percentage with so many bytes in use.
func percentFor(live uint64) int {
	if live == 0 {
		return gcPercent
	}
	return int(min(max(minGarbage*100/live, gcPercent), maxPercent))
}
