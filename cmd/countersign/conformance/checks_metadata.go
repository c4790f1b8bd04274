package conformance

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// metadata is the document of RFC 8414 3, fetched once: the well-known path goes before the issuer's path.
func (p *probe) metadata() *reply {
	if p.meta == nil {
		issuer, err := url.Parse(p.cfg.Issuer)
		if err != nil { // Config.check parsed it
			p.meta = &reply{p: p, err: err}
			return p.meta
		}
		target := *issuer
		target.Path, target.RawPath = "/.well-known/oauth-authorization-server"+strings.TrimSuffix(issuer.Path, "/"), ""
		p.meta = p.send(message{as: "nobody", method: http.MethodGet, url: target.String()})
	}
	return p.meta
}

// keys is the JWK Set that the metadata names, fetched once; nil if it names none.
func (p *probe) keys() *reply {
	if p.jwks == nil && p.cfg.Issuer != "" {
		target := p.metadata().text("jwks_uri")
		if u, err := url.Parse(target); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil
		}
		p.jwks = p.send(message{as: "nobody", method: http.MethodGet, url: target})
	}
	return p.jwks
}

func described(fault func(*probe, *reply) string) func(*probe) verdict {
	return func(p *probe) verdict {
		if why := fault(p, p.metadata()); why != "" {
			return fail(p.meta, "%s", why)
		}
		return pass()
	}
}

func metadataChecks() []Check {
	needs := []string{"issuer", "metadata"}
	return []Check{
		{"metadata.served", "RFC 8414 3.2", Must, "the metadata is a JSON object, with 200 and application/json", []string{"issuer"},
			described(func(_ *probe, r *reply) string {
				return unless(r.err == nil && r.status == http.StatusOK && isJSON(r) && r.object != nil, "it is not")
			})},
		{"metadata.issuer-url", "RFC 8414 2", Must, "the issuer identifier is https, without query and fragment", []string{"issuer"}, func(p *probe) verdict {
			if u, err := url.Parse(p.cfg.Issuer); err != nil || u.Scheme != "https" || strings.ContainsAny(p.cfg.Issuer, "?#") {
				return fail(nil, "it is not")
			}
			return pass()
		}},
		{"metadata.issuer", "RFC 8414 3.3", Must, "issuer is exactly the issuer identifier", needs, described(func(p *probe, r *reply) string {
			return unless(r.text("issuer") == p.cfg.Issuer, "it is another")
		})},
		{"metadata.token-endpoint", "RFC 8414 2", Must, "token_endpoint is the endpoint that is tested", needs, described(func(p *probe, r *reply) string {
			return unless(r.text("token_endpoint") == p.cfg.Endpoint, "it is another")
		})},
		{"metadata.jwks-uri", "RFC 8414 2", Should, "jwks_uri is there, and https", needs, described(func(_ *probe, r *reply) string {
			return unless(strings.HasPrefix(r.text("jwks_uri"), "https://"), "it is not")
		})},
		{"metadata.response-types", "RFC 8414 2", Must, "response_types_supported is an array", needs, described(func(_ *probe, r *reply) string {
			raw := r.object["response_types_supported"]
			return unless(len(raw) > 0 && raw[0] == '[', "it is not")
		})},
		{"metadata.grant-types", "RFC 8414 2", Must, "grant_types_supported has the token exchange: what is not there is not offered", needs,
			described(func(_ *probe, r *reply) string {
				return unless(slices.Contains(texts(r.object["grant_types_supported"]), grantExchange), "it has not")
			})},
		{"metadata.auth-methods", "RFC 8705 2.1.1", Must, "token_endpoint_auth_methods_supported has a method of mutual TLS, if the client used it",
			[]string{"issuer", "metadata", "certificate"}, described(func(_ *probe, r *reply) string {
				methods := texts(r.object["token_endpoint_auth_methods_supported"])
				return unless(slices.Contains(methods, "tls_client_auth") || slices.Contains(methods, "self_signed_tls_client_auth"), "it has not")
			})},
		{"metadata.no-none", "RFC 8414 2", Must, "token_endpoint_auth_signing_alg_values_supported has no none, and is there with private_key_jwt", needs,
			described(func(_ *probe, r *reply) string {
				algorithms := texts(r.object["token_endpoint_auth_signing_alg_values_supported"])
				keys := slices.Contains(texts(r.object["token_endpoint_auth_methods_supported"]), "private_key_jwt")
				return unless(!slices.Contains(algorithms, "none") && (!keys || len(algorithms) > 0), "it is not so")
			})},
		{"metadata.bound", "RFC 8705 3.3", Should, "tls_client_certificate_bound_access_tokens is true if tokens are bound", []string{"issuer", "metadata", "grant", "jwt"},
			func(p *probe) verdict {
				if !strings.Contains(string(p.goodReply().issuedToken().claims["cnf"]), "x5t#S256") {
					return notApplicable("the token is bound to no certificate")
				}
				if !p.supportsBinding() {
					return fail(p.meta, "it is not")
				}
				return pass()
			}},
		{"token.iss", "RFC 9068 2.2", Must, "the token's iss is the issuer identifier", []string{"issuer", "grant", "jwt"}, good(func(p *probe, r *reply) string {
			return unless(r.issuedToken().text("iss") == p.cfg.Issuer, "it is another")
		})},
	}
}

func keyChecks() []Check {
	needs := []string{"issuer", "metadata", "keys"}
	each := func(fault func(map[string]json.RawMessage, int) string) func(*probe) verdict {
		return func(p *probe) verdict {
			var keys []map[string]json.RawMessage
			r := p.keys()
			if json.Unmarshal(r.object["keys"], &keys) != nil || len(keys) == 0 {
				return fail(r, "there is no key in it")
			}
			for _, key := range keys {
				if why := fault(key, len(keys)); why != "" {
					return fail(nil, "%s", why)
				}
			}
			return pass()
		}
	}
	return []Check{
		{"keys.served", "RFC 8414 2", Must, "jwks_uri gives a JWK Set", []string{"issuer", "metadata"}, func(p *probe) verdict {
			r := p.keys()
			switch {
			case r == nil:
				return notApplicable("the metadata names no jwks_uri")
			case r.err != nil || r.status != http.StatusOK || len(r.object["keys"]) == 0:
				return fail(r, "it does not")
			}
			return pass()
		}},
		{"keys.public", "RFC 7517 9.2", Must, "the keys are public ones", needs, each(func(key map[string]json.RawMessage, _ int) string {
			for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
				if key[name] != nil {
					return "one has the private member " + name
				}
			}
			return ""
		})},
		{"keys.kid", "RFC 7517 4.5", Should, "several keys have each a kid", needs, each(func(key map[string]json.RawMessage, n int) string {
			return unless(n == 1 || len(texts(key["kid"])) == 1, "one has none")
		})},
		{"keys.signature", "RFC 7515 5.2", Must, "the token's signature is good by one of them", []string{"issuer", "metadata", "keys", "grant", "jwt"}, func(p *probe) verdict {
			if err := signedBy(p.goodReply().text("access_token"), p.keys().body); err != nil {
				return fail(p.good, "it is not: %v", err)
			}
			return pass()
		}},
		{"keys.token-kid", "RFC 7515 4.1.4", Should, "the token's header has a kid, and it is that of one of them", []string{"issuer", "metadata", "keys", "grant", "jwt"},
			func(p *probe) verdict {
				kid := p.goodReply().issuedToken().headerText("kid")
				v := each(func(key map[string]json.RawMessage, _ int) string {
					return unless(kid == "" || !slices.Contains(texts(key["kid"]), kid), "found")
				})(p)
				if v.outcome == Fail {
					return pass()
				}
				return fail(p.good, "it has not")
			}},
	}
}
