package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/storage/policy"
)

const maxPolicy = 1 << 20

func (a *app) policyCommand() *cobra.Command {
	return group("policy", "the call graph: who may call whom, with which scopes",
		a.policyApply(), a.policyShow(), a.policyHistory(), a.policyRollback(), a.policyExplain(),
		a.policyReach(), a.policyTest(), a.policySimulate(), a.policySuggest(), a.policyExport())
}

func (a *app) policyApply() *cobra.Command {
	var dryRun bool
	var ifVersion int
	c := &cobra.Command{
		Use: "apply FILE", Short: "put a policy in force, or say everything that is wrong with it",
		Example: "  countersign policy apply policy.yaml --dry-run",
		Args:    exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			document, err := a.readPolicy(args[0])
			var broken *brokenFiles
			if err != nil && !errors.As(err, &broken) {
				return err
			}
			daemon, connectErr := a.connect()
			if broken != nil {
				if connectErr == nil {
					defer daemon.Close()
					broken.tellAll(cmd.Context(), daemon, document)
				}
				return broken.failure
			}
			if connectErr != nil {
				return connectErr
			}
			defer daemon.Close()
			options := client.ApplyOptions{DryRun: dryRun}
			if cmd.Flags().Changed("if-version") {
				options.IfVersion = &ifVersion
			}
			applied, err := daemon.ApplyPolicy(cmd.Context(), document, options)
			if err != nil {
				return policyFaults(err, args[0])
			}
			return a.showApplied(applied)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would change")
	c.Flags().IntVar(&ifVersion, "if-version", 0, "only if this version is in force")
	return c
}

// readPolicy reads the document and puts the files that it names into it: the daemon opens no path that a policy names. With
// a *brokenFiles comes the document as far as it could be made.
func (a *app) readPolicy(path string) ([]byte, error) {
	document, err := a.readInput(path, maxPolicy)
	if err != nil {
		return nil, err
	}
	document, files, err := policy.Inline(document, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) && path != "-" {
			name = filepath.Join(filepath.Dir(path), name)
		}
		return readFile(name, maxPEM)
	})
	var broken *policy.FilesError
	switch {
	case errors.As(err, &broken):
		return document, newBrokenFiles(path, broken)
	case err != nil:
		return nil, err
	}
	for _, f := range files {
		if f.Thumbprint != "" {
			a.say("%s: %s, key %q, thumbprint (RFC 7638) %s", f.Key, f.Path, f.KID, f.Thumbprint)
		} else {
			a.say("%s: %s, SHA-256 %s", f.Key, f.Path, f.SHA256)
		}
	}
	return document, nil
}

// policyFaults puts the file's name before each fault, as compilers do.
func policyFaults(err error, path string) error {
	f := explain(err)
	api, ok := f.err.(*client.APIError)
	if !ok || len(api.Problem.Faults) == 0 {
		return err
	}
	f.Details = nil
	for _, fault := range api.Problem.Faults {
		f.Details = append(f.Details, faultText(path, fault))
	}
	f.What = fmt.Sprintf("%s has %d fault%s; the policy in force stays", path, len(f.Details), plural(len(f.Details)))
	f.Why = "a policy with a fault is never put in force; all of them are listed"
	f.Next = "mend them, then `countersign policy apply FILE --dry-run`"
	return f
}

func faultText(path string, fault wire.Fault) string {
	var b strings.Builder
	if path != "" {
		b.WriteString(path + ":")
	}
	if fault.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", fault.Line, fault.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if fault.Path != "" {
		b.WriteString(fault.Path + ": ")
	}
	b.WriteString(fault.Msg)
	if fault.Hint != "" {
		b.WriteString(" (" + fault.Hint + ")")
	}
	return b.String()
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

func (a *app) showApplied(applied wire.PolicyApplied) error {
	for _, warning := range applied.Warnings {
		a.say("warning: %s", warning)
	}
	return a.show(applied, func(w *tabwriter.Writer) {
		fmt.Fprint(w, applied.Diff)
		switch {
		case applied.Unchanged:
			fmt.Fprintf(w, "version %d is in force already; nothing was written\n", applied.Version)
		case applied.DryRun:
			fmt.Fprintln(w, "the policy has no faults; nothing was written (--dry-run)")
		default:
			fmt.Fprintf(w, "version %d is in force (before: %d)\n", applied.Version, applied.Previous)
		}
	})
}

func (a *app) policyShow() *cobra.Command {
	var version int
	c := &cobra.Command{
		Use: "show", Short: "print the policy in force, as it was applied", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			daemon, err := a.connect()
			if err != nil {
				return err
			}
			defer daemon.Close()
			document, err := daemon.Policy(cmd.Context(), version)
			if err != nil {
				return err
			}
			return a.show(document, func(w *tabwriter.Writer) { fmt.Fprint(w, document.Document) })
		},
	}
	c.Flags().IntVar(&version, "version", 0, "an older version; see `policy history`")
	return c
}

func (a *app) policyHistory() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "history", Short: "list the versions, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			daemon, err := a.connect()
			if err != nil {
				return err
			}
			defer daemon.Close()
			history, err := daemon.PolicyHistory(cmd.Context(), limit)
			if err != nil {
				return err
			}
			return a.show(history, func(w *tabwriter.Writer) {
				row(w, "VERSION", "WHEN", "BY", "SHA-256", "COMMENT")
				for _, v := range history.Versions {
					row(w, strconv.Itoa(v.Version), v.At.UTC().Format(time.RFC3339), v.By, short(v.SHA256), dash(v.Comment))
				}
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 20, "how many")
	return c
}

func (a *app) policyRollback() *cobra.Command {
	return &cobra.Command{
		Use: "rollback VERSION", Short: "put an older document in force again, as a new version",
		Long: "Puts the document of an older version in force again, as a new version.\nIt does not undo `service disable`.",
		Args: exactArgs("VERSION"),
		RunE: func(cmd *cobra.Command, args []string) error {
			version, err := strconv.Atoi(args[0])
			if err != nil || version < 1 {
				return &failure{Exit: exitLocal, What: quoted(args[0]) + " is no version", Why: "versions are counted from 1", Next: "see `countersign policy history`"}
			}
			daemon, err := a.connect()
			if err != nil {
				return err
			}
			defer daemon.Close()
			applied, err := daemon.Rollback(cmd.Context(), version)
			if err != nil {
				return policyFaults(err, "version "+args[0])
			}
			return a.showApplied(applied)
		},
	}
}

func (a *app) policyExplain() *cobra.Command {
	var rq wire.ExplainRequest
	var tokenFile string
	c := &cobra.Command{
		Use: "explain --from SERVICE --to SERVICE", Short: "tell how an exchange would be decided, step by step",
		Long: `Tells how an exchange would be decided, step by step, without making a token.

With --token it is judged as if --from had sent that subject token. Without, a subject is assumed that holds what
--holds lists, or, if that is not given, whatever the scopes need. Exits with 3 when the exchange would be refused.`,
		Example: "  countersign policy explain --from gateway --to orders --scope orders:write --holds shop.read",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rq.From == "" || rq.To == "" {
				return &failure{Exit: exitLocal, What: "which call?", Why: "--from and --to are both needed", Next: cmd.Example}
			}
			if tokenFile != "" {
				token, err := a.readToken(tokenFile)
				if err != nil {
					return err
				}
				rq.Token = token
			}
			return a.explainCall(cmd.Context(), rq)
		},
	}
	c.Flags().StringVar(&rq.From, "from", "", "the service that would exchange")
	c.Flags().StringVar(&rq.To, "to", "", "the audience: a service's name or ID")
	c.Flags().StringSliceVar(&rq.Scopes, "scope", nil, "scopes to ask for (default: all that are allowed)")
	c.Flags().StringSliceVar(&rq.SubjectScopes, "holds", nil, "scopes that the assumed subject holds")
	c.Flags().StringVar(&tokenFile, "token", "", "file with a subject token, - for standard input")
	return c
}

func (a *app) explainCall(ctx context.Context, rq wire.ExplainRequest) error {
	daemon, err := a.connect()
	if err != nil {
		return err
	}
	defer daemon.Close()
	explanation, err := daemon.Explain(ctx, rq)
	if err != nil {
		return err
	}
	err = a.show(explanation, func(w *tabwriter.Writer) {
		for _, step := range explanation.Steps {
			row(w, mark(step.OK), step.Name, step.Msg, step.Rule)
			for _, line := range adviceText(step) {
				row(w, "", "", line)
			}
		}
	})
	if err != nil {
		return err
	}
	if !explanation.Allowed {
		return refusedCall(rq, explanation)
	}
	a.say("%s -> %s would get a token for %s with scope %q", rq.From, rq.To, time.Duration(explanation.TTL), explanation.Scope)
	return nil
}

// refusedCall says in two lines what the trace says in many: the step that failed, and the smallest change.
func refusedCall(rq wire.ExplainRequest, e wire.Explanation) error {
	f := &failure{Exit: exitDenied, What: fmt.Sprintf("%s -> %s would be refused", rq.From, rq.To),
		Why: "the policy in force does not allow it", Next: "`countersign policy show` prints the policy in force"}
	for _, step := range e.Steps {
		if step.OK {
			continue
		}
		f.Why = step.Name + ": " + step.Msg
		if step.Change != nil {
			f.Next = "if it should be allowed: " + step.Change.Text
		}
		break
	}
	return f
}

// adviceText is what a step that failed says beside its message.
func adviceText(step wire.Step) []string {
	var lines []string
	if step.Hint != "" {
		lines = append(lines, "-> "+step.Hint)
	}
	if step.Nearest != "" {
		lines = append(lines, "nearest rule: "+step.Nearest)
	}
	if step.Change != nil {
		lines = append(lines, "smallest change: "+step.Change.Text)
	}
	return lines
}

func mark(ok bool) string {
	if ok {
		return "ok"
	}
	return "NO"
}

// short is the beginning of a hash, enough to tell it from others by eye.
func short(hash string) string {
	if len(hash) > 16 {
		return hash[:16]
	}
	return dash(hash)
}
