package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"net/url"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/sts/jwt"
)

const crashRounds = 8

// acknowledged is what the daemon has answered: none of it may ever be gone.
type acknowledged struct {
	mu      sync.Mutex
	serials []string
	jtis    []string
}

func (a *acknowledged) serial(s string) { a.mu.Lock(); a.serials = append(a.serials, s); a.mu.Unlock() }
func (a *acknowledged) jti(s string)    { a.mu.Lock(); a.jtis = append(a.jtis, s); a.mu.Unlock() }

// kill -9 in a loop while certificates and tokens are issued and keys rotate: nothing acknowledged is gone, the audit log
// is whole each time, and the daemon starts by itself.
func TestKillLoop(t *testing.T) {
	i := newInstance(t, raceBinary(t), "COUNTERSIGN_TOKEN_LEAD=2s")
	i.apply(t, `trust_domain: shop.internal
services: [{name: a}, {name: b}]
calls: [{from: a, to: b, scopes: [x], machine: [x]}]
`)
	id, err := identity.Load(i.join(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	var acked acknowledged
	for range crashRounds {
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { issueLoop(ctx, t, i, &acked) })
		group.Go(func() { tokenLoop(ctx, t, id, &acked) })
		group.Go(func() { tokenLoop(ctx, t, id, &acked) })
		group.Go(func() { rotateLoop(ctx, t, i) })
		time.Sleep(200*time.Millisecond + rand.N(300*time.Millisecond))
		i.stop(t, syscall.SIGKILL)
		stop()
		group.Wait()
		i.start(t)
		acked.check(t, i)
	}
	if len(acked.serials) == 0 || len(acked.jtis) == 0 {
		t.Errorf("nothing was acknowledged: %d certificates, %d tokens", len(acked.serials), len(acked.jtis))
	}
	t.Logf("%d certificates and %d tokens over %d kills", len(acked.serials), len(acked.jtis), crashRounds)
}

func socketClient(t *testing.T, i *instance) *client.Client {
	t.Helper()
	socket, err := daemon.Dir(i.dir).Socket()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(client.Config{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// issueLoop enrols until ctx ends; errors are the daemon being killed.
func issueLoop(ctx context.Context, t *testing.T, i *instance, acked *acknowledged) {
	admin := socketClient(t, i)
	for ctx.Err() == nil {
		token, err := admin.CreateJoinToken(ctx, wire.JoinTokenRequest{Service: "b"})
		if err != nil {
			return
		}
		j, err := parseJoin(token.Join)
		if err != nil {
			t.Error(err)
			return
		}
		c, err := client.New(client.Config{URL: j.URL, TLS: pinnedConfig(j)})
		if err != nil {
			t.Error(err)
			return
		}
		_, csr, err := newRequest("P-256")
		if err != nil {
			t.Error(err)
			return
		}
		cert, err := c.Join(ctx, j.Token, wire.CertificateRequest{CSR: string(csr)})
		c.Close()
		if err != nil {
			return
		}
		acked.serial(cert.Serial)
	}
}

func tokenLoop(ctx context.Context, t *testing.T, id *identity.Identity, acked *acknowledged) {
	c, err := client.New(client.Config{URL: id.Server, Identity: id})
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	for ctx.Err() == nil {
		token, err := c.Token(ctx, url.Values{"grant_type": {"client_credentials"}, "audience": {"b"}})
		if err != nil {
			return
		}
		parsed, err := jwt.Parse(token.AccessToken)
		if err != nil {
			t.Error(err)
			return
		}
		jti, _, err := parsed.Claims.String("jti")
		if err != nil {
			t.Error(err)
			return
		}
		acked.jti(jti)
	}
}

func rotateLoop(ctx context.Context, t *testing.T, i *instance) {
	admin := socketClient(t, i)
	for ctx.Err() == nil {
		if _, err := admin.Rotate(ctx, "token", wire.RotateRequest{Now: true}); err != nil && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// check asks the restarted daemon for everything that it ever acknowledged.
func (a *acknowledged) check(t *testing.T, i *instance) {
	t.Helper()
	admin := socketClient(t, i)
	for _, serial := range a.serials {
		record, err := admin.Certificate(t.Context(), serial)
		if err != nil || record.State != "valid" {
			t.Fatalf("the acknowledged certificate %s: %q, %v", serial, record.State, err)
		}
		sum := sha256.Sum256(mustDER(t, record.PEM))
		if hex.EncodeToString(sum[:]) != record.Fingerprint {
			t.Fatalf("the record of %s does not fit its certificate", serial)
		}
	}
	issued := map[string]bool{}
	for after := uint64(0); ; {
		page, err := admin.Audit(t.Context(), client.AuditQuery{After: after, Type: "token.issued", Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			var detail struct{ JTI string }
			if err := json.Unmarshal(r.Detail, &detail); err != nil {
				t.Fatal(err)
			}
			issued[detail.JTI] = true
			after = r.Seq
		}
		if len(page.Records) == 0 {
			break
		}
	}
	for _, jti := range a.jtis {
		if !issued[jti] {
			t.Fatalf("the acknowledged token %s is not in the audit log", jti)
		}
	}
	report, err := admin.VerifyAudit(t.Context())
	if err != nil || !report.OK {
		t.Fatalf("the audit log: %v, %v", report.Faults, err)
	}
}

func mustDER(t *testing.T, text string) []byte {
	t.Helper()
	certs, err := parseCertificates([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return certs[0].Raw
}
