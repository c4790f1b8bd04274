package review

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts"
)

// Result is how a case went.
type Result struct {
	Name    string           `json:"name"`
	Line    int              `json:"line"`
	OK      bool             `json:"ok"`
	Want    string           `json:"want"`
	Got     string           `json:"got"`
	Allowed bool             `json:"allowed"`
	Granted []string         `json:"granted,omitempty"`
	Code    countersign.Code `json:"code,omitempty"`
	Step    string           `json:"step,omitempty"`
	Why     string           `json:"why,omitempty"`    // of a denial: what was found
	Change  string           `json:"change,omitempty"` // of a denial: the smallest change that would allow it
}

// Run decides the cases by a policy at one moment. It is pure.
func Run(p *countersign.Policy, cases []Case, now time.Time) []Result {
	p = inForce(p, 1)
	results := make([]Result, 0, len(cases))
	for i := range cases {
		results = append(results, cases[i].run(p, now))
	}
	return results
}

// ourIssuer stands for the authority's own identifier: no policy may name it, and no decision depends on what it is.
const ourIssuer = "https://countersign.invalid"

func (c *Case) run(p *countersign.Policy, now time.Time) Result {
	r := Result{Name: c.Name, Line: c.Line, Want: c.want()}
	x, err := c.exchange(p, now)
	if err != nil {
		r.Got = "the case does not fit the policy: " + err.Error()
		return r
	}
	grant, trace := x.Decide(p, ourIssuer)
	if denial := trace.Err(); denial != nil {
		last := trace.Steps[len(trace.Steps)-1]
		r.Code, r.Step, r.Why, r.Change = denial.Code, last.Name, denial.Msg, last.Change.String()
		r.Got = fmt.Sprintf("deny: %s at step %s", r.Code, r.Step)
	} else {
		r.Allowed, r.Granted = true, grant.Scopes
		r.Got = "allow: " + strings.Join(grant.Scopes, " ")
	}
	r.OK = c.fits(r)
	return r
}

func (c *Case) want() string {
	switch {
	case c.Expect == "allow" && c.Granted != nil:
		return "allow: " + strings.Join(c.Granted, " ")
	case c.Expect == "deny" && c.Code+c.Step != "":
		return strings.TrimSpace("deny: " + c.Code + " at step " + c.Step)
	}
	return c.Expect
}

func (c *Case) fits(r Result) bool {
	if c.Expect == "deny" {
		return !r.Allowed && (c.Code == "" || c.Code == string(r.Code)) && (c.Step == "" || c.Step == r.Step)
	}
	if c.Granted == nil {
		return r.Allowed
	}
	want, got := slices.Sorted(slices.Values(c.Granted)), slices.Sorted(slices.Values(r.Granted))
	return r.Allowed && slices.Equal(want, got)
}

// exchange is the request that the case describes. An error says that no such token can exist under p.
func (c *Case) exchange(p *countersign.Policy, now time.Time) (sts.Exchange, error) {
	client, err := countersign.NewServiceID(p.TrustDomain, c.From)
	if err != nil {
		return sts.Exchange{}, err
	}
	x := sts.Exchange{At: now, Client: client, Machine: c.Machine, Scopes: c.Scopes}
	if strings.HasPrefix(c.To, "https://") {
		x.Resources = []string{c.To}
	} else if c.To != "" {
		x.Audiences = []string{c.To}
	}
	if c.Holds == nil {
		return x, nil
	}
	return x, c.Holds.subject(p, &x)
}

// subject puts the subject token into x.
func (h *Holds) subject(p *countersign.Policy, x *sts.Exchange) error {
	s := &sts.Subject{Sub: "a-user", Scopes: h.Scopes, Expires: x.At.Add(time.Hour)}
	x.Subject = s
	issuer, err := h.issuer(p)
	if err != nil {
		return err
	}
	s.SubIssuer = issuer.URL
	if h.Issuer == "" {
		s.ID, s.Transaction = "parent", "transaction"
		for _, name := range h.Chain {
			id, err := countersign.NewServiceID(p.TrustDomain, name)
			if err != nil {
				return err
			}
			s.Act = &sts.Actor{Sub: id.String(), Act: s.Act}
		}
	} else {
		x.SubjectIssuer = issuer.URL
		if s.Audiences = []string{h.Audience}; h.Audience == "" {
			client, ok := p.ServiceByID(x.Client)
			if ok {
				s.Audiences = client.AudiencesFor(issuer.Name)
			}
		}
	}
	return h.claims(s, issuer)
}

// issuer is the user's. The one of a relay token is not named: it is the first that could have put all the claims into it.
func (h *Holds) issuer(p *countersign.Policy) (*countersign.Issuer, error) {
	if h.Issuer != "" {
		for i := range p.Issuers {
			if p.Issuers[i].Name == h.Issuer {
				return &p.Issuers[i], nil
			}
		}
		return nil, fmt.Errorf("it has no issuer %.60q", h.Issuer)
	}
	foreign := slices.DeleteFunc(slices.Sorted(maps.Keys(h.Claims)), func(name string) bool { return slices.Contains(sts.OwnClaims(), name) })
	err := fmt.Errorf("it has no issuer of users, so there are no relay tokens")
	for i := range p.Issuers {
		issuer := &p.Issuers[i]
		if len(issuer.Scopes) == 0 {
			continue
		}
		if !slices.ContainsFunc(foreign, func(name string) bool { return !slices.Contains(issuer.Carry, name) }) {
			return issuer, nil
		}
		err = fmt.Errorf("no such token can exist under this policy: no issuer's `carry` keeps all of %.200q in a relay token", strings.Join(foreign, " "))
	}
	return nil, err
}

// claims are the further ones, where a subject keeps them.
func (h *Holds) claims(s *sts.Subject, issuer *countersign.Issuer) error {
	payload := map[string]any{"iss": issuer.URL, "sub": s.Sub, "scope": strings.Join(h.Scopes, " ")}
	if h.Issuer == "" {
		payload["iss"], payload["sub_iss"] = ourIssuer, issuer.URL
	}
	maps.Copy(payload, h.Claims)
	var err error
	if s.Payload, err = json.Marshal(payload); err != nil {
		return fmt.Errorf("a claim is nothing that JSON knows")
	}
	s.Carry = map[string]json.RawMessage{}
	for name, value := range h.Claims {
		raw, err := json.Marshal(value)
		switch {
		case err != nil:
			return fmt.Errorf("the claim %.60q is nothing that JSON knows", name)
		case name == "may_act":
			s.MayAct = raw
		case slices.Contains(issuer.Carry, name):
			s.Carry[name] = raw
		}
	}
	return nil
}
