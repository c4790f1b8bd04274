package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/sts/jwt"
)

// tenant is a service as TestGrowth has it, with what it holds.
type tenant struct {
	name string
	key  crypto.Signer
	cert *Certificate
}

// churn is an authority and what its services and operators do, eight hours at a time.
type churn struct {
	*house
	tenants []*tenant
	step    int
}

const (
	churnStep     = 8 * time.Hour
	churnAudience = "https://ca.shop.internal"

	refusedKeys = "revoked keys" // of certified_keys, those that are never certified again: they stay, and are counted apart
)

func newChurn(t *testing.T, services int) *churn {
	c := &churn{house: newHouse(t, nil)}
	all := make([]countersign.Service, services)
	for i := range all {
		name := "s" + strconv.Itoa(i)
		all[i] = service(name, name+".shop.internal")
		c.tenants = append(c.tenants, &tenant{name: name})
	}
	c.apply(2, all...)
	for _, s := range c.tenants {
		c.enrol(s)
	}
	return c
}

func (c *churn) enrol(s *tenant) {
	c.t.Helper()
	s.key = newKey(c.t, "")
	s.cert = c.join(s.name, s.key)
}

// goOn renews what a service holds, by mTLS or by a proof of its key.
func (c *churn) goOn(ctx context.Context, s *tenant, byProof bool) error {
	key := newKey(c.t, "")
	r := IssueRequest{CSR: request(c.t, key)}
	by, err := c.PeerCaller(ctx, s.cert.Chain[0], countersign.Caller{})
	if byProof && err == nil {
		var proof string
		if proof, err = proofFor(s, key, c.clock.now()); err == nil {
			var proven Renewal
			by, proven, err = c.ProofCaller(ctx, proof, churnAudience, countersign.Caller{})
			r.SPKI = proven.SPKI
		}
	}
	if err != nil {
		return err
	}
	next, err := c.Issue(ctx, by, r)
	if err == nil {
		s.key, s.cert = key, next
	}
	return err
}

// proofFor is a proof of renewal for the key next.
func proofFor(s *tenant, next crypto.Signer, now time.Time) (string, error) {
	signer, err := jwt.NewSigner(s.key, "ES256", s.cert.Serial, ProofType)
	if err != nil {
		return "", err
	}
	spki, err := x509.MarshalPKIXPublicKey(next.Public())
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(spki)
	id := s.cert.ID.String()
	claims, err := json.Marshal(map[string]any{
		"iss": id, "sub": id, "aud": churnAudience, "jti": s.cert.Serial, "exp": now.Add(time.Minute).Unix(), "spki": hex.EncodeToString(sum[:]),
	})
	if err != nil {
		return "", err
	}
	return signer.Sign(claims)
}

// pass lets eight hours pass: half of the services renew, some of them by a proof; one enrols anew, which leaves a lineage behind; one
// join token stays unused; now and then one is revoked, and one is found copied. Then the house is kept as [Authority.Run] keeps it.
func (c *churn) pass(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	c.clock.add(churnStep)
	c.step++
	group, ctx := errgroup.WithContext(ctx)
	for i, s := range c.tenants {
		if (i+c.step)%2 == 0 {
			group.Go(func() error { return c.goOn(ctx, s, i%4 == 0) })
		}
	}
	c.must(group.Wait())
	ctx = t.Context()
	one := func(n int) *tenant { return c.tenants[(c.step*7+n)%len(c.tenants)] }
	c.enrol(one(0))
	_, err := c.CreateJoinToken(ctx, admin(), one(1).name, 0)
	c.must(err)
	switch c.step % 4 {
	case 0:
		c.must(c.Revoke(ctx, admin(), one(2).cert.Serial, reasonKeyCompromise))
		c.enrol(one(2))
	case 2:
		s := one(3)
		old := s.cert
		c.must(c.goOn(ctx, s, false))
		c.peer(s.cert)
		if _, err := c.renew(old, newKey(t, "")); err == nil {
			t.Fatal("a fork is renewed")
		}
		c.enrol(s)
	}
	c.must(c.roll(ctx))
	c.must(c.keepResponders(ctx))
	c.must(c.housekeep(ctx, c.log.Head().Seq, 0))
}

// days lets days pass, and says what the database holds then.
func (c *churn) days(t *testing.T, n int) (pages int64, records map[string]int64) {
	t.Helper()
	for range n * int(day/churnStep) {
		c.pass(t)
	}
	records = map[string]int64{}
	for key, err := range keysTable().All(t.Context(), c.bolt, "") {
		c.must(err)
		if key.Value.Revoked != "" {
			records[refusedKeys]++
		}
	}
	c.close()
	found, err := bolt.Inspect(t.Context(), filepath.Join(c.dir, "db"), c.clock.now(), nil)
	if err != nil || len(found.Faults) > 0 {
		t.Fatal(err, found.Faults)
	}
	c.open(false)
	for _, table := range found.Tables {
		records[table.Name] = table.Records
	}
	records[keysTable().Name] -= records[refusedKeys]
	return found.Pages - found.FreePages, records
}

// TestGrowth: what a month of churn leaves in the database is what ten days of it leave, when the windows for which records are
// kept (docs/operations.md) have filled: a certificate's life and a week. Revoked keys are kept for ever, and nothing else.
func TestGrowth(t *testing.T) {
	c := newChurn(t, 12)
	pages, before := c.days(t, 10)
	pagesAfter, after := c.days(t, 20)
	for name, n := range after {
		if name == refusedKeys {
			continue
		}
		if was := before[name]; float64(n) > 1.3*float64(was)+0.5 {
			t.Errorf("%s: %d records after day 10, %d after day 30", name, was, n)
		}
	}
	if float64(pagesAfter) > 1.3*float64(pages) {
		t.Errorf("%d pages in use after day 10, %d after day 30", pages, pagesAfter)
	}
	for _, name := range []string{"certificates", "certificates_seen", "join_tokens", "lineages", "renewal_proofs", "revoked_by_owner", "ocsp_responders"} {
		if before[name] == 0 {
			t.Errorf("nothing is in %s: %v", name, before)
		}
	}
	t.Logf("%d pages and %v, then %d and %v", pages, before, pagesAfter, after)
}
