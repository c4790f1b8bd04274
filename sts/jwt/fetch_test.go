package jwt

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWellKnown(t *testing.T) {
	for issuer, want := range map[string][]string{
		"https://a.example": {
			"https://a.example/.well-known/oauth-authorization-server",
			"https://a.example/.well-known/openid-configuration",
		},
		"https://a.example:8443/": {
			"https://a.example:8443/.well-known/oauth-authorization-server",
			"https://a.example:8443/.well-known/openid-configuration",
		},
		"https://a.example/realms/x": {
			"https://a.example/.well-known/oauth-authorization-server/realms/x",
			"https://a.example/.well-known/openid-configuration/realms/x",
			"https://a.example/realms/x/.well-known/openid-configuration",
		},
		"https://a.example/a%2Fb/": {
			"https://a.example/.well-known/oauth-authorization-server/a%2Fb",
			"https://a.example/.well-known/openid-configuration/a%2Fb",
			"https://a.example/a%2Fb/.well-known/openid-configuration",
		},
	} {
		if diff := cmp.Diff(want, wellKnown(issuer)); diff != "" {
			t.Errorf("%s: %s", issuer, diff)
		}
	}
}

// discovering is a Remote of an issuer with a path that has no jwks_uri configured.
func discovering(t *testing.T) *bench {
	return newBench(t, func(cfg *RemoteConfig) { cfg.Issuer += "/realms/x"; cfg.JWKSURI = "" })
}

func (b *bench) metadata(issuer string) http.HandlerFunc {
	return text(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, issuer, b.issuer.URL+"/jwks"))
}

const (
	oauthPlace  = "/.well-known/oauth-authorization-server/realms/x"
	openidPlace = "/realms/x/.well-known/openid-configuration"
)

func TestDiscovery(t *testing.T) {
	for _, place := range []string{oauthPlace, "/.well-known/openid-configuration/realms/x", openidPlace} {
		t.Run(place, func(t *testing.T) {
			b := discovering(t)
			b.issuer.serve(place, b.metadata(b.cfg.Issuer))
			b.want("k1", true)
			b.clock.add(5 * time.Minute)
			b.want("k1", true)
			if n := b.issuer.count(place); n != 1 {
				t.Errorf("discovered %d times", n)
			}
		})
	}
	t.Run("RFC 8414 comes first", func(t *testing.T) {
		b := discovering(t)
		b.issuer.serve(oauthPlace, b.metadata(b.cfg.Issuer))
		b.issuer.serve(openidPlace, b.metadata(b.cfg.Issuer))
		b.want("k1", true)
		if n := b.issuer.count(openidPlace); n != 0 {
			t.Error("OpenID was asked too")
		}
	})
	t.Run("metadata of another issuer is not used, the next place is asked", func(t *testing.T) {
		b := discovering(t)
		b.issuer.serve(oauthPlace, text(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, b.issuer.URL, b.issuer.URL+"/evil")))
		b.issuer.serve("/evil", text(keysNamed("evil")))
		b.issuer.serve(openidPlace, b.metadata(b.cfg.Issuer))
		b.want("k1", true)
		b.want("evil", false)
	})
	t.Run("the keys moved", func(t *testing.T) {
		b := discovering(t)
		b.issuer.serve(oauthPlace, b.metadata(b.cfg.Issuer))
		b.want("k1", true)
		b.issuer.serve("/jwks", http.NotFound)
		b.issuer.serve("/new", text(keysNamed("k2")))
		b.issuer.serve(oauthPlace, text(fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, b.cfg.Issuer, b.issuer.URL+"/new")))
		b.clock.add(5 * time.Minute)
		b.want("k1", true) // the fetch from the old place fails
		b.clock.add(time.Second)
		b.has("k1")
		b.want("k2", true)
	})
	t.Run("no answer ends it", func(t *testing.T) {
		b := discovering(t)
		b.issuer.serve(oauthPlace, hang)
		b.issuer.serve(openidPlace, b.metadata(b.cfg.Issuer))
		b.want("k1", false)
		if n := b.issuer.count(openidPlace); n != 0 {
			t.Error("a host that hangs was asked again")
		}
	})
}

func TestDiscoveryRefuses(t *testing.T) {
	for name, metadata := range map[string]string{
		"issuer with a slash more": `{"issuer":"ISSUER/","jwks_uri":"KEYS"}`,
		"issuer in capitals":       `{"issuer":"HTTP://127.0.0.1/realms/x","jwks_uri":"KEYS"}`,
		"issuer missing":           `{"jwks_uri":"KEYS"}`,
		"issuer twice":             `{"issuer":"x","issuer":"ISSUER","jwks_uri":"KEYS"}`,
		"issuer array":             `{"issuer":["ISSUER"],"jwks_uri":"KEYS"}`,
		"jwks_uri missing":         `{"issuer":"ISSUER"}`,
		"jwks_uri null":            `{"issuer":"ISSUER","jwks_uri":null}`,
		"jwks_uri http":            `{"issuer":"ISSUER","jwks_uri":"http://idp.example/jwks"}`,
		"jwks_uri file":            `{"issuer":"ISSUER","jwks_uri":"file:///etc/passwd"}`,
		"jwks_uri relative":        `{"issuer":"ISSUER","jwks_uri":"/jwks"}`,
		"jwks_uri with a user":     `{"issuer":"ISSUER","jwks_uri":"http://u:p@127.0.0.1/jwks"}`,
		"not JSON":                 `<html>`,
		"keys instead of metadata": keysNamed("k1"),
		"more than 256 KiB":        `{"issuer":"ISSUER","jwks_uri":"KEYS"` + strings.Repeat(" ", MaxSet) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			b := discovering(t)
			body := strings.NewReplacer("ISSUER", b.cfg.Issuer, "KEYS", b.issuer.URL+"/jwks").Replace(metadata)
			b.issuer.serve(oauthPlace, text(body))
			b.want("k1", false)
			b.wantFetches(0)
		})
	}
	t.Run("redirect", func(t *testing.T) {
		b := discovering(t)
		b.issuer.serve(oauthPlace, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/m", http.StatusFound) })
		b.issuer.serve("/m", b.metadata(b.cfg.Issuer))
		b.want("k1", false)
		if n := b.issuer.count("/m"); n != 0 {
			t.Error("a redirect was followed")
		}
	})
}

// TestTLS: a server whose certificate does not chain to the client's roots gives no keys.
func TestTLS(t *testing.T) {
	i := newIssuer(t, (*httptest.Server).StartTLS)
	i.serve("/jwks", text(keysNamed("k1")))
	redirects := i.Client()
	redirects.CheckRedirect = nil
	for name, tt := range map[string]struct {
		client *http.Client
		works  bool
	}{"its roots": {redirects, true}, "the system's roots": {nil, false}} {
		t.Run(name, func(t *testing.T) {
			r := must(NewRemote(RemoteConfig{Issuer: i.URL, JWKSURI: i.URL + "/jwks", Client: tt.client}))
			s, err := r.Set(t.Context(), "k1")
			if works := err == nil && s.Has("k1"); works != tt.works {
				t.Error(err)
			}
		})
	}
	t.Run("a client that follows redirects does not here", func(t *testing.T) {
		i.serve("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/jwks", http.StatusFound) })
		r := must(NewRemote(RemoteConfig{Issuer: i.URL, JWKSURI: i.URL + "/moved", Client: redirects}))
		if _, err := r.Set(t.Context(), "k1"); err == nil {
			t.Error("a redirect was followed")
		}
	})
	redirects.CloseIdleConnections()
}

func TestNewRemoteRefuses(t *testing.T) {
	for _, cfg := range []RemoteConfig{
		{},
		{Issuer: "idp.example"},
		{Issuer: "http://idp.example"},
		{Issuer: "http://127.0.0.1.evil.example"},
		{Issuer: "http://localhost.evil.example"},
		{Issuer: "ftp://127.0.0.1"},
		{Issuer: "https://"},
		{Issuer: "https://u@idp.example"},
		{Issuer: "https://idp.example/?a=b"},
		{Issuer: "https://idp.example/?"},
		{Issuer: "https://idp.example/#a"},
		{Issuer: "https://idp.example/#"},
		{Issuer: "https://idp.example", JWKSURI: "http://idp.example/jwks"},
		{Issuer: "https://idp.example", JWKSURI: "file:///etc/passwd"},
		{Issuer: "https://idp.example", JWKSURI: "/jwks"},
		{Issuer: "https://idp.example", Refresh: -1},
		{Issuer: "https://idp.example", Cooldown: -1},
		{Issuer: "https://idp.example", Stale: -1},
	} {
		if _, err := NewRemote(cfg); err == nil {
			t.Errorf("taken: %+v", cfg)
		}
	}
	for _, cfg := range []RemoteConfig{
		{Issuer: "https://idp.example/a", JWKSURI: "https://keys.example/jwks?tenant=a"},
		{Issuer: "http://[::1]:8080"},
		{Issuer: "http://localhost:1"},
		{Issuer: "https://idp.example", JWKSURI: "http://127.0.0.1:9/jwks"},
	} {
		if _, err := NewRemote(cfg); err != nil {
			t.Error(err)
		}
	}
	if err := checkFoundURI("http://127.0.0.1/jwks", "https://idp.example", "jwks_uri"); err == nil {
		t.Error("metadata of a remote issuer points at loopback")
	}
}
