package review

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/sts"
)

// Log is what of the audit log is read here: [audit.Log] has it.
type Log interface {
	Search(ctx context.Context, q audit.Query) ([]audit.Record, error)
}

// The ends that a replayed exchange may take under a draft, other than the one it took.
const (
	NowDenied   = "allowed -> denied"
	NowAllowed  = "denied -> allowed"
	OtherScopes = "other scopes"
	OtherTTL    = "other lifetime"
	OtherDenial = "denied otherwise"
	Conditional = "depends on a condition" // claims are not kept, so `when` can't be evaluated again
	NotKnown    = "not known"              // the request was refused before all that decides it was verified
)

// Bounds of [Simulate] and [Suggest].
const (
	MaxReplayed = 1_000_000 // exchanges of one question
	maxGroups   = 1000
)

// Question is what [Simulate] is asked.
type Question struct {
	Draft, Current *countersign.Policy
	Issuer         string // our issuer identifier
	Last           int    // how many exchanges, the newest; 1 to MaxReplayed
}

// Simulation is what a draft would change.
type Simulation struct {
	Replayed   int       // exchanges that were found
	Since      time.Time // of the oldest; zero: none
	Until      time.Time
	Unchanged  int
	Unreadable int            // records of an older version, which hold too little
	Counts     map[string]int // by kind of change
	Breaking   int            // of NowDenied: those that the policy in force does not deny already
	Groups     []Group        // the most frequent first
	Dropped    int            // exchanges of groups that there was no room for
}

// Group is exchanges along one call that change in the same way.
type Group struct {
	Change    string
	From, To  string
	Code      countersign.Code // of the draft's denial; of the recorded one if the draft allows
	Why       string           // of the draft's denial, for one of the exchanges
	Before    string           // scopes or lifetime; the code of a denial
	After     string
	When      string // the draft's condition
	Already   bool   // the policy in force decides like the draft already
	Count     int
	RequestID string // of the newest
	Newest    time.Time
	Fix       string // the smallest change of the draft that would allow it
}

// Simulate decides the newest exchanges of the audit log again, by the draft. Its memory is bounded by maxGroups.
func Simulate(ctx context.Context, log Log, q Question) (Simulation, error) {
	q.Draft = inForce(q.Draft, q.Current.Version+1)
	s := simulator{
		draft: unconditional(q.Draft), current: unconditional(q.Current), q: q,
		groups: map[Group]*Group{}, out: Simulation{Counts: map[string]int{}},
	}
	err := newest(ctx, log, q.Last, time.Time{}, s.replay)
	for _, g := range s.groups {
		s.out.Groups = append(s.out.Groups, *g)
	}
	slices.SortFunc(s.out.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Change, b.Change), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To),
			cmp.Compare(a.Before, b.Before), cmp.Compare(a.After, b.After), cmp.Compare(a.Code, b.Code))
	})
	return s.out, err
}

// newest reads the records of token requests, the newest first, until visit saw last of them or they are older than since.
func newest(ctx context.Context, log Log, last int, since time.Time, visit func(audit.Record)) error {
	before := uint64(0)
	for last > 0 {
		records, err := log.Search(ctx, audit.Query{Type: "token.", Before: before, Since: since, Limit: audit.MaxSearch, Newest: true})
		if err != nil {
			return err
		}
		for _, r := range records {
			before = r.Seq
			if last > 0 && (r.Type == "token.issued" || r.Type == "token.denied") {
				last--
				visit(r)
			}
		}
		if len(records) < audit.MaxSearch {
			return nil
		}
	}
	return nil
}

type simulator struct {
	draft, current *countersign.Policy
	q              Question
	groups         map[Group]*Group
	out            Simulation
}

func (s *simulator) replay(r audit.Record) {
	s.out.Replayed++
	s.out.Since = r.Time
	if s.out.Until.IsZero() {
		s.out.Until = r.Time
	}
	x, ok := sts.ReadExchange(r)
	if !ok {
		s.out.Unreadable++
		return
	}
	g := s.compare(x)
	if g.Change == "" {
		s.out.Unchanged++
		return
	}
	s.out.Counts[g.Change]++
	if g.Change == NowDenied && !g.Already {
		s.out.Breaking++
	}
	why, fix := g.Why, g.Fix
	g.Why, g.Fix = "", "" // they name what one request asked for
	known, ok := s.groups[g]
	switch {
	case ok:
		known.Count++
	case len(s.groups) == maxGroups:
		s.out.Dropped++
	default:
		first := g
		first.Why, first.Fix, first.Count, first.RequestID, first.Newest = why, fix, 1, x.RequestID, x.At
		s.groups[g] = &first
	}
}

// compare is the group of the exchange; one without a Change ends as it did.
func (s *simulator) compare(x sts.Exchange) Group {
	g := Group{From: x.Client.Name(), To: x.Target}
	if !x.Judged() {
		if _, step := x.Decide(s.draft, s.q.Issuer); step.Err() != nil && step.Err().Code == x.Code {
			return g // refused for who asked, as before
		}
		g.Change, g.Code, g.Before = NotKnown, x.Code, string(x.Code)
		return g
	}
	grant, trace := x.Decide(s.draft, s.q.Issuer)
	denial := trace.Err()
	if denial != nil {
		return s.compareDenial(g, x, trace)
	}
	g.To = grant.Audience.Name
	call, _ := s.q.Draft.Call(grant.Call.From, grant.Call.To)
	if call.When != "" && !s.sameCondition(x, grant) {
		g.Change, g.When, g.Before = Conditional, call.When, ended(x)
		return g
	}
	if x.Code == countersign.CodeCarry || call.When != "" && !x.Allowed {
		if x.Code == countersign.CodeCarry && !s.sameCarry(x) {
			g.Change, g.Code, g.Before = NotKnown, x.Code, string(x.Code)
		}
		return g // a claim refused it, and would again
	}
	lifetime := grant.Expires.Sub(grant.IssuedAt)
	switch {
	case !x.Allowed:
		g.Change, g.Code, g.Before, g.After = NowAllowed, x.Code, string(x.Code), strings.Join(grant.Scopes, " ")
		g.Already = s.allowedNow(x)
	case !sameScopes(x.Granted, grant.Scopes):
		g.Change, g.Before, g.After = OtherScopes, strings.Join(x.Granted, " "), strings.Join(grant.Scopes, " ")
	case (lifetime - x.Lifetime).Abs() > time.Second:
		g.Change, g.Before, g.After = OtherTTL, s.ttl(s.q.Current, grant.Call), s.ttl(s.q.Draft, grant.Call)
	}
	return g
}

// ttl shows the call's lifetimes, not those of single tokens: a group must not fall apart into as many as there are tokens.
func (s *simulator) ttl(p *countersign.Policy, call *countersign.Call) string {
	if c, ok := p.Call(call.From, call.To); ok {
		return time.Duration(c.TTL).String()
	}
	return "none"
}

func ended(x sts.Exchange) string {
	if x.Allowed {
		return "allowed"
	}
	return string(x.Code)
}

func (s *simulator) compareDenial(g Group, x sts.Exchange, trace sts.Trace) Group {
	last := trace.Steps[len(trace.Steps)-1]
	switch {
	case x.Allowed && last.Code == countersign.CodeLifetime:
		// no policy decides that: the record was written a moment after the decision
	case x.Allowed:
		g.Change, g.Code, g.Why, g.Before, g.After = NowDenied, last.Code, last.Msg, "allowed", string(last.Code)
		g.Already, g.Fix = !s.allowedNow(x), last.Change.String()
	case keptBack(x.Code):
		// a condition or a claim refused it after all that was replayed; the draft refuses it earlier
	case last.Code != x.Code:
		g.Change, g.Code, g.Why, g.Before, g.After = OtherDenial, last.Code, last.Msg, string(x.Code), string(last.Code)
	}
	return g
}

// keptBack tells whether a denial hung on claims that are not kept.
func keptBack(code countersign.Code) bool {
	return code >= countersign.CodeCarry && code < countersign.CodeLifetime
}

// allowedNow tells whether the policy in force would allow the exchange, as far as the record tells.
func (s *simulator) allowedNow(x sts.Exchange) bool {
	_, trace := x.Decide(s.current, s.q.Issuer)
	return trace.Err() == nil
}

// sameCondition tells whether the exchange met this very condition before: the version in force decided it, and the draft's
// call has the same condition. What it looked at must be the same too: the token, and so what the user's issuer carries into
// it, and the scopes that would be granted; caller and moment are the record's.
func (s *simulator) sameCondition(x sts.Exchange, grant sts.Grant) bool {
	then, _ := s.q.Draft.Call(grant.Call.From, grant.Call.To)
	now, ok := s.q.Current.Call(grant.Call.From, grant.Call.To)
	switch {
	case !ok || x.Policy != s.q.Current.Version || now.When != then.When:
		return false
	case x.Subject != nil && x.Subject.SubIssuer != s.q.Issuer && !s.sameCarry(x): // a service's own token carries nothing
		return false
	case x.Allowed:
		return sameScopes(x.Granted, grant.Scopes)
	case !keptBack(x.Code):
		return false
	}
	// A denial's record holds no granted scopes: they are what the version that decided it would have granted.
	before, trace := x.Decide(s.current, s.q.Issuer)
	return trace.Err() == nil && sameScopes(before.Scopes, grant.Scopes)
}

func sameScopes(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// sameCarry tells whether the draft carries the same claims of the user's issuer as the policy in force.
func (s *simulator) sameCarry(x sts.Exchange) bool {
	now, ok := s.q.Current.Issuer(x.Subject.SubIssuer)
	then, still := s.q.Draft.Issuer(x.Subject.SubIssuer)
	return ok && still && x.Policy == s.q.Current.Version && slices.Equal(now.Carry, then.Carry)
}
