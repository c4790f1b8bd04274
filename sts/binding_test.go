package sts

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/countersign/countersign"
)

// bound is a house whose services orders and inventory take only tokens that are bound to a certificate.
func bound(t *testing.T) *registered {
	t.Helper()
	r := openRegistered(t)
	g := r.graph()
	g.service("orders").Bind, g.service("inventory").Bind, g.service("billing").Bind = countersign.BindMTLS, countersign.BindMTLS, countersign.BindNone
	r.policy.Store(g.policy())
	return r
}

// with is a caller with a certificate whose SHA-256 is the one of text.
func withCertificate(by countersign.Caller, text string) countersign.Caller {
	by.Thumbprint = sha256.Sum256([]byte(text))
	return by
}

func thumbprint(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (r *registered) confirmation(by countersign.Caller, rq Request) string {
	r.t.Helper()
	got, err := r.Token(r.t.Context(), by, rq)
	if err != nil {
		r.t.Fatal(err)
	}
	cnf, ok := r.verified(got.AccessToken)["cnf"]
	if !ok {
		return ""
	}
	members, ok := cnf.(map[string]any)
	if !ok || len(members) != 1 {
		r.t.Errorf("cnf is %v", cnf)
	}
	return fmt.Sprint(members["x5t#S256"])
}

// RFC 8705 3.1, policy.md "cnf": each token is bound to the certificate of the connection it was minted on, by the audience's
// wish, and never to what the subject token was bound to.
func TestMintBound(t *testing.T) {
	r := bound(t)
	user := r.user(map[string]any{"cnf": map[string]any{"x5t#S256": thumbprint("a browser"), "jkt": "x"}})
	gateway, orders := withCertificate(as("gateway"), "gateway"), withCertificate(as("orders"), "orders")
	first, err := r.Token(t.Context(), gateway, exchangeOf(user, "orders"))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.confirmation(gateway, exchangeOf(user, "orders")); got != thumbprint("gateway") {
		t.Errorf("the first hop is bound to %q", got)
	}
	if got := r.confirmation(orders, exchangeOf(first.AccessToken, "inventory")); got != thumbprint("orders") {
		t.Errorf("the second hop is bound to %q", got)
	}
	if got := r.confirmation(withCertificate(orders, "renewed"), exchangeOf(first.AccessToken, "inventory")); got != thumbprint("renewed") {
		t.Errorf("after a renewal the token is bound to %q", got)
	}
	if got := r.confirmation(gateway, exchangeOf(r.user(map[string]any{"scope": "shop.write", "cnf": map[string]any{"jkt": "x"}}), "billing")); got != "" {
		t.Errorf("a token for an audience that asks for none is bound to %q", got)
	}
	if got := r.confirmation(withCertificate(as("reports"), "reports"), Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}); got != thumbprint("reports") {
		t.Errorf("a machine token is bound to %q", got)
	}
}

// A client that came by an assertion alone gets no token for an audience that wants bound ones; with its certificate next to the
// assertion it does, and is bound to that.
func TestMintBoundNeedsCertificate(t *testing.T) {
	r := bound(t)
	machine := Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}
	by, err := r.client(nobody(), r.own.sign(t, "JWT", r.claims(nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.refuses("an assertion alone", by, machine, countersign.CodeUnbound)
	if oauth := countersign.CodeUnbound.Info().OAuth; oauth != "invalid_request" {
		t.Errorf("the refusal is %s", oauth)
	}
	if len(r.records("token.issued")) != 0 {
		t.Error("a token was issued")
	}
	by, err = r.client(withCertificate(as("reports"), "reports"), r.own.sign(t, "JWT", r.claims(nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.confirmation(by, machine); got != thumbprint("reports") {
		t.Errorf("bound to %q", got)
	}
}

// A policy may not bind by a word that is not known here: nothing is minted unbound by mistake.
func TestMintUnknownBinding(t *testing.T) {
	r := bound(t)
	g := r.graph()
	g.service("orders").Bind = "dpop"
	r.policy.Store(g.policy())
	r.refuses("bind: dpop", withCertificate(as("reports"), "reports"), Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}, countersign.CodeInternal)
}
