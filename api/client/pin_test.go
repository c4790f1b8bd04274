package client

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
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

// A man in the middle: whatever he shows, he is not the authority, and he gets nothing. Both configs that replace the
// verification of crypto/tls refuse what it would.
func TestManInTheMiddle(t *testing.T) {
	ca := x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	ca.Subject = pkix.Name{CommonName: "root"}
	root, rootKey := testCert(t, ca, nil, nil)
	otherRoot, otherKey := testCert(t, ca, nil, nil)
	leafTemplate := func(id string, change func(*x509.Certificate)) x509.Certificate {
		c := x509.Certificate{
			Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"localhost"}, URIs: uri(t, id),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
		}
		if change != nil {
			change(&c)
		}
		return c
	}
	const authority = "spiffe://shop.internal/countersign"
	for name, c := range map[string]struct {
		leaf      x509.Certificate
		root      *x509.Certificate // that signs the leaf
		key       crypto.Signer
		chainRoot *x509.Certificate // at the chain's end
		good      bool
	}{
		"the authority itself":           {leafTemplate(authority, nil), root, rootKey, root, true},
		"another root":                   {leafTemplate(authority, nil), otherRoot, otherKey, otherRoot, false},
		"our root behind another's leaf": {leafTemplate(authority, nil), otherRoot, otherKey, root, false},
		"a service of the same root":     {leafTemplate("spiffe://shop.internal/orders", nil), root, rootKey, root, false},
		"an operator of the same root":   {leafTemplate("spiffe://shop.internal/operator/ana", nil), root, rootKey, root, false},
		"another host":                   {leafTemplate(authority, func(c *x509.Certificate) { c.DNSNames = []string{"other"} }), root, rootKey, root, false},
		"a client certificate": {leafTemplate(authority, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}), root, rootKey, root, false},
		"an expired certificate": {leafTemplate(authority, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Minute)
		}), root, rootKey, root, false},
		"no URI": {leafTemplate(authority, func(c *x509.Certificate) { c.URIs = nil }), root, rootKey, root, false},
	} {
		t.Run(name, func(t *testing.T) {
			leaf, key := testCert(t, c.leaf, c.root, c.key)
			requests, address := listenAs(t, tls.Certificate{Certificate: [][]byte{leaf.Raw, c.chainRoot.Raw}, PrivateKey: key})
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				t.Fatal(err)
			}
			url := "https://localhost:" + port
			j := JoinString{URL: url, Host: "localhost", Token: "secrettoken", Fingerprint: sha256.Sum256(root.Raw)}
			pinned, err := New(Config{URL: url, TLS: PinnedTLS(j)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pinned.Close)
			_, err = pinned.Join(t.Context(), j.Token, wire.CertificateRequest{CSR: "x"})
			if c.good != (requests.Load() == 1) {
				t.Errorf("the server got %d requests", requests.Load())
			}
			if !c.good && !errors.Is(err, ErrNotAuthority) {
				t.Errorf("got %v", err)
			}

			requests.Store(0)
			pool := x509.NewCertPool()
			pool.AddCert(root)
			replaced := RootsTLS(func() (*x509.CertPool, error) { return pool, nil }, nil, func(state tls.ConnectionState) error {
				id, err := countersign.ParseID("spiffe://shop.internal/countersign")
				if err != nil {
					return err
				}
				return VerifyAuthority(state, id)
			})
			transport := &http.Transport{TLSClientConfig: replaced}
			defer transport.CloseIdleConnections()
			if response, err := (&http.Client{Transport: transport}).Get(url); err == nil {
				response.Body.Close()
			}
			if c.good != (requests.Load() == 1) {
				t.Errorf("over RootsTLS the server got %d requests", requests.Load())
			}
		})
	}
}

// RootsTLS asks for the roots and for a name each time, and without one of them nothing is sent.
func TestRootsTLSFailsClosed(t *testing.T) {
	ca := x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "root"}}
	root, rootKey := testCert(t, ca, nil, nil)
	leaf, key := testCert(t, x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, URIs: uri(t, "spiffe://td/a"),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}, root, rootKey)
	requests, address := listenAs(t, tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key})
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	nothing := func(tls.ConnectionState) error { return nil }
	for name, c := range map[string]struct {
		host    string
		roots   func() (*x509.CertPool, error)
		further func(tls.ConnectionState) error
		want    int32
	}{
		"all is well":   {"localhost", func() (*x509.CertPool, error) { return pool, nil }, nothing, 1},
		"an address":    {"127.0.0.1", func() (*x509.CertPool, error) { return pool, nil }, nothing, 0},
		"no roots":      {"localhost", func() (*x509.CertPool, error) { return nil, errors.New("none yet") }, nothing, 0},
		"a nil pool":    {"localhost", func() (*x509.CertPool, error) { return nil, nil }, nothing, 0},
		"an empty pool": {"localhost", func() (*x509.CertPool, error) { return x509.NewCertPool(), nil }, nothing, 0},
		"further says no": {"localhost", func() (*x509.CertPool, error) { return pool, nil }, func(state tls.ConnectionState) error {
			if len(state.VerifiedChains) == 0 {
				t.Error("further is asked before the chain is verified")
			}
			return errors.New("no")
		}, 0},
	} {
		requests.Store(0)
		transport := &http.Transport{TLSClientConfig: RootsTLS(c.roots, nil, c.further)}
		if response, err := (&http.Client{Transport: transport}).Get("https://" + net.JoinHostPort(c.host, port)); err == nil {
			response.Body.Close()
		}
		transport.CloseIdleConnections()
		if requests.Load() != c.want {
			t.Errorf("%s: the server got %d requests", name, requests.Load())
		}
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
	server.Config.ErrorLog = discardLog()
	server.StartTLS()
	t.Cleanup(server.Close)
	return &requests, server.Listener.Addr().String()
}
