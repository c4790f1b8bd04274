package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
)

func (a *app) kekCommand() *cobra.Command {
	rotate := &cobra.Command{
		Use: "rotate", Short: "put all keys under a new key-encryption key, while they sign", Args: noArgs,
		Long: `Makes a new key-encryption key, re-wraps every sealed key with it in one step, and replaces the file kek in the daemon's
directory. Nothing stops meanwhile. Killed at any point, the next start has all keys, and finishes what was begun.

Copy the new file kek to where the old one was kept. Backups from before need the old one: keep its copy as long as them.
A KEK that systemd hands over ($CREDENTIALS_DIRECTORY) is not the daemon's to replace. It needs the role admin.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				made, err := c.RotateKEK(cmd.Context())
				if err != nil {
					return err
				}
				a.say("copy the daemon's new file kek to where the old one is kept; backups from before need the old one")
				return a.show(made, func(w *tabwriter.Writer) { fmt.Fprintf(w, "%d keys are under a new KEK\n", made.Keys) })
			})
		},
	}
	return group("kek", "the key that all other keys are sealed with: rotate it", rotate)
}
