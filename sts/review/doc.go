// Package review answers questions about a policy before it is in force, or after a month of it: what a scope can reach,
// whether a list of cases holds, what a draft would have decided otherwise, and what nobody uses. Its answers come from
// [sts.Decide] and the audit log.
//
// It never changes anything, never sees a token or a claim of a user, and never guesses: what the audit log does not tell
// is reported as not known.
package review

import "github.com/countersign/countersign"

// unconditional is p without the conditions of its calls, whose sources stay: the claims that they look at are not kept.
func unconditional(p *countersign.Policy) *countersign.Policy {
	calls := make([]countersign.Call, len(p.Calls))
	copy(calls, p.Calls)
	for i := range calls {
		calls[i].Condition, calls[i].When = nil, ""
	}
	q := countersign.NewPolicy(p.Version, p.TrustDomain, p.Issuers, p.Services, calls)
	q.MaxHops = p.MaxHops
	return q
}

// inForce is p as it would be in force: a document has the version 0, which stands for no policy at all.
func inForce(p *countersign.Policy, version int) *countersign.Policy {
	if p.Version > 0 {
		return p
	}
	return p.WithVersion(version)
}
