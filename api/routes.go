package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/policy"
)

// auth is what a route demands of its caller. The zero value is no authentication but a fault: [New] refuses it.
type auth uint8

const (
	authUnset             auth = iota
	authPublic                 // nobody need say who he is; a credential that is no good counts as none
	authClient                 // the certificate of a service, or its client assertion, as an OAuth client (RFC 8705, RFC 7523)
	authJoin                   // a join token, a workload's token, or the certificate of a service or operator
	authService                // the certificate of a service
	authIntrospect             // as authClient, or the role viewer
	authLogout                 // the logout token in the form, which the domain judges (OpenID Connect Back-Channel Logout 1.0, 2.5); else as authPublic
	authServiceOrOperator      // the certificate of a service, which the domain judges; or the role operator
	authViewer
	authOperator
	authAdmin
)

// String is the name in the table of routes.
func (a auth) String() string {
	return [...]string{"UNSET", "public", "client", "join", "service", "client|viewer", "logout-token", "service|operator", "viewer", "operator", "admin"}[a]
}

// byForm tells whether the credential may be a client assertion in the form (RFC 7521 4.2), so that the body is read before it
// is known who sent it. A certificate that is no good refuses the request before that, whatever stands in the form.
func (a auth) byForm() bool { return a == authClient || a == authIntrospect }

// open tells whether nobody need say who he is before the handler is asked.
func (a auth) open() bool { return a == authPublic || a == authLogout }

// role is the operator's role that a demands, RoleNone if none would do.
func (a auth) role() countersign.Role {
	switch a {
	case authViewer, authIntrospect:
		return countersign.RoleViewer
	case authOperator, authServiceOrOperator:
		return countersign.RoleOperator
	case authAdmin:
		return countersign.RoleAdmin
	}
	return countersign.RoleNone
}

// request is one request whose caller was found entitled to its route.
type request struct {
	echo.Context
	caller countersign.Caller
	body   []byte
	query  map[string]string // the route's parameters that were sent, none of them twice
	form   url.Values        // of the routes whose authentication is byForm
	still  func() error      // judges the client certificate of the request again, if it came with one
}

// route is a row of the table of routes.
type route struct {
	method, path string
	auth         auth
	body         int64    // bytes that are read at most; 0: a body is refused
	media        string   // of the body
	query        []string // the parameters it knows
	oauth        bool     // errors as RFC 6749 5.2 says
	long         bool     // no deadline: a stream, or work that grows with the log
	paced        bool     // the pacer lets requests in; see pacing.go
	handle       func(*Server, *request) error
}

// socket tells whether the admin socket serves the route: not those that live on a proof which no socket carries.
func (r route) socket() bool {
	return r.auth != authClient && r.auth != authJoin && r.auth != authService && r.auth != authLogout
}

// strict tells whether parameters that the route doesn't know are refused. Documents at well-known places tolerate
// them, because caches and probes add some.
func (r route) strict() bool { return strings.HasPrefix(r.path, "/v1/") }

// String is the row in testdata/routes.golden.
func (r route) String() string {
	where := "tls"
	if r.socket() {
		where = "tls,socket"
	}
	row := fmt.Sprintf("%-4s %-44s %-16s %-10s %7d %s %s", r.method, r.path, r.auth, where, r.body, r.media, strings.Join(r.query, ","))
	return strings.TrimRight(row, " ")
}

// Limits of bodies (interfaces.md).
const (
	smallBody  = 8 << 10
	formBody   = 64 << 10
	logoutBody = 20 << 10 // one token
	csrBody    = 128 << 10
	policyBody = policy.MaxDocument
)

// routes is the table. issuerPath is the path of the issuer identifier, "" if it has none: the metadata's place is made
// by inserting the well-known part before it (RFC 8414 3.1), OpenID's also by appending (OpenID Connect Discovery 4).
func routes(issuerPath string) []route {
	const get, post, put = http.MethodGet, http.MethodPost, http.MethodPut
	table := []route{
		{method: get, path: "/.well-known/oauth-authorization-server" + issuerPath, auth: authPublic, handle: (*Server).metadata},
		{method: get, path: "/.well-known/openid-configuration" + issuerPath, auth: authPublic, handle: (*Server).metadata},
		{method: get, path: "/.well-known/jwks.json", auth: authPublic, handle: (*Server).jwks},
		{method: get, path: "/roots.pem", auth: authPublic, handle: (*Server).roots},
		{method: get, path: "/v1/bundle", auth: authPublic, handle: (*Server).bundle},
		{method: post, path: "/oauth2/token", auth: authClient, body: formBody, media: wire.Form, oauth: true, handle: (*Server).token},
		{method: post, path: "/oauth2/revoke", auth: authClient, body: formBody, media: wire.Form, oauth: true, handle: (*Server).revokeToken},
		{method: post, path: "/oauth2/introspect", auth: authIntrospect, body: formBody, media: wire.Form, oauth: true, handle: (*Server).introspect},
		{method: get, path: "/oauth2/revocations", auth: authPublic, query: []string{"since"}, oauth: true, handle: (*Server).feed},
		{method: post, path: "/oauth2/backchannel-logout", auth: authLogout, body: logoutBody, media: wire.Form, oauth: true, handle: (*Server).logout},

		{method: post, path: "/v1/certificates", auth: authJoin, body: csrBody, media: wire.JSON, paced: true, handle: (*Server).issue},
		{method: get, path: "/v1/certificates", auth: authViewer, query: []string{"service", "state", "after", "limit"}, handle: (*Server).certificates},
		{method: get, path: "/v1/certificates/:serial", auth: authViewer, handle: (*Server).certificate},
		{method: post, path: "/v1/certificates/:serial/revoke", auth: authServiceOrOperator, body: smallBody, media: wire.JSON, handle: (*Server).revoke},
		{method: post, path: "/v1/revocations", auth: authOperator, body: smallBody, media: wire.JSON, long: true, handle: (*Server).revokeMany},
		{method: post, path: "/v1/jwt-svid", auth: authService, body: smallBody, media: wire.JSON, handle: (*Server).jwtSVID},
		{method: post, path: "/v1/join-tokens", auth: authOperator, body: smallBody, media: wire.JSON, handle: (*Server).createJoinToken},
		{method: post, path: "/v1/operators", auth: authAdmin, body: csrBody, media: wire.JSON, handle: (*Server).addOperator},
		{method: get, path: "/v1/authority", auth: authViewer, query: []string{"holders"}, long: true, handle: (*Server).authority},
		{method: post, path: "/v1/authority/rotations", auth: authOperator, body: smallBody, media: wire.JSON, handle: (*Server).rotateAuthority},
		{method: post, path: "/v1/authority/rollback", auth: authAdmin, handle: (*Server).rollbackAuthority},
		{method: post, path: "/v1/authority/request", auth: authOperator, handle: (*Server).requestIntermediate},
		{method: post, path: "/v1/authority/intermediates", auth: authAdmin, body: csrBody, media: wire.JSON, handle: (*Server).importIntermediate},
		{method: post, path: "/v1/authority/:serial/retire", auth: authAdmin, long: true, handle: (*Server).retireAuthority},

		{method: get, path: "/v1/policy", auth: authViewer, query: []string{"version"}, handle: (*Server).policyDocument},
		{method: put, path: "/v1/policy", auth: authAdmin, body: policyBody, media: wire.YAML, query: []string{"dry_run"}, handle: (*Server).applyPolicy},
		{method: get, path: "/v1/policy/history", auth: authViewer, query: []string{"limit"}, handle: (*Server).policyHistory},
		{method: post, path: "/v1/policy/rollback", auth: authAdmin, body: smallBody, media: wire.JSON, handle: (*Server).rollback},
		{method: post, path: "/v1/policy/explain", auth: authViewer, body: formBody, media: wire.JSON, handle: (*Server).explain},
		{method: post, path: "/v1/policy/simulate", auth: authViewer, body: policyBody, media: wire.YAML, query: []string{"last"}, handle: (*Server).simulate},
		{method: get, path: "/v1/policy/suggestions", auth: authViewer, query: []string{"days"}, long: true, handle: (*Server).suggestions},
		{method: get, path: "/v1/services", auth: authViewer, handle: (*Server).services},
		{method: get, path: "/v1/callers", auth: authService, query: []string{"wait"}, handle: (*Server).callers},
		{method: post, path: "/v1/services/:name/disable", auth: authOperator, body: smallBody, media: wire.JSON, handle: (*Server).disableService},
		{method: post, path: "/v1/services/:name/enable", auth: authOperator, body: smallBody, media: wire.JSON, handle: (*Server).enableService},
		{method: post, path: "/v1/freeze", auth: authAdmin, body: smallBody, media: wire.JSON, handle: (*Server).freeze},
		{method: post, path: "/v1/thaw", auth: authAdmin, body: smallBody, media: wire.JSON, handle: (*Server).thaw},

		{method: post, path: "/v1/tokens/revocations", auth: authOperator, body: smallBody, media: wire.JSON, handle: (*Server).revokeTokens},
		{method: get, path: "/v1/tokens/revocations", auth: authViewer, query: []string{"after", "limit"}, handle: (*Server).tokenRevocations},

		{method: get, path: "/v1/keys", auth: authViewer, handle: (*Server).keys},
		{method: post, path: "/v1/keys/:purpose/rotate", auth: authOperator, body: smallBody, media: wire.JSON, handle: (*Server).rotate},
		{method: post, path: "/v1/keys/:kid/retire", auth: authAdmin, body: smallBody, media: wire.JSON, handle: (*Server).retire},

		{method: post, path: "/v1/kek/rotate", auth: authAdmin, handle: (*Server).rotateKEK},

		{method: get, path: "/v1/audit", auth: authViewer, query: auditParameters(), long: true, handle: (*Server).searchAudit},
		{method: get, path: "/v1/audit/verification", auth: authViewer, long: true, handle: (*Server).verifyAudit},
		{method: get, path: "/v1/status", auth: authViewer, handle: (*Server).status},
		{method: post, path: "/v1/backup", auth: authAdmin, long: true, handle: (*Server).backup},
		{method: get, path: "/v1/clock", auth: authViewer, handle: (*Server).clock},
		{method: post, path: "/v1/clock/confirm", auth: authAdmin, body: smallBody, media: wire.JSON, handle: (*Server).confirmClock},
	}
	if issuerPath != "" {
		appended := route{method: get, path: issuerPath + "/.well-known/openid-configuration", auth: authPublic, handle: (*Server).metadata}
		table = append(table, appended)
	}
	return table
}
