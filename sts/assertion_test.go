package sts

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/sts/jwt"
)

const k8sURL = "https://kubernetes.default.svc"

// signerOf is a client's key with its algorithm.
type signerOf struct {
	alg, kid string
	key      crypto.Signer
}

func newSigner(t testing.TB, alg string) signerOf {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "RS256":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil || key == nil {
		t.Fatalf("a key for %s: %v", alg, err)
	}
	return signerOf{alg: alg, kid: "client-" + alg, key: key}
}

func (s signerOf) sign(t testing.TB, typ string, claims map[string]any) string {
	t.Helper()
	compact, err := jwt.Sign(s.key, s.alg, s.kid, typ, claims)
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// clientKeysOf is the JWK set that stands in the policy.
func clientKeysOf(t testing.TB, signers ...signerOf) string {
	t.Helper()
	var keys []jwt.PublicKey
	for _, s := range signers {
		keys = append(keys, jwt.PublicKey{KID: s.kid, Alg: s.alg, Key: s.key.Public()})
	}
	set, err := jwt.NewSet(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return string(set.JSON())
}

// registered is a house whose service reports has a client key, and orders is enrolled for a workload of k8s.
type registered struct {
	*house
	own, k8s signerOf
}

func openRegistered(t *testing.T) *registered {
	t.Helper()
	r := &registered{house: openHouse(t), own: newSigner(t, "ES256"), k8s: newSigner(t, "RS256")}
	r.policy.Store(r.graph().policy())
	return r
}

func (r *registered) graph() *graph {
	g := r.house.graph()
	g.issuers[0].Use, g.issuers[1].Use = countersign.UseUsers, countersign.UseUsers
	g.issuers = append(g.issuers, countersign.Issuer{
		Name: "k8s", Use: countersign.UseWorkloads, URL: k8sURL, Algorithms: []string{"RS256"}, JWKS: clientKeysOf(r.t, r.k8s),
	})
	g.service("reports").ClientKeys = clientKeysOf(r.t, r.own)
	g.service("orders").Enrol = []countersign.Enrol{{Issuer: "k8s", Subject: "system:serviceaccount:shop:orders"}}
	return g
}

// claims are those of a good assertion of reports; each has a jti of its own.
func (r *registered) claims(changes map[string]any) map[string]any {
	now := r.now().Unix()
	return with(map[string]any{
		"iss": idOf("reports").String(), "sub": idOf("reports").String(), "aud": us, "jti": random(16), "iat": now, "exp": now + 60,
	}, changes)
}

// pod are the claims of a token that kubelet projects.
func (r *registered) pod(changes map[string]any) map[string]any {
	now := r.now().Unix()
	return with(map[string]any{
		"iss": k8sURL, "sub": "system:serviceaccount:shop:orders", "aud": []string{us}, "iat": now, "nbf": now, "exp": now + 3600,
		"jti": random(16), "kubernetes.io": map[string]any{"namespace": "shop"},
	}, changes)
}

func nobody() countersign.Caller { return countersign.Caller{RequestID: "r1"} }

func (r *registered) client(by countersign.Caller, assertion string) (countersign.Caller, error) {
	return r.Client(r.t.Context(), by, Credentials{Assertion: assertion})
}

func (r *registered) denies(what, assertion string, code countersign.Code) {
	r.t.Helper()
	by, err := r.client(nobody(), assertion)
	if codeOf(err) != code || code.Info().OAuth != "invalid_client" || by != nobody() {
		r.t.Errorf("%s: %v %v, want %s", what, by, err, code)
	}
}

func TestAssertionOfEveryAlgorithm(t *testing.T) {
	r := openRegistered(t)
	for _, alg := range []string{"ES256", "ES384", "RS256", "EdDSA"} {
		own := newSigner(t, alg)
		g := r.graph()
		g.service("reports").ClientKeys = clientKeysOf(t, own)
		r.policy.Store(g.policy())
		claims := r.claims(nil)
		by, err := r.client(nobody(), own.sign(t, "client-authentication+jwt", claims))
		if err != nil || by.Method != countersign.ByAssertion || by.ID != idOf("reports") || by.Name != idOf("reports").String() ||
			by.Assertion != claims["jti"] || by.Thumbprint != [32]byte{} {
			t.Errorf("%s: %+v, %v", alg, by, err)
		}
	}
}

// What is absent from the draft's text is taken: no typ, JWT, a media type in full, aud as an array of one, no iat.
func TestAssertionForms(t *testing.T) {
	r := openRegistered(t)
	for _, typ := range []string{"JWT", "jwt", "application/client-authentication+jwt", "Client-Authentication+JWT"} {
		if _, err := r.client(nobody(), r.own.sign(t, typ, r.claims(nil))); err != nil {
			t.Errorf("typ %s: %v", typ, err)
		}
	}
	if _, err := r.client(nobody(), untyped(t, r.own, r.claims(nil))); err != nil {
		t.Errorf("no typ: %v", err)
	}
	for name, changes := range map[string]map[string]any{
		"aud as an array of one": {"aud": []string{us}},
		"no iat":                 {"iat": nil},
		"exp 5 minutes ahead":    {"exp": r.now().Unix() + 300},
		"a clock 50 s behind":    {"iat": r.now().Unix() - 110, "exp": r.now().Unix() - 50},
		"a clock 50 s ahead":     {"iat": r.now().Unix() + 50, "nbf": r.now().Unix() + 50, "exp": r.now().Unix() + 350},
		"more claims":            {"scope": "all", "act": map[string]any{"sub": "x"}, "cnf": map[string]any{"jkt": "x"}},
	} {
		if _, err := r.client(nobody(), r.own.sign(t, "JWT", r.claims(changes))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// untyped signs without a typ, as many clients do and kubelet's tokens are.
func untyped(t testing.TB, s signerOf, claims map[string]any) string {
	t.Helper()
	return signHeader(t, s, map[string]any{"alg": s.alg, "kid": s.kid}, claims)
}

func TestAssertionRefusals(t *testing.T) {
	r := openRegistered(t)
	now := r.now().Unix()
	const form, key, times, aud = countersign.CodeAssertion, countersign.CodeAssertionKey, countersign.CodeAssertionTime, countersign.CodeAssertionAud
	for name, c := range map[string]struct {
		changes map[string]any
		want    countersign.Code
	}{
		// Audience injection of private_key_jwt (OpenID Foundation, January 2025; rfc7523bis 4).
		"aud is the token endpoint":     {map[string]any{"aud": us + "/oauth2/token"}, aud},
		"aud with a trailing slash":     {map[string]any{"aud": us + "/"}, aud},
		"aud in another case":           {map[string]any{"aud": strings.ToUpper(us)}, aud},
		"aud with a port":               {map[string]any{"aud": us + ":443"}, aud},
		"aud of two":                    {map[string]any{"aud": []string{us, "https://evil.example"}}, aud},
		"aud of two, the issuer last":   {map[string]any{"aud": []string{"https://evil.example", us}}, aud},
		"aud of the issuer twice":       {map[string]any{"aud": []string{us, us}}, aud},
		"aud of none":                   {map[string]any{"aud": []string{}}, aud},
		"aud is a service":              {map[string]any{"aud": "reports"}, aud},
		"aud is the client":             {map[string]any{"aud": idOf("reports").String()}, aud},
		"no aud":                        {map[string]any{"aud": nil}, aud},
		"aud is empty":                  {map[string]any{"aud": ""}, aud},
		"aud is a number":               {map[string]any{"aud": 7}, form},
		"aud is null":                   {map[string]any{"aud": json.RawMessage("null")}, form},
		"sub of another client":         {map[string]any{"sub": idOf("orders").String()}, form},
		"no sub":                        {map[string]any{"sub": nil}, form},
		"sub is an array":               {map[string]any{"sub": []string{idOf("reports").String()}}, form},
		"iss of another client":         {map[string]any{"iss": idOf("orders").String(), "sub": idOf("orders").String()}, key},
		"iss of no client":              {map[string]any{"iss": idOf("nobody").String(), "sub": idOf("nobody").String()}, key},
		"iss of another trust domain":   {map[string]any{"iss": "spiffe://other/reports", "sub": "spiffe://other/reports"}, key},
		"iss is a name":                 {map[string]any{"iss": "reports", "sub": "reports"}, key},
		"iss of an operator":            {map[string]any{"iss": "spiffe://shop.internal/operator/ann", "sub": "spiffe://shop.internal/operator/ann"}, key},
		"iss of the authority":          {map[string]any{"iss": "spiffe://shop.internal/countersign", "sub": "spiffe://shop.internal/countersign"}, key},
		"iss is this issuer":            {map[string]any{"iss": us}, form},
		"iss is an issuer of users":     {map[string]any{"iss": r.idp.URL}, key},
		"iss is an issuer of workloads": {map[string]any{"iss": k8sURL, "sub": "system:serviceaccount:shop:orders"}, key},
		"no iss":                        {map[string]any{"iss": nil}, key},
		"iss is a number":               {map[string]any{"iss": 1}, form},
		"no exp":                        {map[string]any{"exp": nil}, form},
		"exp is a string":               {map[string]any{"exp": "1"}, form},
		"exp is negative":               {map[string]any{"exp": -1}, form},
		"expired":                       {map[string]any{"exp": now - 61}, times},
		"exp too far ahead":             {map[string]any{"exp": now + 362}, times},
		"exp in the year 9999":          {map[string]any{"exp": int64(253402300799)}, times},
		"nbf in the future":             {map[string]any{"nbf": now + 62}, times},
		"iat in the future":             {map[string]any{"iat": now + 62}, times},
		"iat is a string":               {map[string]any{"iat": "1"}, form},
		"no jti":                        {map[string]any{"jti": nil}, form},
		"jti is empty":                  {map[string]any{"jti": ""}, form},
		"jti is a number":               {map[string]any{"jti": 7}, form},
		"jti with a NUL":                {map[string]any{"jti": "a\x00b"}, form},
		"jti is too long":               {map[string]any{"jti": strings.Repeat("a", maxJTI+1)}, form},
	} {
		r.denies(name, r.own.sign(t, "JWT", r.claims(c.changes)), c.want)
	}
	other := newSigner(t, "ES256")
	other.kid = r.own.kid
	r.denies("another's key", other.sign(t, "JWT", r.claims(nil)), key)
	other.kid = "unknown"
	r.denies("an unknown kid", other.sign(t, "JWT", r.claims(nil)), key)
	for _, typ := range []string{"at+jwt", "application/at+jwt", "dpop+jwt", "logout+jwt", "txntoken+jwt", "revocations+jwt", "JOSE", "secevent+jwt"} {
		r.denies("typ "+typ, r.own.sign(t, typ, r.claims(nil)), form)
	}
	for name, compact := range map[string]string{
		"empty parts": "..", "opaque": "x", "five parts": "a.b.c.d.e", "too long": strings.Repeat("a", jwt.MaxToken+1), "dots": strings.Repeat(".", 10_000),
	} {
		r.denies(name, compact, form)
	}
	if n := r.spentRecords(); n != 0 {
		t.Errorf("%d refused assertions were recorded as used", n)
	}
}

func (r *registered) spentRecords() int {
	r.t.Helper()
	n := 0
	for _, err := range assertionsTable().All(r.t.Context(), r.Service.cfg.Store, "") {
		if err != nil {
			r.t.Fatal(err)
		}
		n++
	}
	return n
}

// RFC 8725: algorithm confusion, keys that the token brings, unknown extensions, unsigned tokens.
func TestAssertionHeaders(t *testing.T) {
	r := openRegistered(t)
	for name, c := range map[string]struct {
		header map[string]any
		want   countersign.Code
	}{
		"alg none":        {map[string]any{"alg": "none"}, countersign.CodeAssertion},
		"alg HS256":       {map[string]any{"alg": "HS256"}, countersign.CodeAssertion},
		"alg of another":  {map[string]any{"alg": "RS256"}, countersign.CodeAssertionKey},
		"jwk":             {map[string]any{"jwk": map[string]any{"kty": "EC"}}, countersign.CodeAssertion},
		"jku":             {map[string]any{"jku": "https://127.0.0.1:1/x"}, countersign.CodeAssertion},
		"x5u":             {map[string]any{"x5u": "https://127.0.0.1:1/x"}, countersign.CodeAssertion},
		"x5c":             {map[string]any{"x5c": []string{"x"}}, countersign.CodeAssertion},
		"crit":            {map[string]any{"crit": []string{"x"}, "x": 1}, countersign.CodeAssertion},
		"kid is a path":   {map[string]any{"kid": "../../dev/null"}, countersign.CodeAssertionKey},
		"kid is 4 KiB":    {map[string]any{"kid": strings.Repeat("k", 4096)}, countersign.CodeAssertion},
		"typ is a number": {map[string]any{"typ": 1}, countersign.CodeAssertion},
	} {
		header := with(map[string]any{"alg": "ES256", "kid": r.own.kid, "typ": "JWT"}, c.header)
		r.denies(name, signHeader(t, r.own, header, r.claims(nil)), c.want)
	}
	good := r.own.sign(t, "JWT", r.claims(nil))
	r.denies("no signature", good[:strings.LastIndexByte(good, '.')+1], countersign.CodeAssertion)
	r.denies("a signature cut short", good[:len(good)-2], countersign.CodeAssertionKey)
}

// Without a kid only a single key may be meant.
func TestAssertionWithoutKID(t *testing.T) {
	r := openRegistered(t)
	header := map[string]any{"alg": "ES256"}
	if _, err := r.client(nobody(), signHeader(t, r.own, header, r.claims(nil))); err != nil {
		t.Errorf("one key: %v", err)
	}
	g := r.graph()
	g.service("reports").ClientKeys = clientKeysOf(t, r.own, newSigner(t, "RS256"))
	r.policy.Store(g.policy())
	r.denies("two keys", signHeader(t, r.own, header, r.claims(nil)), countersign.CodeAssertionKey)
}

// A client whose registered keys can't be read has none.
func TestAssertionWithBrokenKeys(t *testing.T) {
	r := openRegistered(t)
	for _, text := range []string{"{", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA"}]}`} {
		g := r.graph()
		g.service("reports").ClientKeys = text
		r.policy.Store(g.policy())
		r.denies(text, r.own.sign(t, "JWT", r.claims(nil)), countersign.CodeAssertionKey)
	}
}

// A key that left the policy proves nobody, at once.
func TestAssertionKeyRotation(t *testing.T) {
	r := openRegistered(t)
	next := newSigner(t, "EdDSA")
	g := r.graph()
	g.service("reports").ClientKeys = clientKeysOf(t, next)
	r.policy.Store(g.policy())
	r.denies("the old key", r.own.sign(t, "JWT", r.claims(nil)), countersign.CodeAssertionKey)
	if _, err := r.client(nobody(), next.sign(t, "JWT", r.claims(nil))); err != nil {
		t.Error(err)
	}
}

func TestAssertionOfDisabledService(t *testing.T) {
	r := openRegistered(t)
	g := r.graph()
	g.service("reports").Disabled = &countersign.Disabled{Reason: "x"}
	r.policy.Store(g.policy())
	r.denies("disabled", r.own.sign(t, "JWT", r.claims(nil)), countersign.CodeServiceDisabled)
	r.policy.Store(countersign.NewPolicy(0, domain, nil, nil, nil))
	r.denies("no policy", r.own.sign(t, "JWT", r.claims(nil)), countersign.CodeAssertionKey)
}

// jti once: also at once from many, also after the content was signed anew or by a restarted daemon; each client has its own.
func TestAssertionReplay(t *testing.T) {
	r := openRegistered(t)
	claims := r.claims(map[string]any{"jti": "one"})
	compact := r.own.sign(t, "JWT", claims)
	const many = 16
	var won, lost int
	var mu sync.Mutex
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			_, err := r.client(nobody(), compact)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case codeOf(err) == countersign.CodeAssertionUsed:
				lost++
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won != 1 || lost != many-1 {
		t.Errorf("%d were taken and %d refused", won, lost)
	}
	r.denies("again", compact, countersign.CodeAssertionUsed)
	r.denies("signed anew", r.own.sign(t, "JWT", claims), countersign.CodeAssertionUsed)
	r.denies("with another exp", r.own.sign(t, "JWT", with(claims, map[string]any{"exp": r.now().Unix() + 200})), countersign.CodeAssertionUsed)

	again, err := New(t.Context(), r.Service.cfg.restarted())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Client(t.Context(), nobody(), Credentials{Assertion: compact}); codeOf(err) != countersign.CodeAssertionUsed {
		t.Errorf("after a restart: %v", err)
	}
	// Whatever the clock says while the assertion is valid, its record is there; then exp refuses it.
	for _, passed := range []time.Duration{59 * time.Second, 119 * time.Second, 121 * time.Second, time.Hour} {
		r.clock.Store(int64(passed))
		if _, err := r.client(nobody(), compact); err == nil {
			t.Errorf("taken again after %s", passed)
		}
	}
	r.clock.Store(0)

	g := r.graph()
	g.service("billing").ClientKeys = g.service("reports").ClientKeys
	r.policy.Store(g.policy())
	other := r.claims(map[string]any{"jti": "one", "iss": idOf("billing").String(), "sub": idOf("billing").String()})
	if by, err := r.client(nobody(), r.own.sign(t, "JWT", other)); err != nil || by.ID != idOf("billing") {
		t.Errorf("another client's same jti: %v %v", by, err)
	}
}

// restarted is the Config for a second service on the same store.
func (c Config) restarted() Config { c.Registerer = nil; return c }

// Nobody who can't sign, and nobody who names another client, uses up a jti.
func TestAssertionIsRecordedAfterVerification(t *testing.T) {
	r := openRegistered(t)
	compact := r.own.sign(t, "JWT", r.claims(nil))
	forger := newSigner(t, "ES256")
	forger.kid = r.own.kid
	claims := r.claims(map[string]any{"jti": "wanted"})
	r.denies("a forged one", forger.sign(t, "JWT", claims), countersign.CodeAssertionKey)
	if _, err := r.Client(t.Context(), nobody(), Credentials{Assertion: compact, ClientID: idOf("orders").String()}); codeOf(err) != countersign.CodeClientMismatch {
		t.Errorf("another client_id: %v", err)
	}
	if _, err := r.client(as("orders"), compact); codeOf(err) != countersign.CodeClientMismatch {
		t.Errorf("another certificate: %v", err)
	}
	for _, good := range []string{compact, r.own.sign(t, "JWT", claims)} {
		if _, err := r.client(nobody(), good); err != nil {
			t.Errorf("the rightful one: %v", err)
		}
	}
}

// A certificate of the same service next to the assertion stays: it is what tokens are bound to.
func TestAssertionNextToCertificate(t *testing.T) {
	r := openRegistered(t)
	by := as("reports")
	by.Thumbprint[0] = 7
	got, err := r.Client(t.Context(), by, Credentials{Assertion: r.own.sign(t, "JWT", r.claims(map[string]any{"jti": "j"})), ClientID: idOf("reports").String()})
	want := by
	want.Method, want.Assertion = countersign.ByAssertion, "j"
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

// A full or failing store lets nobody in.
func TestAssertionStoreFails(t *testing.T) {
	r := openRegistered(t)
	for cause, code := range map[error]countersign.Code{
		storage.ErrBusy: countersign.CodeBusy, storage.ErrUnknown: countersign.CodeUnknownOutcome,
		storage.ErrCorrupt: "", // the API's to translate
	} {
		cfg := r.Service.cfg.restarted()
		cfg.Store = refusing{cfg.Store, cause}
		s, err := New(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		by, err := s.Client(t.Context(), nobody(), Credentials{Assertion: r.own.sign(t, "JWT", r.claims(nil))})
		if err == nil || codeOf(err) != code || by != nobody() {
			t.Errorf("%v: %v %v", cause, by, err)
		}
	}
}

func TestAssertionsArePruned(t *testing.T) {
	r := openRegistered(t)
	for range 3 {
		if _, err := r.client(nobody(), r.own.sign(t, "JWT", r.claims(nil))); err != nil {
			t.Fatal(err)
		}
	}
	r.prune(t.Context())
	if n := r.spentRecords(); n != 3 {
		t.Errorf("%d records stay of 3 that are needed", n)
	}
	r.clock.Store(int64(4 * time.Minute))
	r.prune(t.Context())
	r.clock.Store(0) // now they would be seen if they were still there
	if n := r.spentRecords(); n != 0 {
		t.Errorf("%d expired records stay", n)
	}
}

// Our own tokens are addressed to services and prove no client: neither a relay token nor a machine token of the client itself.
func TestOwnTokensAreNoAssertions(t *testing.T) {
	r := openRegistered(t)
	for name, compact := range map[string]string{
		"a relay token, typ JWT":       r.must("gateway", exchangeOf(r.user(nil), "orders")).AccessToken,
		"a machine token, typ JWT":     r.must("reports", Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}).AccessToken,
		"a user's access token":        r.user(nil),
		"a user's token, typ JWT":      signerOf{"ES256", "idp-1", r.idp.key}.sign(t, "JWT", with(r.claims(nil), map[string]any{"iss": r.idp.URL})),
		"a JWT-SVID, which has no iss": r.own.sign(t, "JWT", r.claims(map[string]any{"iss": nil})),
	} {
		if by, err := r.client(nobody(), compact); err == nil || codeOf(err).Info().OAuth != "invalid_client" {
			t.Errorf("%s: %v %v", name, by, err)
		}
	}
}

func TestParseCredentials(t *testing.T) {
	good := url.Values{"client_id": {"c"}, "client_assertion": {"a.b.c"}, "client_assertion_type": {AssertionType}, "scope": {"a"}}
	if c, err := ParseCredentials(good); err != nil || c != (Credentials{ClientID: "c", Assertion: "a.b.c"}) {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := ParseCredentials(url.Values{"client_secret": {"x"}, "client_assertion": {""}, "client_assertion_type": {""}}); err != nil || c != (Credentials{Secret: true}) {
		t.Errorf("%+v, %v", c, err)
	}
	for name, form := range map[string]url.Values{
		"no type":         {"client_assertion": {"a.b.c"}},
		"only the type":   {"client_assertion_type": {AssertionType}},
		"assertion twice": {"client_assertion": {"a.b.c", "a.b.c"}, "client_assertion_type": {AssertionType}},
		"type twice":      {"client_assertion": {"a.b.c"}, "client_assertion_type": {AssertionType, AssertionType}},
		"client_id twice": {"client_id": {"a", "b"}},
		"secret twice":    {"client_secret": {"a", ""}},
		"a newline":       {"client_assertion": {"a.b.c\n"}, "client_assertion_type": {AssertionType}},
		"too long":        {"client_assertion": {strings.Repeat("a", jwt.MaxToken+1)}, "client_assertion_type": {AssertionType}},
	} {
		if c, err := ParseCredentials(form); codeOf(err) != countersign.CodeTokenRequest || c != (Credentials{}) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	for _, kind := range []string{"urn:ietf:params:oauth:client-assertion-type:saml2-bearer", "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe", "x"} {
		if _, err := ParseCredentials(url.Values{"client_assertion": {"a"}, "client_assertion_type": {kind}}); codeOf(err) != countersign.CodeAssertion {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// FuzzClientAssertion: whatever is sent, nobody is a client without the registered key, and nothing is recorded.
func FuzzClientAssertion(f *testing.F) {
	own := newSigner(f, "ES256")
	other := newSigner(f, "ES256")
	other.kid = own.kid
	claims := map[string]any{"iss": idOf("reports").String(), "sub": idOf("reports").String(), "aud": us, "jti": "j", "exp": noon.Unix() + 60}
	f.Add(other.sign(f, "JWT", claims))
	f.Add(signHeader(f, other, map[string]any{"alg": "ES256", "typ": "at+jwt"}, claims))
	f.Add("..")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	g := shop()
	g.service("reports").ClientKeys = clientKeysOf(f, own)
	policy := g.policy()
	s := &Service{cfg: Config{Issuer: us, Policy: func() *countersign.Policy { return policy }, Now: func() time.Time { return noon }}, clientKeys: &clientKeys{}}
	f.Fuzz(func(t *testing.T, compact string) {
		p, err := s.prove(t.Context(), compact)
		if err == nil || p != (proof{}) || countersign.AsError(err).Code.Info().OAuth != "invalid_client" {
			t.Errorf("%q: %+v, %v", compact, p, err)
		}
	})
}

// refusing is a store that takes nothing.
type refusing struct {
	storage.Store
	err error
}

func (r refusing) Apply(context.Context, ...storage.Op) (storage.Rev, error) {
	return 0, fmt.Errorf("apply: %w", r.err)
}

// signHeader signs with any header.
func signHeader(t testing.TB, s signerOf, header, claims map[string]any) string {
	t.Helper()
	var parts [2]string
	for i, v := range []any{header, claims} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		parts[i] = base64.RawURLEncoding.EncodeToString(text)
	}
	input := parts[0] + "." + parts[1]
	digest := sha256.Sum256([]byte(input))
	var signature []byte
	switch key := s.key.(type) {
	case *ecdsa.PrivateKey:
		x, y, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		signature = append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
	case *rsa.PrivateKey:
		var err error
		if signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:]); err != nil {
			t.Fatal(err)
		}
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(signature)
}
