package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/cmd/countersign/bench"
)

func (a *app) benchIssue() *cobra.Command {
	return a.benchCertificates(bench.Issue, &cobra.Command{
		Use: "issue", Short: "certificates by join token, durable record and audit on", Args: noArgs,
		Long: `Starts an authority of its own on loopback, in a temporary directory, and enrols a service with one join token after the
other, on kept connections. Tokens, keys and requests are made before the measurement. The daemon's CPU time a certificate is
what to compare: rates and latencies share this machine with the load itself. docs/performance.md has the method and figures.`,
	})
}

func (a *app) benchRenew() *cobra.Command {
	return a.benchCertificates(bench.Renew, &cobra.Command{
		Use: "renew", Short: "renewals by mTLS with a new key, durable record and audit on", Args: noArgs,
		Long: `Starts an authority of its own on loopback, in a temporary directory, enrols lineages, and renews each with its newest
certificate: on connections that are there already ("kept"), and with a new connection for each ("new"). Keys and requests are
made before the measurement. docs/performance.md has the method and figures.`,
	})
}

func (a *app) benchCertificates(run func(context.Context, bench.CertificateOptions) (*bench.CertificateReport, error), c *cobra.Command) *cobra.Command {
	var o bench.CertificateOptions
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		executable, err := os.Executable()
		if err != nil {
			return err
		}
		o.Executable, o.Progress = executable, a.err
		if a.quiet {
			o.Progress = io.Discard
		}
		report, err := run(cmd.Context(), o)
		if err != nil {
			return &failure{Exit: exitLocal, What: "the benchmark could not be run", Why: err.Error(),
				Next: "check the flags with `" + cmd.CommandPath() + " --help`, and that ports on 127.0.0.1 and the temporary directory can be used", err: err}
		}
		return a.show(report, func(w *tabwriter.Writer) { showCertificateBench(w, report) })
	}
	c.Flags().IntSliceVar(&o.Connections, "connections", []int{1, 16, 64}, "requests at a time, each on a connection of its own; a row for each number")
	c.Flags().IntVar(&o.Requests, "requests", 6000, "requests of each row")
	return c
}

func showCertificateBench(w *tabwriter.Writer, r *bench.CertificateReport) {
	fmt.Fprintf(w, "machine   %s\n", r.Machine)
	fmt.Fprintf(w, "load      %d certificates a row\n", r.Requests)
	fmt.Fprintf(w, "raw       read and verify a request %.3f ms, make a certificate %.3f ms, TLS handshake %.3f ms of CPU\n\n",
		r.Raw.Request, r.Raw.Certificate, r.Raw.Handshake)
	fmt.Fprintln(w, "row    at a time  rate/s  p50 ms  p99 ms  server CPU ms  times raw  load CPU ms")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "%-6s %9d %7.0f %7.2f %7.2f %14.3f %10.2f %12.3f\n", row.Name, row.Connections, row.Rate, row.P50, row.P99, row.CPU, row.TimesRaw, row.ClientCPU)
	}
}
