package conformance

import (
	"crypto/sha256"
	"encoding/json"
	"math"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
)

// good judges the answer to the good request; fault tells what is wrong with it, or "".
func good(fault func(*probe, *reply) string) func(*probe) verdict {
	return func(p *probe) verdict {
		if why := fault(p, p.goodReply()); why != "" {
			return fail(p.good, "%s", why)
		}
		return pass()
	}
}

func responseChecks() []Check {
	grant := []string{"grant"}
	return []Check{
		{"response.status", "RFC 6749 5.1", Must, "the status is 200", grant, good(func(_ *probe, r *reply) string {
			return unless(r.status == http.StatusOK, "it is another")
		})},
		{"response.media-type", "RFC 6749 5.1", Must, "the media type is application/json", grant, good(func(_ *probe, r *reply) string {
			return unless(isJSON(r), "it is another")
		})},
		{"response.no-store", "RFC 6749 5.1", Must, "Cache-Control has no-store", grant, good(func(_ *probe, r *reply) string {
			return unless(hasNoStore(r), "Cache-Control is "+r.header.Get("Cache-Control"))
		})},
		{"response.pragma", "RFC 6749 5.1", Must, "Pragma is no-cache", grant, good(func(_ *probe, r *reply) string {
			return unless(strings.EqualFold(r.header.Get("Pragma"), "no-cache"), "Pragma is "+r.header.Get("Pragma"))
		})},
		{"response.issued-token-type", "RFC 8693 2.2.1", Must, "issued_token_type is there, and a URI", grant, good(func(_ *probe, r *reply) string {
			return unless(strings.Contains(r.text("issued_token_type"), ":"), "it is not")
		})},
		{"response.token-type", "RFC 8693 2.2.1", Must, "token_type is there; N_A only if it is no access token that was issued", grant,
			good(func(_ *probe, r *reply) string {
				switch typ := r.text("token_type"); {
				case typ == "":
					return "it is not there"
				case strings.EqualFold(typ, "N_A") && r.text("issued_token_type") == typeAccessToken:
					return "it is N_A of an access token"
				}
				return ""
			})},
		{"response.expires-in", "RFC 8693 2.2.1", Should, "expires_in is there", grant, good(func(_ *probe, r *reply) string {
			return unless(len(r.object["expires_in"]) > 0, "it is not")
		})},
		{"response.expires-in-number", "RFC 6749 5.1", Must, "expires_in is a number of seconds over 0", grant, func(p *probe) verdict {
			r := p.goodReply()
			n, ok := number(r.object["expires_in"])
			switch {
			case len(r.object["expires_in"]) == 0:
				return notApplicable("there is none")
			case !ok || n <= 0 || n != math.Trunc(n):
				return fail(r, "it is not")
			}
			return pass()
		}},
		{"response.scope", "RFC 8693 2.2.1", Must, "scope is a string, and there if it is not what was asked for", grant, good(func(p *probe, r *reply) string {
			switch raw := r.object["scope"]; {
			case len(raw) > 0 && raw[0] != '"':
				return "it is no string"
			case len(raw) == 0 && r.scope() != "" && !sameWords(r.scope(), p.cfg.Scope):
				return "the token's scope is another than asked for, and the answer does not tell"
			}
			return ""
		})},
		{"response.no-refresh-token", "RFC 8693 2.2.1", Should, "no refresh token comes with an exchange", grant, good(func(_ *probe, r *reply) string {
			return unless(len(r.object["refresh_token"]) == 0, "one does")
		})},
	}
}

func tokenChecks() []Check {
	needs := []string{"grant", "jwt"}
	return []Check{
		{"token.alg", "RFC 8725 3.1", Must, "the token is signed with an asymmetric algorithm", needs, good(func(_ *probe, r *reply) string {
			alg := r.issuedToken().headerText("alg")
			for _, a := range asymmetric() {
				if alg == string(a) {
					return ""
				}
			}
			return "its algorithm is " + alg
		})},
		{"token.typ", "RFC 9068 2.1", Should, "typ is at+jwt", needs, good(func(_ *probe, r *reply) string {
			typ := strings.ToLower(r.issuedToken().headerText("typ"))
			return unless(typ == "at+jwt" || typ == "application/at+jwt", "it is "+typ)
		})},
		{"token.claims", "RFC 9068 2.2", Must, "a token with typ at+jwt has iss, exp, aud, sub, client_id, iat and jti", needs, atClaims},
		{"token.scope-string", "RFC 8693 4.2", Must, "scope is one string", needs, good(func(_ *probe, r *reply) string {
			raw := r.issuedToken().claims["scope"]
			return unless(len(raw) == 0 || raw[0] == '"', "it is none")
		})},
		{"token.scope-narrow", "RFC 8693 2.2.1", Must, "the token has no scope that was not asked for", []string{"grant", "jwt", "scope"},
			good(func(p *probe, r *reply) string {
				asked := strings.Fields(p.cfg.Scope)
				for _, scope := range append(strings.Fields(r.scope()), strings.Fields(r.text("scope"))...) {
					if !slices.Contains(asked, scope) {
						return "it has " + scope
					}
				}
				return ""
			})},
		{"token.aud", "RFC 8693 2.1", Should, "aud has the audience that was asked for", needs, good(func(p *probe, r *reply) string {
			aud := texts(r.issuedToken().claims["aud"])
			return unless(slices.Contains(aud, p.cfg.Audience) || p.cfg.Resource != "" && slices.Contains(aud, p.cfg.Resource), "it has not")
		})},
		{"token.aud-one", "RFC 9700 2.3", Should, "aud has one audience if one was asked for", needs, good(func(_ *probe, r *reply) string {
			return unless(len(texts(r.issuedToken().claims["aud"])) == 1, "it has none, or several")
		})},
	}
}

// timeChecks are about when a token is good.
func timeChecks() []Check {
	needs := []string{"grant", "jwt"}
	return []Check{
		{"token.exp", "RFC 9700 2.3", Should, "the token does not outlive the subject token", []string{"grant", "jwt", "jwt-subject"}, func(p *probe) verdict {
			subject, _ := parseToken(p.cfg.SubjectToken)
			limit, ok := subject.time("exp")
			if !ok {
				return notApplicable("the subject token has no exp")
			}
			if exp, ok := p.goodReply().issuedToken().time("exp"); !ok || exp.After(limit) {
				return fail(p.good, "it does")
			}
			return pass()
		}},
		{"token.expires-in", "RFC 6749 5.1", Must, "exp is what expires_in says", needs, func(p *probe) verdict {
			r := p.goodReply()
			n, told := number(r.object["expires_in"])
			exp, has := r.issuedToken().time("exp")
			if !told || !has {
				return notApplicable("expires_in or exp is not there")
			}
			if off := exp.Sub(r.at) - time.Duration(n)*time.Second; off.Abs() > time.Minute {
				return fail(r, "they differ by %s", off.Round(time.Second))
			}
			return pass()
		}},
		{"token.iat", "RFC 7519 4.1.6", Should, "iat is now", needs, good(func(_ *probe, r *reply) string {
			iat, ok := r.issuedToken().time("iat")
			return unless(ok && r.at.Sub(iat).Abs() < 2*time.Minute, "it is not, by this machine's clock")
		})},
	}
}

// partyChecks are about who is in a token: the subject, the actor, the client.
func partyChecks() []Check {
	needs := []string{"grant", "jwt"}
	return []Check{
		{"token.sub", "RFC 8693 1.1", Should, "sub is the subject token's", []string{"grant", "jwt", "jwt-subject"}, good(func(p *probe, r *reply) string {
			subject, _ := parseToken(p.cfg.SubjectToken)
			was, is := subject.text("sub"), r.issuedToken().text("sub") // with a prefix, where subjects of several issuers meet
			return unless(is == was || strings.HasSuffix(is, ":"+was), "it is another")
		})},
		{"token.actor", "RFC 8693 4.1", Should, "the token names who acts, in act or client_id", needs, good(func(_ *probe, r *reply) string {
			t := r.issuedToken()
			return unless(t.claims["act"] != nil || t.text("client_id") != "", "it does not")
		})},
		{"token.act", "RFC 8693 4.1", Must, "act is an object that identifies, without exp, nbf, iat or aud", needs, actClaim},
		{"token.client-id", "RFC 8693 4.3", Must, "client_id is the client", []string{"grant", "jwt", "client-id"}, func(p *probe) verdict {
			t := p.goodReply().issuedToken()
			if t.claims["client_id"] == nil {
				return notApplicable("the token has no client_id")
			}
			if t.text("client_id") != p.cfg.ClientID {
				return fail(p.good, "it is another")
			}
			return pass()
		}},
		{"token.jti", "RFC 7519 4.1.7", Must, "two tokens have two jti", needs, func(p *probe) verdict {
			first := p.goodReply().issuedToken()
			if first.claims["jti"] == nil {
				return notApplicable("the token has no jti")
			}
			if p.again == nil {
				p.again = p.ask()
			}
			if bytesEqual(first.claims["jti"], p.again.issuedToken().claims["jti"]) {
				return fail(p.again, "they have one")
			}
			return pass()
		}},
		{"token.cnf", "RFC 8705 3.1", Must, "a certificate-bound token has the thumbprint of the client's certificate", []string{"grant", "jwt", "certificate"}, binding},
	}
}

func atClaims(p *probe) verdict {
	t := p.goodReply().issuedToken()
	if typ := t.headerText("typ"); !strings.EqualFold(strings.TrimPrefix(typ, "application/"), "at+jwt") {
		return notApplicable("typ is %q", typ)
	}
	for _, name := range []string{"iss", "exp", "aud", "sub", "client_id", "iat", "jti"} {
		if len(t.claims[name]) == 0 || string(t.claims[name]) == `""` || string(t.claims[name]) == "null" {
			return fail(p.good, "%s is not there", name)
		}
	}
	return pass()
}

func actClaim(p *probe) verdict {
	raw := p.goodReply().issuedToken().claims["act"]
	if raw == nil {
		return notApplicable("the token has no act")
	}
	var act map[string]json.RawMessage
	if json.Unmarshal(raw, &act) != nil || len(act) == 0 {
		return fail(p.good, "it is no object, or an empty one")
	}
	for _, name := range []string{"exp", "nbf", "iat", "aud"} {
		if act[name] != nil {
			return fail(p.good, "it has %s", name)
		}
	}
	return pass()
}

// binding compares cnf with the certificate of this client's own connection.
func binding(p *probe) verdict {
	raw := p.goodReply().issuedToken().claims["cnf"]
	var cnf struct {
		Thumbprint string `json:"x5t#S256"`
	}
	_ = json.Unmarshal(raw, &cnf)
	sum := sha256.Sum256(p.cfg.Certificate.Certificate[0])
	switch {
	case raw == nil:
		return notApplicable("the token is not bound")
	case cnf.Thumbprint == "":
		return notApplicable("the token is bound to no certificate")
	case cnf.Thumbprint != encode(sum[:]):
		return fail(p.good, "it has another")
	}
	return pass()
}

// supportsBinding is what the metadata says: that the server can bind tokens, not that it binds each.
func (p *probe) supportsBinding() bool {
	var bound bool
	return json.Unmarshal(p.metadata().object["tls_client_certificate_bound_access_tokens"], &bound) == nil && bound
}

func refusalChecks() []Check {
	registered := []string{"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "unsupported_token_type", "invalid_dpop_proof", "use_dpop_nonce", "invalid_authorization_details"}
	return []Check{
		{"refusal.json", "RFC 6749 5.2", Must, "every refusal is a JSON object with error", nil, everyRefusal(func(r *reply) string {
			return unless(r.text("error") != "", "there is no error in it")
		})},
		{"refusal.media-type", "RFC 6749 5.2", Must, "every refusal is application/json", nil, everyRefusal(func(r *reply) string {
			return unless(isJSON(r), "it is not")
		})},
		{"refusal.status", "RFC 6749 5.2", Must, "every refusal has the status 400, or 401 for invalid_client", nil, everyRefusal(func(r *reply) string {
			unauthorized := r.status == http.StatusUnauthorized && r.text("error") == "invalid_client"
			return unless(r.status == http.StatusBadRequest || unauthorized, "the status is another")
		})},
		{"refusal.registered", "RFC 6749 8.5", Should, "every error is a registered one", nil, everyRefusal(func(r *reply) string {
			return unless(slices.Contains(registered, r.text("error")), "it is not")
		})},
		{"refusal.charset", "RFC 6749 5.2", Must, `error and error_description have only printable ASCII, and neither " nor \`, nil,
			everyRefusal(func(r *reply) string {
				return unless(isNQSChar(r.text("error")) && isNQSChar(r.text("error_description")), "they have more")
			})},
		{"refusal.no-store", "RFC 6749 5.1", Should, "no refusal may be cached", nil, everyRefusal(func(r *reply) string {
			return unless(hasNoStore(r), "it may")
		})},
		{"refusal.no-token", "RFC 6750 5.3", Must, "no refusal repeats the subject token", nil, everyRefusal(func(r *reply) string {
			return unless(!strings.Contains(string(r.body), r.p.cfg.SubjectToken), "it does")
		})},
		{"refusal.no-redirect", "RFC 6749 5", Must, "no answer is a redirect", nil, func(p *probe) verdict {
			for _, r := range p.replies {
				if r.status >= 300 && r.status < 400 {
					return fail(r, "one is")
				}
			}
			return pass()
		}},
		{"refusal.no-failure", "RFC 9110 15.6", Must, "the server failed at no request", nil, func(p *probe) verdict {
			for _, r := range p.replies {
				if r.status >= http.StatusInternalServerError && r.status != http.StatusServiceUnavailable {
					return fail(r, "it did")
				}
			}
			return pass()
		}},
	}
}

func unless(ok bool, why string) string {
	if ok {
		return ""
	}
	return why
}

func isJSON(r *reply) bool {
	media, _, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	return err == nil && media == "application/json"
}

func hasNoStore(r *reply) bool {
	for directive := range strings.SplitSeq(strings.Join(r.header.Values("Cache-Control"), ","), ",") {
		if strings.EqualFold(strings.TrimSpace(directive), "no-store") {
			return true
		}
	}
	return false
}

// isNQSChar holds text to %x20-21 / %x23-5B / %x5D-7E.
func isNQSChar(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' })
}

func sameWords(a, b string) bool {
	x, y := strings.Fields(a), strings.Fields(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}
