package api

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca"
)

// responding is a kit whose PKI listener answers OCSP; ask is how it is asked.
func responding(t *testing.T, o kitOptions) (k *kit, server *httptest.Server) {
	t.Helper()
	k = newKit(t, o)
	server = httptest.NewServer(k.api.PKI())
	t.Cleanup(server.Close)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.ca.KeepResponders(ctx) }()
	k.Cleanup(func() { stop(); k.must(<-ended) })
	request, err := ocsp.CreateRequest(k.ca.Signing(), k.ca.Roots()[0], nil)
	k.must(err)
	for {
		if k.ca.OCSP(t.Context(), request).Status == ca.OCSPSuccessful {
			return k, server
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// fetched is an answer as it came.
type fetched struct {
	*http.Response
	body []byte
}

func (k *kit) fetch(method, target string, body []byte, header ...string) fetched {
	k.Helper()
	rq, err := http.NewRequestWithContext(k.Context(), method, target, bytes.NewReader(body))
	k.must(err)
	for n := 0; n < len(header); n += 2 {
		rq.Header.Set(header[n], header[n+1])
	}
	response, err := http.DefaultTransport.RoundTrip(rq)
	k.must(err)
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	k.must(err)
	return fetched{response, got}
}

// OCSP over HTTP: POST and GET (RFC 6960 appendix A), what caches may keep (RFC 5019 6.2), and a revocation in the next answer.
func TestOCSP(t *testing.T) {
	k, server := responding(t, kitOptions{})
	id := k.join("reports")
	leaf, issuer := id.Chain[0], id.Chain[1]
	request, err := ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: crypto.SHA256})
	k.must(err)
	read := func(got fetched, want int) {
		t.Helper()
		if got.StatusCode != http.StatusOK || got.Header.Get("Content-Type") != "application/ocsp-response" {
			t.Fatalf("%s, %s", got.Status, got.Header)
		}
		r, err := ocsp.ParseResponse(got.body, issuer)
		k.must(err)
		if r.Status != want {
			t.Errorf("status %d, want %d", r.Status, want)
		}
	}
	posted := k.fetch(http.MethodPost, server.URL+"/ocsp", request, "Content-Type", "application/ocsp-request")
	read(posted, ocsp.Good)
	if posted.Header.Get("Cache-Control") != "no-store" || posted.Header.Get("ETag") != "" {
		t.Errorf("by POST: %s", posted.Header)
	}
	text := base64.StdEncoding.EncodeToString(request)
	for name, path := range map[string]string{"escaped": url.QueryEscape(text), "as it is": text} {
		got := k.fetch(http.MethodGet, server.URL+"/ocsp/"+path, nil)
		read(got, ocsp.Good)
		if !bytes.Equal(got.body, posted.body) {
			t.Errorf("%s: it was signed anew", name)
		}
		for header, want := range map[string]string{
			"Cache-Control": "max-age=60, public, no-transform, must-revalidate", "X-Content-Type-Options": "nosniff",
		} {
			if got.Header.Get(header) != want {
				t.Errorf("%s: %s %q", name, header, got.Header.Get(header))
			}
		}
		modified, err := http.ParseTime(got.Header.Get("Last-Modified"))
		k.must(err)
		expires, err := http.ParseTime(got.Header.Get("Expires"))
		k.must(err)
		if !expires.After(modified) {
			t.Errorf("of %s to %s", modified, expires)
		}
		if again := k.fetch(http.MethodGet, server.URL+"/ocsp/"+path, nil, "If-None-Match", got.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s: the same again: %s", name, again.Status)
		}
	}
	k.must(k.admin().Revoke(t.Context(), id.Serial, "keyCompromise"))
	read(k.fetch(http.MethodGet, server.URL+"/ocsp/"+url.QueryEscape(text), nil), ocsp.Revoked)
	read(k.fetch(http.MethodPost, server.URL+"/ocsp", request), ocsp.Revoked)
}

// base64 has // now and then, and http.ServeMux would send who asks so somewhere else.
func TestOCSPSlashes(t *testing.T) {
	k, server := responding(t, kitOptions{})
	got := k.fetch(http.MethodGet, server.URL+"/ocsp/MA//..//AA==", nil)
	if got.StatusCode != http.StatusOK || !bytes.Equal(got.body, ocsp.MalformedRequestErrorResponse) {
		t.Errorf("%s %x", got.Status, got.body)
	}
}

// What is no request is malformed, at once, however it comes; and nothing else is at that path.
func TestOCSPBadRequests(t *testing.T) {
	k, server := responding(t, kitOptions{})
	for name, got := range map[string]fetched{
		"nothing":     k.fetch(http.MethodPost, server.URL+"/ocsp", nil),
		"text":        k.fetch(http.MethodPost, server.URL+"/ocsp", []byte("hello")),
		"large":       k.fetch(http.MethodPost, server.URL+"/ocsp", make([]byte, 10*ca.MaxOCSP)),
		"no base64":   k.fetch(http.MethodGet, server.URL+"/ocsp/hello", nil),
		"empty":       k.fetch(http.MethodGet, server.URL+"/ocsp", nil),
		"empty slash": k.fetch(http.MethodGet, server.URL+"/ocsp/", nil),
		"long":        k.fetch(http.MethodGet, server.URL+"/ocsp/"+strings.Repeat("A", 11000), nil),
	} {
		if got.StatusCode != http.StatusOK || !bytes.Equal(got.body, ocsp.MalformedRequestErrorResponse) || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s %x", name, got.Status, got.body)
		}
	}
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{http.MethodPut, "/ocsp", http.StatusMethodNotAllowed}, {http.MethodDelete, "/ocsp/AA==", http.StatusMethodNotAllowed},
		{http.MethodPost, "/ocsp/AA==", http.StatusNotFound}, {http.MethodPost, "/ocspx", http.StatusNotFound}, {http.MethodGet, "/x/ocsp", http.StatusNotFound},
	} {
		if got := k.fetch(tc.method, server.URL+tc.path, nil); got.StatusCode != tc.want {
			t.Errorf("%s %s: %s", tc.method, tc.path, got.Status)
		}
	}
}

// Who asks too much is told to come later, by the limit of his address; others are not.
func TestOCSPLimit(t *testing.T) {
	k := newKit(t, kitOptions{limits: Limits{Address: 2}})
	handler := k.api.PKI()
	ask := func(addr string) []byte {
		rq := httptest.NewRequest(http.MethodPost, "/ocsp", strings.NewReader("x"))
		rq.RemoteAddr = addr
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, rq)
		return w.Body.Bytes()
	}
	later := 0
	for range 50 {
		if bytes.Equal(ask("192.0.2.1:1"), ocsp.TryLaterErrorResponse) {
			later++
		}
	}
	if later == 0 {
		t.Error("nobody is held back")
	}
	if got := ask("192.0.2.2:1"); !bytes.Equal(got, ocsp.MalformedRequestErrorResponse) {
		t.Errorf("another address: %x", got)
	}
}

// TestOCSPByOthers: openssl and curl ask over the wire, as they stand.
func TestOCSPByOthers(t *testing.T) {
	k, server := responding(t, kitOptions{})
	one, other := k.join("reports"), k.join("orders")
	dir := t.TempDir()
	write := func(name string, body []byte) string {
		k.must(os.WriteFile(filepath.Join(dir, name), body, 0o600))
		return name
	}
	certificate := func(name string, der []byte) string {
		return write(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	run := func(command string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), command, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s %s: %v", command, args, err)
		}
		return string(out)
	}
	root, inter := certificate("root", k.ca.Roots()[0].Raw), certificate("inter", one.Chain[1].Raw)
	a, b := certificate("a", one.Chain[0].Raw), certificate("b", other.Chain[0].Raw)
	k.must(k.admin().Revoke(t.Context(), other.Serial, "superseded"))
	for _, how := range [][]string{{"-nonce"}, {"-no_nonce"}, {"-nonce", "-sha256"}} {
		args := append([]string{"ocsp", "-CAfile", root, "-url", server.URL + "/ocsp"}, how...)
		out := run("openssl", append(args, "-issuer", inter, "-cert", a, "-cert", b, "-reqout", "request")...)
		for _, want := range []string{"Response verify OK", "a: good", "b: revoked", "Reason: superseded"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: openssl says nothing of %q:\n%s", how, want, out)
			}
		}
		if strings.Contains(out, "WARNING") {
			t.Errorf("%s:\n%s", how, out)
		}
	}
	if out := run("openssl", "ocsp", "-CAfile", root, "-url", server.URL+"/ocsp", "-issuer", root, "-cert", inter); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "inter: good") {
		t.Errorf("the intermediate:\n%s", out)
	}
	run("openssl", "ocsp", "-nonce", "-issuer", inter, "-cert", a, "-reqout", "request")
	asked, err := os.ReadFile(filepath.Join(dir, "request"))
	k.must(err)
	if got := k.fetch(http.MethodGet, server.URL+"/ocsp/"+url.QueryEscape(base64.StdEncoding.EncodeToString(asked)), nil); got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("an answer with a nonce may be kept: %s", got.Header)
	}
	// curl sends what openssl made, by GET.
	run("openssl", "ocsp", "-no_nonce", "-issuer", inter, "-cert", a, "-reqout", "request")
	request, err := os.ReadFile(filepath.Join(dir, "request"))
	k.must(err)
	run("curl", "-sf", "-o", "answer", server.URL+"/ocsp/"+url.QueryEscape(base64.StdEncoding.EncodeToString(request)))
	if out := run("openssl", "ocsp", "-CAfile", root, "-issuer", inter, "-cert", a, "-no_nonce", "-respin", "answer"); !strings.Contains(out, "Response verify OK") || !strings.Contains(out, "a: good") {
		t.Errorf("by GET:\n%s", out)
	}
	// After a rollover both intermediates answer.
	_, err = k.admin().RotateAuthority(t.Context(), wire.AuthorityRotation{Role: string(ca.ProfileIntermediate)})
	k.must(err)
	c := k.join("inventory")
	newer, d := certificate("newer", c.Chain[1].Raw), certificate("d", c.Chain[0].Raw)
	for out := ""; !strings.Contains(out, "d: good"); {
		cmd := exec.CommandContext(t.Context(), "openssl", "ocsp", "-CAfile", root, "-url", server.URL+"/ocsp", "-issuer", newer, "-cert", d)
		cmd.Dir = dir
		answer, err := cmd.CombinedOutput()
		if out = string(answer); err != nil && !strings.Contains(out, "trylater") {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if out := run("openssl", "ocsp", "-CAfile", root, "-url", server.URL+"/ocsp", "-issuer", inter, "-cert", a); !strings.Contains(out, "a: good") {
		t.Errorf("of the older intermediate:\n%s", out)
	}
}
