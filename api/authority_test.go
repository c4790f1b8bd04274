package api

import (
	"errors"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// TestAuthorityRollover takes a rotation through its life by the API, as the command line does.
func TestAuthorityRollover(t *testing.T) {
	k := newKit(t, kitOptions{})
	ctx, c := t.Context(), k.admin()
	before, err := c.Authority(ctx, true)
	if err != nil || len(before.Intermediates) != 1 || before.Intermediates[0].State != "signing" || before.Intermediates[0].Root != before.Roots[0].Serial {
		t.Fatalf("%+v %v", before, err)
	}
	held := before.Intermediates[0].Holders
	if len(held) == 0 {
		t.Error("nobody holds a certificate, not even the daemon")
	}
	old, err := c.Bundle(ctx)
	k.must(err)
	dry, err := c.RotateAuthority(ctx, wire.AuthorityRotation{Role: "root", DryRun: true})
	if err != nil || !dry.DryRun || len(dry.New) != 0 || !dry.SignsFrom.After(time.Now().Add(24*time.Hour)) {
		t.Fatalf("%+v %v", dry, err)
	}
	plan, err := c.RotateAuthority(ctx, wire.AuthorityRotation{Role: "root"})
	if err != nil || len(plan.New) != 3 {
		t.Fatalf("%+v %v", plan, err)
	}
	if bundle, err := c.Bundle(ctx); err != nil || len(bundle.Keys) != len(old.Keys)+1 || bundle.Sequence <= old.Sequence {
		t.Errorf("the bundle does not hold the root that waits: %+v %v", bundle, err)
	}
	_, err = c.RotateAuthority(ctx, wire.AuthorityRotation{Role: "intermediate"})
	wantAnswer(t, err, countersign.CodeRotationPending)
	if gone, err := c.RollbackAuthority(ctx); err != nil || gone.State != "retired" {
		t.Fatalf("%+v %v", gone, err)
	}
	if _, err := c.RotateAuthority(ctx, wire.AuthorityRotation{Role: "intermediate"}); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, c.RetireAuthority(ctx, before.Intermediates[0].Serial), countersign.CodeIssuerInUse)
	after, err := c.Authority(ctx, false)
	if err != nil || len(after.Intermediates) != 2 || after.Intermediates[0].State != "verifying" || after.Intermediates[1].State != "signing" {
		t.Errorf("%+v %v", after, err)
	}
	_, err = c.RotateAuthority(ctx, wire.AuthorityRotation{Role: "service"})
	wantAnswer(t, err, countersign.CodeParameter)
}

// wantAnswer demands that the daemon refused with the code.
func wantAnswer(t *testing.T, err error, code countersign.Code) {
	t.Helper()
	var refused interface{ Code() countersign.Code }
	if !errors.As(err, &refused) || refused.Code() != code {
		t.Errorf("got %v, want %s", err, code)
	}
}
