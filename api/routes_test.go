package api

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files: go test ./api -run 'Golden|Elsewhere' -update")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); if it is meant, run with -update and read the diff:\n%s", path, diff)
	}
}

func TestRoutesGolden(t *testing.T) {
	var b bytes.Buffer
	for _, r := range routes("") {
		b.WriteString(r.String() + "\n")
	}
	golden(t, "routes.golden", b.Bytes())
}

func TestEveryRouteNamesItsAuthentication(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range routes("/tenant") {
		if r.auth == authUnset || r.handle == nil {
			t.Errorf("%s %s names no authentication or no handler", r.method, r.path)
		}
		if r.body > 0 && r.media == "" || r.body == 0 && r.media != "" {
			t.Errorf("%s %s: a body needs a media type, and a media type a body", r.method, r.path)
		}
		if (r.method == "POST" || r.method == "PUT") && r.auth == authPublic {
			t.Errorf("%s %s changes something for everybody", r.method, r.path)
		}
		if seen[r.method+r.path] {
			t.Errorf("%s %s stands twice in the table", r.method, r.path)
		}
		seen[r.method+r.path] = true
	}
}

func TestMountRefusesARouteWithoutAuthentication(t *testing.T) {
	s := &Server{}
	if _, err := s.mount([]route{{method: "GET", path: "/x", handle: (*Server).roots}}, publicListener); err == nil {
		t.Error("a route without authentication was mounted")
	}
}

func TestMetadataPlaces(t *testing.T) {
	var got []string
	for _, r := range routes("/tenant") {
		if strings.Contains(r.path, "well-known") && strings.Contains(r.path, "configuration") || strings.Contains(r.path, "oauth-") {
			got = append(got, r.path)
		}
	}
	want := []string{
		"/.well-known/oauth-authorization-server/tenant",
		"/.well-known/openid-configuration/tenant",
		"/tenant/.well-known/openid-configuration",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
