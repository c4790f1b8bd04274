package main

import (
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// badForm is a token request that must be refused; path is what stands behind the endpoint's.
type badForm struct {
	name, path, form string
	want             refusal
}

// badForms: duplicate, empty and missing parameters, and those in wrong places.
func (d *door) badForms() []badForm {
	good := exchangeForm(d.idp.good(), "orders").Encode()
	without := func(name string) string {
		form := exchangeForm(d.idp.good(), "orders")
		form.Del(name)
		return form.Encode()
	}
	with := func(name, value string) string { return good + "&" + name + "=" + url.QueryEscape(value) }
	const rq, body, parameter = countersign.CodeTokenRequest, countersign.CodeBody, countersign.CodeParameter
	target := func(code countersign.Code) refusal { return refusal{400, "invalid_target", code} }
	return []badForm{
		{"nothing", "", "", badRequest(rq)},
		{"no grant_type", "", without("grant_type"), badRequest(rq)},
		{"empty grant_type", "", without("grant_type") + "&grant_type=", badRequest(rq)},
		{"unknown grant_type", "", "grant_type=password", refusal{400, "unsupported_grant_type", countersign.CodeGrantType}},
		{"no subject_token", "", without("subject_token"), badRequest(rq)},
		{"empty subject_token", "", without("subject_token") + "&subject_token=", badRequest(rq)},
		{"no subject_token_type", "", without("subject_token_type"), badRequest(rq)},
		{"unknown subject_token_type", "", without("subject_token_type") + "&subject_token_type=x", badRequest(countersign.CodeTokenType)},
		{"ID token", "", without("subject_token_type") + "&subject_token_type=" + url.QueryEscape(typeID), badRequest(countersign.CodeSubjectKind)},
		{"subject_token twice", "", with("subject_token", "x"), badRequest(rq)},
		{"grant_type twice", "", with("grant_type", grantExchange), badRequest(rq)},
		{"scope twice", "", good + "&scope=a&scope=b", badRequest(rq)},
		{"an unknown parameter twice", "", good + "&x=1&x=2", badRequest(rq)},
		{"scope with two spaces", "", with("scope", "orders:read  orders:write"), badRequest(rq)},
		{"scope with a quote", "", with("scope", `"`), badRequest(rq)},
		{"actor_token_type alone", "", with("actor_token_type", typeJWT), badRequest(rq)},
		{"actor_token alone", "", with("actor_token", "x"), badRequest(rq)},
		{"an actor that is not the one", "", with("actor_token", d.idp.good()) + "&actor_token_type=" + url.QueryEscape(typeJWT), badRequest(countersign.CodeActor)},
		{"another requested type", "", with("requested_token_type", typeID), badRequest(countersign.CodeTokenType)},
		{"client_secret", "", with("client_secret", "x"), badRequest(countersign.CodeTwoCredentials)},
		{"client_assertion", "", with("client_assertion", "x"), badRequest(rq)},
		{"a client_assertion of no kind", "", with("client_assertion", "x") + "&client_assertion_type=x", refusal{401, "invalid_client", countersign.CodeAssertion}},
		{"another client_id", "", with("client_id", "ana"), refusal{401, "invalid_client", countersign.CodeClientMismatch}},
		{"unknown audience", "", with("audience", "nobody"), target(countersign.CodeTarget)},
		{"two audiences", "", with("audience", "inventory"), target(countersign.CodeTarget)},
		{"resource with a fragment", "", with("resource", "https://orders.shop.internal/#x"), target(countersign.CodeTarget)},
		{"resource that is relative", "", with("resource", "/orders"), target(countersign.CodeTarget)},
		{"a scope that the call has not", "", with("scope", "admin"), refusal{400, "invalid_scope", countersign.CodeScope}},
		{"not percent-encoded", "", good + "&x=%zz", badRequest(body)},
		{"separated by semicolons", "", strings.ReplaceAll(good, "&", ";"), badRequest(body)},
		{"no UTF-8", "", good + "&x=%ff", badRequest(body)},
		{"10,000 parameters", "", good + strings.Repeat("&p=1", 10_000), badRequest(body)},
		{"parameters in the query", "?" + good, "", badRequest(parameter)},
		{"one parameter in the query", "?grant_type=x", good, badRequest(parameter)},
		{"a question mark", "?", good, badRequest(parameter)},
		{"machine on a call that is none", "", "grant_type=client_credentials&audience=orders", refusal{400, "unauthorized_client", countersign.CodeMachine}},
	}
}

// TestBadForms sends each to the token endpoint, as a client that might exchange.
func TestBadForms(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	gateway, before := d.as("gateway"), d.state()
	for _, bad := range d.badForms() {
		got := d.send(gateway, http.MethodPost, "/oauth2/token"+bad.path, bad.form, "Content-Type", wire.Form)
		if err := bad.want.check(got); err != nil {
			t.Errorf("%s: %v", bad.name, err)
		}
	}
	d.unchanged(before, map[string]int{"token.denied": -1, "request.denied": -1})
	d.stillGood()
}

// goldenRoute is a row of the table of routes.
type goldenRoute struct {
	method, path, auth string
	body               int
	media              string
}

func goldenRoutes(t *testing.T) []goldenRoute {
	t.Helper()
	text, err := os.ReadFile("../../api/testdata/routes.golden")
	if err != nil {
		t.Fatal(err)
	}
	var all []goldenRoute
	for row := range strings.Lines(string(text)) {
		f := strings.Fields(row)
		if len(f) < 5 {
			t.Fatalf("the row %q has %d fields", row, len(f))
		}
		r := goldenRoute{method: f[0], path: f[1], auth: f[2]}
		if r.body, err = strconv.Atoi(f[4]); err != nil {
			t.Fatal(err)
		}
		if r.body > 0 {
			r.media = f[5]
		}
		r.path = strings.NewReplacer(":serial", "00", ":name", "nobody", ":purpose", "nothing", ":kid", "nothing").Replace(r.path)
		all = append(all, r)
	}
	return all
}

// refused is the error of a code at the route, in its protocol's form.
func (r goldenRoute) refused(status int, code countersign.Code) refusal {
	if strings.HasPrefix(r.path, "/oauth2/") {
		if status == http.StatusUnsupportedMediaType {
			status = http.StatusBadRequest
		}
		return refusal{status, code.Info().OAuth, code}
	}
	return refusal{status, "", code}
}

// TestWrongMethodsAndTypes goes to every route of the public listener with every other method, and with bodies of wrong
// types, as who may use the route.
func TestWrongMethodsAndTypes(t *testing.T) {
	d := openDoor(t, nil, "gateway")
	before := d.state()
	people := map[string]*http.Client{"client": d.as("gateway"), "join": d.as("gateway"), "service": d.as("gateway")}
	admin, nobody := d.as("admin"), d.as("")
	taken := map[string]map[string]bool{}
	for _, r := range goldenRoutes(t) {
		if taken[r.path] == nil {
			taken[r.path] = map[string]bool{}
		}
		taken[r.path][r.method] = true
		if r.method == http.MethodGet && r.auth == "public" {
			taken[r.path][http.MethodHead] = true
		}
	}
	for _, r := range goldenRoutes(t) {
		who := people[r.auth]
		if who == nil {
			who = admin
		}
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECTED", "get"} {
			if taken[r.path][method] {
				continue
			}
			got := d.send(nobody, method, r.path, "", "X-HTTP-Method-Override", r.method)
			if err := r.refused(http.StatusMethodNotAllowed, countersign.CodeMethod).check(got); err != nil || got.header.Get("Allow") == "" {
				t.Errorf("%s %s: %v, Allow %q", method, r.path, err, got.header.Get("Allow"))
			}
		}
		if got := d.send(nobody, http.MethodOptions, r.path, ""); got.status != http.StatusNoContent || !strings.Contains(got.header.Get("Allow"), r.method) {
			t.Errorf("OPTIONS %s: %d, Allow %q", r.path, got.status, got.header.Get("Allow")) // RFC 9110 9.3.7
		}
		if r.body == 0 {
			if r.auth != "public" {
				got := d.send(who, r.method, r.path, "x", "Content-Type", wire.JSON)
				if err := r.refused(http.StatusRequestEntityTooLarge, countersign.CodeTooLarge).check(got); err != nil {
					t.Errorf("%s %s with a body: %v", r.method, r.path, err)
				}
			}
			continue
		}
		for _, media := range [][]string{
			nil, {""}, {"text/plain"}, {"application/xml"}, {"multipart/form-data; boundary=x"}, {r.media + "; charset=utf-16"},
			{r.media, r.media}, {r.media + "x"}, {strings.ReplaceAll(r.media, "/", "")},
		} {
			var header []string
			for _, m := range media {
				header = append(header, "Content-Type", m)
			}
			got := d.send(who, r.method, r.path, "x", header...)
			if err := r.refused(http.StatusUnsupportedMediaType, countersign.CodeContentType).check(got); err != nil {
				t.Errorf("%s %s with Content-Type %q: %v", r.method, r.path, media, err)
			}
		}
	}
	d.unchanged(before, nil)
	d.stillGood()
}
