package api

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The plain listener serves lists and issuer certificates and nothing else, whatever is asked (RFC 5280 4.2.2.1).
func TestPKI(t *testing.T) {
	k := newKit(t, kitOptions{})
	server := httptest.NewServer(k.api.PKI())
	t.Cleanup(server.Close)
	ask := func(method, path string) (*http.Response, []byte) {
		rq, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		k.must(err)
		response, err := server.Client().Do(rq)
		k.must(err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		k.must(err)
		return response, body
	}
	intermediate, root := k.ca.Intermediates()[0], k.ca.Roots()[0]
	for _, cert := range append(k.ca.Intermediates(), root) {
		response, body := ask(http.MethodGet, "/ca/"+hex.EncodeToString(cert.SubjectKeyId)+".cer")
		if response.StatusCode != http.StatusOK || !bytes.Equal(body, cert.Raw) {
			t.Errorf("%s: %s, %d bytes", cert.Subject, response.Status, len(body))
		}
		for name, want := range map[string]string{
			"Content-Type": "application/pkix-cert", "Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff",
		} {
			if got := response.Header.Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", cert.Subject, name, got, want)
			}
		}
	}
	name := hex.EncodeToString(intermediate.SubjectKeyId)
	if response, body := ask(http.MethodHead, "/ca/"+name+".cer"); response.StatusCode != http.StatusOK || len(body) != 0 {
		t.Errorf("HEAD: %s, %d bytes", response.Status, len(body))
	}
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/ca/" + name, http.StatusNotFound},
		{http.MethodGet, "/ca/.cer", http.StatusNotFound},
		{http.MethodGet, "/ca/00" + name + ".cer", http.StatusNotFound},
		{http.MethodGet, "/ca/" + name[:len(name)-2] + ".cer", http.StatusNotFound},
		{http.MethodGet, "/ca/..%2f..%2froots.pem.cer", http.StatusNotFound},
		{http.MethodPost, "/ca/" + name + ".cer", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/roots.pem", http.StatusNotFound},
		{http.MethodGet, "/v1/status", http.StatusNotFound},
		{http.MethodGet, "/v1/certificates", http.StatusNotFound},
		{http.MethodPost, "/v1/certificates", http.StatusNotFound},
		{http.MethodPost, "/oauth2/token", http.StatusNotFound},
		{http.MethodGet, "/metrics", http.StatusNotFound},
	} {
		if response, _ := ask(tc.method, tc.path); response.StatusCode != tc.want {
			t.Errorf("%s %s: %s, want %d", tc.method, tc.path, response.Status, tc.want)
		}
	}
}

// Lists are served from memory, by issuer and shard, and a copy is asked about each time (RFC 2585).
func TestPKILists(t *testing.T) {
	k := newKit(t, kitOptions{})
	server := httptest.NewServer(k.api.PKI())
	t.Cleanup(server.Close)
	ask := func(method, path, etag string) (*http.Response, []byte) {
		t.Helper()
		rq, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		k.must(err)
		if etag != "" {
			rq.Header.Set("If-None-Match", etag)
		}
		response, err := server.Client().Do(rq)
		k.must(err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		k.must(err)
		return response, body
	}
	inter := k.ca.Intermediates()[0]
	name := hex.EncodeToString(inter.SubjectKeyId)
	all := "/crl/" + name + ".crl"
	if response, _ := ask(http.MethodGet, all, ""); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") != "5" {
		t.Fatalf("a list that is not made: %s", response.Status)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- k.ca.PublishCRLs(ctx) }()
	response, body := ask(http.MethodGet, all, "")
	for response.StatusCode != http.StatusOK {
		time.Sleep(5 * time.Millisecond)
		response, body = ask(http.MethodGet, all, "")
	}
	stop()
	k.must(<-ended)
	list, err := x509.ParseRevocationList(body)
	k.must(err)
	k.must(list.CheckSignatureFrom(inter))
	for header, want := range map[string]string{
		"Content-Type": "application/pkix-crl", "Cache-Control": "public, no-cache", "X-Content-Type-Options": "nosniff",
		"ETag": `"` + list.Number.String() + `"`,
	} {
		if got := response.Header.Get(header); got != want {
			t.Errorf("%s %q, want %q", header, got, want)
		}
	}
	if response, body := ask(http.MethodGet, all, response.Header.Get("ETag")); response.StatusCode != http.StatusNotModified || len(body) != 0 {
		t.Errorf("the same list: %s, %d bytes", response.Status, len(body))
	}
	if response, body := ask(http.MethodGet, "/crl/"+name+"/00.crl", ""); response.StatusCode != http.StatusOK || len(body) == 0 {
		t.Errorf("a shard: %s, %d bytes", response.Status, len(body))
	}
	for _, path := range []string{
		"/crl/" + name, "/crl/.crl", "/crl/" + name + "/.crl", "/crl/" + name + "/0.crl", "/crl/" + name + "/000.crl", "/crl/" + name + "/0G.crl",
		"/crl/" + name + "/FF.crl", "/crl/" + name + "/00", "/crl/00" + name + ".crl", "/crl/" + hex.EncodeToString(k.ca.Roots()[0].SubjectKeyId) + "/00.crl",
		"/crl/" + name + "/..%2f" + name + ".crl", "/crl/",
	} {
		if response, _ := ask(http.MethodGet, path, ""); response.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	if response, _ := ask(http.MethodPost, all, ""); response.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", response.Status)
	}
}
