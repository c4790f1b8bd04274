package filter

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
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

	"github.com/countersign/countersign/sts/relay/observe"
)

// app is an application behind the filters, reached through a ReverseProxy as the relay's is: it notes what it was asked.
type app struct {
	mu   sync.Mutex
	seen []string // method, request target and body, of requests that came whole
	cut  int      // requests whose body did not
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.cut++
		return
	}
	a.seen = append(a.seen, fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, body))
	w.Header().Set("X-App", "yes")
}

func (a *app) took() []string { a.mu.Lock(); defer a.mu.Unlock(); return a.seen }

// relay puts the layers together as sts/relay does, in front of a.
func relay(t *testing.T, a http.Handler, dir string, routes ...Route) *httptest.Server {
	t.Helper()
	rt, err := NewRouter(routes)
	if err != nil {
		t.Fatal(err)
	}
	behind := httptest.NewServer(a)
	t.Cleanup(behind.Close)
	target, err := url.Parse(behind.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(pr *httputil.ProxyRequest) { pr.SetURL(target) },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if failed := observe.From(r.Context()).Failed(); failed != nil {
				observe.Refuse(w, r, failed)
				return
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	around, err := observe.New(observe.Config{Listener: "public", Registry: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(around(rt.Handler(func(i int) http.Handler {
		v, err := NewValidator(routes[i], dir)
		if err != nil {
			t.Fatal(err)
		}
		return Limits(routes[i])(v.Middleware(proxy))
	})))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

// problem is the body of a refusal.
type problem struct {
	Status int
	Code   string
	Detail string
	Errors []observe.Fault
}

func (p problem) String() string { return fmt.Sprintf("%s %s %+v", p.Code, p.Detail, p.Errors) }

// send sends a request as it is written, over HTTP/2 unless the client is another one.
func send(t *testing.T, client *http.Client, method, target string, body io.Reader, header ...string) (*http.Response, problem, string) {
	t.Helper()
	r, err := http.NewRequest(method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %.100s: %v", method, target, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var p problem
	if response.Header.Get("Content-Type") == "application/problem+json" {
		if err := json.Unmarshal(text, &p); err != nil || p.Status != response.StatusCode {
			t.Errorf("%s: %v", text, err)
		}
	}
	return response, p, string(text)
}

// http1 is a client that speaks HTTP/1.1.
func http1(server *httptest.Server) *http.Client {
	transport := server.Client().Transport.(*http.Transport).Clone()
	transport.ForceAttemptHTTP2 = false
	transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	return &http.Client{Transport: transport}
}

// raw sends bytes to a server without TLS, and gives the answer's status.
func raw(t *testing.T, address, text string) (int, http.Header) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	defer response.Body.Close()
	return response.StatusCode, response.Header
}
