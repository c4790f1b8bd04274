package main

import (
	"bytes"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// TestExpired waits until a certificate, a join token and a relay token have really expired, each of the shortest lifetime
// that there is. From then on they are refused, also on connections that are as old as they, and write nothing.
func TestExpired(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "gateway", "orders")
	brief := d.load(d.join(t, "orders", "--ttl", "1m"))
	made, err := d.admin.CreateJoinToken(t.Context(), wire.JoinTokenRequest{Service: "spare", TTL: countersign.Duration(time.Minute)})
	d.must(err)
	relay := d.minted(d.as("gateway"), d.idp.token("exp", soon(20)), "orders")
	lasting := d.minted(d.as("gateway"), d.idp.good(), "orders")
	kept, crowds := map[string]*http.Client{}, d.crowdOf(d.with(brief.TLS(), "http/1.1"))
	for name, http1 := range map[string]bool{"kept, HTTP/2": false, "kept, HTTP/1.1": true} {
		kept[name] = d.http(d.with(brief.TLS()), http1)
		if got := d.exchange(kept[name], lasting, "inventory"); got.status != http.StatusOK {
			t.Fatalf("before it expired: %d %s", got.status, got.body)
		}
	}
	if answers := opened(crowds, "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\n\r\n"); answers["200"] != crowd {
		t.Fatalf("before it expired: %v", answers)
	}
	last := brief.Chain[0].NotAfter
	if made.ExpiresAt.After(last) {
		last = made.ExpiresAt
	}
	time.Sleep(time.Until(last.Add(2 * time.Second)))

	d.warm()
	before := d.state()
	kept["fresh, HTTP/2"], kept["fresh, HTTP/1.1"] = d.http(d.with(brief.TLS()), false), d.http(d.with(brief.TLS()), true)
	for name, c := range kept {
		d.expiredPeer(name, c, lasting)
	}
	if err := badRequest(countersign.CodeSubjectExpired).check(d.exchange(d.as("orders"), relay, "inventory")); err != nil {
		t.Errorf("an expired relay token: %v", err)
	}
	d.expiredJoin(made)
	d.unchanged(before, map[string]int{"token.denied": 1})

	request := rawRequest(http.MethodPost, "/oauth2/token", wire.Form, exchangeForm(lasting, "inventory").Encode())
	expired := []blow{{"expired, kept", request, 401}}
	d.measured("expired certificate, kept", crowds, "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\n\r\n", expired)
	d.measuredFresh("expired certificate", brief.TLS(), expired[0])
	body := `{"csr":` + d.idp.json(d.csr(d.key(elliptic.P256()), &x509.CertificateRequest{})) + `}`
	d.measuredFresh("expired join token", tls.Certificate{},
		blow{"join", rawRequest(http.MethodPost, "/v1/certificates", wire.JSON, body, "Authorization: Bearer "+made.Token), 401})
	d.unchanged(before, map[string]int{"token.denied": 1})
	// For its own renewal it is still a credential, within the grace.
	for name, c := range kept {
		if got := d.certificate(c, body); got.status != http.StatusCreated {
			t.Errorf("%s, renewal within the grace: %d %s", name, got.status, got.body)
		}
		break
	}
	d.stillGood()
}

// expiredPeer uses a connection whose certificate has expired for a token, the inventory, and a document.
func (d *door) expiredPeer(name string, c *http.Client, subject string) {
	d.Helper()
	if err := (refusal{401, "invalid_client", countersign.CodeExpiredPeer}).check(d.exchange(c, subject, "inventory")); err != nil {
		d.Errorf("%s, token: %v", name, err)
	}
	if err := (refusal{401, "", countersign.CodeExpiredPeer}).check(d.send(c, http.MethodGet, "/v1/status", "")); err != nil {
		d.Errorf("%s, API: %v", name, err)
	}
	if got := d.send(c, http.MethodGet, "/roots.pem", ""); got.status != http.StatusOK {
		d.Errorf("%s, public document: %d", name, got.status)
	}
}

// expiredJoin tries a join token that has expired over HTTP, on one connection twice, and by the command.
func (d *door) expiredJoin(made wire.JoinToken) {
	d.Helper()
	request := `{"csr":` + d.idp.json(d.csr(d.key(elliptic.P256()), &x509.CertificateRequest{})) + `}`
	joiner := d.as("")
	for range 2 {
		got := d.certificate(joiner, request, "Authorization", "Bearer "+made.Token)
		if err := (refusal{401, "", countersign.CodeJoinTokenExpired}).check(got); err != nil {
			d.Errorf("an expired join token: %v", err)
		}
	}
	out := filepath.Join(d.TempDir(), "spare")
	code, said := d.command("join", made.Join, "--out", out)
	if code != exitDenied || !strings.Contains(said, string(countersign.CodeJoinTokenExpired)) || !strings.Contains(said, "next: ") {
		d.Errorf("join with an expired token: exit code %d\n%s", code, said)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		d.Errorf("join with an expired token wrote something: %v", err)
	}
}

// command runs one that may fail, and gives its exit code and all that it printed.
func (d *door) command(args ...string) (code int, said string) {
	d.Helper()
	cmd := exec.Command(d.bin, args...)
	cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+d.dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		d.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// measuredFresh opens a hundred connections with a certificate, fires b over each when it is new and again when it is
// kept, and holds the daemon's memory to what it had before. As many good connections were opened before.
func (d *door) measuredFresh(what string, certificate tls.Certificate, b blow) {
	d.Helper()
	guns, base := d.crowdOf(d.with(certificate, "http/1.1")), d.rss()
	var answers map[string]int
	peak := d.peak(func() {
		for range 2 {
			answers = volley(guns, b.request)
			if answers[fmt.Sprint(b.status)] != crowd {
				d.Errorf("%s, %s: answered %v, want %d", what, b.name, answers, b.status)
			}
		}
	})
	for _, g := range guns {
		g.close()
	}
	d.Logf("%-45s fresh: from %d KiB %+d KiB", what, base, peak-base)
	if peak-base >= maxGrowth {
		d.Errorf("%s over %d fresh connections: RSS grew by %d KiB", what, crowd, peak-base)
	}
}

// TestMemoryOfPeers: client certificates that are foreign, of a wrong kind, or revoked, over a hundred connections each,
// fresh and kept.
func TestMemoryOfPeers(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "gateway", "orders")
	kept := d.crowdOf(d.tls("orders", "http/1.1"))
	public := "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\n\r\n"
	if answers := opened(kept, public); answers["200"] != crowd {
		t.Fatalf("before the revocation: %v", answers)
	}
	d.must(d.admin.Revoke(t.Context(), d.people["orders"].Serial, "keyCompromise"))
	d.warm()
	before := d.state()
	token := blow{"token", rawRequest(http.MethodPost, "/oauth2/token", wire.Form, exchangeForm(d.idp.good(), "orders").Encode()), 401}
	status := blow{"status", "GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n", 401}
	d.measured("revoked, kept", kept, public, []blow{token, status})
	d.measuredFresh("revoked", d.people["orders"].TLS(), token)
	for _, wrong := range d.wrongPeers() {
		b := token
		if wrong.token == "" {
			b = status
		}
		d.measuredFresh(wrong.name, wrong.certificate, b)
	}
	d.unchanged(before, map[string]int{"request.denied": 2 * 2 * crowd})
	d.stillGood()
}
