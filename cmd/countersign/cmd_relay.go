package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/sts/relay"
	"github.com/countersign/countersign/sts/relay/conf"
)

func (a *app) relayCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "relay --config FILE", Short: "the proxy beside a service, or the gateway: mTLS and relay tokens without code",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		Long: `Runs a relay. Inbound it ends mTLS, admits the call graph's callers, verifies their tokens, enforces scopes per route, and hands
the identity to the application in headers that nobody else can set; at a public listener it takes users' access tokens. Outbound
the application calls a plain local address per service; the relay exchanges the token of the request that is being served and
speaks mTLS. SIGTERM drains, SIGHUP reads the configuration again (with a fault the one before stays).

Every process that can reach the relay's local addresses is the service. See docs/relay.md.`,
		Example: "  countersign relay config example > relay.yaml\n  countersign relay --config relay.yaml",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.relay(cmd.Context(), file) },
	}
	c.PersistentFlags().StringVar(&file, "config", "relay.yaml", "the relay's configuration file")
	config := group("config", "the relay's configuration",
		&cobra.Command{
			Use: "check", Short: "say everything that is wrong with the configuration and the files that it names", Args: noArgs,
			RunE: func(*cobra.Command, []string) error { return a.relayCheck(file) },
		},
		&cobra.Command{
			Use: "example", Short: "print a configuration with every section", Args: noArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := fmt.Fprint(a.out, relay.Example())
				return err
			},
		},
	)
	c.AddCommand(config)
	return c
}

// readRelay reads the configuration of a relay.
func (a *app) readRelay(file string) (*relay.Config, error) {
	body, err := a.readInput(file, conf.MaxSize)
	if err != nil {
		return nil, err
	}
	cfg, err := relay.ParseConfig(file, body)
	var faults *conf.Error
	if !errors.As(err, &faults) {
		return cfg, err
	}
	f := &failure{Exit: exitLocal, What: "the configuration of the relay has faults", err: err,
		Why:  fmt.Sprintf("%d of them, all listed", len(faults.Faults)),
		Next: "mend them; `countersign relay config example` prints one that is right"}
	for _, fault := range faults.Faults {
		f.Details = append(f.Details, fault.String())
	}
	return nil, f
}

// relayFacts is what `relay config check` shows.
type relayFacts struct {
	Valid    bool     `json:"valid"`
	Public   string   `json:"public,omitempty"`
	Internal string   `json:"internal,omitempty"`
	Routes   int      `json:"routes"`
	Outbound []string `json:"outbound"`
}

func (a *app) relayCheck(file string) error {
	cfg, err := a.readRelay(file)
	if err != nil {
		return err
	}
	if err := cfg.CheckFiles(); err != nil {
		return &failure{Exit: exitLocal, What: "a file that the configuration names can't be used", Why: "all are listed", err: err,
			Details: strings.Split(err.Error(), "\n"), Next: "mend the files, or name others"}
	}
	facts := relayFacts{Valid: true, Outbound: []string{}}
	if cfg.Public != nil {
		facts.Public, facts.Routes = cfg.Public.Listen, len(cfg.Public.Routes)
	}
	if cfg.Internal != nil {
		facts.Internal = cfg.Internal.Listen
		facts.Routes += len(cfg.Internal.Routes)
	}
	for _, o := range cfg.Outbound {
		facts.Outbound = append(facts.Outbound, o.Name)
	}
	return a.show(facts, func(w *tabwriter.Writer) {
		row(w, "the configuration is valid")
		row(w, "public", dash(facts.Public))
		row(w, "internal", dash(facts.Internal))
		row(w, "routes", fmt.Sprint(facts.Routes))
		row(w, "outbound", dash(strings.Join(facts.Outbound, " ")))
	})
}

func (a *app) relay(ctx context.Context, file string) error {
	cfg, err := a.readRelay(file)
	if err != nil {
		return err
	}
	log := newLogger(a, daemon.LogConfig{Level: cfg.Log.Level, Format: cfg.Log.Format})
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // from here on it does not end the process, also while it waits for a certificate
	defer signal.Stop(hup)
	r, err := relay.Start(ctx, relay.Options{Config: cfg, Log: log})
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return nil // told to stop while it waited for its first certificate
	case err != nil:
		return &failure{Exit: exitLocal, What: "the relay did not start", Why: err.Error(), err: err,
			Next: "mend what the reason names; `countersign relay config check --config " + shellWord(file) + "` looks at it without starting"}
	}
	log.Info("the relay serves", "version", versionText(), "public", address(r, "public"), "internal", address(r, "internal"), "ops", address(r, "ops"))
	if err := daemon.Notify("READY=1"); err != nil {
		log.Warn("tell systemd", "err", err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-hup:
				a.relayReload(r, file, log)
			case <-done:
				return
			}
		}
	}()
	context.AfterFunc(ctx, func() {
		log.Info("stopping: requests in flight may end", "drain", cfg.Drain.String())
		_ = daemon.Notify("STOPPING=1") // systemd sees the exit anyway
	})
	return r.Run(ctx)
}

func (a *app) relayReload(r *relay.Relay, file string, log *slog.Logger) {
	cfg, err := a.readRelay(file)
	if err == nil {
		err = r.Reload(cfg)
	}
	if err == nil {
		log.Info("the configuration was read again", "file", file)
		return
	}
	attrs := []any{"file", file, "error", err}
	var f *failure
	if errors.As(err, &f) && len(f.Details) > 0 {
		attrs = append(attrs, "faults", f.Details)
	}
	log.Error("the configuration was not taken; the one before stays in force", attrs...)
}

func address(r *relay.Relay, name string) string {
	if at := r.Addr(name); at != nil {
		return at.String()
	}
	return "-"
}
