package conformance

import (
	"encoding/json"
	"strings"
)

func subjectChecks() []Check {
	grant, invalid := []string{"grant"}, code("invalid_request")
	sized := func(token string) func(*probe) verdict {
		return func(p *probe) verdict {
			return p.send(message{body: p.prove(p.form("subject_token=" + token)).Encode(), bare: true}).refused()
		}
	}
	return []Check{
		{"subject.missing", "RFC 8693 2.1", Must, "no subject_token is invalid_request", grant, refuses(invalid, "subject_token")},
		{"subject.empty", "RFC 8693 2.1", Must, "an empty subject_token is invalid_request", grant, refuses(invalid, "subject_token=")},
		{"subject.no-type", "RFC 8693 2.1", Must, "no subject_token_type is invalid_request", grant, refuses(invalid, "subject_token_type")},
		{"subject.unknown-type", "RFC 8693 2.2.2", Must, "an unknown subject_token_type is invalid_request", grant,
			refuses(invalid, "subject_token_type=urn:example:nothing")},
		{"subject.wrong-type", "RFC 8693 2.1", Must, "a JWT that is declared a SAML assertion is invalid_request", []string{"grant", "jwt-subject"},
			refuses(invalid, "subject_token_type="+typeSAML2)},
		{"subject.id-token", "RFC 8725 3.12", Should, "an access token (at+jwt) that is declared an ID token is invalid_request",
			[]string{"grant", "jwt-subject"}, func(p *probe) verdict {
				t, _ := parseToken(p.cfg.SubjectToken)
				if typ := t.headerText("typ"); !strings.EqualFold(typ, "at+jwt") {
					return notApplicable("the subject token's typ is %q, not at+jwt", typ)
				}
				return p.ask("subject_token_type=" + typeIDToken).refused(invalid...)
			}},
		{"subject.garbage", "RFC 8693 2.2.2", Must, "a subject token that is none is invalid_request", grant, refuses(invalid, "subject_token=nothing")},
		{"subject.foreign", "RFC 7519 4.1.3", Must, "a good token that is addressed to somebody else is invalid_request", []string{"grant", "foreign"},
			func(p *probe) verdict { return p.ask("subject_token=" + p.cfg.ForeignSubjectToken).refused(invalid...) }},
		{"subject.expired", "RFC 8693 2.2.2", Must, "an expired token is invalid_request", []string{"grant", "expired"},
			func(p *probe) verdict { return p.ask("subject_token=" + p.cfg.ExpiredSubjectToken).refused(invalid...) }},
		{"subject.not-mine", "RFC 9700 2.3", Should, "a token that was issued for the audience is not taken from the client that got it", []string{"grant", "jwt"},
			func(p *probe) verdict {
				return p.ask("subject_token="+p.goodReply().text("access_token"), "subject_token_type="+typeAccessToken, "scope").refused(invalid...)
			}},
		{"subject.oversized", "RFC 9110 15.5.14", Should, "a subject token of 1 MiB is refused, and the server does not fail", grant, sized(strings.Repeat("A", 1<<20))},
		{"subject.dots", "RFC 9110 15.5", Should, "a subject token of 10,000 dots is refused, and the server does not fail", grant, sized(strings.Repeat(".", 10_000))},
	}
}

// forgeryChecks are subject tokens that a good one was made into.
func forgeryChecks() []Check {
	needs := []string{"grant", "jwt-subject"}
	forge := func(make func(token, string) string) func(*probe) verdict {
		return func(p *probe) verdict {
			t, _ := parseToken(p.cfg.SubjectToken)
			forged := make(t, p.cfg.SubjectToken)
			p.conceal(forged)
			return p.ask("subject_token=" + forged).refused("invalid_request")
		}
	}
	signed := func(embed bool) func(token, string) string {
		return func(t token, _ string) string {
			forged, err := t.forged(embed)
			if err != nil { // the claims of a token that was parsed, and a new key
				return "nothing"
			}
			return forged
		}
	}
	return []Check{
		{"forged.payload", "RFC 7515 5.2", Must, "another subject under the same signature is invalid_request", needs,
			forge(func(t token, _ string) string { return t.tamperedPayload() })},
		{"forged.signature", "RFC 7515 5.2", Must, "one changed bit of the signature is invalid_request", needs,
			forge(func(_ token, s string) string { return tamperedSignature(s) })},
		{"forged.stripped", "RFC 7515 5.2", Must, "no signature is invalid_request", needs,
			forge(func(t token, _ string) string { return t.parts[0] + "." + t.parts[1] + "." })},
		{"forged.two-parts", "RFC 7519 7.2", Must, "a token of two parts is invalid_request", needs,
			forge(func(t token, _ string) string { return t.parts[0] + "." + t.parts[1] })},
		{"forged.none", "RFC 8725 3.2", Must, "the algorithm none is invalid_request", needs,
			forge(func(t token, _ string) string { return t.unsigned("none") })},
		{"forged.none-case", "RFC 8725 3.2", Must, "the algorithm NonE is invalid_request", needs,
			forge(func(t token, _ string) string { return t.unsigned("NonE") })},
		{"forged.key", "RFC 7515 5.2", Must, "the same claims, signed with another key under the same kid, are invalid_request", needs, forge(signed(false))},
		{"forged.jwk", "RFC 8725 3.10", Must, "a key that comes in the token's header is not trusted", needs, forge(signed(true))},
		{"forged.json", "RFC 7519 1", Must, "a JWS in JSON is no JWT, even with a good signature", needs,
			forge(func(t token, _ string) string { return t.flattened() })},
		{"forged.padding", "RFC 7515 2", Should, "base64url with padding is invalid_request", needs,
			forge(func(_ token, s string) string { return s + "=" })},
		{"forged.newline", "RFC 7515 2", Should, "a token with a newline at its end is invalid_request", needs,
			forge(func(_ token, s string) string { return s + "\n" })},
	}
}

// nextChecks exchange the issued token once more, as its audience.
func nextChecks() []Check {
	needs, onward := []string{"grant", "next"}, []string{"grant", "jwt", "next"}
	both := func(p *probe) (first, second token, v verdict) {
		r := p.nextReply()
		if v := r.granted(); v.outcome != Pass {
			return token{}, token{}, notApplicable("the second exchange gets no token")
		}
		second, ok := parseToken(r.text("access_token"))
		if !ok {
			return token{}, token{}, notApplicable("the second token is no JWT")
		}
		return p.goodReply().issuedToken(), second, pass()
	}
	return []Check{
		{"next.granted", "RFC 8693 2", Must, "the audience can exchange the token that was issued to it", needs,
			func(p *probe) verdict { return p.nextReply().granted() }},
		{"next.sub", "RFC 8693 1.1", Should, "the subject is the same after two exchanges", onward, func(p *probe) verdict {
			first, second, v := both(p)
			if v.outcome == Pass && !bytesEqual(first.claims["sub"], second.claims["sub"]) {
				return fail(p.nextReply(), "sub is another")
			}
			return v
		}},
		{"next.act", "RFC 8693 4.1", Must, "the chain of actors is nested: the newest outermost, the ones before unchanged within", onward, func(p *probe) verdict {
			first, second, v := both(p)
			if v.outcome != Pass {
				return v
			}
			if first.claims["act"] == nil {
				return notApplicable("the tokens name no actor")
			}
			var act map[string]json.RawMessage
			if json.Unmarshal(second.claims["act"], &act) != nil || !sameJSON(act["act"], first.claims["act"]) {
				return fail(p.nextReply(), "act.act is not the act of the token before")
			}
			return v
		}},
		{"next.exp", "RFC 9700 2.3", Should, "the second token does not outlive the first", onward, func(p *probe) verdict {
			first, second, v := both(p)
			before, _ := first.time("exp")
			if after, _ := second.time("exp"); v.outcome == Pass && after.After(before) {
				return fail(p.nextReply(), "it expires %s later", after.Sub(before))
			}
			return v
		}},
	}
}

func (p *probe) nextReply() *reply {
	if p.next == nil {
		form := p.form("subject_token="+p.goodReply().text("access_token"), "subject_token_type="+typeAccessToken, "audience="+p.cfg.NextAudience, "scope", "client_id")
		if p.cfg.NextClientID != "" {
			form.Set("client_id", p.cfg.NextClientID)
		}
		p.next = p.send(message{as: "next", body: form.Encode()})
	}
	return p.next
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	left, _ := json.Marshal(x)
	right, _ := json.Marshal(y)
	return string(left) == string(right)
}
