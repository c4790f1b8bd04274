package agent

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/ca/identity"
)

// program is a TLS server that serves what it read of an identity directory when it was told to.
type program struct {
	t       *testing.T
	dir     string
	addr    string
	current atomic.Pointer[tls.Certificate]
}

func startProgram(t *testing.T, dir string) *program {
	t.Helper()
	p := &program{t: t, dir: dir}
	p.read()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		ClientAuth: tls.RequireAnyClientCert,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return p.current.Load(), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().String()
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = c.Read(make([]byte, 1))
			}(conn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
	return p
}

func (p *program) read() {
	p.t.Helper()
	id, err := identity.Load(p.dir)
	if err != nil {
		p.t.Fatal(err)
	}
	c := id.TLS()
	p.current.Store(&c)
}

func (p *program) identity() Identity {
	return Identity{Dir: p.dir, Verify: &Verify{Address: "tcp://" + p.addr, Within: Duration(500 * time.Millisecond)}}
}

func gauge(t *testing.T, a *Agent, want string) {
	t.Helper()
	w := httptest.NewRecorder()
	a.opsHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if body := w.Body.String(); !strings.Contains(body, "\ncountersign_agent_"+want+"\n") {
		t.Errorf("the metrics don't tell %s:\n%s", want, body)
	}
}

func versions(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "..2") {
			names = append(names, e.Name())
		}
	}
	return names
}

// A program that ignores the reload: an alarm in log, metric and status, and the files that it serves outlive every renewal, until
// it serves newer ones.
func TestProgramIgnoresReload(t *testing.T) {
	a := newAuthority(t)
	p := startProgram(t, a.enrolled())
	first := loaded(t, p.dir).Serial
	h := runHere(t, nil, p.identity())
	h.until(t, "the first look", func(s IdentityStatus) bool { return s.Reload.Verified && s.Reload.Serial == first })
	gauge(t, h.Agent, `reload_ok{identity="orders"} 1`)

	for range 3 { // the version of before the last is removed at each renewal, unless it is held
		second := h.renew(t).Serial
		s := h.until(t, "the alarm", func(s IdentityStatus) bool {
			return !s.Reload.OK && s.Serial == second && strings.Contains(s.Reload.Error, second)
		})
		if s.Healthy || s.Reload.Served != first || !strings.Contains(s.Why, "has not read its files again") || !strings.HasSuffix(s.Reload.Kept, "-"+first) || s.State != StateOK {
			t.Errorf("%+v", s)
		}
		kept, err := identity.Load(p.dir)
		if err != nil || kept.Serial != second {
			t.Errorf("the new files are not current: %v", err)
		}
		if text := readText(filepath.Join(s.Reload.Kept, identity.KeyFile)); !strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("the files that the program serves are gone: %s; there are %q", text, versions(t, p.dir))
		}
	}
	gauge(t, h.Agent, `reload_ok{identity="orders"} 0`)
	if log := h.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "the files that it serves are kept") || strings.Contains(log, "PRIVATE") {
		t.Error(log)
	}

	p.read() // at last; nobody tells the agent, it looks again by itself
	last := loaded(t, p.dir).Serial
	s := h.until(t, "the recovery", func(s IdentityStatus) bool { return s.Reload.OK && s.Reload.Verified && s.Reload.Serial == last })
	if !s.Healthy || !strings.HasSuffix(s.Reload.Kept, "-"+last) {
		t.Errorf("%+v", s)
	}
	gauge(t, h.Agent, `reload_ok{identity="orders"} 1`)
	p.current.Store(nil)
	h.renew(t)
	if left := versions(t, p.dir); len(left) != 2 || strings.Contains(strings.Join(left, " "), first) {
		t.Errorf("what nobody serves is kept: %q", left)
	}
}

// What the look sees: the served certificate must be the new one, from the address, under the identity's roots.
func TestLook(t *testing.T) {
	a := newAuthority(t)
	dir := a.enrolled()
	p := startProgram(t, dir)
	id := loaded(t, dir)
	look := func(v Verify) (string, error) { return look(t.Context(), v, id, time.Now) }
	at := Verify{Address: "tcp://" + p.addr}
	if served, err := look(at); err != nil || served != id.Serial {
		t.Errorf("%s, %v", served, err)
	}
	if served, err := look(Verify{Address: "https://" + p.addr, ServerName: "orders.shop.internal"}); err != nil || served != id.Serial {
		t.Errorf("%s, %v", served, err)
	}
	if _, err := look(Verify{Address: at.Address, ServerName: "stock.shop.internal"}); err == nil || !strings.Contains(err.Error(), "stock.shop.internal") {
		t.Errorf("another name: %v", err)
	}
	if served, err := look(Verify{Address: "tcp://" + freePort(t)}); err == nil || served != "" {
		t.Errorf("nobody there: %s, %v", served, err)
	}
	bare := filepath.Join(t.TempDir(), "bare")
	a.run("agent", "once", "--out", bare, "--join-file", a.joinFile("bare"))
	other := startProgram(t, bare)
	if served, err := look(Verify{Address: "tcp://" + other.addr, ServerName: "x"}); err == nil || served != loaded(t, bare).Serial || !strings.Contains(err.Error(), "not the new one "+id.Serial) {
		t.Errorf("another certificate: %s, %v", served, err)
	}
	// A certificate without a DNS name has none that could be checked: it is compared byte by byte.
	id = loaded(t, bare)
	if served, err := look(Verify{Address: "tcp://" + other.addr}); err != nil || served != id.Serial {
		t.Errorf("a certificate without names: %s, %v", served, err)
	}
	if _, err := look(Verify{Address: "tcp://" + other.addr, ServerName: "orders.shop.internal"}); err == nil {
		t.Error("a name that was asked for and is not in the certificate is taken")
	}
}

// A hook that fails is tried again, and an agent that comes after one that was killed between renewal and hook runs it.
func TestHookIsRetriedAndCaughtUp(t *testing.T) {
	a := newAuthority(t)
	dir := a.enrolled() // without a hook: delivered
	told := filepath.Join(t.TempDir(), "told")
	hook := Identity{Dir: dir, Reload: Reload{Exec: []string{"sh", "-c", `echo "$COUNTERSIGN_SERIAL" >> "$0"; test -e "$0.good"`, told}}}
	h := runHere(t, nil, hook)
	time.Sleep(100 * time.Millisecond)
	if got := readText(told); !strings.Contains(got, "no such file") {
		t.Errorf("a hook ran for files that were delivered: %q", got)
	}
	id := h.renew(t)
	s := h.until(t, "the alarm", func(s IdentityStatus) bool { return !s.Reload.OK })
	if !strings.Contains(s.Reload.Error, "hook exec: sh: exit status 1") || s.Healthy {
		t.Errorf("%+v", s)
	}
	gauge(t, h.Agent, `hook_failures_total{hook="exec",identity="orders"} 1`)
	// Killed here, the record still tells of the old serial; the next agent catches up.
	if r := readRecord(dir); r.Serial == id.Serial {
		t.Errorf("%+v", r)
	}
	if out := ReadStatus(Config{Identities: []Identity{hook}}, time.Now()); out.Healthy || !strings.Contains(out.Identities[0].Why, "not delivered") {
		t.Errorf("%+v", out)
	}
	mustWrite(t, told+".good", "")
	s = h.until(t, "the delivery", func(s IdentityStatus) bool { return s.Reload.OK && s.Reload.Serial == id.Serial })
	if lines := strings.Fields(readText(told)); len(lines) < 2 || lines[len(lines)-1] != id.Serial || !s.Healthy {
		t.Errorf("%q %+v", lines, s)
	}
}

func TestSpringFileStays(t *testing.T) {
	a := newAuthority(t)
	dir := a.enrolled()
	h := runHere(t, nil, Identity{Dir: dir, Spring: &Spring{Audience: "orders"}})
	path := filepath.Join(dir, SpringFile)
	eventually(t, func() string { return readText(path) }, `issuer-uri: "https://localhost:`)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	id := h.renew(t)
	h.until(t, "the delivery", func(s IdentityStatus) bool { return s.Reload.Serial == id.Serial })
	after, err := os.Stat(path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("a renewal wrote %s again: %v", SpringFile, err)
	}
	if text := readText(path); !strings.Contains(text, `certificate: "file:`+dir+`/tls.crt"`) || !strings.Contains(text, `audiences: ["orders"]`) {
		t.Error(text)
	}
}
