package observe_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

// notes is a log that can be read while it is written.
type notes struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(p)
}

// line waits for the nth line: it is written after the answer.
func (n *notes) line(t *testing.T, nth int) map[string]any {
	t.Helper()
	for range 1000 {
		n.mu.Lock()
		lines := strings.Split(strings.TrimSpace(n.text.String()), "\n")
		n.mu.Unlock()
		if len(lines) > nth && lines[nth] != "" {
			var line map[string]any
			if err := json.Unmarshal([]byte(lines[nth]), &line); err != nil {
				t.Fatal(err)
			}
			return line
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("there is no line %d in %s", nth, n.text.String())
	return nil
}

type listener struct {
	server   *httptest.Server
	log      *notes
	registry *prometheus.Registry
}

func listen(t *testing.T, trust bool, h http.HandlerFunc) listener {
	t.Helper()
	l := listener{log: &notes{}, registry: prometheus.NewRegistry()}
	around, err := observe.New(observe.Config{
		Listener: "internal", Trust: trust, Registry: l.registry, Logger: slog.New(slog.NewJSONHandler(l.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	l.server = httptest.NewServer(around(h))
	t.Cleanup(l.server.Close)
	return l
}

func get(t *testing.T, target string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

const (
	parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	id     = "0193f0a0-1111-7222-8333-444455556666"
	secret = "hunter2"
)

// The one line says who, what and how it went, and holds nothing that is secret: no path, query, token, cookie or header.
func TestAccessLog(t *testing.T) {
	l := listen(t, true, func(w http.ResponseWriter, r *http.Request) {
		request := observe.From(r.Context())
		request.SetRoute("orders")
		who := request.Identity()
		who.User, who.Client = "https://idp.example ada", "spiffe://shop.example/gateway"
		request.SetIdentity(who)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, "12345")
	})
	response := get(t, l.server.URL+"/"+secret+"?token="+secret, "Authorization", "Bearer "+secret, "Cookie", "session="+secret,
		"X-Request-Id", id, "Traceparent", parent, "User-Agent", secret, "Referer", secret)
	if got := response.Header.Get(observe.RequestID); got != id {
		t.Errorf("the answer's id is %q", got)
	}
	line := l.log.line(t, 0)
	for key, want := range map[string]any{
		"listener": "internal", "method": "GET", "route": "orders", "status": 201.0, "bytes": 5.0, "user": "https://idp.example ada",
		"client": "spiffe://shop.example/gateway", "addr": "127.0.0.1", "request_id": id, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
	} {
		if line[key] != want {
			t.Errorf("%s: %v, want %v", key, line[key], want)
		}
	}
	if line["span_id"] == "00f067aa0ba902b7" || line["span_id"] == "" {
		t.Errorf("span: %v", line["span_id"])
	}
	if strings.Contains(l.log.text.String(), secret) {
		t.Errorf("the log holds a secret: %s", l.log.text.String())
	}
}

// At a listener for strangers their ids and traces begin anew, and what the application gets is what the log has.
func TestStrangersChooseNoIDs(t *testing.T) {
	got := make(chan http.Header, 1)
	l := listen(t, false, func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Clone() })
	response := get(t, l.server.URL, "X-Request-Id", id, "Traceparent", parent, "Tracestate", "a=1", "Baggage", "user=root")
	h, line := <-got, l.log.line(t, 0)
	if h.Get(observe.RequestID) == id || h.Get(observe.RequestID) != response.Header.Get(observe.RequestID) || line["request_id"] != h.Get(observe.RequestID) {
		t.Errorf("request id: %q, answer %q, log %v", h.Get(observe.RequestID), response.Header.Get(observe.RequestID), line["request_id"])
	}
	if trace := h.Get("Traceparent"); strings.Contains(trace, "4bf92f3577b34da6a3ce929d0e0e4736") || !strings.Contains(trace, line["trace_id"].(string)+"-"+line["span_id"].(string)) {
		t.Errorf("trace %q, log %v", trace, line)
	}
	if h.Get("Tracestate") != "" || h.Get("Baggage") != "" {
		t.Errorf("%v", h)
	}
}

// A refusal is a problem, with the faults that it names; the cause goes to the log, and nothing of an internal error to the client.
func TestRefusals(t *testing.T) {
	errs := []error{
		countersign.Errorf(countersign.CodeRelayRate, "slow down").After(1500 * time.Millisecond),
		&observe.FaultsError{Err: countersign.Errorf(countersign.CodeRelayDocument, "no"), Faults: []observe.Fault{{In: "query", Name: "a", Reason: "is missing"}}},
		countersign.Errorf(countersign.CodeRelayRoute, "no route").Because(errors.New("it rained")),
		errors.New("database password is " + secret),
		countersign.Errorf(countersign.CodeInternal, "database password is %s", secret).WithHint("use %s", secret),
	}
	next := make(chan error, 1)
	l := listen(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", "x")
		w.Header().Set("Content-Length", "5")
		observe.Refuse(w, r, <-next)
	})
	for i, want := range []struct {
		status         int
		retry, in, log string
	}{
		{429, "2", `"code":"CS7040"`, "CS7040"}, {400, "", `"errors":[{"in":"query","name":"a","reason":"is missing"}]`, "CS7038"},
		{404, "", `"detail":"no route"`, "it rained"}, {500, "", `"title":"something failed inside`, secret},
		{500, "", `"title":"something failed inside`, "CS1000"},
	} {
		next <- errs[i]
		response := get(t, l.server.URL, "X-Request-Id", id)
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != want.status || response.Header.Get("Retry-After") != want.retry || !strings.Contains(string(body), want.in) ||
			!strings.Contains(string(body), id) || response.Header.Get("Cache-Control") != "no-store" || response.Header.Get("Etag") != "" || response.Header.Get(observe.CodeHeader) == "" {
			t.Errorf("%v: %d %v %s", errs[i], response.StatusCode, response.Header, body)
		}
		if strings.Contains(string(body), secret) || strings.Contains(string(body), "it rained") {
			t.Errorf("the cause is told: %s", body)
		}
		if line := fmt.Sprint(l.log.line(t, i)); !strings.Contains(line, want.log) {
			t.Errorf("%v is logged as %s", errs[i], line)
		}
	}
}

// gathered are the metrics' values, of histograms the counts.
func gathered(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetName() + "=" + label.GetValue()
			}
			values[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	hold, held := make(chan bool), make(chan bool)
	l := listen(t, true, func(w http.ResponseWriter, r *http.Request) {
		request := observe.From(r.Context())
		switch r.URL.Path {
		case "/ok":
			request.SetRoute("orders")
			request.SetRoute("other") // the first one counts
		case "/limited":
			request.SetRoute("orders")
			observe.Refuse(w, r, countersign.Errorf(countersign.CodeRelayRate, "slow down"))
		case "/hold":
			request.SetRoute("orders")
			held <- true
			<-hold
		default:
			observe.Refuse(w, r, countersign.Errorf(countersign.CodeRelayRoute, "no"))
		}
	})
	for _, path := range []string{"/ok", "/ok", "/limited", "/" + secret} {
		get(t, l.server.URL+path)
	}
	go func() {
		if response, err := http.Get(l.server.URL + "/hold"); err == nil {
			response.Body.Close()
		}
	}()
	<-held
	l.log.line(t, 3)
	for metric, want := range map[string]float64{
		"countersign_relay_requests_total class=2xx listener=internal route=orders":  2,
		"countersign_relay_requests_total class=4xx listener=internal route=orders":  1,
		"countersign_relay_requests_total class=4xx listener=internal route=none":    1,
		"countersign_relay_refused_total code=CS7040 listener=internal route=orders": 1,
		"countersign_relay_refused_total code=CS7030 listener=internal route=none":   1,
		"countersign_relay_rate_limited_total listener=internal route=orders":        1,
		"countersign_relay_requests_inflight listener=internal route=orders":         1,
	} {
		if got := gathered(t, l.registry)[metric]; got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	if all := fmt.Sprint(gathered(t, l.registry)); strings.Contains(all, secret) || strings.Contains(all, "other") {
		t.Errorf("labels that are no routes: %s", all)
	}
	close(hold)
	l.log.line(t, 4)
	all := gathered(t, l.registry)
	if n := all["countersign_relay_request_duration_seconds listener=internal route=orders"]; n != 4 {
		t.Errorf("%v durations", n)
	}
	if n := all["countersign_relay_requests_inflight listener=internal route=orders"]; n != 0 {
		t.Errorf("%v are in flight", n)
	}
}

// A panic is one answer of 500; where the answer had begun the connection is cut, so that nobody takes the part for the whole.
func TestPanics(t *testing.T) {
	l := listen(t, true, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/begun":
			fmt.Fprint(w, strings.Repeat("x", 1<<16))
			_ = http.NewResponseController(w).Flush()
			panic(secret)
		case "/abort":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		panic(secret)
	})
	response := get(t, l.server.URL+"/early")
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusInternalServerError || strings.Contains(string(body), secret) {
		t.Errorf("%d %s %v", response.StatusCode, body, err)
	}
	for i, path := range []string{"/begun", "/abort"} {
		response := get(t, l.server.URL+path)
		if _, err := io.ReadAll(response.Body); err == nil {
			t.Errorf("%s: the answer seems whole", path)
		}
		if line := l.log.line(t, i+1); line["aborted"] != true {
			t.Errorf("%s: %v", path, line)
		}
	}
}

// Upgrades, streams and early hints of a proxied application go through the counting writer.
func TestUpgradesAndStreams(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			w.Header().Set("Link", "</a>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "one")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(buffer, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		buffer.Flush()
		line, _ := buffer.ReadString('\n')
		fmt.Fprint(buffer, line)
		buffer.Flush()
	}))
	defer app.Close()
	target, err := url.Parse(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	l := listen(t, true, func(w http.ResponseWriter, r *http.Request) {
		observe.From(r.Context()).SetRoute("echo")
		proxy.ServeHTTP(w, r)
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.server.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", response, err)
	}
	defer response.Body.Close()
	fmt.Fprint(conn, "hello\n")
	if line, err := reader.ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("%q, %v", line, err)
	}
	conn.Close()
	if line := l.log.line(t, 0); line["status"] != 101.0 {
		t.Errorf("%v", line)
	}
	stream := get(t, l.server.URL)
	part := make([]byte, 3)
	if _, err := io.ReadFull(stream.Body, part); err != nil || string(part) != "one" || stream.StatusCode != http.StatusOK {
		t.Errorf("%d %q %v", stream.StatusCode, part, err)
	}
	stream.Body.Close()
	if line := l.log.line(t, 1); line["status"] != 200.0 {
		t.Errorf("%v", line)
	}
	if n := gathered(t, l.registry)["countersign_relay_request_duration_seconds listener=internal route=echo"]; n != 1 {
		t.Errorf("%v durations: that of the upgraded connection is none", n)
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	good := observe.Config{Listener: "public", Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}
	for name, change := range map[string]func(*observe.Config){
		"no name": func(c *observe.Config) { c.Listener = "" }, "no registry": func(c *observe.Config) { c.Registry = nil }, "no log": func(c *observe.Config) { c.Logger = nil },
		"share": func(c *observe.Config) { c.Sample = 1.1 }, "below": func(c *observe.Config) { c.Sample = -0.1 }, "NaN": func(c *observe.Config) { c.Sample = math.NaN() },
	} {
		bad := good
		change(&bad)
		if _, err := observe.New(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := observe.New(good); err != nil {
		t.Error(err)
	}
	if _, err := observe.New(good); err == nil {
		t.Error("a listener is observed twice")
	}
	good.Listener = "internal"
	if _, err := observe.New(good); err != nil {
		t.Errorf("two listeners in one registry: %v", err)
	}
}
