package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/api/client"
)

// testCert makes a certificate; a nil parent makes it self-signed.
func testCert(t *testing.T, template x509.Certificate, parent *x509.Certificate, parentKey crypto.Signer) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	template.BasicConstraintsValid = true
	if parent == nil {
		parent, parentKey = &template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func uri(t *testing.T, s string) []*url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return []*url.URL{u}
}

// A man in the middle at join gets nothing, and the command says so. What he may show is tried in api/client.
func TestJoinManInTheMiddle(t *testing.T) {
	ca := x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "root"}}
	root, _ := testCert(t, ca, nil, nil)
	other, otherKey := testCert(t, ca, nil, nil)
	leaf, key := testCert(t, x509.Certificate{
		DNSNames: []string{"localhost"}, URIs: uri(t, "spiffe://shop.internal/countersign"),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, other, otherKey)
	requests, address := listenAs(t, tls.Certificate{Certificate: [][]byte{leaf.Raw, root.Raw}, PrivateKey: key})
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	j := client.JoinString{URL: "https://localhost:" + port, Host: "localhost", Token: "secrettoken", Fingerprint: sha256.Sum256(root.Raw)}
	a := &app{out: io.Discard, err: io.Discard, output: "table"}
	err = a.join(context.Background(), j, filepath.Join(t.TempDir(), "id"), renewal{alg: "P-256"})
	if requests.Load() != 0 {
		t.Error("something was sent")
	}
	var f *failure
	if !errors.As(err, &f) || f.What != client.ErrNotAuthority.Error() || f.Exit != exitDenied {
		t.Errorf("got %v", err)
	}
}

// listenAs is a TLS server that counts the requests that reach it.
func listenAs(t *testing.T, cert tls.Certificate) (*atomic.Int32, string) {
	t.Helper()
	var requests atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		http.Error(w, "no", http.StatusTeapot)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.Config.ErrorLog = nil
	server.StartTLS()
	t.Cleanup(server.Close)
	return &requests, server.Listener.Addr().String()
}
