package sts

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

func kids(t *testing.T, body []byte) map[string]bool {
	t.Helper()
	var doc struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, k := range doc.Keys {
		for _, private := range []string{"d", "p", "q", "k"} {
			if k[private] != nil {
				t.Errorf("the JWKS holds %q", private)
			}
		}
		found[k["kid"].(string)] = true
	}
	return found
}

// Whatever rotates meanwhile, the JWKS holds the key of every token that was answered.
func TestJWKSRace(t *testing.T) {
	h := openHouse(t)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				response, err := h.Token(context.Background(), as("reports"), Request{GrantType: GrantClientCredentials})
				if err != nil {
					t.Error(err)
					return
				}
				body, _, _ := h.JWKS()
				token, err := jwt.Parse(response.AccessToken)
				if err != nil || !kids(t, body)[token.KID] {
					t.Errorf("the key of an answered token is not served: %v", err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range 4 {
		if _, err := h.ring.Rotate(context.Background(), countersign.Daemon("test"), keyring.Token, keyring.RotateOptions{Now: true}); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
}

// The ring signs with a new key a moment before it tells of the change. The token of that moment finds its key as well.
func TestJWKSBeforeChangeIsTold(t *testing.T) {
	h := openHouse(t)
	untold := *h.keys.current.Load()
	untold.changed = make(chan struct{})
	h.keys.current.Store(&untold)
	if _, err := h.ring.Rotate(t.Context(), countersign.Daemon("test"), keyring.Token, keyring.RotateOptions{Now: true}); err != nil {
		t.Fatal(err)
	}
	response := h.must("reports", Request{GrantType: GrantClientCredentials})
	h.verified(response.AccessToken)
}

// The document follows the ring and the clock.
func TestJWKS(t *testing.T) {
	h := openHouse(t)
	body, etag, maxAge := h.JWKS()
	before := kids(t, body)
	if len(before) != 2 || maxAge != 30*time.Second || len(etag) < 10 || etag[0] != '"' {
		t.Fatalf("%s %s %v", body, etag, maxAge)
	}
	if again, same, _ := h.JWKS(); string(again) != string(body) || same != etag {
		t.Error("it changes by itself")
	}
	if _, err := h.ring.Rotate(t.Context(), countersign.Daemon("test"), keyring.Token, keyring.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	body, next, _ := h.JWKS()
	if both := kids(t, body); len(both) != 4 || next == etag {
		t.Fatalf("after the rotation: %s", body)
	}
	if _, err := h.keys.with("gone"); codeOf(err) != countersign.CodeNoKey {
		t.Errorf("a key that is not the ring's: %v", err)
	}
	h.clock.Add(int64(3 * time.Hour)) // nothing but the clock tells that the old keys are over
	body, _, _ = h.JWKS()
	after := kids(t, body)
	if len(after) != 2 {
		t.Errorf("the old keys do not leave by the clock: %s", body)
	}
	for kid := range before {
		if after[kid] {
			t.Errorf("the old key %s is still served", kid)
		}
	}
}

func TestMetadata(t *testing.T) {
	h := openHouse(t)
	var doc map[string]any
	if err := json.Unmarshal(h.Metadata(), &doc); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"issuer": us, "token_endpoint": us + "/oauth2/token", "jwks_uri": us + "/.well-known/jwks.json",
		"revocation_endpoint": us + "/oauth2/revoke", "introspection_endpoint": us + "/oauth2/introspect",
		"revocations_uri": us + "/oauth2/revocations", "backchannel_logout_uri": us + "/oauth2/backchannel-logout"} {
		if doc[name] != want {
			t.Errorf("%s is %v", name, doc[name])
		}
	}
	for _, name := range []string{"grant_types_supported", "token_endpoint_auth_methods_supported", "revocation_endpoint_auth_methods_supported",
		"introspection_endpoint_auth_methods_supported", "response_types_supported", "subject_types_supported"} {
		if _, ok := doc[name].([]any); !ok {
			t.Errorf("%s is %v", name, doc[name])
		}
	}
	b, err := metadata("https://h:8443/a/b")
	if err != nil || !strings.Contains(string(b), `"issuer":"https://h:8443/a/b","token_endpoint":"https://h:8443/oauth2/token"`) {
		t.Errorf("%s, %v", b, err)
	}
	for _, bad := range []string{"", "x", "%"} {
		if _, err := metadata(bad); err == nil {
			t.Errorf("%q is an issuer", bad)
		}
	}
}
