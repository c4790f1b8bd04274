package mtls

import (
	"errors"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/ca/identity"
)

// TestFollowsTheKeyTypesOfThePolicy: a source for which nobody chose the type of the key goes along when the policy
// allows others, at enrolment and renewal, and asks for the new type at once from then on. One with a chosen type is told.
func TestFollowsTheKeyTypesOfThePolicy(t *testing.T) {
	k := newKit(t, nil)
	src := k.ready("gateway")
	typeOf := func(i *identity.Identity) string { return ca.KeyType(i.Chain[0].PublicKey) }
	if got := typeOf(k.wait(src)); got != "P-256" {
		t.Fatal(got)
	}
	k.apply(strings.Replace(testPolicy, "dns: [gateway.shop.internal]", "dns: [gateway.shop.internal], certificate: {keys: [Ed25519, P-384]}", 1))
	var asked [2]int64
	for i := range asked {
		before := k.asked.Load()
		if err := src.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := typeOf(k.wait(src)); got != "Ed25519" {
			t.Errorf("renewed with %s", got)
		}
		asked[i] = k.asked.Load() - before
	}
	if asked[0] != asked[1]+1 {
		t.Errorf("requests of the first renewal and the next: %d", asked)
	}
	chosen := k.source(Config{Join: k.joinString("gateway"), KeyType: "P-256"})
	err := chosen.Renew(t.Context())
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.Code() != countersign.CodeKeyType || strings.Join(refused.Problem.KeyTypes, " ") != "Ed25519 P-384" {
		t.Errorf("a chosen type: %v", err)
	}
	joined := k.source(Config{Join: k.joinString("gateway")})
	if got := typeOf(k.wait(joined)); got != "Ed25519" {
		t.Errorf("joined with %s", got)
	}
}
