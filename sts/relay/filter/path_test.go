package filter

import (
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

// pathCases are paths as they come, and whether they are forwarded.
func pathCases() map[string]bool {
	return map[string]bool{
		"/": true, "/orders": true, "/orders/": true, "/orders/42": true, "/a.b/c": true, "/.well-known/x": true, "/~user/@x:y": true,
		"/a,b=c&d+e!$'()*": true, "/b%C3%BCcher": true, "/a%20b": true, "/%e2%82%ac": true, "/a%3Fb": true, "/...a": true,

		"/.": false, "/..": false, "/a/./b": false, "/a/../b": false, "/a/..": false, "/%2e": false, "/%2E%2e/a": false, "/.%2e/a": false,
		"/a/...": false, "/a./b": false, "/a%2e": false, "/a%20": false, "/a%20/b": false,
		"//": false, "//a": false, "/a//b": false, "/a//": false,
		"/a%2Fb": false, "/a%2fb": false, "/a%5Cb": false, "/a%5c..%5cb": false, "/a\\b": false,
		"/a;x=1": false, "/a;/b": false, "/..;/a": false, "/a%3Bx": false,
		"/a%25b": false, "/%252e%252e/a": false, "/%25%32%66": false,
		"/a%00": false, "/a%0a": false, "/a%0d%0ab": false, "/a%7f": false, "/a%09b": false, "/%c2%85": false, "/a%E2%80%A8": false,
		"/%ff": false, "/%c0%ae%c0%ae/": false, "/%c0%af": false, "/%ed%a0%80": false,
		"/a|b": false, "/a[b]": false, "/a^b": false, "/a<b": false, "/a`b": false, "/{a}": false, "/\u00fc": false,
		"/" + strings.Repeat("a", maxPath): false, strings.Repeat("/a", maxDepth+1): false,
		strings.Repeat("/a", maxDepth): true,
	}
}

func TestPaths(t *testing.T) {
	for raw, want := range pathCases() {
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			if want {
				t.Errorf("%q: %v", raw, err)
			}
			continue
		}
		if reason := checkPath(u); (reason == "") != want {
			t.Errorf("%q: %q, want it forwarded: %v", raw, reason, want)
		}
	}
	for _, u := range []*url.URL{{}, {Path: "*"}, {Path: "a"}, {Opaque: "x:y"}, {Path: "/a b", RawPath: "/a b"}} {
		if checkPath(u) == "" {
			t.Errorf("%#v is forwarded", u)
		}
	}
}

// What gets through is read alike by a server that cleans paths, one that does not, one that decodes twice, one that takes
// backslashes for slashes, and one that cuts path parameters off.
func FuzzPath(f *testing.F) {
	for raw := range pathCases() {
		if len(raw) < 200 {
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := url.ParseRequestURI(raw)
		if err != nil || checkPath(u) != "" {
			return
		}
		if u.EscapedPath() != raw && !strings.ContainsAny(raw, "?") && strings.HasPrefix(raw, "/") {
			t.Fatalf("%q is forwarded as %q", raw, u.EscapedPath())
		}
		p := u.Path
		cleaned := path.Clean(p)
		if strings.HasSuffix(p, "/") && p != "/" {
			cleaned += "/"
		}
		if cleaned != p {
			t.Fatalf("%q is %q when cleaned", p, cleaned)
		}
		if twice, err := url.PathUnescape(p); err != nil || twice != p {
			t.Fatalf("%q is %q when decoded again", p, twice)
		}
		if strings.ContainsAny(p, "\\;\x00\r\n") || strings.Contains(p, "//") || !utf8.ValidString(p) {
			t.Fatalf("%q gets through", p)
		}
		if strings.Count(p, "/") != strings.Count(u.EscapedPath(), "/") {
			t.Fatalf("%q has other segments than %q", p, u.EscapedPath())
		}
		if folded := fold(p); fold(folded) != folded && fold(fold(folded)) != fold(folded) {
			t.Fatalf("%q does not fold", p)
		}
	})
}

func FuzzRoutes(f *testing.F) {
	for _, s := range []string{"/", "/a", "/A", "/a/", "/{x}", "/a/{x}/b", "/{rest...}", "/a/{rest...}", "/{x}/b", "/a b", "/{x", "/%61", "/\u00fc", "/a{x}"} {
		f.Add(s, "/a", "/a/b")
	}
	f.Fuzz(func(t *testing.T, one, two, raw string) {
		rt, err := NewRouter([]Route{{Name: "one", Methods: []string{"GET"}, Path: one}, {Name: "two", Methods: []string{"GET"}, Path: two}})
		if err != nil {
			return
		}
		u, err := url.ParseRequestURI(raw)
		if err != nil {
			return
		}
		if _, _, err := rt.find("GET", u); err == nil && checkPath(u) != "" {
			t.Fatalf("%q is routed", raw)
		}
		// A path that is written literally as in the configuration is that route's, or nobody's if it is ambiguous.
		for i, text := range []string{one, two} {
			if strings.ContainsAny(text, "{}") {
				continue
			}
			if found, _, err := rt.find("GET", &url.URL{Path: text}); err == nil && found != i {
				t.Fatalf("%q is given to %q", text, rt.routes[found].Path)
			}
		}
	})
}
