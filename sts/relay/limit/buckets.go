package limit

import (
	"crypto/sha256"
	"sync"
	"time"
)

// key is the SHA-256 of what is counted by, so that a bucket costs the same whatever a stranger's name is.
type key [sha256.Size]byte

// buckets are the token buckets of one limit. A bucket is one number, the time at which it will be full again (the generic
// cell rate algorithm): taking a token moves it on by the time that a token takes to grow.
//
// What isn't in byKey is full, and what is full may be forgotten; nothing else is. So forgetting changes no answer, and in
// any time t a key gets at most burst + rate * t tokens. The keys that there is no room for share one bucket; who gets room later begins
// with what that one had left, else he had two bursts.
type buckets struct {
	token time.Duration // that one token takes to grow, rounded up: never more than the rate
	burst int64
	cost  int64
	most  int // buckets at a time

	mu     sync.Mutex
	byKey  map[key]time.Duration // full at, since the beginning
	shared time.Duration         // the same, of the keys without room
	now    time.Duration         // the latest seen: a clock that goes back does not
	swept  time.Duration
}

// sweepEvery bounds what a full table costs: a walk of all of it, at most so often.
const sweepEvery = time.Second

// decision is what a bucket said.
type decision struct {
	allowed   bool
	remaining int64         // whole tokens that are left
	retry     time.Duration // until there are enough; 0 when allowed
}

func newBuckets(cfg Config, most int) *buckets {
	rate := time.Duration(cfg.ReplenishRate)
	return &buckets{
		token: (time.Second + rate - 1) / rate, burst: int64(cfg.Burst), cost: int64(cfg.RequestedTokens), most: most,
		byKey: map[key]time.Duration{}, swept: -sweepEvery,
	}
}

// take asks the bucket of k for the tokens of one request. A refused request costs nothing.
func (b *buckets) take(k key, now time.Duration) decision {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = max(b.now, now)
	fullAt, known := b.byKey[k]
	if !known {
		fullAt = b.shared
		if !b.room() {
			d, next := b.draw(b.shared)
			b.shared = next
			return d
		}
	}
	d, next := b.draw(fullAt)
	if next > b.now { // it is not full
		b.byKey[k] = next
	}
	return d
}

// draw takes the cost out of a bucket that is full at fullAt.
func (b *buckets) draw(fullAt time.Duration) (decision, time.Duration) {
	capacity, cost := time.Duration(b.burst)*b.token, time.Duration(b.cost)*b.token
	debt := max(0, fullAt-b.now)
	if debt+cost > capacity {
		return decision{remaining: int64((capacity - debt) / b.token), retry: debt + cost - capacity}, b.now + debt
	}
	debt += cost
	return decision{allowed: true, remaining: int64((capacity - debt) / b.token)}, b.now + debt
}

// room tells whether a new key may have a bucket of its own.
func (b *buckets) room() bool {
	if len(b.byKey) < b.most {
		return true
	}
	if b.now-b.swept < sweepEvery {
		return false
	}
	b.swept = b.now
	for k, fullAt := range b.byKey {
		if fullAt <= b.now {
			delete(b.byKey, k)
		}
	}
	return len(b.byKey) < b.most
}
