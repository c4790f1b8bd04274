package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWarnings(t *testing.T) {
	const services = "trust_domain: shop.internal\nservices: [{name: a}, {name: b}, {name: c}]\ncalls:\n"
	toB := "- {from: a, to: b, scopes: [{name: r}], machine: [r]}\n"
	plainC := "- {from: a, to: c, scopes: [{name: r}], machine: [r]}\n"
	for _, c := range []struct {
		name, prev, next string
		want             []string
	}{
		{"a new edge ends uniqueness", toB + "- {from: b, to: c}\n", toB + plainC,
			[]string{"a token request of a without an audience (no scope; scope r) was for b and now is refused: several calls allow that and none is the default"}},
		{"the default is another", toB + "- {from: b, to: c}\n", toB + strings.Replace(plainC, "machine", "default: true, machine", 1),
			[]string{"a token request of a without an audience (no scope; scope r) was for b and now is for c"}},
		{"the default stays", strings.Replace(toB, "machine", "default: true, machine", 1) + "- {from: b, to: c}\n", strings.Replace(toB, "machine", "default: true, machine", 1) + plainC, nil},
		{"another scope", toB + "- {from: b, to: c}\n", toB + strings.ReplaceAll(plainC, "r}], machine: [r", "w}], machine: [w"),
			[]string{"a token request of a without an audience (no scope) was for b and now is refused: several calls allow that and none is the default"}},
		{"another call opens to machines", toB + "- {from: c, to: a, scopes: [x], machine: [x]}\n- {from: a, to: c, scopes: [{name: w, needs: [x]}]}\n",
			toB + "- {from: c, to: a, scopes: [x], machine: [x]}\n- {from: a, to: c, scopes: [{name: w, needs: [x]}], machine: [w]}\n",
			[]string{"a token request of a without a user or an audience (no scope) was for b and now is refused: several calls allow that and none is the default"}},
		{"mTLS only", toB + "- {from: b, to: c}\n", toB + "- {from: a, to: c}\n", nil},
		{"idle", toB + plainC, toB, []string{"c stands in no call: it calls nobody and nobody calls it"}},
	} {
		got := Warnings(mustParse(t, services+c.prev), mustParse(t, services+c.next))
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
	shop := mustParse(t, string(testdata(t, "shop.yaml")))
	if got := Warnings(nil, shop); len(got) != 0 {
		t.Error(got)
	}
	next := mustParse(t, edit(t, "subject: keep", "subject: prefix"))
	if got := Warnings(shop, next); len(got) != 1 || !strings.Contains(got[0], "all its users get another `sub`") {
		t.Error(got)
	}
	renamed := strings.NewReplacer("name: idp", "name: idq", "issuer: idp,", "issuer: idq,").Replace(edit(t, "subject: keep", "subject: prefix"))
	if got := Warnings(next, mustParse(t, renamed)); len(got) != 1 || !strings.Contains(got[0], "was called idp") {
		t.Error(got)
	}
	gone := mustParse(t, "trust_domain: shop.internal\n")
	if got := Warnings(shop, gone); len(got) != 4 || !strings.HasPrefix(got[0], "gateway leaves the policy") {
		t.Error(got)
	}
}
