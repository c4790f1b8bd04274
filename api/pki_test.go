package api

import (
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// The plain listener serves issuer certificates and nothing else, whatever is asked (RFC 5280 4.2.2.1).
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
