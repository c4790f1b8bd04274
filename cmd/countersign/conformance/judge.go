package conformance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// verdict is what a check says, and of which answer.
type verdict struct {
	outcome Outcome
	why     string
	reply   *reply
}

func pass() verdict { return verdict{outcome: Pass} }

func fail(r *reply, format string, args ...any) verdict {
	return verdict{outcome: Fail, why: fmt.Sprintf(format, args...), reply: r}
}

func notApplicable(format string, args ...any) verdict {
	return verdict{outcome: NotApplicable, why: fmt.Sprintf(format, args...)}
}

// judge runs a check, unless what it needs is not there.
func (p *probe) judge(c Check) verdict {
	for _, need := range c.needs {
		if why := needs()[need](p); why != "" {
			return notApplicable("%s", why)
		}
	}
	return c.run(p)
}

// needs are the conditions of checks: each tells what is missing, or "".
func needs() map[string]func(*probe) string {
	given := func(value func(Config) bool, flag string) func(*probe) string {
		return func(p *probe) string {
			if value(p.cfg) {
				return ""
			}
			return "needs " + flag
		}
	}
	return map[string]func(*probe) string{
		"grant": func(p *probe) string {
			if r := p.goodReply(); !r.issued() {
				return "the good request gets no token, so that a refusal would prove nothing"
			}
			return ""
		},
		"https": func(p *probe) string {
			if strings.HasPrefix(p.cfg.Endpoint, "https:") {
				return ""
			}
			return "the endpoint does not speak TLS"
		},
		"certificate": given(func(c Config) bool { return c.Certificate != nil }, "a client certificate"),
		"credential":  given(func(c Config) bool { return c.Certificate != nil || c.Assertion != nil }, "a client that authenticates"),
		"assertion":   given(func(c Config) bool { return c.Assertion != nil }, "--client-key"),
		"client-id":   given(func(c Config) bool { return c.ClientID != "" }, "--client-id"),
		"foreign":     given(func(c Config) bool { return c.ForeignSubjectToken != "" }, "--foreign-subject-token, a good token of somebody else's"),
		"expired":     given(func(c Config) bool { return c.ExpiredSubjectToken != "" }, "--expired-subject-token"),
		"bad":         given(func(c Config) bool { return c.BadAudience != "" }, "--bad-audience, one that this client may not call"),
		"resource":    given(func(c Config) bool { return c.Resource != "" }, "--resource, the target's URL"),
		"scope":       given(func(c Config) bool { return c.Scope != "" }, "--scope"),
		"wider":       given(func(c Config) bool { return c.WiderScope != "" }, "--wider-scope, one that exists and is not granted"),
		"issuer":      given(func(c Config) bool { return c.Issuer != "" }, "--issuer"),
		"next": given(func(c Config) bool { return c.Next != nil && c.NextAudience != "" },
			"--next-identity and --next-audience: the audience's own credential, and whom it calls"),
		"jwt-subject": func(p *probe) string {
			if _, ok := parseToken(p.cfg.SubjectToken); ok {
				return ""
			}
			return "the subject token is no JWT"
		},
		"jwt": func(p *probe) string {
			if _, ok := parseToken(p.goodReply().text("access_token")); ok {
				return ""
			}
			return "the token that was issued is no JWT"
		},
		"metadata": func(p *probe) string {
			if p.metadata().object != nil {
				return ""
			}
			return "there is no metadata"
		},
		"keys": func(p *probe) string {
			if r := p.keys(); r != nil && r.object != nil {
				return ""
			}
			return "there are no keys"
		},
	}
}

// refused holds an answer to a refusal with one of codes, or with any if none is named.
func (r *reply) refused(codes ...string) verdict {
	switch code := r.text("error"); {
	case r.err != nil:
		return fail(r, "there was no answer")
	case r.issued():
		return fail(r, "a token was issued")
	case r.status >= http.StatusInternalServerError:
		return fail(r, "the server failed instead of refusing")
	case r.status < http.StatusBadRequest:
		return fail(r, "the request was not refused")
	case r.bare:
		return pass()
	case len(codes) > 0 && !slices.Contains(codes, code):
		return fail(r, "refused, but not with the error %s", strings.Join(codes, " or "))
	}
	return pass()
}

// shut is refused, or cut off before HTTP: in the handshake a client may be refused too (RFC 8446 4.4.2.4).
func (r *reply) shut(codes ...string) verdict {
	if r.err != nil && r.p.ctx.Err() == nil && r.p.goodReply().err == nil {
		return pass()
	}
	return r.refused(codes...)
}

// granted holds an answer to a token.
func (r *reply) granted() verdict {
	switch {
	case r.err != nil:
		return fail(r, "there was no answer")
	case !r.issued():
		return fail(r, "no token was issued")
	}
	return pass()
}

// refuses is a check of the good request, changed so that it must be refused.
func refuses(codes []string, changes ...string) func(*probe) verdict {
	return func(p *probe) verdict { return p.ask(changes...).refused(codes...) }
}

func code(codes ...string) []string { return codes }

// refusals are the answers that refuse an honest form.
func (p *probe) refusals() []*reply {
	var all []*reply
	for _, r := range p.replies {
		if r.err == nil && !r.bare && r.status >= http.StatusBadRequest && r.status < http.StatusInternalServerError {
			all = append(all, r)
		}
	}
	return all
}

// everyRefusal judges each refusal of the run; fault tells what is wrong with one, or "".
func everyRefusal(fault func(*reply) string) func(*probe) verdict {
	return func(p *probe) verdict {
		all := p.refusals()
		for _, r := range all {
			if why := fault(r); why != "" {
				return fail(r, "%s", why)
			}
		}
		if len(all) == 0 {
			return notApplicable("nothing was refused")
		}
		return pass()
	}
}

// number is a member that is a JSON number.
func number(raw json.RawMessage) (float64, bool) {
	var n float64
	if len(raw) == 0 || raw[0] == '"' || string(raw) == "null" || json.Unmarshal(raw, &n) != nil {
		return 0, false
	}
	return n, true
}

// texts is a string, or an array of strings.
func texts(raw json.RawMessage) []string {
	var one string
	var many []string
	switch {
	case json.Unmarshal(raw, &one) == nil && string(raw) != "null":
		return []string{one}
	case json.Unmarshal(raw, &many) == nil:
		return many
	}
	return nil
}
