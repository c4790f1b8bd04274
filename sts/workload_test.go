package sts

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

// A workload's token, as kubelet projects it, proves the one service that the policy enrols for exactly its sub.
func TestWorkloadAssertion(t *testing.T) {
	r := openRegistered(t)
	for name, compact := range map[string]string{
		"as kubelet makes it": untyped(t, r.k8s, r.pod(nil)),
		"typ JWT":             r.k8s.sign(t, "JWT", r.pod(nil)),
		"a day ahead":         untyped(t, r.k8s, r.pod(map[string]any{"exp": r.now().Unix() + 86400})),
		"aud as a string":     untyped(t, r.k8s, r.pod(map[string]any{"aud": us})),
	} {
		by, err := r.client(nobody(), compact)
		if err != nil || by.Method != countersign.ByAssertion || by.ID != idOf("orders") || by.Assertion == "" {
			t.Errorf("%s: %+v, %v", name, by, err)
		}
	}
	if _, err := r.Client(t.Context(), nobody(), Credentials{Assertion: untyped(t, r.k8s, r.pod(nil)), ClientID: idOf("reports").String()}); codeOf(err) != countersign.CodeClientMismatch {
		t.Errorf("another client_id: %v", err)
	}
	if _, err := r.client(as("reports"), untyped(t, r.k8s, r.pod(nil))); codeOf(err) != countersign.CodeClientMismatch {
		t.Errorf("another certificate: %v", err)
	}
	if by, err := r.client(as("orders"), untyped(t, r.k8s, r.pod(nil))); err != nil || by.Serial != "0a" {
		t.Errorf("its own certificate: %v %v", by, err)
	}
}

func TestWorkloadAssertionRefusals(t *testing.T) {
	r := openRegistered(t)
	now := r.now().Unix()
	const form, key, times, aud, none = countersign.CodeAssertion, countersign.CodeAssertionKey, countersign.CodeAssertionTime,
		countersign.CodeAssertionAud, countersign.CodeWorkload
	for name, c := range map[string]struct {
		changes map[string]any
		want    countersign.Code
	}{
		"a token for the cluster":      {map[string]any{"aud": []string{k8sURL}}, aud},
		"a token for the cluster too":  {map[string]any{"aud": []string{us, k8sURL}}, aud},
		"no aud":                       {map[string]any{"aud": nil}, aud},
		"another workload":             {map[string]any{"sub": "system:serviceaccount:shop:other"}, none},
		"the sub with a suffix":        {map[string]any{"sub": "system:serviceaccount:shop:orders2"}, none},
		"the sub with a newline":       {map[string]any{"sub": "system:serviceaccount:shop:orders\n"}, none},
		"the sub in another case":      {map[string]any{"sub": "system:serviceaccount:shop:Orders"}, none},
		"another namespace":            {map[string]any{"sub": "system:serviceaccount:x:orders"}, none},
		"the sub is a service's ID":    {map[string]any{"sub": idOf("orders").String()}, none},
		"a pattern":                    {map[string]any{"sub": "system:serviceaccount:shop:*"}, none},
		"no sub":                       {map[string]any{"sub": nil}, form},
		"sub is empty":                 {map[string]any{"sub": ""}, form},
		"iss with a slash":             {map[string]any{"iss": k8sURL + "/"}, key},
		"iss is one of users":          {map[string]any{"iss": r.idp.URL}, key},
		"no exp":                       {map[string]any{"exp": nil}, form},
		"expired":                      {map[string]any{"exp": now - 61}, times},
		"good for two days":            {map[string]any{"exp": now + 2*86400}, times},
		"not yet":                      {map[string]any{"nbf": now + 62}, times},
		"issued in the future":         {map[string]any{"iat": now + 62}, times},
		"a security event":             {map[string]any{"events": map[string]any{}}, form},
		"jti is a number":              {map[string]any{"jti": 7}, form},
		"an algorithm that is not its": {nil, key},
	} {
		signer := r.k8s
		if c.changes == nil {
			signer = newSigner(t, "ES256")
			signer.kid = r.k8s.kid
		}
		r.denies(name, untyped(t, signer, r.pod(c.changes)), c.want)
	}
	r.denies("an access token", r.k8s.sign(t, "at+jwt", r.pod(nil)), form)
	r.denies("a key of a client", untyped(t, r.own, r.pod(nil)), key)
}

// A workload's token is used once too: by its jti, or without one by what it says, whatever the signature looks like.
func TestWorkloadAssertionReplay(t *testing.T) {
	r := openRegistered(t)
	signer := newSigner(t, "ES256")
	g := r.graph()
	g.issuers[2].JWKS, g.issuers[2].Algorithms = clientKeysOf(t, signer), []string{"ES256"}
	r.policy.Store(g.policy())
	for name, changes := range map[string]map[string]any{"with jti": nil, "without": {"jti": nil}} {
		claims := r.pod(changes)
		by, err := r.client(nobody(), untyped(t, signer, claims))
		if err != nil || strings.HasPrefix(by.Assertion, "sha256:") != (name == "without") {
			t.Fatalf("%s: %v %v", name, by, err)
		}
		r.denies(name+", again and signed anew", untyped(t, signer, claims), countersign.CodeAssertionUsed)
		r.clock.Store(int64(59 * time.Minute))
		r.denies(name+", an hour later", untyped(t, signer, claims), countersign.CodeAssertionUsed)
		r.clock.Store(0)
	}
}

// Of two services that are enrolled for one workload none is chosen.
func TestWorkloadOfTwoServices(t *testing.T) {
	r := openRegistered(t)
	g := r.graph()
	g.service("billing").Enrol = g.service("orders").Enrol
	r.policy.Store(g.policy())
	r.denies("ambiguous", untyped(t, r.k8s, r.pod(nil)), countersign.CodeWorkload)
}

// An issuer of users never proves a client, even if the policy enrols its subject; and a workload's token is never a user's.
func TestIssuersOfOneUse(t *testing.T) {
	r := openRegistered(t)
	g := r.graph()
	g.service("orders").Enrol = []countersign.Enrol{{Issuer: "idp", Subject: "alice"}}
	g.service("gateway").Accepts = []countersign.Accept{{Issuer: "k8s", Audiences: []string{us}}}
	g.issuers[2].Tokens, g.issuers[2].Scopes, g.issuers[2].ScopeClaim = []string{"access"}, []string{"orders:read"}, "scope"
	r.policy.Store(g.policy())
	claims := with(r.pod(nil), map[string]any{"iss": r.idp.URL, "sub": "alice"})
	r.denies("a user", signerOf{"ES256", "idp-1", r.idp.key}.sign(t, "JWT", claims), countersign.CodeAssertionKey)
	r.refuses("a workload as a user", as("gateway"), exchangeOf(untyped(t, r.k8s, r.pod(map[string]any{"scope": "orders:read"})), "orders"), countersign.CodeSubjectIssuer)
}

// And the other way round: a client assertion is no subject token, whatever its type is called and whoever sends it.
func TestAssertionsAreNoSubjectTokens(t *testing.T) {
	r := openRegistered(t)
	for _, typ := range []string{"client-authentication+jwt", "JWT", "at+jwt"} {
		for _, kind := range []string{TypeAccessToken, TypeJWT} {
			claims := r.claims(map[string]any{"scope": "report", "txn": "t", "sub_iss": us})
			rq := Request{GrantType: GrantExchange, SubjectToken: r.own.sign(t, typ, claims), SubjectTokenType: kind, Audiences: []string{"orders"}}
			r.refuses("an assertion as "+kind+" of type "+typ, as("reports"), rq, countersign.CodeSubjectIssuer)
			rq.SubjectToken = r.own.sign(t, typ, with(claims, map[string]any{"iss": us, "aud": "reports"}))
			r.refuses("one that claims to be ours", as("reports"), rq, countersign.CodeSubjectKey)
		}
	}
}

// The keys of a workloads issuer also come by discovery, over TLS with the issuer's own CA.
func TestWorkloadKeysByDiscovery(t *testing.T) {
	r := openRegistered(t)
	g := r.graph()
	g.issuers[0].Use = countersign.UseWorkloads
	g.service("orders").Enrol = []countersign.Enrol{{Issuer: "idp", Subject: "ci"}}
	r.policy.Store(g.policy())
	claims := with(r.pod(nil), map[string]any{"iss": r.idp.URL, "sub": "ci"})
	if by, err := r.client(nobody(), signerOf{"ES256", "idp-1", r.idp.key}.sign(t, "JWT", claims)); err != nil || by.ID != idOf("orders") || r.idp.fetches.Load() != 1 {
		t.Errorf("%v %v, %d fetches", by, err, r.idp.fetches.Load())
	}
	g.issuers[1].Use = countersign.UseWorkloads // where nobody listens
	r.policy.Store(g.policy())
	claims["iss"] = downURL
	if _, err := r.client(nobody(), r.k8s.sign(t, "JWT", claims)); codeOf(err) != countersign.CodeIssuerDown {
		t.Errorf("an issuer that is down: %v", err)
	}
}

// Inlined keys are never fetched, and no metric says that they are missing.
func TestInlinedKeysAreNotFetched(t *testing.T) {
	r := openRegistered(t)
	if _, err := r.client(nobody(), untyped(t, r.k8s, r.pod(nil))); err != nil {
		t.Fatal(err)
	}
	found, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range found {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetValue() == "k8s" {
					t.Errorf("%s tells of k8s", family.GetName())
				}
			}
		}
	}
}

// What an assertion proved stands in the audit record of what was done with it.
func TestAssertionInAudit(t *testing.T) {
	r := openRegistered(t)
	by, err := r.client(nobody(), r.own.sign(t, "JWT", r.claims(map[string]any{"jti": "the jti"})))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Token(t.Context(), by, Request{GrantType: GrantClientCredentials, Audiences: []string{"orders"}}); err != nil {
		t.Fatal(err)
	}
	issued := r.records("token.issued")
	if len(issued) != 1 || issued[0].By.Method != "assertion" || issued[0].By.Assertion != "the jti" || issued[0].By.ID != idOf("reports").String() {
		t.Errorf("%+v", issued)
	}
	if text, err := json.Marshal(issued); err != nil || strings.Contains(string(text), "eyJ") {
		t.Errorf("the record holds a token: %s", text)
	}
}
