// Package spring_test holds the example for Spring Boot to what can be held here: no Spring is fetched, so that its property names are
// compared with those that its documentation has, and its policy goes through our parser.
package spring_test

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/storage/policy"
)

// documented are the properties that the example uses, as Spring Boot's reference has them ("Common Application Properties", "SSL",
// OAuth2ResourceServerProperties, OAuth2ClientProperties; Boot 3.2 to 4.1). * is a name that the application chooses.
var documented = []string{
	"server.port",
	"server.ssl.bundle",
	"server.ssl.client-auth",
	"spring.application.name",
	"spring.config.import",
	"spring.security.oauth2.client.provider.*.token-uri",
	"spring.security.oauth2.client.registration.*.authorization-grant-type",
	"spring.security.oauth2.client.registration.*.client-authentication-method",
	"spring.security.oauth2.client.registration.*.client-id",
	"spring.security.oauth2.client.registration.*.provider",
	"spring.security.oauth2.client.registration.*.scope",
	"spring.security.oauth2.resourceserver.jwt.audiences",
	"spring.security.oauth2.resourceserver.jwt.issuer-uri",
	"spring.security.oauth2.resourceserver.jwt.jwk-set-uri",
	"spring.security.oauth2.resourceserver.jwt.jws-algorithms",
	"spring.ssl.bundle.pem.*.keystore.certificate",
	"spring.ssl.bundle.pem.*.keystore.private-key",
	"spring.ssl.bundle.pem.*.options.enabled-protocols",
	"spring.ssl.bundle.pem.*.reload-on-update",
	"spring.ssl.bundle.pem.*.truststore.certificate",
}

// properties are the values of a file by their property names, where each file stands alone.
func properties(t *testing.T, file string) map[string]any {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(body, &tree); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	found := map[string]any{}
	var walk func(prefix string, node map[string]any)
	walk = func(prefix string, node map[string]any) {
		for name, value := range node {
			if inner, ok := value.(map[string]any); ok {
				walk(prefix+name+".", inner)
			} else {
				found[prefix+name] = value
			}
		}
	}
	walk("", tree)
	return found
}

// Spring ignores a property that it does not know, so a wrong name would be a check that is not made. None is set in both files, where
// the later one would win; and all that is documented here is used.
func TestProperties(t *testing.T) {
	own, generated := properties(t, "application.yaml"), properties(t, "application-countersign.yaml")
	used := map[string]bool{}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(own)), slices.Collect(maps.Keys(generated))) {
		found := false
		for _, pattern := range documented {
			if ok, _ := path.Match(strings.ReplaceAll(pattern, ".", "/"), strings.ReplaceAll(name, ".", "/")); ok {
				found, used[pattern] = true, true
			}
		}
		if !found {
			t.Errorf("%s is no property that Spring documents", name)
		}
		if own[name] != nil && generated[name] != nil {
			t.Errorf("%s stands in both files", name)
		}
	}
	for _, pattern := range documented {
		if !used[pattern] {
			t.Errorf("%s is used by neither file", pattern)
		}
	}
}

// What the traps of docs/spring.md are about is set, and the two files fit each other and the policy.
func TestValues(t *testing.T) {
	own, generated := properties(t, "application.yaml"), properties(t, "application-countersign.yaml")
	issuer, _ := generated["spring.security.oauth2.resourceserver.jwt.issuer-uri"].(string)
	for name, want := range map[string]any{
		"spring.ssl.bundle.pem.countersign.reload-on-update": true,
		"server.ssl.bundle":      "countersign",
		"server.ssl.client-auth": "need",
		"spring.security.oauth2.resourceserver.jwt.jwk-set-uri": issuer + "/.well-known/jwks.json",
	} {
		if generated[name] != want {
			t.Errorf("%s is %v, want %v", name, generated[name], want)
		}
	}
	client := "spring.security.oauth2.client."
	for name, want := range map[string]any{
		client + "registration.inventory.client-authentication-method": "tls_client_auth",
		client + "registration.inventory.authorization-grant-type":     "urn:ietf:params:oauth:grant-type:token-exchange",
		client + "provider.countersign.token-uri":                      issuer + "/oauth2/token",
	} {
		if own[name] != want {
			t.Errorf("%s is %v, want %v", name, own[name], want)
		}
	}
}

// The policy is one that the daemon takes, its tokens are of the kind that Spring's defaults and the generated file take, and the
// scope that its client asks for leads to the service that the registration is for.
func TestPolicy(t *testing.T) {
	body, err := os.ReadFile("policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, faults := policy.Parse(body, policy.Env{TrustDomain: "shop.internal"})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	orders, ok := p.Service("orders")
	if !ok || orders.Alg != "RS256" || orders.Typ != "JWT" {
		t.Errorf("tokens for orders: %+v", orders)
	}
	generated := properties(t, "application-countersign.yaml")
	jwt := "spring.security.oauth2.resourceserver.jwt."
	if fmt.Sprint(generated[jwt+"audiences"], generated[jwt+"jws-algorithms"]) != fmt.Sprintf("[%s] [%s]", orders.Name, orders.Alg) {
		t.Errorf("the application takes %v of %v", generated[jwt+"audiences"], generated[jwt+"jws-algorithms"])
	}
	own := properties(t, "application.yaml")
	if id := own["spring.security.oauth2.client.registration.inventory.client-id"]; id != orders.ID.String() {
		t.Errorf("the client is %v", id)
	}
	// Spring sends no audience: of the calls with the scope, one is the default.
	var defaults []string
	for _, call := range p.CallsFrom("orders") {
		if call.Default {
			defaults = append(defaults, call.To)
		}
	}
	if !slices.Equal(defaults, []string{"inventory"}) {
		t.Errorf("a request without an audience leads to %v", defaults)
	}
}

// Each block of docs/spring.md stands in one of the files.
func TestDocument(t *testing.T) {
	var files strings.Builder
	paths, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, "../chain/policy.yaml") {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files.WriteString("\n" + string(body))
	}
	document, err := os.ReadFile("../../docs/spring.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(string(document), -1)
	for _, block := range found {
		if !strings.Contains(files.String(), "\n"+block[1]) {
			t.Errorf("this block of docs/spring.md stands in no file:\n%s", block[1])
		}
	}
	if len(found) == 0 || strings.Count(string(document), "```") != 2*len(found) {
		t.Errorf("docs/spring.md has %d blocks of YAML, and other fences", len(found))
	}
}
