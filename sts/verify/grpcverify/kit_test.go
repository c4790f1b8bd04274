package grpcverify_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/countersign/countersign/sts/jwt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const orders = "spiffe://shop.internal/orders"

// authority publishes metadata and keys as Countersign does, over TLS, and signs tokens with its key.
type authority struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newAuthority() *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	keys, err := jwt.NewSet(jwt.PublicKey{KID: "k1", Alg: "ES256", Key: key.Public()})
	if err != nil {
		panic(err)
	}
	a := &authority{key: key}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, a.URL, a.URL+"/jwks")
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(keys.JSON()) })
	a.Server = httptest.NewUnstartedServer(mux)
	a.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.StartTLS()
	return a
}

func (a *authority) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate())
	return pool
}

// token is one for inventory that orders got; more are further claims, in pairs.
func (a *authority) token(more ...any) string {
	now := time.Now()
	claims := map[string]any{
		"iss": a.URL, "sub": "alice", "sub_iss": "https://idp.shop.example", "aud": "inventory", "client_id": orders,
		"exp": now.Add(5 * time.Minute).Unix(), "nbf": now.Unix(), "iat": now.Unix(), "jti": "a.b", "txn": "t1", "scope": "stock:read",
		"act": map[string]any{"sub": orders},
	}
	for i := 0; i < len(more); i += 2 {
		claims[more[i].(string)] = more[i+1]
	}
	token, err := jwt.Sign(a.key, "ES256", "k1", "at+jwt", claims)
	if err != nil {
		panic(err)
	}
	return token
}
