package ca

import (
	"context"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/keyring"
)

// signing is the intermediate that signs now.
func (h *house) signing() issuer {
	h.t.Helper()
	i, ok := h.issuers.Load().signing(h.clock.now())
	if !ok {
		h.t.Fatal("no intermediate signs")
	}
	return i
}

func (h *house) rotate(r Rotation) RotationPlan {
	h.t.Helper()
	plan, err := h.Rotate(h.t.Context(), admin(), r)
	if err != nil {
		h.t.Fatal(err)
	}
	return plan
}

// trusts demands that the chain of c leads to each of the roots alone.
func trusts(t *testing.T, c *Certificate, at time.Time, roots ...*x509.Certificate) {
	t.Helper()
	for _, root := range roots {
		pool, between := x509.NewCertPool(), x509.NewCertPool()
		pool.AddCert(root)
		for _, cert := range c.Chain[1:] {
			between.AddCert(cert)
		}
		_, err := c.Chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err != nil {
			t.Errorf("the certificate %s does not lead to the root %s: %v", c.Serial, root.Subject, err)
		}
		openssl(t, c, at, root)
	}
}

// openssl demands the same of OpenSSL, which gets the chain as a server would send it.
func openssl(t *testing.T, c *Certificate, at time.Time, root *x509.Certificate) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, certs ...*x509.Certificate) string {
		var b []byte
		for _, c := range certs {
			b = append(b, certPEM(c)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-no_check_time", "-CAfile", write("root", root),
		"-untrusted", write("chain", c.Chain[1:]...), write("leaf", c.Chain[0])).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify at %s: %v\n%s", at, err, out)
	}
}

func TestRotateIntermediate(t *testing.T) {
	h := newHouse(t, nil)
	ctx, key := t.Context(), newKey(t, "P-256")
	old, first := h.signing(), h.join("orders", key)
	plan := h.rotate(Rotation{Role: ProfileIntermediate})
	if len(plan.New) != 1 || plan.New[0].State != AuthoritySigning || h.signing().serial == old.serial || len(h.Roots()) != 1 {
		t.Fatalf("%+v", plan)
	}
	checkLint(t, plan.New[0].Cert)
	if h.peer(first).ID != first.ID {
		t.Error("a certificate of the old intermediate proves nobody")
	}
	second, err := h.Issue(ctx, h.peer(first), IssueRequest{CSR: request(t, newKey(t, "P-256"))})
	if err != nil {
		t.Fatal(err)
	}
	trusts(t, second, h.clock.now(), h.Roots()...)
	if !second.Chain[1].Equal(plan.New[0].Cert) || len(second.Chain) != 2 {
		t.Error("the new certificate has not the new intermediate above it")
	}
	wantCode(t, h.Retire(ctx, admin(), h.signing().serial), countersign.CodeIssuerInUse)
	wantCode(t, h.Retire(ctx, admin(), old.serial), countersign.CodeIssuerInUse)
	holders, err := h.Holders(ctx)
	if err != nil || len(holders[old.serial]) != 1 || holders[old.serial][0].ID != first.ID {
		t.Fatalf("%v %v", holders, err)
	}
	h.reopen() // all of it is recorded
	h.clock.add(25 * time.Hour)
	if err := h.Retire(ctx, admin(), old.serial); err != nil {
		t.Fatal(err)
	}
	if len(h.Intermediates()) != 1 {
		t.Error("the retired intermediate is still shown")
	}
	if _, ok := h.cfg.Keys.Key(old.KeyID); ok {
		t.Error("its key is still there")
	}
	wantCode(t, h.Retire(ctx, admin(), old.serial), countersign.CodeNoCertificate)
	h.reopen()
	if got := len(h.events(eventRetired)); got != 2 {
		t.Errorf("%d events of the retirement and not an intent and an outcome", got)
	}
}

func TestRotateRoot(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.RootLead = time.Hour })
	ctx := t.Context()
	oldRoot, old := h.Roots()[0], h.signing()
	before := h.join("orders", newKey(t, "P-256"))
	h.clock.add(time.Millisecond)
	plan := h.rotate(Rotation{Role: ProfileRoot})
	if want := h.clock.now().Add(time.Hour).Truncate(time.Second).UTC(); !plan.SignsFrom.Equal(want) || len(plan.New) != 3 {
		t.Fatalf("%+v", plan)
	}
	if roots := h.Roots(); len(roots) != 2 || !roots[0].Equal(oldRoot) {
		t.Fatalf("the bundle holds %d roots", len(roots))
	}
	newRoot := h.Roots()[1]
	for _, i := range h.issuers.Load().all {
		checkLint(t, i.cert)
	}
	early := h.join("gateway", newKey(t, "P-256"))
	if !early.Chain[1].Equal(old.cert) {
		t.Error("the new root signs before its time")
	}
	_, err := h.Rotate(ctx, admin(), Rotation{Role: ProfileIntermediate})
	wantCode(t, err, countersign.CodeRotationPending)
	wantCode(t, h.Retire(ctx, admin(), h.issuers.Load().published(ProfileRoot)[1].serial), countersign.CodeIssuerInUse)

	h.clock.add(time.Hour)
	late := h.join("inventory", newKey(t, "P-256"))
	if len(late.Chain) != 3 {
		t.Fatalf("the chain has %d certificates and not the cross certificate too", len(late.Chain))
	}
	trusts(t, late, h.clock.now(), oldRoot, newRoot)
	trusts(t, before, h.clock.now(), oldRoot)
	for _, c := range []*Certificate{before, early, late} {
		h.peer(c)
	}
	rootSerial := serialText(oldRoot.SerialNumber)
	wantCode(t, h.Retire(ctx, admin(), rootSerial), countersign.CodeIssuerInUse)
	h.clock.add(25 * time.Hour)
	for _, serial := range []string{old.serial, rootSerial} {
		if err := h.Retire(ctx, admin(), serial); err != nil {
			t.Fatal(err)
		}
	}
	alone := h.join("orders", newKey(t, "P-256"))
	if len(alone.Chain) != 2 || len(h.Roots()) != 1 || !h.Roots()[0].Equal(newRoot) {
		t.Errorf("after the retirement: %d certificates, %d roots", len(alone.Chain), len(h.Roots()))
	}
	trusts(t, alone, h.clock.now(), newRoot)
	h.peer(alone)
	h.reopen()
	h.peer(alone)
}

func TestRotationTimes(t *testing.T) {
	h := newHouse(t, nil)
	ctx, now := t.Context(), h.clock.now()
	dry, err := h.Rotate(ctx, admin(), Rotation{Role: ProfileRoot, DryRun: true})
	// The longest leaf is an operator's: 30 days; then the grace of 3 days and an hour.
	if want := now.Add(33*day + time.Hour).Truncate(time.Second).UTC(); err != nil || !dry.SignsFrom.Equal(want) || len(dry.New) != 0 {
		t.Fatalf("%+v %v", dry, err)
	}
	if len(h.Roots()) != 1 || len(h.cfg.Keys.Keys(keyring.CA)) != 2 || len(h.events(eventRotated)) != 0 {
		t.Error("a dry run changed something")
	}
	for name, r := range map[string]Rotation{
		"before the lead": {Role: ProfileRoot, At: now.Add(day)}, "in the past": {Role: ProfileIntermediate, At: now.Add(-time.Hour)},
		"after the end": {Role: ProfileIntermediate, At: now.Add(400 * day)}, "no role": {Role: ProfileService},
		"a cross certificate": {Role: profileCross},
	} {
		if _, err := h.Rotate(ctx, admin(), r); countersign.AsError(err).Code != countersign.CodeParameter {
			t.Errorf("%s: %v", name, err)
		}
	}
	operator := countersign.Caller{Method: countersign.ByCertificate, Role: countersign.RoleOperator, Name: "op"}
	viewer := countersign.Caller{Method: countersign.ByCertificate, Role: countersign.RoleViewer, Name: "viewer"}
	for name, refused := range map[string]error{
		"viewer rotates":         refusal(h.Rotate(ctx, viewer, Rotation{Role: ProfileIntermediate})),
		"operator rotates roots": refusal(h.Rotate(ctx, operator, Rotation{Role: ProfileRoot})),
		"operator rolls back":    refusal(h.Rollback(ctx, operator)),
		"operator retires":       h.Retire(ctx, operator, h.signing().serial),
	} {
		if countersign.AsError(refused).Code != countersign.CodeRole {
			t.Errorf("%s: %v", name, refused)
		}
	}
	if plan := h.rotate(Rotation{Role: ProfileRoot, Now: true}); plan.SignsFrom.After(h.clock.now()) {
		t.Error("--now waits")
	}
	trusts(t, h.join("orders", newKey(t, "P-256")), h.clock.now(), h.Roots()...)
}

func refusal[T any](_ T, err error) error { return err }

func TestRollback(t *testing.T) {
	h := newHouse(t, nil)
	ctx := t.Context()
	wantCode(t, refusal(h.Rollback(ctx, admin())), countersign.CodeNoRollback)

	h.rotate(Rotation{Role: ProfileRoot}) // waits: is taken back as if it had never been
	if _, err := h.Rollback(ctx, admin()); err != nil {
		t.Fatal(err)
	}
	if len(h.Roots()) != 1 || len(h.Intermediates()) != 1 || len(h.issuers.Load().published(profileCross)) != 0 || len(h.cfg.Keys.Keys(keyring.CA)) != 2 {
		t.Error("something of the rotation is left")
	}

	first := h.signing()
	h.rotate(Rotation{Role: ProfileIntermediate}) // signs: signs no more
	newer := h.join("orders", newKey(t, "P-256"))
	gone, err := h.Rollback(ctx, admin())
	if err != nil || gone.State != AuthorityWithdrawn || h.signing().serial != first.serial {
		t.Fatalf("%+v %v", gone, err)
	}
	h.peer(newer)
	renewed, err := h.Issue(ctx, h.peer(newer), IssueRequest{CSR: request(t, newKey(t, "P-256"))})
	if err != nil || !renewed.Chain[1].Equal(first.cert) {
		t.Fatalf("the intermediate before does not sign again: %v", err)
	}
	wantCode(t, h.Retire(ctx, admin(), gone.Serial), countersign.CodeIssuerInUse)
	h.reopen()
	if h.signing().serial != first.serial {
		t.Error("the rollback is forgotten")
	}
}

// TestSchedule lets the clock alone do what is due.
func TestSchedule(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.IntermediateTTL, c.RootTTL, c.RootLead = 90*day, 900*day, 10*day })
	ctx, first := t.Context(), h.signing()
	roll := func() {
		t.Helper()
		if err := h.roll(ctx); err != nil {
			t.Fatal(err)
		}
	}
	h.join("orders", newKey(t, "P-256"))
	h.clock.add(59 * day)
	roll()
	if h.signing().serial != first.serial {
		t.Error("rotated before its time")
	}
	h.clock.add(2 * day)
	held := h.join("orders", newKey(t, "P-256"))
	roll()
	if h.signing().serial == first.serial || len(h.Intermediates()) != 2 {
		t.Fatal("not rotated when a third of the life was left")
	}
	h.clock.add(12 * time.Hour)
	roll()
	if len(h.Intermediates()) != 2 {
		t.Error("retired while", held.Serial, "lives")
	}
	h.clock.add(13 * time.Hour)
	roll()
	if len(h.Intermediates()) != 1 {
		t.Error("not retired when nothing lived any more")
	}
	for range 120 { // to the end of the root's life: always something signs that lives
		h.clock.add(7 * day)
		roll()
		if s := h.signing(); h.clock.now().Add(20 * day).After(s.cert.NotAfter) {
			t.Fatalf("the signing intermediate ends at %s, and it is %s", s.cert.NotAfter, h.clock.now())
		}
		trusts := h.Roots()
		if len(trusts) > 2 || h.clock.now().After(trusts[len(trusts)-1].NotAfter) {
			t.Fatalf("%d roots, the last until %s", len(trusts), trusts[len(trusts)-1].NotAfter)
		}
	}
	if got := len(h.cfg.Keys.Keys(keyring.CA)); got > 4 {
		t.Errorf("%d keys are left", got)
	}
}

func TestExpiredIntermediate(t *testing.T) {
	h := newHouse(t, func(c *Config) { c.IntermediateTTL = 10 * day })
	h.clock.add(11 * day)
	_, err := h.Issue(t.Context(), h.joiner("orders"), IssueRequest{CSR: request(t, newKey(t, "P-256"))})
	wantCode(t, err, countersign.CodeIssuerExpiring)
	h.reopen() // the daemon starts all the same
	h.rotate(Rotation{Role: ProfileIntermediate})
	h.join("orders", newKey(t, "P-256"))
}

// TestRollbackWinsOverIssuance takes the intermediate back after a certificate of it was judged and signed.
func TestRollbackWinsOverIssuance(t *testing.T) {
	h := newHouse(t, nil)
	h.rotate(Rotation{Role: ProfileIntermediate})
	by := h.joiner("orders")
	hook := &hooked{}
	h.wrap = func(s storage.Store) storage.Store { hook.Store = s; return hook }
	h.reopen()
	hook.before = func() {
		hook.before = func() {}
		if _, err := h.Rollback(context.WithoutCancel(t.Context()), admin()); err != nil {
			t.Error(err)
		}
	}
	_, err := h.Issue(t.Context(), by, IssueRequest{CSR: request(t, newKey(t, "P-256"))})
	wantCode(t, err, countersign.CodeBusy)
	h.join("orders", newKey(t, "P-256"))
}

// TestRotationThatFails leaves neither certificates nor keys, and the log says that it came to nothing.
func TestRotationThatFails(t *testing.T) {
	h := newHouse(t, nil)
	broken := &hooked{}
	h.wrap = func(s storage.Store) storage.Store { broken.Store = s; return broken }
	h.reopen()
	broken.fail = storage.ErrBusy
	_, err := h.Rotate(t.Context(), admin(), Rotation{Role: ProfileRoot})
	wantCode(t, err, countersign.CodeBusy)
	broken.fail = nil
	if len(h.Roots()) != 1 || len(h.cfg.Keys.Keys(keyring.CA)) != 2 {
		t.Errorf("%d roots, %d keys", len(h.Roots()), len(h.cfg.Keys.Keys(keyring.CA)))
	}
	if got := len(h.events(eventAbandoned)); got != 3 {
		t.Errorf("%d intents were given up and not 3", got)
	}
	h.rotate(Rotation{Role: ProfileRoot})
}

// TestOrphanKeys removes what a crash between making keys and recording certificates left.
func TestOrphanKeys(t *testing.T) {
	h := newHouse(t, nil)
	if _, err := h.cfg.Keys.Create(t.Context(), admin(), keyring.NewKey{Purpose: keyring.CA, Alg: "ES256"}); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		keys  int
	}{{time.Minute, 3}, {2 * time.Hour, 2}} {
		h.clock.add(step.after)
		if err := h.roll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(h.cfg.Keys.Keys(keyring.CA)); got != step.keys {
			t.Errorf("after %s: %d keys and not %d", step.after, got, step.keys)
		}
	}
}

// TestRolloverProperty does anything in any order: at any time something signs, what is live leads to each root that was
// published when it was issued and is not retired, and proves its holder.
func TestRolloverProperty(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		h := newHouse(t, func(c *Config) { c.RootLead = 2 * time.Hour })
		defer h.close()
		ctx := t.Context()
		var live []*Certificate
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			switch rapid.SampledFrom([]string{"join", "intermediate", "root", "rollback", "retire", "wait", "roll"}).Draw(r, "step") {
			case "join":
				live = append(live, h.join("orders", newKey(t, "P-256")))
			case "intermediate":
				_, _ = h.Rotate(ctx, admin(), Rotation{Role: ProfileIntermediate})
			case "root":
				_, _ = h.Rotate(ctx, admin(), Rotation{Role: ProfileRoot})
			case "rollback":
				_, _ = h.Rollback(ctx, admin())
			case "retire":
				all := h.issuers.Load().all
				_ = h.Retire(ctx, admin(), all[rapid.IntRange(0, len(all)-1).Draw(r, "which")].serial)
			case "wait":
				h.clock.add(time.Duration(rapid.IntRange(1, 20).Draw(r, "hours")) * time.Hour)
			case "roll":
				if err := h.roll(ctx); err != nil {
					r.Fatal(err)
				}
			}
			now := h.clock.now()
			live = slices.DeleteFunc(live, func(c *Certificate) bool { return now.After(c.NotAfter) })
			if s := h.signing(); now.After(s.cert.NotAfter) || !s.Retired.IsZero() {
				r.Fatalf("%s signs", s.serial)
			}
			pool := x509.NewCertPool()
			for _, root := range h.Roots() {
				pool.AddCert(root)
			}
			for _, c := range live {
				if _, err := h.PeerCaller(ctx, c.Chain[0], countersign.Caller{}); err != nil {
					r.Fatalf("%s is live and refused: %v", c.Serial, err)
				}
				between := x509.NewCertPool()
				for _, above := range c.Chain[1:] {
					between.AddCert(above)
				}
				if _, err := c.Chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
					r.Fatalf("%s is live and leads to no root: %v", c.Serial, err)
				}
			}
		}
	})
}
