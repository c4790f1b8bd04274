package sts

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	us     = "https://cs.shop.internal"
	idpURL = "https://idp.shop.example"
	hrURL  = "https://hr.shop.example"
	domain = "shop.internal"
)

// noon is the time of the pure tests: not on a whole second, as no clock is.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 400_000_000, time.UTC)

// graph is a policy before it is indexed, so that a test can change it.
type graph struct {
	issuers  []countersign.Issuer
	services []countersign.Service
	calls    []countersign.Call
	maxHops  int // 0: the default
}

func (g *graph) service(name string) *countersign.Service {
	for i := range g.services {
		if g.services[i].Name == name {
			return &g.services[i]
		}
	}
	panic("no service " + name)
}

func (g *graph) call(from, to string) *countersign.Call {
	for i := range g.calls {
		if g.calls[i].From == from && g.calls[i].To == to {
			return &g.calls[i]
		}
	}
	panic("no call " + from + " -> " + to)
}

func (g *graph) policy() *countersign.Policy {
	p := countersign.NewPolicy(7, domain, g.issuers, g.services, g.calls)
	if g.maxHops > 0 {
		p.MaxHops = g.maxHops
	}
	return p
}

func idOf(name string) countersign.ID {
	id, err := countersign.NewServiceID(domain, name)
	if err != nil {
		panic(err)
	}
	return id
}

func newService(name string) countersign.Service {
	return countersign.Service{
		ID: idOf(name), Name: name, DNS: []string{name + ".shop.internal"}, KeyTypes: []string{"P-256"}, Alg: "ES256", Typ: "at+jwt",
	}
}

func needing(name string, needs ...string) countersign.Scope {
	return countersign.Scope{Name: name, Needs: needs}
}

func fiveMinutes() countersign.Duration { return countersign.Duration(5 * time.Minute) }

// shop is the policy of policy.md, and some more edges.
func shop() *graph {
	g := &graph{
		issuers: []countersign.Issuer{
			{
				Name: "idp", URL: idpURL, Algorithms: []string{"ES256"}, Tokens: []string{"access"}, ScopeClaim: "scope",
				Scopes: []string{"shop.read", "shop.write", "orders:read"}, Subject: countersign.SubjectKeep, Carry: []string{"email", "tenant"},
			},
			{
				Name: "hr", URL: hrURL, Algorithms: []string{"ES256"}, Tokens: []string{"access"}, ScopeClaim: "scp",
				Scopes: []string{"orders:read"}, Subject: countersign.SubjectPrefix,
			},
		},
	}
	for _, name := range []string{"gateway", "orders", "inventory", "reports", "billing", "idle"} {
		g.services = append(g.services, newService(name))
	}
	g.service("gateway").Accepts = []countersign.Accept{
		{Issuer: "idp", Audiences: []string{"shop-web", "shop-app"}}, {Issuer: "hr", Audiences: []string{"hr-portal"}},
	}
	g.service("orders").Alg, g.service("orders").Typ = "RS256", "JWT"
	g.calls = []countersign.Call{
		{From: "gateway", To: "orders", TTL: fiveMinutes(), Scopes: []countersign.Scope{
			needing("orders:read", "orders:read"), needing("orders:write", "shop.write"), {Name: "orders:hello", AnyUser: true},
		}},
		{From: "gateway", To: "billing", TTL: fiveMinutes(), Scopes: []countersign.Scope{needing("bill", "shop.write")}},
		{From: "orders", To: "inventory", TTL: fiveMinutes(), Scopes: []countersign.Scope{
			needing("stock:read", "orders:read", "orders:write"), needing("stock:write", "orders:write"),
		}},
		{From: "reports", To: "orders", TTL: fiveMinutes(), Machine: []string{"orders:read"}, Scopes: []countersign.Scope{
			needing("orders:read", "report"), needing("orders:all", "report"),
		}},
		{From: "reports", To: "inventory", TTL: fiveMinutes()},
	}
	return g
}

// fromUser is a verified token of the issuer idp.
func fromUser(p *countersign.Policy, scopes ...string) *Subject {
	issuer, _ := p.Issuer(idpURL)
	return &Subject{External: issuer, Sub: "alice", SubIssuer: idpURL, Scopes: scopes, Expires: noon.Add(time.Hour)}
}

// relayed is a verified relay token of ours that has passed through the services, the newest first.
func relayed(scopes []string, chain ...string) *Subject {
	s := &Subject{Sub: "alice", SubIssuer: idpURL, Scopes: scopes, Expires: noon.Add(time.Hour), Transaction: "t1", ID: "j1"}
	for i := len(chain) - 1; i >= 0; i-- {
		s.Act = &Actor{Sub: idOf(chain[i]).String(), Act: s.Act}
	}
	return s
}

// machine is a verified token of client_credentials for the service name.
func machine(name string, scopes ...string) *Subject {
	return &Subject{Sub: idOf(name).String(), SubIssuer: us, Scopes: scopes, Expires: noon.Add(time.Hour), Transaction: "t1", ID: "j1"}
}

var testKey = func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}()

// parsed is a token with the given claims, signed, sent and parsed.
func parsed(t testing.TB, typ string, claims map[string]any) *jwt.Token {
	t.Helper()
	compact, err := jwt.Sign(testKey, "ES256", "k1", typ, claims)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Parse(compact)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// with is base with some claims replaced; a nil one is removed.
func with(base map[string]any, changes map[string]any) map[string]any {
	claims := maps.Clone(base)
	for name, value := range changes {
		if value == nil {
			delete(claims, name)
		} else {
			claims[name] = value
		}
	}
	return claims
}

// claims are what the minted token says, as its receiver reads it.
func (g Grant) claims(issuer, id, transaction string) map[string]any {
	payload := g.draft(issuer).payload(nil, g.Expires, g.IssuedAt, id, transaction)
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var claims map[string]any
	if err := decoder.Decode(&claims); err != nil {
		panic(err)
	}
	return claims
}
