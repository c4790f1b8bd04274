package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// Identity directories in foreign hands: openssl verifies the chains and shakes hands with them, on both sides.
func TestOpenSSL(t *testing.T) {
	i := newInstance(t, raceBinary(t))
	i.apply(t, strings.ReplaceAll(chainPolicy, "IDP", "https://idp.example"))
	gateway, orders := i.join(t, "gateway"), i.join(t, "orders")
	for _, dir := range []string{gateway, orders} {
		for _, purpose := range []string{"sslserver", "sslclient"} {
			out := tool(t, dir, "openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.crt", "-untrusted", "tls.crt", "tls.crt")
			if !strings.Contains(out, "tls.crt: OK") {
				t.Errorf("openssl verify says %s", out)
			}
		}
	}
	address, err := freeLoopback()
	if err != nil {
		t.Fatal(err)
	}
	server := exec.Command("openssl", "s_server", "-accept", address, "-cert", "tls.crt", "-cert_chain", "tls.crt", "-key", "tls.key",
		"-CAfile", "ca.crt", "-Verify", "2", "-verify_return_error", "-www", "-tls1_3")
	server.Dir = orders
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	accepting := make(chan bool, 1)
	go func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), "ACCEPT") {
				accepting <- true
			}
		}
	}()
	select {
	case <-accepting:
	case <-time.After(30 * time.Second):
		t.Fatal("openssl s_server does not listen")
	}
	client := exec.Command("openssl", "s_client", "-connect", address, "-servername", "orders.shop.internal", "-verify_hostname", "orders.shop.internal",
		"-cert", "tls.crt", "-cert_chain", "tls.crt", "-key", "tls.key", "-CAfile", "ca.crt", "-verify_return_error", "-ign_eof")
	client.Dir = gateway
	client.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
	out, err := client.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Verify return code: 0 (ok)") || !strings.Contains(string(out), "HTTP/1.0 200") {
		t.Errorf("the handshake fails: %v\n%s", err, out)
	}
}

// Java 17 loads both stores: the key with its chain, and the root under its own alias.
func TestKeytool(t *testing.T) {
	i := newInstance(t, raceBinary(t))
	i.apply(t, strings.ReplaceAll(chainPolicy, "IDP", "https://idp.example"))
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("another1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := i.join(t, "orders", "--p12-password-file", password)
	out := tool(t, dir, "keytool", "-list", "-v", "-keystore", "keystore.p12", "-storepass", "another1")
	if !strings.Contains(out, "Certificate chain length: 2") || !strings.Contains(out, "PrivateKeyEntry") {
		t.Errorf("keytool sees in keystore.p12: %s", out)
	}
	out = tool(t, dir, "keytool", "-list", "-keystore", "truststore.p12", "-storepass", "another1")
	if strings.Count(out, "trustedCertEntry") != 1 {
		t.Errorf("keytool sees in truststore.p12: %s", out)
	}
}

// An exchange by curl alone, as the README shows it; the token is what Spring's defaults take: RS256, typ JWT.
func TestCurl(t *testing.T) {
	issuer, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(issuer.Close)
	i := newInstance(t, raceBinary(t))
	i.apply(t, strings.ReplaceAll(chainPolicy, "IDP", issuer.URL))
	dir := i.join(t, "gateway")
	user, err := issuer.token()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "..", "user.jwt"), []byte(user), 0o600); err != nil {
		t.Fatal(err)
	}
	curl := []string{"-sS", "--cacert", "ca.crt", "--cert", "tls.crt", "--key", "tls.key"}
	base := "https://localhost:" + i.port()
	out := tool(t, dir, "curl", append(curl, base+"/oauth2/token",
		"-d", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange",
		"-d", "subject_token_type=urn:ietf:params:oauth:token-type:access_token",
		"--data-urlencode", "subject_token@../user.jwt", "-d", "audience=orders", "-d", "scope=orders:read")...)
	var answer struct {
		AccessToken     string `json:"access_token"`
		IssuedTokenType string `json:"issued_token_type"`
		TokenType       string `json:"token_type"`
		ExpiresIn       int    `json:"expires_in"`
		Scope           string
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	token, err := jwt.Parse(answer.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	if token.Alg != "RS256" || token.Typ != "JWT" || answer.TokenType != "Bearer" || answer.Scope != "orders:read" || answer.ExpiresIn <= 0 {
		t.Errorf("got %+v with header %s %s", answer, token.Alg, token.Typ)
	}
	keys, err := jwt.ParseSet([]byte(tool(t, dir, "curl", "-sS", "--cacert", "ca.crt", base+"/.well-known/jwks.json")))
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Verify(keys, []string{"RS256"}); err != nil {
		t.Error(err)
	}
	headers := tool(t, dir, "curl", append(curl, "-D", "-", base+"/oauth2/token", "-d", "grant_type=password")...)
	for _, want := range []string{" 400", "cache-control: no-store", "pragma: no-cache", `"error":"unsupported_grant_type"`} {
		if !strings.Contains(strings.ToLower(headers), want) {
			t.Errorf("the refusal lacks %q: %s", want, headers)
		}
	}
	out = tool(t, dir, "curl", "-sS", "--cacert", "ca.crt", base+"/oauth2/token", "-d", "grant_type=client_credentials")
	if !strings.Contains(out, `"invalid_client"`) {
		t.Errorf("without a certificate: %s", out)
	}
}
