package demo

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/countersign/countersign/cmd/countersign/local"
	"github.com/countersign/countersign/sts/jwt"
)

const issuerKID = "idp-1"

// Issuer is the demo's identity provider: discovery, keys, and a login that asks for no password. It serves TLS with a
// certificate of its own making, which it writes to caFile, until ctx ends.
func Issuer(ctx context.Context, out io.Writer, caFile string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	certificate, err := local.SelfSigned(caFile)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return err
	}
	mux, err := issuerRoutes("https://localhost:"+port, key)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, local.Listening+"https://localhost:"+port)
	return local.ServeTLS(ctx, listener, mux, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}})
}

func issuerRoutes(issuer string, key crypto.Signer) (*http.ServeMux, error) {
	keys, err := jwt.NewSet(jwt.PublicKey{KID: issuerKID, Alg: "ES256", Key: key.Public()})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": issuer, "jwks_uri": issuer + "/jwks", "token_endpoint": issuer + "/login"})
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(keys.JSON())
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		token, err := jwt.Sign(key, "ES256", issuerKID, "at+jwt", map[string]any{
			"iss": issuer, "sub": r.FormValue("user"), "aud": "shop-web", "scope": r.FormValue("scope"),
			"iat": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(), "jti": rand.Text(), "client_id": "shop-app",
			"email": r.FormValue("user") + "@shop.example",
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 600})
	})
	return mux, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the peer is gone; nothing to tell it
}
