package api

import (
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	b, now := newBuckets(5), time.Now()
	take := func(key string, n int) (allowed int) {
		for range n {
			if b.allow(key, now) {
				allowed++
			}
		}
		return allowed
	}
	if got := take("a", 100); got != 10 {
		t.Errorf("a burst of %d, want 10", got)
	}
	if got := take("b", 100); got != 10 {
		t.Errorf("another key: a burst of %d, want 10", got)
	}
	now = now.Add(time.Second)
	if got := take("a", 100); got != 5 {
		t.Errorf("after a second: %d, want 5", got)
	}
	now = now.Add(time.Hour)
	if got := take("a", 100); got != 10 {
		t.Errorf("after an hour: %d, want 10", got)
	}
	if !newBuckets(0).allow("a", now) {
		t.Error("0 is off, and refused")
	}
}

func TestBucketsAreBounded(t *testing.T) {
	b, now := newBuckets(1), time.Now()
	for i := range maxBuckets + 1000 {
		b.allow(strconv.Itoa(i), now)
	}
	if len(b.byKey) > maxBuckets {
		t.Errorf("%d keys are kept, want at most %d", len(b.byKey), maxBuckets)
	}
	refused := 0
	for i := range 10 {
		if !b.allow("late"+strconv.Itoa(i), now) {
			refused++
		}
	}
	if refused != 10 {
		t.Errorf("a full table refused %d of 10 new keys, after their shared bucket was empty", refused)
	}
	now = now.Add(2 * idleBuckets)
	if !b.allow("later", now) || len(b.byKey) != 1 {
		t.Errorf("idle keys stay: %d", len(b.byKey))
	}
}

func TestAddressKey(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7":           "192.0.2.7",
		"::ffff:192.0.2.7":    "192.0.2.7",
		"2001:db8:1:2:3::4":   "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff::": "2001:db8:1:2::/64",
		"fe80::1%eth0":        "fe80::/64",
		"127.0.0.1":           "",
		"::1":                 "",
		"::ffff:127.0.0.1":    "",
	} {
		if got := addressKey(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	if addressKey(netip.Addr{}) != "" {
		t.Error("no address has a key")
	}
}

// fakeConn is a connection from anywhere; loopback is all that a test can really connect from.
type fakeConn struct {
	net.Conn
	from net.Addr
}

func (c fakeConn) RemoteAddr() net.Addr { return c.from }

type fakeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l fakeListener) Accept() (net.Conn, error) {
	conn, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

// connect offers a connection and tells whether it was accepted. The listener ends.
func connect(t *testing.T, l net.Listener, conns chan net.Conn, from string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	conns <- fakeConn{theirs, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))}
	accepted := make(chan net.Conn, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		conn, err := l.Accept()
		if err == nil {
			accepted <- conn
		}
	})
	// A refused connection is closed, and the listener then waits for the next, which is one that is always accepted.
	refused := make(chan struct{})
	wait.Go(func() {
		if _, err := ours.Read(make([]byte, 1)); err != nil {
			close(refused)
		}
	})
	select {
	case conn := <-accepted:
		ours.Close()
		wait.Wait()
		return conn
	case <-refused:
		filler, other := net.Pipe()
		t.Cleanup(func() { filler.Close() })
		conns <- fakeConn{other, net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:1"))}
		(<-accepted).Close()
		wait.Wait()
		return nil
	}
}

func TestLimitListenerPerHost(t *testing.T) {
	conns := make(chan net.Conn, 1)
	l := LimitListener(fakeListener{conns: conns}, Limits{PerHost: 2}, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")})
	first := connect(t, l, conns, "192.0.2.1:1000")
	if first == nil || connect(t, l, conns, "192.0.2.1:1001") == nil {
		t.Fatal("a connection within the limit was refused")
	}
	if connect(t, l, conns, "192.0.2.1:1002") != nil {
		t.Error("a third connection of one address was accepted")
	}
	if connect(t, l, conns, "192.0.2.2:1000") == nil {
		t.Error("another address was refused")
	}
	for range 5 {
		if connect(t, l, conns, "127.0.0.1:1000") == nil || connect(t, l, conns, "198.51.100.7:1") == nil {
			t.Error("loopback or a trusted proxy was refused")
		}
	}
	first.Close()
	first.Close() // gives one place back, not two
	if connect(t, l, conns, "192.0.2.1:1003") == nil {
		t.Error("the place of a closed connection is not free")
	}
	if connect(t, l, conns, "192.0.2.1:1004") != nil {
		t.Error("closing twice made two places")
	}
}

func TestLimitListenerTotal(t *testing.T) {
	l := LimitListener(fakeListener{}, Limits{Connections: 2}, nil).(*limitListener)
	if !l.take("") || !l.take("192.0.2.1") || l.take("192.0.2.2") || l.take("") {
		t.Error("not two connections were admitted")
	}
	l.give("192.0.2.1")
	if !l.take("192.0.2.2") || len(l.hosts) != 1 {
		t.Errorf("the place is not free, or a host is remembered for nothing: %v", l.hosts)
	}
}
