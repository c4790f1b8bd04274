package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// token is a machine's, for orders.
func (k *kit) machineToken(c *http.Client) string {
	k.Helper()
	got := k.send(c, http.MethodPost, k.url+"/oauth2/token", machineForm().Encode(), "Content-Type", wire.Form)
	var token wire.Token
	if err := json.Unmarshal([]byte(got.body), &token); err != nil || token.AccessToken == "" {
		k.Fatalf("%d %s", got.status, got.body)
	}
	return token.AccessToken
}

func (k *kit) post(c *http.Client, path, token string) reply {
	k.Helper()
	return k.send(c, http.MethodPost, k.url+path, url.Values{"token": {token}}.Encode(), "Content-Type", wire.Form)
}

// RFC 7009 and RFC 7662 on the wire, and the feed.
func TestRevocationOnTheWire(t *testing.T) {
	k := newKit(t, kitOptions{})
	reports, orders, inventory := k.raw(k.join("reports")), k.raw(k.join("orders")), k.raw(k.join("inventory"))
	viewer, nobody := k.raw(k.operator("vera", countersign.RoleViewer)), k.raw(nil)
	token := k.machineToken(reports)

	for name, c := range map[string]*http.Client{"audience": orders, "client": reports, "viewer": viewer} {
		got := k.post(c, "/oauth2/introspect", token)
		var answer wire.Introspection
		if err := json.Unmarshal([]byte(got.body), &answer); err != nil || got.status != 200 || !answer.Active || answer.ClientID != "spiffe://shop.internal/reports" ||
			answer.TokenType != "Bearer" || answer.Audience != "orders" || answer.Txn == "" || answer.Expires == 0 {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != wire.JSON {
			t.Errorf("%s: %v", name, got.header)
		}
	}
	if got := k.post(inventory, "/oauth2/introspect", token); got.status != 200 || got.body != "{\"active\":false}\n" {
		t.Errorf("a bystander: %d %s", got.status, got.body)
	}
	if got := k.post(nobody, "/oauth2/introspect", token); got.status != 401 || !strings.Contains(got.body, "invalid_client") {
		t.Errorf("nobody: %d %s", got.status, got.body)
	}

	feed := k.send(nobody, http.MethodGet, k.url+"/oauth2/revocations", "")
	if feed.status != 200 || feed.header.Get("Content-Type") != "application/jwt" || feed.header.Get("Cache-Control") != "public, max-age=1" ||
		feed.header.Get("ETag") == "" || feed.header.Get("Pragma") != "" || strings.Count(feed.body, ".") != 2 {
		t.Errorf("%d %v %s", feed.status, feed.header, feed.body)
	}
	if got := k.send(nobody, http.MethodGet, k.url+"/oauth2/revocations?since=0", "", "If-None-Match", feed.header.Get("ETag")); got.status != http.StatusNotModified {
		t.Errorf("unchanged: %d", got.status)
	}
	for _, since := range []string{"-1", "x", "", "1.0", "%2B1", "0&since=0", "99999999999999999999", "%zz"} {
		if got := k.send(nobody, http.MethodGet, k.url+"/oauth2/revocations?since="+since, ""); got.status != 400 || got.code() != countersign.CodeParameter {
			t.Errorf("since=%s: %d %s", since, got.status, got.body)
		}
	}

	if got := k.post(orders, "/oauth2/revoke", token); got.status != 400 || !strings.Contains(got.body, "invalid_grant") {
		t.Errorf("another client: %d %s", got.status, got.body)
	}
	for range 2 {
		if got := k.post(reports, "/oauth2/revoke", token); got.status != 200 || got.body != "" || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("its client: %d %s", got.status, got.body)
		}
	}
	if got := k.post(reports, "/oauth2/revoke", feed.body); got.status != 400 || !strings.Contains(got.body, "unsupported_token_type") {
		t.Errorf("the feed: %d %s", got.status, got.body)
	}
	if got := k.post(orders, "/oauth2/introspect", token); got.body != "{\"active\":false}\n" {
		t.Errorf("afterwards: %s", got.body)
	}
	k.clock.turn(1e9)
	if got := k.send(nobody, http.MethodGet, k.url+"/oauth2/revocations", "", "If-None-Match", feed.header.Get("ETag")); got.status != 200 || len(got.body) <= len(feed.body) {
		t.Errorf("changed: %d %s", got.status, got.body)
	}
}

// The forms are as strict as the token endpoint's.
func TestRevocationForms(t *testing.T) {
	k := newKit(t, kitOptions{})
	c := k.raw(k.join("reports"))
	for _, path := range []string{"/oauth2/revoke", "/oauth2/introspect", "/oauth2/backchannel-logout"} {
		name := "token"
		if strings.HasSuffix(path, "logout") {
			name = "logout_token"
		}
		for _, form := range []struct{ what, query, body string }{
			{"no token", "", "x=y"}, {"two", "", name + "=a&" + name + "=a"}, {"a secret", "", name + "=a&client_secret=s"},
			{"in the URL", "?" + name + "=a", name + "=a"}, {"no UTF-8", "", name + "=%ff"}, {"no form", "", name + "=%"},
		} {
			got := k.send(c, http.MethodPost, k.url+path+form.query, form.body, "Content-Type", wire.Form)
			if got.status != 400 || !strings.Contains(got.body, `"error":"invalid_request"`) || got.header.Get("Cache-Control") != "no-store" || got.header.Get("Pragma") != "no-cache" {
				t.Errorf("%s at %s: %d %s", form.what, path, got.status, got.body)
			}
		}
		if got := k.send(c, http.MethodGet, k.url+path, ""); got.status != http.StatusMethodNotAllowed {
			t.Errorf("GET %s: %d", path, got.status)
		}
	}
	if got := k.send(k.raw(nil), http.MethodPost, k.url+"/oauth2/backchannel-logout", "logout_token="+strings.Repeat("x", 30<<10), "Content-Type", wire.Form); got.status != http.StatusRequestEntityTooLarge {
		t.Errorf("a long logout token: %d %s", got.status, got.body)
	}
}

// Operators revoke and list; what they see has the names that the feed has not.
func TestOperatorsRevokeTokens(t *testing.T) {
	k := newKit(t, kitOptions{})
	admin := k.admin()
	made, err := admin.RevokeTokens(t.Context(), wire.TokenRevocationRequest{Subject: "alice@shop.example", Reason: "left"})
	k.must(err)
	if made.Kind != "sub" || made.Name != "alice@shop.example" || made.Value != countersign.RevokedSubject(made.Name) || made.Before.IsZero() || made.By == "" {
		t.Errorf("%+v", made)
	}
	for n := range 4 {
		_, err := admin.RevokeTokens(t.Context(), wire.TokenRevocationRequest{JTI: fmt.Sprint("j", n)})
		k.must(err)
	}
	var seen []string
	for after := ""; ; {
		page, err := admin.TokenRevocations(t.Context(), after, 2)
		k.must(err)
		for _, r := range page.Revocations {
			seen = append(seen, r.Value)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if strings.Join(seen, " ") != "j3 j2 j1 j0 "+made.Value {
		t.Errorf("%v", seen)
	}
	operator := k.raw(k.operator("otto", countersign.RoleOperator))
	for _, body := range []string{`{}`, `{"jti":"a","sub":"b"}`, `{"sid":"a"}`} {
		if got := k.send(operator, http.MethodPost, k.url+"/v1/tokens/revocations", body, "Content-Type", wire.JSON); got.status != 400 || got.code() != countersign.CodeRevocation {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	if got := k.send(operator, http.MethodGet, k.url+"/v1/tokens/revocations?after=x", ""); got.code() != countersign.CodeParameter {
		t.Errorf("%d %s", got.status, got.body)
	}
}
