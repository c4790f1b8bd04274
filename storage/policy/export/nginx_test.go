package export

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

// authority is a root and an intermediate that certify any subject.
type authority struct {
	t     *testing.T
	dir   string
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate
	count int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "root"}}
	a.cert = template
	a.cert = a.sign(template, a.key)
	a.write("root.pem", a.cert.Raw)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.must(err)
	return key
}

func (a *authority) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.count++
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(a.count), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	a.must(err)
	cert, err := x509.ParseCertificate(der)
	a.must(err)
	return cert
}

func (a *authority) write(name string, der []byte) {
	a.must(os.WriteFile(filepath.Join(a.dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
}

// leaf is a certificate as ours are: the name is the common name.
func (a *authority) leaf(subject pkix.Name) tls.Certificate {
	key := a.newKey()
	cert := a.sign(&x509.Certificate{Subject: subject, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// TestNginxEnforcesIt runs Debian's nginx with the exported maps and calls it as each service and as strangers.
func TestNginxEnforcesIt(t *testing.T) {
	a := newAuthority(t)
	served := a.leaf(pkix.Name{CommonName: "inventory"})
	a.write("tls.crt", served.Certificate[0])
	key, err := x509.MarshalPKCS8PrivateKey(served.PrivateKey)
	a.must(err)
	a.must(os.WriteFile(filepath.Join(a.dir, "tls.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	a.must(os.WriteFile(filepath.Join(a.dir, "maps.conf"), exported(t, "nginx"), 0o600))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	a.must(err)
	address := listener.Addr().String()
	a.must(listener.Close())
	config := strings.NewReplacer("DIR", a.dir, "ADDRESS", address).Replace(`
pid DIR/pid; error_log DIR/error.log; daemon off; master_process off;
events {}
http {
  access_log off; client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
  include DIR/maps.conf;
  server {
    listen ADDRESS ssl; ssl_certificate DIR/tls.crt; ssl_certificate_key DIR/tls.key;
    ssl_client_certificate DIR/root.pem; ssl_verify_client on; ssl_verify_depth 2;
    if ($countersign_to_inventory = 0) { return 403; }
    location / { return 204; }
  }
}`)
	file := filepath.Join(a.dir, "nginx.conf")
	a.must(os.WriteFile(file, []byte(config), 0o600))
	nginx := "nginx"
	if _, err := exec.LookPath(nginx); err != nil {
		nginx = "/usr/sbin/nginx" // Debian's place, which is no user's PATH
	}
	if out, err := exec.Command(nginx, "-t", "-c", file).CombinedOutput(); err != nil {
		t.Fatalf("nginx -t: %v\n%s", err, out)
	}
	process := exec.Command(nginx, "-c", file)
	a.must(process.Start())
	t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })

	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	status := func(certs ...tls.Certificate) int {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: certs}}}
		for try := 0; ; try++ {
			response, err := client.Get("https://" + address)
			if err == nil {
				response.Body.Close()
				return response.StatusCode
			}
			if try == 100 {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	for name, want := range map[string]int{"orders": 204, "stock-sync": 204, "default": 204, "gateway": 403, "inventory": 403, "retired": 403, "nobody": 403, "": 403} {
		if got := status(a.leaf(pkix.Name{CommonName: name})); got != want {
			t.Errorf("%q gets %d, not %d", name, got, want)
		}
	}
	if got := status(a.leaf(pkix.Name{CommonName: "orders", Organization: []string{"x"}})); got != 403 {
		t.Errorf("another subject with the same CN gets %d", got)
	}
	if got := status(newAuthority(t).leaf(pkix.Name{CommonName: "orders"})); got != 400 {
		t.Errorf("a stranger's certificate gets %d", got)
	}
	if got := status(); got != 400 {
		t.Errorf("no certificate gets %d", got)
	}
}

// The longest names that there are fit nginx's tables, and many of them.
func TestNginxTakesLargePolicies(t *testing.T) {
	domain := strings.Repeat("a", 60) + "." + strings.Repeat("b", 60) + "." + strings.Repeat("c", 60)
	var services []countersign.Service
	var calls []countersign.Call
	for i := range 500 {
		name := fmt.Sprintf("%s-%03d", strings.Repeat("x", 59), i)
		id, err := countersign.NewServiceID(domain, name)
		if err != nil {
			t.Fatal(err)
		}
		services = append(services, countersign.Service{ID: id, Name: name})
		calls = append(calls, countersign.Call{From: name, To: services[0].Name})
	}
	out, err := Export(countersign.NewPolicy(1, domain, nil, services, calls), "nginx", Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := "pid " + dir + "/pid; error_log " + dir + "/log; events {} http { access_log off; include " + dir + "/maps.conf; }"
	for name, body := range map[string]string{"maps.conf": string(out), "nginx.conf": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	nginx := "nginx"
	if _, err := exec.LookPath(nginx); err != nil {
		nginx = "/usr/sbin/nginx"
	}
	if out, err := exec.Command(nginx, "-t", "-c", filepath.Join(dir, "nginx.conf")).CombinedOutput(); err != nil {
		t.Fatalf("nginx -t: %v\n%s", err, out)
	}
}
