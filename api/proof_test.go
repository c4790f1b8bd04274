package api

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

// terminator is a proxy that ends TLS connections, with a certificate of its own, and knows nothing of client certificates.
func (k *kit) terminator() *client.Client {
	k.Helper()
	target, err := url.Parse(k.url)
	k.must(err)
	behind := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: k.root(), ServerName: "localhost", Time: k.clock.now}}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: behind,
	})
	k.Cleanup(behind.CloseIdleConnections)
	k.Cleanup(proxy.Close)
	config := proxy.Client().Transport.(*http.Transport).TLSClientConfig
	c, err := client.New(client.Config{URL: proxy.URL, TLS: config})
	k.must(err)
	k.Cleanup(c.Close)
	return c
}

// prove renews id through c by a proof.
func (k *kit) prove(c *client.Client, id *identity.Identity) (*identity.Identity, error) {
	k.Helper()
	key, csr := newCSR(k.T)
	proof, err := client.Proof(id, testIssuer, []byte(csr), k.clock.now())
	k.must(err)
	got, err := c.RenewBy(k.Context(), proof, wire.CertificateRequest{CSR: csr})
	if err != nil {
		return nil, err
	}
	return k.identity(key, got), nil
}

// Behind a proxy that ends TLS a certificate renews itself by a proof, in its time and within the grace after it, along the same
// lineage as by mTLS: one that has a successor that was seen is a fork.
func TestRenewalByProof(t *testing.T) {
	k := newKit(t, kitOptions{limits: DefaultLimits()})
	c := k.terminator()
	first := k.join("orders")
	second, err := k.prove(c, first)
	k.must(err)
	record, err := k.admin().Certificate(t.Context(), first.Serial)
	k.must(err)
	if record.Successor != second.Serial {
		t.Errorf("the successor is %q, want %s", record.Successor, second.Serial)
	}
	k.clock.turn(48 * time.Hour)
	third, err := k.prove(c, second)
	k.must(err)
	_, err = k.prove(c, second) // nobody came with the third: its answer may have been lost
	k.must(err)
	_, err = k.prove(c, third) // which is superseded now
	wantAPIError(t, err, countersign.CodeRevokedPeer)
	k.clock.turn(200 * time.Hour)
	late := k.join("reports")
	k.clock.turn(97 * time.Hour)
	_, err = k.prove(c, late)
	wantAPIError(t, err, countersign.CodeExpiredPeer)
}

// A second holder of the key is found out by proofs as by certificates, and the whole lineage is blocked.
func TestForkByProof(t *testing.T) {
	k := newKit(t, kitOptions{})
	c := k.terminator()
	stolen := k.join("orders")
	next, err := k.prove(c, stolen)
	k.must(err)
	next, err = k.prove(c, next) // next was seen by that
	k.must(err)
	_, err = k.prove(c, stolen)
	wantAPIError(t, err, countersign.CodeRevokedPeer)
	_, err = k.prove(c, next)
	wantAPIError(t, err, countersign.CodeRevokedPeer)
}

// compact signs any header and claims with an EC key, as ES256 or whatever the header says.
func compact(t *testing.T, key crypto.Signer, header, claims map[string]any) string {
	t.Helper()
	part := func(m map[string]any) string {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	input := part(header) + "." + part(claims)
	sum := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key.(*ecdsa.PrivateKey), sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// Every proof that is not exactly right is refused by one code, and recorded, and a proof that was refused is not used up.
func TestBadProofs(t *testing.T) {
	k := newKit(t, kitOptions{limits: DefaultLimits()})
	c := k.terminator()
	id, other := k.join("orders"), k.join("reports")
	_, csr := newCSR(t)
	_, otherCSR := newCSR(t)
	good, err := client.Proof(id, testIssuer, []byte(csr), k.clock.now())
	k.must(err)
	header, claims := decoded(t, good)
	bad := func(in map[string]any, set map[string]any) map[string]any {
		out := maps.Clone(in)
		for name, value := range set {
			if out[name] = value; value == nil {
				delete(out, name)
			}
		}
		return out
	}
	type m = map[string]any
	now := k.clock.now().Unix()
	for name, test := range map[string]struct {
		header, claims m
		key            crypto.Signer
		csr            string
		want           countersign.Code
	}{
		"x5c":               {header: m{"x5c": []string{"AA=="}}, want: countersign.CodeProof},
		"jwk":               {header: m{"jwk": m{"kty": "EC"}}, want: countersign.CodeProof},
		"alg none":          {header: m{"alg": "none"}, want: countersign.CodeProof},
		"alg of a secret":   {header: m{"alg": "HS256"}, want: countersign.CodeProof},
		"alg of other keys": {header: m{"alg": "ES384"}, want: countersign.CodeProof},
		"RSA alg":           {header: m{"alg": "RS256"}, want: countersign.CodeProof},
		"no kid":            {header: m{"kid": nil}, want: countersign.CodeProof},
		"upper-case kid":    {header: m{"kid": "ABCDEF0123456789ABCDEF0123456789"}, want: countersign.CodeProof},
		"unknown serial":    {header: m{"kid": "00112233445566778899aabbccddeeff"}, want: countersign.CodeProof},
		"another's serial":  {header: m{"kid": other.Serial}, want: countersign.CodeProof},
		"another's key":     {key: other.Key, want: countersign.CodeProof},
		"another's ID":      {claims: m{"iss": other.ID.String(), "sub": other.ID.String()}, want: countersign.CodeProof},
		"iss is not sub":    {claims: m{"iss": other.ID.String()}, want: countersign.CodeProof},
		"no iss":            {claims: m{"iss": nil}, want: countersign.CodeProof},
		"no jti":            {claims: m{"jti": nil}, want: countersign.CodeProof},
		"no spki":           {claims: m{"spki": nil}, want: countersign.CodeProof},
		"another audience":  {claims: m{"aud": testIssuer + "/"}, want: countersign.CodeProofAudience},
		"two audiences":     {claims: m{"aud": []string{testIssuer, "https://else.where"}}, want: countersign.CodeProofAudience},
		"no exp":            {claims: m{"exp": nil}, want: countersign.CodeProofTime},
		"exp is over":       {claims: m{"exp": now - 120}, want: countersign.CodeProofTime},
		"exp is far":        {claims: m{"exp": now + 3600}, want: countersign.CodeProofTime},
		"another new key":   {csr: otherCSR, claims: m{"jti": "k"}, want: countersign.CodeProofKey},
	} {
		t.Run(name, func(t *testing.T) {
			key, request := id.Key, csr
			if test.key != nil {
				key = test.key
			}
			if test.csr != "" {
				request = test.csr
			}
			_, err := c.RenewBy(t.Context(), compact(t, key, bad(header, test.header), bad(claims, test.claims)), wire.CertificateRequest{CSR: request})
			wantAPIError(t, err, test.want)
		})
	}
	if n := len(k.records("certificate.denied")); n == 0 {
		t.Error("the refusal of a proof for another key is not recorded")
	}
	_, err = c.RenewBy(t.Context(), good, wire.CertificateRequest{CSR: csr})
	k.must(err)
	_, err = c.RenewBy(t.Context(), good, wire.CertificateRequest{CSR: csr})
	wantAPIError(t, err, countersign.CodeProofUsed)
}

func decoded(t *testing.T, token string) (header, claims map[string]any) {
	t.Helper()
	var parts [2]map[string]any
	rest := token
	for i := range parts {
		at := 0
		for at < len(rest) && rest[at] != '.' {
			at++
		}
		b, err := base64.RawURLEncoding.DecodeString(rest[:at])
		if err == nil {
			err = json.Unmarshal(b, &parts[i])
		}
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[at+1:]
	}
	return parts[0], parts[1]
}

// A proof renews and does nothing else; beside a certificate it is a second credential; disabled and revoked ones renew nothing.
func TestProofOpensNothingElse(t *testing.T) {
	k := newKit(t, kitOptions{})
	id := k.join("orders")
	_, csr := newCSR(t)
	make := func() string {
		proof, err := client.Proof(id, testIssuer, []byte(csr), k.clock.now())
		k.must(err)
		return "Bearer " + proof
	}
	for _, path := range []string{"/v1/policy", "/v1/callers", "/v1/status"} {
		if got := k.send(k.raw(nil), http.MethodGet, k.url+path, "", "Authorization", make()); got.code() != countersign.CodeWrongCredential {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	if got := k.send(k.raw(id), http.MethodPost, k.url+"/v1/certificates", "{}", "Content-Type", wire.JSON, "Authorization", make()); got.code() != countersign.CodeTwoCredentials {
		t.Errorf("beside a certificate: %d %s", got.status, got.body)
	}
	c := k.terminator()
	k.must(k.admin().DisableService(context.Background(), "orders", "test"))
	_, err := k.prove(c, id)
	wantAPIError(t, err, countersign.CodeServiceDisabled)
	k.must(k.admin().EnableService(context.Background(), "orders", "test"))
	k.must(k.admin().Revoke(t.Context(), id.Serial, "keyCompromise"))
	_, err = k.prove(c, id)
	wantAPIError(t, err, countersign.CodeRevokedPeer)
}
