package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/countersign/countersign/api/wire"
)

// A sender may hold the body back for half a minute: a certificate that is revoked meanwhile gets nothing.
func TestRevokedWhileTheBodyComes(t *testing.T) {
	k := newKit(t, kitOptions{})
	id := k.join("reports")
	const form = "grant_type=client_credentials&audience=orders"
	ask := func(meanwhile func()) int {
		conn, err := tls.Dial("tcp", k.addr, &tls.Config{
			RootCAs: k.root(), ServerName: "localhost", NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{id.TLS()},
		})
		k.must(err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "POST /oauth2/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", wire.Form, len(form))
		k.must(err)
		// The daemon asks for the body when it begins to read it, and by then has judged the certificate.
		reader := bufio.NewReader(conn)
		line, err := reader.ReadString('\n')
		k.must(err)
		if line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("instead of 100 Continue: %s", line)
		}
		_, err = reader.ReadString('\n')
		k.must(err)
		meanwhile()
		_, err = io.WriteString(conn, form)
		k.must(err)
		response, err := http.ReadResponse(reader, nil)
		k.must(err)
		defer response.Body.Close()
		return response.StatusCode
	}
	if status := ask(func() {}); status != http.StatusOK {
		t.Fatalf("a good request: %d", status)
	}
	status := ask(func() {
		k.must(k.admin().Revoke(t.Context(), id.Serial, "superseded"))
	})
	if status != http.StatusUnauthorized {
		t.Errorf("a certificate that was revoked while its request came: %d", status)
	}
}

// Whoever sends logout tokens is a stranger, and takes no room from those who are known.
func TestLogoutTokensTakeTheStrangersRoom(t *testing.T) {
	rooms := newRooms()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var logout, policy route
	for _, r := range routes("") {
		switch {
		case r.auth == authLogout:
			logout = r
		case r.body == policyBody:
			policy = r
		}
	}
	for rooms.of(logout, true).enter(ended) == nil {
	}
	if err := rooms.of(policy, true).enter(t.Context()); err != nil {
		t.Error(err)
	}
}

// A session is never resumed: it would repeat a proof that may be over (RFC 9700 4.13 is about who is believed for how long).
func TestNoResumption(t *testing.T) {
	k := newKit(t, kitOptions{})
	id := k.join("reports")
	config := &tls.Config{
		RootCAs: k.root(), ServerName: "localhost", NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{id.TLS()},
		ClientSessionCache: tls.NewLRUClientSessionCache(4),
	}
	for range 3 {
		conn, err := tls.Dial("tcp", k.addr, config)
		k.must(err)
		_, err = io.WriteString(conn, "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		k.must(err)
		_, err = io.Copy(io.Discard, conn) // a ticket would come with the answer
		k.must(err)
		if conn.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		k.must(conn.Close())
	}
}
