package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/sts"
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "who did what, for whom, and why it was allowed or not",
		a.auditTail(), a.auditSearch(), a.auditVerify())
}

func (a *app) auditTail() *cobra.Command {
	var follow bool
	var lines int
	c := &cobra.Command{
		Use: "tail", Short: "print the newest records", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkCount("--lines", lines); err != nil {
				return err
			}
			return a.withDaemon(func(c *client.Client) error {
				found, err := c.Audit(cmd.Context(), client.AuditQuery{Limit: lines, Newest: true})
				if err != nil {
					return err
				}
				slices.Reverse(found.Records)
				if err := a.showRecords(found.Records); err != nil || !follow {
					return err
				}
				return a.follow(cmd.Context(), c, found.Records)
			})
		},
	}
	c.Flags().IntVarP(&lines, "lines", "n", 10, "how many: 1 to 1000")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with each new record")
	return c
}

func (a *app) follow(ctx context.Context, c *client.Client, seen []wire.AuditRecord) error {
	query := client.AuditQuery{}
	if len(seen) > 0 {
		query.After = seen[len(seen)-1].Seq
	}
	for record, err := range c.FollowAudit(ctx, query) {
		if err != nil {
			return err
		}
		if err := a.showRecords([]wire.AuditRecord{record}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (a *app) auditSearch() *cobra.Command {
	var query client.AuditQuery
	var since, until string
	var why bool
	c := &cobra.Command{
		Use: "search [TEXT]", Short: "find records, newest first",
		Example: "  countersign audit search --outcome denied --since 1h\n  countersign audit search --subject orders --type token.issued -o json",
		Args:    upTo("TEXT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := checkCount("--limit", query.Limit)
			if err != nil {
				return err
			}
			if query.Since, err = a.instant("--since", since); err != nil {
				return err
			}
			if query.Until, err = a.instant("--until", until); err != nil {
				return err
			}
			query.Text = strings.Join(args, " ")
			query.Newest = true
			return a.withDaemon(func(c *client.Client) error {
				found, err := c.Audit(cmd.Context(), query)
				if err != nil {
					return err
				}
				if len(found.Records) == 0 {
					return &failure{Exit: exitNotFound, What: "no record fits", Why: "no record of the log is all that was asked for",
						Next: "ask for less, or for a longer time; `countersign audit tail` prints the newest"}
				}
				return a.showDecisions(found.Records, why || query.RequestID != "")
			})
		},
	}
	flags := c.Flags()
	flags.BoolVar(&why, "why", false, "with each denied token request the whole decision (default with --request)")
	flags.StringVar(&query.Type, "type", "", "as token.issued, token.denied, certificate.issued, key.rotated, policy.applied")
	flags.StringVar(&query.Outcome, "outcome", "", "ok, denied, failed or intent")
	flags.StringVar(&query.Subject, "subject", "", "what it is about: a service, serial, kid or version")
	flags.StringVar(&query.By, "by", "", "who asked: a name or an ID")
	flags.StringVar(&query.RequestID, "request", "", "the request id that a caller was told")
	flags.StringVar(&since, "since", "", "from then on: a time (RFC 3339), or how long ago, as 1h or 7d")
	flags.StringVar(&until, "until", "", "up to then")
	flags.IntVar(&query.Limit, "limit", 100, "how many: 1 to 1000")
	return c
}

// instant reads a point in time, or how long ago it was.
func (a *app) instant(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := daemon.ParseDuration(s); err == nil {
		return a.now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, &failure{Exit: exitLocal, What: fmt.Sprintf("%s: %q is neither a time nor a duration", flag, s),
			Why:  "a time is written as RFC 3339 says, a duration with its unit",
			Next: "write for example 2026-11-24T09:00:00Z, 1h or 7d"}
	}
	return t, nil
}

// showRecords prints one line a record, so that a tail can go on; as JSON they are lines too.
func (a *app) showRecords(records []wire.AuditRecord) error {
	for _, r := range records {
		switch a.output {
		case "json":
			body, err := json.Marshal(r)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s\n", body)
		case "yaml":
			fmt.Fprintln(a.out, "---")
			if err := a.showYAML(r); err != nil {
				return err
			}
		default:
			fmt.Fprintln(a.out, recordLine(r))
		}
	}
	return nil
}

// showDecisions prints records, and beneath each refused token request how that was decided: what the client was not told.
func (a *app) showDecisions(records []wire.AuditRecord, why bool) error {
	if !why || a.output != "table" {
		return a.showRecords(records)
	}
	for _, r := range records {
		if err := a.showRecords([]wire.AuditRecord{r}); err != nil {
			return err
		}
		var detail struct {
			Steps []sts.Step `json:"steps"`
		}
		if r.Type != "token.denied" || json.Unmarshal(r.Detail, &detail) != nil {
			continue
		}
		w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
		for _, step := range detail.Steps {
			shown := wire.Step{Hint: step.Hint, Nearest: step.Nearest}
			if step.Change != nil {
				shown.Change = &wire.Change{Text: step.Change.String()}
			}
			row(w, "        "+mark(step.OK), step.Name, step.Msg, step.Rule)
			for _, line := range adviceText(shown) {
				row(w, "", "", line)
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func recordLine(r wire.AuditRecord) string {
	line := fmt.Sprintf("%6d  %s  %-20s %-7s %-14s by %s", r.Seq, r.Time.UTC().Format("2006-01-02 15:04:05.000Z"), r.Type,
		r.Outcome, dash(r.Subject), dash(r.By.Name))
	if r.Code != "" {
		line += "  " + string(r.Code) + " " + r.Code.Info().Title
	}
	return printable(line)
}

func (a *app) auditVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "check the whole log: every hash, every signature, and that nothing is cut off", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				report, err := c.VerifyAudit(cmd.Context())
				if err != nil {
					return err
				}
				err = a.show(report, func(w *tabwriter.Writer) { verification(w, report) })
				if err == nil && !report.OK {
					err = &failure{Exit: exitCondition, What: "the audit log is not whole", Details: report.Faults,
						Why:  "what is listed above does not fit the hashes and signatures: it was changed, or a part was lost",
						Next: "stop using this daemon, keep a copy of its directory, and compare it with your backups"}
				}
				return err
			})
		},
	}
}

func verification(w *tabwriter.Writer, r wire.AuditVerification) {
	verdict := "the log is whole"
	if !r.OK {
		verdict = "THE LOG IS NOT WHOLE"
	}
	row(w, verdict)
	row(w, "records", strconv.FormatUint(r.Records, 10)+" in "+strconv.FormatUint(r.Segments, 10)+" segments")
	row(w, "sequence", fmt.Sprintf("%d to %d", r.First, r.Last))
	row(w, "checkpoints", fmt.Sprintf("%d, %d records since the last", r.Checkpoints, r.Unsigned))
	row(w, "head", r.Hash)
}
