package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// authority is a root of a test, or an intermediate.
type authority struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func newAuthority(t testing.TB, parent *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	name := "test root"
	if parent == nil {
		parent = a
	} else {
		name = "test intermediate"
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	issuer := parent.cert
	if parent == a {
		issuer = template
	}
	a.cert = create(t, template, issuer, key.Public(), parent.key)
	return a
}

func create(t testing.TB, template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (a *authority) leaf(t testing.TB, key crypto.Signer, ids ...string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "orders"}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(30 * time.Minute), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, DNSNames: []string{"orders.shop.internal"},
	}
	for _, id := range ids {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	return create(t, template, a.cert, key.Public(), a.key)
}

const ordersID = "spiffe://shop.internal/orders"

func newBundle(t testing.TB, alg string) Bundle {
	t.Helper()
	key, err := NewKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	root := newAuthority(t, nil)
	inter := newAuthority(t, root)
	// A second root with the same subject, as during a rollover.
	return Bundle{
		Key: key, Chain: []*x509.Certificate{inter.leaf(t, key, ordersID), inter.cert},
		Roots: []*x509.Certificate{root.cert, newAuthority(t, nil).cert}, Server: "https://localhost:8443",
		RenewAfter: time.Unix(2000000000, 0).UTC(),
	}
}

func TestWriteAndLoad(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := filepath.Join(t.TempDir(), "d")
	var last Bundle
	for range 3 {
		last = newBundle(t, "")
		if err := Write(dir, last); err != nil {
			t.Fatal(err)
		}
		got, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID.String() != ordersID || got.Serial != serialText(last.Chain[0]) || got.Server != last.Server ||
			!got.RenewAfter.Equal(last.RenewAfter) || len(got.Roots) != 2 || len(got.TLS().Certificate) != 2 {
			t.Fatalf("loaded %+v", got)
		}
	}
	modes := map[string]os.FileMode{
		CertFile: publicMode, KeyFile: privateMode, RootsFile: publicMode, CombinedFile: privateMode,
		KeyStoreFile: privateMode, TrustStoreFile: publicMode, InfoFile: publicMode,
	}
	for name, want := range modes {
		target, err := os.Readlink(filepath.Join(dir, name))
		if err != nil || target != "..data/"+name {
			t.Errorf("%s leads to %q, %v", name, target, err)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v", info.Mode())
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != len(modes)+3 { // ..data, the current version and the one before
		t.Errorf("entries %v", entries)
	}
	combined, _ := os.ReadFile(filepath.Join(dir, CombinedFile))
	if !strings.HasPrefix(string(combined), "-----BEGIN PRIVATE KEY-----") || strings.Count(string(combined), "BEGIN CERTIFICATE") != 2 {
		t.Error("combined.pem is not key, then chain")
	}
}

// TestStores has Java and openssl read the PKCS#12 files.
func TestStores(t *testing.T) {
	for _, tt := range []struct{ alg, password string }{{"P-256", ""}, {"Ed25519", "s3cret99"}, {"RSA-2048", ""}} {
		dir, b := t.TempDir(), newBundle(t, tt.alg)
		b.Password = tt.password
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
		password := tt.password
		if password == "" {
			password = "changeit"
		}
		run := func(name string, args ...string) string {
			out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
			if err != nil {
				t.Errorf("%s: %s %v: %v\n%s", tt.alg, name, args, err, out)
			}
			return string(out)
		}
		out := run("keytool", "-list", "-v", "-keystore", filepath.Join(dir, KeyStoreFile), "-storepass", password)
		if !strings.Contains(out, "PrivateKeyEntry") || !strings.Contains(out, "chain length: 2") {
			t.Errorf("%s: keystore\n%s", tt.alg, out)
		}
		out = run("keytool", "-list", "-keystore", filepath.Join(dir, TrustStoreFile), "-storepass", password)
		if strings.Count(out, "trustedCertEntry") != 2 || strings.Count(out, "cs-") != 2 {
			t.Errorf("%s: truststore\n%s", tt.alg, out)
		}
		out = run("openssl", "pkcs12", "-in", filepath.Join(dir, KeyStoreFile), "-passin", "pass:"+password, "-nodes")
		if !strings.Contains(out, "BEGIN PRIVATE KEY") || strings.Count(out, "BEGIN CERTIFICATE") != 2 {
			t.Errorf("%s: openssl pkcs12\n%.200s", tt.alg, out)
		}
		run("openssl", "verify", "-CAfile", filepath.Join(dir, RootsFile), "-untrusted", filepath.Join(dir, CertFile), filepath.Join(dir, CertFile))
	}
}

func TestWriteRefuses(t *testing.T) {
	good := newBundle(t, "")
	otherKey, _ := NewKey("")
	foreign := newAuthority(t, nil)
	for name, change := range map[string]func(*Bundle){
		"no key":       func(b *Bundle) { b.Key = nil },
		"another key":  func(b *Bundle) { b.Key = otherKey },
		"no chain":     func(b *Bundle) { b.Chain = nil },
		"no roots":     func(b *Bundle) { b.Roots = nil },
		"foreign root": func(b *Bundle) { b.Roots = []*x509.Certificate{foreign.cert} },
		"no link":      func(b *Bundle) { b.Chain = b.Chain[:1] },
		"no URI": func(b *Bundle) {
			b.Chain = []*x509.Certificate{foreign.leaf(t, b.Key)}
			b.Roots = []*x509.Certificate{foreign.cert}
		},
		"two URIs": func(b *Bundle) {
			b.Chain = []*x509.Certificate{foreign.leaf(t, b.Key, ordersID, ordersID)}
			b.Roots = []*x509.Certificate{foreign.cert}
		},
		"no ID of ours": func(b *Bundle) {
			b.Chain = []*x509.Certificate{foreign.leaf(t, b.Key, "https://x/")}
			b.Roots = []*x509.Certificate{foreign.cert}
		},
	} {
		b, dir := good, filepath.Join(t.TempDir(), "d")
		change(&b)
		if err := Write(dir, b); err == nil {
			t.Errorf("%s: written", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the directory was made", name)
		}
	}
	for _, name := range []string{"notes.txt", "tls.crt"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Write(dir, good); err == nil {
			t.Errorf("a directory with %s was taken over", name)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, name)); string(b) != "mine" {
			t.Errorf("%s was overwritten", name)
		}
	}
}

const childDir = "COUNTERSIGN_TEST_IDENTITY_DIR"

// TestMain is also the child of TestKilledWriter: it writes new identities until it is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		t := &testing.B{}
		for {
			if err := Write(dir, newBundle(t, "")); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(m.Run())
}

// TestKilledWriter kills a writer at random points: what is there is always one whole version.
func TestKilledWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := Write(dir, newBundle(t, "")); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		child := exec.Command(exe)
		child.Env = append(os.Environ(), childDir+"="+dir)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for range 3 + i { // loads while it writes
			if _, err := Load(dir); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Duration(1+i) * time.Millisecond)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		child.Wait()
		if _, err := Load(dir); err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
	}
	if err := Write(dir, newBundle(t, "")); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 10 {
		t.Errorf("left over: %v", entries)
	}
}

func FuzzLoad(f *testing.F) {
	b := newBundle(f, "")
	id, err := check(b.Key, b.Chain, b.Roots)
	if err != nil {
		f.Fatal(err)
	}
	files, err := render(b, id)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(files[0].data, files[1].data, files[2].data, files[6].data)
	f.Add([]byte("x"), []byte{}, files[2].data, []byte("{}"))
	f.Fuzz(func(t *testing.T, cert, key, roots, info []byte) {
		i, err := parse(sources{cert: cert, key: key, roots: roots, info: info})
		if err == nil && (i.ID.IsZero() || i.Key == nil || !samePublic(i.Key.Public(), i.Chain[0].PublicKey)) {
			t.Errorf("accepted %+v", i)
		}
	})
}
