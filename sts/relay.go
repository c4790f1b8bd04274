package sts

import (
	"net/url"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// TokenForm is the body of a revocation (RFC 7009 2.1) or introspection request (RFC 7662 2.1). token_type_hint is no part
// of it: every hint, known or not, is ignored, as there is one kind of token only.
type TokenForm struct {
	Token    string
	ClientID string // "": none was sent
}

// ParseTokenForm reads it as strictly as [ParseRequest] reads a token request; no parameter may stand twice.
func ParseTokenForm(form url.Values) (TokenForm, error) {
	f := fields{form: form}
	f.checkAll()
	f.one("token_type_hint", maxWord)
	r := TokenForm{Token: f.text("token"), ClientID: f.one("client_id", maxWord)}
	if r.Token == "" {
		f.fail(countersign.CodeTokenRequest, "token is missing")
	}
	if f.err != nil {
		return TokenForm{}, f.err
	}
	return r, nil
}

// text is a token of any length that a form may have: what is too long is no token of ours, which is an answer and no error.
func (f *fields) text(name string) string {
	return f.one(name, 1<<20)
}

// relayToken is a token of ours that is alive: one that a published key signed, of the form in which we make them.
type relayToken struct {
	claims   jwt.Claims
	facts    countersign.TokenFacts
	client   string // client_id
	audience string // the name
	chain    []string
	expires  time.Time
}

// relay reads a token of ours. No error and no token: it is somebody else's, over, signed by a key that is retired, or no
// token at all. Codes: CodeTokenKind for what our keys signed and is no access token; those of the keyring.
func (s *Service) relay(p *countersign.Policy, compact string, now time.Time) (*relayToken, error) {
	t, err := jwt.Parse(compact)
	if err != nil {
		return nil, nil
	}
	keys, err := s.keys.get()
	if err != nil {
		return nil, err
	}
	if t.Verify(keys.set, []string{"ES256", "RS256"}) != nil || checkTimes(t.Claims, now) != nil {
		return nil, nil
	}
	if t.Typ != typAccess && t.Typ != typGeneric {
		return nil, countersign.Errorf(countersign.CodeTokenKind, "a token of the type %s is no access token", quote(t.Typ))
	}
	c := reader{claims: t.Claims}
	iss, _, _ := c.text("iss"), c.text("txn"), c.text("sub")
	r := &relayToken{
		claims: t.Claims, client: c.text("client_id"), audience: c.text("aud"), chain: c.actors("act").Chain(), expires: c.time("exp"),
	}
	if c.err != nil || iss != s.cfg.Issuer {
		return nil, nil
	}
	r.facts = ownFacts(p, t.Claims)
	return r, nil
}

// concerns tells whether the token concerns a service: it asked for it, passed it on, or is the one that it is for.
func (r *relayToken) concerns(p *countersign.Policy, id countersign.ID) bool {
	if r.client == id.String() || slices.Contains(r.chain, id.String()) {
		return true
	}
	audience, ok := p.Service(r.audience)
	return ok && audience.ID == id
}

// ownFacts are what revocations know a token of ours by; its claims were verified. What is not as we make it counts as
// absent: such a token is refused elsewhere.
func ownFacts(p *countersign.Policy, claims jwt.Claims) countersign.TokenFacts {
	c := reader{claims: claims}
	f := countersign.TokenFacts{
		ID: c.optional("jti"), Transaction: c.optional("txn"), Subject: c.optional("sub"),
		SessionIssuer: c.optional("sub_iss"), SessionID: c.optional("sid"), Services: c.actors("act").Chain(), IssuedAt: c.time("iat"),
	}
	if client := c.optional("client_id"); client != "" && !slices.Contains(f.Services, client) {
		f.Services = append(f.Services, client)
	}
	if id, err := countersign.NewServiceID(p.TrustDomain, c.optional("aud")); err == nil {
		f.Services = append(f.Services, id.String())
	}
	return f
}
