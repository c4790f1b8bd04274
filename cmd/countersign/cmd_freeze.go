package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

func (a *app) freezeCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "freeze tokens|certificates|all --reason R", Short: "issue no tokens, no certificates or neither until it is thawed", Args: exactArgs("tokens|certificates|all"),
		Long: `Ends at once the issuing of tokens (every exchange, client_credentials, JWT-SVIDs), of certificates (all but the daemon's
own), or of both. Who asks is refused with who froze it and why, and told to come again.

All else goes on: JWKS, bundle, introspection, revocation, policy, rotation, audit. What was issued stays good until it
ends or is revoked. It outlives restarts, and no policy undoes it. It needs the role admin.`,
		Example: "  countersign freeze tokens --reason \"a signing key may have leaked\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return &failure{Exit: exitLocal, What: "why?", Why: "--reason is needed: everybody who is refused reads it",
					Next: "countersign freeze " + shellWord(args[0]) + " --reason \"...\""}
			}
			return a.withDaemon(func(c *client.Client) error {
				frozen, err := c.Freeze(cmd.Context(), wire.Freeze{What: args[0], Reason: reason})
				if err != nil {
					return err
				}
				return a.show(frozen, func(w *tabwriter.Writer) { frozenTable(w, frozen) })
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; everybody who is refused reads it")
	return c
}

func (a *app) thawCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "thaw tokens|certificates|all [--reason R]", Short: "issue again what was frozen", Args: exactArgs("tokens|certificates|all"),
		Long: `Takes a freeze back, at once. It needs the role admin.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(func(c *client.Client) error {
				frozen, err := c.Thaw(cmd.Context(), wire.Freeze{What: args[0], Reason: reason})
				if err != nil {
					return err
				}
				return a.show(frozen, func(w *tabwriter.Writer) { frozenTable(w, frozen) })
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the audit log")
	return c
}

func frozenTable(w *tabwriter.Writer, f countersign.Frozen) {
	if f.Tokens == nil && f.Certificates == nil {
		fmt.Fprintln(w, "nothing is frozen")
	}
	frozenRow(w, "tokens", f.Tokens)
	frozenRow(w, "certificates", f.Certificates)
}

func frozenRow(w *tabwriter.Writer, what string, d *countersign.Disabled) {
	if d != nil {
		row(w, "frozen", printable(fmt.Sprintf("%s, since %s by %s: %s", what, d.At.UTC().Format(time.RFC3339), d.By, d.Reason)))
	}
}
