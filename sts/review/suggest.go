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

// intended is how many requests make a denial look like something that was meant to work.
const intended = 3

// Period is the time that a look back asks for and what it could see.
type Period struct {
	Asked time.Duration
	Since time.Time // from when on the log was read; zero: it is empty
	Until time.Time
	Short bool // the log is younger than asked, or holds more requests than are read
	Read  int  // token requests that were read
}

// Suggestions are what the audit log says about the policy.
type Suggestions struct {
	Period
	Unused  []Unused // calls that no token was made for
	Scopes  []Unused // scopes of used calls that no token held
	Denials []Intended
	MTLS    int // calls without scopes, whose use the authority does not see
	Dropped int // denials of calls that there was no room for
}

// Unused is a call, or a scope of it, that nobody used in the period.
type Unused struct{ From, To, Scope string }

// Intended is an exchange that a service of the policy tried again and again, and that the policy in force still denies.
type Intended struct {
	From, To, Scope string
	Code            countersign.Code
	Count           int
	Tokens          int // different subject tokens among them, counted up to 3
	First, Last     time.Time
	RequestID       string // of the last
	Why             string
	Change          *sts.Change
}

// Suggest reads the token requests of the last period. Its memory is bounded by the policy and maxGroups.
func Suggest(ctx context.Context, log Log, p *countersign.Policy, issuer string, now time.Time, period time.Duration) (Suggestions, error) {
	g := gatherer{p: p, issuer: issuer, bare: unconditional(p), used: map[[2]string]map[string]bool{}, denied: map[denialKey]*denials{}}
	out := Suggestions{Period: Period{Asked: period, Until: now}}
	since := now.Add(-period)
	oldest, err := log.Search(ctx, audit.Query{Limit: 1})
	if err != nil {
		return out, err
	}
	if len(oldest) > 0 {
		out.Since, out.Short = since, oldest[0].Time.After(since)
		if out.Short {
			out.Since = oldest[0].Time
		}
	} else {
		out.Short = true
	}
	last := time.Time{}
	err = newest(ctx, log, MaxReplayed, since, func(r audit.Record) {
		out.Read++
		last = r.Time
		if x, ok := sts.ReadExchange(r); ok {
			g.take(x)
		}
	})
	if err != nil {
		return out, err
	}
	if out.Read == MaxReplayed {
		out.Since, out.Short = last, true
	}
	g.unused(&out)
	g.intended(&out)
	return out, nil
}

type denialKey struct {
	from, to, scope string
	code            countersign.Code
}

type denials struct {
	count       int
	first, last time.Time
	tokens      []string
	newest      sts.Exchange
}

type gatherer struct {
	p, bare *countersign.Policy
	issuer  string
	used    map[[2]string]map[string]bool
	denied  map[denialKey]*denials
	dropped int
}

func (g *gatherer) take(x sts.Exchange) {
	if x.Allowed {
		edge := [2]string{x.Client.Name(), x.Target}
		if _, ok := g.p.Call(edge[0], edge[1]); !ok {
			return
		}
		if g.used[edge] == nil {
			g.used[edge] = map[string]bool{}
		}
		call, _ := g.p.Call(edge[0], edge[1])
		for _, name := range x.Granted {
			if _, on := call.Scope(name); on { // so that old scopes take no room
				g.used[edge][name] = true
			}
		}
		return
	}
	if !x.Judged() || x.Target == "" || (x.Step != sts.StepCall && x.Step != sts.StepScope) {
		return // not a question of what the policy allows
	}
	key := denialKey{x.Client.Name(), x.Target, strings.Join(x.Scopes, " "), x.Code}
	d, ok := g.denied[key]
	if !ok {
		if len(g.denied) == maxGroups {
			g.dropped++
			return
		}
		d = &denials{last: x.At, newest: x}
		g.denied[key] = d
	}
	d.count++
	d.first = x.At
	if len(d.tokens) < intended && !slices.Contains(d.tokens, x.Token) && x.Token != "" {
		d.tokens = append(d.tokens, x.Token)
	}
}

func (g *gatherer) unused(out *Suggestions) {
	for i := range g.p.Calls {
		call := &g.p.Calls[i]
		if len(call.Scopes) == 0 {
			out.MTLS++
			continue
		}
		used := g.used[[2]string{call.From, call.To}]
		if used == nil {
			out.Unused = append(out.Unused, Unused{From: call.From, To: call.To})
			continue
		}
		for _, scope := range call.Scopes {
			if !used[scope.Name] {
				out.Scopes = append(out.Scopes, Unused{call.From, call.To, scope.Name})
			}
		}
	}
}

// intended keeps the denials that several requests of a service of the policy ran into and that it still makes.
func (g *gatherer) intended(out *Suggestions) {
	out.Dropped = g.dropped
	for key, d := range g.denied {
		if d.count < intended {
			continue
		}
		_, trace := d.newest.Decide(g.bare, g.issuer)
		denial := trace.Err()
		if denial == nil || denial.Code == countersign.CodeClient || denial.Code == countersign.CodeServiceDisabled {
			continue
		}
		last := trace.Steps[len(trace.Steps)-1]
		out.Denials = append(out.Denials, Intended{
			From: key.from, To: key.to, Scope: key.scope, Code: last.Code, Count: d.count, Tokens: len(d.tokens),
			First: d.first, Last: d.last, RequestID: d.newest.RequestID, Why: last.Msg, Change: last.Change,
		})
	}
	slices.SortFunc(out.Denials, func(a, b Intended) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Code, b.Code))
	})
}
