package api

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

// credential is one way to come to the door.
type credential struct {
	name   string
	http   *http.Client
	header []string
	// refusal is the code with which a route of this authentication refuses the credential; "" is admitted.
	refusal func(a auth) countersign.Code
}

// byRole is what a service's or operator's certificate is refused with.
func byRole(service bool, role countersign.Role) func(auth) countersign.Code {
	return func(a auth) countersign.Code {
		switch a {
		case authPublic, authLogout, authJoin:
			return ""
		case authClient, authIntrospect, authServiceOrOperator, authService:
			if service {
				return ""
			}
		}
		switch {
		case a == authClient, a == authService, service:
			return countersign.CodeWrongCredential
		case role < a.role():
			return countersign.CodeRole
		}
		return ""
	}
}

// always is what a credential is refused with wherever one is asked for.
func always(code countersign.Code) func(auth) countersign.Code {
	return func(a auth) countersign.Code {
		if a == authPublic || a == authLogout {
			return ""
		}
		return code
	}
}

func (k *kit) credentials() []credential {
	k.Helper()
	token := func() []string {
		made, err := k.admin().CreateJoinToken(k.Context(), wire.JoinTokenRequest{Service: "inventory", TTL: countersign.Duration(time.Hour)})
		k.must(err)
		return []string{"Authorization", "Bearer " + made.Token}
	}
	service, revoked := k.join("reports"), k.join("orders")
	k.must(k.admin().Revoke(k.Context(), revoked.Serial, "keyCompromise"))
	onlyJoin := func(code countersign.Code) func(auth) countersign.Code {
		return func(a auth) countersign.Code {
			switch a {
			case authPublic, authLogout:
				return ""
			case authJoin:
				return code
			}
			return countersign.CodeWrongCredential
		}
	}
	operator := func(role countersign.Role) credential {
		return credential{role.String(), k.raw(k.operator("op-"+role.String(), role)), nil, byRole(false, role)}
	}
	return []credential{
		{"nothing", k.raw(nil), nil, always(countersign.CodeNoCredential)},
		{"service", k.raw(service), nil, byRole(true, countersign.RoleNone)},
		operator(countersign.RoleViewer), operator(countersign.RoleOperator), operator(countersign.RoleAdmin),
		{"join token", k.raw(nil), token(), onlyJoin("")},
		{"unknown join token", k.raw(nil), []string{"Authorization", "Bearer ABCDEFGHIJKLMNOPQRSTUVWXYZ"}, onlyJoin(countersign.CodeJoinToken)},
		{"basic", k.raw(nil), []string{"Authorization", "Basic eDp5"}, onlyJoin(countersign.CodeWrongCredential)},
		{"empty bearer", k.raw(nil), []string{"Authorization", "Bearer "}, onlyJoin(countersign.CodeWrongCredential)},
		{"two headers", k.raw(nil), append(token(), token()...), always(countersign.CodeTwoCredentials)},
		{"certificate and token", k.raw(service), token(), always(countersign.CodeTwoCredentials)},
		{"foreign certificate", k.raw(foreign(k.T, service)), nil, always(countersign.CodeBadCertificate)},
		{"revoked certificate", k.raw(revoked), nil, always(countersign.CodeRevokedPeer)},
		{"the daemon's certificate", k.raw(k.daemonIdentity()), nil, always(countersign.CodeBadCertificate)},
	}
}

// daemonIdentity is a certificate with the authority's own ID, which is no client's.
func (k *kit) daemonIdentity() *identity.Identity {
	k.Helper()
	key, csr := newCSR(k.T)
	issued, err := k.ca.IssueServer(k.Context(), []byte(csr))
	k.must(err)
	return &identity.Identity{ID: issued.ID, Key: key, Chain: issued.Chain, Roots: k.ca.Roots()}
}

// authCode tells whether a code is a refusal of the caller rather than of what he asked for.
func authCode(code countersign.Code) bool {
	return strings.HasPrefix(string(code), "CS101") || code == countersign.CodeJoinToken
}

// TestEveryRouteWithEveryCredential goes to every route of the table with every kind of credential.
func TestEveryRouteWithEveryCredential(t *testing.T) {
	k := newKit(t, kitOptions{})
	path := strings.NewReplacer(":serial", "00", ":name", "nobody", ":purpose", "nothing")
	for _, cred := range k.credentials() {
		for _, r := range routes("") {
			if r.long && cred.refusal(r.auth) == "" {
				continue // admitted: its own test
			}
			header := append([]string{"Content-Type", r.media}, cred.header...)
			got := k.send(cred.http, r.method, k.url+path.Replace(r.path), body(r), header...)
			want := cred.refusal(r.auth)
			switch {
			case r.auth == authServiceOrOperator && want == "" && got.code() == countersign.CodeRole:
				// the domain's own word: the serial is not the service's own
			case want == "" && authCode(got.code()):
				t.Errorf("%s at %s %s: refused with %s, want it admitted", cred.name, r.method, r.path, got.body)
			case want != "" && got.code() != want:
				t.Errorf("%s at %s %s: %d %s, want %s", cred.name, r.method, r.path, got.status, got.body, want)
			case want != "" && got.status != http.StatusUnauthorized && got.status != http.StatusForbidden && want != countersign.CodeTwoCredentials:
				t.Errorf("%s at %s %s: status %d with %s", cred.name, r.method, r.path, got.status, want)
			}
		}
	}
	k.checkRefusalsAreAudited()
}

// body is one that the route's decoder takes and the domain refuses, so that nothing changes.
func body(r route) string {
	switch {
	case r.oauth:
		return "grant_type=none"
	case r.media == wire.JSON:
		return "{}"
	case r.media == wire.YAML:
		return "trust_domain: other"
	}
	return ""
}

func (k *kit) checkRefusalsAreAudited() {
	k.Helper()
	byName := map[string]int{}
	for _, r := range k.records("request.denied") {
		byName[r.By.Name]++
		if r.Code == "" || !strings.Contains(r.Subject, "/") || r.RequestID == "" {
			k.Errorf("a refusal's record says too little: %+v", r)
		}
	}
	for _, name := range []string{"spiffe://shop.internal/reports", "spiffe://shop.internal/operator/op-viewer"} {
		if byName[name] == 0 {
			k.Errorf("no refusal of %s is in the audit log: %v", name, byName)
		}
	}
}

// TestAuthorise holds the pure decision against every kind of caller, also those that no transport of ours makes.
func TestAuthorise(t *testing.T) {
	id := func(s string) countersign.ID {
		parsed, err := countersign.ParseID(s)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	service, operator, authority := id("spiffe://td/orders"), id("spiffe://td/operator/ann"), id("spiffe://td/countersign")
	callers := []struct {
		name    string
		caller  countersign.Caller
		allowed []auth
	}{
		{"nobody", countersign.Caller{}, nil},
		{"nobody with a role", countersign.Caller{Role: countersign.RoleAdmin}, nil},
		{"service", countersign.Caller{Method: countersign.ByCertificate, ID: service}, []auth{authClient, authJoin, authService, authIntrospect, authServiceOrOperator}},
		{"service with a role", countersign.Caller{Method: countersign.ByCertificate, ID: service, Role: countersign.RoleAdmin}, []auth{authClient, authJoin, authService, authIntrospect, authServiceOrOperator}},
		{"service by assertion", countersign.Caller{Method: countersign.ByAssertion, ID: service}, []auth{authClient, authIntrospect}},
		{"operator by assertion", countersign.Caller{Method: countersign.ByAssertion, ID: operator, Role: countersign.RoleAdmin}, nil},
		{"joiner", countersign.Caller{Method: countersign.ByJoinToken, ID: service}, []auth{authJoin}},
		{"attested", countersign.Caller{Method: countersign.ByAttestation, ID: service}, []auth{authJoin}},
		{"attested with a role", countersign.Caller{Method: countersign.ByAttestation, ID: operator, Role: countersign.RoleAdmin}, []auth{authJoin}},
		{"joiner with a role", countersign.Caller{Method: countersign.ByJoinToken, ID: operator, Role: countersign.RoleAdmin}, []auth{authJoin}},
		{"authority", countersign.Caller{Method: countersign.ByCertificate, ID: authority, Role: countersign.RoleAdmin}, nil},
		{"operator without a role", countersign.Caller{Method: countersign.ByCertificate, ID: operator}, []auth{authJoin}},
		{"viewer", countersign.Caller{Method: countersign.ByCertificate, ID: operator, Role: countersign.RoleViewer}, []auth{authJoin, authIntrospect, authViewer}},
		{"operator", countersign.Caller{Method: countersign.ByCertificate, ID: operator, Role: countersign.RoleOperator}, []auth{authJoin, authIntrospect, authViewer, authOperator, authServiceOrOperator}},
		{"admin", countersign.Caller{Method: countersign.ByCertificate, ID: operator, Role: countersign.RoleAdmin}, []auth{authJoin, authIntrospect, authViewer, authOperator, authServiceOrOperator, authAdmin}},
		{"socket", countersign.Caller{Method: countersign.BySocket, Role: countersign.RoleAdmin}, []auth{authIntrospect, authViewer, authOperator, authServiceOrOperator, authAdmin}},
		{"daemon", countersign.Daemon("test"), nil},
	}
	for _, tc := range callers {
		allowed := map[auth]bool{authPublic: true, authLogout: true}
		for _, a := range tc.allowed {
			allowed[a] = true
		}
		for a := authUnset; a <= authAdmin; a++ {
			if err := authorise(a, tc.caller); (err == nil) != allowed[a] {
				t.Errorf("%s at %s: %v, want allowed %v", tc.name, a, err, allowed[a])
			}
		}
	}
}
