package review

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts"
	"github.com/countersign/countersign/sts/jwt"
)

// kit is a token service on real parts, with an issuer, whose audit log is reviewed.
type kit struct {
	*testing.T
	*sts.Service
	log    *audit.Log
	policy atomic.Pointer[countersign.Policy]
	clock  atomic.Int64 // added to the wall clock
	idp    *httptest.Server
	key    *ecdsa.PrivateKey
	asked  int
}

func (k *kit) now() time.Time { return time.Now().Add(time.Duration(k.clock.Load())) }

func (k *kit) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

func newKit(t *testing.T) *kit {
	t.Helper()
	k := &kit{T: t}
	var err error
	k.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	k.must(err)
	set, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: k.key.Public()})
	k.must(err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": k.idp.URL, "jwks_uri": k.idp.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(set.JSON()) })
	k.idp = httptest.NewTLSServer(mux)
	t.Cleanup(k.idp.Close)

	dir := t.TempDir()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "db"), Now: k.now})
	k.must(err)
	t.Cleanup(func() { _ = store.Close() })
	k.log, err = audit.Open(t.Context(), audit.Config{Dir: filepath.Join(dir, "audit"), Store: store, Now: k.now, Segment: 1 << 20, Reserve: -1})
	k.must(err)
	t.Cleanup(func() { _ = k.log.Close() })
	ring, err := keyring.Open(t.Context(), keyring.Config{
		Store: store, Audit: k.log, KEK: keyring.NewKEK(), Now: k.now, Lead: time.Minute, MaxTTL: time.Hour, RotateEvery: 240 * time.Hour,
	})
	k.must(err)
	_, err = ring.Create(t.Context(), countersign.Daemon("test"), keyring.NewKey{Purpose: keyring.Token, Alg: "ES256"}, keyring.NewKey{Purpose: keyring.Token, Alg: "RS256"})
	k.must(err)
	k.use(3, nil)
	k.Service, err = sts.New(t.Context(), sts.Config{Issuer: us, Policy: k.policy.Load, Keys: ring, Audit: k.log, Store: store, Lead: time.Minute, Now: k.now})
	k.must(err)
	return k
}

// shop is the policy with the kit's issuer, changed.
func (k *kit) shop(version int, change func(p *countersign.Policy)) *countersign.Policy {
	p := shop()
	p.Issuers[0].URL, p.Issuers[0].Algorithms = k.idp.URL, []string{"ES256"}
	p.Issuers[0].CAPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.idp.Certificate().Raw}))
	if change != nil {
		change(p)
	}
	return countersign.NewPolicy(version, domain, p.Issuers, p.Services, p.Calls)
}

func (k *kit) use(version int, change func(p *countersign.Policy)) {
	k.policy.Store(k.shop(version, change))
}

func (k *kit) user(scopes string, changes map[string]any) string {
	k.Helper()
	claims := map[string]any{"iss": k.idp.URL, "sub": "ana", "aud": "web", "scope": scopes, "iat": k.now().Unix(), "exp": k.now().Unix() + 3600, "jti": fmt.Sprint(k.asked)}
	for name, value := range changes {
		claims[name] = value
	}
	token, err := jwt.Sign(k.key, "ES256", "k1", "at+jwt", claims)
	k.must(err)
	return token
}

// ask sends a request; an empty subject token is client_credentials.
func (k *kit) ask(client, subject, audience string, scopes ...string) (string, error) {
	k.asked++
	by := countersign.Caller{Method: countersign.ByCertificate, ID: id(client), Name: id(client).String(), Addr: netip.MustParseAddr("127.0.0.1"), RequestID: fmt.Sprintf("r%d", k.asked)}
	r := sts.Request{GrantType: sts.GrantClientCredentials, Scopes: scopes, Audiences: []string{audience}}
	if subject != "" {
		r.GrantType, r.SubjectToken, r.SubjectTokenType = sts.GrantExchange, subject, sts.TypeAccessToken
	}
	answer, err := k.Token(k.Context(), by, r)
	return answer.AccessToken, err
}

func (k *kit) allowed(client, subject, audience string, scopes ...string) string {
	k.Helper()
	token, err := k.ask(client, subject, audience, scopes...)
	k.must(err)
	return token
}

func (k *kit) denied(code countersign.Code, client, subject, audience string, scopes ...string) {
	k.Helper()
	if _, err := k.ask(client, subject, audience, scopes...); err == nil || countersign.AsError(err).Code != code {
		k.Fatalf("%v, want %s", err, code)
	}
}
