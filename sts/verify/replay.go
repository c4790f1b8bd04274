package verify

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"sync"
	"time"
)

// maxReplays is how many proofs are remembered at a time, in two generations, and 20 MiB. The window is proofAge and twice the
// Leeway, 120 s by default; as a proof may be remembered for two of them, about 1090 a second are taken for as long as one likes.
const maxReplays = 1 << 18

type outcome uint8

const (
	fresh outcome = iota
	replayed
	full
)

// replays remembers what came within a window, and for less than two of them. It is bounded: when it is full it says so,
// rather than forget something that could then be sent again.
type replays struct {
	window time.Duration
	most   int

	mu        sync.Mutex
	began     time.Time // when now was begun
	now, last map[[sha256.Size]byte]struct{}
}

func newReplays(window time.Duration, most int) *replays {
	return &replays{window: window, most: most, now: map[[sha256.Size]byte]struct{}{}}
}

// add tells whether key is new, and remembers it for window at the least.
func (r *replays) add(key [sha256.Size]byte, now time.Time) outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch age := now.Sub(r.began); {
	case age >= 2*r.window:
		r.now, r.last, r.began = map[[sha256.Size]byte]struct{}{}, nil, now
	case age >= r.window:
		r.now, r.last, r.began = map[[sha256.Size]byte]struct{}{}, r.now, now
	}
	if _, ok := r.now[key]; ok {
		return replayed
	}
	if _, ok := r.last[key]; ok {
		return replayed
	}
	if len(r.now)+len(r.last) >= r.most {
		return full
	}
	r.now[key] = struct{}{}
	return fresh
}

// noncePeriod is how long a nonce is handed out; it is taken for one period more.
const noncePeriod = time.Minute

// nonces makes nonces (RFC 9449 9) that need no memory: the number of the period and its MAC under a key of this process.
type nonces struct{ key [32]byte }

func newNonces() *nonces {
	n := new(nonces)
	rand.Read(n.key[:]) // never fails
	return n
}

func (n *nonces) issue(now time.Time) string {
	return n.at(now.Unix() / int64(noncePeriod/time.Second))
}

func (n *nonces) at(period int64) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(period))
	mac := hmac.New(sha256.New, n.key[:])
	mac.Write(b)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(b)[:8+16])
}

func (n *nonces) good(nonce string, now time.Time) bool {
	period := now.Unix() / int64(noncePeriod/time.Second)
	return hmac.Equal([]byte(nonce), []byte(n.at(period))) || hmac.Equal([]byte(nonce), []byte(n.at(period-1)))
}
