// Command countersign is the daemon, its command line and its demo in one binary.
//
// It never decides anything that the daemon decides: commands read flags and files, call the API, and show the answer. Only
// the policy tools that work on a document (policy reach, test and export) judge it here, by the daemon's own functions.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/ca/agent"
)

// version is set by the linker.
var version = "" //nolint:gochecknoglobals // the linker can set nothing else

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process: what the tests call. It returns the exit code of interfaces.md.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out := &output{to: stdout}
	a := &app{in: untilDone{ctx, stdin}, out: out, err: stderr, environ: os.Environ()}
	root := a.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.failed()
	}
	if err == nil {
		return exitOK
	}
	if a.output == defaultOutput { // its flags may not have been read
		a.output = outputAsked(args)
	}
	var child *agent.ChildExit
	if errors.As(err, &child) { // it has said what there is to say
		return child.Code
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	return a.fail(err)
}

// untilDone is a reader that gives up when ctx ends: a read from a terminal would outlast Ctrl-C. The read that it gives
// up goes on until the process ends.
type untilDone struct {
	ctx context.Context //nolint:containedctx // an io.Reader is told of nothing else
	in  io.Reader
}

// Read reads, or gives the context's error.
func (u untilDone) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done, buffer := make(chan result, 1), make([]byte, len(p))
	go func() {
		n, err := u.in.Read(buffer)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, buffer[:r.n]), r.err
	case <-u.ctx.Done():
		return 0, u.ctx.Err()
	}
}

// app is one run of the command line.
type app struct {
	in       untilDone
	out, err io.Writer
	environ  []string

	dir      string // --dir
	server   string // --server
	identity string // --identity
	rootFile string // --root
	output   string // -o
	quiet    bool   // --quiet
}

const (
	defaultDir    = "./countersign-data"
	defaultOutput = "table"
)

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "countersign",
		Short: "An internal certificate authority and token service in one daemon",
		Long: `Countersign gives every service an identity (short-lived certificates for mTLS) and every request a chain of
custody (OAuth 2.0 token exchange, RFC 8693): at each hop a token for one service, with less authority than before.

New here?  countersign demo     shows a whole chain on this machine, in under 30 seconds
           countersign dev      starts a daemon on loopback and says what to type next`,
		Version:           versionText(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
		PersistentPreRunE: a.checkGlobals,
	}
	helpOnly(root)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.dir, "dir", a.env("DIR", defaultDir), "the daemon's directory (COUNTERSIGN_DIR)")
	flags.StringVar(&a.server, "server", a.env("SERVER", ""), "URL of a remote daemon; goes with --identity (COUNTERSIGN_SERVER)")
	flags.StringVar(&a.identity, "identity", a.env("IDENTITY", ""), "identity directory to authenticate with (COUNTERSIGN_IDENTITY)")
	flags.StringVar(&a.rootFile, "root", a.env("ROOT", ""), "PEM file with the authority's roots; default: those of --identity (COUNTERSIGN_ROOT)")
	flags.StringVarP(&a.output, "output", "o", defaultOutput, "table, json or yaml")
	flags.BoolVar(&a.quiet, "quiet", false, "no prose on standard error")
	root.AddGroup(
		&cobra.Group{ID: "start", Title: "Start:"},
		&cobra.Group{ID: "service", Title: "For a service:"},
		&cobra.Group{ID: "operate", Title: "For an operator:"},
	)
	root.AddCommand(a.startCommands()...)
	root.AddCommand(a.serviceCommands()...)
	root.AddCommand(a.operatorCommands()...)
	root.SetHelpCommand(helpCommand())
	completions(root)
	return root
}

func (a *app) startCommands() []*cobra.Command {
	return grouped("start", a.initCommand(), a.serveCommand(), a.devCommand(), a.demoCommand(), a.benchCommand(), a.configCommand())
}

func (a *app) serviceCommands() []*cobra.Command {
	return grouped("service", a.joinCommand(), a.agentCommand(), a.runCommand(), a.certCommand(), a.tokenCommand(), a.caCommand(), a.relayCommand())
}

func (a *app) operatorCommands() []*cobra.Command {
	return grouped("operate", a.policyCommand(), a.serviceCommand(), a.joinTokenCommand(), a.keyCommand(), a.kekCommand(), a.freezeCommand(), a.thawCommand(), a.auditCommand(),
		a.operatorCommand(), a.statusCommand(), a.doctorCommand(), a.backupCommand(), a.restoreCommand(), a.dbCommand(), a.clockCommand(), a.conformanceCommand())
}

func grouped(id string, commands ...*cobra.Command) []*cobra.Command {
	for _, c := range commands {
		c.GroupID = id
	}
	return commands
}

func (a *app) env(name, fallback string) string {
	if value := os.Getenv("COUNTERSIGN_" + name); value != "" {
		return value
	}
	return fallback
}

// knownVariables are the COUNTERSIGN_ variables that are no configuration of the daemon.
func knownVariables() []string {
	return []string{"COUNTERSIGN_DIR", "COUNTERSIGN_SERVER", "COUNTERSIGN_IDENTITY", "COUNTERSIGN_ROOT", "COUNTERSIGN_JOIN_FILE", "COUNTERSIGN_PASSPHRASE_FILE",
		"COUNTERSIGN_ID", "COUNTERSIGN_SERIAL", "COUNTERSIGN_NOT_AFTER", "COUNTERSIGN_CERT", "COUNTERSIGN_KEY",
		"COUNTERSIGN_KEYSTORE", "COUNTERSIGN_TRUSTSTORE"}
}

func (a *app) checkGlobals(*cobra.Command, []string) error {
	switch a.output {
	case "table", "json", "yaml":
		return nil
	}
	return &failure{Exit: exitLocal, What: "unknown output format " + quoted(a.output), Why: "there are table, json and yaml",
		Next: "use -o table, -o json or -o yaml"}
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
