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
	return group("bench", "what the daemon costs on this machine, beside the bare cryptography", a.benchExchange(), a.benchIssue(), a.benchRenew(), a.benchRelay(), a.benchApp(), a.benchProxy())
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

func (a *app) benchRelay() *cobra.Command {
	var o bench.RelayOptions
	c := &cobra.Command{
		Use: "relay", Short: "what a relay adds to a plain reverse proxy of the same shape, tokens cached", Args: noArgs,
		Long: `Starts an authority, an application, two relays and two plain reverse proxies on loopback, in a temporary directory, and sends
requests to relay and proxy in turn: at the internal listener (mTLS and a relay token, to the application), and at the public
one (a user's token, exchanged, and mTLS to the next service). docs/performance.md has the method and figures.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			executable, err := os.Executable()
			if err != nil {
				return err
			}
			o.Executable, o.Progress = executable, a.err
			if a.quiet {
				o.Progress = io.Discard
			}
			report, err := bench.Relay(cmd.Context(), o)
			if err != nil {
				return &failure{Exit: exitLocal, What: "the benchmark could not be run", Why: err.Error(),
					Next: "check the flags with `countersign bench relay --help`, and that ports on 127.0.0.1 and the temporary directory can be used", err: err}
			}
			return a.show(report, func(w *tabwriter.Writer) { showRelayBench(w, report) })
		},
	}
	c.Flags().IntVar(&o.Connections, "connections", 1, "kept connections to each, each with one request at a time")
	c.Flags().IntVar(&o.Requests, "requests", 5000, "requests of each shape, to each")
	return c
}

// benchApp and benchProxy are the children of `bench relay`.
func (a *app) benchApp() *cobra.Command {
	var dir, socket string
	c := &cobra.Command{
		Use: "app", Short: "the application of bench relay", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return bench.ServeApp(cmd.Context(), dir, socket, a.out) },
	}
	c.Flags().StringVar(&dir, "identity", "", "identity directory")
	c.Flags().StringVar(&socket, "socket", "", "path of the Unix socket")
	return c
}

func (a *app) benchProxy() *cobra.Command {
	var dir, socket, upstream, address string
	c := &cobra.Command{
		Use: "proxy", Short: "the plain proxy of bench relay", Hidden: true, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bench.ServeProxy(cmd.Context(), dir, socket, upstream, address, a.out)
		},
	}
	c.Flags().StringVar(&dir, "identity", "", "identity directory")
	c.Flags().StringVar(&socket, "socket", "", "path of the application's Unix socket")
	c.Flags().StringVar(&upstream, "upstream", "", "https URL of the application, instead of the socket")
	c.Flags().StringVar(&address, "address", "", "where to connect for the URL")
	return c
}

func showRelayBench(w *tabwriter.Writer, r *bench.RelayReport) {
	fmt.Fprintf(w, "machine   %s\n", r.Machine)
	fmt.Fprintf(w, "load      %d requests a row to each, in turn, on %d kept connections\n\n", r.Requests, r.Connections)
	fmt.Fprintln(w, "shape     plain p50 ms  p99 ms  relay p50 ms  p99 ms  added p50 ms  plain CPU ms  relay CPU ms")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%-9s %12.3f %7.2f %13.3f %7.2f %13.3f %13.3f %13.3f\n", row.Name, row.Plain50, row.Plain99, row.Relay50, row.Relay99, row.Added,
			row.PlainCPU, row.RelayCPU)
	}
}
