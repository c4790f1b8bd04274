package sts

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// maxCarry bounds the carried claims of one token: bytes of names and values together.
const maxCarry = 2 << 10

// deepest is the longest chain that a verifier can read: each service is one level of `act`, and the claims are one more.
const deepest = jwt.MaxDepth - 1

// conditions is step 5.
func (d *decision) conditions() Step {
	for _, judge := range []func() Step{d.when, d.mayAct, d.chain, d.actor, d.carry} {
		if step := judge(); !step.OK {
			return step
		}
	}
	return d.passed(func() Step {
		return passed("", "the chain has %s with this client", plural(len(d.grant.Act.Chain()), "service"))
	})
}

// mayAct enforces `may_act` (RFC 8693 4.4) wherever the subject token has it, whatever the request looks like: it must
// name this client, by identity members that are known here and no others.
func (d *decision) mayAct() Step {
	if d.in.Subject == nil || d.in.Subject.MayAct == nil {
		return Step{OK: true}
	}
	if !names(d.in.Subject.MayAct, d.in.Client.String(), d.in.Issuer) {
		return denied(countersign.CodeMayAct, "", "the subject token's may_act does not name %s", d.in.Client).
			hint(`it must be {"sub": "%s"}, with client_id instead or as well, and with iss %s or none`, d.in.Client, d.in.Issuer)
	}
	return Step{OK: true}
}

func names(mayAct json.RawMessage, client, ourIssuer string) bool {
	claims, err := jwt.ParseClaims(mayAct)
	if err != nil {
		return false
	}
	named := false
	for _, member := range claims.Names() {
		value, _, err := claims.String(member)
		switch {
		case err != nil:
			return false
		case member == "sub" || member == "client_id":
			if value != client {
				return false
			}
			named = true
		case member != "iss" || value != ourIssuer:
			return false
		}
	}
	return named
}

// chain appends the client to the chain and refuses one that gets too long or, unless the call has `reenter`, meets a service
// again. Every occurrence counts for max_hops.
func (d *decision) chain() Step {
	client, audience := d.grant.Client.ID.String(), d.grant.Audience.ID.String()
	rule := ruleOf(d.grant.Call)
	reenter := d.grant.Call.Reenter
	if audience == client && !reenter {
		return denied(countersign.CodeReentry, rule, "%s asks for a token to itself", d.grant.Client.Name).
			hint("call it without a token, or mark the call `reenter: true`")
	}
	if d.in.Machine {
		return Step{OK: true}
	}
	actors := d.in.Subject.Act.Chain()
	passed := actors
	if d.userless() { // the service that began by client_credentials is the sub, and stands in no act
		passed = append(passed, d.in.Subject.Sub)
	}
	for _, s := range []*countersign.Service{d.grant.Client, d.grant.Audience} {
		if !reenter && slices.Contains(passed, s.ID.String()) {
			return denied(countersign.CodeReentry, rule, "the request has passed through %s already", s.Name).
				hint("mark the call `reenter: true`, if a service may occur twice in a chain")
		}
	}
	if len(actors) >= min(d.p.MaxHops, deepest) {
		return denied(countersign.CodeHops, rule, "the request has passed through %s; a chain holds at most %d",
			plural(len(actors), "service"), min(d.p.MaxHops, deepest)).hint("`max_hops` of the policy is %d", d.p.MaxHops)
	}
	d.grant.Act = &Actor{Sub: client, Act: d.in.Subject.Act}
	return Step{OK: true}
}

// actor judges the actor token, which changes nothing: the actor is the authenticated client anyway.
func (d *decision) actor() Step {
	if d.in.ActorSent && d.in.Actor != d.in.Client {
		return denied(countersign.CodeActor, "", "the actor token does not prove %s", d.in.Client).
			hint("leave actor_token out: the client certificate is the proof")
	}
	return Step{OK: true}
}

// carry judges the claims that the new token keeps.
func (d *decision) carry() Step {
	if d.in.Subject == nil {
		return Step{OK: true}
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(d.in.Subject.Carry)) {
		raw := d.in.Subject.Carry[name]
		if slices.Contains(own(), name) {
			return denied(countersign.CodeCarry, "", "the claim %s can't be carried: it is one of ours", quote(name))
		}
		if !carriable(raw) {
			return denied(countersign.CodeCarry, "", "the claim %s can't be carried: it is no string, number, boolean or array of strings", quote(name))
		}
		size += len(name) + len(raw)
	}
	if size > maxCarry {
		return denied(countersign.CodeCarry, "", "the claims to carry have %d bytes; at most %d are taken. The longest is %s",
			size, maxCarry, quote(longest(d.in.Subject.Carry)))
	}
	d.grant.Carry = d.in.Subject.Carry
	return Step{OK: true}
}

func carriable(raw json.RawMessage) bool {
	if plainString(raw) {
		return true
	}
	var value any
	if json.Unmarshal(raw, &value) != nil {
		return false
	}
	switch v := value.(type) {
	case string, float64, bool:
		return true
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { _, ok := e.(string); return !ok })
	}
	return false
}

func longest(claims map[string]json.RawMessage) string {
	found := ""
	for name, raw := range claims {
		if len(raw) > len(claims[found]) || len(raw) == len(claims[found]) && name < found {
			found = name
		}
	}
	return found
}
