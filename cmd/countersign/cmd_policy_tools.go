package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/sts/review"
)

// loadPolicy reads and checks the policy that a tool works on: a file, without any daemon, or the one in force with the
// services that are disabled.
func (a *app) loadPolicy(cmd *cobra.Command, path string) (*countersign.Policy, error) {
	if path != "" {
		document, err := a.readPolicy(path)
		if err != nil {
			return nil, err
		}
		return parsePolicy(document, path)
	}
	daemon, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer daemon.Close()
	inForce, err := daemon.Policy(cmd.Context(), 0)
	if err != nil {
		return nil, err
	}
	services, err := daemon.Services(cmd.Context())
	if err != nil {
		return nil, err
	}
	p, err := parsePolicy([]byte(inForce.Document), fmt.Sprintf("version %d", inForce.Version))
	if err != nil {
		return nil, err
	}
	for i := range p.Services {
		for _, s := range services.Services {
			if s.Name == p.Services[i].Name {
				p.Services[i].Disabled = s.Disabled
			}
		}
	}
	return p, nil
}

// parsePolicy checks a document by itself: which trust domain a daemon has is for `policy apply --dry-run` to say.
func parsePolicy(document []byte, path string) (*countersign.Policy, error) {
	var head struct {
		TrustDomain string `yaml:"trust_domain"`
	}
	_ = yaml.Unmarshal(document, &head) // Parse tells all that is wrong
	p, faults := policy.Parse(document, policy.Env{TrustDomain: head.TrustDomain})
	if len(faults) == 0 {
		return p, nil
	}
	f := &failure{Exit: exitLocal, What: fmt.Sprintf("%s has %d fault%s", path, len(faults), plural(len(faults))),
		Why: "a document with faults is no policy", Next: "mend them; docs/policy.md describes every key"}
	for _, fault := range faults {
		f.Details = append(f.Details, faultText(path, wire.Fault(fault)))
	}
	return nil, f
}

func (a *app) policyReach() *cobra.Command {
	var scopes []string
	var to, file string
	c := &cobra.Command{
		Use: "reach --user-scope SCOPE [--to SERVICE]", Short: "what a user who holds a scope can reach, over any chain of services",
		Long: `Tells what a user's token with the given scopes can become, at every entry point that takes it and over every chain
of exchanges that the policy allows: each scope at each service, with a shortest path. Conditions are taken to hold, and
are shown. Works on the policy in force, or with --policy on a file, without a daemon.`,
		Example: "  countersign policy reach --user-scope shop.read --to inventory",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(scopes) == 0 {
				return &failure{Exit: exitLocal, What: "which scopes?", Why: "--user-scope names what the user's token holds", Next: cmd.Example}
			}
			p, err := a.loadPolicy(cmd, file)
			if err != nil {
				return err
			}
			if _, ok := p.Service(to); to != "" && !ok {
				return &failure{Exit: exitNotFound, What: "the policy has no service " + quoted(to), Why: "--to names one of its services", Next: "see `countersign service list`"}
			}
			reached := review.Reach(p, scopes, to)
			if reached == nil {
				reached = []review.Reached{}
			}
			return a.show(map[string]any{"reached": reached}, func(w *tabwriter.Writer) {
				if len(reached) == 0 {
					fmt.Fprintln(w, "nothing")
				}
				for _, r := range reached {
					row(w, r.Service, r.Scope, pathText(r))
				}
			})
		},
	}
	c.Flags().StringSliceVar(&scopes, "user-scope", nil, "scopes of the user's token")
	c.Flags().StringVar(&to, "to", "", "only what is reached at this service")
	c.Flags().StringVar(&file, "policy", "", "a policy file instead of the policy in force, - for standard input")
	return c
}

func pathText(r review.Reached) string {
	if r.Possible {
		return "possibly: the policy is too large to try every chain"
	}
	text := r.Issuer + " -> " + r.Path[0].From
	for _, hop := range r.Path {
		text += " -> " + hop.To + " " + hop.Scope
		if hop.When != "" {
			text += " [when " + hop.When + "]"
		}
	}
	return text
}

func (a *app) policyTest() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "test CASES [--policy FILE]", Short: "hold a policy to a file of cases, for pipelines",
		Long: `Decides each case of a YAML file and compares: who asks for what, holding what, and whether it must be allowed.
Works on the policy in force, or with --policy on a file, without a daemon. Exits with 4 if a case does not hold.
docs/policy-tools.md describes the file.`,
		Example: "  countersign policy test cases.yaml --policy policy.yaml",
		Args:    exactArgs("CASES"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cases, err := a.readCases(args[0])
			if err != nil {
				return err
			}
			p, err := a.loadPolicy(cmd, file)
			if err != nil {
				return err
			}
			return a.showResults(args[0], review.Run(p, cases, a.now()))
		},
	}
	c.Flags().StringVar(&file, "policy", "", "a policy file instead of the policy in force")
	return c
}

func (a *app) readCases(path string) ([]review.Case, error) {
	var body []byte
	var err error
	if path == "-" {
		body, err = io.ReadAll(io.LimitReader(a.in, review.MaxCases+1))
	} else {
		body, err = readFile(path, review.MaxCases)
	}
	if err != nil {
		return nil, err
	}
	cases, faults := review.ParseCases(body)
	if len(faults) == 0 {
		return cases, nil
	}
	f := &failure{Exit: exitLocal, What: fmt.Sprintf("%s has %d fault%s; nothing was tested", path, len(faults), plural(len(faults))),
		Why:  "a case that can't be read would pass in silence",
		Next: "docs/policy-tools.md describes the file"}
	for _, fault := range faults {
		f.Details = append(f.Details, path+":"+fault.String())
	}
	return nil, f
}

func (a *app) showResults(path string, results []review.Result) error {
	failed := 0
	for _, r := range results {
		if !r.OK {
			failed++
		}
	}
	all := map[string]any{"cases": len(results), "failed": failed, "results": results}
	err := a.show(all, func(w *tabwriter.Writer) {
		for _, r := range results {
			if r.OK {
				fmt.Fprintf(w, "ok    %s\n", printable(r.Name))
				continue
			}
			fmt.Fprintf(w, "FAIL  %s  (%s:%d)\n        want  %s\n        got   %s\n", printable(r.Name), path, r.Line, printable(r.Want), printable(r.Got))
			for _, line := range []string{r.Why, r.Change} {
				if line != "" {
					fmt.Fprintf(w, "              %s\n", printable(line))
				}
			}
		}
		fmt.Fprintf(w, "%d cases, %d failed\n", len(results), failed)
	})
	if err == nil && failed > 0 {
		err = &failure{Exit: exitCondition, What: fmt.Sprintf("%d of %d cases do not hold", failed, len(results)),
			Why: "the policy decides them otherwise than " + path + " says", Next: "mend the policy, or the cases that are out of date"}
	}
	return err
}

func (a *app) policySimulate() *cobra.Command {
	var against string
	c := &cobra.Command{
		Use: "simulate DRAFT [--against last:N]", Short: "what a draft would have decided otherwise",
		Long: `Decides the newest N exchanges of the audit log again, by a draft, and tells what would have ended otherwise, by call.
Claims of users are not kept, so an exchange that a condition (when) decides is reported as depending on it.
Exits with 4 if the draft would deny what was allowed and what the policy in force allows still.`,
		Example: "  countersign policy simulate --against last:10000 draft.yaml",
		Args:    exactArgs("DRAFT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, ok := strings.CutPrefix(against, "last:")
			last, err := strconv.Atoi(text)
			if !ok || err != nil || last < 1 || last > 100_000 {
				return &failure{Exit: exitLocal, What: "--against: " + quoted(against) + " is no part of the audit log", Why: "it is a number of exchanges, the newest", Next: "write last:N, N from 1 to 100000"}
			}
			draft, err := a.readPolicy(args[0])
			if err != nil {
				return err
			}
			return a.withDaemon(func(c *client.Client) error {
				done, err := c.Simulate(cmd.Context(), draft, last)
				if err != nil {
					return policyFaults(err, args[0])
				}
				return a.showSimulation(done)
			})
		},
	}
	c.Flags().StringVar(&against, "against", "last:10000", "the exchanges to decide again: last:N, up to 100000")
	return c
}

func (a *app) showSimulation(s wire.Simulation) error {
	err := a.show(s, func(w *tabwriter.Writer) {
		for _, g := range s.Groups {
			row(w, strconv.Itoa(g.Count), g.Change+already(g.Already), g.From+" -> "+dash(g.To), changeText(g), "request "+dash(g.RequestID))
			for _, line := range []string{g.Why, g.Fix} {
				if line != "" {
					row(w, "", "", "", "  "+line)
				}
			}
		}
		if s.Replayed == 0 {
			fmt.Fprintln(w, "the audit log holds no exchanges")
			return
		}
		fmt.Fprintf(w, "%d exchanges from %s to %s, %d unchanged\n", s.Replayed, s.Since.UTC().Format(time.RFC3339), s.Until.UTC().Format(time.RFC3339), s.Unchanged)
		if n := s.Unreadable; n > 0 {
			fmt.Fprintf(w, "%d records are of an older version and hold too little to be decided again\n", n)
		}
		if n := s.Dropped; n > 0 {
			fmt.Fprintf(w, "%d more changed in further ways that are not shown\n", n)
		}
	})
	if err == nil && s.Breaking > 0 {
		err = &failure{Exit: exitCondition, What: fmt.Sprintf("the draft would deny %d of %d exchanges that were allowed", s.Breaking, s.Replayed),
			Why:  "the policy in force allows them still",
			Next: "look at one of them with `countersign audit search --request ID`"}
	}
	return err
}

func already(yes bool) string {
	if yes {
		return " (by the policy in force too)"
	}
	return ""
}

func changeText(g wire.SimulationGroup) string {
	switch {
	case g.When != "":
		return g.Before + ", when " + g.When
	case g.After == "":
		return g.Before
	}
	return g.Before + " => " + g.After
}

func (a *app) policySuggest() *cobra.Command {
	var days int
	c := &cobra.Command{
		Use: "suggest [--days 30]", Short: "what the audit log says about the policy: unused calls and scopes, denials that look intended",
		Long: `Reads the exchanges of the last days and lists calls that no token was made for, scopes that no token held, and
requests that a service sent three times or more and that are still denied, with the smallest change that would allow
them. A log that does not reach back so far is said to. Calls by mTLS alone are not seen here.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if days < 1 || days > 400 {
				return &failure{Exit: exitLocal, What: fmt.Sprintf("--days: %d is not from 1 to 400", days), Why: "so far back at most the log is kept unless configured", Next: "write for example --days 30"}
			}
			return a.withDaemon(func(c *client.Client) error {
				found, err := c.Suggestions(cmd.Context(), days)
				if err != nil {
					return err
				}
				return a.show(found, func(w *tabwriter.Writer) { suggestionTable(w, found) })
			})
		},
	}
	c.Flags().IntVar(&days, "days", 30, "how far to look back: 1 to 400")
	return c
}

func suggestionTable(w *tabwriter.Writer, s wire.Suggestions) {
	seen := "nothing: the audit log is empty"
	if !s.Since.IsZero() {
		seen = fmt.Sprintf("%s to %s, %d requests", s.Since.UTC().Format(time.RFC3339), s.Until.UTC().Format(time.RFC3339), s.Requests)
		if s.Short {
			seen += "; it reaches back no farther, so what is unused in it may have been used before"
		}
	}
	fmt.Fprintf(w, "seen: %s\n", printable(seen))
	fmt.Fprintf(w, "policy: version %d, in force since %s\n", s.Version, dash(s.VersionFrom.UTC().Format(time.RFC3339)))
	for _, u := range s.Unused {
		row(w, "unused call", u.From+" -> "+u.To, "no token was made for it")
	}
	for _, u := range s.Scopes {
		row(w, "unused scope", u.From+" -> "+u.To, u.Scope)
	}
	for _, d := range s.Denials {
		row(w, "denied "+strconv.Itoa(d.Count)+" times", d.From+" -> "+d.To, string(d.Code)+" "+d.Why, "request "+dash(d.RequestID))
		if d.Change != nil {
			row(w, "", "", "  if it should work: "+d.Change.Text)
		}
	}
	if s.MTLS > 0 {
		fmt.Fprintf(w, "%d call%s by mTLS alone: the authority does not see their use\n", s.MTLS, plural(s.MTLS))
	}
	if len(s.Unused)+len(s.Scopes)+len(s.Denials) == 0 && s.Requests > 0 {
		fmt.Fprintln(w, "nothing to suggest")
	}
}
