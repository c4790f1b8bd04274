package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// apacheConfig is a resource server: Apache with mod_oauth2. That module has no setting for whom to trust when it fetches
// keys (in the version of Debian 12), so Apache itself fetches them, over TLS with our root, and hands them to it on loopback.
const apacheConfig = `
ServerRoot "DIR"
ServerName localhost
DefaultRuntimeDir "DIR"
PidFile "DIR/pid"
ErrorLog "DIR/error.log"
LogLevel warn oauth2:warn
DocumentRoot /usr/lib/apache2
Timeout 20
StartServers 1
ServerLimit 1
ThreadsPerChild 16
MaxRequestWorkers 16
LoadModule mpm_event_module MODULES/mod_mpm_event.so
LoadModule authn_core_module MODULES/mod_authn_core.so
LoadModule authz_core_module MODULES/mod_authz_core.so
LoadModule ssl_module MODULES/mod_ssl.so
LoadModule status_module MODULES/mod_status.so
LoadModule proxy_module MODULES/mod_proxy.so
LoadModule proxy_http_module MODULES/mod_proxy_http.so
LoadModule oauth2_module MODULES/mod_oauth2.so
<IfModule unixd_module>
USER
</IfModule>
Listen KEYS
Listen PUBLIC
<VirtualHost KEYS>
  SSLProxyEngine on
  SSLProxyVerify require
  SSLProxyVerifyDepth 3
  SSLProxyCACertificateFile "ID/ca.crt"
  ProxyPass "/keys" "ISSUER/.well-known/jwks.json"
</VirtualHost>
<VirtualHost PUBLIC>
  SSLEngine on
  SSLCertificateFile "ID/tls.crt"
  SSLCertificateKeyFile "ID/tls.key"
  SSLCACertificateFile "ID/ca.crt"
  SSLVerifyClient optional
  SSLVerifyDepth 3
  <Location "/">
    SSLOptions +StdEnvVars +ExportCertData
    SetHandler server-status
    AuthType oauth2
    OAuth2TokenVerify jwks_uri http://KEYS/keys jwks_uri.expiry=1&expiry=1&verify.exp=required&verify.iat=requiredOPTIONS
    Require oauth2_claim aud:ledger
  </Location>
</VirtualHost>
`

// apacheOptions are more of OAuth2TokenVerify's: only tokens that are bound to the certificate of the connection (RFC 8705 3).
const apacheOptions = "&type=mtls&mtls.policy=required"

// maxLog is how much of its log is shown, from the end.
const maxLog = 4 << 10

// startApache starts Apache with a service's identity and gives its address. It is stopped with the test.
func (r *rotating) startApache(identityDir string) string {
	r.t.Helper()
	dir := r.t.TempDir()
	var addresses [2]string
	for i := range addresses {
		free, err := freeLoopback()
		if err != nil {
			r.t.Fatal(err)
		}
		addresses[i] = free
	}
	user := ""
	if os.Getuid() == 0 { // else it stays who it is
		user = "User www-data\nGroup www-data"
	}
	config := filepath.Join(dir, "httpd.conf")
	text := strings.NewReplacer("MODULES", "/usr/lib/apache2/modules", "OPTIONS", apacheOptions, "ISSUER", r.issuer, "PUBLIC", addresses[0], "KEYS", addresses[1],
		"USER", user, "DIR", dir, "ID/", identityDir+"/").Replace(apacheConfig)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/apache2", "-f", config, "-DFOREGROUND")
	var stderr lockedText
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatalf("%v; scripts/test-deps.sh installs it", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	log := func() string {
		body, _ := os.ReadFile(filepath.Join(dir, "error.log"))
		return stderr.String() + string(body[max(0, len(body)-maxLog):])
	}
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("Apache says:\n%s", log())
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(childTime, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		<-ended
	})
	for deadline := time.Now().Add(childTime); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addresses[0])
		if err == nil {
			conn.Close()
			return addresses[0]
		}
		select {
		case err := <-ended:
			ended <- err
			r.t.Fatalf("Apache ended with %v\n%s", err, log())
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("Apache does not listen: %v\n%s", err, log())
		}
	}
}

// apache asks Apache for a page, with a token and the client's certificate.
func (r *rotating) apache(address string, as *http.Client) verifier {
	transport := as.Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.ServerName = "ledger.shop.internal"
	r.t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	return func(token string) error {
		rq, err := http.NewRequestWithContext(context.WithoutCancel(r.t.Context()), http.MethodGet, "https://"+address+"/", nil)
		if err != nil {
			return err
		}
		rq.Header.Set("Authorization", "Bearer "+token)
		response, err := client.Do(rq)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s %s", response.Status, response.Header.Get("WWW-Authenticate"))
		}
		return nil
	}
}
