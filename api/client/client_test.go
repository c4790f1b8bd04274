package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// serve is a TLS server on loopback whose certificate, self-signed, has the given URI SANs.
func serve(t *testing.T, h http.Handler, maxTLS uint16, uris ...string) (string, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	for _, s := range uris {
		uri, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, uri)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = discardLog()
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MaxVersion: maxTLS}
	server.StartTLS()
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return server.URL, pool
}

// status asks for the status, over TLS with the given roots.
func status(t *testing.T, target string, roots *x509.CertPool) error {
	t.Helper()
	c, err := New(Config{URL: target, Roots: roots, TrustDomain: "td", Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	_, err = c.Status(t.Context())
	return err
}

func TestOnlyTheAuthorityIsTheServer(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) })
	for _, tc := range []struct {
		name string
		uris []string
		want string
	}{
		{"authority", []string{"spiffe://td/countersign"}, ""},
		{"service", []string{"spiffe://td/orders"}, "not the authority"},
		{"operator", []string{"spiffe://td/operator/ann"}, "not the authority"},
		{"other trust domain", []string{"spiffe://other/countersign"}, "not the authority"},
		{"two", []string{"spiffe://td/countersign", "spiffe://td/orders"}, "not the authority"},
		{"none", nil, "not the authority"},
	} {
		target, roots := serve(t, ok, 0, tc.uris...)
		err := status(t, target, roots)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	target, roots := serve(t, ok, tls.VersionTLS12, "spiffe://td/countersign")
	if err := status(t, target, roots); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	target, _ = serve(t, ok, 0, "spiffe://td/countersign")
	if err := status(t, target, roots); err == nil {
		t.Error("a server of another root was accepted")
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	var answer http.HandlerFunc
	target, roots := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(w, r) }), 0, "spiffe://td/countersign")
	problem := `{"code": "CS1016", "detail": "you may not", "hint": "ask ann", "request_id": "r1"}`
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
		code   countersign.Code
	}{
		{"problem", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", wire.Problem)
			w.WriteHeader(403)
			_, _ = w.Write([]byte(problem))
		}, "you may not (CS1016, request r1)\nask ann", countersign.CodeRole},
		{"page of a proxy", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(502)
			_, _ = w.Write([]byte(problem))
		}, "no answer of a Countersign daemon", ""},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, "no answer of a Countersign daemon", ""},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) }, "read the answer", ""},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for chunk := make([]byte, 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, "has over", ""},
	} {
		answer = tc.answer
		err := status(t, target, roots)
		var apiErr *APIError
		if err == nil || !strings.Contains(err.Error(), tc.want) || tc.code != "" && (!errors.As(err, &apiErr) || apiErr.Code() != tc.code) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{
		{},
		{Socket: "/x", URL: "https://x"},
		{URL: "https://x"},
		{URL: "https://x", Roots: x509.NewCertPool()},
		{URL: "http://x", Roots: x509.NewCertPool(), TrustDomain: "td"},
		{URL: "https://x/path", Roots: x509.NewCertPool(), TrustDomain: "td"},
		{URL: "https://u@x", Roots: x509.NewCertPool(), TrustDomain: "td"},
		{URL: "https://x?q=1", Roots: x509.NewCertPool(), TrustDomain: "td"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}
