package main

import (
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/cmd/countersign/bench"
)

func (a *app) benchCommand() *cobra.Command {
	return group("bench", "what the daemon costs on this machine, beside the bare cryptography", a.benchExchange())
}

func (a *app) benchExchange() *cobra.Command {
	var o bench.ExchangeOptions
	c := &cobra.Command{
		Use: "exchange", Short: "token exchanges over kept mTLS connections, policy and durable audit on", Args: noArgs,
		Long: `Starts an authority of its own on loopback, in a temporary directory, and loads its token endpoint. The daemon's CPU time
a request is what to compare: rates and latencies share this machine with the load itself. docs/performance.md has the
method and figures.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			executable, err := os.Executable()
			if err != nil {
				return err
			}
			o.Executable, o.Progress = executable, a.err
			if a.quiet {
				o.Progress = io.Discard
			}
			report, err := bench.Exchange(cmd.Context(), o)
			if err != nil {
				return &failure{Exit: exitLocal, What: "the benchmark could not be run", Why: err.Error(),
					Next: "check the flags with `countersign bench exchange --help`, and that ports on 127.0.0.1 and the temporary directory can be used", err: err}
			}
			return a.show(report, func(w *tabwriter.Writer) { showBench(w, report) })
		},
	}
	c.Flags().IntVar(&o.Connections, "connections", 16, "kept mTLS connections, each with one request at a time")
	c.Flags().IntVar(&o.Requests, "requests", 20000, "requests of each phase")
	c.Flags().IntVar(&o.Tokens, "tokens", 20000, "different subject tokens of the first phase; fewer than requests are used in turn")
	c.Flags().StringVar(&o.Alg, "alg", "ES256", "of the minted tokens: ES256 or RS256")
	return c
}

func showBench(w *tabwriter.Writer, r *bench.Report) {
	fmt.Fprintf(w, "machine   %s\n", r.Machine)
	fmt.Fprintf(w, "load      %d requests a row on %d kept mTLS connections; minted with %s\n", r.Requests, r.Connections, r.Alg)
	fmt.Fprintf(w, "raw       verify ES256 %.3f ms, sign %s %.3f ms of CPU\n\n", r.Raw.Verify, r.Alg, r.Raw.Sign)
	fmt.Fprintln(w, "tokens     rate/s  p50 ms  p99 ms  p99/p50  server CPU ms  times raw  RSS MiB")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%-9s %7.0f %7.2f %7.2f %8.1f %14.3f %10.2f  %.0f -> %.0f\n", row.Name, row.Rate, row.P50, row.P99, row.P99/row.P50,
			row.CPU, row.TimesRaw, float64(row.RSSBefore)/1024, float64(row.RSSAfter)/1024)
	}
}
