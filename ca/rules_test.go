package ca

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
)

// way is a path to a certificate of orders, or of an operator, with the key and lifetime asked for.
type way struct {
	name  string
	issue func(csr []byte, ttl time.Duration) (*Certificate, error)
	order func(csr []byte) (order, error)
}

// ways are all paths by which certificates are issued. Each comes as somebody who could get one now.
func (h *house) ways() []way {
	h.t.Helper()
	ctx := h.t.Context()
	first, operator := h.join("orders", newKey(h.t, "")), (*Certificate)(nil)
	operator, err := h.AddOperator(ctx, admin(), "ann", countersign.RoleViewer, request(h.t, newKey(h.t, "")))
	if err != nil {
		h.t.Fatal(err)
	}
	over := h.join("orders", newKey(h.t, ""))
	self := func(name string, by countersign.Caller, proof Proof) way {
		return way{name, func(csr []byte, ttl time.Duration) (*Certificate, error) {
			return h.Issue(ctx, by, IssueRequest{CSR: csr, TTL: ttl, Proof: proof})
		}, func(csr []byte) (order, error) { return h.decide(by, IssueRequest{CSR: csr, Proof: proof}) }}
	}
	grace := h.peer(over)
	grace.Method = countersign.ByExpired
	return []way{
		self("join", h.joiner("orders"), nil), self("renewal", h.peer(first), nil), self("grace", grace, nil),
		self("attested", countersign.Caller{Method: countersign.ByAttestation, ID: service("orders").ID, Name: "orders"}, &usedProof{h.bolt}),
		self("operator's renewal", h.peer(operator), nil),
		{"operator", func(csr []byte, _ time.Duration) (*Certificate, error) {
			return h.AddOperator(ctx, admin(), "bob", countersign.RoleViewer, csr)
		}, func(csr []byte) (order, error) { return h.decideOperator(admin(), "bob", countersign.RoleViewer, csr) }},
		{"the daemon's own", func(csr []byte, _ time.Duration) (*Certificate, error) { return h.IssueServer(ctx, csr) }, func(csr []byte) (order, error) {
			id, err := countersign.NewAuthorityID(domain)
			o := order{by: countersign.Daemon("test"), how: howDaemon, profile: ProfileAuthority, ttl: h.cfg.ServerTTL,
				names: names{id: id, dns: h.dns, ips: h.ips}, rules: rules{h.cfg.ServerKeys, h.cfg.ServerTTL}}
			if err == nil {
				o.csr, err = parseCSR(csr, o.rules.keyTypes, o.names)
			}
			return o, err
		}},
	}
}

// narrow ends all that the profiles gave: P-384 and Ed25519 remain, for two hours.
func (h *house) narrow() {
	keys := []string{"P-384", "Ed25519"}
	h.cfg.OperatorKeys, h.cfg.ServerKeys, h.cfg.OperatorTTL, h.cfg.ServerTTL = keys, keys, 2*time.Hour, 2*time.Hour
	orders := service("orders", "new.shop.internal")
	orders.KeyTypes, orders.TTL = keys, countersign.Duration(2*time.Hour)
	h.apply(2, orders)
}

// TestRulesOnEveryPath narrows every profile: from then on each path refuses the key that it took before, with an error
// that names what is allowed, and gives what the policy now says.
func TestRulesOnEveryPath(t *testing.T) {
	h := newHouse(t, nil)
	ways := h.ways()
	h.narrow()
	for _, w := range ways {
		_, err := w.issue(request(t, newKey(t, "P-256")), 0)
		t.Log(w.name)
		wantCode(t, err, countersign.CodeKeyType)
		if e := countersign.AsError(err); !strings.Contains(e.Msg, "P-256; a certificate here may have one of P-384, Ed25519") || !strings.Contains(e.Hint, "--key P-384") {
			t.Errorf("%s: %q, %q", w.name, e.Msg, e.Hint)
		}
		if w.order != nil && w.name != "operator" && w.name != "the daemon's own" { // these ask for no lifetime
			_, err = w.issue(request(t, newKey(t, "P-384")), 3*time.Hour)
			wantCode(t, err, countersign.CodeTTL)
		}
		cert, err := w.issue(request(t, newKey(t, "Ed25519")), 0)
		if err != nil {
			t.Errorf("%s: %v", w.name, err)
			continue
		}
		leaf := cert.Chain[0]
		if got := leaf.NotAfter.Sub(leaf.NotBefore) + second; got != 2*time.Hour || keyType(leaf.PublicKey) != "Ed25519" {
			t.Errorf("%s: %s of %s", w.name, got, keyType(leaf.PublicKey))
		}
		if leaf.URIs[0].Path == "/orders" && !slices.Equal(leaf.DNSNames, []string{"new.shop.internal"}) {
			t.Errorf("%s: %q", w.name, leaf.DNSNames)
		}
	}
}

// TestRulesInTheBytes decides on each path, and then changes the rules under the order: what would be signed is held
// against them again, whatever the decision said, and nothing is signed, not even intended.
func TestRulesInTheBytes(t *testing.T) {
	h := newHouse(t, nil)
	for _, w := range h.ways() {
		before := len(h.events(eventIntent))
		for name, change := range map[string]func(*order){
			"key":      func(o *order) { o.rules.keyTypes = []string{"P-384"} },
			"no key":   func(o *order) { o.rules.keyTypes = nil },
			"lifetime": func(o *order) { o.rules.most = o.ttl - second },
			"none":     func(o *order) { o.rules = rules{} },
		} {
			o, err := w.order(request(t, newKey(t, "")))
			if err != nil {
				t.Fatal(w.name, err)
			}
			change(&o)
			_, err = h.fulfil(t.Context(), o)
			if countersign.AsError(err).Code != countersign.CodeInternal || !strings.Contains(err.Error(), "not what was decided") {
				t.Errorf("%s, %s: %v", w.name, name, err)
			}
		}
		if got := len(h.events(eventIntent)); got != before {
			t.Errorf("%s: %d intents", w.name, got-before)
		}
	}
}

func TestCheckKeyTypes(t *testing.T) {
	for _, right := range [][]string{KeyTypes(), {"P-256"}, {"RSA-3072", "P-256"}} {
		if err := CheckKeyTypes(right); err != nil {
			t.Errorf("%q: %v", right, err)
		}
	}
	for _, wrong := range [][]string{nil, {}, {"P256"}, {"P-521"}, {"P-256", "P-256"}, {""}} {
		if err := CheckKeyTypes(wrong); err == nil {
			t.Errorf("%q passes", wrong)
		}
	}
}
