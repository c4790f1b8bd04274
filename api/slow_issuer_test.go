package api

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts"
	"github.com/countersign/countersign/sts/jwt"
)

// slowIssuer is an issuer that answers when the test says so.
type slowIssuer struct {
	*httptest.Server
	key     *ecdsa.PrivateKey
	asked   chan struct{} // something is being fetched
	release chan struct{} // and is answered
}

func newSlowIssuer(t *testing.T) *slowIssuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	s := &slowIssuer{key: key, asked: make(chan struct{}), release: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked <- struct{}{}
		<-s.release
		_, _ = w.Write(set.JSON())
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *slowIssuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	now := time.Now().Unix()
	claims["iss"], claims["iat"], claims["exp"], claims["jti"] = s.URL, now, now+600, rand.Text()
	compact, err := jwt.Sign(s.key, "ES256", "k1", "JWT", claims)
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// A client certificate is judged when the request came, and again just before a token is minted: what is revoked during the
// wait for an issuer's keys gets nothing, as subject token's client and beside an assertion.
func TestRevokedDuringTheWaitForKeys(t *testing.T) {
	for name, request := range map[string]func(s *slowIssuer) url.Values{
		"an exchange": func(s *slowIssuer) url.Values {
			return url.Values{
				"grant_type": {sts.GrantExchange}, "audience": {"orders"}, "subject_token_type": {sts.TypeAccessToken},
				"subject_token": {s.token(t, map[string]any{"sub": "alice", "aud": "web", "scope": "a"})},
			}
		},
		"beside an assertion": func(s *slowIssuer) url.Values {
			return asserted(s.token(t, map[string]any{"sub": "pod", "aud": testIssuer}))
		},
	} {
		for _, revoke := range []bool{false, true} {
			slow := newSlowIssuer(t)
			use, gateway, reports := "users", "accepts: [{issuer: slow, audiences: [web]}]", ""
			if strings.Contains(name, "assertion") {
				use, gateway, reports = "workloads", "dns: []", "enrol: [{issuer: slow, subject: pod}]"
			}
			issuer := `{name: slow, use: ` + use + `, issuer: "` + slow.URL + `", jwks_uri: "` + slow.URL + `/keys"`
			if use == "users" {
				issuer += `, subject: keep, scopes: [a]`
			}
			k := newKit(t, kitOptions{policy: `trust_domain: shop.internal
issuers: [` + issuer + `}]
services:
  - {name: gateway, ` + gateway + `}
  - {name: reports, ` + reports + `}
  - {name: orders}
calls:
  - {from: gateway, to: orders, ` + map[bool]string{true: "scopes: [a]", false: "scopes: [a], machine: [a]"}[use == "users"] + `}
  - {from: reports, to: orders, scopes: ["orders:read"], machine: ["orders:read"]}
`})
			id := k.join("gateway")
			if use == "workloads" {
				id = k.join("reports")
			}
			answer := make(chan reply)
			go func() { answer <- k.postToken(k.raw(id), request(slow)) }()
			<-slow.asked
			if revoke {
				k.must(k.admin().Revoke(t.Context(), id.Serial, "superseded"))
			}
			close(slow.release)
			got := <-answer
			switch {
			case !revoke && got.status != http.StatusOK:
				t.Errorf("%s: %d %s", name, got.status, got.body)
			case revoke && got.code() != countersign.CodeRevokedPeer:
				t.Errorf("%s: revoked meanwhile: %d %s", name, got.status, got.body)
			}
			if revoke && len(k.records("token.issued")) != 0 {
				t.Errorf("%s: a token was issued", name)
			}
		}
	}
}
