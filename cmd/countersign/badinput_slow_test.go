package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
)

const slowClients = 1000

// halfOpen is a connection that never finishes its handshake, and when it was ended.
type halfOpen struct {
	net.Conn
	ended chan struct{} // closed
	at    time.Time     // after ended
}

// isOpen tells that nobody has ended it.
func (h *halfOpen) isOpen() bool {
	select {
	case <-h.ended:
		return false
	default:
		return true
	}
}

// halfOpened opens n of them, one after the other.
func (d *door) halfOpened(n int) []*halfOpen {
	d.Helper()
	var all []*halfOpen
	for range n {
		conn, err := net.Dial("tcp", "127.0.0.1:"+d.port())
		d.must(err)
		h := &halfOpen{Conn: conn, ended: make(chan struct{})}
		all = append(all, h)
		_, _ = io.WriteString(conn, "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"+halfHello) // may be closed already
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			h.at = time.Now()
			close(h.ended)
		}()
	}
	d.Cleanup(func() {
		for _, h := range all {
			h.Close()
			<-h.ended
		}
	})
	return all
}

// await waits for the end of each.
func (d *door) await(all []*halfOpen) {
	d.Helper()
	late := time.After(time.Minute)
	for n, h := range all {
		select {
		case <-h.ended:
		case <-late:
			d.Fatalf("half-open connection %d of %d was not ended", n, len(all))
		}
	}
}

// TestSlowClients opens a thousand connections that never finish a handshake, in places for half as many. Those beyond are
// closed at once, the others after 5 s. Meanwhile who has a connection is served; who has none is as soon as there is a
// place, which he need not wait 5 s for.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	const places = slowClients / 2
	d := openDoor(t, []string{fmt.Sprintf("COUNTERSIGN_LIMITS_CONNECTIONS=%d", places)}, "gateway")
	d.warm()
	before, base := d.state(), d.rss()
	gateway := d.as("gateway")
	good := func(c *http.Client, when string) {
		t.Helper()
		if got := d.exchange(c, d.idp.good(), "orders"); got.status != http.StatusOK {
			t.Errorf("%s: %d %s", when, got.status, got.body)
		}
	}
	good(gateway, "before")
	most := d.peak(func() {
		all := d.halfOpened(slowClients)
		d.await(all[places-1:]) // one place is the gateway's
		var held []*halfOpen
		for _, h := range all {
			if h.isOpen() {
				held = append(held, h)
			}
		}
		if len(held) < places/2 { // some places may have been taken by what ended just now
			t.Fatalf("%d are held, of %d places", len(held), places)
		}
		good(gateway, "on a connection of before, while all places are taken")
		if conn := d.dial("gateway"); conn != nil {
			t.Error("a connection beyond the limit was served")
			conn.Close()
		}
		for _, h := range held[:10] {
			h.Close()
		}
		good(d.soon("gateway"), "on a new connection, when there is a place again")
		if last := held[len(held)-1]; !last.isOpen() {
			t.Error("the others had ended before: that a place was enough is not shown")
		}
		d.await(held)
	})
	t.Logf("%d half-open connections at %d places: %+d KiB", slowClients, places, most-base)
	if limit := maxGrowth + perSlow*places; most-base >= limit {
		t.Errorf("RSS grew by %d KiB; the limit is %d", most-base, limit)
	}
	d.unchanged(before, map[string]int{"token.issued": 3})
	d.stillGood()
}

// TestSlowClientsBelowTheLimit: a thousand of them take nobody's place where there are the default's 4,096.
func TestSlowClientsBelowTheLimit(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "gateway")
	d.warm()
	before, base := d.state(), d.rss()
	most := d.peak(func() {
		all := d.halfOpened(slowClients)
		if got := d.exchange(d.as("gateway"), d.idp.good(), "orders"); got.status != http.StatusOK {
			t.Errorf("among slow clients: %d %s", got.status, got.body)
		}
		if !all[len(all)-1].isOpen() {
			t.Error("the slow clients had been ended before")
		}
		d.await(all)
	})
	t.Logf("%d half-open connections: %+d KiB", slowClients, most-base)
	if limit := maxGrowth + perSlow*slowClients; most-base >= limit {
		t.Errorf("RSS grew by %d KiB; the limit is %d", most-base, limit)
	}
	d.unchanged(before, map[string]int{"token.issued": 1})
	d.stillGood()
}

// soon is a client with a new connection, as soon as the daemon has a place for it.
func (d *door) soon(who string) *http.Client {
	d.Helper()
	c := d.as(who)
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		rq, err := http.NewRequestWithContext(d.Context(), http.MethodGet, d.url+"/roots.pem", nil)
		d.must(err)
		response, err := c.Do(rq)
		if err == nil {
			response.Body.Close()
			return c
		}
		if time.Now().After(until) {
			d.Fatalf("there is no place: %v", err)
		}
	}
}

// halfHello is as much of a ClientHello as fits into a segment; the record says that there are 16 KiB.
var halfHello = string(make([]byte, 1024))

// TestSlowRequests stops in the middle of headers and of bodies, over a crowd of connections that have shown a good
// certificate. Nobody else has to wait for them, and they are ended: after 5 s those without a header, after 30 s the others,
// which api.TestSlowBody does not wait so long for.
func TestSlowRequests(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "gateway")
	d.warm()
	before, base := d.state(), d.rss()
	full := fmt.Sprintf("Content-Length: %d", 64<<10)
	kinds := []string{
		"GET /roots.pem HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
		requestHead(http.MethodPost, "/oauth2/token", wire.Form, full) + "grant_type=",
		requestHead(http.MethodPost, "/v1/certificates", wire.JSON, full) + `{"csr":"`,
		requestHead(http.MethodPost, "/oauth2/token", wire.Form, full) + string(make([]byte, 60<<10)),
	}
	var mu sync.Mutex
	var conns, headless []net.Conn
	most := d.peak(func() {
		atOnce(crowd, func(n int) {
			conn := d.dial("gateway")
			if conn == nil {
				t.Error("no connection")
				return
			}
			_, _ = io.WriteString(conn, kinds[n%len(kinds)])
			mu.Lock()
			defer mu.Unlock()
			if conns = append(conns, conn); n%len(kinds) == 0 {
				headless = append(headless, conn)
			}
		})
		if got := d.exchange(d.as("gateway"), d.idp.good(), "orders"); got.status != http.StatusOK {
			t.Errorf("among slow clients: %d %s", got.status, got.body)
		}
		late := time.Now().Add(time.Minute)
		for _, conn := range headless {
			_ = conn.SetReadDeadline(late)
			if answer, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) || bytes.Contains(answer, []byte("200 OK")) {
				t.Errorf("a header without end: %q, %v", answer, err)
			}
		}
	})
	t.Logf("%d slow requests: %+d KiB", crowd, most-base)
	if limit := maxGrowth + perSlow*crowd; most-base >= limit {
		t.Errorf("RSS grew by %d KiB; the limit is %d", most-base, limit)
	}
	for _, conn := range conns {
		conn.Close()
	}
	d.unchanged(before, map[string]int{"token.issued": 1})
	d.stillGood()
}
