package api

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/keyring"
)

// local sends a request to the handler as if from an address that loopback is not.
func (k *kit) local(h http.Handler, from, method, path string, header ...string) *httptest.ResponseRecorder {
	k.Helper()
	rq := httptest.NewRequestWithContext(k.Context(), method, "https://localhost"+path, nil)
	rq.RemoteAddr = from
	for i := 0; i+1 < len(header); i += 2 {
		rq.Header.Add(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, rq)
	return recorder
}

func TestAddressLimit(t *testing.T) {
	k := newKit(t, kitOptions{limits: Limits{Address: 5}})
	limited := 0
	var last *httptest.ResponseRecorder
	for i := range 200 {
		// A stranger's X-Forwarded-For is not believed: he would have a bucket per header.
		got := k.local(k.api.Public(), "192.0.2.1:1000", http.MethodGet, "/roots.pem", "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i))
		if got.Code == http.StatusTooManyRequests {
			limited, last = limited+1, got
		}
	}
	if limited < 150 || last.Header().Get("Retry-After") == "" || last.Header().Get("Content-Type") != wire.Problem {
		t.Errorf("%d of 200 requests were held back", limited)
	}
	if got := k.local(k.api.Public(), "192.0.2.2:1000", http.MethodGet, "/roots.pem"); got.Code != http.StatusOK {
		t.Errorf("another address: %d", got.Code)
	}
	for range 50 {
		if got := k.send(k.raw(nil), http.MethodGet, k.url+"/roots.pem", ""); got.status != http.StatusOK {
			t.Fatalf("loopback was held back: %d", got.status)
		}
	}
	if n := len(k.records("request.denied")); n != 0 {
		t.Errorf("a flood made %d audit records", n)
	}
}

func TestIdentityLimit(t *testing.T) {
	k := newKit(t, kitOptions{limits: Limits{Identity: 5}})
	c, other := k.raw(k.join("reports")), k.raw(k.join("orders"))
	limited := 0
	for range 100 {
		got := k.send(c, http.MethodPost, k.url+"/oauth2/token", machineForm().Encode(), "Content-Type", wire.Form)
		if got.status == http.StatusTooManyRequests {
			limited++
			k.checkToken("limited", got, 429, "temporarily_unavailable")
			if got.header.Get("Retry-After") == "" {
				t.Error("429 without Retry-After")
			}
		}
	}
	if limited == 0 {
		t.Error("100 requests at once were let through by a limit of 5/s")
	}
	if got := k.send(other, http.MethodGet, k.url+"/roots.pem", ""); got.status != http.StatusOK {
		t.Errorf("another identity was held back: %d", got.status)
	}
}

func TestForwardedForOfAProxy(t *testing.T) {
	s := &Server{Config: Config{Proxies: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}
	extract := s.ipExtractor()
	for _, tc := range []struct{ from, forwarded, want string }{
		{"198.51.100.7:1", "203.0.113.5", "203.0.113.5"},
		{"198.51.100.7:1", "10.0.0.1, 203.0.113.5, 198.51.100.8", "203.0.113.5"},
		{"192.0.2.1:1", "203.0.113.5", "192.0.2.1"},
		{"127.0.0.1:1", "203.0.113.5", "127.0.0.1"},
		{"10.0.0.9:1", "203.0.113.5", "10.0.0.9"},
	} {
		rq := httptest.NewRequest(http.MethodGet, "/", nil)
		rq.RemoteAddr = tc.from
		rq.Header.Set("X-Forwarded-For", tc.forwarded)
		if got := extract(rq); got != tc.want {
			t.Errorf("from %s with %q: %s, want %s", tc.from, tc.forwarded, got, tc.want)
		}
	}
}

func TestHeaderFlood(t *testing.T) {
	k := newKit(t, kitOptions{})
	for name, protocols := range map[string][]string{"HTTP/1.1": {"http/1.1"}, "HTTP/2": {"h2"}} {
		c := k.raw(nil)
		transport := c.Transport.(*http.Transport)
		transport.ForceAttemptHTTP2 = name == "HTTP/2"
		transport.TLSClientConfig.NextProtos = protocols
		rq, err := http.NewRequestWithContext(t.Context(), http.MethodGet, k.url+"/roots.pem", nil)
		k.must(err)
		rq.Header.Set("X-Flood", strings.Repeat("a", 64<<10))
		response, err := c.Do(rq)
		if err != nil {
			continue // the connection was cut, which is as good
		}
		response.Body.Close()
		if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%s: 64 KiB of headers: %d", name, response.StatusCode)
		}
	}
	if got := k.send(k.raw(nil), http.MethodGet, k.url+"/roots.pem", "", "X-Some", strings.Repeat("a", 8<<10)); got.status != http.StatusOK {
		t.Errorf("8 KiB of headers: %d", got.status)
	}
}

// TestSlowHeader ends only if the server cuts the connection.
func TestSlowHeader(t *testing.T) {
	k := newKit(t, kitOptions{header: 100 * 1e6})
	conn, err := tls.Dial("tcp", k.addr, &tls.Config{RootCAs: k.root(), ServerName: "localhost", NextProtos: []string{"http/1.1"}})
	k.must(err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
	k.must(err)
	k.cut(conn)
}

// TestSlowBody is the same with half a body, of who has shown a certificate.
func TestSlowBody(t *testing.T) {
	k := newKit(t, kitOptions{header: 100 * 1e6, read: 200 * 1e6})
	id := k.join("reports")
	config := &tls.Config{RootCAs: k.root(), ServerName: "localhost", NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{id.TLS()}}
	for _, head := range []string{"Content-Length: 4096", "Transfer-Encoding: chunked"} {
		conn, err := tls.Dial("tcp", k.addr, config)
		k.must(err)
		defer conn.Close()
		_, err = io.WriteString(conn, "POST /oauth2/token HTTP/1.1\r\nHost: localhost\r\nContent-Type: "+wire.Form+"\r\n"+head+"\r\n\r\n10\r\ngrant_type=")
		k.must(err)
		k.cut(conn)
	}
}

// cut demands that the server ends the connection, and does not answer as if all was well.
func (k *kit) cut(conn net.Conn) {
	k.Helper()
	k.must(conn.SetReadDeadline(time.Now().Add(30 * time.Second)))
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		k.Error("the connection is kept")
	}
	if strings.Contains(string(answer), "200 OK") {
		k.Errorf("half a request was answered: %q", answer)
	}
}

// TestBodies: a body that is too large is not read, whether its length is told or not.
func TestBodies(t *testing.T) {
	k := newKit(t, kitOptions{})
	c := k.raw(k.operator("ann", countersign.RoleAdmin))
	for _, tc := range []struct {
		name, method, path, media string
		size                      int64
		chunked                   bool
		want                      countersign.Code
	}{
		{"told", http.MethodPost, "/v1/certificates", wire.JSON, 300 << 20, false, countersign.CodeTooLarge},
		{"chunked", http.MethodPost, "/v1/certificates", wire.JSON, 300 << 20, true, countersign.CodeTooLarge},
		{"just over", http.MethodPost, "/v1/join-tokens", wire.JSON, smallBody + 1, true, countersign.CodeTooLarge},
		{"as large as it may be", http.MethodPost, "/v1/join-tokens", wire.JSON, smallBody, true, countersign.CodeBody},
		{"none taken", http.MethodGet, "/v1/status", "", 10, false, countersign.CodeTooLarge},
		{"wrong type", http.MethodPost, "/v1/join-tokens", "text/plain", 10, false, countersign.CodeContentType},
	} {
		source := &zeros{left: tc.size}
		rq, err := http.NewRequestWithContext(t.Context(), tc.method, k.url+tc.path, source)
		k.must(err)
		if !tc.chunked {
			rq.ContentLength = tc.size
		}
		rq.Header.Set("Content-Type", tc.media)
		response, err := c.Do(rq)
		if err != nil {
			if tc.size < 1<<20 {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue // the server cut the connection while we were still sending
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if got := (reply{body: string(text)}).code(); err == nil && got != tc.want {
			t.Errorf("%s: %d %s, want %s", tc.name, response.StatusCode, text, tc.want)
		}
		if sent := tc.size - source.left; sent > 16<<20 {
			t.Errorf("%s: %d bytes were taken", tc.name, sent)
		}
	}
}

// zeros is a long body that costs no memory.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left -= n
	return int(n), nil
}

func TestAPanicIsOneAnswer(t *testing.T) {
	k := newKit(t, kitOptions{})
	h, err := k.api.mount([]route{
		{method: http.MethodGet, path: "/v1/panic", auth: authPublic, handle: func(*Server, *request) error { panic("SECRET") }},
		{method: http.MethodGet, path: "/v1/nil", auth: authPublic, handle: func(*Server, *request) error { var k *keyring.Key; _ = k.ID; return nil }},
		{method: http.MethodGet, path: "/v1/late", auth: authPublic, handle: func(_ *Server, rq *request) error {
			if err := rq.String(http.StatusOK, "begun"); err != nil {
				return err
			}
			return errors.New("late")
		}},
	}, publicListener)
	k.must(err)
	for _, path := range []string{"/v1/panic", "/v1/nil"} {
		got := k.local(h, "127.0.0.1:1", http.MethodGet, path)
		id := got.Header().Get(wire.RequestID)
		if got.Code != http.StatusInternalServerError || strings.Contains(got.Body.String(), "SECRET") || len(id) != 32 {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
		if !strings.Contains(k.logs.String(), id) {
			t.Errorf("%s: the log does not hold the request %s", path, id)
		}
	}
	if got := k.local(h, "127.0.0.1:1", http.MethodGet, "/v1/late"); got.Code != http.StatusOK || got.Body.String() != "begun" {
		t.Errorf("an error after the answer began: %d %q", got.Code, got.Body)
	}
}

func TestRequestIDs(t *testing.T) {
	k := newKit(t, kitOptions{})
	c := k.raw(nil)
	first := k.send(c, http.MethodGet, k.url+"/nowhere", "", wire.RequestID, "mine-1234567890")
	second := k.send(c, http.MethodGet, k.url+"/nowhere", "", wire.RequestID, "bad\"id 0987654321")
	a, b := first.header.Get(wire.RequestID), second.header.Get(wire.RequestID)
	if len(a) != 32 || len(b) != 32 || a == b || !strings.Contains(first.body, a) {
		t.Errorf("request ids %q and %q", a, b)
	}
	if logs := k.logs.String(); !strings.Contains(logs, "mine-1234567890") || strings.Contains(logs, "0987654321") {
		t.Error("the log should hold the caller's sane id and no other")
	}
}

// TestMetricsKnowTemplatesOnly: a stranger can't make series.
func TestMetricsKnowTemplatesOnly(t *testing.T) {
	k := newKit(t, kitOptions{})
	for i := range 20 {
		k.send(k.raw(nil), http.MethodGet, k.url+"/nowhere/"+strconv.Itoa(i), "")
		k.local(k.api.Public(), "127.0.0.1:1", "ODD"+strconv.Itoa(i), "/v1/certificates/"+strconv.Itoa(i))
	}
	families, err := k.api.Registry.Gather()
	k.must(err)
	for _, family := range families {
		if n := len(family.GetMetric()); n > 12 {
			t.Errorf("%s has %d series", family.GetName(), n)
		}
	}
	got := k.local(k.api.Ops(), "127.0.0.1:1", http.MethodGet, "/metrics")
	if !strings.Contains(got.Body.String(), `countersign_http_requests_total{method="GET",route="none",status="404"} 20`) {
		t.Errorf("the metrics lack what was asked:\n%s", got.Body)
	}
}

func TestOps(t *testing.T) {
	k := newKit(t, kitOptions{})
	ops := func(method, path string) *httptest.ResponseRecorder {
		return k.local(k.api.Ops(), "127.0.0.1:1", method, path)
	}
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		if got := ops(http.MethodGet, path); got.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
		if got := ops(http.MethodPost, path); got.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", path, got.Code)
		}
	}
	for _, path := range []string{"/", "/v1/status", "/roots.pem", "/livez/", "/debug/pprof/"} {
		if got := ops(http.MethodGet, path); got.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, got.Code)
		}
	}
	k.api.Ready = func() error { return errors.New("the certificate of the listener is expired") }
	if got := ops(http.MethodGet, "/readyz"); got.Code != http.StatusServiceUnavailable || !strings.Contains(got.Body.String(), "listener") {
		t.Errorf("a further reason: %d %s", got.Code, got.Body)
	}
	k.api.Ready = nil
	k.clock.turn(366 * 24 * 3600 * 1e9)
	if got := ops(http.MethodGet, "/readyz"); got.Code != http.StatusServiceUnavailable || !strings.Contains(got.Body.String(), "intermediate") {
		t.Errorf("with an expired intermediate: %d %s", got.Code, got.Body)
	}
	k.clock.turn(-366 * 24 * 3600 * 1e9)
	k.api.Stop()
	k.api.Stop()
	if got := ops(http.MethodGet, "/readyz"); got.Code != http.StatusServiceUnavailable || !strings.Contains(got.Body.String(), "stopping") {
		t.Errorf("stopping: %d %s", got.Code, got.Body)
	}
	if got := ops(http.MethodGet, "/livez"); got.Code != http.StatusOK {
		t.Errorf("stopping is not dead: %d", got.Code)
	}
}

func TestSocket(t *testing.T) {
	k := newKit(t, kitOptions{})
	if _, err := k.admin().Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := k.admin().CreateJoinToken(t.Context(), wire.JoinTokenRequest{Service: "orders"}); err != nil {
		t.Fatal(err)
	}
	made := k.records("join-token.created")
	exe, err := os.Executable()
	k.must(err)
	want := fmt.Sprintf("uid %d pid %d %s", os.Getuid(), os.Getpid(), exe)
	if len(made) != 1 || made[0].By.Name != want || made[0].By.Method != "socket" {
		t.Errorf("audited as %+v, want %s", made, want)
	}
	for _, path := range []string{"/oauth2/token", "/v1/certificates"} {
		got := k.local(k.api.Admin(), "@", http.MethodPost, path)
		if got.Code != http.StatusNotFound && got.Code != http.StatusMethodNotAllowed {
			t.Errorf("the socket serves POST %s: %d %s", path, got.Code, got.Body)
		}
	}
	for _, r := range routes("") {
		if !r.socket() || r.auth == authPublic {
			continue
		}
		got := k.local(k.api.Admin(), "@", r.method, strings.NewReplacer(":serial", "00", ":name", "x", ":purpose", "x").Replace(r.path))
		if got.Code != http.StatusUnauthorized || !strings.Contains(got.Body.String(), string(countersign.CodeSocketPeer)) {
			t.Errorf("%s %s without peer credentials: %d %s", r.method, r.path, got.Code, got.Body)
		}
	}
}

func TestSocketPeers(t *testing.T) {
	for _, tc := range []struct {
		peer   uint32
		daemon int
		ok     bool
	}{
		{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false},
		{4294967295, -1, false}, // no uid is every uid
	} {
		caller, err := peerCred{uid: tc.peer, pid: 12, exe: "/usr/bin/x"}.caller(tc.daemon)
		if (err == nil) != tc.ok || tc.ok != (caller.Role == countersign.RoleAdmin) || tc.ok != (caller.Method == countersign.BySocket) {
			t.Errorf("uid %d at a daemon of uid %d: %+v, %v", tc.peer, tc.daemon, caller, err)
		}
	}
}

func TestSealed(t *testing.T) {
	k := newKit(t, kitOptions{})
	ring, err := keyring.Open(t.Context(), keyring.Config{Store: k.store, Audit: k.audit, Now: k.clock.now})
	k.must(err)
	cfg := k.api.Config
	cfg.Keys, cfg.Registry = ring, prometheus.NewRegistry()
	sealed, err := New(cfg)
	k.must(err)
	got := k.local(sealed.Ops(), "127.0.0.1:1", http.MethodGet, "/readyz")
	if got.Code != http.StatusServiceUnavailable || !strings.Contains(got.Body.String(), "sealed") {
		t.Errorf("a sealed daemon is ready: %d %s", got.Code, got.Body)
	}
}
