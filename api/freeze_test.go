package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// TestFreeze: what is frozen is refused with who froze it and why; all else goes on.
func TestFreeze(t *testing.T) {
	k := newKit(t, kitOptions{})
	ctx, c := t.Context(), k.admin()
	reports := k.join("reports")
	raw := k.raw(reports)
	token := k.machineToken(raw)
	ask := func() reply {
		t.Helper()
		return k.send(raw, http.MethodPost, k.url+"/oauth2/token", machineForm().Encode(), "Content-Type", wire.Form)
	}
	renew := func() error {
		_, csr := newCSR(t)
		_, err := k.over(reports).Renew(ctx, wire.CertificateRequest{CSR: csr})
		return err
	}
	if _, err := c.Freeze(ctx, wire.Freeze{What: "tokens"}); err == nil {
		t.Error("frozen without a reason")
	}
	_, err := k.over(k.operator("olaf", countersign.RoleOperator)).Freeze(ctx, wire.Freeze{What: "tokens", Reason: "r"})
	wantAnswer(t, err, countersign.CodeRole)

	frozen, err := c.Freeze(ctx, wire.Freeze{What: "tokens", Reason: "a key has leaked"})
	if err != nil || frozen.Tokens == nil || frozen.Certificates != nil {
		t.Fatalf("%+v %v", frozen, err)
	}
	for range 3 { // also what is remembered of grants
		got := ask()
		if got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "temporarily_unavailable") || !strings.Contains(got.body, "a key has leaked") ||
			!strings.Contains(got.body, frozen.Tokens.By) || got.header.Get("Retry-After") == "" {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	_, err = k.over(reports).JWTSVID(ctx, []string{"reports"})
	wantAnswer(t, err, countersign.CodeTokensFrozen)
	k.must(renew())
	if got := k.post(raw, "/oauth2/introspect", token); got.status != http.StatusOK || !strings.Contains(got.body, `"active":true`) {
		t.Errorf("introspection: %d %s", got.status, got.body)
	}
	if got := k.post(raw, "/oauth2/revoke", token); got.status != http.StatusOK {
		t.Errorf("revocation: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/.well-known/jwks.json", "/roots.pem", "/oauth2/revocations"} {
		if got := k.send(raw, http.MethodGet, k.url+path, ""); got.status != http.StatusOK {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	_, err = c.Freeze(ctx, wire.Freeze{What: "tokens", Reason: "again"})
	wantAnswer(t, err, countersign.CodeFreezeState)

	if _, err = c.Freeze(ctx, wire.Freeze{What: "all", Reason: "a host was broken into"}); err != nil {
		t.Fatal(err)
	}
	wantAnswer(t, renew(), countersign.CodeCertsFrozen)
	made, err := c.CreateJoinToken(ctx, wire.JoinTokenRequest{Service: "orders"})
	k.must(err)
	_, csr := newCSR(t)
	got := k.send(k.raw(nil), http.MethodPost, k.url+"/v1/certificates", jsonOf(wire.CertificateRequest{CSR: csr}), "Content-Type", wire.JSON,
		"Authorization", "Bearer "+made.Token)
	if got.code() != countersign.CodeCertsFrozen || !strings.Contains(got.body, "a host was broken into") {
		t.Errorf("%d %s", got.status, got.body)
	}
	_, err = c.AddOperator(ctx, wire.OperatorRequest{Name: "ann", Role: "viewer", CSR: csr})
	wantAnswer(t, err, countersign.CodeCertsFrozen)
	status, err := c.Status(ctx)
	if err != nil || status.Frozen.Tokens == nil || status.Frozen.Certificates == nil || status.Frozen.Tokens.Reason != "a key has leaked" {
		t.Errorf("%+v %v", status.Frozen, err)
	}
	if k.daemonIdentity() == nil {
		t.Error("the daemon's own certificate is frozen too")
	}
	if _, err := c.RotateAuthority(ctx, wire.AuthorityRotation{Role: "intermediate"}); err != nil {
		t.Errorf("rotation is frozen too: %v", err)
	}
	if _, err = c.Thaw(ctx, wire.Freeze{What: "all"}); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got.status != http.StatusOK {
		t.Errorf("after the thaw: %d %s", got.status, got.body)
	}
	if len(k.records("authority.frozen")) == 0 || len(k.records("authority.thawed")) != 2 {
		t.Error("freeze and thaw are not in the audit log")
	}
}

func jsonOf(v any) string {
	encoded, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}
