package export

import "github.com/countersign/countersign"

// istio writes, for each service, who may call it (AuthorizationPolicy) and which tokens are valid there
// (RequestAuthentication, which refuses bad tokens and lets none pass: the policy beside it demands one).
func (e *exporter) istio() {
	e.line("# Istio policies of the Countersign policy of %s. Everything in the namespace is denied but the calls below.", e.p.TrustDomain)
	e.line("# source.principals needs mutual TLS with the identities %s (SPIFFE IDs without their scheme).", q(e.principal("NAME")))
	for _, name := range e.entries() {
		e.line("# %s is an entry point. Users' tokens are not ours: add a RequestAuthentication of their issuer, and a rule for your ingress gateway.", name)
	}
	e.disabled("# ")
	e.object("AuthorizationPolicy", "countersign.default-deny") // with a dot, which no service has in its name
	e.line("spec: {} # no selector and no rules: ALLOW nothing")
	for _, s := range e.active() {
		e.istioService(s)
	}
}

func (e *exporter) object(kind, name string) {
	e.line("---")
	e.line("apiVersion: security.istio.io/v1")
	e.line("kind: %s", kind)
	e.line("metadata: {name: %s, namespace: %s}", q(name), q(e.o.Namespace))
}

func (e *exporter) istioService(s *countersign.Service) {
	calls := e.callsTo(s.Name)
	if len(calls) == 0 {
		e.line("# Nobody may call %s.", s.Name)
		return
	}
	tokens := false
	for _, c := range calls {
		tokens = tokens || len(c.Scopes) > 0
	}
	if tokens {
		e.object("RequestAuthentication", "countersign-"+s.Name)
		e.line("spec:")
		e.line("  selector: {matchLabels: {%s: %s}}", q(e.o.AppLabel), q(s.Name))
		e.line("  jwtRules:")
		e.line("    - issuer: %s", q(e.o.Issuer))
		e.line("      jwksUri: %s", q(e.o.JWKSURI))
		e.line("      audiences: [%s]", q(s.Name))
		e.line("      forwardOriginalToken: true # the service exchanges it for its own calls")
	}
	e.object("AuthorizationPolicy", "countersign-"+s.Name)
	e.line("spec:")
	e.line("  selector: {matchLabels: {%s: %s}}", q(e.o.AppLabel), q(s.Name))
	e.line("  action: ALLOW")
	e.line("  rules:")
	for _, c := range calls {
		e.notes("    # ", c, true)
		e.istioRule(c)
	}
	if s.Bind == countersign.BindMTLS {
		e.line("    # NOT CHECKED HERE: the token is bound to the caller's certificate (cnf). The service checks it.")
	}
}

// istioRule demands both of a call with scopes: the caller's certificate, and a token that was made for this caller.
func (e *exporter) istioRule(c *countersign.Call) {
	e.line("    - from:")
	e.line("        - source:")
	e.line("            principals: [%s]", q(e.principal(c.From)))
	if len(c.Scopes) == 0 {
		return
	}
	e.line("            requestPrincipals: [%s]", q(e.o.Issuer+"/*"))
	from, _ := e.p.Service(c.From)
	e.line("      when:")
	e.line("        - {key: %s, values: [%s]}", q("request.auth.claims[client_id]"), q(from.ID.String()))
	e.line("        - {key: %s, values: %s}", q("request.auth.claims[scope]"), quotedList(scopeNames(c)))
}

func quotedList(words []string) string {
	s := ""
	for i, w := range words {
		if i > 0 {
			s += ", "
		}
		s += q(w)
	}
	return "[" + s + "]"
}
