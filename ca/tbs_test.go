package ca

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCheckTBS changes one thing in a parsed certificate at a time: each is noticed.
func TestCheckTBS(t *testing.T) {
	h := newHouse(t, nil)
	cert := h.join("orders", newKey(t, "")).Chain[0]
	parent := h.Intermediates()[0]
	s := Subject{
		ID: service("orders").ID, TrustDomain: domain, DNS: []string{"orders.shop.internal"}, Key: cert.PublicKey,
		Serial: cert.SerialNumber, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Issuer: parent,
		KeyTypes: allKeyTypes(), Most: day,
	}
	if err := checkTBS(ProfileService, s, cert); err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("spiffe://shop.internal/gateway")
	for name, change := range map[string]func(*x509.Certificate){
		"version":      func(c *x509.Certificate) { c.Version = 1 },
		"serial":       func(c *x509.Certificate) { c.SerialNumber = parent.SerialNumber },
		"algorithm":    func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 },
		"key":          func(c *x509.Certificate) { c.RawSubjectPublicKeyInfo = parent.RawSubjectPublicKeyInfo },
		"SKI":          func(c *x509.Certificate) { c.SubjectKeyId = parent.SubjectKeyId },
		"AKI":          func(c *x509.Certificate) { c.AuthorityKeyId = nil },
		"issuer":       func(c *x509.Certificate) { c.RawIssuer = c.RawSubject },
		"one second":   func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) },
		"begin":        func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-time.Second) },
		"subject":      func(c *x509.Certificate) { c.Subject.CommonName = "gateway" },
		"more subject": func(c *x509.Certificate) { c.Subject.Names = append(c.Subject.Names, c.Subject.Names...) },
		"URI":          func(c *x509.Certificate) { c.URIs = []*url.URL{u} },
		"two URIs":     func(c *x509.Certificate) { c.URIs = append(c.URIs[:1:1], u) },
		"DNS":          func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames[:1:1], "x.y") },
		"no DNS":       func(c *x509.Certificate) { c.DNSNames = nil },
		"key type":     func(c *x509.Certificate) { c.PublicKey = "none" },
		"IP":           func(c *x509.Certificate) { c.IPAddresses = []net.IP{{1, 2, 3, 4}} },
		"mail":         func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} },
		"key usage":    func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign },
		"EKU":          func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} },
		"unknown EKU":  func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2}} },
		"CA":           func(c *x509.Certificate) { c.IsCA = true },
		"list":         func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://pki.shop.internal/crl/x/00.crl"} },
		"AIA":          func(c *x509.Certificate) { c.IssuingCertificateURL = []string{"http://pki.shop.internal/ca/x.cer"} },
		"OCSP":         func(c *x509.Certificate) { c.OCSPServer = []string{"http://pki.shop.internal/ocsp"} },
		"extension": func(c *x509.Certificate) {
			c.Extensions = append(c.Extensions[:len(c.Extensions):len(c.Extensions)], pkix.Extension{Id: asn1.ObjectIdentifier{1, 2}})
		},
		"not critical": func(c *x509.Certificate) {
			c.Extensions = append([]pkix.Extension(nil), c.Extensions...)
			for i := range c.Extensions {
				c.Extensions[i].Critical = false
			}
		},
	} {
		changed := *cert
		change(&changed)
		if err := checkTBS(ProfileService, s, &changed); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	for _, p := range []Profile{ProfileOperator, ProfileAuthority, ProfileRoot, ProfileIntermediate, "odd"} {
		if err := checkTBS(p, s, cert); err == nil {
			t.Errorf("a service's certificate passes as one of %s", p)
		}
	}
	late := s
	late.NotAfter = parent.NotAfter.Add(time.Second)
	changed := *cert
	changed.NotAfter = late.NotAfter
	if err := checkTBS(ProfileService, late, &changed); err == nil {
		t.Error("a certificate that outlives its issuer passes")
	}
}

func TestSignWithAnotherKey(t *testing.T) {
	h := newHouse(t, nil)
	key := newKey(t, "")
	parent := h.Intermediates()[0]
	notBefore, notAfter, err := validity(h.clock.now(), time.Hour, parent)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	tbs, err := prepare(ProfileService, Subject{
		ID: service("orders").ID, TrustDomain: domain, Key: key.Public(), Serial: serial,
		NotBefore: notBefore, NotAfter: notAfter, Issuer: parent,
		KeyTypes: allKeyTypes(), Most: day,
	}, parent.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign(tbs, key); err == nil {
		t.Fatal("a certificate with a signature of the wrong key was handed out")
	}
	if _, err := prepare(ProfileService, Subject{}, newKey(t, "P-384").Public()); err == nil {
		t.Fatal("an issuer's key of another curve than", elliptic.P256().Params().Name)
	}
	signer, err := h.cfg.Keys.SignerByID(h.signing().KeyID)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := sign(tbs, signer)
	if err != nil || !bytes.Equal(cert.RawTBSCertificate, tbs.raw) {
		t.Fatalf("signed other bytes than were checked: %v", err)
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		t.Error(err)
	}
}

// TestOneWayToSign reads the package: only tbs.go, tbslist.go, tbsocsp.go and tbsrequest.go, where the checks are, make something that may be
// signed and a draft, and only tbs.go calls a key's Sign.
func TestOneWayToSign(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CompositeLit:
				id, ok := n.Type.(*ast.Ident)
				if ok && strings.HasPrefix(id.Name, "checked") && path != "tbs.go" && path != "tbslist.go" && path != "tbsocsp.go" && path != "tbsrequest.go" {
					t.Errorf("%s makes a %s", path, id.Name)
				}
			case *ast.CallExpr: // big.Int's Sign has no arguments
				call, ok := n.Fun.(*ast.SelectorExpr)
				if !ok || len(n.Args) == 0 {
					return true
				}
				home := map[string]string{"Sign": "tbs.go", "CreateCertificate": "tbs.go", "CreateRevocationList": "tbslist.go", "CreateCertificateRequest": "tbsrequest.go"}[call.Sel.Name]
				if home != "" && path != home {
					t.Errorf("%s calls %s", path, call.Sel.Name)
				}
			}
			return true
		})
	}
}
