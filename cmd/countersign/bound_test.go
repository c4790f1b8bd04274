package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

const boundPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: ["orders:read"]}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.shop.internal], token: {bind: mtls}}
  - {name: inventory}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read"]}
`

// generation is what a client has between two renewals of its certificate: connections to the authority and to orders.
type generation struct{ authority, orders *http.Client }

// renewing is a daemon, orders that verifies behind mutual TLS, and gateway that calls it while it renews.
type renewing struct {
	*rotating
	dir     string
	orders  *goServer
	current atomic.Pointer[generation]
	calls   atomic.Int64
}

func newRenewing(t *testing.T) *renewing {
	t.Helper()
	users, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(users.Close)
	i := newInstance(t, plainBinary(t))
	i.apply(t, strings.ReplaceAll(boundPolicy, "IDP", users.URL))
	r := &renewing{rotating: &rotating{instance: i, t: t, issuer: "https://localhost:" + i.port()}}
	if r.user, err = users.token(); err != nil {
		t.Fatal(err)
	}
	r.dir = i.join(t, "gateway")
	dir := i.join(t, "orders")
	v, err := verify.New(verify.Config{Issuer: r.issuer, Audience: "orders", Roots: identityIn(t, dir).Pool()})
	if err != nil {
		t.Fatal(err)
	}
	r.orders = goServe(t, dir, v.RequireScope("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, rq *http.Request) {
		claims, _ := verify.FromContext(rq.Context())
		fmt.Fprint(w, claims.User(), " by ", claims.Actor())
	})).ServeHTTP)
	r.turn()
	return r
}

// turn makes the clients anew, from what stands in gateway's directory now.
func (r *renewing) turn() {
	orders := r.as(r.dir)
	orders.Transport.(*http.Transport).TLSClientConfig.ServerName = "orders.shop.internal"
	r.current.Store(&generation{authority: r.as(r.dir), orders: orders})
}

// renew is what an agent does: a new key and certificate, and from then on new connections.
func (r *renewing) renew() {
	r.run(r.t, "cert", "renew", "--out", r.dir)
	r.turn()
}

func (r *renewing) token() (string, error) {
	return r.exchange(r.current.Load().authority, r.user, "orders")
}

// call calls orders with a token over the connections of g.
func (r *renewing) call(g *generation, token string) error {
	rq, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "https://127.0.0.1:"+r.orders.port()+"/", nil)
	if err != nil {
		return err
	}
	rq.Header.Set("Authorization", "Bearer "+token)
	resp, err := g.orders.Do(rq)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s", resp.Status, resp.Header.Get("WWW-Authenticate"))
	}
	if got := string(body); got != "ana by "+shopID("gateway") {
		return fmt.Errorf("orders was called for %s", got)
	}
	return nil
}

// TestRenewalInFlight: gateway renews its certificate again and again while it calls orders, whose tokens are bound to it. A token
// that was minted with one certificate is used with the next, and no request fails (issue 4, policy.md "cnf").
func TestRenewalInFlight(t *testing.T) {
	r := newRenewing(t)
	first := r.current.Load()
	old, err := r.token()
	if err != nil {
		t.Fatal(err)
	}
	if parsed, err := jwt.Parse(old); err != nil || !parsed.Claims.Has("cnf") {
		t.Fatalf("the token of a service with `bind: mtls` is not bound: %v", err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	var crossed atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				minted := r.current.Load()
				token, err := r.token()
				if err != nil {
					t.Errorf("exchange: %v", err)
					return
				}
				time.Sleep(5 * time.Millisecond)
				used := r.current.Load()
				if used != minted {
					crossed.Add(1)
				}
				if err := r.call(used, token); err != nil {
					t.Errorf("call: %v", err)
					return
				}
				r.calls.Add(1)
			}
		})
	}
	for range 8 {
		for before := r.calls.Load(); r.calls.Load() < before+20 && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		r.renew()
	}
	close(done)
	wg.Wait()
	t.Logf("%d calls, %d of them with the token of one certificate and the connection of the next", r.calls.Load(), crossed.Load())

	last := r.current.Load()
	if err := r.call(last, old); err != nil {
		t.Errorf("the first token with the last certificate: %v", err)
	}
	time.Sleep(6100 * time.Millisecond) // the first certificate is now certainly older than what comes, by more than a renewal may take
	token, err := r.token()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.call(first, token); err == nil || !strings.Contains(err.Error(), "invalid_token") {
		t.Errorf("a token with a certificate that is older than it: %v", err)
	}
	other := r.as(r.join(t, "inventory"))
	other.Transport.(*http.Transport).TLSClientConfig.ServerName = "orders.shop.internal"
	if err := r.call(&generation{orders: other}, token); err == nil || !strings.Contains(err.Error(), "invalid_token") {
		t.Errorf("a stolen token with another service's certificate: %v", err)
	}
	if err := r.call(last, token); err != nil {
		t.Error(err)
	}
}
