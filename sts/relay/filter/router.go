package filter

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

const maxRoutes = 1000

// Router finds the route of a request. A path of the configuration is literal segments, wildcards for one whole segment
// ({id}), and at the end a wildcard for the rest ({rest...}, which takes no segment too: "/static/"). It is written decoded;
// letter case and a slash at the end count. Where several take a path the most specific one wins, in whatever order they stand;
// routes that overlap and of which neither is more specific are a fault of the configuration, as in net/http's ServeMux, which
// does the matching.
//
// Applications may be less exact: many mind neither letter case nor a slash at the end. So routes may not differ in these alone,
// and a path that without them would be another route's is refused, not given to the wider route: with /admin and /{rest...},
// neither /ADMIN nor /admin/ gets through.
//
// A route takes its methods; routes of one path share it by methods. No path: 404. No method: 405 with Allow. A path that servers
// read differently (checkPath), or a header that tells the application another path or method: 400.
type Router struct {
	exact, folded *http.ServeMux
	routes        []Route
}

// entry is all routes of one path.
type entry struct {
	pattern  pattern
	byMethod map[string]int // index of the route
	allow    string
}

// ServeHTTP makes an entry one that a ServeMux keeps; it is never called.
func (*entry) ServeHTTP(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }

// NewRouter checks the routes and all their limits. The error names the route.
func NewRouter(routes []Route) (*Router, error) {
	if len(routes) > maxRoutes {
		return nil, fmt.Errorf("there are %d routes, and at most %d are taken", len(routes), maxRoutes)
	}
	rt := &Router{exact: http.NewServeMux(), folded: http.NewServeMux(), routes: slices.Clone(routes)}
	entries, names := map[string]*entry{}, map[string]bool{}
	for i := range routes {
		r := &routes[i]
		if err := r.Validate(); err != nil {
			return nil, fmt.Errorf("route %.64q: %w", r.Name, err)
		}
		if names[r.Name] {
			return nil, fmt.Errorf("route %q stands twice", r.Name)
		}
		names[r.Name] = true
		if err := rt.add(entries, i, r); err != nil {
			return nil, fmt.Errorf("route %q: %w", r.Name, err)
		}
	}
	for _, e := range entries {
		methods := make([]string, 0, len(e.byMethod))
		for m := range e.byMethod {
			methods = append(methods, m)
		}
		slices.Sort(methods)
		e.allow = strings.Join(methods, ", ")
	}
	return rt, nil
}

func (rt *Router) add(entries map[string]*entry, i int, r *Route) error {
	p, err := parsePattern(r.Path)
	if err != nil {
		return err
	}
	key := p.mux(false)
	e, ok := entries[key]
	if !ok {
		e = &entry{pattern: p, byMethod: map[string]int{}}
		if err := register(rt.exact, key, e); err != nil {
			return fmt.Errorf("its path overlaps another route's, and neither is more specific: %w", err)
		}
		if err := register(rt.folded, p.mux(true), e); err != nil {
			return fmt.Errorf("its path is another route's but for letter case or a last slash, which many applications do not mind: %w", err)
		}
		entries[key] = e
	}
	methods := slices.Clone(r.Methods)
	if slices.Contains(methods, http.MethodGet) && !slices.Contains(methods, http.MethodHead) {
		if _, taken := e.byMethod[http.MethodHead]; !taken {
			methods = append(methods, http.MethodHead)
		}
	}
	for _, m := range methods {
		if other, taken := e.byMethod[m]; taken && !(m == http.MethodHead && !slices.Contains(rt.routes[other].Methods, m)) {
			return fmt.Errorf("%s %s is also route %q", m, r.Path, rt.routes[other].Name)
		}
		e.byMethod[m] = i
	}
	return nil
}

// register turns the panic of a ServeMux about overlapping patterns into an error.
func register(mux *http.ServeMux, pattern string, e *entry) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("of " + pattern)
			if text := fmt.Sprint(p); strings.Contains(text, "conflicts with") {
				_, other, _ := strings.Cut(text, "conflicts with pattern ")
				err = fmt.Errorf("%.100s", strings.TrimSpace(strings.Join(strings.Fields(other), " ")))
			}
		}
	}()
	mux.Handle(pattern, e)
	return nil
}

// lookup finds the entry of a path, decoded or not, that checkPath lets through; nil: there is none.
func lookup(mux *http.ServeMux, u *url.URL) *entry {
	// The method does not matter to patterns without one; CONNECT alone would be treated differently.
	handler, _ := mux.Handler(&http.Request{Method: http.MethodGet, URL: u})
	e, _ := handler.(*entry)
	return e
}

// find is the pure part: the index of the route, or the refusal and the methods that there are.
func (rt *Router) find(method string, u *url.URL) (index int, allow string, err error) {
	if reason := checkPath(u); reason != "" {
		return 0, "", countersign.Errorf(countersign.CodeRelayPath, "the path is not forwarded: %s", reason)
	}
	e := lookup(rt.exact, u)
	if e == nil {
		return 0, "", countersign.Errorf(countersign.CodeRelayRoute, "no route takes this path")
	}
	for _, path := range []string{strings.ToLower(u.Path), fold(u.Path)} {
		if loose := lookup(rt.folded, &url.URL{Path: path}); loose != nil && loose != e && !loose.pattern.covers(e.pattern) {
			return 0, "", countersign.Errorf(countersign.CodeRelayRoute, "no route takes this path").
				WithHint("but for letter case or a last slash it is the path of another route; write it exactly")
		}
	}
	index, ok := e.byMethod[method]
	if !ok {
		return 0, e.allow, countersign.Errorf(countersign.CodeRelayMethod, "the route takes %s", e.allow)
	}
	return index, "", nil
}

// overrides are headers by which applications let a request have another method or path than the one in its first line.
func overrides() []string {
	return []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Original-Method"}
}

// Handler gives each request to the handler of its route: each(i) is asked once for every route, in their order.
func (rt *Router) Handler(each func(i int) http.Handler) http.Handler {
	handlers := make([]http.Handler, len(rt.routes))
	for i := range handlers {
		handlers[i] = each(i)
	}
	refused := overrides()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i, allow, err := rt.find(r.Method, r.URL)
		if allow != "" {
			w.Header().Set("Allow", allow)
		}
		if err != nil {
			observe.Refuse(w, r, err)
			return
		}
		observe.From(r.Context()).SetRoute(rt.routes[i].Name)
		for _, name := range refused {
			if _, ok := r.Header[name]; ok {
				observe.Refuse(w, r, countersign.Errorf(countersign.CodeRelayPath,
					"the header %s is not forwarded: it would tell the application another method or path", name))
				return
			}
		}
		handlers[i].ServeHTTP(w, r)
	})
}
