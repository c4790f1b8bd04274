package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/identity"
)

// foreignCertificate has all names of like, its issuer's too, from an authority of our own making.
func (d *door) foreignCertificate(like *x509.Certificate, change func(*x509.Certificate)) tls.Certificate {
	d.Helper()
	authority := d.key(elliptic.P256())
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: like.Issuer, NotBefore: like.NotBefore, NotAfter: like.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: like.AuthorityKeyId,
	}
	key := d.key(elliptic.P256())
	leaf := &x509.Certificate{
		SerialNumber: like.SerialNumber, Subject: like.Subject, URIs: like.URIs, DNSNames: like.DNSNames,
		NotBefore: like.NotBefore, NotAfter: like.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	change(leaf)
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, &key.PublicKey, authority)
	d.must(err)
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &authority.PublicKey, authority)
	d.must(err)
	return tls.Certificate{Certificate: [][]byte{der, rootDER}, PrivateKey: key}
}

// wrongPeer is a client certificate, and the refusals at the token endpoint and at the API: "" is for where it is right.
type wrongPeer struct {
	name        string
	certificate tls.Certificate
	token, api  countersign.Code
}

// wrongPeers are foreign, of the wrong kind, or none.
func (d *door) wrongPeers() []wrongPeer {
	d.Helper()
	gateway := d.people["gateway"].Chain[0]
	other, err := url.Parse("spiffe://shop.internal/orders")
	d.must(err)
	daemonID, err := identity.Load(d.dir + "/server")
	d.must(err)
	const bad, kind = countersign.CodeBadCertificate, countersign.CodeWrongCredential
	stolen := d.people["gateway"].TLS() // the right certificate behind a foreign leaf
	hidden := d.foreignCertificate(gateway, func(*x509.Certificate) {})
	hidden.Certificate = append(hidden.Certificate[:1:1], stolen.Certificate...)
	foreign := func(name string, change func(*x509.Certificate)) wrongPeer {
		return wrongPeer{"foreign" + name, d.foreignCertificate(gateway, change), bad, bad}
	}
	return []wrongPeer{
		foreign(", with all of the names and the serial", func(*x509.Certificate) {}),
		{"foreign, with the right chain behind it", hidden, bad, bad},
		foreign(", with two IDs", func(c *x509.Certificate) { c.URIs = append(c.URIs[:1:1], other) }),
		foreign(", with a common name only", func(c *x509.Certificate) { c.URIs, c.Subject = nil, pkix.Name{CommonName: "gateway"} }),
		foreign(", expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		{"the daemon's own certificate", daemonID.TLS(), bad, bad},
		{"an operator at the token endpoint", d.people["admin"].TLS(), kind, ""},
		{"a service at the API", stolen, "", kind},
		{"none", tls.Certificate{}, countersign.CodeNoCredential, countersign.CodeNoCredential},
	}
}

// with is the client's side of a connection that shows this certificate, whoever the server says that it trusts.
func (d *door) with(certificate tls.Certificate, protocols ...string) *tls.Config {
	config := d.tls("", protocols...)
	if certificate.PrivateKey != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	return config
}

// TestWrongPeers comes with client certificates that are none here: at the token endpoint, where they are invalid_client,
// at the API, and at a public document, which nobody is refused. Each connection is kept and tried again. (Those that
// expired are TestExpired's.)
func TestWrongPeers(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	before := d.state()
	for _, wrong := range d.wrongPeers() {
		for _, http1 := range []bool{false, true} {
			peer := d.http(d.with(wrong.certificate), http1)
			for range 2 {
				if wrong.token != "" {
					if err := (refusal{401, "invalid_client", wrong.token}).check(d.exchange(peer, d.idp.good(), "orders")); err != nil {
						t.Errorf("%s, token: %v", wrong.name, err)
					}
				}
				if wrong.api != "" {
					if err := (refusal{401, "", wrong.api}).check(d.send(peer, http.MethodGet, "/v1/status", "")); err != nil {
						t.Errorf("%s, API: %v", wrong.name, err)
					}
				}
				if got := d.send(peer, http.MethodGet, "/roots.pem", ""); got.status != http.StatusOK {
					t.Errorf("%s, public document: %d", wrong.name, got.status)
				}
			}
		}
	}
	d.unchanged(before, map[string]int{"request.denied": 2 * 4})
	d.stillGood()
}

// TestRevokedPeers: revocation is judged on each request, so a connection that was open before is worth nothing after.
func TestRevokedPeers(t *testing.T) {
	d := openDoor(t, nil, "gateway", "orders")
	kept := map[bool]*http.Client{}
	for _, http1 := range []bool{false, true} {
		kept[http1] = d.http(d.tls("orders"), http1)
		if got := d.send(kept[http1], http.MethodGet, "/roots.pem", ""); got.status != http.StatusOK {
			t.Fatalf("before: %d", got.status)
		}
	}
	d.must(d.admin.Revoke(t.Context(), d.people["orders"].Serial, "keyCompromise"))
	before := d.state()
	key, ok := d.people["orders"].Key.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("the key is of another kind")
	}
	request := `{"csr":` + d.idp.json(d.csr(key, &x509.CertificateRequest{})) + `}`
	for name, c := range map[string]*http.Client{
		"kept, HTTP/2": kept[false], "kept, HTTP/1.1": kept[true], "fresh, HTTP/2": d.as("orders"), "fresh, HTTP/1.1": d.http(d.tls("orders"), true),
	} {
		if err := (refusal{401, "invalid_client", countersign.CodeRevokedPeer}).check(d.exchange(c, d.idp.good(), "inventory")); err != nil {
			t.Errorf("%s, token: %v", name, err)
		}
		if err := (refusal{401, "", countersign.CodeRevokedPeer}).check(d.certificate(c, request)); err != nil {
			t.Errorf("%s, renewal: %v", name, err)
		}
		if got := d.send(c, http.MethodGet, "/roots.pem", ""); got.status != http.StatusOK {
			t.Errorf("%s, public document: %d", name, got.status)
		}
	}
	d.unchanged(before, nil)
	d.stillGood()
}
