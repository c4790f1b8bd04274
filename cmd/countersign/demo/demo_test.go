package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/countersign/countersign/cmd/countersign/local"
)

// No test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The demo's parts end with their context and leave nothing running: `demo` promises that of itself.
func TestIssuerEnds(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	read, write := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- Issuer(ctx, write, caFile) }()
	line, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url, ok := strings.CutPrefix(strings.TrimSpace(line), strings.TrimSpace(local.Listening))
	if !ok {
		t.Fatalf("it said %q", line)
	}
	roots := x509.NewCertPool()
	if body, err := os.ReadFile(caFile); err != nil || !roots.AppendCertsFromPEM(body) {
		t.Fatalf("its certificate: %v", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get(strings.TrimSpace(url) + "/jwks")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("its keys: %s", response.Status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
