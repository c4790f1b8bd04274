package countersign

import (
	"encoding/json"
	"testing"
	"time"
)

func testPolicy(t *testing.T) *Policy {
	t.Helper()
	service := func(name, dns string) Service {
		id, err := NewServiceID("shop.internal", name)
		if err != nil {
			t.Fatal(err)
		}
		return Service{ID: id, Name: name, DNS: []string{dns}}
	}
	gateway := service("gateway", "gateway.shop.internal")
	gateway.Accepts = []Accept{{Issuer: "idp", Audiences: []string{"web"}}}
	return NewPolicy(7, "shop.internal",
		[]Issuer{{Name: "idp", URL: "https://idp.example"}},
		[]Service{gateway, service("orders", "orders.shop.internal")},
		[]Call{
			{From: "gateway", To: "orders", Scopes: []Scope{{Name: "a"}, {Name: "b"}}},
			{From: "orders", To: "gateway"},
		})
}

func TestPolicyLookups(t *testing.T) {
	p := testPolicy(t)
	if i, ok := p.Issuer("https://idp.example"); !ok || i.Name != "idp" {
		t.Error(i, ok)
	}
	for _, url := range []string{"", "idp", "https://idp.example/", "https://IDP.example", "https://idp.example.evil"} {
		if _, ok := p.Issuer(url); ok {
			t.Errorf("%q is an issuer", url)
		}
	}
	for _, s := range []string{"spiffe://shop.internal/orders", "spiffe://other.internal/orders", "spiffe://shop.internal/operator/orders", "spiffe://shop.internal/countersign", "spiffe://shop.internal/nobody"} {
		id, err := ParseID(s)
		if err != nil {
			t.Fatal(err)
		}
		if found, ok := p.ServiceByID(id); ok != (s == "spiffe://shop.internal/orders") || ok && found.Name != "orders" {
			t.Errorf("%s: %v %v", s, found, ok)
		}
	}
	if _, ok := p.ServiceByID(ID{}); ok {
		t.Error("the zero ID is a service")
	}
	if s, ok := p.ServiceByDNS("orders.shop.internal"); !ok || s.Name != "orders" {
		t.Error(s, ok)
	}
	if _, ok := p.ServiceByDNS("shop.internal"); ok {
		t.Error("a part of a DNS name is a service")
	}
	c, ok := p.Call("gateway", "orders")
	if !ok || len(p.CallsFrom("gateway")) != 1 || p.CallsFrom("gateway")[0] != c || len(p.CallsFrom("nobody")) != 0 {
		t.Error(c, ok)
	}
	if _, ok := p.Call("orders", "orders"); ok {
		t.Error("a call that is not there")
	}
	if s, ok := c.Scope("b"); !ok || s != &c.Scopes[1] {
		t.Error(s, ok)
	}
	if _, ok := c.Scope("*"); ok {
		t.Error("a scope that is not there")
	}
	gateway, _ := p.Service("gateway")
	if got := gateway.AudiencesFor("idp"); len(got) != 1 || gateway.AudiencesFor("") != nil || gateway.AudiencesFor("idq") != nil {
		t.Error(got)
	}
}

func TestDurationJSON(t *testing.T) {
	b, err := json.Marshal(Duration(90 * time.Second))
	var d Duration
	if err != nil || string(b) != `"1m30s"` || json.Unmarshal(b, &d) != nil || d != Duration(90*time.Second) {
		t.Error(string(b), d, err)
	}
	for _, s := range []string{`90`, `"90"`, `"1d"`, `null x`} {
		if err := json.Unmarshal([]byte(s), &d); err == nil {
			t.Errorf("%s is a duration", s)
		}
	}
}

func TestReservedClaims(t *testing.T) {
	for _, name := range ReservedClaims() {
		if !ReservedClaim(name) {
			t.Error(name)
		}
	}
	for _, name := range []string{"Sub", "SCOPE", "act", "cnf", "ſub", "txn", "sub_iss", "typ", "scp"} {
		if !ReservedClaim(name) {
			t.Errorf("%s can be carried", name)
		}
	}
	for _, name := range []string{"email", "tenant", "name", "subs", "", "https://shop.example/tier"} {
		if ReservedClaim(name) {
			t.Errorf("%s can't be carried", name)
		}
	}
}
