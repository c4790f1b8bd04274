package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	gojwt "github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/time/rate"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/sts/jwt"
)

const rotationPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: ["orders:read"]}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders}
  - {name: inventory}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read"]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}]}
`

// rotating is a daemon whose keys rotate, with foreign programs that use it.
type rotating struct {
	*instance
	t      *testing.T
	issuer string
	plain  *http.Client // verifiers: no client certificate
	user   string
	dirs   map[string]string // identity directories
	// restarts is odd while the daemon is down: only then, or across it, obtaining may fail.
	restarts atomic.Int64
}

// exchange obtains a token as golang.org/x/oauth2 does: its client_credentials with another grant type, over mTLS, no secret.
func (r *rotating) exchange(as *http.Client, subject, audience string) (string, error) {
	config := clientcredentials.Config{
		TokenURL: r.issuer + "/oauth2/token", AuthStyle: oauth2.AuthStyleInParams,
		EndpointParams: url.Values{
			"grant_type": {grantExchange}, "subject_token": {subject}, "subject_token_type": {typeAccess}, "audience": {audience},
		},
	}
	token, err := config.Token(context.WithValue(r.t.Context(), oauth2.HTTPClient, as))
	if err != nil {
		return "", err
	}
	return token.AccessToken, nil
}

func (r *rotating) as(dir string) *http.Client {
	r.t.Helper()
	id, err := identity.Load(dir)
	if err != nil {
		r.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: id.Pool(), Certificates: []tls.Certificate{id.TLS()},
	}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// verifier tells whether a token is good for orders.
type verifier func(token string) error

// oidc is a go-oidc verifier from discovery, its caches empty.
func (r *rotating) oidc() verifier {
	r.t.Helper()
	provider, err := oidc.NewProvider(oidc.ClientContext(context.Background(), r.plain), r.issuer)
	if err != nil {
		r.t.Fatal(err)
	}
	v := provider.Verifier(&oidc.Config{ClientID: "orders", SupportedSigningAlgs: []string{oidc.ES256}})
	return func(token string) error {
		_, err := v.Verify(r.t.Context(), token)
		return err
	}
}

// keyfunc is a golang-jwt verifier that fetches the JWKS as often as its max-age says.
func (r *rotating) keyfunc() verifier {
	r.t.Helper()
	keys, err := keyfunc.NewDefaultOverrideCtx(r.t.Context(), []string{r.issuer + "/.well-known/jwks.json"}, keyfunc.Override{
		Client: r.plain, RefreshInterval: time.Second, RefreshUnknownKID: rate.NewLimiter(rate.Every(time.Second), 2),
		RefreshErrorHandlerFunc: func(string) func(context.Context, error) { return func(context.Context, error) {} },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	parser := gojwt.NewParser(gojwt.WithValidMethods([]string{"ES256"}), gojwt.WithIssuer(r.issuer), gojwt.WithAudience("orders"),
		gojwt.WithExpirationRequired())
	return func(token string) error {
		_, err := parser.Parse(token, keys.Keyfunc)
		return err
	}
}

// traffic is what was obtained and verified so far.
type traffic struct {
	mu       sync.Mutex
	obtained map[string]int    // by kid
	first    map[string]string // the first token of each kid, verified again and again to the end
	checks   int
	failures []string
}

func (f *traffic) failed(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.failures) < 20 {
		f.failures = append(f.failures, time.Now().Format(time.StampMilli)+" "+what+": "+err.Error())
	}
}

// add notes a new token and gives the tokens to verify now.
func (f *traffic) add(token, kid string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.obtained[kid]++
	if f.first[kid] == "" {
		f.first[kid] = token
	}
	tokens := []string{token}
	for _, old := range f.first {
		tokens = append(tokens, old)
	}
	f.checks += len(tokens)
	return tokens
}

func (f *traffic) of(kid string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.obtained[kid]
}

func (f *traffic) kids() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.obtained)
}

// flow obtains and verifies until ctx ends.
func (r *rotating) flow(ctx context.Context, f *traffic, obtain func() (string, error), verifiers map[string]verifier) {
	for ctx.Err() == nil {
		generation := r.restarts.Load()
		token, err := obtain()
		if err != nil {
			if generation%2 == 0 && r.restarts.Load() == generation {
				f.failed("obtain", err)
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		for _, each := range f.add(token, kidOf(r.t, token)) {
			for name, verify := range verifiers {
				if err := verify(each); err != nil {
					f.failed(name, err)
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func kidOf(t *testing.T, token string) string {
	parsed, err := jwt.Parse(token)
	if err != nil {
		t.Error(err)
		return ""
	}
	return parsed.KID
}

// quick is rotation as fast as tests may have it.
func quick() []string { return []string{"COUNTERSIGN_TOKEN_LEAD=2s", "COUNTERSIGN_TOKEN_ROTATE=10s"} }

// newRotating starts a daemon with a policy, in which IDP is the issuer of user tokens, and enrols the services that it is
// to have clients for.
func newRotating(t *testing.T, policy string, env []string, services ...string) (*rotating, map[string]*http.Client) {
	t.Helper()
	users, err := newIDP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(users.Close)
	i := newInstance(t, raceBinary(t), env...)
	i.apply(t, strings.ReplaceAll(policy, "IDP", users.URL))
	r := &rotating{instance: i, t: t, issuer: "https://localhost:" + i.port(), dirs: map[string]string{}}
	clients := map[string]*http.Client{}
	for _, service := range services {
		r.dirs[service] = i.join(t, service)
		clients[service] = r.as(r.dirs[service])
	}
	r.plain = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: clients["gateway"].Transport.(*http.Transport).TLSClientConfig.RootCAs,
	}}}
	t.Cleanup(r.plain.CloseIdleConnections)
	if r.user, err = users.token(); err != nil {
		t.Fatal(err)
	}
	return r, clients
}

// until waits for a state that must come about.
func (r *rotating) until(what string, f *traffic, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.mu.Lock()
			defer f.mu.Unlock()
			r.t.Fatalf("%s does not come about: %v, %v\n%s", what, f.obtained, f.failures, r.logText())
		}
	}
}

// active is the kid that signs ES256 now.
func (r *rotating) active() string {
	r.t.Helper()
	var keys wire.Keys
	r.ask(r.t, &keys, "key", "list")
	i := slices.IndexFunc(keys.Keys, func(k wire.Key) bool { return k.Purpose == "token" && k.Alg == "ES256" && k.State == "active" })
	if i < 0 {
		r.t.Fatalf("no key signs: %+v", keys)
	}
	return keys.Keys[i].ID
}

// Foreign programs obtain and verify tokens through a rotation by command, a restart and a rotation by schedule. There is
// a schedule from the restart on only: on a busy machine it would come before the command, which is refused then.
func TestRotationUnderLoad(t *testing.T) {
	r, clients := newRotating(t, rotationPolicy, []string{"COUNTERSIGN_TOKEN_LEAD=2s"}, "gateway", "orders")
	f := &traffic{obtained: map[string]int{}, first: map[string]string{}}
	verifiers := map[string]verifier{"go-oidc": r.oidc(), "keyfunc": r.keyfunc()}
	ctx, stop := context.WithCancel(t.Context())
	var flows sync.WaitGroup
	defer flows.Wait()
	defer stop()
	obtain := func() (string, error) { return r.exchange(clients["gateway"], r.user, "orders") }
	for range 2 {
		flows.Go(func() { r.flow(ctx, f, obtain, verifiers) })
	}
	first := r.active()
	r.until("traffic", f, func() bool { return f.of(first) > 4 })
	r.run(t, "key", "rotate", "token")
	r.until("the rotation by command", f, func() bool { return f.kids() >= 2 })
	second := r.active()
	r.until("traffic with the second key", f, func() bool { return f.of(second) > 10 })

	r.restarts.Add(1)
	r.stop(t, syscall.SIGTERM)
	r.env = quick()
	r.start(t)
	r.restarts.Add(1)
	seen := f.kids()
	r.until("the rotation by schedule", f, func() bool { return f.kids() > seen })
	third := r.active()
	r.until("traffic with the third key", f, func() bool { return f.of(third) > 10 })
	stop()
	flows.Wait()
	if len(f.failures) > 0 {
		t.Errorf("failures:\n%s", strings.Join(f.failures, "\n"))
	}
	t.Logf("%v tokens obtained by key, %d verified by each of %d", f.obtained, f.checks, len(verifiers))
}

// --now promises that what is signed from then on verifies where nothing is cached; retire --compromised that what the
// key signed is refused there, and by ourselves as a subject token, at once.
func TestRotateNowAndRetire(t *testing.T) {
	r, clients := newRotating(t, rotationPolicy, quick(), "gateway", "orders")
	obtain := func() string {
		t.Helper()
		token, err := r.exchange(clients["gateway"], r.user, "orders")
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	before := obtain()
	r.run(t, "key", "rotate", "token", "--now")
	after := obtain()
	leaked := kidOf(t, after)
	if leaked == kidOf(t, before) {
		t.Error("the old key signs after --now")
	}
	for name, token := range map[string]string{"before": before, "after": after} {
		if err := r.oidc()(token); err != nil {
			t.Errorf("a token of %s --now at a fresh verifier: %v", name, err)
		}
	}
	if _, err := r.exchange(clients["orders"], after, "inventory"); err != nil {
		t.Fatalf("the token before its key is retired: %v", err)
	}
	tag := r.etag()
	r.run(t, "key", "retire", leaked, "--compromised")
	if r.etag() == tag {
		t.Error("the JWKS has the same entity tag as before")
	}
	for name, verify := range map[string]verifier{"go-oidc": r.oidc(), "keyfunc": r.keyfunc()} {
		if err := verify(after); err == nil {
			t.Errorf("%s takes a token of the retired key", name)
		}
		if err := verify(obtain()); err != nil {
			t.Errorf("%s refuses a new token: %v", name, err)
		}
		if err := verify(before); err != nil {
			t.Errorf("%s refuses a token of the key before: %v", name, err)
		}
	}
	_, err := r.exchange(clients["orders"], after, "inventory")
	var refused *oauth2.RetrieveError
	if !errors.As(err, &refused) || refused.ErrorCode != "invalid_request" {
		t.Errorf("as a subject token it is answered with %v", err)
	}
	if _, err := r.exchange(clients["orders"], obtain(), "inventory"); err != nil {
		t.Errorf("a new token as a subject token: %v", err)
	}
}

func (r *rotating) etag() string {
	r.t.Helper()
	response, err := r.plain.Get(r.issuer + "/.well-known/jwks.json")
	if err != nil {
		r.t.Fatal(err)
	}
	defer response.Body.Close()
	return response.Header.Get("ETag")
}
