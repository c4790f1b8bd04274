package export

// kubernetes writes NetworkPolicies: nothing in the namespace may talk, but along the calls, to DNS and to the authority.
func (e *exporter) kubernetes() {
	e.line("# NetworkPolicies of the Countersign policy of %s: default deny, and one policy for each service.", e.p.TrustDomain)
	e.note("# ", "A NetworkPolicy knows pods, not identities: who runs a pod labelled %s=NAME is NAME to it. The peers prove themselves by mTLS.", e.o.AppLabel)
	e.line("# It denies ALL other traffic of the namespace: databases, and users of the entry points, need policies of their own.")
	for _, name := range e.entries() {
		e.line("# %s is an entry point. Nothing here lets anybody in from outside: add a policy for your ingress controller.", name)
	}
	e.disabled("# ")
	e.policyHead("countersign.default-deny") // with a dot, which no service has in its name
	e.line("  podSelector: {}")
	e.line("  policyTypes: [Ingress, Egress]")
	for _, s := range e.active() {
		e.service(s.Name)
	}
	e.authority()
}

// authority lets the services in, and the authority out to DNS: its issuers are outside, where only addresses are known.
func (e *exporter) authority() {
	e.policyHead("countersign.authority")
	e.line("  podSelector: {matchLabels: {%s: countersign}}", q(e.o.AppLabel))
	e.line("  policyTypes: [Ingress, Egress]")
	if len(e.active()) > 0 { // the API server refuses `In` without values
		e.line("  ingress:")
		e.line("    - from:")
		e.line("        - podSelector: {matchExpressions: [{key: %s, operator: In, values: %s}]}", q(e.o.AppLabel), e.names())
		e.line("      ports: [{protocol: TCP, port: 8443}]")
	}
	e.line("  egress:")
	for i := range e.p.Issuers {
		issuer := &e.p.Issuers[i]
		if issuer.JWKS != "" {
			continue // its keys stand in the policy
		}
		from := issuer.JWKSURI
		if from == "" {
			from = issuer.URL + " (and the jwks_uri that it names)"
		}
		e.note("    # ", "NOT ALLOWED HERE: the keys of the issuer %s, from %s. Add a rule for its addresses: - to: [{ipBlock: {cidr: ...}}]", issuer.Name, from)
	}
	e.dns()
}

func (e *exporter) dns() {
	e.line("    # DNS")
	e.line("    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]")
	e.line("      ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]")
}

func (e *exporter) names() string {
	s := ""
	for _, service := range e.active() {
		if s != "" {
			s += ", "
		}
		s += q(service.Name)
	}
	return "[" + s + "]"
}

func (e *exporter) policyHead(name string) {
	e.line("---")
	e.line("apiVersion: networking.k8s.io/v1")
	e.line("kind: NetworkPolicy")
	e.line("metadata: {name: %s, namespace: %s}", q(name), q(e.o.Namespace))
	e.line("spec:")
}

func (e *exporter) service(name string) {
	e.policyHead("countersign-" + name)
	e.line("  podSelector: {matchLabels: {%s: %s}}", q(e.o.AppLabel), q(name))
	e.line("  policyTypes: [Ingress, Egress]")
	if calls := e.callsTo(name); len(calls) > 0 {
		e.line("  ingress:")
		for _, c := range calls {
			e.notes("    # ", c, false)
			e.line("    - from: [{podSelector: {matchLabels: {%s: %s}}}]", q(e.o.AppLabel), q(c.From))
			e.ports()
		}
	}
	e.line("  egress:")
	for _, c := range e.callsFrom(name) {
		e.line("    - to: [{podSelector: {matchLabels: {%s: %s}}}]", q(e.o.AppLabel), q(c.To))
		e.ports()
	}
	e.line("    # the authority: certificates and tokens")
	e.line("    - to: [{podSelector: {matchLabels: {%s: countersign}}}]", q(e.o.AppLabel))
	e.line("      ports: [{protocol: TCP, port: 8443}]")
	e.dns()
}

func (e *exporter) ports() {
	if e.o.Port > 0 {
		e.line("      ports: [{protocol: TCP, port: %d}]", e.o.Port)
	}
}
