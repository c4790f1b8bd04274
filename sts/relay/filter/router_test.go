package filter

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign"
)

func route(name, methods, path string) Route {
	return Route{Name: name, Methods: strings.Fields(methods), Path: path}
}

func newRouter(t *testing.T, routes ...Route) *Router {
	t.Helper()
	rt, err := NewRouter(routes)
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

// found is the name of the route of a request, or the code of its refusal with the methods that there are.
func found(t *testing.T, rt *Router, method, raw string) string {
	t.Helper()
	u, err := url.ParseRequestURI(raw)
	if err != nil {
		t.Fatal(err)
	}
	i, allow, err := rt.find(method, u)
	if err != nil {
		return strings.TrimSpace(string(countersign.AsError(err).Code) + " " + allow)
	}
	return rt.routes[i].Name
}

func TestRoutes(t *testing.T) {
	for _, order := range []bool{false, true} {
		routes := []Route{
			route("root", "GET", "/"),
			route("list", "GET", "/orders"),
			route("create", "POST", "/orders"),
			route("one", "GET PUT", "/orders/{id}"),
			route("mine", "GET", "/orders/mine"),
			route("items", "GET", "/orders/{id}/items/{item}"),
			route("static", "GET HEAD", "/static/{rest...}"),
			route("logo", "GET", "/static/logo.svg"),
			route("dir", "GET", "/dir/"),
			route("umlaut", "GET", "/bücher/{id}"),
		}
		if order {
			for i := range len(routes) / 2 {
				routes[i], routes[len(routes)-1-i] = routes[len(routes)-1-i], routes[i]
			}
		}
		rt := newRouter(t, routes...)
		for request, want := range map[string]string{
			"GET /":       "root",
			"GET /orders": "list", "HEAD /orders": "list", "POST /orders": "create", "DELETE /orders": "CS7031 GET, HEAD, POST",
			"GET /orders/42": "one", "PUT /orders/42": "one", "GET /orders/mine": "mine", "PUT /orders/mine": "CS7031 GET, HEAD",
			"GET /orders/": "CS7030", "GET /orders/42/": "CS7030", "GET /orders/42/items": "CS7030", "GET /orders/42/items/7": "items",
			"GET /static/a/b/c": "static", "GET /static/logo.svg": "logo", "GET /static/": "static", "GET /static": "CS7030",
			"POST /static/a": "CS7031 GET, HEAD", "GET /dir/": "dir", "GET /dir": "CS7030",
			"GET /b%C3%BCcher/1": "umlaut", "GET /b%c3%bccher/1": "umlaut", "GET /b%C3%9Ccher/1": "CS7030",
			"GET /nothing": "CS7030", "CONNECT /orders": "CS7031 GET, HEAD, POST", "get /orders": "CS7031 GET, HEAD, POST",
			// An application that decodes unreserved characters sees /orders, and so does the route.
			"GET /%6frders": "list",
			// What an application may see as /static/logo.svg or /orders/mine is not given to the wider route.
			"GET /static/Logo.SVG": "CS7030", "GET /static/logo.svg/": "CS7030", "GET /orders/MINE": "CS7030", "GET /orders/MiNe": "CS7030",
			"GET /orders/%6d%69%6E%65": "mine",
			"GET /ORDERS":              "CS7030",
			"GET /orders/../x":         "CS7032", "GET /orders//42": "CS7032", "GET /orders;a/42": "CS7032", "GET /orders%2F42": "CS7032", "GET /orders/mine.": "CS7032",
		} {
			method, raw, _ := strings.Cut(request, " ")
			if got := found(t, rt, method, raw); got != want {
				t.Errorf("%s: %s, want %s", request, got, want)
			}
		}
	}
}

// With a route for everything there is still no way around the narrower one.
func TestCatchAllTakesNothingAmbiguous(t *testing.T) {
	rt := newRouter(t, route("admin", "GET", "/admin/{rest...}"), route("login", "GET", "/Login"), route("all", "GET POST", "/{rest...}"))
	for raw, want := range map[string]string{
		"/admin/x": "admin", "/Admin/x": "CS7030", "/ADMIN/": "CS7030", "/admin/": "admin", "/login": "CS7030", "/Login": "login", "/LOGIN/": "CS7030",
		"/Login/": "CS7030", "/x": "all", "/": "all", "/X/": "all",
	} {
		if got := found(t, rt, http.MethodGet, raw); got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
	// Nor by another method: the narrower path has not got it, so nobody has.
	if got := found(t, rt, http.MethodPost, "/admin/x"); got != "CS7031 GET, HEAD" {
		t.Errorf("POST /admin/x: %s", got)
	}
}

// A GET route takes HEAD unless another route does, in whatever order they stand.
func TestHeadBelongsToTheRouteThatNamesIt(t *testing.T) {
	for _, rt := range []*Router{
		newRouter(t, route("get", "GET", "/a"), route("head", "HEAD", "/a")),
		newRouter(t, route("head", "HEAD", "/a"), route("get", "GET", "/a")),
	} {
		if got := found(t, rt, http.MethodHead, "/a"); got != "head" {
			t.Errorf("HEAD: %s", got)
		}
		if got := found(t, rt, http.MethodGet, "/a"); got != "get" {
			t.Errorf("GET: %s", got)
		}
	}
}

func TestRoutesAreChecked(t *testing.T) {
	good := route("a", "GET", "/a")
	with := func(change func(*Route)) []Route { r := good; change(&r); return []Route{r} }
	for want, routes := range map[string][]Route{
		"name must":         with(func(r *Route) { r.Name = "" }),
		"not none":          with(func(r *Route) { r.Name = "none" }),
		"64 letters":        with(func(r *Route) { r.Name = "a b" }),
		"methods is empty":  with(func(r *Route) { r.Methods = nil }),
		`"TRACE"`:           with(func(r *Route) { r.Methods = []string{"TRACE"} }),
		`"get"`:             with(func(r *Route) { r.Methods = []string{"get"} }),
		"GET twice":         with(func(r *Route) { r.Methods = []string{"GET", "GET"} }),
		"begin with":        with(func(r *Route) { r.Path = "a" }),
		"empty segment":     with(func(r *Route) { r.Path = "/a//b" }),
		"dot segment":       with(func(r *Route) { r.Path = "/a/../b" }),
		`'%'`:               with(func(r *Route) { r.Path = "/%61" }),
		`';'`:               with(func(r *Route) { r.Path = "/a;b" }),
		"no wildcard":       with(func(r *Route) { r.Path = "/a{x}" }),
		"is no wildcard":    with(func(r *Route) { r.Path = "/{x y}" }),
		"before the end":    with(func(r *Route) { r.Path = "/{x...}/b" }),
		"wildcard x twice":  with(func(r *Route) { r.Path = "/{x}/{x}" }),
		"headers.count":     with(func(r *Route) { r.Headers.Count = -1 }),
		"headers.bytes":     with(func(r *Route) { r.Headers.Bytes = NoBytes }),
		"query.count":       with(func(r *Route) { r.Query.Count = 1001 }),
		"query.bytes":       with(func(r *Route) { r.Query.Bytes = 2 << 20 }),
		"content_types":     with(func(r *Route) { r.ContentTypes = []string{"application/json; charset=utf-8"} }),
		"content_types has": with(func(r *Route) { r.ContentTypes = []string{"Application/JSON"} }),
		"no file":           with(func(r *Route) { r.OpenAPI.Depth = 3 }),
		"16MiB":             with(func(r *Route) { r.OpenAPI.File = "x"; r.Body = 17 << 20 }),
		"openapi.depth":     with(func(r *Route) { r.OpenAPI.File = "x"; r.OpenAPI.Depth = 101 }),
		"openapi.base":      with(func(r *Route) { r.OpenAPI.File = "x"; r.OpenAPI.Base = "/api/" }),
		"stands twice":      {good, route("a", "GET", "/b")},
		"is also route":     {good, route("b", "POST GET", "/a")},
		"more specific":     {route("a", "GET", "/a/{x}"), route("b", "GET", "/{y}/b")},
		"letter case":       {good, route("b", "GET", "/A")},
		"last slash":        {good, route("b", "POST", "/a/")},
		"also route":        {route("a", "GET", "/{x}"), route("b", "GET", "/{y}")},
	} {
		if _, err := NewRouter(routes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want a word of %q", err, want)
		}
	}
	if _, err := NewRouter([]Route{good}); err != nil {
		t.Error(err)
	}
	if _, err := NewRouter(make([]Route, maxRoutes+1)); err == nil {
		t.Error("any number of routes is taken")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"none": NoBytes, "1B": 1, "512B": 512, "64KiB": 64 << 10, "2MiB": 2 << 20, "1GiB": 1 << 30} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "0", "0B", "1", "-1B", "1.5MiB", "1 MiB", "1MB", "1kib", "MiB", "99999999999999999999B", "1073741824GiB", "NONE"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a size", text)
		}
	}
}
