package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/countersign/countersign"
)

// Ledger is the service that Apache guards, with tokens that are bound to the caller's certificate.
const foreignPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: ["orders:read"]}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders}
  - {name: ledger, dns: [ledger.shop.internal], token: {bind: mtls}}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read"]}
  - {from: gateway, to: ledger, scopes: ["orders:read"]}
`

// jwx is a lestrrat-go/jwx verifier: a key set that is fetched in the background alone. The library rounds the interval up to
// the next whole second but one, so that it is asked for half of max-age to keep to that.
func (r *rotating) jwx(maxAge time.Duration) verifier {
	r.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	cache, err := jwk.NewCache(ctx, httprc.NewClient())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := cache.Shutdown(context.Background()); err != nil {
			r.t.Error(err)
		}
		stop()
	})
	url := r.issuer + "/.well-known/jwks.json"
	if err := cache.Register(ctx, url, jwk.WithHTTPClient(r.plain), jwk.WithConstantInterval(maxAge/2)); err != nil {
		r.t.Fatal(err)
	}
	keys, err := cache.CachedSet(url)
	if err != nil {
		r.t.Fatal(err)
	}
	return func(token string) error {
		_, err := jwxjwt.ParseString(token, jwxjwt.WithKeySet(keys), jwxjwt.WithIssuer(r.issuer), jwxjwt.WithAudience("orders"))
		return err
	}
}

// foreigners are other people's verifiers of tokens for orders, and other ways to obtain one.
func (r *rotating) foreigners(maxAge time.Duration) (verifiers map[string]verifier, obtain map[string]func() (string, error)) {
	r.t.Helper()
	gateway := r.dirs["gateway"]
	config := childConfig{
		Issuer: r.issuer, Audience: "orders", Client: "spiffe://shop.internal/gateway", CA: filepath.Join(gateway, "ca.crt"),
		Certificate: filepath.Join(gateway, "tls.crt"), Key: filepath.Join(gateway, "tls.key"),
	}
	node := startChild(r.t, config, "node", "verify.mjs")
	python := startChild(r.t, config, "/usr/bin/python3", "verify.py")
	verifiers = map[string]verifier{
		"jwx": r.jwx(maxAge), "jose": node.verifier("jose"), "oauth4webapi": node.verifier("oauth4webapi"), "authlib": python.verifier("authlib"),
	}
	obtain = map[string]func() (string, error){
		"openid-client":  func() (string, error) { return node.ask("openid-client", r.user) },
		"authlib-client": func() (string, error) { return python.ask("authlib-client", r.user) },
	}
	return verifiers, obtain
}

// kind is tokens for one service: how to obtain one, and who verifies it.
type kind struct {
	name      string
	obtain    map[string]func() (string, error)
	verifiers map[string]verifier
	traffic   *traffic
}

// Other people's verifiers take tokens before, during and after rotations by command and by schedule, without one failure,
// although jwx, jose and oauth4webapi fetch the keys only about as often as Cache-Control says. After an emergency they refuse what the retired key
// signed as soon as they have fetched the keys again, and nothing else.
func TestForeignRotation(t *testing.T) {
	t.Parallel()
	const lead = 4 * time.Second // jwx fetches every 2 s to 3 s, and max-age is half of it
	r, clients := newRotating(t, foreignPolicy, []string{"COUNTERSIGN_TOKEN_LEAD=" + lead.String(), "COUNTERSIGN_TOKEN_ROTATE=16s"}, "gateway", "orders", "ledger")
	exchange := func(audience string) func() (string, error) {
		return func() (string, error) { return r.exchange(clients["gateway"], r.user, audience) }
	}
	verifiers, obtain := r.foreigners(lead / 2)
	obtain["x/oauth2"] = exchange("orders")
	kinds := []kind{
		{"orders", obtain, verifiers, &traffic{obtained: map[string]int{}, first: map[string]string{}}},
		{"ledger", map[string]func() (string, error){"x/oauth2": exchange("ledger")}, r.apaches(clients), &traffic{obtained: map[string]int{}, first: map[string]string{}}},
	}
	ctx, stop := context.WithCancel(t.Context())
	var flows sync.WaitGroup
	defer flows.Wait()
	defer stop()
	for _, k := range kinds {
		for _, obtain := range k.obtain {
			flows.Go(func() { r.flow(ctx, k.traffic, obtain, k.verifiers) })
		}
	}
	reach := func(what string, ok func(*traffic) bool) {
		t.Helper()
		for _, k := range kinds {
			r.until(what+" of "+k.name, k.traffic, func() bool { return ok(k.traffic) })
		}
	}
	first := r.active()
	reach("traffic", func(f *traffic) bool { return f.of(first) > 4 })
	r.rotateByCommand()
	reach("the rotation by command", func(f *traffic) bool { return f.kids() >= 2 })
	second := r.active()
	reach("traffic with the second key", func(f *traffic) bool { return f.of(second) > 4 })
	reach("the rotation by schedule", func(f *traffic) bool { return f.kids() >= 3 })
	third := r.active()
	reach("traffic with the third key", func(f *traffic) bool { return f.of(third) > 4 })
	stop()
	flows.Wait()
	for _, k := range kinds {
		if len(k.traffic.failures) > 0 {
			t.Errorf("failures of %s:\n%s", k.name, strings.Join(k.traffic.failures, "\n"))
		}
		t.Logf("%s: %v tokens obtained by key, %d verified by each of %d", k.name, k.traffic.obtained, k.traffic.checks, len(k.verifiers))
	}
	if t.Failed() {
		return
	}
	r.emergency(kinds)
}

// rotateByCommand rotates. On a slow machine the schedule may have published a key before: then that one signs first.
func (r *rotating) rotateByCommand() {
	r.t.Helper()
	for range 100 {
		cmd := exec.Command(r.bin, "key", "rotate", "token")
		cmd.Env = append(os.Environ(), "COUNTERSIGN_DIR="+r.dir)
		said, err := cmd.CombinedOutput()
		switch {
		case err == nil:
			return
		case !bytes.Contains(said, []byte(countersign.CodeRotationPending)):
			r.t.Fatalf("%v\n%s", err, said)
		}
		time.Sleep(200 * time.Millisecond)
	}
	r.t.Fatal("a key waits to sign all the time")
}

// emergency rotates at once, and retires the new key as compromised.
func (r *rotating) emergency(kinds []kind) {
	r.t.Helper()
	one := func(k kind) string {
		r.t.Helper()
		token, err := k.obtain["x/oauth2"]()
		if err != nil {
			r.t.Fatal(err)
		}
		return token
	}
	all := func(tokens map[string]string, what string, want bool) {
		r.t.Helper()
		for _, k := range kinds {
			for name, verify := range k.verifiers {
				if err := settles(func() error { return verify(tokens[k.name]) }, want); err != nil {
					r.t.Errorf("%s, %s: %v", name, what, err)
				}
			}
		}
	}
	each := func() map[string]string {
		tokens := map[string]string{}
		for _, k := range kinds {
			tokens[k.name] = one(k)
		}
		return tokens
	}
	before := each()
	all(before, "a token of before", true)
	r.run(r.t, "key", "rotate", "token", "--now")
	after := each()
	if leaked := kidOf(r.t, after["orders"]); leaked == kidOf(r.t, before["orders"]) {
		r.t.Error("the old key signs after --now")
	}
	all(after, "a token of after --now", true)
	all(before, "a token of before --now", true)
	r.run(r.t, "key", "retire", kidOf(r.t, after["orders"]), "--compromised")
	all(each(), "a token of after the retirement", true)
	all(after, "a token of the retired key", false)
	all(before, "a token of the key before", true)
}

// settles waits until what is asked comes out as wanted, as it must when the keys have been fetched again.
func settles(ask func() error, want bool) error {
	err := ask()
	for deadline := time.Now().Add(20 * time.Second); (err == nil) != want; err = ask() {
		if time.Now().After(deadline) {
			return fmt.Errorf("still answered with %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

// apaches are the verifiers of tokens for ledger. Each takes the gateway's tokens from the gateway, and from nobody else,
// whatever the state of the keys.
func (r *rotating) apaches(clients map[string]*http.Client) map[string]verifier {
	r.t.Helper()
	address := r.startApache(r.dirs["ledger"])
	gateway, orders, plain := r.apache(address, clients["gateway"]), r.apache(address, clients["orders"]), r.apache(address, r.plain)
	return map[string]verifier{"mod_oauth2": func(token string) error {
		for who, verify := range map[string]verifier{"another certificate": orders, "no certificate": plain} {
			if verify(token) == nil {
				r.t.Errorf("Apache takes a bound token from a client with %s", who)
			}
		}
		return gateway(token)
	}}
}
