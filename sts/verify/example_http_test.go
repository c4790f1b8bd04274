package verify_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/countersign/countersign/sts/jwt"
	"github.com/countersign/countersign/sts/verify"
)

// example is an authority, a CA for client certificates, and what a request with these headers gets from a handler.
type example struct {
	*authority
	pki *pki
}

func newExample() (*example, func()) {
	e := &example{authority: newAuthority(), pki: newPKI()}
	return e, e.Close
}

func (e *example) token(change func(map[string]any)) string {
	c := e.claims(time.Now())
	if change != nil {
		change(c)
	}
	token, err := jwt.Sign(e.key, "ES256", "k1", "at+jwt", c)
	if err != nil {
		panic(err)
	}
	return token
}

func show(h http.Handler, r *http.Request) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	fmt.Println(w.Code)
	for _, challenge := range w.Header().Values("WWW-Authenticate") {
		fmt.Println(" ", challenge)
	}
	if w.Code == http.StatusOK {
		fmt.Println(" ", w.Body)
	}
}

// A whole service: every request needs a token, and its metadata tells clients where to get one.
func ExampleVerifier_Middleware() {
	authority, end := newExample()
	defer end()

	v, err := verify.New(verify.Config{
		Issuer:   authority.URL,
		Audience: "inventory",
		Roots:    authority.roots(),
		URL:      "https://inventory.shop.internal",
		Scopes:   []string{"stock:read"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	stock := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := verify.FromContext(r.Context())
		fmt.Fprintf(w, "for %s, asked by %s, transaction %s", claims.User(), claims.Actor(), claims.Transaction)
	})
	mux := http.NewServeMux()
	mux.Handle(v.MetadataPath(), v.Metadata())
	mux.Handle("/", v.Middleware(stock))

	r := httptest.NewRequest(http.MethodGet, "/stock", nil)
	show(mux, r)
	r.Header.Set("Authorization", "Bearer "+authority.token(nil))
	show(mux, r)
	// Output:
	// 401
	//   Bearer resource_metadata="https://inventory.shop.internal/.well-known/oauth-protected-resource"
	// 200
	//   for alice, asked by spiffe://shop.internal/orders, transaction t1
}

// Each route says which scopes it needs.
func ExampleVerifier_RequireScope() {
	authority, end := newExample()
	defer end()
	v, err := verify.New(verify.Config{Issuer: authority.URL, Audience: "inventory", Roots: authority.roots()})
	if err != nil {
		fmt.Println(err)
		return
	}
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "done") })

	mux := http.NewServeMux()
	mux.Handle("GET /stock", v.RequireScope("stock:read")(ok))
	mux.Handle("DELETE /stock", v.RequireScope("stock:read", "stock:delete")(ok))

	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		r := httptest.NewRequest(method, "/stock", nil)
		r.Header.Set("Authorization", "Bearer "+authority.token(nil))
		show(mux, r)
	}
	// Output:
	// 200
	//   done
	// 403
	//   Bearer error="insufficient_scope", scope="stock:read stock:delete"
}

// Tokens that are bound to the caller's certificate (token: {bind: mtls} in the policy) need nothing but a server that asks for
// client certificates and verifies them.
func ExampleVerifier_VerifyRequest() {
	authority, end := newExample()
	defer end()
	v, err := verify.New(verify.Config{Issuer: authority.URL, Audience: "inventory", Roots: authority.roots()})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, err := v.VerifyRequest(r)
		if err != nil {
			v.Refuse(w, err)
			return
		}
		fmt.Fprint(w, "for ", claims.User())
	})
	server := httptest.NewUnstartedServer(handler)
	server.TLS = &tls.Config{
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  authority.pki.pool(), // ca.crt of the identity directory
	}
	server.StartTLS()
	defer server.Close()

	own := authority.pki.client(time.Now(), orders)
	token := authority.token(func(c map[string]any) { c["cnf"] = map[string]any{"x5t#S256": thumbprint(own)} })
	for _, certificate := range []tls.Certificate{own, authority.pki.client(time.Now(), gateway)} {
		client := server.Client()
		client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
		client.CloseIdleConnections()
		r, err := http.NewRequest(http.MethodGet, server.URL, nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(r)
		if err != nil {
			fmt.Println(err)
			return
		}
		resp.Body.Close()
		fmt.Printf("%d %q\n", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
	}
	// Without the connection the same token says nothing about who sent it.
	_, err = v.Verify(context.Background(), token)
	var refused *verify.Error
	fmt.Println(errors.As(err, &refused) && refused.Reason == verify.ReasonBinding)
	// Output:
	// 200 ""
	// 401 "Bearer error=\"invalid_token\""
	// true
}

// The service at which users' requests enter verifies the access tokens of the identity provider, also those that are bound to
// the client's key by DPoP.
func ExampleNewExternal() {
	idp, end := newExample()
	defer end()

	v, err := verify.NewExternal(verify.Config{
		Issuer:   idp.URL,
		Audience: "shop-web",
		Roots:    idp.roots(),
		URL:      "https://shop.example/api", // where clients see what is "/" here
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	handler := v.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := verify.FromContext(r.Context())
		fmt.Fprint(w, "for ", claims.User())
	}))

	claims := idp.userClaims(time.Now())
	claims["cnf"] = map[string]any{"jkt": jkt(proofKey().Public())}
	token, err := jwt.Sign(idp.key, "ES256", "k1", "at+jwt", claims)
	if err != nil {
		fmt.Println(err)
		return
	}
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	show(handler, r)
	r.Header.Set("Authorization", "DPoP "+token)
	r.Header.Set("DPoP", newProof(token).sign(nil)) // made by the client, with its key
	show(handler, r)
	show(handler, r) // the same proof again
	// Output:
	// 401
	//   Bearer error="invalid_token", resource_metadata="https://shop.example/.well-known/oauth-protected-resource/api"
	//   DPoP error="invalid_token", algs="ES256 ES384 EdDSA PS256 RS256", resource_metadata="https://shop.example/.well-known/oauth-protected-resource/api"
	// 200
	//   for ana
	// 401
	//   DPoP error="invalid_dpop_proof", algs="ES256 ES384 EdDSA PS256 RS256", resource_metadata="https://shop.example/.well-known/oauth-protected-resource/api"
}
