package api

import (
	"net/http"
	"time"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts"
	"github.com/countersign/countersign/sts/review"
)

const (
	defaultReplayed = 10_000
	maxReplayed     = 100_000
	defaultDays     = 30
)

// change is nil for nil.
func change(c *sts.Change) *wire.Change {
	if c == nil {
		return nil
	}
	return &wire.Change{In: c.In, Op: c.Op, Path: c.Path, Value: c.Value, Note: c.Note, Text: c.String()}
}

// simulate decides exchanges of the audit log again, by a draft. It changes nothing.
func (s *Server) simulate(rq *request) error {
	last, err := rq.number("last", 1, maxReplayed, defaultReplayed)
	if err != nil {
		return err
	}
	draft, err := s.Policy.Draft(rq.body)
	if err != nil {
		return err
	}
	current := s.Policy.Current()
	done, err := review.Simulate(rq.Request().Context(), s.Audit, review.Question{Draft: draft, Current: current, Issuer: s.Issuer, Last: last})
	if err != nil {
		return err
	}
	out := wire.Simulation{
		Against: last, Replayed: done.Replayed, Since: done.Since, Until: done.Until, Version: current.Version, Unchanged: done.Unchanged,
		Unreadable: done.Unreadable, Breaking: done.Breaking, Counts: done.Counts, Dropped: done.Dropped,
		Groups: make([]wire.SimulationGroup, 0, len(done.Groups)),
	}
	for _, g := range done.Groups {
		out.Groups = append(out.Groups, wire.SimulationGroup(g))
	}
	return rq.answer(http.StatusOK, out)
}

// suggestions looks back through the audit log.
func (s *Server) suggestions(rq *request) error {
	days, err := rq.number("days", 1, 400, defaultDays)
	if err != nil {
		return err
	}
	if err := patient(rq); err != nil {
		return err
	}
	ctx, current := rq.Request().Context(), s.Policy.Current()
	period := time.Duration(days) * 24 * time.Hour
	found, err := review.Suggest(ctx, s.Audit, current, s.Issuer, s.Now(), period)
	if err != nil {
		return err
	}
	out := wire.Suggestions{
		Version: current.Version, Asked: period.String(), Since: found.Since, Until: found.Until, Short: found.Short, Requests: found.Read,
		Unused: unused(found.Unused), Scopes: unused(found.Scopes), MTLS: found.MTLS, Dropped: found.Dropped,
		Denials: make([]wire.IntendedRequest, 0, len(found.Denials)),
	}
	versions, err := s.Policy.History(ctx, 1)
	if err != nil {
		return err
	}
	if len(versions) > 0 {
		out.VersionFrom = versions[0].At
	}
	for _, d := range found.Denials {
		out.Denials = append(out.Denials, wire.IntendedRequest{
			From: d.From, To: d.To, Scope: d.Scope, Code: d.Code, Count: d.Count, Tokens: d.Tokens, First: d.First, Last: d.Last,
			RequestID: d.RequestID, Why: d.Why, Change: change(d.Change),
		})
	}
	return rq.answer(http.StatusOK, out)
}

func unused(rules []review.Unused) []wire.UnusedRule {
	out := make([]wire.UnusedRule, 0, len(rules))
	for _, r := range rules {
		out = append(out, wire.UnusedRule(r))
	}
	return out
}
