package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts/jwt"
)

// relay is what gateway gets for a token, for orders.
func (d *door) relay(subject string) string {
	d.Helper()
	got := d.exchange(d.as("gateway"), subject, "orders")
	var token wire.Token
	if err := json.Unmarshal(got.body, &token); err != nil || token.AccessToken == "" {
		d.Fatalf("%d %s", got.status, got.body)
	}
	return token.AccessToken
}

// dead demands that a relay token for orders is refused at the exchange and not active.
func (d *door) dead(when, relay string) {
	d.Helper()
	if err := badRequest(countersign.CodeRevoked).check(d.exchange(d.as("orders"), relay, "inventory")); err != nil {
		d.Errorf("%s: %v", when, err)
	}
	got := d.send(d.as("orders"), http.MethodPost, "/oauth2/introspect", url.Values{"token": {relay}}.Encode(), "Content-Type", wire.Form)
	if got.status != http.StatusOK || string(got.body) != "{\"active\":false}\n" {
		d.Errorf("%s: introspection says %d %s", when, got.status, got.body)
	}
}

func (d *door) revoke(rq wire.TokenRevocationRequest) wire.TokenRevocation {
	d.Helper()
	made, err := d.admin.RevokeTokens(d.Context(), rq)
	d.must(err)
	return made
}

// What is revoked stays revoked: in this process, after kill -9, and after a restart of which the store is an older copy
// beside the newer audit log, as a restored one is.
func TestRevocationSurvives(t *testing.T) {
	d := openDoor(t, nil, "gateway", "orders")
	d.stop(t, syscall.SIGTERM)
	store := filepath.Join(d.dir, "countersign.db")
	older := mustRead(t, store)
	d.start(t)

	relay, other := d.relay(d.idp.good()), d.relay(d.idp.token("sub", "bob"))
	jti, err := jtiOf(relay)
	d.must(err)
	d.revoke(wire.TokenRevocationRequest{JTI: jti, Reason: "stolen"})
	d.stop(t, syscall.SIGKILL)
	d.start(t)
	d.dead("after kill -9", relay)
	bob := d.revoke(wire.TokenRevocationRequest{Subject: "bob"})
	d.dead("the subject", other)
	d.stop(t, syscall.SIGTERM)

	mustWrite(t, store, older)
	d.start(t)
	d.dead("with an older store", relay)
	d.dead("with an older store, the subject", other)
	page, err := d.admin.TokenRevocations(t.Context(), "", 0)
	d.must(err)
	// What surfaces anew is made anew, so that verifiers who asked before hear of it.
	if len(page.Revocations) == 2 && page.Revocations[0].MadeAt.After(bob.MadeAt) {
		page.Revocations[0].MadeAt = bob.MadeAt
	}
	if len(page.Revocations) != 2 || page.Revocations[0] != bob || page.Revocations[1].Reason != "stolen" {
		t.Errorf("what came back: %+v", page)
	}
	found, err := d.admin.Audit(t.Context(), client.AuditQuery{Type: "token.revoked", Text: `"recovered":true`})
	d.must(err)
	if len(found.Records) != 2 {
		t.Errorf("the audit log tells of %d that came back: %+v", len(found.Records), found.Records)
	}
	d.stillGood()
}

// kill -9 while operators and a client revoke: nothing that was acknowledged is gone.
func TestRevocationKill(t *testing.T) {
	i := newInstance(t, plainBinary(t))
	w := newWorker(t, i)
	var mu sync.Mutex
	acked := map[string]bool{}
	ack := func(what string) { mu.Lock(); acked[what] = true; mu.Unlock() }
	for round := range 6 {
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for _, kind := range []string{"jti", "txn"} {
			n := 0
			group.Go(func() {
				untilError(ctx, func() error {
					n++
					rq := wire.TokenRevocationRequest{JTI: fmt.Sprintf("%d-%d", round, n)}
					if kind == "txn" {
						rq.JTI, rq.Transaction = "", rq.JTI
					}
					made, err := w.admin.RevokeTokens(ctx, rq)
					if err == nil {
						ack(made.Kind + made.Value)
					}
					return err
				})
			})
		}
		c := w.service()
		group.Go(func() {
			untilError(ctx, func() error {
				token, err := c.Token(ctx, url.Values{"grant_type": {"client_credentials"}, "audience": {"b"}})
				if err != nil {
					return err
				}
				if err := c.RevokeToken(ctx, token.AccessToken); err != nil {
					return err
				}
				jti, err := jtiOf(token.AccessToken)
				ack("jti" + jti)
				return err
			})
		})
		time.Sleep(50*time.Millisecond + rand.N(300*time.Millisecond))
		i.stop(t, syscall.SIGKILL)
		stop()
		group.Wait()
		i.start(t)
		listed := w.revoked()
		for what := range acked {
			if !listed[what] {
				t.Fatalf("round %d: %s was acknowledged and is gone", round, what)
			}
		}
	}
	if len(acked) < 10 {
		t.Errorf("only %d revocations were acknowledged", len(acked))
	}
	w.checkOutcomes()
	t.Logf("%d revocations over 6 kills", len(acked))
}

// revoked is everything that the daemon lists.
func (w *worker) revoked() map[string]bool {
	w.t.Helper()
	all := map[string]bool{}
	for after := ""; ; {
		page, err := w.admin.TokenRevocations(w.t.Context(), after, 1000)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range page.Revocations {
			all[r.Kind+r.Value] = true
		}
		if after = page.Next; after == "" {
			return all
		}
	}
}

// checkOutcomes wants an outcome for every intent of a revocation.
func (w *worker) checkOutcomes() {
	w.t.Helper()
	open := map[string]int64{}
	for after := uint64(0); ; {
		page, err := w.admin.Audit(w.t.Context(), client.AuditQuery{After: after, Type: "token.revoked", Limit: 1000})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range page.Records {
			var detail struct{ Made int64 }
			if err := json.Unmarshal(r.Detail, &detail); err != nil {
				w.t.Fatal(err)
			}
			id := fmt.Sprint(r.Subject, detail.Made)
			if delete(open, id); r.Outcome == "intent" {
				open[id] = detail.Made
			}
			after = r.Seq
		}
		if len(page.Records) == 0 {
			break
		}
	}
	if len(open) > 0 {
		w.t.Errorf("intents without an outcome: %v", open)
	}
}

// A users issuer logs a session out, from anywhere and without a credential of ours (OpenID Connect Back-Channel Logout 1.0).
func TestBackChannelLogout(t *testing.T) {
	d := openDoor(t, nil, "gateway", "orders")
	relay := d.relay(d.idp.token("sid", "s1"))
	logout := func(changes ...any) reply {
		now := time.Now()
		claims := d.idp.claims(append([]any{"scope", nil, "email", nil, "sid", "s1", "jti", "l1", "exp", now.Add(time.Minute).Unix(),
			"events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}, changes...)...)
		token := d.idp.es256(`{"alg":"ES256","kid":"ec","typ":"logout+jwt"}`, d.idp.json(claims))
		return d.send(d.as(""), http.MethodPost, "/oauth2/backchannel-logout", url.Values{"logout_token": {token}}.Encode(), "Content-Type", wire.Form)
	}
	if err := badRequest(countersign.CodeLogoutToken).check(logout("nonce", "n")); err != nil {
		t.Error(err)
	}
	if got := d.exchange(d.as("orders"), relay, "inventory"); got.status != http.StatusOK {
		t.Errorf("before: %d %s", got.status, got.body)
	}
	if got := logout(); got.status != http.StatusOK || len(got.body) != 0 || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s %v", got.status, got.body, got.header)
	}
	d.dead("logged out", relay)
	if err := badRequest(countersign.CodeLogoutReplay).check(logout()); err != nil {
		t.Error(err)
	}
	if err := badRequest(countersign.CodeRevoked).check(d.exchange(d.as("gateway"), d.idp.token("sid", "s1"), "orders")); err != nil {
		t.Errorf("the session's own token: %v", err)
	}
	d.relay(d.idp.token("sid", "s2"))
}

// jtiOf reads the identifier of a token.
func jtiOf(token string) (string, error) {
	parsed, err := jwt.Parse(token)
	if err != nil {
		return "", err
	}
	jti, _, err := parsed.Claims.String("jti")
	return jti, err
}
