package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/storage/policy"
)

const callersPolicy = `trust_domain: shop.internal
services:
  - name: reports
  - name: gateway
  - name: orders
  - name: inventory
calls:
  - from: reports
    to: orders
    scopes: [{name: "orders:read"}, {name: "orders:list"}]
    machine: ["orders:read", "orders:list"]
  - {from: gateway, to: orders}
  - {from: orders, to: inventory}
`

func newCallersKit(t *testing.T) *kit {
	return newKit(t, kitOptions{policy: callersPolicy, read: 300 * time.Millisecond})
}

// named are the names of the callers.
func named(c wire.Callers) string {
	names := make([]string, 0, len(c.Callers))
	for _, caller := range c.Callers {
		names = append(names, caller.Name)
	}
	return strings.Join(names, " ")
}

// ask is one answer without a wait.
func (k *kit) callersOf(c *client.Client) (wire.Callers, string) {
	k.Helper()
	out, tag, changed, err := c.Callers(k.Context(), "", 0)
	k.must(err)
	if !changed || tag == "" {
		k.Fatalf("changed %v, tag %q", changed, tag)
	}
	return out, tag
}

func TestCallers(t *testing.T) {
	k := newCallersKit(t)
	orders, inventory := k.join("orders"), k.join("inventory")
	reports, reports2, gateway := k.join("reports"), k.join("reports"), k.join("gateway")
	got, tag := k.callersOf(k.over(orders))
	want := wire.Callers{
		Service: orders.ID, Version: 1,
		Callers: []wire.Caller{
			{ID: gateway.ID, Name: "gateway", Scopes: []string{}},
			{ID: reports.ID, Name: "reports", Scopes: []string{"orders:list", "orders:read"}},
		},
		Revoked: wire.Revoked{Serials: []string{}, Keys: []string{}},
	}
	same := cmp.Comparer(func(a, b countersign.ID) bool { return a == b })
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Error(diff)
	}
	k.must(k.admin().Revoke(t.Context(), reports.Serial, "superseded"))
	k.must(k.admin().Revoke(t.Context(), gateway.Serial, "keyCompromise"))
	k.must(k.admin().Revoke(t.Context(), inventory.Serial, "keyCompromise")) // no caller of orders
	record, err := k.admin().Certificate(t.Context(), gateway.Serial)
	k.must(err)
	want.Revoked.Serials = []string{reports.Serial, gateway.Serial}
	if reports.Serial > gateway.Serial {
		want.Revoked.Serials = []string{gateway.Serial, reports.Serial}
	}
	want.Revoked.Keys = []string{record.SPKI}
	got, second := k.callersOf(k.over(orders))
	if diff := cmp.Diff(want, got, same); diff != "" || second == tag {
		t.Error(diff, second)
	}
	if _, _, changed, err := k.over(orders).Callers(t.Context(), second, 0); changed || err != nil {
		t.Errorf("what is known is sent again: %v, %v", changed, err)
	}
	// What is over is not told for ever: it fell out of the index, and the answer is made anew.
	k.clock.turn(25 * time.Hour)
	k.must(k.api.CA.Revoke(t.Context(), countersign.Caller{Role: countersign.RoleAdmin, Name: "test"}, reports2.Serial, ""))
	over, err := k.ca.Callers(t.Context(), orders.ID)
	k.must(err)
	if len(over.Serials)+len(over.Keys) != 0 {
		t.Errorf("revoked certificates that are over are still told: %+v", over)
	}
}

// TestCallersAreOfTheServiceThatAsks: nobody sees another service's callers, whatever he asks with.
func TestCallersAreOfTheServiceThatAsks(t *testing.T) {
	k := newCallersKit(t)
	reports := k.join("reports")
	if got, _ := k.callersOf(k.over(reports)); got.Service != reports.ID || named(got) != "" {
		t.Errorf("reports is told %+v", got)
	}
	for _, query := range []string{"?service=orders", "?id=spiffe://shop.internal/orders", "?wait=", "?wait=31s", "?wait=5", "?wait=-1s", "?wait=1s&wait=1s"} {
		if got := k.send(k.raw(reports), "GET", k.url+"/v1/callers"+query, ""); got.code() != countersign.CodeParameter {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
	made, err := k.admin().CreateJoinToken(t.Context(), wire.JoinTokenRequest{Service: "orders"})
	k.must(err)
	for name, ask := range map[string]struct {
		id     *identity.Identity
		header []string
		code   countersign.Code
	}{
		"nobody":     {nil, nil, countersign.CodeNoCredential},
		"admin":      {k.operator("ann", countersign.RoleAdmin), nil, countersign.CodeWrongCredential},
		"join token": {nil, []string{"Authorization", "Bearer " + made.Token}, countersign.CodeWrongCredential},
		"foreign":    {foreign(t, reports), nil, countersign.CodeBadCertificate},
	} {
		if got := k.send(k.raw(ask.id), "GET", k.url+"/v1/callers", "", ask.header...); got.code() != ask.code {
			t.Errorf("%s: %d %s, want %s", name, got.status, got.body, ask.code)
		}
	}
	// The admin socket has no service.
	if _, _, _, err := k.admin().Callers(t.Context(), "", 0); err == nil {
		t.Error("the admin socket gave callers")
	}
}

// Who is disabled, or left the policy, is called by nobody and calls nobody.
func TestCallersOfTheDisabled(t *testing.T) {
	k := newCallersKit(t)
	orders := k.over(k.join("orders"))
	by := countersign.Caller{Role: countersign.RoleAdmin, Name: "test"}
	for _, step := range []struct {
		service  string
		disabled bool
		want     string
	}{{"reports", true, "gateway"}, {"reports", false, "gateway reports"}, {"orders", true, ""}, {"orders", false, "gateway reports"}} {
		k.must(k.book.SetDisabled(t.Context(), by, step.service, "test", step.disabled))
		if got, _ := k.callersOf(orders); named(got) != step.want {
			t.Errorf("%+v: callers %q", step, named(got))
		}
	}
	_, err := k.book.Apply(t.Context(), by, []byte("trust_domain: shop.internal\nservices: [{name: reports}]\n"), policy.ApplyOptions{IfVersion: -1})
	k.must(err)
	if got, _ := k.callersOf(orders); named(got) != "" || got.Version != 2 {
		t.Errorf("who left the policy is told %+v", got)
	}
}

// TestCallersWake: a long poll is answered by the change that concerns it, over HTTP/1 and HTTP/2, although the server's read
// timeout is over meanwhile; and not by what does not concern it.
func TestCallersWake(t *testing.T) {
	k := newCallersKit(t)
	id := k.join("orders")
	reports, gateway := k.join("reports"), k.join("gateway")
	elsewhere := k.join("inventory")
	by := countersign.Caller{Role: countersign.RoleAdmin, Name: "test"}
	h1 := k.raw(id)
	h1.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	h1.Transport.(*http.Transport).TLSClientConfig.NextProtos = []string{"http/1.1"}
	changes := map[string]func() error{
		"disabled":    func() error { return k.book.SetDisabled(t.Context(), by, "reports", "test", true) },
		"enabled":     func() error { return k.book.SetDisabled(t.Context(), by, "reports", "test", false) },
		"revoked":     func() error { return k.ca.Revoke(t.Context(), by, reports.Serial, "superseded") },
		"compromised": func() error { return k.ca.Revoke(t.Context(), by, gateway.Serial, "keyCompromise") },
		"policy": func() error {
			_, err := k.book.Apply(t.Context(), by, []byte(callersPolicy+"  - {from: inventory, to: orders}\n"), policy.ApplyOptions{IfVersion: -1})
			return err
		},
	}
	for _, name := range []string{"disabled", "enabled", "revoked", "compromised", "policy"} {
		for proto, c := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2.0": k.raw(id)} {
			tag := k.send(c, "GET", k.url+"/v1/callers", "").header.Get("ETag")
			if got := k.send(c, "GET", k.url+"/v1/callers?wait=700ms", "", "If-None-Match", tag); got.status != http.StatusNotModified || got.header.Get("ETag") != tag {
				t.Fatalf("%s, %s: nothing changed: %d %s", name, proto, got.status, got.body)
			}
		}
		tag := k.send(h1, "GET", k.url+"/v1/callers", "").header.Get("ETag")
		answers := make(chan reply)
		for _, c := range []*http.Client{h1, k.raw(id)} {
			go func() { answers <- k.send(c, "GET", k.url+"/v1/callers?wait=30s", "", "If-None-Match", tag) }()
		}
		k.waiting(id.ID, 2)
		if name == "revoked" {
			k.must(k.ca.Revoke(t.Context(), by, elsewhere.Serial, ""))
		}
		k.must(changes[name]())
		for range 2 {
			if got := <-answers; got.status != http.StatusOK || got.header.Get("ETag") == tag {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
	}
}

// waiting returns when n long polls of a service wait.
func (k *kit) waiting(id countersign.ID, n int) {
	k.Helper()
	ctx, cancel := context.WithTimeout(k.Context(), 20*time.Second)
	defer cancel()
	for {
		k.api.waiters.mu.Lock()
		now := k.api.waiters.by[id]
		k.api.waiters.mu.Unlock()
		if now == n {
			return
		}
		select {
		case <-ctx.Done():
			k.Fatalf("%d wait, not %d", now, n)
		case <-time.After(time.Millisecond):
		}
	}
}

// A long poll is no way to keep what is lost: its certificate is judged again before it is answered.
func TestCallersAfterRevocation(t *testing.T) {
	k := newCallersKit(t)
	id := k.join("orders")
	c := k.over(id)
	_, tag := k.callersOf(c)
	ended := make(chan error)
	go func() {
		_, _, _, err := c.Callers(t.Context(), tag, 30*time.Second)
		ended <- err
	}()
	k.waiting(id.ID, 1)
	k.must(k.ca.Revoke(t.Context(), countersign.Caller{Role: countersign.RoleAdmin, Name: "test"}, id.Serial, "superseded"))
	wantAPIError(t, <-ended, countersign.CodeRevokedPeer)
	k.waiting(id.ID, 0)
}

// Stop ends the long polls, so that Shutdown does not wait for them; and who goes away leaves nothing behind.
func TestCallersEnd(t *testing.T) {
	k := newCallersKit(t)
	id := k.join("orders")
	c := k.over(id)
	_, tag := k.callersOf(c)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	wait := func(ctx context.Context) {
		_, _, changed, err := c.Callers(ctx, tag, 30*time.Second)
		if changed {
			t.Error("changed")
		}
		ended <- err
	}
	go wait(ctx)
	k.waiting(id.ID, 1)
	cancel()
	<-ended
	k.waiting(id.ID, 0)
	go wait(t.Context())
	k.waiting(id.ID, 1)
	k.api.Stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// One service's long polls are bounded, and another's have their own bound.
func TestCallersAreBounded(t *testing.T) {
	k := newCallersKit(t)
	orders, inventory := k.join("orders"), k.join("inventory")
	_, tag := k.callersOf(k.over(orders))
	for range maxWaiters {
		if !k.api.waiters.enter(orders.ID) {
			t.Fatal("refused too early")
		}
	}
	_, _, _, err := k.over(orders).Callers(t.Context(), tag, time.Second)
	wantAPIError(t, err, countersign.CodeWaiters)
	if _, _, changed, err := k.over(orders).Callers(t.Context(), tag, 0); changed || err != nil {
		t.Errorf("without a wait: %v, %v", changed, err)
	}
	other := k.over(inventory)
	_, tag = k.callersOf(other)
	if _, _, changed, err := other.Callers(t.Context(), tag, time.Millisecond); changed || err != nil {
		t.Errorf("another service: %v, %v", changed, err)
	}
}

func wantAPIError(t *testing.T, err error, code countersign.Code) {
	t.Helper()
	var refused *client.APIError
	if !errors.As(err, &refused) || refused.Code() != code {
		t.Errorf("%v, want %s", err, code)
	}
}
