package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/sts/verify"
)

const resourceURL = "https://inventory.shop.example"

// TestMiddleware sends requests to a real server. The challenges are RFC 6750 3's and RFC 9728 5.1's.
func TestMiddleware(t *testing.T) {
	var log bytes.Buffer
	b := newBench(t, func(cfg *verify.Config) {
		cfg.URL, cfg.Logger = resourceURL, slog.New(slog.NewTextHandler(&log, nil))
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		claims, ok := verify.FromContext(r.Context())
		if !ok {
			t.Error("the handler finds no claims")
		}
		fmt.Fprint(w, claims.Subject)
	})
	mux.Handle("/write", b.RequireScope("stock:read", "stock:delete")(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("was called") })))
	mux.Handle("/read", b.RequireScope("stock:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "read") })))
	server := httptest.NewServer(b.Middleware(mux))
	defer server.Close()

	good := b.sign(t, "at+jwt", b.claims(b.now))
	foreign := b.claims(b.now)
	foreign["aud"] = "orders"
	wrong := b.sign(t, "at+jwt", foreign)
	const at = `resource_metadata="` + resourceURL + `/.well-known/oauth-protected-resource"`
	for _, tt := range []struct {
		name, path string
		headers    []string
		status     int
		challenge  string // the whole WWW-Authenticate
		reason     verify.Reason
	}{
		{"good", "/", []string{"Authorization", "Bearer " + good}, 200, "", ""},
		{"the scheme in any case", "/", []string{"Authorization", "bEARER " + good}, 200, "", ""},
		{"more than one space", "/", []string{"Authorization", "Bearer   " + good}, 200, "", ""},
		{"with the scope", "/read", []string{"Authorization", "Bearer " + good}, 200, "", ""},
		{"no token", "/", nil, 401, "Bearer " + at, verify.ReasonCredential},
		{"in the query", "/?access_token=" + good, nil, 401, "Bearer " + at, verify.ReasonCredential},
		{"in a cookie", "/", []string{"Cookie", "access_token=" + good}, 401, "Bearer " + at, verify.ReasonCredential},
		{"in another header", "/", []string{"X-Forwarded-Access-Token", good, "Proxy-Authorization", "Bearer " + good}, 401, "Bearer " + at, verify.ReasonCredential},
		{"another scheme", "/", []string{"Authorization", "Basic " + good}, 401, "Bearer " + at, verify.ReasonCredential},
		{"DPoP where it is not taken", "/", []string{"Authorization", "DPoP " + good}, 401, "Bearer " + at, verify.ReasonCredential},
		{"no scheme", "/", []string{"Authorization", good}, 401, "Bearer " + at, verify.ReasonCredential},
		{"an empty header", "/", []string{"Authorization", ""}, 401, "Bearer " + at, verify.ReasonCredential},
		{"two headers", "/", []string{"Authorization", "Bearer " + good, "Authorization", "Bearer " + good}, 400, `Bearer error="invalid_request", ` + at, verify.ReasonRequest},
		{"two schemes", "/", []string{"Authorization", "Basic YTpi", "Authorization", "Bearer " + good}, 400, `Bearer error="invalid_request", ` + at, verify.ReasonRequest},
		{"two tokens", "/", []string{"Authorization", "Bearer " + good + " " + good}, 400, `Bearer error="invalid_request", ` + at, verify.ReasonRequest},
		{"a list", "/", []string{"Authorization", "Bearer " + good + ",Bearer " + good}, 400, `Bearer error="invalid_request", ` + at, verify.ReasonRequest},
		{"no token after the scheme", "/", []string{"Authorization", "Bearer"}, 400, `Bearer error="invalid_request", ` + at, verify.ReasonRequest},
		{"for somebody else", "/", []string{"Authorization", "Bearer " + wrong}, 401, `Bearer error="invalid_token", ` + at, verify.ReasonAudience},
		{"no JWT", "/", []string{"Authorization", "Bearer opaque"}, 401, `Bearer error="invalid_token", ` + at, "parts"},
		{"without the scope", "/write", []string{"Authorization", "Bearer " + good}, 403,
			`Bearer error="insufficient_scope", scope="stock:read stock:delete", ` + at, verify.ReasonScope},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log.Reset()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(tt.headers); i += 2 {
				r.Header.Add(tt.headers[i], tt.headers[i+1])
			}
			resp, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != tt.status {
				t.Fatal(resp.Status, string(body), err)
			}
			if diff := cmp.Diff(tt.challenge, strings.Join(resp.Header.Values("WWW-Authenticate"), "\n")); diff != "" {
				t.Error(diff)
			}
			if tt.status == 200 {
				return
			}
			if got := strings.TrimSpace(string(body)); got != http.StatusText(tt.status) {
				t.Errorf("the answer tells more than its status: %q", got)
			}
			if !strings.Contains(log.String(), "reason="+string(tt.reason)) || strings.Contains(log.String(), good) {
				t.Errorf("the log does not tell the reason, or tells the token:\n%s", &log)
			}
		})
	}
}

// TestUnavailable: when nothing is known about a token it is neither taken nor called invalid.
func TestUnavailable(t *testing.T) {
	b := newBench(t, nil)
	b.down.Store(true)
	server := httptest.NewServer(b.Middleware(http.NotFoundHandler()))
	defer server.Close()
	resp := ask(t, server.Client(), server.URL, "Authorization", "Bearer "+b.sign(t, "at+jwt", b.claims(b.now)))
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get("WWW-Authenticate") != "" {
		t.Error(resp.Status, resp.Header)
	}
}

// TestClaimsOfAnotherVerifier: what one verifier let pass, another verifies itself; the same one does not do it twice.
func TestClaimsOfAnotherVerifier(t *testing.T) {
	one, two := newBench(t, nil), newBench(t, nil)
	reached := 0
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ })
	for inner, want := range map[*bench]int{one: 200, two: 401} {
		server := httptest.NewServer(one.Middleware(inner.RequireScope("stock:read")(handler)))
		resp := ask(t, server.Client(), server.URL, "Authorization", "Bearer "+one.sign(t, "at+jwt", one.claims(one.now)))
		if resp.StatusCode != want {
			t.Error(resp.Status, want)
		}
		server.Close()
	}
	if reached != 1 {
		t.Errorf("the handler was reached %d times", reached)
	}
	if _, ok := verify.FromContext(t.Context()); ok {
		t.Error("claims out of nothing")
	}
}

// TestAnotherTokenInContext: claims in a context vouch for the Authorization that they came from and for no other request's.
func TestAnotherTokenInContext(t *testing.T) {
	b := newBench(t, nil)
	good := "Bearer " + b.sign(t, "at+jwt", b.claims(b.now))
	bob := b.claims(b.now)
	bob["sub"] = "bob"
	for name, tt := range map[string]struct {
		inner []string // Authorization of the request that the handler verifies
		sub   string
		want  verify.Reason
	}{
		"the same":        {[]string{good}, "alice", ""},
		"another's token": {[]string{"Bearer " + b.sign(t, "at+jwt", bob)}, "bob", ""},
		"a bad token":     {[]string{"Bearer x"}, "", "parts"},
		"none":            {nil, "", verify.ReasonCredential},
		"two":             {[]string{good, good}, "", verify.ReasonRequest},
	} {
		reached := false
		handler := b.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			reached = true
			inner := httptest.NewRequestWithContext(r.Context(), http.MethodGet, "/batch/1", nil)
			inner.Header["Authorization"] = tt.inner
			claims, err := b.VerifyRequest(inner)
			if tt.want != "" {
				wantReason(t, err, tt.want)
			} else if err != nil || claims.Subject != tt.sub {
				t.Errorf("%s: %v, %v", name, claims, err)
			}
		}))
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", good)
		if handler.ServeHTTP(httptest.NewRecorder(), r); !reached {
			t.Error(name, "was not reached")
		}
	}
}

// TestMetadata holds RFC 9728 2 and 3.1.
func TestMetadata(t *testing.T) {
	for url, path := range map[string]string{
		resourceURL:                 "/.well-known/oauth-protected-resource",
		resourceURL + "/":           "/.well-known/oauth-protected-resource",
		resourceURL + ":8443/stock": "/.well-known/oauth-protected-resource/stock",
	} {
		b := newBench(t, func(cfg *verify.Config) { cfg.URL, cfg.Scopes = url, []string{"stock:read"} })
		if got := b.MetadataPath(); got != path {
			t.Errorf("%s: %s", url, got)
		}
		mux := http.NewServeMux()
		mux.Handle(b.MetadataPath(), b.Metadata())
		server := httptest.NewServer(mux)
		resp, err := server.Client().Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&doc); err != nil || resp.Header.Get("Content-Type") != "application/json" {
			t.Error(err, resp.Header)
		}
		resp.Body.Close()
		want := map[string]any{
			"resource": url, "authorization_servers": []any{b.URL}, "scopes_supported": []any{"stock:read"},
			"bearer_methods_supported": []any{"header"}, "tls_client_certificate_bound_access_tokens": true,
		}
		if diff := cmp.Diff(want, doc); diff != "" {
			t.Error(diff)
		}
		if post, err := server.Client().Post(server.URL+path, "", nil); err != nil || post.StatusCode != 405 {
			t.Error(post.Status, err)
		} else {
			post.Body.Close()
		}
		server.Close()
	}
	none := httptest.NewServer(newBench(t, nil).Metadata())
	defer none.Close()
	if resp := ask(t, none.Client(), none.URL); resp.StatusCode != 404 {
		t.Error(resp.Status)
	}
}
