package ca

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

const pkiURL = "http://pki.shop.internal"

func pointing(c *Config) { c.PKI = pkiURL }

// published brings the lists of h up to date, as the loop does.
func (h *house) published() *publisher {
	h.t.Helper()
	p := newPublisher(h.Authority)
	h.must(p.step(h.t.Context()))
	return p
}

func (h *house) again(p *publisher) {
	h.t.Helper()
	p.behind = true
	h.must(p.step(h.t.Context()))
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// list is a list that is served, parsed and with its signature checked.
func (h *house) list(issuer *x509.Certificate, shard string) *x509.RevocationList {
	h.t.Helper()
	c, ok := h.CRL(hex.EncodeToString(issuer.SubjectKeyId), shard)
	if !ok || c == nil {
		h.t.Fatalf("no list %q of %s", shard, issuer.Subject)
	}
	l, err := x509.ParseRevocationList(c.DER)
	h.must(err)
	h.must(l.CheckSignatureFrom(issuer))
	if l.Number.Int64() != c.Number || !l.ThisUpdate.Equal(c.ThisUpdate) || !l.NextUpdate.Equal(c.NextUpdate) {
		h.t.Errorf("%+v is not what stands in the list", c)
	}
	return l
}

// listsSerial tells whether l names the serial.
func listsSerial(l *x509.RevocationList, serial *big.Int) bool {
	return slices.ContainsFunc(l.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool { return e.SerialNumber.Cmp(serial) == 0 })
}

// verifyCRL has openssl check the chain of c against lists, each as DER; it gives what openssl says.
func (h *house) verifyCRL(c *Certificate, lists ...*x509.RevocationList) (string, error) {
	h.t.Helper()
	dir := h.t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		h.must(os.WriteFile(path, b, 0o600))
		return path
	}
	var roots, between, crls []byte
	for _, cert := range h.Roots() {
		roots = append(roots, certPEM(cert)...)
	}
	for _, cert := range c.Chain[1:] {
		between = append(between, certPEM(cert)...)
	}
	for _, l := range lists {
		crls = append(crls, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: l.Raw})...)
	}
	out, err := exec.CommandContext(h.t.Context(), "openssl", "verify", "-x509_strict", "-extended_crl", "-crl_check_all",
		"-attime", big.NewInt(h.clock.now().Unix()).String(), "-CAfile", write("roots", roots), "-untrusted", write("between", between),
		"-CRLfile", write("crls", crls), write("leaf", []byte(certPEM(c.Chain[0])))).CombinedOutput()
	return string(out), err
}

// readByOpenSSL has `openssl crl` check and print a list.
func (h *house) readByOpenSSL(l *x509.RevocationList, issuer *x509.Certificate) string {
	h.t.Helper()
	dir := h.t.TempDir()
	h.must(os.WriteFile(filepath.Join(dir, "ca"), []byte(certPEM(issuer)), 0o600))
	h.must(os.WriteFile(filepath.Join(dir, "crl"), l.Raw, 0o600))
	cmd := exec.CommandContext(h.t.Context(), "openssl", "crl", "-inform", "DER", "-in", "crl", "-noout", "-text", "-CAfile", "ca")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "verify OK") {
		h.t.Errorf("openssl crl: %v\n%.500s", err, out)
	}
	return string(out)
}

func lintList(t *testing.T, l *x509.RevocationList) {
	t.Helper()
	registry, err := lintRegistry()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := zx509.ParseRevocationList(l.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range zlint.LintRevocationListEx(parsed, registry).Results {
		if r.Status > 3 { // notices
			t.Errorf("zlint %s: %s %s", name, r.Status, r.Details)
		}
	}
}

// TestCRL: openssl takes a certificate by its own shard, and by the list of everything, until it is revoked.
func TestCRL(t *testing.T) {
	h := newHouse(t, pointing)
	cert, other := h.join("orders", newKey(t, "")), h.join("gateway", newKey(t, ""))
	root, inter := h.Roots()[0], cert.Chain[1]
	shard := cert.Serial[:2]
	if want := pkiURL + "/crl/" + hex.EncodeToString(inter.SubjectKeyId) + "/" + shard + ".crl"; !slices.Equal(cert.Chain[0].CRLDistributionPoints, []string{want}) {
		t.Fatalf("points to %q, want %s", cert.Chain[0].CRLDistributionPoints, want)
	}
	if _, ok := h.CRL(hex.EncodeToString(inter.SubjectKeyId), shard); !ok {
		t.Fatal("the list is not known before it is made")
	}
	p := h.published()
	before := h.list(inter, shard)
	for name, lists := range map[string][]*x509.RevocationList{"shard": {before, h.list(root, "")}, "all": {h.list(inter, ""), h.list(root, "")}} {
		if out, err := h.verifyCRL(cert, lists...); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	odd := "00"
	if shard == odd {
		odd = "01"
	}
	if out, err := h.verifyCRL(cert, h.list(inter, odd), h.list(root, "")); err == nil {
		t.Errorf("openssl takes the certificate by a shard that is not its own\n%s", out)
	}
	if out, err := h.verifyCRL(cert, before); err == nil {
		t.Errorf("openssl takes the intermediate without a list of the root\n%s", out)
	}
	h.must(h.Revoke(t.Context(), admin(), cert.Serial, "keyCompromise"))
	h.clock.add(time.Millisecond)
	h.again(p)
	for name, l := range map[string]*x509.RevocationList{"shard": h.list(inter, shard), "all": h.list(inter, "")} {
		if out, err := h.verifyCRL(cert, l, h.list(root, "")); err == nil || !strings.Contains(out, "certificate revoked") {
			t.Errorf("%s: a revoked certificate: %v\n%s", name, err, out)
		}
		text := h.readByOpenSSL(l, inter)
		for _, want := range []string{strings.ToUpper(cert.Serial), "Key Compromise", "X509v3 CRL Number", "X509v3 Authority Key Identifier"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: openssl crl says nothing of %q\n%.800s", name, want, text)
			}
		}
		if got := strings.Contains(text, "X509v3 Issuing Distribution Point: critical"); got != (name == "shard") {
			t.Errorf("%s: issuing distribution point: %v", name, got)
		}
		if l.Number.Cmp(before.Number) <= 0 {
			t.Errorf("%s: number %s after %s", name, l.Number, before.Number)
		}
		lintList(t, l)
	}
	lintList(t, h.list(root, ""))
	h.readByOpenSSL(h.list(root, ""), root)
	if out, err := h.verifyCRL(other, h.list(inter, ""), h.list(root, "")); err != nil {
		t.Errorf("a certificate that is not revoked: %v\n%s", err, out)
	}
	if life := h.list(root, "").NextUpdate.Sub(h.clock.now()); life < 364*day {
		t.Errorf("the root's list ends after %s", life)
	}
}

// TestCRLLasts: an entry stays until its certificate is over, on schedule and across a restart, and leaves after that.
func TestCRLLasts(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.PKI, c.ServiceTTL = pkiURL, 30*day })
	cert := h.join("orders", newKey(t, ""))
	inter, serial := cert.Chain[1], cert.Chain[0].SerialNumber
	p := h.published()
	h.must(h.Revoke(t.Context(), admin(), cert.Serial, ""))
	h.again(p)
	number := h.list(inter, "").Number
	for range 9 {
		h.clock.add(3 * day)
		h.must(h.housekeep(t.Context(), 0, 0))
		h.must(p.step(t.Context()))
		l := h.list(inter, cert.Serial[:2])
		if !listsSerial(l, serial) || !listsSerial(h.list(inter, ""), serial) {
			t.Fatal("a revoked certificate has left the lists before its end")
		}
		if l.ThisUpdate.Before(h.clock.now().Add(-2*time.Minute)) || l.Number.Cmp(number) <= 0 {
			t.Fatalf("the list of %s, number %s, is not made anew", l.ThisUpdate, l.Number)
		}
		number = h.list(inter, "").Number
	}
	h.reopen()
	h.clock.add(time.Second)
	p = h.published()
	if l := h.list(inter, ""); !listsSerial(l, serial) || l.Number.Cmp(number) <= 0 {
		t.Fatal("after a restart the list is another one")
	}
	h.clock.add(3*day + time.Hour)
	h.must(p.step(t.Context()))
	if !listsSerial(h.list(inter, ""), serial) {
		t.Error("an entry left before it was on a scheduled list after its certificate's end")
	}
	for range 4 {
		h.clock.add(crlEvery)
		h.must(p.step(t.Context()))
	}
	if listsSerial(h.list(inter, ""), serial) || len(p.known) != 0 {
		t.Error("what is over stays for ever")
	}
}

// TestCRLOfABlockedLineage: a fork puts every certificate of the lineage into the lists.
func TestCRLOfABlockedLineage(t *testing.T) {
	h := newHouse(t, pointing)
	first := h.join("orders", newKey(t, ""))
	owner := h.peer(first)
	second, err := h.Issue(t.Context(), owner, IssueRequest{CSR: request(t, newKey(t, ""))})
	h.must(err)
	h.peer(second) // it is seen
	_, err = h.Issue(t.Context(), owner, IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeRevokedPeer)
	h.published()
	for _, c := range []*Certificate{first, second} {
		if l := h.list(c.Chain[1], c.Serial[:2]); !listsSerial(l, c.Chain[0].SerialNumber) {
			t.Errorf("%s of the blocked lineage is not listed", c.Serial)
		}
	}
}

// TestCRLOfTheRoot: an intermediate that is retired before its end is revoked by its root, since nothing answers for it then.
func TestCRLOfTheRoot(t *testing.T) {
	h := newHouse(t, pointing)
	cert := h.join("orders", newKey(t, ""))
	old := h.signing()
	p := h.published()
	h.must(h.Revoke(t.Context(), admin(), cert.Serial, "keyCompromise"))
	h.rotate(Rotation{Role: ProfileIntermediate})
	h.again(p)
	full := h.list(old.cert, "")
	h.list(h.signing().cert, "00")
	h.must(h.Retire(t.Context(), admin(), old.serial))
	h.must(p.step(t.Context()))
	if _, ok := h.CRL(hex.EncodeToString(old.cert.SubjectKeyId), ""); ok {
		t.Error("a retired intermediate has a list")
	}
	if l := h.list(h.Roots()[0], ""); len(l.RevokedCertificateEntries) != 1 || !listsSerial(l, old.cert.SerialNumber) {
		t.Errorf("the root's list has %v", l.RevokedCertificateEntries)
	}
	if out, err := h.verifyCRL(cert, full, h.list(h.Roots()[0], "")); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("openssl takes a chain of a retired intermediate: %v\n%s", err, out)
	}
}

// TestRevokeWithoutCRL: nothing about lists keeps a revocation from being one.
func TestRevokeWithoutCRL(t *testing.T) {
	h := newHouse(t, pointing)
	cert := h.join("orders", newKey(t, ""))
	kek := h.kek
	h.kek = nil
	h.reopen() // sealed
	p := newPublisher(h.Authority)
	if err := p.step(t.Context()); err == nil {
		t.Fatal("a sealed authority signs lists")
	}
	h.must(h.Revoke(t.Context(), admin(), cert.Serial, "keyCompromise"))
	if c, ok := h.CRL(hex.EncodeToString(cert.Chain[1].SubjectKeyId), cert.Serial[:2]); !ok || c != nil {
		t.Errorf("%v, %v", c, ok)
	}
	h.must(h.cfg.Keys.Unseal(kek))
	h.again(p)
	if !listsSerial(h.list(cert.Chain[1], cert.Serial[:2]), cert.Chain[0].SerialNumber) {
		t.Error("what was revoked while sealed is not listed")
	}
}

// TestCRLOfADamagedRecord: the record can't be read, and the certificate is revoked all the same, under every issuer.
func TestCRLOfADamagedRecord(t *testing.T) {
	h := newHouse(t, pointing)
	cert := h.join("orders", newKey(t, ""))
	h.must(h.Revoke(t.Context(), admin(), cert.Serial, "keyCompromise"))
	_, err := h.bolt.Apply(t.Context(), storage.Op{Kind: storage.Put, Table: certificatesTable().Name, Key: cert.Serial, Value: []byte("{")})
	h.must(err)
	p := h.published()
	h.rotate(Rotation{Role: ProfileIntermediate})
	h.must(p.step(t.Context()))
	for _, i := range slices.Concat(h.Intermediates(), h.Roots()) {
		if !listsSerial(h.list(i, ""), cert.Chain[0].SerialNumber) {
			t.Errorf("%s does not list it", i.Subject)
		}
	}
}

// TestPublishCRLs: the loop lists what is revoked without being asked.
func TestPublishCRLs(t *testing.T) {
	h := newHouse(t, pointing)
	cert := h.join("orders", newKey(t, ""))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- h.PublishCRLs(ctx) }()
	name := hex.EncodeToString(cert.Chain[1].SubjectKeyId)
	until := func(what string, done func(*x509.RevocationList) bool) {
		t.Helper()
		begun := time.Now()
		for {
			if c, ok := h.CRL(name, ""); ok && c != nil {
				l, err := x509.ParseRevocationList(c.DER)
				h.must(err)
				if done(l) {
					t.Logf("%s after %s", what, time.Since(begun))
					return
				}
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("%s: not within a minute", what)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	until("made", func(*x509.RevocationList) bool { return true })
	h.must(h.Revoke(ctx, admin(), cert.Serial, "superseded"))
	until("listed", func(l *x509.RevocationList) bool { return listsSerial(l, cert.Chain[0].SerialNumber) })
	stop()
	h.must(<-ended)
}

// TestManyRevocations: of 200,000 revoked certificates no shard reaches 1 MiB, and openssl reads shard and list of everything.
func TestManyRevocations(t *testing.T) {
	h := newHouse(t, pointing)
	inter, now := h.signing(), h.clock.now()
	p := newPublisher(h.Authority)
	p.follow(now)
	s, fullest := p.scope(inter.serial), 0
	for range 200_000 {
		var n serialNumber
		_, _ = rand.Read(n[:])
		s.add(revoked{crlEntry{n, now, 1}, now.Add(day)})
	}
	for i := range s.entries {
		if len(s.entries[i]) > len(s.entries[fullest]) {
			fullest = i
		}
	}
	for _, shard := range []string{hex.EncodeToString([]byte{byte(fullest)}), ""} {
		begun := time.Now()
		h.must(p.make(s, shard, now))
		c, _ := h.CRL(hex.EncodeToString(inter.cert.SubjectKeyId), shard)
		t.Logf("%q: %d bytes in %s", shard, len(c.DER), time.Since(begun))
		if shard != "" && len(c.DER) >= 1<<20 {
			t.Errorf("the shard %s has %d bytes", shard, len(c.DER))
		}
		if text := h.readByOpenSSL(&x509.RevocationList{Raw: c.DER}, inter.cert); shard == "" && strings.Count(text, "Serial Number: ") != 200_000 {
			t.Errorf("openssl reads %d entries", strings.Count(text, "Serial Number: "))
		}
	}
}

// TestPointers: services and operators point somewhere, if the authority has an address; the daemon and the authority never.
func TestPointers(t *testing.T) {
	for _, adjust := range []func(*Config){nil, pointing} {
		h := newHouse(t, adjust)
		server, err := h.IssueServer(t.Context(), request(t, newKey(t, "")))
		h.must(err)
		operator, err := h.AddOperator(t.Context(), admin(), "alice", countersign.RoleAdmin, request(t, newKey(t, "")))
		h.must(err)
		for name, c := range map[string]*x509.Certificate{
			"service": h.join("orders", newKey(t, "RSA-2048")).Chain[0], "operator": operator.Chain[0],
			"daemon": server.Chain[0], "intermediate": h.Intermediates()[0], "root": h.Roots()[0],
		} {
			checkLint(t, c)
			wants := 0
			if adjust != nil && (name == "service" || name == "operator") {
				wants = 1
			}
			if len(c.CRLDistributionPoints) != wants || len(c.IssuingCertificateURL) != wants || len(c.OCSPServer) != wants {
				t.Errorf("%s with address %v: %q %q", name, adjust != nil, c.CRLDistributionPoints, c.IssuingCertificateURL)
			}
		}
		if _, ok := h.CRL(hex.EncodeToString(h.Intermediates()[0].SubjectKeyId), "00"); ok != (adjust != nil) {
			t.Errorf("shards without certificates that point to them: %v", ok)
		}
	}
	for _, bad := range []string{"https://pki.internal", "pki.internal", "http://", "http://pki.internal/", "http://u@pki.internal",
		"http://PKI.internal", "http://pki.internal?x", "http://pki.internal#x", "http://pki.internal/%7e", "http://pki.internal/%7E", "http://" + strings.Repeat("a", 200)} {
		if err := CheckPKI(bad); err == nil {
			t.Errorf("certificates may point to %q", bad)
		}
	}
}

// TestPointersOfTBS changes pointers that were decided: each change is noticed.
func TestPointersOfTBS(t *testing.T) {
	h := newHouse(t, pointing)
	cert := h.join("orders", newKey(t, "")).Chain[0]
	parent := h.Intermediates()[0]
	s := Subject{
		ID: service("orders").ID, TrustDomain: domain, DNS: []string{"orders.shop.internal"}, Key: cert.PublicKey,
		Serial: cert.SerialNumber, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, Issuer: parent, PKI: pkiURL,
		KeyTypes: allKeyTypes(), Most: day,
	}
	if err := checkTBS(ProfileService, s, cert); err != nil {
		t.Fatal(err)
	}
	point := cert.CRLDistributionPoints[0]
	for name, change := range map[string]func(*Subject, *x509.Certificate){
		"no list":   func(_ *Subject, c *x509.Certificate) { c.CRLDistributionPoints = nil },
		"two lists": func(_ *Subject, c *x509.Certificate) { c.CRLDistributionPoints = []string{point, point} },
		"all": func(_ *Subject, c *x509.Certificate) {
			c.CRLDistributionPoints = []string{point[:len(point)-7] + ".crl"}
		},
		"no issuer":  func(_ *Subject, c *x509.Certificate) { c.IssuingCertificateURL = nil },
		"no OCSP":    func(_ *Subject, c *x509.Certificate) { c.OCSPServer = nil },
		"OCSP":       func(_ *Subject, c *x509.Certificate) { c.OCSPServer = []string{"https://pki.shop.internal/ocsp"} },
		"OCSP twice": func(_ *Subject, c *x509.Certificate) { c.OCSPServer = append(c.OCSPServer, c.OCSPServer...) },
		"no address": func(s *Subject, _ *x509.Certificate) { s.PKI = "" },
		"another":    func(s *Subject, _ *x509.Certificate) { s.PKI = "http://other.internal" },
		"https":      func(s *Subject, _ *x509.Certificate) { s.PKI = "https://pki.shop.internal" },
	} {
		subject, changed := s, *cert
		change(&subject, &changed)
		if err := checkTBS(ProfileService, subject, &changed); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
}

// TestCheckList changes one thing in a parsed list at a time: each is noticed.
func TestCheckList(t *testing.T) {
	h := newHouse(t, pointing)
	p := newPublisher(h.Authority)
	p.follow(h.clock.now())
	inter := h.signing()
	s, now := p.scope(inter.serial), h.clock.now()
	for _, last := range []byte{1, 2} {
		s.add(revoked{crlEntry{serialNumber{0xab, 15: last}, now, int(last) - 1}, now.Add(day)})
	}
	plan := p.plan(s, "ab", now)
	checked, err := prepareList(plan)
	h.must(err)
	if _, err := checked.sign(newKey(t, "")); err == nil {
		t.Error("a list with a signature of the wrong key was handed out")
	}
	signer, err := h.cfg.Keys.SignerByID(inter.KeyID)
	h.must(err)
	der, err := checked.sign(signer)
	h.must(err)
	list, err := x509.ParseRevocationList(der)
	h.must(err)
	h.must(checkList(plan, list))
	if !bytes.Equal(list.RawTBSRevocationList, checked.raw) {
		t.Error("signed other bytes than were checked")
	}
	entry := func(change func(*x509.RevocationListEntry)) func(*listPlan, *x509.RevocationList) {
		return func(_ *listPlan, l *x509.RevocationList) {
			l.RevokedCertificateEntries = slices.Clone(l.RevokedCertificateEntries)
			change(&l.RevokedCertificateEntries[1])
		}
	}
	for name, change := range map[string]func(*listPlan, *x509.RevocationList){
		"issuer":     func(_ *listPlan, l *x509.RevocationList) { l.RawIssuer = h.Roots()[0].RawSubject },
		"AKI":        func(_ *listPlan, l *x509.RevocationList) { l.AuthorityKeyId = h.Roots()[0].SubjectKeyId },
		"algorithm":  func(_ *listPlan, l *x509.RevocationList) { l.SignatureAlgorithm = x509.ECDSAWithSHA1 },
		"number":     func(_ *listPlan, l *x509.RevocationList) { l.Number = big.NewInt(plan.number - 1) },
		"no number":  func(_ *listPlan, l *x509.RevocationList) { l.Number = nil },
		"thisUpdate": func(_ *listPlan, l *x509.RevocationList) { l.ThisUpdate = l.ThisUpdate.Add(second) },
		"nextUpdate": func(_ *listPlan, l *x509.RevocationList) { l.NextUpdate = time.Time{} },
		"lists": func(p *listPlan, _ *x509.RevocationList) {
			leaf := *h.join("orders", newKey(t, "")).Chain[0]
			leaf.RawSubject, leaf.SubjectKeyId = p.issuer.RawSubject, p.issuer.SubjectKeyId
			p.issuer = &leaf
		},
		"point":        func(p *listPlan, _ *x509.RevocationList) { p.url = strings.Replace(p.url, "/ab.", "/ac.", 1) },
		"no point":     func(p *listPlan, _ *x509.RevocationList) { p.url, p.shard = "", "" },
		"only a shard": func(p *listPlan, _ *x509.RevocationList) { p.url = "" },
		"shard":        func(p *listPlan, _ *x509.RevocationList) { p.shard = "ac" },
		"one less": func(_ *listPlan, l *x509.RevocationList) {
			l.RevokedCertificateEntries = l.RevokedCertificateEntries[:1]
		},
		"one more": func(_ *listPlan, l *x509.RevocationList) {
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries[:2:2], l.RevokedCertificateEntries[1])
		},
		"order":          func(p *listPlan, _ *x509.RevocationList) { p.entries = []crlEntry{p.entries[1], p.entries[0]} },
		"serial":         entry(func(e *x509.RevocationListEntry) { e.SerialNumber = big.NewInt(1) }),
		"long serial":    entry(func(e *x509.RevocationListEntry) { e.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 128) }),
		"date":           entry(func(e *x509.RevocationListEntry) { e.RevocationTime = e.RevocationTime.Add(second) }),
		"reason":         entry(func(e *x509.RevocationListEntry) { e.ReasonCode = 8 }),
		"no reason":      entry(func(e *x509.RevocationListEntry) { e.Extensions = nil }),
		"another reason": entry(func(e *x509.RevocationListEntry) { e.Extensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2}}} }),
		"extension": func(_ *listPlan, l *x509.RevocationList) {
			l.Extensions = append(l.Extensions[:len(l.Extensions):len(l.Extensions)], pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}})
		},
		"point twice": func(_ *listPlan, l *x509.RevocationList) {
			l.Extensions = append(l.Extensions[:len(l.Extensions):len(l.Extensions)], l.Extensions[2])
		},
		"not critical": func(_ *listPlan, l *x509.RevocationList) {
			l.Extensions = slices.Clone(l.Extensions)
			l.Extensions[2].Critical = false
		},
	} {
		other, changed := plan, *list
		change(&other, &changed)
		if err := checkList(other, &changed); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	for _, der := range [][]byte{nil, {0x30, 0}, {0x30, 3, 0x81, 1, 0xff}, append(list.Extensions[2].Value[:len(list.Extensions[2].Value):len(list.Extensions[2].Value)], 0)} {
		if got := pointsTo(der); got != "" {
			t.Errorf("% x points to %s", der, got)
		}
	}
	weak := plan
	issuer := *plan.issuer
	issuer.PublicKey = newKey(t, "Ed25519").Public()
	weak.issuer = &issuer
	if _, err := prepareList(weak); err == nil {
		t.Error("an issuer's key of another kind")
	}
}
