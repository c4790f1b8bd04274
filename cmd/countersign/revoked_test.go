package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/verify"
)

// TestRevokedAtVerifier: what an operator revokes at the daemon, a service's verifier refuses within its Poll, and nothing else.
func TestRevokedAtVerifier(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	i.apply(t, `trust_domain: shop.internal
services: [{name: reports}, {name: orders}]
calls: [{from: reports, to: orders, scopes: ["orders:read"], machine: ["orders:read"]}]
`)
	dir := i.join(t, "reports")
	v, err := verify.New(verify.Config{
		Issuer: "https://localhost:" + i.port(), Audience: "orders", Roots: identityIn(t, dir).Pool(), Poll: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	request := func() string {
		return strings.TrimSpace(i.run(t, "token", "request", "--identity", dir, "--audience", "orders"))
	}
	one, two := request(), request()
	claims, err := v.Verify(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if _, at := v.Fetched(); at.IsZero() {
		t.Fatal("the daemon's metadata names no list of revocations")
	}
	i.run(t, "token", "revoke", "--txn", claims.Transaction, "--reason", "a test")
	for {
		_, err := v.Verify(t.Context(), one)
		if refused := (*verify.Error)(nil); errors.As(err, &refused) && refused.Reason == verify.ReasonRevoked {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if t.Context().Err() != nil {
			t.Fatal("it is never refused")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if _, err := v.Verify(t.Context(), two); err != nil {
		t.Errorf("the token of another transaction: %v", err)
	}
}
