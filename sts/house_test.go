package sts

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

// downURL is where nobody listens.
const downURL = "https://127.0.0.1:1"

// idp is an OIDC issuer with real TLS whose CA only the policy knows.
type idp struct {
	*httptest.Server
	key     *ecdsa.PrivateKey
	fetches atomic.Int64
}

func startIDP(t *testing.T) *idp {
	t.Helper()
	i := &idp{}
	var err error
	if i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	set, err := jwt.NewSet(jwt.PublicKey{KID: "idp-1", Alg: "ES256", Key: i.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/jwks"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { i.fetches.Add(1); _, _ = w.Write(set.JSON()) })
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	return i
}

func (i *idp) token(t *testing.T, kid string, claims map[string]any) string {
	t.Helper()
	return i.tokenOf(t, kid, "at+jwt", claims)
}

func (i *idp) tokenOf(t *testing.T, kid, typ string, claims map[string]any) string {
	t.Helper()
	compact, err := jwt.Sign(i.key, "ES256", kid, typ, claims)
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// house is the token service on its real parts.
type house struct {
	*Service
	t        *testing.T
	idp      *idp
	log      *audit.Log
	ring     *keyring.Ring
	store    storage.Store
	policy   atomic.Pointer[countersign.Policy]
	clock    atomic.Int64 // ns after noon
	registry *prometheus.Registry
}

func (h *house) now() time.Time { return noon.Add(time.Duration(h.clock.Load())) }

func (h *house) graph() *graph {
	g := shop()
	g.issuers[0].URL, g.issuers[1].URL = h.idp.URL, downURL
	g.issuers[0].CAPEM = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.idp.Certificate().Raw}))
	return g
}

func openHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, idp: startIDP(t), registry: prometheus.NewRegistry()}
	h.policy.Store(h.graph().policy())
	dir := t.TempDir()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "db"), Now: h.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if h.log, err = audit.Open(t.Context(), audit.Config{Dir: filepath.Join(dir, "audit"), Store: store, Now: h.now, Segment: 1 << 20, Reserve: -1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.log.Close() })
	if h.ring, err = keyring.Open(t.Context(), keyring.Config{
		Store: store, Audit: h.log, KEK: keyring.NewKEK(), Now: h.now, Lead: time.Minute, MaxTTL: time.Hour, RotateEvery: 24 * time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ring.Create(t.Context(), countersign.Daemon("test"),
		keyring.NewKey{Purpose: keyring.Token, Alg: "ES256"}, keyring.NewKey{Purpose: keyring.Token, Alg: "RS256"}); err != nil {
		t.Fatal(err)
	}
	h.store = store
	if h.Service, err = New(t.Context(), Config{
		Issuer: us, Policy: h.policy.Load, Keys: h.ring, Audit: h.log, Store: store, Lead: time.Minute, Now: h.now, Registerer: h.registry,
	}); err != nil {
		t.Fatal(err)
	}
	return h
}

// signedAs is a token of ours with the same claims under another type, signed by our key.
func (h *house) signedAs(typ, compact string) string {
	h.t.Helper()
	token, err := jwt.Parse(compact)
	if err != nil {
		h.t.Fatal(err)
	}
	key, signer, err := h.signer("ES256")
	if err != nil {
		h.t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(token.Payload, &claims); err != nil {
		h.t.Fatal(err)
	}
	again, err := jwt.Sign(signer, "ES256", key.ID, typ, claims)
	if err != nil {
		h.t.Fatal(err)
	}
	return again
}

// id is a user's ID token.
func (h *house) id(changes map[string]any) string {
	base := with(userClaims(), map[string]any{"iss": h.idp.URL, "exp": h.now().Unix() + 3600, "iat": h.now().Unix(), "nonce": "n", "scope": nil})
	return h.idp.tokenOf(h.t, "idp-1", "JWT", with(base, changes))
}

func (h *house) user(changes map[string]any) string {
	base := with(userClaims(), map[string]any{"iss": h.idp.URL, "exp": h.now().Unix() + 3600, "iat": h.now().Unix()})
	return h.idp.token(h.t, "idp-1", with(base, changes))
}

func as(name string) countersign.Caller {
	return countersign.Caller{Method: countersign.ByCertificate, ID: idOf(name), Name: idOf(name).String(), Serial: "0a",
		Addr: netip.MustParseAddr("127.0.0.1"), RequestID: "r1"}
}

func exchangeOf(token, audience string, scopes ...string) Request {
	r := Request{GrantType: GrantExchange, SubjectToken: token, SubjectTokenType: TypeAccessToken, Scopes: scopes}
	if audience != "" {
		r.Audiences = []string{audience}
	}
	return r
}

func (h *house) must(client string, r Request) Response {
	h.t.Helper()
	response, err := h.Token(context.Background(), as(client), r)
	if err != nil {
		h.t.Fatal(err)
	}
	return response
}

func (h *house) refuses(what string, by countersign.Caller, r Request, code countersign.Code) {
	h.t.Helper()
	response, err := h.Token(context.Background(), by, r)
	if codeOf(err) != code || response != (Response{}) {
		h.t.Errorf("%s: %v, want %s", what, err, code)
	}
}

// verified reads a token of ours by the keys that JWKS serves, as a resource server does.
func (h *house) verified(compact string) map[string]any {
	h.t.Helper()
	body, _, _ := h.JWKS()
	set, err := jwt.ParseSet(body)
	if err != nil {
		h.t.Fatal(err)
	}
	token, err := jwt.Parse(compact)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := token.Verify(set, []string{"ES256", "RS256"}); err != nil {
		h.t.Fatal(err)
	}
	claims := map[string]any{"(alg)": token.Alg, "(typ)": token.Typ}
	if err := json.Unmarshal(token.Payload, &claims); err != nil {
		h.t.Fatal(err)
	}
	return claims
}

func (h *house) records(typ string) []audit.Record {
	h.t.Helper()
	found, err := h.log.Search(context.Background(), audit.Query{Type: typ, Limit: 1000})
	if err != nil {
		h.t.Fatal(err)
	}
	return found
}
