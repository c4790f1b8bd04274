package sts

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
)

// ExplainRequest asks how an exchange would go. Nothing of it is an exchange: no client is authenticated, nothing minted.
type ExplainRequest struct {
	From          string   // the client: a service's name or ID
	To            string   // the audience: a name, an ID or a resource; "": found from the scopes
	Scopes        []string // as asked; none: all that are allowed
	Token         string   // a subject token, verified as if From had sent it; "": a hypothetical one
	SubjectScopes []string // what the hypothetical one holds; none: exactly what is needed
}

// Explanation is how it would go.
type Explanation struct {
	Allowed  bool
	Audience string        // the name; of an allowed one
	Scope    string        // of an allowed one
	TTL      time.Duration // how long the token would live
	Version  int           // of the policy that decided
	Steps    []Step
}

// Explain judges an exchange without doing it. A denial is an Explanation; an error says that it can't be judged now,
// because the keys of the token's issuer can't be had.
func (s *Service) Explain(ctx context.Context, r ExplainRequest) (Explanation, error) {
	p, now := s.cfg.Policy(), s.cfg.Now()
	e := Explanation{Version: p.Version}
	client, step := explainClient(p, r.From)
	if !step.OK {
		step.Name = StepClient
		e.Steps = []Step{advised(step)}
		return e, nil
	}
	in := Input{Now: now, Issuer: s.cfg.Issuer, Client: client.ID, Scopes: r.Scopes}
	if strings.HasPrefix(r.To, "https://") {
		in.Resources = []string{r.To}
	} else if r.To != "" {
		in.Audiences = []string{r.To}
	}
	note := ""
	if r.Token != "" {
		subject, _, err := s.verify(ctx, p, client, r.Token, anyKind, now)
		if err == nil {
			err = s.revoked(subject.Facts)
		}
		if err != nil {
			step.Name = StepClient
			e.Steps = []Step{step, refusedToken(p, s.cfg.Issuer, client, r.Token, err)}
			return e, unjudged(err)
		}
		in.Subject = subject
	} else {
		in.Subject, note = suppose(p, client, in, r.SubjectScopes)
	}
	grant, trace := Decide(p, in)
	e.Steps = trace.Steps
	if note != "" && len(e.Steps) > 1 {
		e.Steps[1].Msg, e.Steps[1].Rule = note, ""
	}
	if trace.Err() == nil {
		e.Allowed, e.Audience, e.Scope = true, grant.Audience.Name, strings.Join(grant.Scopes, " ")
		e.TTL = grant.Expires.Sub(grant.IssuedAt)
	}
	return e, nil
}

func explainClient(p *countersign.Policy, from string) (*countersign.Service, Step) {
	id, err := countersign.ParseID(from)
	if err != nil {
		if id, err = countersign.NewServiceID(p.TrustDomain, from); err != nil {
			return nil, denied(countersign.CodeClient, "", "%s is no service of policy version %d", quote(from), p.Version)
		}
	}
	service, step := admitClient(p, id)
	if !step.OK {
		step.Nearest, step.Change = adviseClient(p, id, step.Code)
	}
	return service, step
}

// unjudged tells a verdict on the token from a failure to reach one.
func unjudged(err error) error {
	switch e := countersign.AsError(err); e.Kind {
	case countersign.Internal, countersign.Unavailable:
		return e
	default:
		return nil
	}
}

// suppose makes a subject for a question without a token: a user's, fresh, and at an entry point one of an issuer that it
// takes. The note says what was supposed.
func suppose(p *countersign.Policy, client *countersign.Service, in Input, scopes []string) (*Subject, string) {
	note := "supposed, not verified: a user's token that holds: "
	if len(scopes) == 0 {
		if scopes = sufficient(p, client, in); len(scopes) == 0 {
			scopes = in.Scopes // there is no such call: then the scopes themselves, or the advice would be to need none
		}
		note = "supposed, not verified: a user's token that holds just what is needed: "
	}
	s := &Subject{Sub: "a user", Scopes: scopes, Expires: in.Now.Add(24 * time.Hour)}
	for i := range p.Issuers {
		if len(client.AudiencesFor(p.Issuers[i].Name)) > 0 {
			s.External, s.SubIssuer = &p.Issuers[i], p.Issuers[i].URL
			break
		}
	}
	return s, note + list(scopes)
}

// sufficient are scopes that suffice for what is asked, on every call that the question may mean: of each scope the first
// of its needs.
func sufficient(p *countersign.Policy, client *countersign.Service, in Input) []string {
	to, step := targetOf(p, in.Audiences, in.Resources)
	var needs []string
	for _, call := range p.CallsFrom(client.Name) {
		if !step.OK || to != nil && call.To != to.Name {
			continue
		}
		for _, scope := range call.Scopes {
			wanted := len(in.Scopes) == 0 || slices.Contains(in.Scopes, scope.Name)
			if wanted && len(scope.Needs) > 0 && !slices.Contains(needs, scope.Needs[0]) {
				needs = append(needs, scope.Needs[0])
			}
		}
	}
	return needs
}
