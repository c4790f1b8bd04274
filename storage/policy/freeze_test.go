package policy

import (
	"errors"
	"strings"
	"testing"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

func TestFreeze(t *testing.T) {
	h := newHouse(t)
	b, ctx := h.book, t.Context()
	operator := admin()
	operator.Role = countersign.RoleOperator
	for _, c := range []struct {
		by     countersign.Caller
		what   string
		reason string
		frozen bool
		want   countersign.Code
	}{
		{operator, "tokens", "r", true, countersign.CodeRole},
		{operator, "tokens", "r", false, countersign.CodeRole},
		{admin(), "token", "r", true, countersign.CodeParameter},
		{admin(), "tokens", "r\n", true, countersign.CodeParameter},
		{admin(), "all", "r", false, countersign.CodeFreezeState},
	} {
		if _, err := b.SetFrozen(ctx, c.by, c.what, c.reason, c.frozen); code(err) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if got := b.Current().Frozen; got != (countersign.Frozen{}) {
		t.Fatalf("%+v", got)
	}
	if _, err := b.SetFrozen(ctx, admin(), "tokens", "leak", true); err != nil {
		t.Fatal(err)
	}
	check := func(b *Book, tokens, certificates string) {
		t.Helper()
		reason := func(d *countersign.Disabled) string {
			if d == nil {
				return ""
			}
			return d.Reason + " " + d.By
		}
		f := b.Current().Frozen
		if reason(f.Tokens) != tokens || reason(f.Certificates) != certificates {
			t.Fatalf("%+v %+v", f.Tokens, f.Certificates)
		}
	}
	check(b, "leak uid 0", "")
	h.apply(b, small)
	h.apply(b, small+"# two\n")
	if _, err := b.Rollback(ctx, admin(), 1); err != nil {
		t.Fatal(err)
	}
	check(b, "leak uid 0", "")
	if err := b.SetDisabled(ctx, admin(), "orders", "x", true); err != nil {
		t.Fatal(err)
	}
	check(b, "leak uid 0", "")
	check(h.open(), "leak uid 0", "")
	if _, err := b.SetFrozen(ctx, admin(), "tokens", "again", true); code(err) != countersign.CodeFreezeState {
		t.Error(err)
	}
	if _, err := b.SetFrozen(ctx, admin(), "all", "more", true); err != nil {
		t.Fatal(err)
	}
	check(b, "leak uid 0", "more uid 0")
	other := h.open()
	if _, err := b.SetFrozen(ctx, admin(), "certificates", "", false); err != nil {
		t.Fatal(err)
	}
	if _, err := other.follow(ctx); err != nil { // another node
		t.Fatal(err)
	}
	check(other, "leak uid 0", "")
	if _, err := b.SetFrozen(ctx, admin(), "all", "", false); err != nil {
		t.Fatal(err)
	}
	check(h.open(), "", "")
	if !strings.HasSuffix(h.events(), "authority.thawed intent all\nauthority.thawed ok all") {
		t.Error(h.events())
	}
}

// A freeze whose change is not recorded is in force nowhere; a restart records it, and then it is.
func TestFreezeCrash(t *testing.T) {
	h := newHouse(t)
	h.store.fail = func(n int, _ []storage.Op) (error, error) {
		if n == 1 {
			if err := h.audit.Close(); err != nil {
				t.Error(err)
			}
			return nil, nil
		}
		return errors.New("crash"), nil // nor can it be taken back
	}
	if _, err := h.book.SetFrozen(t.Context(), admin(), "tokens", "leak", true); err == nil {
		t.Fatal("answered without a record")
	}
	if h.book.Current().Frozen.Tokens != nil {
		t.Error("in force without a record")
	}
	h.store.fail = nil
	h.openLog()
	b := h.open()
	if b.Current().Frozen.Tokens == nil || !strings.HasSuffix(h.events(), "authority.frozen intent tokens\nauthority.frozen ok tokens recovered") {
		t.Errorf("%+v\n%s", b.Current().Frozen, h.events())
	}
	if _, err := b.SetFrozen(t.Context(), admin(), "tokens", "", false); err != nil {
		t.Error(err)
	}
}
