package countersign

import (
	"testing"
	"time"
)

func TestRevocations(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	token := TokenFacts{
		ID: "root.child.leaf", Transaction: "t1", Subject: "ana", SessionIssuer: "https://idp.example", SessionID: "s1",
		Services: []string{"spiffe://shop.internal/gateway", "spiffe://shop.internal/orders"}, IssuedAt: at,
	}
	tests := []struct {
		name string
		r    Revocation
		want bool
	}{
		{"the token itself", Revocation{Kind: RevokeJTI, Value: "root.child.leaf"}, true},
		{"its parent", Revocation{Kind: RevokeJTI, Value: "root.child"}, true},
		{"its root", Revocation{Kind: RevokeJTI, Value: "root"}, true},
		{"its child", Revocation{Kind: RevokeJTI, Value: "root.child.leaf.x"}, false},
		{"a jti that only begins alike", Revocation{Kind: RevokeJTI, Value: "root.ch"}, false},
		{"its transaction", Revocation{Kind: RevokeTransaction, Value: "t1"}, true},
		{"another transaction", Revocation{Kind: RevokeTransaction, Value: "t2"}, false},
		{"no transaction", Revocation{Kind: RevokeTransaction}, false},
		{"its session", Revocation{Kind: RevokeSession, Value: RevokedSession("https://idp.example", "s1")}, true},
		{"the same session of another issuer", Revocation{Kind: RevokeSession, Value: RevokedSession("https://b.example", "s1")}, false},
		{"its subject, now", Revocation{Kind: RevokeSubject, Value: RevokedSubject("ana"), Before: at}, true},
		{"its subject, before", Revocation{Kind: RevokeSubject, Value: RevokedSubject("ana"), Before: at.Add(-time.Second)}, false},
		{"its subject, in the very second", Revocation{Kind: RevokeSubject, Value: RevokedSubject("ana"), Before: at}, true},
		{"the subject in clear", Revocation{Kind: RevokeSubject, Value: "ana", Before: at}, false},
		{"a service of its chain", Revocation{Kind: RevokeService, Value: "spiffe://shop.internal/gateway", Before: at}, true},
		{"that service, before", Revocation{Kind: RevokeService, Value: "spiffe://shop.internal/gateway", Before: at.Add(-time.Second)}, false},
		{"another service", Revocation{Kind: RevokeService, Value: "spiffe://shop.internal/reports", Before: at}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, got := NewRevocations([]Revocation{test.r}).Find(token); got != test.want {
				t.Errorf("found: %t, want %t", got, test.want)
			}
		})
	}
	token.IssuedAt = at.Add(300 * time.Millisecond) // an `iat` with a fraction
	if _, found := NewRevocations([]Revocation{{Kind: RevokeSubject, Value: RevokedSubject("ana"), Before: at}}).Find(token); !found {
		t.Error("a token with a fraction in its iat outlives the revocation of that second")
	}
	if _, found := (*Revocations)(nil).Find(token); found {
		t.Error("no set at all finds something")
	}
	twice := NewRevocations([]Revocation{
		{Kind: RevokeSubject, Value: RevokedSubject("ana"), Before: at},
		{Kind: RevokeSubject, Value: RevokedSubject("ana"), Before: at.Add(-time.Hour)},
	})
	if _, found := twice.Find(token); !found || twice.Len() != 1 {
		t.Error("an earlier revocation took back a later one")
	}
}
