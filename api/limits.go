package api

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits hold back who asks too much. 0 switches one off.
type Limits struct {
	Identity    int // requests per second of one authenticated identity, in bursts of twice that
	Address     int // requests per second without a usable certificate from one address, in bursts of twice that
	Connections int // open connections of the public listener
	PerHost     int // of them, from one address

	Issuing int // requests for certificates that are in work at a time; 0: as many as come, and none waits
	Waiting int // renewals, and as many enrolments, that wait for that at a time; more are told when to come again
}

// DefaultLimits are those of storage.md.
func DefaultLimits() Limits {
	return Limits{Identity: 5000, Address: 50, Connections: 4096, PerHost: 64, Issuing: 256, Waiting: 4096}
}

const (
	maxBuckets  = 1 << 16          // keys that are told apart at a time
	idleBuckets = 10 * time.Second // a bucket that nobody used for so long is full again, so forgetting it changes nothing
)

// buckets are token buckets by key, in bounded memory. Nil buckets allow everything.
type buckets struct {
	mu    sync.Mutex
	rate  rate.Limit
	burst int
	byKey map[string]*bucket
	rest  *bucket // shared by all keys that there is no room for
	swept time.Time
}

type bucket struct {
	limiter *rate.Limiter
	used    time.Time
}

// newBuckets allows perSecond requests of each key, in bursts of twice that; nil for 0.
func newBuckets(perSecond int) *buckets {
	if perSecond <= 0 {
		return nil
	}
	b := &buckets{rate: rate.Limit(perSecond), burst: 2 * perSecond, byKey: map[string]*bucket{}}
	b.rest = &bucket{limiter: rate.NewLimiter(b.rate, b.burst)}
	return b
}

// allow takes one token of key's bucket. A refused request costs nothing.
func (b *buckets) allow(key string, now time.Time) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	k, ok := b.byKey[key]
	if !ok {
		if len(b.byKey) >= maxBuckets || now.Sub(b.swept) >= idleBuckets {
			b.sweep(now)
		}
		if len(b.byKey) >= maxBuckets {
			return b.rest.limiter.AllowN(now, 1)
		}
		k = &bucket{limiter: rate.NewLimiter(b.rate, b.burst)}
		b.byKey[key] = k
	}
	k.used = now
	return k.limiter.AllowN(now, 1)
}

// sweep forgets the idle keys, at most once a second: with a full table each new key would else cost a walk.
func (b *buckets) sweep(now time.Time) {
	if now.Sub(b.swept) < time.Second {
		return
	}
	b.swept = now
	for key, k := range b.byKey {
		if now.Sub(k.used) >= idleBuckets {
			delete(b.byKey, key)
		}
	}
}

// addressKey is what one host can't change at will: an IPv4 address, or the /64 of an IPv6 one. It is "" for loopback
// and for no address, which are exempt.
func addressKey(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsLoopback() {
		return ""
	}
	if addr.Is6() {
		prefix, err := addr.Prefix(64)
		if err == nil {
			return prefix.String()
		}
	}
	return addr.String()
}

// LimitListener closes connections beyond l.Connections and, of one address, beyond l.PerHost, as soon as they are
// accepted: a refused client sees the end of its connection, and those that are served don't wait for it. Loopback and
// the given proxies are exempt from PerHost.
func LimitListener(inner net.Listener, l Limits, proxies []netip.Prefix) net.Listener {
	return &limitListener{Listener: inner, limits: l, proxies: proxies, hosts: map[string]int{}}
}

type limitListener struct {
	net.Listener
	limits  Limits
	proxies []netip.Prefix

	mu    sync.Mutex
	total int
	hosts map[string]int
}

// Accept gives the next connection within the limits.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		key := l.key(conn.RemoteAddr())
		if l.take(key) {
			return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { l.give(key) })}, nil
		}
		conn.Close()
	}
}

func (l *limitListener) key(remote net.Addr) string {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return ""
	}
	addr := tcp.AddrPort().Addr().Unmap()
	for _, proxy := range l.proxies {
		if proxy.Contains(addr) {
			return ""
		}
	}
	return addressKey(addr)
}

func (l *limitListener) take(key string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.limits.Connections > 0 && l.total >= l.limits.Connections {
		return false
	}
	if key != "" && l.limits.PerHost > 0 && l.hosts[key] >= l.limits.PerHost {
		return false
	}
	l.total++
	if key != "" {
		l.hosts[key]++
	}
	return true
}

func (l *limitListener) give(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if key == "" {
		return
	}
	if l.hosts[key]--; l.hosts[key] == 0 {
		delete(l.hosts, key)
	}
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close gives the place back, once.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
