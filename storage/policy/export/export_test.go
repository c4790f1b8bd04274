package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/policy"
)

var update = flag.Bool("update", false, "rewrite the golden files: go test ./storage/policy/export -update")

const document = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: https://idp.shop.example, scopes: [shop.read, shop.write, "orders:read"]}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: [shop-web, shop-app]}]}
  - {name: orders, dns: [orders.shop.internal]}
  - {name: inventory}
  - {name: stock-sync}
  - {name: default}
  - {name: retired}
  - {name: default-deny}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read", {name: "orders:write", needs: [shop.write]}, {name: hello, needs: any-user}]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read", "orders:write"]}]}
  - {from: stock-sync, to: inventory, scopes: ["stock:write"], machine: ["stock:write"]}
  - {from: default, to: inventory}
  - {from: gateway, to: stock-sync}
  - {from: retired, to: orders}
  - {from: orders, to: retired}
`

// shop is the document's policy; one call has a condition that tries to leave its comment, one service is disabled.
func shop(t testing.TB) *countersign.Policy {
	t.Helper()
	p, faults := policy.Parse([]byte(document), policy.Env{TrustDomain: "shop.internal"})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	for i := range p.Calls {
		if p.Calls[i].From == "orders" && p.Calls[i].To == "inventory" {
			p.Calls[i].When = "subject.tenant != \"trial\"\n  && true # \u2028allow: all"
		}
	}
	service, _ := p.Service("retired")
	service.Disabled = &countersign.Disabled{Reason: "gone"}
	bound, _ := p.Service("inventory")
	bound.Bind = countersign.BindMTLS
	return p
}

func options() Options {
	return Options{Issuer: "https://countersign.shop.internal", Namespace: "shop", Port: 8443}
}

func exported(t testing.TB, format string) []byte {
	t.Helper()
	out, err := Export(shop(t), format, options())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGolden(t *testing.T) {
	for _, format := range Formats() {
		got := exported(t, format)
		path := filepath.Join("testdata", format+".golden")
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
}

func TestExportRefuses(t *testing.T) {
	for _, format := range []string{"istio", "envoy"} {
		if _, err := Export(shop(t), format, Options{}); !errors.Is(err, ErrIssuer) {
			t.Errorf("%s without an issuer: %v", format, err)
		}
	}
	for _, o := range []Options{
		{Principal: "*"}, {Principal: "{name}*"}, {Principal: "*/{name}"}, {Principal: "cluster.local/ns/{namespace}/sa/default"},
		{Principal: "{NAME}"}, {Principal: "{namespace}/{name}", Namespace: "*"},
	} {
		o.Issuer = options().Issuer
		if out, err := Export(shop(t), "istio", o); !errors.Is(err, ErrPrincipal) || out != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := Export(shop(t), "terraform", options()); err == nil {
		t.Error("an unknown format is taken")
	}
}

// No format has a call of a disabled service, and every condition is told of where it is not enforced.
func TestNothingIsWiderInSilence(t *testing.T) {
	for _, format := range Formats() {
		text := string(exported(t, format))
		for _, line := range strings.Split(text, "\n") {
			comment := strings.HasPrefix(strings.TrimSpace(line), "#") || strings.HasPrefix(strings.TrimSpace(line), "%%")
			if !comment && format != "mermaid" && strings.Contains(line, "retired") {
				t.Errorf("%s has a disabled service: %s", format, line)
			}
			if !comment && format != "mermaid" && strings.Contains(line, "allow: all") {
				t.Errorf("%s lets a condition out of its comment: %s", format, line)
			}
		}
		if !strings.Contains(text, "tenant") || format != "mermaid" && !strings.Contains(text, "NOT CHECKED HERE: when") {
			t.Errorf("%s does not tell of the condition", format)
		}
	}
}

// documents decodes each document of a stream, strictly, into a T.
func documents[T any](t *testing.T, text []byte) []T {
	t.Helper()
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	var all []T
	for {
		var v T
		err := decoder.Decode(&v)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		all = append(all, v)
	}
}

type meta struct{ Name, Namespace string }

type labels struct {
	MatchLabels      map[string]string `yaml:"matchLabels"`
	MatchExpressions []struct {
		Key, Operator string
		Values        []string
	} `yaml:"matchExpressions"`
}

type peer struct {
	PodSelector       *labels `yaml:"podSelector"`
	NamespaceSelector *labels `yaml:"namespaceSelector"`
}

type port struct {
	Protocol string
	Port     int
}

// networkPolicy is networking.k8s.io/v1 as far as it is used: another key is an error.
type networkPolicy struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   meta
	Spec       struct {
		PodSelector *labels  `yaml:"podSelector"`
		PolicyTypes []string `yaml:"policyTypes"`
		Ingress     []struct {
			From  []peer
			Ports []port
		}
		Egress []struct {
			To    []peer
			Ports []port
		}
	}
}

// edges lists what a format allows: caller and callee.
func edges(p *countersign.Policy, which func(*countersign.Call) bool) []string {
	var out []string
	for _, c := range p.Calls {
		if c.From != "retired" && c.To != "retired" && which(&c) {
			out = append(out, c.From+" -> "+c.To)
		}
	}
	slices.Sort(out)
	return out
}

func all(*countersign.Call) bool { return true }

func TestKubernetesAllowsTheCallsAndNoMore(t *testing.T) {
	var in, out []string
	policies := documents[networkPolicy](t, exported(t, "kubernetes"))
	names := map[string]bool{}
	for _, p := range policies {
		if names[p.Metadata.Name] {
			t.Errorf("two policies are called %s: the later one would replace the other", p.Metadata.Name)
		}
		names[p.Metadata.Name] = true
		if p.APIVersion != "networking.k8s.io/v1" || p.Kind != "NetworkPolicy" || p.Metadata.Namespace != "shop" || p.Spec.PodSelector == nil {
			t.Fatalf("%+v", p)
		}
		me := p.Spec.PodSelector.MatchLabels["app"]
		for _, rule := range p.Spec.Ingress {
			if len(rule.From) == 0 || len(rule.Ports) == 0 {
				t.Errorf("%s: a rule for everybody: %+v", me, rule)
			}
			for _, from := range rule.From {
				if me != "countersign" {
					in = append(in, from.PodSelector.MatchLabels["app"]+" -> "+me)
				}
			}
		}
		for _, rule := range p.Spec.Egress {
			if len(rule.To) == 0 {
				t.Errorf("%s: a rule to everybody", me)
			}
			for _, to := range rule.To {
				if name := to.PodSelector.MatchLabels["app"]; name != "" && name != "countersign" {
					out = append(out, me+" -> "+name)
				}
			}
		}
	}
	slices.Sort(in)
	slices.Sort(out)
	if diff := cmp.Diff(edges(shop(t), all), in); diff != "" {
		t.Error("ingress", diff)
	}
	if diff := cmp.Diff(in, out); diff != "" {
		t.Error("egress", diff)
	}
	deny := policies[0]
	if len(deny.Spec.PodSelector.MatchLabels) != 0 || deny.Spec.Ingress != nil || deny.Spec.Egress != nil || len(deny.Spec.PolicyTypes) != 2 {
		t.Errorf("the first policy is no default deny: %+v", deny)
	}
}

// The authority is denied by default too: it needs DNS, and its issuers' addresses are asked for.
func TestKubernetesAuthority(t *testing.T) {
	none := countersign.NewPolicy(1, "shop.internal", nil, nil, nil)
	off := countersign.NewPolicy(1, "shop.internal", nil, []countersign.Service{{Name: "a", Disabled: &countersign.Disabled{}}}, nil)
	for name, p := range map[string]*countersign.Policy{"shop": shop(t), "no services": none, "all disabled": off} {
		out, err := Export(p, "kubernetes", options())
		if err != nil {
			t.Fatal(err)
		}
		policies := documents[networkPolicy](t, out)
		authority := policies[len(policies)-1]
		if authority.Metadata.Name != "countersign.authority" || !slices.Equal(authority.Spec.PolicyTypes, []string{"Ingress", "Egress"}) {
			t.Fatalf("%s: %+v", name, authority)
		}
		if egress := authority.Spec.Egress; len(egress) != 1 || len(egress[0].To) != 1 ||
			egress[0].To[0].PodSelector.MatchLabels["k8s-app"] != "kube-dns" || !slices.Equal(egress[0].Ports, []port{{"UDP", 53}, {"TCP", 53}}) {
			t.Errorf("%s: egress %+v", name, egress)
		}
		if in := len(authority.Spec.Ingress); in != 0 && name != "shop" || in != 1 && name == "shop" {
			t.Errorf("%s: %d ingress rules", name, in)
		}
		for _, p := range policies {
			for _, rule := range p.Spec.Ingress {
				for _, from := range rule.From {
					for _, expression := range from.PodSelector.MatchExpressions {
						if len(expression.Values) == 0 {
							t.Errorf("%s: an expression without values", name)
						}
					}
				}
			}
		}
	}
	p := shop(t)
	p.Issuers = append(p.Issuers, countersign.Issuer{Name: "k8s", URL: "https://k8s.example", JWKS: "{}"},
		countersign.Issuer{Name: "other", URL: "https://other.example", JWKSURI: "https://keys.example/jwks"})
	out, err := Export(p, "kubernetes", options())
	text := string(out)
	if err != nil || !strings.Contains(text, "    # NOT ALLOWED HERE: the keys of the issuer idp, from https://idp.shop.example ") ||
		!strings.Contains(text, "other, from https://keys.example/jwks.") || strings.Contains(text, "k8s.example") {
		t.Errorf("the issuers' addresses: %v\n%s", err, text)
	}
}

// istioObject is security.istio.io/v1 as far as it is used.
type istioObject struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   meta
	Spec       struct {
		Selector *labels
		Action   string
		JWTRules []struct {
			Issuer               string
			JWKSURI              string `yaml:"jwksUri"`
			Audiences            []string
			ForwardOriginalToken bool `yaml:"forwardOriginalToken"`
		} `yaml:"jwtRules"`
		Rules []struct {
			From []struct {
				Source struct {
					Principals        []string
					RequestPrincipals []string `yaml:"requestPrincipals"`
				}
			}
			When []struct {
				Key    string
				Values []string
			}
		}
	}
}

func TestIstioAllowsTheCallsAndNoMore(t *testing.T) {
	p := shop(t)
	var bare, tokens []string
	objects := documents[istioObject](t, exported(t, "istio"))
	if deny := objects[0]; deny.Kind != "AuthorizationPolicy" || deny.Spec.Selector != nil || deny.Spec.Rules != nil || deny.Spec.Action != "" {
		t.Errorf("the first object is no default deny: %+v", deny)
	}
	for _, o := range objects[1:] {
		me := o.Spec.Selector.MatchLabels["app"]
		for _, rule := range o.Spec.JWTRules {
			if rule.Issuer != options().Issuer || rule.JWKSURI != options().Issuer+"/.well-known/jwks.json" || !slices.Equal(rule.Audiences, []string{me}) || !rule.ForwardOriginalToken {
				t.Errorf("%+v", rule)
			}
		}
		for _, rule := range o.Spec.Rules {
			source := rule.From[0].Source
			caller := strings.TrimPrefix(source.Principals[0], "shop.internal/")
			edge := caller + " -> " + me
			if source.RequestPrincipals == nil {
				bare = append(bare, edge)
				continue
			}
			tokens = append(tokens, edge)
			if len(rule.When) != 2 || rule.When[0].Values[0] != "spiffe://shop.internal/"+caller {
				t.Errorf("%s: a token of another caller would do: %+v", edge, rule.When)
			}
		}
	}
	slices.Sort(bare)
	slices.Sort(tokens)
	if diff := cmp.Diff(edges(p, func(c *countersign.Call) bool { return len(c.Scopes) == 0 }), bare); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(edges(p, func(c *countersign.Call) bool { return len(c.Scopes) > 0 }), tokens); diff != "" {
		t.Error(diff)
	}
	o := options()
	o.Principal = "cluster.local/ns/{namespace}/sa/{name}"
	out, err := Export(p, "istio", o)
	if err != nil || !strings.Contains(string(out), `principals: ["cluster.local/ns/shop/sa/gateway"]`) {
		t.Errorf("the cluster's own identities: %v", err)
	}
}

// asJSON is a YAML value as the JSON that protobuf reads.
func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
