package ca

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

var shopOnly = []string{"shop.internal", "localhost"}

func permit(suffixes ...string) func(*Config) {
	return func(c *Config) { c.Permit = suffixes }
}

// TestConstrainedAuthority looks at everything that signs, before and after the root's rotation: each has exactly the
// configured constraints, critical; and leaves have none.
func TestConstrainedAuthority(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.Permit, c.RootLead = shopOnly, time.Hour })
	h.join("orders", newKey(t, ""))
	if _, err := h.Rotate(t.Context(), admin(), Rotation{Role: ProfileRoot}); err != nil {
		t.Fatal(err)
	}
	h.clock.add(2 * time.Hour)
	roles := map[Profile]int{}
	for _, i := range h.issuers.Load().all {
		roles[i.Role]++
		checkLint(t, i.cert)
		if !slices.Equal(i.cert.PermittedDNSDomains, shopOnly) || !i.cert.PermittedDNSDomainsCritical {
			t.Errorf("the %s has the constraints %q, critical %v", i.Role, i.cert.PermittedDNSDomains, i.cert.PermittedDNSDomainsCritical)
		}
	}
	if roles[ProfileRoot] != 2 || roles[profileCross] != 1 || roles[ProfileIntermediate] != 2 {
		t.Errorf("%v", roles)
	}
	leaf := h.join("gateway", newKey(t, ""))
	checkLint(t, leaf.Chain[0])
	if len(leaf.Chain[0].PermittedDNSDomains) != 0 || len(leaf.Chain) != 3 {
		t.Errorf("leaf: %q, chain of %d", leaf.Chain[0].PermittedDNSDomains, len(leaf.Chain))
	}
	for _, root := range h.Roots() { // by the cross certificate, too
		pool, between := x509.NewCertPool(), x509.NewCertPool()
		pool.AddCert(root)
		for _, c := range leaf.Chain[1:] {
			between.AddCert(c)
		}
		o := x509.VerifyOptions{Roots: pool, Intermediates: between, DNSName: "www.shop.internal", CurrentTime: h.clock.now()}
		if _, err := leaf.Chain[0].Verify(o); err != nil {
			t.Errorf("under %s: %v", root.Subject, err)
		}
	}
}

// TestOutsideTheConstraints: names that the policy gives and the constraints do not permit are refused before anything is
// signed, on every way, and so are the daemon's own; addresses are another form of name.
func TestOutsideTheConstraints(t *testing.T) {
	h := newHouse(t, permit("shop.internal", "localhost"))
	cert := h.join("orders", newKey(t, ""))
	joiner, peer := h.joiner("orders"), h.peer(cert)
	h.clock.add(25 * time.Hour)
	over := countersign.Caller{Method: countersign.ByExpired, ID: peer.ID, Serial: cert.Serial, Name: peer.Name}
	h.clock.add(-25 * time.Hour)
	h.apply(2, service("orders", "orders.shop.internal", "orders.shop.example"))
	attested := countersign.Caller{Method: countersign.ByAttestation, ID: peer.ID, Name: "orders"}
	before := len(h.events(eventIntent))
	for name, by := range map[string]countersign.Caller{"join": joiner, "renewal": peer, "grace": over, "attested": attested} {
		_, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, newKey(t, "")), Proof: &usedProof{h.bolt}})
		t.Log(name)
		wantCode(t, err, countersign.CodeNameConstraint)
		if !strings.Contains(err.Error(), "orders.shop.example") {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.dns = append(h.dns, "ca.shop.example")
	_, err := h.IssueServer(t.Context(), request(t, newKey(t, "")))
	wantCode(t, err, countersign.CodeNameConstraint)
	if got := len(h.events(eventIntent)); got != before {
		t.Errorf("%d intents", got-before)
	}
	h.dns = h.dns[:len(h.dns)-1]
	server, err := h.IssueServer(t.Context(), request(t, newKey(t, "")))
	if err != nil || len(server.Chain[0].IPAddresses) != 1 {
		t.Errorf("the daemon's own, with an address: %v", err)
	}
}

// TestWiderConstraints: another ca.permit counts as far as every published root says it too, so that no certificate fails
// at somebody who has the old root only; a narrower one counts at once.
func TestWiderConstraints(t *testing.T) {
	suffixes := shopOnly
	h := newHouse(t, func(c *Config) { c.Permit, c.RootLead = suffixes, time.Minute })
	ctx := t.Context()
	suffixes = append(slices.Clone(shopOnly), "shop.example")
	h.reopen()
	h.apply(2, service("orders", "orders.shop.example"), service("gateway", "gateway.shop.internal"))
	refused := func() {
		t.Helper()
		_, err := h.Issue(ctx, h.joiner("orders"), IssueRequest{CSR: request(t, newKey(t, ""))})
		wantCode(t, err, countersign.CodeNameConstraint)
	}
	refused()
	old, previous := h.Roots()[0], h.Intermediates()[0]
	if _, err := h.Rotate(ctx, admin(), Rotation{Role: ProfileRoot}); err != nil {
		t.Fatal(err)
	}
	h.clock.add(time.Hour)
	refused() // the old root may be somebody's only one
	h.join("gateway", newKey(t, ""))
	for _, serial := range []string{serialText(previous.SerialNumber), serialText(old.SerialNumber)} {
		if err := h.Retire(ctx, admin(), serial); err != nil {
			t.Fatal(err)
		}
	}
	h.join("orders", newKey(t, ""))
	suffixes = []string{"shop.example", "localhost", "ca.shop.internal"}
	h.reopen()
	_, err := h.Issue(ctx, h.joiner("gateway"), IssueRequest{CSR: request(t, newKey(t, ""))})
	wantCode(t, err, countersign.CodeNameConstraint)
}

// TestVerifiersHoldToConstraints makes what no authority of ours makes, with its keys: a leaf with a name outside, of the
// constrained intermediate and of one by the root's key that has no constraints. Three verifiers judge each.
func TestVerifiersHoldToConstraints(t *testing.T) {
	h := newHouse(t, permit(shopOnly...))
	root, intermediate := h.Roots()[0], h.Intermediates()[0]
	forge := func(template *x509.Certificate, parent *x509.Certificate, keyID string) (*x509.Certificate, string) {
		t.Helper()
		signer, err := h.cfg.Keys.SignerByID(keyID)
		if err != nil {
			t.Fatal(err)
		}
		key := newKey(t, "")
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), parent.NotBefore, h.clock.now().Add(time.Hour)
		public := key.Public()
		if template.IsCA {
			public = signer.Public() // one key for both, so that what it signs is signed here
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, keyID
	}
	of := func(role Profile) string { return h.issuers.Load().published(role)[0].KeyID }
	leaf := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: "orders"}, DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	}
	inside := h.join("orders", newKey(t, "")).Chain[0]
	server, err := h.IssueServer(t.Context(), request(t, newKey(t, ""))) // an address beside names
	if err != nil {
		t.Fatal(err)
	}
	outside, _ := forge(leaf("orders.shop.example"), intermediate, of(ProfileIntermediate))
	beside, _ := forge(leaf("evilshop.internal"), intermediate, of(ProfileIntermediate))
	free, freeKey := forge(&x509.Certificate{
		Subject: pkix.Name{CommonName: "free"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, root, of(ProfileRoot))
	under, _ := forge(leaf("orders.shop.example"), free, freeKey)
	chains := []struct {
		name           string
		leaf, above    *x509.Certificate
		takes, java    bool
		opensslMessage string
	}{
		{"inside", inside, intermediate, true, true, ""},
		{"the daemon's own", server.Chain[0], intermediate, true, true, ""},
		{"outside", outside, intermediate, false, false, "permitted subtree violation"},
		{"a name that only ends so", beside, intermediate, false, false, "permitted subtree violation"},
		// Java takes no constraints from a trust anchor (RFC 5280 6.1 leaves that open).
		{"an intermediate without constraints", under, free, false, true, "permitted subtree violation"},
	}
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		t.Helper()
		var text strings.Builder
		for _, c := range certs {
			text.WriteString(certPEM(c))
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	roots := write("roots.pem", root)
	at := h.clock.now()
	java := []string{"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "testdata/Verify.java", strconv.FormatInt(at.Unix(), 10), roots}
	for i, c := range chains {
		file := write(string(rune('a'+i))+".pem", c.leaf, c.above)
		java = append(java, file)
		pool, between := x509.NewCertPool(), x509.NewCertPool()
		pool.AddCert(root)
		between.AddCert(c.above)
		_, err := c.leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: at})
		if (err == nil) != c.takes {
			t.Errorf("Go, %s: %v", c.name, err)
		}
		said, err := exec.CommandContext(t.Context(), "openssl", "verify", "-attime", strconv.FormatInt(at.Unix(), 10),
			"-CAfile", roots, "-untrusted", file, file).CombinedOutput()
		if (err == nil) != c.takes || !strings.Contains(string(said), c.opensslMessage) {
			t.Errorf("OpenSSL, %s: %v %s", c.name, err, said)
		}
	}
	said, err := exec.CommandContext(t.Context(), "java", java...).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(said)), "\n")
	if err != nil || len(lines) != len(chains) {
		t.Fatalf("java: %v\n%s", err, said)
	}
	for i, c := range chains {
		if want := map[bool]string{true: "ok", false: "INVALID_NAME"}[c.java]; !strings.HasPrefix(lines[i], want) {
			t.Errorf("Java, %s: %s", c.name, lines[i])
		}
	}
}

func TestCheckConstraints(t *testing.T) {
	_, ip, _ := net.ParseCIDR("10.0.0.0/8")
	issuer := &x509.Certificate{PermittedDNSDomains: []string{"shop.internal"}}
	right := Subject{Permit: shopOnly, Issuer: issuer}
	signs := func() *x509.Certificate {
		return &x509.Certificate{PermittedDNSDomains: shopOnly, PermittedDNSDomainsCritical: true}
	}
	if err := checkConstraints(ProfileRoot, right, signs()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*x509.Certificate){
		"none":         func(c *x509.Certificate) { c.PermittedDNSDomains = nil },
		"wider":        func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"internal", "localhost"} },
		"fewer":        func(c *x509.Certificate) { c.PermittedDNSDomains = shopOnly[:1] },
		"not critical": func(c *x509.Certificate) { c.PermittedDNSDomainsCritical = false },
		"excluded":     func(c *x509.Certificate) { c.ExcludedDNSDomains = []string{"x.shop.internal"} },
		"addresses":    func(c *x509.Certificate) { c.PermittedIPRanges = []*net.IPNet{ip} },
		"no addresses": func(c *x509.Certificate) { c.ExcludedIPRanges = []*net.IPNet{ip} },
		"mail":         func(c *x509.Certificate) { c.PermittedEmailAddresses = []string{"a@b"} },
		"no mail":      func(c *x509.Certificate) { c.ExcludedEmailAddresses = []string{"a@b"} },
		"URI":          func(c *x509.Certificate) { c.PermittedURIDomains = []string{"shop.internal"} },
		"no URI":       func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"shop.internal"} },
	} {
		changed := signs()
		change(changed)
		if err := checkConstraints(ProfileIntermediate, right, changed); err == nil {
			t.Errorf("%s: not noticed", name)
		}
	}
	if err := checkConstraints(ProfileService, right, signs()); err == nil {
		t.Error("a leaf with constraints passes")
	}
	for name, c := range map[string]struct {
		fits bool
		s    Subject
	}{
		"orders.shop.internal": {true, right}, "shop.internal": {true, right}, "a.b.shop.internal": {true, right},
		"orders.shop.example": {false, right}, "xshop.internal": {false, right}, "internal": {false, right},
		"localhost":        {false, right}, // the issuer has fewer
		"local.localhost":  {true, Subject{Permit: shopOnly}},
		"ca.shop.example":  {true, Subject{}},
		"ca2.shop.example": {false, Subject{Issuer: issuer}},
	} {
		if err := checkConstraints(ProfileService, c.s, &x509.Certificate{DNSNames: []string{name}}); (err == nil) != c.fits {
			t.Errorf("%s: %v", name, err)
		}
		var above []*x509.Certificate
		if c.s.Issuer != nil {
			above = append(above, c.s.Issuer)
		}
		if err := checkPermitted([]string{name}, c.s.Permit, above); (err == nil) != c.fits {
			t.Errorf("decided on %s: %v", name, err)
		}
	}
	excluding := &x509.Certificate{ExcludedDNSDomains: []string{"x.shop.internal"}}
	wantCode(t, checkPermitted([]string{"a.x.shop.internal"}, nil, []*x509.Certificate{excluding}), countersign.CodeNameConstraint)
}

func TestCheckPermit(t *testing.T) {
	for _, right := range [][]string{nil, {"shop.internal"}, shopOnly} {
		if err := CheckPermit(right); err != nil {
			t.Errorf("%q: %v", right, err)
		}
	}
	many := make([]string, maxPermit+1)
	for i := range many {
		many[i] = "n" + big.NewInt(int64(i)).String() + ".internal"
	}
	for _, wrong := range [][]string{{""}, {"."}, {".shop.internal"}, {"*.shop.internal"}, {"Shop.internal"}, {"shop.internal."}, {"a b"}, {"10.0.0.0/8"}, {"a.b", "a.b"}, many} {
		if err := CheckPermit(wrong); err == nil {
			t.Errorf("%q passes", wrong)
		}
	}
}
