package export

import (
	"strings"

	"github.com/countersign/countersign"
)

// envoy writes for each service the two HTTP filters of the proxy before it: jwt_authn, then rbac.
func (e *exporter) envoy() {
	e.line("# Envoy HTTP filters of the Countersign policy of %s: one document for each service, for the listener before it.", e.p.TrustDomain)
	e.line("# The listener must demand client certificates (require_client_certificate) of the authority's roots: rbac reads their URI SAN.")
	e.line("# The cluster %s must reach %s.", q(e.o.JWKSCluster), q(e.o.JWKSURI))
	for _, name := range e.entries() {
		e.line("# %s is an entry point. Users' tokens are not ours: nothing here lets anybody in from outside.", name)
	}
	e.disabled("# ")
	for _, s := range e.active() {
		e.envoyService(s)
	}
}

func (e *exporter) envoyService(s *countersign.Service) {
	calls := e.callsTo(s.Name)
	tokens, bare := false, false
	for _, c := range calls {
		tokens, bare = tokens || len(c.Scopes) > 0, bare || len(c.Scopes) == 0
	}
	e.line("---")
	e.line("# %s", s.Name)
	e.line("http_filters:")
	if tokens {
		e.jwtAuthn(s, bare)
	}
	e.line("  - name: envoy.filters.http.rbac")
	e.line("    typed_config:")
	e.line("      \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC")
	e.line("      rules:")
	e.line("        action: ALLOW # what no policy allows is denied")
	if len(calls) == 0 {
		e.line("        policies: {} # nobody may call %s", s.Name)
		return
	}
	e.line("        policies:")
	for _, c := range calls {
		e.notes("          # ", c, true)
		if s.Bind == countersign.BindMTLS && len(c.Scopes) > 0 {
			e.line("          # NOT CHECKED HERE: the token is bound to the caller's certificate (cnf). The service checks it.")
		}
		e.envoyPolicy(c)
	}
}

// jwtAuthn verifies a token where there is one. Where calls by mTLS alone exist, none may be missing for them: rbac tells
// the callers apart.
func (e *exporter) jwtAuthn(s *countersign.Service, bare bool) {
	e.line("  - name: envoy.filters.http.jwt_authn")
	e.line("    typed_config:")
	e.line("      \"@type\": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication")
	e.line("      providers:")
	e.line("        countersign:")
	e.line("          issuer: %s", q(e.o.Issuer))
	e.line("          audiences: [%s]", q(s.Name))
	e.line("          remote_jwks:")
	e.line("            http_uri: {uri: %s, cluster: %s, timeout: 5s}", q(e.o.JWKSURI), q(e.o.JWKSCluster))
	e.line("            cache_duration: 300s # shorter than a key is published before it signs")
	e.line("          forward: true # the service exchanges it for its own calls")
	e.line("          payload_in_metadata: countersign")
	e.line("          normalize_payload_in_metadata: {space_delimited_claims: [scope]}")
	e.line("      rules:")
	e.line("        - match: {prefix: /}")
	if bare {
		e.line("          requires: {requires_any: {requirements: [{provider_name: countersign}, {allow_missing: {}}]}} # rbac demands it where a call has scopes")
	} else {
		e.line("          requires: {provider_name: countersign}")
	}
}

// envoyPolicy demands both of a call with scopes: the caller's certificate, and a token that was made for this caller.
func (e *exporter) envoyPolicy(c *countersign.Call) {
	from, _ := e.p.Service(c.From)
	certificate := "{authenticated: {principal_name: {exact: " + q(from.ID.String()) + "}}}"
	e.line("          %s:", q(c.From))
	e.line("            permissions: [{any: true}]")
	if len(c.Scopes) == 0 {
		e.line("            principals: [%s]", certificate)
		return
	}
	var scopes []string
	for _, name := range scopeNames(c) {
		scopes = append(scopes, claim("scope", "{list_match: {one_of: {string_match: {exact: "+q(name)+"}}}}"))
	}
	e.line("            principals:")
	e.line("              - and_ids:")
	e.line("                  ids:")
	e.line("                    - %s", certificate)
	e.line("                    - %s", claim("client_id", "{string_match: {exact: "+q(from.ID.String())+"}}"))
	e.line("                    - {or_ids: {ids: [%s]}}", strings.Join(scopes, ", "))
}

// claim is a principal by a claim that jwt_authn put into the metadata.
func claim(name, value string) string {
	return "{metadata: {filter: envoy.filters.http.jwt_authn, path: [{key: countersign}, {key: " + name + "}], value: " + value + "}}"
}
