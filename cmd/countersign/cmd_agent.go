package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/ca/agent"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

func (a *app) agentCommand() *cobra.Command {
	return group("agent", "keep identities fresh: renew, reload the program, look whether it serves the new certificate",
		a.agentRun(), a.agentOnce(), a.agentStatus(), group("config", "the agent's configuration", a.agentConfigCheck()))
}

// agentFlags describe one identity, or name the file that describes many.
type agentFlags struct {
	config, socket, ops                       string
	out, name, joinFile, attest, id           string
	alg, ttl, survive, password               string
	exec, signal, pidFile, systemd            string
	verify, verifyName, verifyWithin, timeout string
	springAudience, springIssuer              string
}

func (f *agentFlags) add(c *cobra.Command) {
	flags := c.Flags()
	for _, s := range []struct {
		into        *string
		name, usage string
	}{
		{&f.config, "config", "YAML file with one or many identities, in place of the flags (docs/agent.md)"},
		{&f.socket, "socket", "socket of `agent status` (default: agent.sock in the runtime directory)"},
		{&f.ops, "ops-listen", "address of loopback for /livez, /readyz and /metrics (default: none)"},
		{&f.out, "out", "the identity directory"},
		{&f.name, "name", "name of the identity in logs and metrics (default: the last part of --out)"},
		{&f.joinFile, "join-file", "file with a join string, for the first certificate"},
		{&f.attest, "attest", "file with a workload JWT, for the first certificate; needs --id, --server and --root"},
		{&f.id, "id", "with --attest: the ID to be, as spiffe://shop.internal/orders"},
		{&f.alg, "key", "kind of each new key: P-256, P-384, Ed25519, RSA-2048, RSA-3072, RSA-4096 (default: P-256, or the first that the policy allows)"},
		{&f.ttl, "ttl", "lifetime to ask for (default: what the policy gives)"},
		{&f.survive, "survive", "outage of the authority to survive, as 8h; in place of --ttl"},
		{&f.password, "p12-password-file", "file with the password of the PKCS#12 files (default: it is changeit)"},
		{&f.exec, "exec", "program to run after a change, with its arguments, as 'nginx -s reload'; no shell"},
		{&f.signal, "signal", "signal to send after a change, as HUP; to the process of --pid-file"},
		{&f.pidFile, "pid-file", "file with the number of the process that --signal goes to"},
		{&f.systemd, "systemd-unit", "unit to reload after a change, by systemctl reload"},
		{&f.timeout, "hook-timeout", "time limit of --exec and --systemd-unit (default 30s)"},
		{&f.verify, "verify", "TLS address that must serve the new certificate after a change, as tcp://127.0.0.1:8443"},
		{&f.verifyName, "verify-name", "name to ask --verify for, SNI (default: the certificate's first)"},
		{&f.verifyWithin, "verify-within", "then it is an alarm (default 1m)"},
		{&f.springAudience, "spring-audience", "write application-countersign.yaml for Spring Boot; tokens must be for this service"},
		{&f.springIssuer, "spring-issuer", "issuer of the tokens (default: what the daemon says)"},
	} {
		flags.StringVar(s.into, s.name, "", s.usage)
	}
}

// given are the flags of one identity that were used.
func (f *agentFlags) given(c *cobra.Command) (names []string) {
	for _, name := range []string{
		"out", "name", "join-file", "attest", "id", "key", "ttl", "survive", "p12-password-file", "exec", "signal", "pid-file", "systemd-unit",
		"hook-timeout", "verify", "verify-name", "verify-within", "spring-audience", "spring-issuer",
	} {
		if flag := c.Flags().Lookup(name); flag != nil && flag.Changed {
			names = append(names, "--"+name)
		}
	}
	return names
}

// load is the configuration that flags or file say.
func (a *app) agentConfig(c *cobra.Command, f *agentFlags) (agent.Config, error) {
	cfg, err := a.agentConfigOf(c, f)
	if err != nil {
		return cfg, err
	}
	if f.socket != "" {
		cfg.Socket = f.socket
	}
	if f.ops != "" {
		cfg.Ops.Listen = f.ops
	}
	validate := cfg.Validate
	if c.Name() == "run" && c.Parent() == c.Root() {
		validate = cfg.ValidateWrap
	}
	if problems := validate(); len(problems) > 0 {
		return cfg, inFlags(f, &agent.ConfigError{Problems: problems})
	}
	return cfg, nil
}

func (a *app) agentConfigOf(c *cobra.Command, f *agentFlags) (agent.Config, error) {
	if f.config != "" {
		if others := f.given(c); len(others) > 0 {
			return agent.Config{}, &failure{Exit: exitLocal, What: "--config goes without " + strings.Join(others, ", "),
				Why: "the file describes the identities; the flags describe one", Next: "use the file, or the flags"}
		}
		return readAgentConfig(f.config)
	}
	if f.out == "" {
		return agent.Config{}, &failure{Exit: exitLocal, What: "which identity?", Why: "neither --out nor --config names one",
			Next: "--out DIR for one identity directory, or --config FILE for many (docs/agent.md)"}
	}
	id, err := f.identity()
	return agent.Config{Server: a.server, Root: a.rootFile, Identities: []agent.Identity{id}}, err
}

func readAgentConfig(path string) (agent.Config, error) {
	body, err := readFile(path, agent.MaxConfig)
	if err != nil {
		return agent.Config{}, err
	}
	return agent.Parse(path, body)
}

// identity is what the flags say.
func (f *agentFlags) identity() (agent.Identity, error) {
	id := agent.Identity{
		Name: f.name, Dir: f.out, JoinFile: f.joinFile, Attest: f.attest, ID: f.id, Key: f.alg, PasswordFile: f.password,
		Reload: agent.Reload{PIDFile: f.pidFile, Systemd: f.systemd},
	}
	for _, d := range []struct {
		flag, text string
		into       *agent.Duration
	}{{"--ttl", f.ttl, &id.TTL}, {"--survive", f.survive, &id.Survive}, {"--hook-timeout", f.timeout, &id.Reload.Timeout}} {
		if err := textFlag(d.flag, d.text, d.into); err != nil {
			return id, err
		}
	}
	if err := textFlag("--signal", f.signal, &id.Reload.Signal); err != nil {
		return id, err
	}
	if f.exec != "" {
		words, err := agent.SplitWords(f.exec)
		if err != nil {
			return id, &failure{Exit: exitLocal, What: "--exec can't be read", Why: err.Error(), err: err,
				Next: "write the program and its arguments, as --exec 'nginx -s reload'"}
		}
		id.Reload.Exec = words
	}
	if f.verify != "" {
		id.Verify = &agent.Verify{Address: f.verify, ServerName: f.verifyName}
		if err := textFlag("--verify-within", f.verifyWithin, &id.Verify.Within); err != nil {
			return id, err
		}
	} else if f.verifyName != "" || f.verifyWithin != "" {
		return id, &failure{Exit: exitLocal, What: "--verify-name and --verify-within go with --verify", Why: "there is nothing to look at",
			Next: "--verify tcp://127.0.0.1:8443"}
	}
	if f.springAudience != "" {
		id.Spring = &agent.Spring{Audience: f.springAudience, Issuer: f.springIssuer}
	} else if f.springIssuer != "" {
		return id, &failure{Exit: exitLocal, What: "--spring-issuer goes with --spring-audience", Why: "no configuration for Spring Boot is asked for",
			Next: "--spring-audience SERVICE"}
	}
	return id, nil
}

// textFlag reads a flag's value into a type that reads itself.
func textFlag(flag, text string, into interface{ UnmarshalText([]byte) error }) error {
	if text == "" {
		return nil
	}
	if err := into.UnmarshalText([]byte(text)); err != nil {
		return &failure{Exit: exitLocal, What: flag + ": " + err.Error(), Why: "the value can't be read", Next: "see `countersign agent run --help`", err: err}
	}
	return nil
}

// inFlags gives the faults the names of the flags where the flags are the configuration.
func inFlags(f *agentFlags, e *agent.ConfigError) error {
	if f.config != "" {
		return e
	}
	names := map[string]string{
		"dir": "--out", "name": "--name", "join_file": "--join-file", "attest": "--attest", "id": "--id", "server": "--server", "root": "--root",
		"key": "--key", "ttl": "--ttl", "survive": "--survive", "reload.signal": "--signal", "reload.pid_file": "--pid-file",
		"reload.systemd": "--systemd-unit", "reload.timeout": "--hook-timeout", "reload.exec": "--exec", "verify.address": "--verify",
		"verify.within": "--verify-within", "spring.audience": "--spring-audience", "spring.issuer": "--spring-issuer",
	}
	for i, p := range e.Problems {
		key := strings.TrimPrefix(p.Key, "identities[0].")
		switch {
		case p.Key == "ops.listen":
			e.Problems[i].Key = "--ops-listen"
		case names[key] != "":
			e.Problems[i].Key = names[key]
		}
	}
	return e
}

func (a *app) agentLogger(cfg agent.Log, level string) *slog.Logger {
	out := daemon.LogConfig{Level: cfg.Level, Format: cfg.Format}
	if out.Level == "" {
		out.Level = level
	}
	return newLogger(a, out)
}

func (a *app) newAgent(ctx context.Context, cfg agent.Config, level string) (*agent.Agent, error) {
	return agent.New(ctx, agent.Options{
		Config: cfg, Version: versionText(), Logger: a.agentLogger(cfg.Log, level), Notify: daemon.Notify,
	})
}

// socketOf is where the agent answers.
func socketOf(cfg agent.Config) string {
	if cfg.Socket != "" {
		return cfg.Socket
	}
	return agent.DefaultSocket(os.Getenv, os.Getuid())
}

func (a *app) agentRun() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{
		Use:   "run --out DIR | --config FILE",
		Short: "renew in time, for ever; SIGTERM stops, SIGHUP reads --config again",
		Long: `Keeps identity directories fresh: enrols with a join string or a workload JWT, renews in time with a new key, tries again
until it succeeds, also after the certificate has expired, and never exits because the authority is away. After each change it
tells the program (--exec, --signal, --systemd-unit) and looks whether the program serves the new certificate (--verify).`,
		Example: `  countersign agent run --out /etc/orders/identity --join-file /etc/orders/join --exec 'nginx -s reload' --verify tcp://127.0.0.1:8443
  countersign agent run --config /etc/countersign/agent.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.agentConfig(cmd, &f)
			if err != nil {
				return err
			}
			kept, err := a.newAgent(cmd.Context(), cfg, "info")
			if err != nil {
				return err
			}
			stop := a.reloadOnHangup(cmd, &f, kept, cfg)
			defer stop()
			return kept.Run(cmd.Context(), socketOf(cfg))
		},
	}
	f.add(c)
	return c
}

// reloadOnHangup reads the configuration again on SIGHUP. A faulty one changes nothing.
func (a *app) reloadOnHangup(cmd *cobra.Command, f *agentFlags, kept *agent.Agent, cfg agent.Config) (stop func()) {
	log := a.agentLogger(cfg.Log, "info")
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range hup {
			if f.config == "" {
				log.Warn("SIGHUP: there is no --config to read again")
				continue
			}
			next, err := a.agentConfig(cmd, f)
			if err == nil {
				err = kept.Reload(next)
			}
			if err != nil {
				log.Error("SIGHUP: the configuration is not taken; the old one stays in force", "err", err)
				continue
			}
			log.Info("SIGHUP: the configuration was read again", "identities", len(next.Identities))
		}
	}()
	return func() { signal.Stop(hup); close(hup); <-done }
}

func (a *app) agentOnce() *cobra.Command {
	var f agentFlags
	limit := agent.Duration(2 * time.Minute)
	var wait string
	c := &cobra.Command{
		Use:   "once --out DIR | --config FILE",
		Short: "enrol or renew what is due, tell the program, and end: for cron, images and tests",
		Long: `Does once what ` + "`agent run`" + ` does for ever: enrols or renews every identity that is due, runs the hooks and looks at --verify. The
exit code is 0 only if every identity is in time and its program was told.`,
		Example: "  countersign agent once --out /etc/orders/identity --join-file /etc/orders/join",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := textFlag("--timeout", wait, &limit); err != nil {
				return err
			}
			cfg, err := a.agentConfig(cmd, &f)
			if err != nil {
				return err
			}
			kept, err := a.newAgent(cmd.Context(), cfg, "warn")
			if err != nil {
				return err
			}
			defer kept.Close()
			ctx, cancel := context.WithTimeout(cmd.Context(), time.Duration(limit))
			defer cancel()
			if err := kept.Once(ctx); err != nil {
				return err
			}
			status := kept.Status()
			status = agent.Status{Healthy: status.Healthy, Identities: status.Identities} // no agent runs any more
			if err := a.show(status, func(w *tabwriter.Writer) { a.agentTable(w, status) }); err != nil {
				return err
			}
			return unhealthy(status)
		},
	}
	f.add(c)
	c.Flags().StringVar(&wait, "timeout", "", "for all of it (default 2m)")
	return c
}

func (a *app) agentStatus() *cobra.Command {
	var config, out, socket string
	c := &cobra.Command{
		Use: "status [--out DIR | --config FILE]", Short: "ask the running agent; exit code 4 if an identity is not healthy", Args: noArgs,
		Long: `Asks the running agent over its socket. Without one it reads the directories that --out or --config names, and says so.
The exit code is 4 when an identity is not healthy: no certificate, less than a sixth of its lifetime left, or a program that
did not take the new one.`,
		Example: "  countersign agent status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := a.readAgentStatus(cmd.Context(), config, out, socket)
			if err != nil {
				return err
			}
			if err := a.show(status, func(w *tabwriter.Writer) { a.agentTable(w, status) }); err != nil {
				return err
			}
			return unhealthy(status)
		},
	}
	c.Flags().StringVar(&config, "config", "", "the agent's configuration: its socket, and its directories when it does not run")
	c.Flags().StringVar(&out, "out", "", "only this identity directory")
	c.Flags().StringVar(&socket, "socket", "", "the agent's socket (default: agent.sock in the runtime directory)")
	return c
}

func (a *app) readAgentStatus(ctx context.Context, config, out, socket string) (agent.Status, error) {
	var cfg agent.Config
	if config != "" {
		var err error
		if cfg, err = readAgentConfig(config); err != nil {
			return agent.Status{}, err
		}
	} else if out != "" {
		cfg.Identities = []agent.Identity{{Dir: out}}
	}
	if socket != "" {
		cfg.Socket = socket
	}
	status, err := agent.AskStatus(ctx, socketOf(cfg))
	var absent *agent.NoAgentError
	switch {
	case err == nil && out == "":
		return status, nil
	case err == nil:
		if status, ok := onlyDir(status, out); ok {
			return status, nil
		}
		a.say("the agent on %s does not keep %s: this is what the directory says", socketOf(cfg), out)
	case !errors.As(err, &absent) || len(cfg.Identities) == 0:
		return status, err
	default:
		a.say("no agent answers on %s: this is what the directories say", socketOf(cfg))
	}
	return agent.ReadStatus(cfg, a.now()), nil
}

func onlyDir(s agent.Status, dir string) (agent.Status, bool) {
	abs, err := filepath.Abs(dir)
	s.Identities = slices.DeleteFunc(s.Identities, func(i agent.IdentityStatus) bool { return err != nil || i.Dir != abs })
	if len(s.Identities) == 0 {
		return s, false
	}
	s.Healthy = s.Identities[0].Healthy
	return s, true
}

func (a *app) agentTable(w *tabwriter.Writer, s agent.Status) {
	row(w, "IDENTITY", "STATE", "SERIAL", "EXPIRES", "RENEWS", "PROGRAM")
	for _, i := range s.Identities {
		program := "-"
		switch {
		case !i.Reload.OK:
			program = "ALARM"
		case i.Reload.Verified:
			program = "serves it"
		case i.Reload.Serial != "":
			program = "was told"
		}
		row(w, i.Name, string(i.State), dash(i.Serial), a.moment(i.NotAfter), a.moment(i.RenewAt), program)
	}
}

// unhealthy is what makes the exit code 4.
func unhealthy(s agent.Status) error {
	if s.Healthy {
		return nil
	}
	f := &failure{Exit: exitCondition, What: "not every identity is healthy", Why: "the reasons stand above",
		Next: "mend what they name; the agent's log says more, and it goes on by itself (docs/agent.md)"}
	for _, i := range s.Identities {
		if !i.Healthy {
			f.Details = append(f.Details, i.Name+": "+i.Why)
		}
	}
	return f
}

func (a *app) agentConfigCheck() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use: "check --config FILE", Short: "say everything that is wrong with a configuration, each with its place", Args: noArgs,
		Example: "  countersign agent config check --config /etc/countersign/agent.yaml",
		RunE: func(*cobra.Command, []string) error {
			if path == "" {
				return &failure{Exit: exitLocal, What: "which configuration?", Why: "--config names none", Next: "--config /etc/countersign/agent.yaml"}
			}
			cfg, err := readAgentConfig(path)
			if err != nil {
				return err
			}
			return a.show(map[string]any{"file": path, "identities": len(cfg.Identities)}, func(w *tabwriter.Writer) {
				row(w, "file", path)
				row(w, "identities", strconv.Itoa(len(cfg.Identities)))
				fmt.Fprintln(w, "no faults")
			})
		},
	}
	c.Flags().StringVar(&path, "config", "", "the agent's configuration")
	return c
}

func (a *app) runCommand() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{
		Use:   "run --out DIR [FLAGS] -- COMMAND [ARGUMENT]...",
		Short: "run a program with a fresh identity: wait for the certificate, renew while it runs, return its exit code",
		Long: `Waits for the first certificate, runs COMMAND with the identity's files in its environment, forwards signals to it, and keeps
the identity fresh while it runs. The exit code is the program's, or 128 and the number of the signal that ended it. --signal
goes to the program itself unless --pid-file names another.`,
		Example: "  countersign run --out /etc/orders/identity --join-file /etc/orders/join --spring-audience orders -- java -jar orders.jar",
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() == 0 && len(args) > 0 && args[0] != "" {
				return nil
			}
			return &failure{Exit: exitLocal, What: "which program?", Why: "it stands after --, with its arguments", Next: "usage: " + cmd.UseLine()}
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := a.agentConfig(cmd, &f)
			if err != nil {
				return err
			}
			kept, err := agent.New(cmd.Context(), agent.Options{Config: cfg, Version: versionText(), Logger: a.agentLogger(cfg.Log, "warn"), Wraps: true})
			if err != nil {
				return err
			}
			return kept.Wrap(cmd.Context(), cfg.Socket, args, [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
		},
	}
	f.add(c)
	return c
}
