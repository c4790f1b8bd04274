package echoverify_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign/sts/verify"
	"github.com/countersign/countersign/sts/verify/echoverify"
)

// An echo server that takes relay tokens for inventory. authority stands for the company's Countersign.
func Example() {
	authority := newAuthority()
	defer authority.Close()
	v, err := verify.New(verify.Config{Issuer: authority.URL, Audience: "inventory", Roots: authority.roots()})
	if err != nil {
		fmt.Println(err)
		return
	}
	e := echo.New()
	e.Use(echoverify.Middleware(v))
	e.GET("/stock", func(c echo.Context) error {
		claims, _ := echoverify.Claims(c)
		return c.String(http.StatusOK, claims.User()+" by "+claims.Actor())
	}, echoverify.RequireScope(v, "stock:read"))
	e.DELETE("/stock", func(c echo.Context) error { return c.NoContent(http.StatusNoContent) }, echoverify.RequireScope(v, "stock:delete"))

	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		r := httptest.NewRequest(method, "/stock", nil)
		r.Header.Set("Authorization", "Bearer "+authority.token())
		w := httptest.NewRecorder()
		e.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Header().Get("WWW-Authenticate"), strings.TrimSpace(w.Body.String()))
	}
	// Output:
	// 200  alice by spiffe://shop.internal/orders
	// 403 Bearer error="insufficient_scope", scope="stock:delete" Forbidden
}

func TestEcho(t *testing.T) {
	a := newAuthority()
	defer a.Close()
	v, err := verify.New(verify.Config{Issuer: a.URL, Audience: "inventory", Roots: a.roots(), URL: "https://inventory.shop.example"})
	if err != nil {
		t.Fatal(err)
	}
	e := echo.New()
	e.HTTPErrorHandler = func(err error, _ echo.Context) { t.Errorf("an error handler is asked: %v", err) }
	e.Use(echoverify.Middleware(v))
	reached := 0
	e.GET("/", func(c echo.Context) error { reached++; return c.NoContent(http.StatusOK) })
	server := httptest.NewServer(e)
	defer server.Close()
	const at = `resource_metadata="https://inventory.shop.example/.well-known/oauth-protected-resource"`
	for _, tt := range []struct {
		authorization []string
		status        int
		challenge     string
	}{
		{[]string{"Bearer " + a.token()}, 200, ""},
		{nil, 401, "Bearer " + at},
		{[]string{"Bearer " + a.token("aud", "orders")}, 401, `Bearer error="invalid_token", ` + at},
		{[]string{"Bearer x", "Bearer y"}, 400, `Bearer error="invalid_request", ` + at},
		{[]string{"Bearer " + a.token("cnf", map[string]any{"x5t#S256": "abc"})}, 401, `Bearer error="invalid_token", ` + at},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header["Authorization"] = tt.authorization
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.status || resp.Header.Get("WWW-Authenticate") != tt.challenge {
			t.Errorf("%q: %s %s", tt.authorization, resp.Status, resp.Header)
		}
	}
	if reached != 1 {
		t.Errorf("the handler was reached %d times", reached)
	}
	if _, ok := echoverify.Claims(e.NewContext(httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder())); ok {
		t.Error("claims out of nothing")
	}
}
