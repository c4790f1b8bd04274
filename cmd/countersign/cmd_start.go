package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

func (a *app) initCommand() *cobra.Command {
	var o daemon.InitOptions
	var own ownRoot
	c := &cobra.Command{
		Use:   "init --trust-domain DOMAIN",
		Short: "make a new authority: configuration, keys, root, intermediate, first operator",
		Long: `Makes a new authority in --dir: configuration, key-encryption key, root, intermediate, signing keys, and the first operator
(an admin, in operators/admin). Refuses a directory that holds anything of ours.

With --kms the keys of root, intermediate and tokens are made in a token (HSM) and never leave it; that needs the build that "make build-hsm" makes.

With --root and --root-key the root is yours; its key is sealed into the keyring, and the file is yours to keep or destroy. With --root
alone your root stays offline: the intermediate's request is written, the root signs it, and "countersign ca import FILE" ends init.`,
		Example: "  countersign init --dir /var/lib/countersign --trust-domain shop.internal --dns ca.shop.internal",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Domain == "" {
				return &failure{Exit: exitLocal, What: "which trust domain?", Why: "--trust-domain is the part that all IDs share; it can't be changed later",
					Next: "countersign init --trust-domain shop.internal"}
			}
			o.Dir, o.Version = daemon.Dir(a.dir), versionText()
			var err error
			if o.Root, o.RootKey, err = own.read(o.KMS); err != nil {
				return err
			}
			done, err := daemon.Init(cmd.Context(), o)
			if err != nil {
				return err
			}
			if done.Request != "" {
				return a.showWaiting(done)
			}
			err = a.show(done, func(w *tabwriter.Writer) {
				row(w, "directory", done.Dir)
				row(w, "trust domain", done.TrustDomain)
				row(w, "issuer", done.Issuer)
				row(w, "root", done.Root)
				row(w, "root SHA-256", done.Fingerprint)
				row(w, "first operator", done.Operator)
			})
			a.say("\nnext: countersign serve --dir %s\nKeep a copy of %s apart from backups: without it the keys can't be read.", shellWord(done.Dir), filepath.Join(done.Dir, "kek"))
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&own.cert, "root", "", "PEM file with your own root certificate (default: one is made)")
	f.StringVar(&own.key, "root-key", "", "PEM file with its key, PKCS#8 or SEC 1, the former also encrypted; without it the root stays offline")
	f.StringVar(&own.passphrase, "passphrase-file", a.env("PASSPHRASE_FILE", ""), "file with the passphrase of --root-key (COUNTERSIGN_PASSPHRASE_FILE)")
	f.StringVar(&o.Domain, "trust-domain", "", "the part that all IDs share, as shop.internal; never changes")
	f.StringVar(&o.Listen, "listen", "", "public address (default :8443)")
	f.StringVar(&o.OpsListen, "ops-listen", "", "address for health and metrics (default 127.0.0.1:8444)")
	f.StringSliceVar(&o.DNS, "dns", nil, "the daemon's own names and addresses (default localhost); the first stands in join strings")
	f.StringSliceVar(&o.PermitDNS, "permit-dns", nil, "suffix of the DNS names that may be certified: a name constraint of root and intermediates (default: any name)")
	f.StringVar(&o.Issuer, "issuer", "", "issuer identifier of tokens (default https://<first --dns>:<port>); never changes")
	f.StringVar(&o.KMS, "kms", "", "make root, intermediate and token keys in this token: a pkcs11: URI with the PIN in a file (docs/hsm.md)")
	return c
}

func (a *app) serveCommand() *cobra.Command {
	var listen, ops, pki string
	c := &cobra.Command{
		Use: "serve", Short: "run the daemon; SIGTERM drains, SIGHUP reloads", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := map[string]any{}
			for key, flag := range map[string]string{"listen": "listen", "ops.listen": "ops-listen", "pki.listen": "pki-listen"} {
				if f := cmd.Flags().Lookup(flag); f.Changed {
					flags[key] = f.Value.String()
				}
			}
			return a.serve(cmd.Context(), flags, nil)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "public address")
	c.Flags().StringVar(&ops, "ops-listen", "", "address for health and metrics")
	c.Flags().StringVar(&pki, "pki-listen", "", "plain HTTP address for revocation lists and issuer certificates (off by default)")
	return c
}

func (a *app) loadConfig(flags map[string]any) (daemon.Loaded, error) {
	loaded, err := daemon.Load(a.dir, daemon.LoadOptions{Flags: flags, Environ: a.environ, Known: knownVariables()})
	if daemon.NotInitialised(err) {
		return loaded, &failure{Exit: exitLocal, What: "there is no authority in " + a.dir, Why: cause(err), err: err,
			Next: "make one: countersign init --dir " + shellWord(a.dir) + " --trust-domain DOMAIN\nor name its directory with --dir or COUNTERSIGN_DIR"}
	}
	return loaded, err
}

// serve runs the daemon of --dir until ctx ends. started, if not nil, is called when it listens.
func (a *app) serve(ctx context.Context, flags map[string]any, started func(*daemon.Daemon)) error {
	loaded, err := a.loadConfig(flags)
	if err != nil {
		return err
	}
	log := newLogger(a, loaded.Config.Log)
	for _, warning := range loaded.Warnings {
		log.Warn(warning)
	}
	tuneMemory()
	d, err := daemon.Start(ctx, daemon.Options{Dir: daemon.Dir(a.dir), Config: loaded.Config, Version: versionText(), Log: log})
	if err != nil {
		return notStarted(ctx, err)
	}
	log.Info("countersign serves", "version", versionText(), "issuer", loaded.Config.Issuer, "public", d.Addr("public").String(),
		"ops", d.Addr("ops").String(), "admin", d.Addr("admin").String(), "sealed", d.Sealed())
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go func() {
		for range hup {
			d.Reload()
		}
	}()
	defer close(hup)
	if err := daemon.Notify("READY=1"); err != nil {
		log.Warn("tell systemd", "err", err)
	}
	if started != nil {
		started(d)
	}
	context.AfterFunc(ctx, func() {
		log.Info("stopping: requests in flight have 10 s")
		_ = daemon.Notify("STOPPING=1") // systemd sees the exit anyway
	})
	return d.Run(ctx)
}

// notStarted gives every failure to start the exit code that tells systemd that a restart would not mend it, but for a
// disk that failed an fsync or is full.
func notStarted(ctx context.Context, err error) error {
	f := explainKnown(err)
	if f == nil {
		f = &failure{Exit: exitLocal, What: "the daemon did not start", Why: err.Error(),
			Next: "mend what the reason names (docs/operations.md says what each part needs), then start it again"}
	}
	if ctx.Err() != nil || f.Exit == exitDisk || f.Code != "" && f.Code.Info().Kind == countersign.Unavailable {
		return err
	}
	f.Exit, f.err = exitLocal, err
	return f
}

func newLogger(a *app, cfg daemon.LogConfig) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // Validate has seen it
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(a.err, options))
	}
	return slog.New(slog.NewTextHandler(a.err, options))
}

func (a *app) devCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "dev", Short: "a daemon on loopback in one command; prints what to type next", Args: noArgs,
		Long: `Initialises --dir if it holds nothing yet (trust domain dev.internal), then runs the daemon on loopback. It is the real
daemon with real keys; only the addresses say "dev".`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := os.Lstat(filepath.Join(a.dir, daemon.ConfigFile))
			if errors.Is(err, fs.ErrNotExist) {
				_, err = daemon.Init(cmd.Context(), daemon.InitOptions{
					Dir: daemon.Dir(a.dir), Domain: "dev.internal", Version: versionText(),
					Listen: a.env("LISTEN", "127.0.0.1:8443"), OpsListen: a.env("OPS_LISTEN", ""),
				})
			}
			if err != nil {
				return err
			}
			flags, err := a.onLoopback()
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), flags, func(d *daemon.Daemon) { a.say("%s", a.devHelp(d)) })
		},
	}
	return c
}

// onLoopback narrows the public address of a directory that was made by `init` and says all interfaces: `dev` promises
// loopback. An address that the environment gives is somebody's wish.
func (a *app) onLoopback() (map[string]any, error) {
	loaded, err := a.loadConfig(nil)
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(loaded.Config.Listen)
	everywhere := err == nil && (host == "" || net.ParseIP(host).IsUnspecified())
	if !everywhere || strings.HasPrefix(loaded.Origin["listen"], "environment") {
		return nil, err
	}
	return map[string]any{"listen": net.JoinHostPort("127.0.0.1", port)}, nil
}

func (a *app) devHelp(d *daemon.Daemon) string {
	dir := ""
	if a.dir != defaultDir {
		dir = " --dir " + shellWord(a.dir)
	}
	policy := shellWord(filepath.Join(a.dir, "policy.yaml"))
	command := "countersign"
	if strings.ContainsRune(os.Args[0], filepath.Separator) {
		command = shellWord(os.Args[0]) // it is not on the PATH, or was not found there
	}
	return strings.NewReplacer("{dir}", dir, "{policy}", policy, "{root}", daemon.Dir(a.dir).Root(),
		"{public}", d.Addr("public").String(), "countersign{}", command).Replace(`
Countersign listens on https://{public}. Type in another terminal, in this directory:

cat > {policy} <<'END'
trust_domain: dev.internal
services: [{name: reports}, {name: orders, dns: [orders.dev.internal]}]
calls: [{from: reports, to: orders, scopes: [orders:read], machine: [orders:read]}]
END
countersign{}{dir} policy apply {policy}
countersign{}{dir} join-token create reports | countersign{} join - --out ./reports
countersign{} token request --identity ./reports --audience orders > token
countersign{} token verify token --audience orders --identity ./reports
countersign{}{dir} audit tail

Ctrl-C stops the daemon; {root} is its root certificate.
`)
}

func (a *app) configCommand() *cobra.Command {
	return group("config", "the daemon's configuration", a.configCheck(), a.configShow())
}

func (a *app) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "say everything that is wrong with the configuration, and what may be in it", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			loaded, err := a.loadConfig(nil)
			if err != nil {
				return err
			}
			for _, warning := range loaded.Warnings {
				a.say("warning: %s", warning)
			}
			ranges := daemon.Ranges()
			return a.show(ranges, func(w *tabwriter.Writer) {
				row(w, "the configuration is valid; its ranges are:")
				for _, r := range ranges {
					row(w, r.Key, r.Min+" to "+r.Max, r.Why)
				}
			})
		},
	}
}

// shownKey is one key of the configuration with its value.
type shownKey struct {
	Key      string `json:"key"`
	Value    string `json:"value"`
	Origin   string `json:"origin"`
	Variable string `json:"variable"`
}

func (a *app) configShow() *cobra.Command {
	var origin bool
	c := &cobra.Command{
		Use: "show", Short: "print every key with its value", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			loaded, err := a.loadConfig(nil)
			if err != nil {
				return err
			}
			values := loaded.Config.Values()
			var keys []shownKey
			for _, key := range daemon.Keys() {
				keys = append(keys, shownKey{key, fmt.Sprint(values[key]), loaded.Origin[key], daemon.Variable(key)})
			}
			return a.show(keys, func(w *tabwriter.Writer) {
				for _, k := range keys {
					cells := []string{k.Key, dash(k.Value)}
					if origin {
						cells = append(cells, k.Origin, k.Variable)
					}
					row(w, cells...)
				}
			})
		},
	}
	c.Flags().BoolVar(&origin, "origin", false, "also print where each value comes from, and its variable")
	return c
}
