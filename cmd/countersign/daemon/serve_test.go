package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// turned is a wall clock that a test may turn.
type turned struct{ offset atomic.Int64 }

func (c *turned) now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// testDir is an initialised directory and its configuration, with free ports.
func testDir(t *testing.T, change func(*Config)) (Dir, Config) {
	t.Helper()
	dir := Dir(filepath.Join(t.TempDir(), "ca"))
	var cfg Config
	_, err := Init(t.Context(), InitOptions{
		Dir: dir, Domain: "shop.internal", Listen: "127.0.0.1:0", OpsListen: "127.0.0.1:0", Issuer: "https://localhost:8443",
		Config: func(c *Config) {
			c.Audit.Segment, c.Audit.Reserve = mib, 0
			if change != nil {
				change(c)
			}
			cfg = *c
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir, cfg
}

// start starts the daemon. The test, or its end, runs it down.
func start(t *testing.T, dir Dir, cfg Config, now func() time.Time) *Daemon {
	t.Helper()
	d, err := Start(t.Context(), Options{Dir: dir, Config: cfg, Now: now, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// run serves until the returned function is called, which waits for the end.
func run(t *testing.T, d *Daemon) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var stopped bool
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the daemon does not end")
		}
	}
	t.Cleanup(stop)
	return stop
}

// served is the leaf that the public listener shows who asks for name.
func served(t *testing.T, d *Daemon, name string) *x509.Certificate {
	t.Helper()
	// A client that trusts nobody tells what it was shown.
	_, err := tls.Dial("tcp", d.Addr("public").String(), &tls.Config{ServerName: name, RootCAs: x509.NewCertPool()})
	var refused *tls.CertificateVerificationError
	if !errors.As(err, &refused) {
		t.Fatalf("the handshake: %v", err)
	}
	return refused.UnverifiedCertificates[0]
}

// publicFiles writes a self-signed certificate for name.
func publicFiles(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("this never came: " + what)
		}
	}
}

// The public certificate is served for its own names, replaced by a reload, and kept where its files can't be read.
func TestPublicCertificate(t *testing.T) {
	files := t.TempDir()
	certFile, keyFile := filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key")
	publicFiles(t, certFile, keyFile, "ca.example")
	dir, cfg := testDir(t, nil)
	cfg.TLS.Cert, cfg.TLS.Key = certFile, keyFile
	d := start(t, dir, cfg, nil)
	run(t, d)
	first := served(t, d, "ca.example")
	if len(first.DNSNames) != 1 || first.DNSNames[0] != "ca.example" {
		t.Errorf("ca.example is served %v", first.DNSNames)
	}
	for _, name := range []string{"localhost", "other.example", ""} {
		if leaf := served(t, d, name); len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://shop.internal/countersign" {
			t.Errorf("%q is served %v %v", name, leaf.DNSNames, leaf.URIs)
		}
	}
	publicFiles(t, certFile, keyFile, "ca.example")
	d.Reload()
	eventually(t, "the new public certificate", func() bool { return !served(t, d, "ca.example").Equal(first) })
	second := served(t, d, "ca.example")
	if err := os.WriteFile(keyFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Reload()
	eventually(t, "the end of the reload", func() bool { return len(d.reload) == 0 })
	if !served(t, d, "ca.example").Equal(second) {
		t.Error("files that can't be read took the place of what was served")
	}
}

// Files for public names that are missing are a fault of the configuration and never a reason to replace the daemon's
// own certificate: each start, and each look of a running daemon, would issue another.
func TestMissingPublicCertificate(t *testing.T) {
	dir, cfg := testDir(t, nil)
	before, err := os.Readlink(filepath.Join(dir.server(), "..data"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLS.Cert, cfg.TLS.Key = filepath.Join(t.TempDir(), "none.crt"), filepath.Join(t.TempDir(), "none.key")
	_, err = Start(t.Context(), Options{Dir: dir, Config: cfg})
	var fault *ConfigError
	if !errors.As(err, &fault) || !strings.Contains(err.Error(), "tls.cert") {
		t.Errorf("start: %v", err)
	}
	if after, err := os.Readlink(filepath.Join(dir.server(), "..data")); err != nil || after != before {
		t.Errorf("the daemon's own certificate was replaced: %s, before %s (%v)", after, before, err)
	}
}

// The daemon's own certificate is renewed in time without a restart, also while the files for public names are gone.
func TestServerCertificateIsRenewed(t *testing.T) {
	files := t.TempDir()
	certFile, keyFile := filepath.Join(files, "tls.crt"), filepath.Join(files, "tls.key")
	publicFiles(t, certFile, keyFile, "ca.example")
	dir, cfg := testDir(t, nil)
	cfg.TLS.Cert, cfg.TLS.Key, cfg.Certificate.Server = certFile, keyFile, Duration(2*day)
	clock := &turned{}
	d := start(t, dir, cfg, clock.now)
	run(t, d)
	first, public := served(t, d, "localhost"), served(t, d, "ca.example")
	d.renewDue(t.Context())
	if !served(t, d, "localhost").Equal(first) {
		t.Error("it was renewed before its time")
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	clock.offset.Store(int64(4 * day)) // half of the 7 days that init gave it are over
	d.renewDue(t.Context())
	second := served(t, d, "localhost")
	if second.Equal(first) || !second.NotAfter.After(clock.now()) {
		t.Errorf("it was not renewed: valid until %s, it is %s", second.NotAfter, clock.now())
	}
	if !served(t, d, "ca.example").Equal(public) {
		t.Error("the public certificate is served no more")
	}
	d.renewDue(t.Context())
	if !served(t, d, "localhost").Equal(second) {
		t.Error("a second look renewed it again")
	}
}

// A request in flight is answered when the daemon is told to stop, and nothing is accepted any more.
func TestDrain(t *testing.T) {
	dir, cfg := testDir(t, func(c *Config) { c.PKI.Listen = "127.0.0.1:0" })
	d := start(t, dir, cfg, nil)
	entered, release := make(chan struct{}), make(chan struct{})
	for _, l := range d.listeners {
		if l.name == "pki" {
			l.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				close(entered)
				<-release
				_, _ = io.WriteString(w, "answered")
			})
		}
	}
	stop := run(t, d)
	answer := make(chan string, 1)
	address := d.Addr("pki").String()
	go func() {
		response, err := http.Get("http://" + address + "/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answer <- string(body)
	}()
	<-entered
	ended := make(chan struct{})
	go func() { stop(); close(ended) }()
	eventually(t, "the closed listener", func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	select {
	case <-ended:
		t.Error("the daemon ended with a request in flight")
	default:
	}
	response, err := http.Get("http://" + d.Addr("ops").String() + "/readyz")
	if err != nil {
		t.Errorf("nobody is told that the daemon drains: %v", err)
	} else if response.Body.Close(); response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("while it drains, /readyz says %s", response.Status)
	}
	close(release)
	if got := <-answer; got != "answered" {
		t.Errorf("the request in flight got %q", got)
	}
	<-ended
	if err := d.close(); err != nil {
		t.Errorf("close again: %v", err)
	}
}

// The socket is in the directory, or under the directory's hash where all of the path would be too long; never in a
// directory that somebody else may write to.
func TestSocketPath(t *testing.T) {
	short, long := Dir(filepath.Join(t.TempDir(), "d")), Dir("/"+strings.Repeat("a", 120))
	path, err := short.Socket()
	if err != nil || path != filepath.Join(string(short), "admin.sock") {
		t.Errorf("%s (%v)", path, err)
	}
	runtimes, err := os.MkdirTemp("/tmp", "cs-") // t.TempDir may be too deep for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runtimes) })
	t.Setenv("RUNTIME_DIRECTORY", "")
	t.Setenv("XDG_RUNTIME_DIR", runtimes)
	path, err = long.Socket()
	if err != nil || filepath.Dir(path) != filepath.Join(runtimes, "countersign") || len(path) > maxSocketPath {
		t.Errorf("%s (%v)", path, err)
	}
	if other, err := (long + "b").Socket(); err != nil || other == path {
		t.Errorf("two directories share %s (%v)", other, err)
	}
	t.Setenv("RUNTIME_DIRECTORY", "/run/cs")
	if path, err = long.Socket(); err != nil || filepath.Dir(path) != "/run/cs/countersign" {
		t.Errorf("%s (%v)", path, err)
	}
	t.Setenv("RUNTIME_DIRECTORY", "/"+strings.Repeat("r", 90))
	if _, err = long.Socket(); err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("no short path: %v", err)
	}
	t.Setenv("RUNTIME_DIRECTORY", "")

	t.Setenv("XDG_RUNTIME_DIR", "")
	t.Setenv("TMPDIR", runtimes)
	shared := runtimeDir()
	if filepath.Dir(shared) != runtimes {
		t.Fatalf("the runtime directory is %s", shared)
	}
	var unsafe *SharedDirError
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := long.Socket(); !errors.As(err, &unsafe) {
		t.Errorf("a directory that all may write to: %v", err)
	}
	if err := os.Remove(shared); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), shared); err != nil {
		t.Fatal(err)
	}
	if _, err := long.Socket(); !errors.As(err, &unsafe) {
		t.Errorf("a link in a shared directory: %v", err)
	}
}

// A directory may be named by a link; its socket's rights are judged where the link leads.
func TestLinkedDirectory(t *testing.T) {
	dir, cfg := testDir(t, nil)
	link := filepath.Join(filepath.Dir(string(dir)), "link")
	if err := os.Symlink(string(dir), link); err != nil {
		t.Fatal(err)
	}
	run(t, start(t, Dir(link), cfg, nil))
	if err := os.Chmod(string(dir), 0o777); err != nil {
		t.Fatal(err)
	}
	var unsafe *SharedDirError
	if err := prepareSocket(filepath.Join(link, socketName)); !errors.As(err, &unsafe) {
		t.Errorf("a directory that all may write to: %v", err)
	}
	if _, err := Start(t.Context(), Options{Dir: dir, Config: cfg}); !errors.As(err, &unsafe) {
		t.Errorf("start in a directory that all may write to: %v", err)
	}
}

// Init puts no key into a directory that others may write to.
func TestInitInASharedDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Init(t.Context(), InitOptions{Dir: Dir(dir), Domain: "shop.internal"})
	var unsafe *SharedDirError
	if !errors.As(err, &unsafe) {
		t.Errorf("init: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("init left %v (%v)", entries, err)
	}
}

// A daemon that is told to stop before it serves stops without an error.
func TestStopAtOnce(t *testing.T) {
	dir, cfg := testDir(t, nil)
	d := start(t, dir, cfg, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Run(ctx); err != nil {
		t.Error(err)
	}
}
