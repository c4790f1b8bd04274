package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/api/wire"
)

const slowClients = 1000

// TestSlowClients opens a thousand connections that never finish a handshake, in places for half as many: those beyond are
// closed at once, the others after 5 s, and the daemon serves all the while that there is a place, and afterwards.
func TestSlowClients(t *testing.T) {
	const places = slowClients / 2
	d := openDoor(t, []string{fmt.Sprintf("COUNTERSIGN_LIMITS_CONNECTIONS=%d", places)}, "gateway")
	d.warm()
	d.allClosed()
	before, base := d.state(), d.rss()
	conns := make([]net.Conn, slowClients)
	most := d.peak(func() {
		for n := range conns {
			conn, err := net.Dial("tcp", "127.0.0.1:"+d.port())
			d.must(err)
			conns[n] = conn
			_, _ = io.WriteString(conn, "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03"+halfHello) // may be closed already
		}
		atOnce(slowClients, func(n int) {
			_ = conns[n].SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, conns[n]); isTimeout(err) {
				t.Errorf("connection %d was not ended", n)
			}
			conns[n].Close()
		})
	})
	t.Logf("%d half-open connections at %d places: %+d KiB", slowClients, places, most-base)
	if limit := maxGrowth + perSlow*places; most-base >= limit {
		t.Errorf("RSS grew by %d KiB; the limit is %d", most-base, limit)
	}
	d.unchanged(before, nil)
	d.stillGood()
}

// halfHello is as much of a ClientHello as fits into a segment; the record says that there are 16 KiB.
var halfHello = string(make([]byte, 1024))

func isTimeout(err error) bool {
	timeout, ok := err.(net.Error)
	return ok && timeout.Timeout()
}

// allClosed waits until the daemon has no connection of ours left.
func (d *door) allClosed() {
	d.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+d.port())
		d.must(err)
		conn.Close()
		if got := d.send(d.as(""), http.MethodGet, "/roots.pem", ""); got.status == http.StatusOK {
			return
		}
		if time.Now().After(until) {
			d.Fatal("there is no place")
		}
	}
}

// TestSlowRequests stops in the middle of headers and of bodies, over a crowd of connections that have shown a good
// certificate. They are ended; nobody else has to wait for them.
func TestSlowRequests(t *testing.T) {
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
	var conns []net.Conn
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
			conns = append(conns, conn)
		})
		if got := d.exchange(d.as("gateway"), d.idp.good(), "orders"); got.status != http.StatusOK {
			t.Errorf("among slow clients: %d %s", got.status, got.body)
		}
	})
	t.Logf("%d slow requests: %+d KiB", crowd, most-base)
	if limit := maxGrowth + perSlow*crowd; most-base >= limit {
		t.Errorf("RSS grew by %d KiB; the limit is %d", most-base, limit)
	}
	for _, conn := range conns {
		conn.Close()
	}
	d.unchanged(before, map[string]int{"token.issued": -1})
	d.stillGood()
}
