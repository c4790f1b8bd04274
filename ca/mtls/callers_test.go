package mtls

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// withoutGateway is testPolicy with the call to orders from another one.
func withoutGateway() string { return strings.Replace(testPolicy, "from: gateway", "from: reports", 1) }

// admitted makes a server of orders by Callers() and a client of gateway that has been served.
func (k *kit) admitted(orders, gateway *Source) (*echo, *http.Client) {
	k.Helper()
	e := k.serveAs(orders, Callers(), "orders.shop.internal", nil)
	c := k.client(e, Client(gateway, Only(k.id("orders"))))
	k.eventually("the first answer", func() bool { _, err := get(c, e.url()); return err == nil })
	return e, c
}

// kept is a connection of gateway's, and tells when it is closed from the other side.
func (k *kit) kept(e *echo, src *Source) <-chan time.Time {
	k.Helper()
	config := Client(src, InDomain())
	config.ServerName = e.name
	conn, err := tls.Dial("tcp", e.address, config)
	k.must(err)
	_, err = conn.Write([]byte("GET / HTTP/1.1\r\nHost: " + e.name + "\r\n\r\n"))
	k.must(err)
	_, err = conn.Read(make([]byte, 1))
	k.must(err)
	closed := make(chan time.Time, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buffer := make([]byte, 4096); ; {
			if _, err := conn.Read(buffer); err != nil {
				closed <- time.Now()
				return
			}
		}
	}()
	k.Cleanup(func() { conn.Close(); <-done })
	return closed
}

// closesWithin5s is what policy.md promises.
func (k *kit) closesWithin5s(closed <-chan time.Time, since time.Time) {
	k.Helper()
	select {
	case at := <-closed:
		if d := at.Sub(since); d > 5*time.Second {
			k.Errorf("the kept connection was closed after %s", d)
		}
	case <-time.After(30 * time.Second):
		k.Error("the kept connection was not closed")
	}
}

func TestCallersFollowTheCallGraph(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway, reports := k.ready("orders"), k.ready("gateway"), k.ready("reports")
	e, c := k.admitted(orders, gateway)
	if _, err := get(k.client(e, Client(reports, InDomain())), e.url()); err == nil {
		t.Error("a service without an edge was served")
	}
	closed := k.kept(e, gateway)
	since := time.Now()
	k.apply(withoutGateway())
	k.closesWithin5s(closed, since)
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err == nil {
		t.Error("a service whose edge left was served")
	}
	k.apply(testPolicy)
	k.eventually("the edge", func() bool { _, err := get(c, e.url()); return err == nil })
}

func TestCallersRefuseTheRevoked(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	e, c := k.admitted(orders, gateway)
	closed := k.kept(e, gateway)
	old, err := gateway.Identity()
	k.must(err)
	since := time.Now()
	k.must(k.adminC.Revoke(t.Context(), old.Serial, "superseded"))
	k.closesWithin5s(closed, since)
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err == nil {
		t.Error("a revoked certificate was served")
	}
	// Another certificate of the same service is as good as before.
	again := k.ready("gateway")
	if _, err := get(k.client(e, Client(again, InDomain())), e.url()); err != nil {
		t.Error(err)
	}
}

// A compromised key is none in any certificate.
func TestCallersRefuseCompromisedKeys(t *testing.T) {
	own := mustID(t, "orders")
	p := peer{id: mustID(t, "gateway"), serial: strings.Repeat("0a", 16), spki: strings.Repeat("0b", 32)}
	g, err := readGraph(wire.Callers{Service: own, Callers: []wire.Caller{{ID: p.id}}}, own)
	if err != nil || g.admits(p) != nil {
		t.Fatalf("%v", err)
	}
	g, err = readGraph(wire.Callers{Service: own, Callers: []wire.Caller{{ID: p.id}}, Revoked: wire.Revoked{Keys: []string{p.spki}}}, own)
	if err != nil || g.admits(p) == nil {
		t.Errorf("a compromised key is admitted: %v", err)
	}
}

func TestCallersRefuseTheDisabled(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	e, _ := k.admitted(orders, gateway)
	closed := k.kept(e, gateway)
	since := time.Now()
	k.must(k.adminC.DisableService(t.Context(), "gateway", "test"))
	k.closesWithin5s(closed, since)
}

// While the authority is gone what it said last counts, also for a new process; and no longer than the certificate.
func TestCallersAreKeptUntilTheCertificateIsOver(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	dir := k.dir("orders", 0)
	orders := k.source(Config{Dir: dir})
	gateway := k.source(Config{Dir: k.dir("gateway", 0), Now: time.Now})
	k.admitted(orders, gateway)
	k.eventually("the file", func() bool { _, err := os.Stat(filepath.Join(dir, CallersFile)); return err == nil })
	k.must(orders.Close())
	k.gone()

	again := k.source(Config{Dir: dir})
	e := k.serveAs(again, Callers(), "orders.shop.internal", nil)
	c := k.client(e, Client(gateway, Only(k.id("orders"))))
	if _, err := get(c, e.url()); err != nil {
		t.Fatalf("a caller that was told before is not admitted after a start: %v", err)
	}
	if _, err := get(k.client(e, Client(k.ready("reports"), InDomain())), e.url()); err == nil {
		t.Error("a service without an edge was served")
	}
	closed := k.kept(e, gateway)
	clock.turn(25 * time.Hour)
	k.closesWithin5s(closed, time.Now())
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err == nil {
		t.Error("a caller was served when the certificate was over")
	}
}

func TestCallersDenyBeforeTheFirstAnswer(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	k.gone()
	e := k.serveAs(orders, Callers(), "orders.shop.internal", nil)
	c := k.client(e, Client(gateway, InDomain()))
	if _, err := get(c, e.url()); err == nil {
		t.Error("it was served before the authority said who may call")
	}
	k.back()
	k.eventually("the first answer", func() bool { _, err := get(c, e.url()); return err == nil })
}

// What was heard for one certificate is not good for the next, if the authority says nothing any more.
func TestCallersCountNoLongerThanTheCertificateOfThen(t *testing.T) {
	clock := &turned{}
	k := newKit(t, clock.now)
	orders := k.source(Config{Dir: k.dir("orders", 10*time.Minute)})
	gateway := k.source(Config{Dir: k.dir("gateway", 0), Now: time.Now})
	e, c := k.admitted(orders, gateway)
	k.before(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/callers" {
				http.Error(w, "no", http.StatusInternalServerError)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	k.gone() // ends the long poll
	k.back()
	k.eventually("the renewal", func() bool { return orders.Renew(t.Context()) == nil })
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err != nil {
		t.Fatalf("right after the renewal: %v", err)
	}
	clock.turn(11 * time.Minute)
	c.CloseIdleConnections()
	if _, err := get(c, e.url()); err == nil {
		t.Error("a list of before the renewal counts for ever")
	}
}

func TestCallersOfAnotherServiceAreRefused(t *testing.T) {
	own := mustID(t, "orders")
	good := wire.Callers{Service: own, Callers: []wire.Caller{{ID: mustID(t, "gateway")}}}
	if _, err := readGraph(good, own); err != nil {
		t.Fatal(err)
	}
	operator, err := countersign.NewOperatorID(testDomain, "ann")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := countersign.NewServiceID("other", "gateway")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*wire.Callers){
		"for another service":    func(c *wire.Callers) { c.Service = mustID(t, "inventory") },
		"for nobody":             func(c *wire.Callers) { c.Service = countersign.ID{} },
		"an operator as caller":  func(c *wire.Callers) { c.Callers = []wire.Caller{{ID: operator}} },
		"of another domain":      func(c *wire.Callers) { c.Callers = []wire.Caller{{ID: foreign}} },
		"nobody as caller":       func(c *wire.Callers) { c.Callers = []wire.Caller{{}} },
		"a serial in upper case": func(c *wire.Callers) { c.Revoked.Serials = []string{strings.Repeat("AB", 16)} },
		"a short serial":         func(c *wire.Callers) { c.Revoked.Serials = []string{"ab"} },
		"a key that is none":     func(c *wire.Callers) { c.Revoked.Keys = []string{strings.Repeat("zz", 32)} },
	} {
		c := good
		change(&c)
		if _, err := readGraph(c, own); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}

func mustID(t testing.TB, name string) countersign.ID {
	t.Helper()
	id, err := countersign.NewServiceID(testDomain, name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestTornCallersFileAdmitsNobody(t *testing.T) {
	k := newKit(t, nil)
	dir := k.dir("orders", 0)
	k.must(os.WriteFile(filepath.Join(dir, CallersFile), []byte(`{"until": "2099-01-01T00:00:00Z", "callers": {"service": "spiffe://shop.inter`), 0o600))
	k.gone()
	s := k.source(Config{Dir: dir})
	Server(s, Callers())
	if g, _ := s.feed.now(); g != nil {
		t.Error("half a file was taken")
	}
}

func FuzzCallersFile(f *testing.F) {
	own := mustID(f, "orders")
	ends := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	good, err := json.Marshal(keptCallers{Until: ends.Add(time.Hour), Callers: wire.Callers{
		Service: own, Version: 3, Callers: []wire.Caller{{ID: mustID(f, "gateway"), Name: "gateway", Scopes: []string{"orders:read"}}},
		Revoked: wire.Revoked{Serials: []string{strings.Repeat("0a", 16)}, Keys: []string{strings.Repeat("0b", 32)}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-9])
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		g, until, err := parseCallers(body, own, ends)
		if err != nil {
			return
		}
		if until.After(ends) || until.IsZero() || g.told.Service != own {
			t.Errorf("%q counts until %s for %s", body, until, g.told.Service)
		}
		for id := range g.ids {
			if id.Kind() != countersign.ServiceID || id.TrustDomain() != own.TrustDomain() {
				t.Errorf("%q admits %s", body, id)
			}
		}
	})
}

// Closed connections leave nothing behind, also where a wrapper hides what a connection is.
func TestClosedConnectionsAreForgotten(t *testing.T) {
	k := newKit(t, nil)
	orders, gateway := k.ready("orders"), k.ready("gateway")
	e, c := k.admitted(orders, gateway)
	var served atomic.Int64
	for range 50 {
		c.CloseIdleConnections()
		if _, err := get(c, e.url()); err == nil {
			served.Add(1)
		}
	}
	c.CloseIdleConnections()
	if served.Load() != 50 {
		t.Fatalf("%d of 50 were served", served.Load())
	}
	k.eventually("the end of the entries", func() bool { runtime.GC(); return orders.conns.len() == 0 })
}
