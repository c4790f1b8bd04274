package ca

import (
	"cmp"
	"context"
	"slices"

	"github.com/countersign/countersign"
)

// maxRevoked is how many revoked certificates and compromised keys one service is told of. Beyond it is an error: a list
// that is cut short would let the rest in.
const maxRevoked = 10_000

// Caller is a service that may call another one.
type Caller struct {
	ID     countersign.ID
	Name   string
	Scopes []string // of the call, sorted; none: mTLS only
}

// Callers is who may call one service, and with what of theirs they may not.
type Callers struct {
	Version int      // of the policy
	Callers []Caller // by name
	Serials []string // of their certificates that are revoked and not over for ten minutes yet, sorted
	Keys    []string // of theirs that are compromised, likewise: SHA-256 of the SubjectPublicKeyInfo
}

// Callers tells who may call the service id by the policy in force: nobody, if it is not in it or is disabled. Serials and
// keys are lower-case hex. Its cost grows with the callers' revocations and not with the inventory.
// Codes: CodeRevokedMany, those of the store.
func (a *Authority) Callers(ctx context.Context, id countersign.ID) (Callers, error) {
	p := a.cfg.Policy()
	out := Callers{Version: p.Version, Callers: callersOf(p, id), Serials: []string{}, Keys: []string{}}
	for _, c := range out.Callers {
		var err error
		if out.Serials, out.Keys, err = a.revokedOf(ctx, c.Name, maxRevoked, out.Serials, out.Keys); err != nil {
			return Callers{}, err
		}
	}
	slices.Sort(out.Serials)
	slices.Sort(out.Keys)
	return out, nil
}

// Revoked is closed when a certificate is revoked, by any node. Call it, then read, then wait.
func (a *Authority) Revoked() <-chan struct{} { return a.cfg.Store.Changed(revokedTable().Name) }

// callersOf are the edges of p into the service id. Tokens for a disabled service, or by one, are not made; so there are no
// calls either.
func callersOf(p *countersign.Policy, id countersign.ID) []Caller {
	callers := []Caller{}
	to, ok := p.ServiceByID(id)
	if !ok || to.Disabled != nil {
		return callers
	}
	for _, call := range p.CallsTo(to.Name) {
		from, ok := p.Service(call.From)
		if !ok || from.Disabled != nil {
			continue
		}
		scopes := make([]string, 0, len(call.Scopes))
		for _, s := range call.Scopes {
			scopes = append(scopes, s.Name)
		}
		slices.Sort(scopes)
		callers = append(callers, Caller{ID: from.ID, Name: from.Name, Scopes: scopes})
	}
	slices.SortFunc(callers, func(a, b Caller) int { return cmp.Compare(a.Name, b.Name) })
	return callers
}
