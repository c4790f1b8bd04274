package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/sts/jwt"
)

// acknowledged is what the daemon has answered: none of it may ever be gone.
type acknowledged struct {
	mu      sync.Mutex
	serials []string
	tokens  []issuedToken
}

// issuedToken is a token as its holder has it, and as its record in the audit log must tell of it.
type issuedToken struct {
	JTI, Sub, Txn string
	Aud, Parent   string // Parent: jti of the subject token, "" at an entry and of a machine token
}

func (a *acknowledged) serial(s string) { a.mu.Lock(); a.serials = append(a.serials, s); a.mu.Unlock() }

func (a *acknowledged) token(t issuedToken) {
	a.mu.Lock()
	a.tokens = append(a.tokens, t)
	a.mu.Unlock()
}

// readIssued reads what a token of ours says.
func readIssued(token string) (issuedToken, error) {
	var t issuedToken
	parsed, err := jwt.Parse(token)
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal(parsed.Payload, &t)
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
	issued := map[string]issuedToken{}
	for after := uint64(0); ; {
		page, err := admin.Audit(t.Context(), client.AuditQuery{After: after, Type: "token.issued", Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			token := issuedToken{Aud: r.Subject}
			if err := json.Unmarshal(r.Detail, &token); err != nil {
				t.Fatal(err)
			}
			issued[token.JTI] = token
			after = r.Seq
		}
		if len(page.Records) == 0 {
			break
		}
	}
	for _, token := range a.tokens {
		if found := issued[token.JTI]; found != token {
			t.Fatalf("the acknowledged token %+v stands in the audit log as %+v", token, found)
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
