package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/countersign/countersign/cmd/countersign/conformance"
)

const conformancePolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: [shop.read, shop.write, "orders:read"]}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: [shop-web]}], client_keys: {jwks_file: gateway.jwks}}
  - {name: orders, dns: [orders.shop.internal], token: {bind: mtls}}
  - {name: ledger}
  - {name: inventory}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read", {name: "orders:write", needs: [shop.write]}]}
  - {from: gateway, to: ledger, scopes: ["orders:read"]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}]}
`

// conformance gives the report of a run, whatever it came to.
func (i *instance) conformance(t *testing.T, args ...string) conformance.Report {
	t.Helper()
	var report conformance.Report
	cmd := exec.Command(i.bin, append([]string{"conformance", "-o", "json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if json.Unmarshal(stdout.Bytes(), &report) != nil || (err == nil) != (report.Summary.FailedMust == 0) {
		t.Fatalf("%v: %s%s", err, stdout.Bytes(), stderr.Bytes())
	}
	return report
}

// Our own token endpoint passes every check: nothing fails, a SHOULD neither, and only what it does not offer is not applicable.
func TestConformance(t *testing.T) {
	t.Parallel()
	users, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(users.Close)
	i := newInstance(t, raceBinary(t))
	work := t.TempDir()
	policy := filepath.Join(work, "policy.yaml")
	for path, text := range map[string]string{
		filepath.Join(work, "gateway.jwks"): i.run(t, "token", "client-key", work+"/gateway.pem"),
		policy:                              strings.ReplaceAll(conformancePolicy, "IDP", users.URL),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	i.run(t, "policy", "apply", policy)
	gateway, orders := i.join(t, "gateway"), i.join(t, "orders")
	token := func(name string, claims ...string) string {
		text, err := users.token(claims...)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(work, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	issuer := "https://localhost:" + i.port()
	common := []string{"--token-endpoint", issuer + "/oauth2/token", "--issuer", issuer, "--scope", "orders:read", "--wider-scope", "stock:read",
		"--subject-token", token("good", "scope=shop.read orders:read"), "--foreign-subject-token", token("foreign", "aud=another"),
		"--expired-subject-token", token("expired", "iat=1700000000", "exp=1700000600"), "--bad-audience", "inventory"}
	holds := func(absent []string, args ...string) {
		t.Helper()
		report := i.conformance(t, append(args, common...)...)
		for _, r := range report.Results {
			if r.Outcome == conformance.Fail || (r.Outcome == conformance.NotApplicable) != slices.Contains(absent, r.Name) {
				t.Errorf("%s %s (%s): %s %s\n  %s\n  %s", r.Outcome, r.Name, r.Section, r.Title, r.Why, r.Sent, r.Seen)
			}
		}
		if n := len(conformance.Checks()); len(report.Results) != n || report.Summary.Passed != n-len(absent) {
			t.Errorf("of %d checks: %+v", n, report.Summary)
		}
		t.Logf("%+v", report.Summary)
	}
	// By mutual TLS, for a service that takes bound tokens only.
	holds([]string{"client.assertion-twice", "client.assertion-tampered"}, "--identity", gateway, "--audience", "orders",
		"--resource", "https://orders.shop.internal/", "--next-identity", orders, "--next-audience", "inventory")
	// By private_key_jwt, without any certificate.
	holds([]string{"client.two-assertion", "client.self-signed", "client.header", "resource.taken", "resource.several", "token.cnf",
		"next.granted", "next.sub", "next.act", "next.exp", "metadata.auth-methods", "metadata.bound"},
		"--client-key", work+"/gateway.pem", "--client-id", "spiffe://shop.internal/gateway", "--root", gateway+"/ca.crt", "--audience", "ledger")

	// The same client by its PEM files, as one of another server would be.
	i.run(t, "conformance", "--cert", gateway+"/tls.crt", "--cert-key", gateway+"/tls.key", "--root", gateway+"/ca.crt", "--audience", "orders",
		"--client-id", "spiffe://shop.internal/gateway", "--token-endpoint", issuer+"/oauth2/token", "--subject-token", work+"/good", "--only", "transport.good,client")
}
