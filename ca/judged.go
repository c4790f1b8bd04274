package ca

import (
	"sync"

	"github.com/countersign/countersign"
)

// maxJudged bounds the memory of judged peers: 4,096 entries of about 250 bytes.
const maxJudged = 4096

// judged remembers what the records say of client certificates, by their fingerprint, until one of the tables changes
// that were read for it: a kept connection is judged on every request, and thousands of requests later nothing may have
// changed. What a change by this node says counts from when its caller is answered, of another node within the second
// that [storage.Store] grants. Only success is remembered; the interval is judged apart from it. The zero value is ready.
type judged struct {
	mu      sync.RWMutex
	changed []<-chan struct{}
	peers   map[[32]byte]countersign.Caller
}

// recall is the caller whom a certificate proved since the last change.
func (j *judged) recall(print [32]byte) (countersign.Caller, bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if stale(j.changed) {
		return countersign.Caller{}, false
	}
	c, ok := j.peers[print]
	return c, ok
}

// remember stores what was read after the channels were taken.
func (j *judged) remember(print [32]byte, c countersign.Caller, changed []<-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if stale(changed) {
		return
	}
	// Of one table, channels that are both open tell of the same next change: entries that were read between different
	// calls of Changed may stand side by side.
	if j.peers == nil || stale(j.changed) || len(j.peers) >= maxJudged {
		j.peers = make(map[[32]byte]countersign.Caller)
	}
	j.changed = changed
	j.peers[print] = c
}

// stale tells whether one of the tables changed; without channels nothing is known.
func stale(changed []<-chan struct{}) bool {
	for _, ch := range changed {
		select {
		case <-ch:
			return true
		default:
		}
	}
	return len(changed) == 0
}
