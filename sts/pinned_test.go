package sts

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// The keys of a jwks_file are the only ones that count: the issuer is never asked, and another policy's keys are forgotten.
func TestPinnedKeys(t *testing.T) {
	h := openHouse(t)
	pinned, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key *ecdsa.PrivateKey) string {
		now := h.now().Unix()
		compact, err := jwt.Sign(key, "ES256", "p1", "at+jwt", map[string]any{
			"iss": h.idp.URL, "sub": "alice", "aud": "shop-web", "iat": now, "exp": now + 3600, "scope": "orders:read",
		})
		if err != nil {
			t.Fatal(err)
		}
		return compact
	}
	use := func(jwks string) {
		g := h.graph()
		g.issuers[0].JWKS = jwks
		h.policy.Store(g.policy())
	}
	use(keySetOf(pinned, "p1"))
	h.must("gateway", exchangeOf(sign(pinned), "orders"))
	h.must("gateway", exchangeOf(sign(pinned), "orders"))
	h.refuses("a key that is not in the file", as("gateway"), exchangeOf(sign(testKey), "orders"), countersign.CodeSubjectToken)
	h.refuses("the key that the issuer publishes", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeSubjectKey)
	if n := h.idp.fetches.Load(); n != 0 {
		t.Errorf("%d fetches", n)
	}
	use(keySetOf(testKey, "p1"))
	h.refuses("a key of the version before", as("gateway"), exchangeOf(sign(pinned), "orders"), countersign.CodeSubjectToken)
	if n := len(h.issuers.pinned); n != 1 {
		t.Errorf("%d sets are kept", n)
	}
	use(`{"keys":[]}`)
	h.refuses("no key", as("gateway"), exchangeOf(sign(testKey), "orders"), countersign.CodeSubjectKey)
	use("")
	h.must("gateway", exchangeOf(h.user(nil), "orders"))
}

// An issuer of workloads vouches for nobody's users, even if a policy made elsewhere names it under `accepts`.
func TestWorkloadsAreNoUsers(t *testing.T) {
	h := openHouse(t)
	relay := h.must("gateway", exchangeOf(h.user(nil), "orders")).AccessToken
	g := h.graph()
	g.issuers[0].Use = countersign.UseWorkloads
	h.policy.Store(g.policy())
	h.refuses("a workload's token as subject token", as("gateway"), exchangeOf(h.user(nil), "orders"), countersign.CodeSubjectIssuer)
	h.refuses("a relay token of a user whose issuer has no users now", as("orders"), exchangeOf(relay, "inventory"), countersign.CodeSubjectIssuer)
}
