package filter

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign/sts/relay/observe"
)

// endless is a body without a known length.
func endless(n int) io.Reader { return io.MultiReader(bytes.NewReader(make([]byte, n))) }

func small() Route {
	return Route{
		Name: "small", Methods: []string{"GET", "POST", "DELETE"}, Path: "/{rest...}", Body: 1000,
		Headers: Headers{Bytes: 2000, Count: 20}, Query: Query{Bytes: 100, Count: 3},
	}
}

// A body over the limit never comes whole to the application, whether it says how long it is or not, in both protocols.
func TestBodyLimit(t *testing.T) {
	a := &app{}
	server := relay(t, a, "", small())
	for protocol, client := range map[string]*http.Client{"h2": server.Client(), "h1": http1(server)} {
		for kind, make := range map[string]func(int) io.Reader{
			"length": func(n int) io.Reader { return bytes.NewReader(make([]byte, n)) }, "no length": endless,
		} {
			if response, p, _ := send(t, client, "POST", server.URL+"/", make(1000)); response.StatusCode != http.StatusOK {
				t.Errorf("%s, %s: the limit itself: %d %v", protocol, kind, response.StatusCode, p)
			}
			before := len(a.took())
			for _, n := range []int{1001, 100_000} {
				response, p, _ := send(t, client, "POST", server.URL+"/", make(n))
				if response.StatusCode != http.StatusRequestEntityTooLarge || p.Code != "CS7037" {
					t.Errorf("%s, %s: %d bytes: %d %v", protocol, kind, n, response.StatusCode, p)
				}
			}
			if got := a.took(); len(got) != before {
				t.Errorf("%s, %s: %.100q came through", protocol, kind, got[before:])
			}
		}
	}
}

// Methods that have no body take none unless the route says so.
func TestGetHasNoBody(t *testing.T) {
	r := small()
	r.Body = 0
	none := r
	none.Body = NoBytes
	for name, server := range map[string]*httptest.Server{"not said": relay(t, &app{}, "", r), "none": relay(t, &app{}, "", none)} {
		for _, body := range []io.Reader{strings.NewReader("x"), endless(1)} {
			if _, p, _ := send(t, server.Client(), "GET", server.URL+"/", body); p.Code != "CS7037" {
				t.Errorf("%s: %v", name, p)
			}
		}
		if response, p, _ := send(t, server.Client(), "GET", server.URL+"/", nil); response.StatusCode != http.StatusOK {
			t.Errorf("%s: %v", name, p)
		}
	}
	said := relay(t, &app{}, "", small())
	if response, p, _ := send(t, said.Client(), "GET", said.URL+"/", strings.NewReader("x")); response.StatusCode != http.StatusOK {
		t.Errorf("said: %v", p)
	}
	if _, p, _ := send(t, relay(t, &app{}, "", none).Client(), "POST", relay(t, &app{}, "", none).URL+"/", strings.NewReader("x")); p.Code != "" && p.Code != "CS7037" {
		t.Errorf("POST with none: %v", p)
	}
}

func TestHeaderLimits(t *testing.T) {
	a := &app{}
	server := relay(t, a, "", small())
	many := make([]string, 30)
	for i := range many {
		many[i] = fmt.Sprintf("X-%d: a", i)
	}
	for protocol, client := range map[string]*http.Client{"h2": server.Client(), "h1": http1(server)} {
		for name, header := range map[string][]string{
			"one long": {"X-Long: " + strings.Repeat("a", 2000)}, "many": many, "one name": strings.Split(strings.Repeat("X-Same: a,", 29)+"X-Same: a", ","),
		} {
			response, p, _ := send(t, client, "GET", server.URL+"/", nil, header...)
			if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge || p.Code != "CS7034" {
				t.Errorf("%s, %s: %d %v", protocol, name, response.StatusCode, p)
			}
		}
	}
	if len(a.took()) > 0 {
		t.Errorf("%v came through", a.took())
	}
}

func TestQueryLimits(t *testing.T) {
	a := &app{}
	server := relay(t, a, "", small())
	for query, want := range map[string]string{
		"":                             "",
		"a=1&b=2&c=3":                  "",
		"a=%C3%BC+x&b":                 "",
		"a=" + strings.Repeat("x", 98): "",
		"a=" + strings.Repeat("x", 99): "CS7033",
		"a=1&b=2&c=3&d=4":              "CS7033",
		"&&&&":                         "CS7033",
		"a=1;b=2":                      "CS7032",
		"a=%zz":                        "CS7032",
		"a=%":                          "CS7032",
	} {
		before := len(a.took())
		response, p, _ := send(t, http1(server), "GET", server.URL+"/x?"+query, nil)
		if p.Code != want || want == "CS7033" && response.StatusCode != http.StatusRequestURITooLong {
			t.Errorf("%.30q: %d %v, want %s", query, response.StatusCode, p, want)
		}
		// The application sees the very query, or nothing.
		if after := a.took()[before:]; want == "" && (len(after) != 1 || strings.TrimRight(after[0], " ?") != strings.TrimRight("GET /x?"+query, "?")) || want != "" && len(after) != 0 {
			t.Errorf("%.30q: the application saw %.100q", query, after)
		}
		if want != "" && strings.Contains(p.Detail, query) && len(query) > 1 {
			t.Errorf("%q is told", query)
		}
	}
}

func TestContentTypes(t *testing.T) {
	r := small()
	r.ContentTypes = []string{"application/json", "image/*"}
	a := &app{}
	server := relay(t, a, "", r)
	for header, want := range map[string]string{
		"Content-Type: application/json":                  "",
		"Content-Type: Application/JSON; charset=utf-8":   "",
		"Content-Type: image/png":                         "",
		"X: y":                                            "CS7035",
		"Content-Type: application/json; charset=utf-16":  "CS7035",
		"Content-Type: application/jsonx":                 "CS7035",
		"Content-Type: application/xml":                   "CS7035",
		"Content-Type: image":                             "CS7035",
		"Content-Type: image/*":                           "CS7035",
		"Content-Type: imagex/png":                        "CS7035",
		"Content-Type: application/json, application/xml": "CS7035",
		"Content-Type: ;":                                 "CS7035",
	} {
		for kind, body := range map[string]io.Reader{"length": strings.NewReader("{}"), "no length": endless(2)} {
			if response, p, _ := send(t, server.Client(), "POST", server.URL+"/", body, header); p.Code != want || want != "" && response.StatusCode != http.StatusUnsupportedMediaType {
				t.Errorf("%s, %s: %d %v", header, kind, response.StatusCode, p)
			}
		}
	}
	if _, p, _ := send(t, server.Client(), "POST", server.URL+"/", strings.NewReader("{}"), "Content-Type: application/json", "Content-Type: image/png"); p.Code != "CS7035" {
		t.Errorf("two: %v", p)
	}
	if response, p, _ := send(t, server.Client(), "DELETE", server.URL+"/", nil); response.StatusCode != http.StatusOK {
		t.Errorf("without a body: %v", p)
	}
}

// Headers that would tell the application another method or path get nowhere.
func TestOverridesAreRefused(t *testing.T) {
	a := &app{}
	server := relay(t, a, "", small())
	for _, name := range []string{"X-HTTP-Method-Override", "x-http-method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL"} {
		if response, p, _ := send(t, server.Client(), "POST", server.URL+"/", nil, name+": DELETE"); response.StatusCode != http.StatusBadRequest || p.Code != "CS7032" {
			t.Errorf("%s: %d %v", name, response.StatusCode, p)
		}
	}
	if len(a.took()) > 0 {
		t.Errorf("%v came through", a.took())
	}
}

// Over the wire: what the application gets is the very target that was judged; all else is refused.
func TestTargetsOverTheWire(t *testing.T) {
	a := &app{}
	routes := []Route{
		{Name: "orders", Methods: []string{"GET"}, Path: "/orders/{id}"}, {Name: "admin", Methods: []string{"POST"}, Path: "/admin"},
		{Name: "rest", Methods: []string{"GET"}, Path: "/files/{rest...}"},
	}
	rt, err := NewRouter(routes)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(rt.Handler(func(i int) http.Handler { return Limits(routes[i])(a) }))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]int{
		"/orders/1": 200, "/orders/%C3%BC": 200, "/files/": 200, "/files/a/b.txt": 200, "http://other.example/orders/1": 200,
		"/orders/../admin": 400, "/orders/%2e%2e/admin": 400, "/orders//1": 400, "/orders/1%2fitems": 400, "/orders\\1": 400, "/orders/1;x": 400,
		"/files/..%2fadmin": 400, "/files/..;/admin": 400, "/files/%2e%2e%5cadmin": 400, "/files/a%00": 400, "/files/%252e%252e/admin": 400, "//orders/1": 400,
		"/orders/1?a=%C3%BC": 200, "/orders/1?a=\xc3\xbc": 400, "/orders/1?a#b": 400, "/orders/1?a=1;b=2": 400, "/orders/1?%zz": 400,
		"/orders/1#x": 400, "/files/.": 400, "*": 400, "http://other.example": 400,
		"/admin": 405, "/Admin": 404, "/admin/": 404, "/ADMIN": 404, "/": 404, "/nothing": 404,
	} {
		before := len(a.took())
		status, header := raw(t, u.Host, "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if status != want {
			t.Errorf("%s: %d, want %d", target, status, want)
		}
		if want == 405 && header.Get("Allow") != "POST" {
			t.Errorf("%s: Allow %q", target, header.Get("Allow"))
		}
		after := a.took()[before:]
		if want == 200 && (len(after) != 1 || after[0] != "GET "+target+" ") || want != 200 && len(after) != 0 {
			t.Errorf("%s: the application saw %q", target, after)
		}
	}
	for _, method := range []string{"TRACE", "PROPFIND", "get", "OPTIONS"} {
		if status, header := raw(t, u.Host, method+" /orders/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); status != http.StatusMethodNotAllowed || header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d %v", method, status, header)
		}
	}
	if status, _ := raw(t, u.Host, "CONNECT orders:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); status != http.StatusBadRequest {
		t.Errorf("CONNECT: %d", status)
	}
}

// A body that ends early is the client's fault, and says so to who forwards it.
func TestBodyThatEndsEarly(t *testing.T) {
	noted := make(chan error, 1)
	r := small()
	rt, err := NewRouter([]Route{r})
	if err != nil {
		t.Fatal(err)
	}
	inner := rt.Handler(func(int) http.Handler {
		return Limits(r)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			noted <- observe.From(r.Context()).Failed()
		}))
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r.WithContext(observe.NewContext(r.Context(), &observe.Request{})))
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	status, _ := raw(t, u.Host, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\nzz\r\n")
	if err := <-noted; err == nil || !strings.Contains(err.Error(), "CS7036") {
		t.Errorf("%d, %v", status, err)
	}
}
