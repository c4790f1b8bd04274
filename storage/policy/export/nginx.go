package export

import "strings"

// nginx writes maps for the http block. Stock nginx verifies chains, but has no variable for a URI SAN.
func (e *exporter) nginx() {
	e.line("# nginx maps of the Countersign policy of %s, for the http block.", e.p.TrustDomain)
	e.line("#")
	e.line("# In the server of a service, here orders:")
	e.line("#")
	e.line("#     ssl_client_certificate roots.pem;   # the authority's roots and nothing else: GET /roots.pem")
	e.line("#     ssl_verify_client      on;")
	e.line("#     ssl_verify_depth       2;           # root, intermediate, leaf")
	e.line("#     if ($countersign_to_orders = 0) { return 403; }")
	e.line("#")
	e.line("# What nginx does not check, and the service therefore has to:")
	e.line("# - WIDER THAN THE POLICY: stock nginx has no variable for a certificate's URI SAN. The maps compare the subject, CN=<name>, which")
	e.line("#   an operator's certificate has too: an operator called like a service passes for it here. Name operators otherwise.")
	e.line("# - Tokens: nginx (open source) verifies none. The service checks signature, iss, aud, exp, scope, client_id.")
	e.line("# - Revocation: only by ssl_crl. A service that leaves the policy is denied when this file is exported anew.")
	e.disabled("# ")
	e.line("")
	e.line("# Remove these if the http block sets them already, and let it set as much.")
	e.line("map_hash_max_size          65536;")
	e.line("map_hash_bucket_size       512;")
	e.line("variables_hash_max_size    65536;")
	e.line("variables_hash_bucket_size 256;")
	e.line("")
	e.line("map \"$ssl_client_verify:$ssl_client_s_dn\" $countersign_caller {")
	e.line("    default \"\";")
	for _, s := range e.active() {
		e.line("    \"SUCCESS:CN=%s\" %s;", s.Name, q(s.ID.String()))
	}
	e.line("}")
	for _, s := range e.active() {
		e.line("")
		for _, c := range e.callsTo(s.Name) {
			e.notes("# ", c, false)
		}
		e.line("map $countersign_caller $countersign_to_%s {", strings.ReplaceAll(s.Name, "-", "_"))
		e.line("    default 0;")
		for _, c := range e.callsTo(s.Name) {
			from, _ := e.p.Service(c.From)
			e.line("    %s 1;", q(from.ID.String())) // never the bare name: a service may be called default
		}
		e.line("}")
	}
}
