package ca

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
)

// TestProfiles issues one certificate of every profile and key type and has them judged by zlint, openssl and crypto/x509.
func TestProfiles(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	server, err := h.IssueServer(ctx, request(t, newKey(t, "P-256")))
	if err != nil {
		t.Fatal(err)
	}
	operator, err := h.AddOperator(ctx, admin(), "alice", countersign.RoleViewer, request(t, newKey(t, "")))
	if err != nil {
		t.Fatal(err)
	}
	checkLint(t, h.Roots()[0])
	checkLint(t, h.Intermediates()[0])
	verify(t, h, server, "sslserver", "sslclient")
	verify(t, h, operator, "sslclient", "sslserver")
	if err := server.Chain[0].VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	if got := server.Chain[0].DNSNames; !slices.Equal(got, []string{"localhost", "ca.shop.internal"}) {
		t.Errorf("the daemon's names are %q", got)
	}
	for _, alg := range []string{"P-256", "P-384", "Ed25519", "RSA-2048"} {
		cert := h.join("gateway", newKey(t, alg))
		verify(t, h, cert, "sslserver", "")
		verify(t, h, cert, "sslclient", "")
		leaf := cert.Chain[0]
		if diff := cmp.Diff([]string{"gateway.shop.internal", "www.shop.internal"}, leaf.DNSNames); diff != "" {
			t.Error(diff)
		}
		if leaf.Subject.String() != "CN=gateway" || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://shop.internal/gateway" {
			t.Errorf("subject %s, URIs %v", leaf.Subject, leaf.URIs)
		}
		if enc := leaf.KeyUsage&x509.KeyUsageKeyEncipherment != 0; enc != (alg == "RSA-2048") {
			t.Errorf("%s: keyEncipherment is %v", alg, enc)
		}
		r, err := h.Certificate(ctx, cert.Serial)
		if err != nil || r.KeyAlg != alg || r.State != StateValid || r.Kind != "service" {
			t.Errorf("record %+v, %v", r, err)
		}
	}
	root := h.Roots()[0]
	if root.NotAfter.Sub(root.NotBefore)+second != 3650*day || h.Intermediates()[0].MaxPathLen != 0 || !h.Intermediates()[0].MaxPathLenZero {
		t.Error("lifetime of the root, or path length of the intermediate")
	}
}

// verify demands that openssl takes the chain for one purpose, refuses it for another, and that zlint has no complaint.
func verify(t *testing.T, h *house, c *Certificate, good, bad string) {
	t.Helper()
	checkLint(t, c.Chain[0])
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		var b []byte
		for _, c := range certs {
			b = append(b, certPEM(c)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root, inter, leaf := write("root", h.Roots()...), write("inter", c.Chain[1]), write("leaf", c.Chain[0])
	run := func(purpose string) ([]byte, error) {
		return exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", inter, "-purpose", purpose,
			"-attime", "1795521600", leaf).CombinedOutput()
	}
	if out, err := run(good); err != nil {
		t.Errorf("openssl verify -purpose %s: %v\n%s", good, err, out)
	}
	if bad == "" {
		return
	}
	if out, err := run(bad); err == nil {
		t.Errorf("openssl takes the certificate of %s for %s\n%s", c.ID, bad, out)
	}
}

func TestInitTwice(t *testing.T) {
	h := newHouse(t, nil)
	if err := Init(t.Context(), h.cfg, admin()); err == nil {
		t.Fatal("a second authority was made")
	}
	if got := len(h.events(eventIssued)); got != 2 {
		t.Errorf("%d certificates are audited, want root and intermediate", got)
	}
	h.cfg.TrustDomain = "other.internal"
	if _, err := Open(t.Context(), h.cfg); err == nil {
		t.Fatal("the authority of another trust domain was opened")
	}
}

func TestInterval(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.IntermediateTTL = 10 * time.Hour })
	now := h.clock.now()
	for _, tt := range []struct {
		asked, want, back time.Duration
		code              countersign.Code
	}{
		{asked: time.Hour, want: time.Hour, back: time.Minute},
		{asked: 90 * time.Minute, want: 90 * time.Minute, back: time.Minute},
		{asked: time.Minute, want: time.Minute, back: 6 * time.Second},
		{asked: 10*time.Hour + time.Second, want: 10 * time.Hour, back: time.Minute}, // cut to the issuer's end
		{asked: 20 * time.Hour, want: 10 * time.Hour, back: time.Minute},             // half is the least
		{asked: 20*time.Hour + 2*time.Second, code: countersign.CodeIssuerExpiring},
		{asked: 0, code: countersign.CodeIssuerExpiring}, // the default of 24 h
		{asked: 59 * time.Second, code: countersign.CodeTTL},
		{asked: -time.Hour, code: countersign.CodeTTL},
		{asked: 25 * time.Hour, code: countersign.CodeTTL},
	} {
		cert, err := h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: request(t, newKey(t, "")), TTL: tt.asked})
		if tt.code != "" {
			wantCode(t, err, tt.code)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := cert.NotAfter.Sub(cert.NotBefore) + second; got != tt.want {
			t.Errorf("asked %s: lifetime %s, want %s", tt.asked, got, tt.want)
		}
		if want := now.Truncate(second).Add(-tt.back); !cert.NotBefore.Equal(want) {
			t.Errorf("asked %s: begins %s, want %s", tt.asked, cert.NotBefore, want)
		}
		if cert.NotAfter.After(h.Intermediates()[0].NotAfter) {
			t.Errorf("asked %s: outlives its issuer", tt.asked)
		}
		if cert.RenewAfter.Before(cert.NotBefore) || !cert.RenewAfter.Before(cert.RenewBefore) || !cert.RenewBefore.Before(cert.NotAfter) {
			t.Errorf("renewal from %s to %s", cert.RenewAfter, cert.RenewBefore)
		}
	}
	h.clock.add(10 * time.Hour)
	_, err := h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: request(t, newKey(t, "")), TTL: time.Minute})
	wantCode(t, err, countersign.CodeIssuerExpiring)
}

func TestPolicyDecides(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	key := newKey(t, "")
	cert := h.join("orders", key)
	by := h.peer(cert)

	short := service("orders", "new.shop.internal")
	short.TTL, short.KeyTypes = countersign.Duration(2*time.Hour), []string{"P-256"}
	h.apply(2, short)
	renewed, err := h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	if err != nil {
		t.Fatal(err)
	}
	if got := renewed.Chain[0].DNSNames; !slices.Equal(got, []string{"new.shop.internal"}) || renewed.Serial == cert.Serial {
		t.Errorf("the renewal has the names %q", got)
	}
	if got := renewed.NotAfter.Sub(renewed.NotBefore) + second; got != 2*time.Hour {
		t.Errorf("the renewal lives %s", got)
	}
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, newKey(t, "Ed25519"))})
	wantCode(t, err, countersign.CodeKeyType)

	short.Disabled = &countersign.Disabled{Reason: "incident"}
	h.apply(3, short)
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeServiceDisabled)
	h.apply(4, service("gateway"))
	_, err = h.Issue(ctx, by, IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeNotInPolicy)

	denied := h.events(eventDenied)
	if len(denied) != 3 || denied[2].Code != countersign.CodeNotInPolicy || denied[2].By.Serial != cert.Serial {
		t.Errorf("denials in the log: %+v", denied)
	}
}

func TestCallersThatGetNone(t *testing.T) {
	h := newHouse(t, nil)
	orders := h.join("orders", newKey(t, ""))
	csr := request(t, newKey(t, ""))
	server, err := h.IssueServer(t.Context(), request(t, newKey(t, "")))
	if err != nil {
		t.Fatal(err)
	}
	gateway, _ := countersign.NewServiceID(domain, "gateway")
	foreign, _ := countersign.NewServiceID("other.internal", "orders")
	operator, _ := countersign.NewOperatorID(domain, "mallory")
	authority, _ := countersign.NewAuthorityID(domain)
	for _, tt := range []struct {
		name string
		by   countersign.Caller
		code countersign.Code
	}{
		{"nobody", countersign.Caller{}, countersign.CodeNoCredential},
		{"socket", admin(), countersign.CodeWrongCredential},
		{"join token for an operator", countersign.Caller{Method: countersign.ByJoinToken, ID: operator}, countersign.CodeJoinToken},
		{"join token that is none", countersign.Caller{Method: countersign.ByJoinToken, ID: gateway, JoinToken: "00"}, countersign.CodeJoinToken},
		{"foreign domain", countersign.Caller{Method: countersign.ByCertificate, ID: foreign, Serial: orders.Serial}, countersign.CodeBadCertificate},
		{"certificate of another ID", countersign.Caller{Method: countersign.ByCertificate, ID: gateway, Serial: orders.Serial}, countersign.CodeBadCertificate},
		{"certificate not on record", countersign.Caller{Method: countersign.ByCertificate, ID: gateway, Serial: "01"}, countersign.CodeBadCertificate},
		{"operator not on record", countersign.Caller{Method: countersign.ByCertificate, ID: operator, Serial: orders.Serial}, countersign.CodeBadCertificate},
		{"the daemon's certificate", countersign.Caller{Method: countersign.ByCertificate, ID: authority, Serial: server.Serial}, countersign.CodeWrongCredential},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := h.Issue(t.Context(), tt.by, IssueRequest{CSR: csr})
			wantCode(t, err, tt.code)
		})
	}
}

func TestKeyBelongsToOneID(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	key := newKey(t, "")
	first := h.join("orders", key)
	_, err := h.Issue(ctx, h.joiner("gateway"), IssueRequest{CSR: request(t, key)})
	wantCode(t, err, countersign.CodeCSRKey)
	if _, err := h.Issue(ctx, h.peer(first), IssueRequest{CSR: request(t, key)}); err != nil {
		t.Fatalf("renewal with the same key: %v", err)
	}
	// Two at once with one key and two tokens: one of them gets it.
	shared := newKey(t, "")
	callers := []countersign.Caller{h.joiner("orders"), h.joiner("gateway")}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, by := range callers {
		wg.Go(func() { _, errs[i] = h.Issue(ctx, by, IssueRequest{CSR: request(t, shared)}) })
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) {
		t.Fatalf("two IDs with one key: %v", errs)
	}
	if errs[0] == nil {
		errs[0] = errs[1]
	}
	wantCode(t, errs[0], countersign.CodeCSRKey)
}

func TestOperators(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	csr := request(t, newKey(t, ""))
	viewer := countersign.Caller{Method: countersign.ByCertificate, Role: countersign.RoleOperator, Name: "bob"}
	_, err := h.AddOperator(ctx, viewer, "alice", countersign.RoleViewer, csr)
	wantCode(t, err, countersign.CodeRole)
	_, err = h.AddOperator(ctx, admin(), "alice", countersign.RoleNone, csr)
	wantCode(t, err, countersign.CodeParameter)
	_, err = h.AddOperator(ctx, admin(), "a/b", countersign.RoleViewer, csr)
	wantCode(t, err, countersign.CodeParameter)

	key := newKey(t, "")
	cert, err := h.AddOperator(ctx, admin(), "alice", countersign.RoleAdmin, request(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if by := h.peer(cert); by.Role != countersign.RoleAdmin || by.ID.Kind() != countersign.OperatorID {
		t.Errorf("caller %+v", by)
	}
	if _, err := h.Issue(ctx, h.peer(cert), IssueRequest{CSR: request(t, newKey(t, ""))}); err != nil {
		t.Fatalf("an operator renews: %v", err)
	}
	if _, err := h.AddOperator(ctx, admin(), "alice", countersign.RoleViewer, request(t, key)); err != nil {
		t.Fatal(err)
	}
	if by := h.peer(cert); by.Role != countersign.RoleViewer {
		t.Errorf("after the change the role is %s", by.Role)
	}
	if got := h.events("operator.added"); len(got) != 2 || got[0].Subject != "alice" {
		t.Errorf("events %+v", got)
	}
}
