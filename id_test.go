package countersign

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestIDs(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		id     string
		kind   IDKind
		domain string
		name   string
	}{
		{"spiffe://shop.internal/orders", ServiceID, "shop.internal", "orders"},
		{"spiffe://shop.internal/operator/orders", OperatorID, "shop.internal", "orders"},
		{"spiffe://shop.internal/operator/operator", OperatorID, "shop.internal", "operator"},
		{"spiffe://shop.internal/countersign", AuthorityID, "shop.internal", "countersign"},
		{"spiffe://a/" + long, ServiceID, "a", long},
	} {
		id, err := ParseID(c.id)
		if err != nil || id.String() != c.id || id.Kind() != c.kind || id.TrustDomain() != c.domain || id.Name() != c.name || id.IsZero() {
			t.Errorf("%s: %v %s %s %s, %v", c.id, id, id.Kind(), id.TrustDomain(), id.Name(), err)
		}
		b, err := json.Marshal(id)
		var again ID
		if err != nil || json.Unmarshal(b, &again) != nil || again != id {
			t.Errorf("%s: JSON gave %v", c.id, again)
		}
	}
	var zero ID
	if b, err := json.Marshal(zero); err != nil || string(b) != `""` || zero.Kind() != NoID || !zero.IsZero() {
		t.Error("the zero ID")
	}
}

func TestIDsRefused(t *testing.T) {
	for _, s := range []string{
		"", "spiffe://", "spiffe:///orders", "spiffe://shop.internal", "spiffe://shop.internal/", "spiffe://shop.internal//orders",
		"spiffe://shop.internal/orders/", "spiffe://shop.internal/a/b", "spiffe://shop.internal/operator", "spiffe://shop.internal/operator/",
		"spiffe://shop.internal/operator/a/b", "spiffe://shop.internal/countersign/a", "SPIFFE://shop.internal/orders",
		"spiffe://Shop.internal/orders", "spiffe://shop.internal/Orders", "spiffe://shop.internal:8443/orders", "spiffe://u@shop.internal/orders",
		"spiffe://shop.internal/orders?x", "spiffe://shop.internal/orders#x", "spiffe://shop.internal/%6frders", "spiffe://shop.internal/..",
		"spiffe://shop..internal/orders", "spiffe://shop.internal./orders", "spiffe://shop_internal/orders", "spiffe://shop.internal/-a",
		"spiffe://shop.internal/a-", "spiffe://shop.internal/*", "spiffe://shop.internal/a b", "spiffe://shop.internal/orders\n",
		"spiffe://shop.internal/" + strings.Repeat("a", 64), "spiffe://" + strings.Repeat("a.", 127) + "a/orders", "https://shop.internal/orders",
	} {
		if id, err := ParseID(s); err == nil || !id.IsZero() {
			t.Errorf("%q is %s %v", s, id.Kind(), id)
		}
	}
	for _, name := range []string{"countersign", "operator"} {
		if id, err := NewServiceID("shop.internal", name); err == nil {
			t.Errorf("a service has the ID %v", id)
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{"spiffe://shop.internal/orders", "spiffe://a/operator/b", "spiffe://a/countersign", "spiffe://a/b/c", "spiffe://a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if id.String() != s || CheckName(id.Name()) != nil || CheckTrustDomain(id.TrustDomain()) != nil || id.Kind() == NoID {
			t.Fatalf("%q gave %v", s, id)
		}
	})
}
