package export

import (
	"slices"
	"testing"

	jwtauthn "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// filter is an HTTP filter of a document.
type filter struct {
	Name        string
	TypedConfig map[string]any `yaml:"typed_config"`
}

type envoyDocument struct {
	HTTPFilters []filter `yaml:"http_filters"`
}

// decode reads a filter by Envoy's own messages, which know every field and validate it.
func decode(t *testing.T, f filter, into interface {
	proto.Message
	ValidateAll() error
}) {
	t.Helper()
	delete(f.TypedConfig, "@type")
	if err := protojson.Unmarshal(asJSON(t, f.TypedConfig), into); err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
	if err := into.ValidateAll(); err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
}

func TestEnvoyReadsIt(t *testing.T) {
	p := shop(t)
	want := map[string][]string{"gateway": nil, "orders": {"gateway"}, "inventory": {"default", "orders", "stock-sync"}, "stock-sync": {"gateway"}, "default": nil, "default-deny": nil}
	order := []string{"gateway", "orders", "inventory", "stock-sync", "default", "default-deny"}
	docs := documents[envoyDocument](t, exported(t, "envoy"))
	if len(docs) != len(order) {
		t.Fatalf("%d documents", len(docs))
	}
	for i, doc := range docs {
		me := order[i]
		last := doc.HTTPFilters[len(doc.HTTPFilters)-1]
		var rules rbac.RBAC
		decode(t, last, &rules)
		if last.Name != "envoy.filters.http.rbac" || rules.GetRules().GetAction().String() != "ALLOW" {
			t.Errorf("%s: the last filter is %s: %s", me, last.Name, rules.GetRules().GetAction())
		}
		var callers []string
		for name, allowed := range rules.GetRules().GetPolicies() {
			callers = append(callers, name)
			principal := allowed.GetPrincipals()[0]
			call, _ := p.Call(name, me)
			if ids := principal.GetAndIds().GetIds(); len(call.Scopes) > 0 {
				//lint:ignore SA1019 its successor sourced_metadata is unknown to older Envoys, and this one is read by all
				if len(ids) != 3 || ids[1].GetMetadata().GetValue().GetStringMatch().GetExact() != "spiffe://shop.internal/"+name ||
					len(ids[2].GetOrIds().GetIds()) != len(call.Scopes) {
					t.Errorf("%s -> %s: a token of another caller, or none, would do: %v", name, me, ids)
				}
				principal = ids[0]
			}
			if principal.GetAuthenticated().GetPrincipalName().GetExact() != "spiffe://shop.internal/"+name || len(allowed.GetPrincipals()) != 1 {
				t.Errorf("%s -> %s: %v", name, me, allowed)
			}
		}
		slices.Sort(callers)
		if diff := cmp.Diff(want[me], callers); diff != "" {
			t.Errorf("%s: %s", me, diff)
		}
		if len(doc.HTTPFilters) == 2 {
			var authn jwtauthn.JwtAuthentication
			decode(t, doc.HTTPFilters[0], &authn)
			provider := authn.GetProviders()["countersign"]
			missing := authn.GetRules()[0].GetRequires().GetRequiresAny() != nil
			if !slices.Equal(provider.GetAudiences(), []string{me}) || provider.GetIssuer() != options().Issuer || !provider.GetForward() || missing != (me == "inventory") {
				t.Errorf("%s: %v", me, &authn)
			}
		}
	}
}
