package ca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

// foreignRoot is a root that somebody brings.
type foreignRoot struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var ownNow = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func selfSigned(t *testing.T, key crypto.Signer, change func(*x509.Certificate)) foreignRoot {
	t.Helper()
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Shop Root", Organization: []string{"Shop"}},
		NotBefore: ownNow.Add(-time.Hour), NotAfter: ownNow.AddDate(10, 0, 0), BasicConstraintsValid: true, IsCA: true, MaxPathLen: -1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return foreignRoot{cert, key}
}

func curveKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// signs certifies the key of the request, as openssl would: nothing of the request is copied.
func (r foreignRoot) signs(t *testing.T, csr string, change func(*x509.Certificate)) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || request.CheckSignature() != nil {
		t.Fatal(err)
	}
	serial, err := newSerial()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: request.Subject, NotBefore: ownNow.Add(-time.Hour), NotAfter: ownNow.AddDate(2, 0, 0),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId: []byte("a key id of the signer's choice"),
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, r.cert, request.PublicKey, r.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// ownHouse is a house under a root that is brought, online or offline.
func ownHouse(t *testing.T, root foreignRoot, online bool) *house {
	t.Helper()
	h := &house{t: t, dir: t.TempDir(), kek: keyring.NewKEK(), clock: &clock{at: ownNow}}
	h.apply(1, service("orders", "orders.shop.internal"))
	by := countersign.Daemon("init")
	h.init = func(cfg Config) error {
		if online {
			return InitOwn(t.Context(), cfg, by, root.cert, root.key)
		}
		csr, err := InitOffline(t.Context(), cfg, by, root.cert)
		if err != nil {
			return err
		}
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Error("an authority without an intermediate opens")
		}
		signed := root.signs(t, csr, nil)
		for range 2 { // a crash after the Apply is mended by the same call
			if err := FinishInit(t.Context(), cfg, by, signed); err != nil {
				return err
			}
		}
		return nil
	}
	h.open(true)
	t.Cleanup(h.close)
	return h
}

// TestOwnRoot: keys of each kind sign intermediates and lists, and what is issued leads to that root.
func TestOwnRoot(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-256": curveKey(t, elliptic.P256()), "P-384": curveKey(t, elliptic.P384()), "RSA": rsaKey} {
		t.Run(name, func(t *testing.T) {
			root := selfSigned(t, key, nil)
			h := ownHouse(t, root, true)
			h.reopen()
			leaf := h.join("orders", newKey(t, "P-256"))
			trusts(t, leaf, ownNow, root.cert)
			checkLint(t, leaf.Chain[1])
			if h.peer(leaf).ID != leaf.ID || !h.PinnedRoot().Equal(root.cert) {
				t.Error("the leaf proves nobody, or another root is pinned")
			}
			h.rotate(Rotation{Role: ProfileIntermediate})
			trusts(t, h.join("orders", newKey(t, "P-256")), ownNow, root.cert)
			p := h.published()
			h.again(p)
			if err := h.list(root.cert, "").CheckSignatureFrom(root.cert); err != nil {
				t.Error(err)
			}
			_, err := h.Rotate(t.Context(), admin(), Rotation{Role: ProfileRoot})
			wantCode(t, err, countersign.CodeOwnSuccessor)
		})
	}
}

// TestOfflineRoot: the authority begins with a request, issues, and its intermediate is rolled over by another request, also when
// it has expired. What needs the key says so.
func TestOfflineRoot(t *testing.T) {
	t.Parallel()
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"P-521": curveKey(t, elliptic.P521()), "Ed25519": edKey} {
		t.Run(name, func(t *testing.T) {
			root := selfSigned(t, key, nil)
			h := ownHouse(t, root, false)
			first := h.join("orders", newKey(t, "P-256"))
			trusts(t, first, ownNow, root.cert)
			for _, role := range []Profile{ProfileIntermediate, ProfileRoot} {
				_, err := h.Rotate(t.Context(), admin(), Rotation{Role: role})
				wantCode(t, err, map[Profile]countersign.Code{ProfileIntermediate: countersign.CodeRootOffline, ProfileRoot: countersign.CodeOwnSuccessor}[role])
			}
			h.clock.add(500 * day) // a third of the intermediate's life is left: nothing rotates by itself, and nothing fails
			h.must(h.roll(t.Context()))
			h.clock.add(-500 * day)
			wantCode(t, refusal(h.ImportIntermediate(t.Context(), admin(), nil)), countersign.CodeNoRequest)
			request, err := h.Request(t.Context(), admin())
			h.must(err)
			h.clock.add(2 * time.Hour) // no orphan: its request is open
			h.must(h.roll(t.Context()))
			again, err := h.Request(t.Context(), admin())
			if err != nil || again.CSR != request.CSR {
				t.Fatal("an open request is not repeated", err)
			}
			h.clock.add(731 * day)
			h.reopen()
			wantCode(t, refusal(h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: request2(t)})), countersign.CodeIssuerExpiring)
			taken, err := h.ImportIntermediate(t.Context(), admin(), root.signs(t, request.CSR, func(c *x509.Certificate) { c.NotAfter = ownNow.AddDate(4, 0, 0) }))
			if err != nil || taken.State != AuthoritySigning || !taken.Own {
				t.Fatalf("%+v %v", taken, err)
			}
			h.reopen()
			trusts(t, h.join("orders", newKey(t, "P-256")), h.clock.now(), root.cert)
			if next, err := h.Request(t.Context(), admin()); err != nil || next.CSR == request.CSR {
				t.Error("a request that was used is still open", err)
			}
			h.quiet()
			if n := len(h.events(eventBrought)); n != 5 { // the root, and of each intermediate an intent and an outcome
				t.Errorf("%d events", n)
			}
		})
	}
}

// quiet demands that lists and responders of the offline root are not tried, and that the intermediate has its.
func (h *house) quiet() {
	h.t.Helper()
	h.again(h.published())
	h.must(h.keepResponders(h.t.Context()))
	root := h.Roots()[0]
	if _, ok := h.CRL(hex.EncodeToString(root.SubjectKeyId), ""); ok {
		h.t.Error("an offline root has a list of ours")
	}
	if n := len(h.cfg.Keys.Keys(keyring.OCSP)); n == 0 {
		h.t.Error("the intermediates have no responder")
	}
	if _, status := h.askGo(h.Intermediates()[0].SerialNumber, root, crypto.SHA1); status != OCSPUnauthorized {
		h.t.Errorf("an offline root without a responder: %s", status)
	}
	made := len(h.cfg.Keys.Keys(keyring.OCSP))
	h.must(h.keepResponders(h.t.Context()))
	if len(h.cfg.Keys.Keys(keyring.OCSP)) != made {
		h.t.Error("a responder was tried again")
	}
}

// TestImportFails: an Apply that fails leaves the request open, and its intent an outcome.
func TestImportFails(t *testing.T) {
	t.Parallel()
	root := selfSigned(t, curveKey(t, elliptic.P256()), nil)
	h := ownHouse(t, root, false)
	request, err := h.Request(t.Context(), admin())
	h.must(err)
	signed := root.signs(t, request.CSR, nil)
	store := h.cfg.Store
	h.cfg.Store = fullStore{store}
	wantCode(t, refusal(h.ImportIntermediate(t.Context(), admin(), signed)), countersign.CodeBusy)
	h.cfg.Store = store
	if n := h.outcomes(eventBrought)[audit.Failed]; n != 1 {
		t.Errorf("%d events say that it failed", n)
	}
	if _, err := h.ImportIntermediate(t.Context(), admin(), signed); err != nil {
		t.Error(err)
	}
}

// fullStore is a store that writes nothing.
type fullStore struct{ storage.Store }

func (fullStore) Apply(context.Context, ...storage.Op) (storage.Rev, error) {
	return 0, storage.ErrBusy
}

func (h *house) outcomes(event string) map[audit.Outcome]int {
	n := map[audit.Outcome]int{}
	for _, e := range h.events(event) {
		n[e.Outcome]++
	}
	return n
}

// TestOwnPermit: ca.permit binds the intermediate under a root of somebody else's.
func TestOwnPermit(t *testing.T) {
	t.Parallel()
	root := selfSigned(t, curveKey(t, elliptic.P384()), nil)
	key := newKey(t, "P-256")
	csr := string(asking(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "below"}}))
	cfg := Config{TrustDomain: domain, DNS: []string{"ca.shop.internal"}, Permit: []string{"shop.internal"}}
	for name, c := range map[string]struct {
		permitted []string
		critical  bool
		why       string
	}{
		"none": {nil, false, "ca.permit binds"}, "wider": {[]string{"internal"}, true, "ca.permit binds"}, "one beside": {[]string{"shop.internal", "example.com"}, true, "ca.permit binds"},
		"not critical": {[]string{"shop.internal"}, false, "ca.permit binds"}, "the same": {[]string{"shop.internal"}, true, ""}, "less": {[]string{"ca.shop.internal"}, true, ""},
	} {
		cert, err := ParseCertificatePEM(root.signs(t, csr, func(x *x509.Certificate) {
			x.PermittedDNSDomains, x.PermittedDNSDomainsCritical = c.permitted, c.critical
		}))
		if err != nil {
			t.Fatal(err)
		}
		err = checkIntermediate(cfg, cert, key.Public(), root.cert, ownNow, day)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckRequest: the request of an intermediate is held against what it is to say before it is signed.
func TestCheckRequest(t *testing.T) {
	t.Parallel()
	key := newKey(t, "P-256")
	if _, err := prepareRequest(domain, key.Public()); err != nil {
		t.Fatal(err)
	}
	keyID, err := subjectKeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	right := func() *x509.CertificateRequest {
		return &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: signingName(domain, ProfileIntermediate, keyID)}, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
			ExtraExtensions: []pkix.Extension{{Id: oidBasicConstraints, Critical: true, Value: askedConstraints}, {Id: oidKeyUsage, Critical: true, Value: askedUsage}},
		}
	}
	for name, change := range map[string]func(*x509.CertificateRequest){
		"":              func(*x509.CertificateRequest) {},
		"subject":       func(r *x509.CertificateRequest) { r.Subject.CommonName = "other" },
		"names":         func(r *x509.CertificateRequest) { r.URIs[0].Host = "other.internal" },
		"more names":    func(r *x509.CertificateRequest) { r.DNSNames = []string{"a.shop.internal"} },
		"no path":       func(r *x509.CertificateRequest) { r.ExtraExtensions[0].Value = []byte{0x30, 0x03, 0x01, 0x01, 0xff} },
		"more usage":    func(r *x509.CertificateRequest) { r.ExtraExtensions[1].Value = []byte{0x03, 0x02, 0x01, 0x86} },
		"not critical":  func(r *x509.CertificateRequest) { r.ExtraExtensions[0].Critical = false },
		"one extension": func(r *x509.CertificateRequest) { r.ExtraExtensions = r.ExtraExtensions[:1] },
	} {
		r := right()
		change(r)
		block, _ := pem.Decode(asking(t, key, r))
		draft, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRequest(domain, key.Public(), draft); (err == nil) != (name == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
	block, _ := pem.Decode(asking(t, newKey(t, "P-256"), right()))
	other, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || checkRequest(domain, key.Public(), other) == nil {
		t.Error("a request for another key", err)
	}
}

func request2(t *testing.T) []byte { return request(t, newKey(t, "P-256")) }

// TestRootRefused: each fault of a root that is brought, by name.
func TestRootRefused(t *testing.T) {
	t.Parallel()
	key := curveKey(t, elliptic.P256())
	weak, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // that it is refused is the test
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{TrustDomain: domain, DNS: []string{"ca.shop.internal", "10.0.0.1"}}
	_, other, _ := net.ParseCIDR("192.168.0.0/16")
	for name, change := range map[string]func(*x509.Certificate){
		"CA:TRUE":          func(c *x509.Certificate) { c.IsCA = false },
		"keyCertSign":      func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign },
		"cRLSign":          func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign },
		"path length is 0": func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true },
		"expired":          func(c *x509.Certificate) { c.NotAfter = ownNow.Add(-time.Minute) },
		"only":             func(c *x509.Certificate) { c.NotBefore = ownNow.Add(time.Hour) },
		"extendedKeyUsage": func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"spiffe://shop":    func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.internal"} },
		"forbid spiffe://": func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"internal"} },
		"forbid ca.shop":   func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"other.internal"} },
		"forbid ca.shop.":  func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"shop.internal"} },
		"subject is empty": func(c *x509.Certificate) { c.Subject = pkix.Name{} },
		"forbid 10.0.0.1":  func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{other} },
		"critical extension": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			refuseRoot(t, cfg, selfSigned(t, key, change).cert, key, name)
		})
	}
	refuseRoot(t, cfg, selfSigned(t, weak, nil).cert, weak, "1024 bits")
	refuseRoot(t, cfg, selfSigned(t, curveKey(t, elliptic.P224()), nil).cert, nil, "may sign")
	refuseRoot(t, cfg, selfSigned(t, key, nil).cert, curveKey(t, elliptic.P256()), "not the certificate's")
	p521 := curveKey(t, elliptic.P521())
	refuseRoot(t, cfg, selfSigned(t, p521, nil).cert, p521, "can't be kept here")
	root := selfSigned(t, key, nil)
	below, err := ParseCertificatePEM(root.signs(t, string(asking(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "below"}})), nil))
	if err != nil {
		t.Fatal(err)
	}
	refuseRoot(t, cfg, below, nil, "not signed by itself")
	sha1, err := ParseCertificatePEM([]byte(rootSHA1))
	if err != nil {
		t.Fatal(err)
	}
	refuseRoot(t, cfg, sha1, nil, "SHA1")
	fine := selfSigned(t, key, func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomains = []string{domain}, []string{domain}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	})
	cfg.DNS = cfg.DNS[:1]
	if err := CheckRoot(cfg, fine.cert, key, ownNow); err != nil {
		t.Error(err)
	}
}

func refuseRoot(t *testing.T, cfg Config, cert *x509.Certificate, key crypto.Signer, why string) {
	t.Helper()
	err := CheckRoot(cfg, cert, key, ownNow)
	wantCode(t, err, countersign.CodeOwnRoot)
	if !strings.Contains(err.Error(), why) {
		t.Errorf("%v, want %q", err, why)
	}
}

// TestIntermediateRefused: each fault of a certificate that an offline root made, by name; and nothing is recorded.
func TestIntermediateRefused(t *testing.T) {
	t.Parallel()
	root := selfSigned(t, curveKey(t, elliptic.P256()), nil)
	twin := selfSigned(t, curveKey(t, elliptic.P256()), nil)                                                                   // the same subject
	liar := selfSigned(t, curveKey(t, elliptic.P256()), func(c *x509.Certificate) { c.SubjectKeyId = root.cert.SubjectKeyId }) // and the same key id
	h := ownHouse(t, root, false)
	r, err := h.Request(t.Context(), admin())
	h.must(err)
	refuse := func(why string, text []byte) {
		t.Helper()
		_, err := h.ImportIntermediate(t.Context(), admin(), text)
		wantCode(t, err, countersign.CodeOwnIntermediate)
		if !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
	}
	refuse("PEM", []byte("nothing"))
	refuse("64 KiB", make([]byte, 65<<10))
	refuse("PRIVATE KEY", append(root.signs(t, r.CSR, nil), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...))
	refuse("its key is not that of the open request", root.signs(t, string(asking(t, newKey(t, "P-256"), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "another"}})), nil))
	refuse("no root here", twin.signs(t, r.CSR, nil))
	refuse("did not sign it", liar.signs(t, r.CSR, nil))
	for why, change := range map[string]func(*x509.Certificate){
		"CA:TRUE":                    func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false },
		"path length must be 0":      func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 1, false },
		"path length must be 0 (":    func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = -1, false },
		"keyCertSign":                func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature },
		"cRLSign":                    func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign },
		"extendedKeyUsage":           func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
		"expired":                    func(c *x509.Certificate) { c.NotAfter = ownNow.Add(-time.Minute) },
		"outlive the root":           func(c *x509.Certificate) { c.NotAfter = ownNow.AddDate(11, 0, 0) },
		"may live":                   func(c *x509.Certificate) { c.NotAfter = ownNow.Add(6 * day) },
		"forbid localhost":           func(c *x509.Certificate) { c.PermittedDNSDomains = []string{domain} },
		"not spiffe://shop.internal": func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other.internal"}} },
		"is that of":                 func(c *x509.Certificate) { c.SerialNumber = root.cert.SerialNumber },
	} {
		refuse(why, root.signs(t, r.CSR, change))
	}
	for _, role := range []countersign.Role{countersign.RoleNone, countersign.RoleViewer, countersign.RoleOperator} {
		by := admin()
		by.Role = role
		wantCode(t, refusal(h.ImportIntermediate(t.Context(), by, root.signs(t, r.CSR, nil))), countersign.CodeRole)
	}
	if len(h.Intermediates()) != 1 || len(h.events(eventBrought)) != 3 {
		t.Error("a refused certificate left something")
	}
}

// rootSHA1 is a root that openssl signed with SHA-1; its key is gone.
const rootSHA1 = `-----BEGIN CERTIFICATE-----
MIIDGTCCAgGgAwIBAgIURHsYkickxZQp2Z7eQ/fsdkTJO/MwDQYJKoZIhvcNAQEF
BQAwEzERMA8GA1UEAwwIT2xkIFJvb3QwIBcNMjYxMTI0MjIyOTM0WhgPMjEyNjEw
MzEyMjI5MzRaMBMxETAPBgNVBAMMCE9sZCBSb290MIIBIjANBgkqhkiG9w0BAQEF
AAOCAQ8AMIIBCgKCAQEAiYeINiZ6f9Qc/AkjtD4eOHSCGNsZTsdlHcae73ZNSdMX
uxZnjPjjdfuzZgQJzJF1GVuYpJtwTZefvk/UvpEsSyj9v62Ah1f17tQfyof+Tx2m
N4ChYZryHur8kLG9+TGjXK7jkBGd+IiArWwpYe2Ao/WzDVPvfapBRmR2+edBgZ+S
R+9ixr4RucYM6DcCXAITx8kbZc38fd8eNRSZwS/0C2/u3THYfqSy2gmFB48+fHSR
J4zGgOnM0r6iT+dkZOXyuQu0Dt9gtWXQCbUeweoUK8GMi/NnlIP1Qf0sF1B8fyZH
UXnP7MT4olpCzzp5H8OnxdPy4tX0N9Xanzp1hzIVtwIDAQABo2MwYTAdBgNVHQ4E
FgQU6+ykCNqNBwvs4id11LLL/lpsj00wHwYDVR0jBBgwFoAU6+ykCNqNBwvs4id1
1LLL/lpsj00wDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwDQYJKoZI
hvcNAQEFBQADggEBAIB562adxZIglWK03v2lniH1HW29pYHmjR3ncp4n2PKsEhBT
Oh+UbRdeWJpDVLyRSwGwuh9IpDiq4aXMki+MOCqqyZKHsEy+XGlsztC/bznnIX5x
Mz9kvUONJqqAQhQ4Ip8mdjZcoijAoYm2M1XkHodi7ciOWZCZtf1zBVfijMVjcnKP
VTqCK9Cyq1BBb9mNqioOiFPzOMmoY018hgurxzWGJlaWryLqlgtPkARJWn+wmjOJ
Yp+sDPSoPglZ2XcsSY/T07VMlm6NG+hCB6Vmh6x7wuWmN5yio707NTWXJZd6YOL+
Czt+bL2QwwKyIYvKlxHauIzeT0oRElQgjekyNpI=
-----END CERTIFICATE-----
`
