package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

// diagnosis is what doctor prints.
type diagnosis struct {
	Running  bool             `json:"running"` // a daemon answered on the admin socket
	Wrong    int              `json:"wrong"`
	Findings []daemon.Finding `json:"findings"`
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "look for what is wrong with the daemon of --dir and say how to mend it; exit code 4 if anything is", Args: noArgs,
		Long: `Looks at the daemon of --dir and its directory: expiry, clock, permissions, disk, lock, key-encryption key, backups beside it,
root key, the issuers of the policy as the daemon sees them, and the end of the audit log. It works without a running daemon too, and then
opens the database under its lock. It changes nothing and contacts nobody but the daemon.

"wrong" is a reason for exit code 4; "advice" and "unknown" are not.`,
		Example: "  countersign doctor\n  countersign doctor -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.server != "" || a.identity != "" {
				return &failure{Exit: exitLocal, What: "doctor looks at the machine that it runs on", Why: "--server and --identity name another one",
					Next: "run it there, with --dir; countersign status asks a remote daemon"}
			}
			_, unset := a.loadConfig(nil)
			if unset != nil && daemon.NotInitialised(unset) {
				return unset
			}
			live, err := a.askDaemon(cmd.Context())
			if err != nil {
				return err
			}
			facts := daemon.Look(cmd.Context(), daemon.Dir(a.dir), a.now(), unset, live != nil)
			facts.Live = live
			found := diagnosis{Running: live != nil, Findings: facts.Judge()}
			for _, f := range found.Findings {
				if f.State == daemon.FindingWrong {
					found.Wrong++
				}
			}
			err = a.show(found, func(w *tabwriter.Writer) { doctorTable(w, found.Findings) })
			if err == nil && found.Wrong > 0 {
				err = &failure{Exit: exitCondition, What: fmt.Sprintf("something is wrong: %d of %d findings", found.Wrong, len(found.Findings)),
					Why: firstWrong(found.Findings), Next: "mend what is marked wrong, as it says, then run this again"}
			}
			return err
		},
	}
}

// askDaemon asks the daemon of --dir for its own state; nil: none runs there.
func (a *app) askDaemon(ctx context.Context) (*daemon.Live, error) {
	c, err := a.connect()
	if err != nil {
		return nil, nil //nolint:nilerr // that none runs is a finding
	}
	defer c.Close()
	return liveFacts(ctx, c)
}

func liveFacts(ctx context.Context, c *client.Client) (*daemon.Live, error) {
	var live daemon.Live
	var err error
	if live.Status, err = c.Status(ctx); err != nil {
		return nil, err
	}
	if live.Authority, err = c.Authority(ctx, false); err != nil {
		return nil, err
	}
	if live.Keys, err = c.Keys(ctx); err != nil {
		return nil, err
	}
	live.Clock, err = c.Clock(ctx)
	return &live, err
}

func firstWrong(findings []daemon.Finding) string {
	for _, f := range findings {
		if f.State == daemon.FindingWrong {
			return f.Check + ": " + f.What
		}
	}
	return ""
}

func doctorTable(w *tabwriter.Writer, findings []daemon.Finding) {
	row(w, "STATE", "CHECK", "FOUND")
	for _, f := range findings {
		row(w, f.State, f.Check, f.What)
		if f.Next != "" {
			row(w, "", "", "-> "+f.Next)
		}
	}
}
