package limit

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

// The headers of Spring Cloud Gateway. They stand on every answer that passed the limit or was refused by it.
const (
	HeaderRemaining = "X-RateLimit-Remaining"
	HeaderRate      = "X-RateLimit-Replenish-Rate"
	HeaderBurst     = "X-RateLimit-Burst-Capacity"
	HeaderRequested = "X-RateLimit-Requested-Tokens"
)

// Headers are the names of all four: a proxy removes them from an upstream's answer, so that they stand once.
func Headers() []string {
	return []string{HeaderRemaining, HeaderRate, HeaderBurst, HeaderRequested}
}

// DefaultKeys are about 7 MiB of buckets.
const DefaultKeys = 1 << 16

// Options of a Limiter.
type Options struct {
	MaxKeys int              // buckets at a time, about 100 bytes each; 0: DefaultKeys
	Now     func() time.Time // nil: time.Now
}

// Limiter is the limit of one route. It is safe for concurrent use and needs no Close.
type Limiter struct {
	cfg     Config
	buckets *buckets
	now     func() time.Time
	begun   time.Time
}

// New makes a Limiter. The error names the field of the configuration.
func New(cfg Config, o Options) (*Limiter, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if o.MaxKeys < 0 {
		return nil, fmt.Errorf("MaxKeys is %d", o.MaxKeys)
	}
	if o.MaxKeys == 0 {
		o.MaxKeys = DefaultKeys
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Limiter{cfg: cfg, buckets: newBuckets(cfg, o.MaxKeys), now: o.Now, begun: o.Now()}, nil
}

// Middleware lets through what the bucket of the request's key allows. Who asks is read from [observe.Request], where the
// layers before have written what they verified; a request without the key is refused.
func (l *Limiter) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := l.keyOf(observe.From(r.Context()).Identity())
		if name == "" {
			observe.Refuse(w, r, countersign.Errorf(countersign.CodeRelayRateKey,
				"the rate limit of this route is per %s, and this request has none", l.cfg.Key))
			return
		}
		d := l.buckets.take(sha256.Sum256([]byte(name)), l.now().Sub(l.begun))
		h := w.Header()
		h.Set(HeaderRemaining, strconv.FormatInt(d.remaining, 10))
		h.Set(HeaderRate, strconv.Itoa(l.cfg.ReplenishRate))
		h.Set(HeaderBurst, strconv.Itoa(l.cfg.Burst))
		h.Set(HeaderRequested, strconv.Itoa(l.cfg.RequestedTokens))
		if !d.allowed {
			observe.Refuse(w, r, countersign.Errorf(countersign.CodeRelayRate,
				"this %s sends more requests than the route allows", l.cfg.Key).After(d.retry))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// keyOf is what the request is counted by; "": it has no such thing.
func (l *Limiter) keyOf(who observe.Identity) string {
	switch l.cfg.Key {
	case User:
		return who.User
	case Client:
		return who.Client
	case Address:
		return addressKey(who.Address)
	}
	return ""
}

// addressKey is what one host can't change at will: an IPv4 address, or the /64 of an IPv6 one.
func addressKey(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() {
		return ""
	}
	if addr.Is6() {
		if prefix, err := addr.Prefix(64); err == nil { // 64 is in range
			return prefix.String()
		}
	}
	return addr.String()
}
