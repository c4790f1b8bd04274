package conformance

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
)

func transportChecks() []Check {
	grant := []string{"grant"}
	return []Check{
		{"transport.good", "RFC 8693 2.2.1", Must, "a good request gets a token", nil,
			func(p *probe) verdict { return p.goodReply().granted() }},
		{"transport.tls", "RFC 6749 3.2", Must, "the endpoint is served over TLS", nil, func(p *probe) verdict {
			if why := needs()["https"](p); why != "" {
				return fail(nil, "%s", why)
			}
			return pass()
		}},
		{"transport.tls-version", "RFC 9325 3.1.1", Must, "TLS 1.1 and older are refused", []string{"https"}, oldTLS},
		{"transport.get", "RFC 6749 3.2", Must, "GET gets no token", grant, func(p *probe) verdict {
			return p.send(message{method: http.MethodGet, query: p.prove(p.form()).Encode(), bare: true}).refused()
		}},
		{"transport.put", "RFC 6749 3.2", Must, "no method but POST gets a token", grant, func(p *probe) verdict {
			return p.send(message{method: http.MethodPut, typ: typeForm, body: p.prove(p.form()).Encode(), bare: true}).refused()
		}},
		{"transport.allow", "RFC 9110 15.5.6", Must, "a 405 names the methods that are allowed", nil, func(p *probe) verdict {
			r := p.send(message{method: http.MethodDelete, bare: true})
			switch {
			case r.err != nil || r.status != http.StatusMethodNotAllowed:
				return notApplicable("DELETE is answered with %d", r.status)
			case !strings.Contains(r.header.Get("Allow"), http.MethodPost):
				return fail(r, "there is no Allow header with POST")
			}
			return pass()
		}},
		{"transport.json", "RFC 8693 2.1", Must, "a JSON body gets no token", grant, func(p *probe) verdict {
			return p.send(message{typ: "application/json", body: jsonOf(p.prove(p.form())), bare: true}).refused()
		}},
		{"transport.multipart", "RFC 8693 2.1", Must, "a multipart/form-data body gets no token", grant, func(p *probe) verdict {
			typ, body := multipartOf(p.prove(p.form()))
			return p.send(message{typ: typ, body: body, bare: true}).refused()
		}},
		{"transport.text", "RFC 8693 2.1", Must, "a form that is declared text/plain gets no token", grant, func(p *probe) verdict {
			return p.send(message{typ: "text/plain", body: p.prove(p.form()).Encode(), bare: true}).refused()
		}},
		{"transport.charset", "RFC 9110 8.3.1", Should, "a form with charset=UTF-8 is taken: parameters of a media type do not change it", grant,
			func(p *probe) verdict {
				return p.send(message{typ: typeForm + "; charset=UTF-8", body: p.prove(p.form()).Encode()}).granted()
			}},
		{"transport.query", "RFC 8693 2.1", Must, "parameters in the URL alone get no token", grant, func(p *probe) verdict {
			return p.send(message{query: p.prove(p.form()).Encode(), bare: true}).refused()
		}},
		{"transport.query-one", "RFC 8693 2.1", Must, "a parameter that is in the URL alone is not taken", grant, func(p *probe) verdict {
			query := url.Values{"subject_token": {p.cfg.SubjectToken}}.Encode()
			return p.send(message{query: query, body: p.prove(p.form("subject_token")).Encode(), bare: true}).refused()
		}},
		{"transport.malformed", "RFC 6749 B", Should, "a form that is not percent-encoded is refused", grant, func(p *probe) verdict {
			return p.send(message{body: p.prove(p.form()).Encode() + "&x=%zz", bare: true}).refused()
		}},
	}
}

// oldTLS offers TLS 1.1 at most.
func oldTLS(p *probe) verdict {
	u, err := url.Parse(p.cfg.Endpoint)
	if err != nil {
		return notApplicable("%v", err)
	}
	address := u.Host
	if u.Port() == "" {
		address = u.Host + ":443"
	}
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: p.cfg.Roots, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}}
	conn, err := dialer.DialContext(p.ctx, "tcp", address)
	if err != nil {
		return pass()
	}
	defer conn.Close()
	return fail(nil, "a handshake with TLS 1.1 at most succeeded")
}

func jsonOf(form url.Values) string {
	var b strings.Builder
	for name := range form {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%q", name, form.Get(name))
	}
	return "{" + b.String() + "}"
}

func multipartOf(form url.Values) (typ, body string) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for name, values := range form {
		for _, value := range values {
			_ = w.WriteField(name, value) // into memory
		}
	}
	_ = w.Close()
	return w.FormDataContentType(), b.String()
}

func parameterChecks() []Check {
	grant, invalid := []string{"grant"}, code("invalid_request")
	twice := func(name string) func(*probe) verdict {
		return func(p *probe) verdict { return p.ask("+" + name + "=" + p.form().Get(name)).refused(invalid...) }
	}
	return []Check{
		{"parameter.twice-grant-type", "RFC 6749 3.2", Must, "grant_type twice is refused", grant, twice("grant_type")},
		{"parameter.twice-subject-token", "RFC 6749 3.2", Must, "subject_token twice is refused", grant, twice("subject_token")},
		{"parameter.twice-scope", "RFC 6749 3.2", Must, "scope twice is refused", []string{"grant", "scope"}, twice("scope")},
		{"parameter.unknown", "RFC 6749 3.2", Must, "an unknown parameter is ignored", grant,
			func(p *probe) verdict { return p.ask("x_countersign_conformance=1").granted() }},
		{"parameter.empty", "RFC 6749 3.2", Must, "a parameter without a value is as good as none", grant, func(p *probe) verdict {
			return p.ask("actor_token=", "actor_token_type=", "requested_token_type=", "resource=").granted()
		}},
		{"parameter.case", "RFC 6749 1.9", Must, "names of parameters are case-sensitive", grant, func(p *probe) verdict {
			return p.ask("subject_token", "Subject_Token="+p.cfg.SubjectToken).refused(invalid...)
		}},
	}
}

func grantChecks() []Check {
	return []Check{
		{"grant.missing", "RFC 6749 5.2", Must, "no grant_type is invalid_request", nil, refuses(code("invalid_request"), "grant_type")},
		{"grant.empty", "RFC 6749 5.2", Must, "an empty grant_type is invalid_request", nil, refuses(code("invalid_request"), "grant_type=")},
		{"grant.unknown", "RFC 6749 5.2", Must, "an unknown grant_type is unsupported_grant_type", nil,
			refuses(code("unsupported_grant_type"), "grant_type=urn:example:nothing")},
		{"grant.case", "RFC 6749 1.9", Must, "values are case-sensitive: another spelling of the grant type is none", []string{"grant"},
			refuses(code("unsupported_grant_type"), "grant_type="+strings.Replace(grantExchange, "token-exchange", "Token-Exchange", 1))},
	}
}

func actorChecks() []Check {
	grant, invalid := []string{"grant"}, code("invalid_request")
	return []Check{
		{"actor.no-type", "RFC 8693 2.1", Must, "actor_token without actor_token_type is refused", grant,
			func(p *probe) verdict { return p.ask("actor_token=" + p.cfg.SubjectToken).refused(invalid...) }},
		{"actor.type-alone", "RFC 8693 2.1", Must, "actor_token_type without actor_token is refused", grant,
			refuses(invalid, "actor_token_type="+typeAccessToken)},
		{"actor.garbage", "RFC 8693 2.2.2", Must, "an actor token that is none is invalid_request", grant,
			refuses(invalid, "actor_token=nothing", "actor_token_type="+typeAccessToken)},
		{"actor.unknown-type", "RFC 8693 2.2.2", Must, "an unknown actor_token_type is invalid_request", grant,
			refuses(invalid, "actor_token=nothing", "actor_token_type=urn:example:nothing")},
		{"requested.named", "RFC 8693 2.2.1", Must, "a requested_token_type that the server issues is issued", grant, func(p *probe) verdict {
			typ := p.goodReply().text("issued_token_type")
			if typ == "" {
				return notApplicable("the server names no issued_token_type")
			}
			r := p.ask("requested_token_type=" + typ)
			if v := r.granted(); v.outcome != Pass {
				return v
			}
			if r.text("issued_token_type") != typ {
				return fail(r, "another type was issued")
			}
			return pass()
		}},
		{"requested.unknown", "RFC 8693 2.2.2", Must, "an unknown requested_token_type is invalid_request", grant,
			refuses(invalid, "requested_token_type=urn:example:nothing")},
	}
}

func targetChecks() []Check {
	grant, target := []string{"grant"}, code("invalid_target")
	unknown := "resource=https://" + nobody + ".invalid/"
	return []Check{
		{"audience.unknown", "RFC 8693 2.2.2", Must, "an unknown audience gets no token", grant, refuses(nil, "audience="+nobody)},
		{"audience.error", "RFC 8693 2.2.2", Should, "an unknown audience is invalid_target", grant, refuses(target, "audience="+nobody)},
		{"audience.forbidden", "RFC 8693 2.2.2", Must, "an audience that this client may not call gets no token", []string{"grant", "bad"},
			func(p *probe) verdict { return p.ask("audience="+p.cfg.BadAudience, "scope").refused() }},
		{"audience.several", "RFC 8693 2.2.2", Must, "one unknown audience among several gets no token", grant, refuses(nil, "+audience="+nobody)},
		{"resource.taken", "RFC 8707 2", Must, "a resource of the client is taken as the target", []string{"grant", "resource"},
			func(p *probe) verdict { return p.ask("audience", "resource="+p.cfg.Resource).granted() }},
		{"resource.unknown", "RFC 8707 2", Must, "an unknown resource beside a good audience is invalid_target", grant, refuses(target, unknown)},
		{"resource.alone", "RFC 8707 2", Must, "an unknown resource alone is invalid_target", grant, refuses(target, "audience", unknown)},
		{"resource.fragment", "RFC 8707 2", Must, "a resource with a fragment is invalid_target", grant, func(p *probe) verdict {
			return p.ask("resource=" + p.resource() + "#part").refused(target...)
		}},
		{"resource.relative", "RFC 8707 2", Must, "a resource that is no absolute URI is invalid_target", grant, refuses(target, "resource=/"+nobody)},
		{"resource.several", "RFC 8707 2", Must, "one unknown resource among several is invalid_target", []string{"grant", "resource"},
			func(p *probe) verdict { return p.ask("resource="+p.cfg.Resource, "+"+unknown).refused(target...) }},
	}
}

// resource is the target's URL, or one that is good but for being unknown.
func (p *probe) resource() string {
	if p.cfg.Resource != "" {
		return p.cfg.Resource
	}
	return "https://" + nobody + ".invalid/"
}

func scopeChecks() []Check {
	return []Check{
		{"scope.unknown", "RFC 6749 3.3", Must, "an unknown scope is not granted", []string{"grant"}, func(p *probe) verdict {
			return notGranted(p.ask("scope="+nobody), nobody)
		}},
		{"scope.wider", "RFC 8693 2.2.2", Must, "a scope that the subject or the client has not is not granted", []string{"grant", "wider"},
			func(p *probe) verdict {
				return notGranted(p.ask("scope="+strings.TrimSpace(p.cfg.Scope+" "+p.cfg.WiderScope)), p.cfg.WiderScope)
			}},
		{"scope.syntax", "RFC 6749 3.3", Must, "a scope with a quotation mark is refused", []string{"grant"},
			refuses(code("invalid_scope", "invalid_request"), `scope="`+nobody+`"`)},
		{"scope.default", "RFC 6749 5.1", Must, "a token's scope is told when none was asked for", []string{"grant"}, func(p *probe) verdict {
			r := p.ask("scope")
			switch {
			case !r.issued():
				return r.refused("invalid_scope") // RFC 6749 3.3: or a default
			case r.text("scope") == "" && r.scope() != "":
				return fail(r, "the token has a scope, and the answer does not tell")
			}
			return pass()
		}},
	}
}

// notGranted: refused as invalid_scope, or a token without that scope, with the scope told (RFC 6749 3.3).
func notGranted(r *reply, scope string) verdict {
	if !r.issued() {
		return r.refused("invalid_scope")
	}
	for _, granted := range append(strings.Fields(r.text("scope")), strings.Fields(r.scope())...) {
		if granted == scope {
			return fail(r, "it was granted")
		}
	}
	if len(r.object["scope"]) == 0 {
		return fail(r, "a token was issued, and the answer does not tell that its scope is another")
	}
	return pass()
}
