package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/sts/jwt"
)

// The credentials that routes take, by name. A route's row names those that it takes; it must refuse all others.
var (
	takesClient   = []string{"service"}
	takesJoin     = []string{"join token", "workload's token", "service", "expired certificate", "viewer", "operator", "admin"}
	takesViewer   = []string{"viewer", "operator", "admin", "admin socket"}
	takesOperator = []string{"operator", "admin", "admin socket"}
	takesAdmin    = []string{"admin", "admin socket"}
)

// mutating is a row of the table below: a request that would be granted to whom the route takes, so that a hole changes something.
type mutating struct {
	route string // method and path of the table of routes
	takes []string
	path  string // with what stands for the parameters
	body  string
}

// mutatingRoutes has a row for each route that is no GET: [TestMutatingRoutesRefuseOtherCredentials] demands that, and the names in takes are
// written by hand, so that they don't follow from the authentication that the table of routes names.
func (d *doors) mutatingRoutes() []mutating {
	csr := func() string {
		_, text := newCSR(d.T)
		quoted, err := json.Marshal(text)
		d.must(err)
		return string(quoted)
	}
	reason := `{"reason": "superseded"}`
	return []mutating{
		{"POST /oauth2/token", takesClient, "/oauth2/token", "grant_type=client_credentials&audience=inventory"},
		{"POST /oauth2/revoke", takesClient, "/oauth2/revoke", "token=" + d.relayToken},
		{"POST /oauth2/introspect", append(slices.Clone(takesViewer), "service"), "/oauth2/introspect", "token=" + d.relayToken},
		{"POST /v1/certificates", takesJoin, "/v1/certificates", `{"csr": ` + csr() + `}`},
		{"POST /v1/certificates/:serial/revoke", append(slices.Clone(takesOperator), "service"), "/v1/certificates/" + d.orders.Serial + "/revoke", reason},
		{"POST /v1/revocations", takesOperator, "/v1/revocations", `{"service": "orders", "reason": "superseded"}`},
		{"POST /v1/jwt-svid", takesClient, "/v1/jwt-svid", `{"audiences": ["spiffe://shop.internal/inventory"]}`},
		{"POST /v1/join-tokens", takesOperator, "/v1/join-tokens", `{"service": "inventory"}`},
		{"POST /v1/operators", takesAdmin, "/v1/operators", `{"name": "eve", "role": "admin", "csr": ` + csr() + `}`},
		{"POST /v1/authority/rotations", takesOperator, "/v1/authority/rotations", `{"role": "intermediate"}`},
		{"POST /v1/authority/rollback", takesAdmin, "/v1/authority/rollback", ""},
		{"POST /v1/authority/request", takesOperator, "/v1/authority/request", ""},
		{"POST /v1/authority/intermediates", takesAdmin, "/v1/authority/intermediates", `{"certificate": ""}`}, // only a root elsewhere could make a right one
		{"POST /v1/authority/:serial/retire", takesAdmin, "/v1/authority/" + d.issuer + "/retire", ""},
		{"PUT /v1/policy", takesAdmin, "/v1/policy", testPolicy},
		{"POST /v1/policy/rollback", takesAdmin, "/v1/policy/rollback", `{"version": 1}`},
		{"POST /v1/policy/explain", takesViewer, "/v1/policy/explain", `{"from": "orders", "to": "inventory"}`},
		{"POST /v1/policy/simulate", takesViewer, "/v1/policy/simulate", testPolicy},
		{"POST /v1/services/:name/disable", takesOperator, "/v1/services/inventory/disable", reason},
		{"POST /v1/services/:name/enable", takesOperator, "/v1/services/gateway/enable", reason},
		{"POST /v1/freeze", takesAdmin, "/v1/freeze", `{"what": "all", "reason": "drill"}`},
		{"POST /v1/thaw", takesAdmin, "/v1/thaw", `{"what": "all"}`},
		{"POST /v1/tokens/revocations", takesOperator, "/v1/tokens/revocations", `{"subject": "ana", "reason": "left"}`},
		{"POST /v1/keys/:purpose/rotate", takesOperator, "/v1/keys/token/rotate", "{}"},
		{"POST /v1/keys/:kid/retire", takesAdmin, "/v1/keys/" + d.kid + "/retire", `{"compromised": true}`},
		{"POST /v1/kek/rotate", takesAdmin, "/v1/kek/rotate", ""},
		{"POST /v1/backup", takesAdmin, "/v1/backup", ""},
		{"POST /v1/clock/confirm", takesAdmin, "/v1/clock/confirm", "{}"},
	}
}

// elsewhere are the mutating routes whose credential is the request itself, and the test that holds them.
func elsewhere() map[string]string {
	return map[string]string{"POST /oauth2/backchannel-logout": "sts.TestLogoutRefusals: it takes a logout token and no other"}
}

// doors is a daemon, what its mutating routes are asked for, and everything that one may come with.
type doors struct {
	*attesting
	orders      *identity.Identity
	relayToken  string
	issuer, kid string // serial of the intermediate, id of a token key
	credentials []visitor
}

// visitor comes with a credential. The code is what he is refused with where his credential is not taken, unless at has the route's authentication.
type visitor struct {
	name   string
	id     string // by which a refusal is audited; "" where strangers are counted instead
	http   *http.Client
	header []string
	code   countersign.Code
	at     map[string]countersign.Code // by the route
}

func newDoors(t *testing.T) *doors {
	t.Helper()
	a := newAttesting(t, kitOptions{proxies: map[string]CertHeader{"inventory": ClientCert}})
	d := &doors{attesting: a}
	expired := a.join("reports")
	a.clock.turn(25 * time.Hour)
	d.orders = a.join("orders")
	got := a.postToken(a.raw(d.orders), url.Values{"grant_type": {"client_credentials"}, "audience": {"inventory"}})
	var token wire.Token
	a.must(json.Unmarshal([]byte(got.body), &token))
	d.relayToken = token.AccessToken
	authority, err := a.admin().Authority(t.Context(), false)
	a.must(err)
	d.issuer = authority.Intermediates[0].Serial
	keys, err := a.admin().Keys(t.Context())
	a.must(err)
	d.kid = keys.Keys[0].ID
	d.credentials = d.visitors(expired)
	return d
}

func (d *doors) visitors(expired *identity.Identity) []visitor {
	const join = "POST /v1/certificates"
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	made, err := d.admin().CreateJoinToken(d.Context(), wire.JoinTokenRequest{Service: "inventory", TTL: countersign.Duration(time.Hour)})
	d.must(err)
	now := d.clock.now().Unix()
	user, err := jwt.Sign(d.key, "ES256", "k1", "at+jwt", map[string]any{
		"iss": "https://idp.example", "sub": "ana", "aud": testIssuer, "scope": "a", "iat": now, "exp": now + 600,
	})
	d.must(err)
	asserted, err := jwt.Sign(d.key, "ES256", "k1", "client-authentication+jwt", map[string]any{
		"iss": reportsID, "sub": reportsID, "aud": testIssuer, "iat": now, "exp": now + 60, "jti": "an assertion",
	})
	d.must(err)
	service, proxy := d.join("reports"), d.join("inventory")
	admin := d.operator("op-admin", countersign.RoleAdmin)
	certified := func(name string, id *identity.Identity, code countersign.Code) visitor {
		return visitor{name: name, id: id.ID.String(), http: d.raw(id), code: code}
	}
	// Operators are of a kind that the routes of services don't take; elsewhere their role is too low.
	noClient := map[string]countersign.Code{
		"POST /oauth2/token": countersign.CodeWrongCredential, "POST /oauth2/revoke": countersign.CodeWrongCredential, "POST /v1/jwt-svid": countersign.CodeWrongCredential,
	}
	viewer, operator := certified("viewer", d.operator("op-viewer", countersign.RoleViewer), countersign.CodeRole), certified("operator", d.operator("op", countersign.RoleOperator), countersign.CodeRole)
	viewer.at, operator.at = noClient, noClient
	stranger := func(name string, header []string, code countersign.Code) visitor {
		return visitor{name: name, http: d.raw(nil), header: header, code: code}
	}
	noWorkload := map[string]countersign.Code{join: countersign.CodeAssertion}
	relay, ofUser, assertion := stranger("relay token", bearer(d.relayToken), countersign.CodeWrongCredential), stranger("user's token", bearer(user), countersign.CodeWrongCredential),
		stranger("client assertion", bearer(asserted), countersign.CodeWrongCredential)
	relay.at, ofUser.at, assertion.at = noWorkload, noWorkload, map[string]countersign.Code{join: countersign.CodeAssertionKey}
	return []visitor{
		stranger("nothing", nil, countersign.CodeNoCredential),
		stranger("join token", bearer(made.Token), countersign.CodeWrongCredential),
		stranger("workload's token", bearer(d.pod(nil)), countersign.CodeWrongCredential),
		relay, ofUser, assertion,
		stranger("certificate in a header", []string{headerCert, clientCert(admin)}, countersign.CodeNoCredential),
		certified("service", service, countersign.CodeWrongCredential), viewer, operator,
		certified("admin", admin, countersign.CodeWrongCredential),
		{name: "expired certificate", http: d.raw(expired), code: countersign.CodeExpiredPeer},
		{name: "certificate forwarded by a proxy", http: d.raw(proxy), header: []string{headerCert, clientCert(admin)}, code: countersign.CodeForwarded},
		{name: "proxy", http: d.raw(proxy), code: countersign.CodeProxyAlone},
		{name: "admin socket", http: d.overSocket(), code: countersign.CodeNoRoute, at: map[string]countersign.Code{join: countersign.CodeMethod}},
	}
}

// base is where a visitor goes.
func (d *doors) base(v visitor) string {
	if v.name == "admin socket" {
		return "http://localhost"
	}
	return d.url
}

// overSocket is a bare client of the admin socket.
func (k *kit) overSocket() *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", k.socket)
	}}
	k.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// statusFor says what a refusal's code becomes on every route, by hand.
func statusFor(code countersign.Code) int {
	switch code {
	case countersign.CodeNoRoute:
		return http.StatusNotFound
	case countersign.CodeMethod:
		return http.StatusMethodNotAllowed
	case countersign.CodeRole:
		return http.StatusForbidden
	}
	return http.StatusUnauthorized
}

// kept is every record of the store, but the audit log's own head.
func (k *kit) kept() map[string]string {
	k.Helper()
	all := map[string]string{}
	for _, table := range []string{
		"ca_state", "lineages", "certificates_by_lineage", "certificates_seen", "lineages_blocking", "revoked_by_owner", "authorities", "certificates", "certified_keys", "operators",
		"certificates_by_owner", "join_tokens", "sts_state", "assertions", "revocations", "logout_tokens", "freeze", "policy_versions", "policy_current", "service_state", "signing_key", "keyring",
	} {
		page, err := k.store.List(k.Context(), table, storage.ListOptions{Limit: 1000})
		k.must(err)
		for _, item := range page.Items {
			all[table+" "+item.Key] = fmt.Sprint(item.Rev)
		}
	}
	return all
}

// keepsSecrets wants no token that a visitor came with in the log or the audit log.
func (d *doors) keepsSecrets() {
	d.Helper()
	audited, err := json.Marshal(d.records(""))
	d.must(err)
	for _, v := range d.credentials {
		if len(v.header) == 0 || v.header[0] != "Authorization" {
			continue
		}
		secret := strings.TrimPrefix(v.header[1], "Bearer ")
		if strings.Contains(d.logs.String(), secret) || strings.Contains(string(audited), secret) {
			d.Errorf("%s stands in the log or the audit log", v.name)
		}
	}
}

// TestMutatingRoutesRefuseOtherCredentials asks every route that changes something for what it would do, with every credential but its own. Each is refused with
// the code of its kind, nothing in the store changes, and who is known is audited. A new route needs a row.
func TestMutatingRoutesRefuseOtherCredentials(t *testing.T) {
	d := newDoors(t)
	rows := map[string]mutating{}
	for _, row := range d.mutatingRoutes() {
		rows[row.route] = row
	}
	for _, v := range d.credentials { // the first sight of a certificate is recorded
		d.send(v.http, http.MethodGet, d.base(v)+"/roots.pem", "")
	}
	before, events := d.kept(), len(d.records(""))
	denied := map[string]int{}
	for _, r := range routes("") {
		name := r.method + " " + r.path
		row, ok := rows[name]
		if delete(rows, name); r.method == http.MethodGet || !ok && elsewhere()[name] != "" {
			continue
		}
		if !ok {
			t.Errorf("%s changes something and has no row", name)
			continue
		}
		for _, v := range d.credentials {
			if slices.Contains(row.takes, v.name) {
				continue
			}
			want := v.code
			if code, ok := v.at[name]; ok {
				want = code
			}
			got := d.send(v.http, r.method, d.base(v)+row.path, row.body, append([]string{"Content-Type", r.media}, v.header...)...)
			if got.code() != want || got.status != statusFor(want) {
				t.Errorf("%s with %s: %d %s, want %d %s", name, v.name, got.status, got.body, statusFor(want), want)
			}
			if v.id != "" {
				denied[v.id+" "+name+" "+string(want)]++
			}
		}
	}
	for name := range rows {
		t.Errorf("%s has a row and is no route", name)
	}
	for key, rev := range d.kept() {
		if before[key] != rev {
			t.Errorf("the record %s changed", key)
		}
	}
	if after := len(d.kept()); after != len(before) {
		t.Errorf("there are %d records instead of %d", after, len(before))
	}
	for _, r := range d.records("")[events:] {
		if r.Outcome != "denied" && r.Type != "request.refused" {
			t.Errorf("audited: %+v", r)
		}
		denied[r.By.ID+" "+r.Subject+" "+string(r.Code)]--
	}
	d.keepsSecrets()
	for what, n := range denied {
		if n > 0 {
			t.Errorf("not audited: %s", what)
		}
	}
}
