package main

import (
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

func (a *app) clockCommand() *cobra.Command {
	return group("clock", "whether the daemon believes its clock, and to confirm it", a.clockStatus(), a.clockConfirm())
}

func (a *app) clockStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "show what the daemon's clocks say; exit code 4 if they parted", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(func(c *client.Client) error {
				state, err := c.Clock(cmd.Context())
				if err != nil {
					return err
				}
				err = a.show(state, func(w *tabwriter.Writer) { clockTable(w, state) })
				if err == nil && !state.Trusted {
					err = &failure{Exit: exitCondition, What: "the daemon does not believe its clock", Why: state.Why,
						Next: "set it right, and it goes on by itself within a second; or, if it is right, `countersign clock confirm`"}
				}
				return err
			})
		},
	}
}

func (a *app) clockConfirm() *cobra.Command {
	var at string
	c := &cobra.Command{
		Use: "confirm", Short: "say that the daemon's clock is right after it leapt", Args: noArgs,
		Long: `The daemon signs nothing while its wall clock and the clock that counts since the boot differ by more than 5 s. Set a
wrong clock right, and it goes on by itself. If the clock is right now, because it was wrong before or the machine stood
still, say so here: it needs the role admin, and is recorded.

The daemon compares its clock with this machine's, or with --time, and refuses if they differ by more than a minute.
So look at another clock first, or run this from another machine.`,
		Example: "  countersign clock confirm\n  countersign clock confirm --time 2026-11-24T09:00:00Z",
		RunE: func(cmd *cobra.Command, _ []string) error {
			seen := a.now()
			if at != "" {
				var err error
				if seen, err = time.Parse(time.RFC3339, at); err != nil {
					return &failure{Exit: exitLocal, What: "--time: " + quoted(at) + " is no time",
						Why: "a time is written as RFC 3339 says, with its zone", Next: "write for example 2026-11-24T09:00:00Z"}
				}
			}
			return a.withDaemon(func(c *client.Client) error {
				state, err := c.ConfirmClock(cmd.Context(), wire.ClockConfirmation{Time: seen})
				if err != nil {
					return err
				}
				return a.show(state, func(w *tabwriter.Writer) { clockTable(w, state) })
			})
		},
	}
	c.Flags().StringVar(&at, "time", "", "what time it is (RFC 3339), by a clock that you believe; default: this machine's")
	return c
}

func clockTable(w *tabwriter.Writer, s wire.Clock) {
	row(w, "believed", strconv.FormatBool(s.Trusted))
	row(w, "daemon's time", s.Time.UTC().Format(time.RFC3339))
	row(w, "wall clock", s.Wall.UTC().Format(time.RFC3339))
	row(w, "ahead by", fmt.Sprintf("%.1f s", s.Ahead))
	if s.Why != "" {
		row(w, "why", s.Why)
	}
}
