package relay

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/relay/observe"
	"github.com/countersign/countersign/sts/verify"
)

// Options of a relay. Config and Log are needed.
type Options struct {
	Config *Config
	Log    *slog.Logger
}

// Relay is a running relay.
type Relay struct {
	log      *slog.Logger
	src      *mtls.Source
	live     *live
	registry *prometheus.Registry
	around   map[string]func(http.Handler) http.Handler // by kind of listener
	parts    parts
	secret   string
	base     context.Context //nolint:containedctx // of all requests: ends when draining is over
	cut      context.CancelFunc
	ops      *listener
	health   health

	mu        sync.Mutex // of what a reload replaces
	cfg       *Config
	services  map[string]*service
	app       *application
	listeners map[string]*listener
}

// parts are what all generations of the configuration share.
type parts struct {
	src     *mtls.Source
	tokens  *mtls.Tokens
	buffers *buffers
	log     *slog.Logger
}

// Start opens the identity and waits until there is one; then it listens. The operations listener is there before that. ctx
// bounds Start alone; [Relay.Run] ends the relay.
func Start(ctx context.Context, o Options) (*Relay, error) {
	r := &Relay{log: o.Log, cfg: o.Config, registry: prometheus.NewRegistry(), listeners: map[string]*listener{}}
	r.base, r.cut = context.WithCancel(context.WithoutCancel(ctx))
	if err := r.start(ctx); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *Relay) start(ctx context.Context) error {
	cfg := r.cfg
	source, err := sourceConfig(cfg, r.log)
	if err != nil {
		return err
	}
	if err := r.measure(cfg); err != nil {
		return err
	}
	if r.src, err = mtls.Open(ctx, source); err != nil {
		return err
	}
	r.parts = parts{src: r.src, tokens: mtls.NewTokens(r.src), buffers: newBuffers(), log: r.log}
	handles, linger := 1, time.Duration(0)
	if cfg.App != nil {
		handles, linger = cfg.App.Handles, time.Duration(cfg.App.Linger)
		if cfg.App.SecretFile != "" {
			if r.secret, err = newSecret(cfg.App.SecretFile); err != nil {
				return fmt.Errorf("app.secret_file: %w", err)
			}
		}
	}
	r.live = newLive(handles, linger, time.Now)
	if cfg.Ops.Listen != "off" {
		if r.ops, err = r.openOps(cfg.Ops.Listen); err != nil {
			return err
		}
	}
	if _, err := r.src.Identity(); err != nil {
		r.log.Info("waiting for a certificate", "reason", err)
	}
	if err := r.src.Wait(ctx); err != nil {
		return err
	}
	return r.Reload(cfg)
}

// sourceConfig is the identity part of the configuration for package mtls.
func sourceConfig(cfg *Config, log *slog.Logger) (mtls.Config, error) {
	id := cfg.Identity
	out := mtls.Config{
		Dir: id.Dir, ReadOnly: id.ReadOnly, JoinFile: id.JoinFile, Server: cfg.Server, TTL: time.Duration(id.TTL), Logger: log,
	}
	if id.ID != "" {
		parsed, err := countersign.ParseID(id.ID)
		if err != nil {
			return out, fmt.Errorf("identity.id: %w", err)
		}
		out.ID = parsed
	}
	if id.Roots != "" {
		roots, err := readCertificates(id.Roots)
		if err != nil {
			return out, fmt.Errorf("identity.roots: %w", err)
		}
		out.Roots = roots
	}
	if id.Attest != "" {
		out.Attest = func(context.Context) (string, error) {
			body, err := os.ReadFile(id.Attest)
			return strings.TrimSpace(string(body)), err
		}
	}
	return out, nil
}

// measure registers the metrics and makes what goes around each kind of listener, once for the life of the process.
func (r *Relay) measure(cfg *Config) error {
	r.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	gauge := func(name, help string, value func() float64) {
		r.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("countersign_relay_handles", "Requests whose handle is good now.", func() float64 { return float64(r.live.count()) })
	gauge("countersign_relay_certificate_expires_seconds", "Seconds until the relay's certificate is over; 0: it is, or there is none.",
		func() float64 { return r.src.Status().Budget.Seconds() })
	r.around = map[string]func(http.Handler) http.Handler{}
	for _, kind := range []string{kindPublic, kindInternal, kindOutbound} {
		around, err := observe.New(observe.Config{
			Listener: kind, Trust: kind != kindPublic, Sample: float64(cfg.Trace.Percent) / 100, Registry: r.registry, Logger: r.log,
		})
		if err != nil {
			return err
		}
		r.around[kind] = around
	}
	return nil
}

// The kinds of listener.
const (
	kindPublic   = "public"
	kindInternal = "internal"
	kindOutbound = "outbound"
)

// Addr is where a listener listens: "public", "internal", "ops" or "outbound." and a name. nil: there is none.
func (r *Relay) Addr(name string) net.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if name == "ops" && r.ops != nil {
		return r.ops.inner.Addr()
	}
	if l, ok := r.listeners[name]; ok {
		return l.inner.Addr()
	}
	return nil
}

// Reload puts another configuration in force: all of it, or, with an error, nothing. Requests that are being served go on under
// the one before. What a process can't change while it runs needs a restart, and says so.
func (r *Relay) Reload(cfg *Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := needsRestart(r.cfg, cfg); err != nil {
		return err
	}
	next, err := r.build(cfg)
	if err != nil {
		return err
	}
	r.awaitCallers(cfg)
	opened, err := r.openNew(next.doors)
	if err != nil {
		return err
	}
	kept := map[string]*listener{}
	for _, d := range next.doors {
		if l := opened[d.name]; l != nil {
			kept[d.name] = l
			continue
		}
		kept[d.name] = r.listeners[d.name]
		handler := d.handler
		kept[d.name].handler.Store(&handler)
	}
	for name, l := range r.listeners {
		if kept[name] != l {
			go func() {
				ctx, cancel := context.WithTimeout(r.base, time.Duration(cfg.Drain))
				defer cancel()
				l.stop(ctx)
			}()
		}
	}
	for _, s := range r.services {
		s.close()
	}
	if r.app != nil {
		r.app.transport.CloseIdleConnections()
	}
	r.cfg, r.listeners, r.services, r.app = cfg, kept, next.services, next.app
	r.health.ready.Store(true)
	return nil
}

// callersWait is how long a start waits to hear who may call. After that the relay serves, and admits nobody until it has.
const callersWait = 3 * time.Second

func (r *Relay) awaitCallers(cfg *Config) {
	if cfg.Internal == nil || r.listeners[kindInternal] != nil {
		return
	}
	ctx, cancel := context.WithTimeout(r.base, callersWait)
	defer cancel()
	if err := r.src.WaitCallers(ctx); err != nil {
		r.log.Warn("the authority has not said yet who may call: nobody is admitted until it has")
	}
}

// openNew opens the doors that are not there yet; with an error it leaves none of them open.
func (r *Relay) openNew(doors []door) (map[string]*listener, error) {
	opened := map[string]*listener{}
	for _, d := range doors {
		if l, ok := r.listeners[d.name]; ok && l.address == d.address {
			continue
		}
		kind, _, _ := strings.Cut(d.name, ".")
		l, err := open(r.base, d, r.around[kind], r.log)
		if err != nil {
			for _, l := range opened {
				l.stop(r.base)
			}
			return nil, err
		}
		opened[d.name] = l
	}
	return opened, nil
}

// needsRestart tells what of the new configuration can't be put in force in a running process.
func needsRestart(old, cfg *Config) error {
	var keys []string
	differ := func(key string, same bool) {
		if !same {
			keys = append(keys, key)
		}
	}
	differ("identity", old.Identity == cfg.Identity)
	differ("server", old.Server == cfg.Server)
	differ("ops", old.Ops == cfg.Ops)
	differ("log", old.Log == cfg.Log)
	differ("trace", old.Trace == cfg.Trace)
	differ("app", old.App == nil && cfg.App == nil || old.App != nil && cfg.App != nil && *old.App == *cfg.App)
	if old.Public != nil && cfg.Public != nil && old.Public.Listen == cfg.Public.Listen {
		differ("public.tls", old.Public.TLS == cfg.Public.TLS)
		differ("public.limits", old.Public.Limits == cfg.Public.Limits)
	}
	if old.Internal != nil && cfg.Internal != nil && old.Internal.Listen == cfg.Internal.Listen {
		differ("internal.limits", old.Internal.Limits == cfg.Internal.Limits)
	}
	if len(keys) > 0 {
		return fmt.Errorf("%s changed, which needs a restart; the configuration before stays in force", strings.Join(keys, ", "))
	}
	return nil
}

// generation is what one configuration makes.
type generation struct {
	doors    []door
	services map[string]*service
	app      *application
}

func (r *Relay) build(cfg *Config) (*generation, error) {
	own, err := r.src.Identity()
	if err != nil {
		return nil, err
	}
	g := &generation{services: map[string]*service{}}
	if cfg.App != nil {
		g.app = newApplication(cfg.App, r.secret, r.parts.buffers)
	}
	for _, o := range cfg.Outbound {
		s, err := newService(o, &r.parts)
		if err != nil {
			return nil, err
		}
		g.services[o.Name] = s
		if o.Listen != "" {
			_, socket := socketPath(o.Listen)
			g.doors = append(g.doors, door{
				name: kindOutbound + "." + o.Name, address: o.Listen, handler: &outbound{service: s, live: r.live, socket: socket},
			})
		}
	}
	in := inbound{live: r.live, app: g.app, services: g.services, foreign: foreignHeaders(), log: r.log}
	if cfg.Internal != nil {
		d, err := r.internal(cfg, own.ID.Name(), in)
		if err != nil {
			return nil, fmt.Errorf("internal: %w", err)
		}
		g.doors = append(g.doors, d)
	}
	if cfg.Public != nil {
		d, err := r.public(cfg.Public, in)
		if err != nil {
			return nil, fmt.Errorf("public: %w", err)
		}
		g.doors = append(g.doors, d)
	}
	return g, nil
}

func (r *Relay) internal(cfg *Config, name string, in inbound) (door, error) {
	audience, issuer := cfg.Audience, cfg.Issuer
	if audience == "" {
		audience = name
	}
	if issuer == "" {
		issuer = r.src.Status().Server
	}
	var err error
	in.verifier, err = verify.New(verify.Config{
		Issuer: issuer, Audience: audience, Client: r.authorityClient(), MaxStale: time.Duration(cfg.MaxStale), Logger: debugged(r.log),
	})
	if err != nil {
		return door{}, err
	}
	handler, err := in.handler(cfg.Internal.Routes, nil)
	if err != nil {
		return door{}, err
	}
	return door{
		name: kindInternal, address: cfg.Internal.Listen, handler: handler, limits: &cfg.Internal.Limits,
		tls: mtls.Server(r.src, mtls.Callers()),
	}, nil
}

func (r *Relay) public(cfg *Public, in inbound) (door, error) {
	in.public = true
	external := verify.Config{
		Issuer: cfg.Users.Issuer, Audience: cfg.Users.Audiences[0], Audiences: slices.Clone(cfg.Users.Audiences[1:]),
		JWKSURI: cfg.Users.JWKSURI, ScopeClaim: cfg.Users.ScopeClaim, Algorithms: cfg.Users.Algorithms, URL: cfg.URL, Logger: debugged(r.log),
	}
	if cfg.Users.CAFile != "" {
		roots, err := readCertificates(cfg.Users.CAFile)
		if err != nil {
			return door{}, fmt.Errorf("users.ca_file: %w", err)
		}
		external.Roots = x509.NewCertPool()
		for _, c := range roots {
			external.Roots.AddCert(c)
		}
	}
	var err error
	if in.verifier, err = verify.NewExternal(external); err != nil {
		return door{}, err
	}
	handler, err := in.handler(cfg.Routes, cfg.Rate)
	if err != nil {
		return door{}, err
	}
	config, err := publicTLS(cfg.TLS, r.src)
	if err != nil {
		return door{}, err
	}
	return door{name: kindPublic, address: cfg.Listen, handler: handler, limits: &cfg.Limits, tls: config}, nil
}

// Run serves until ctx ends. Then it takes no more requests, gives those in flight the time of Config.Drain, and ends.
func (r *Relay) Run(ctx context.Context) error {
	<-ctx.Done()
	r.health.ready.Store(false)
	r.mu.Lock()
	drain, listeners := time.Duration(r.cfg.Drain), r.listeners
	r.mu.Unlock()
	until, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	// Those that the application calls stay until those that call the application are done: what is in flight may need them.
	for _, outbound := range []bool{false, true} {
		var all sync.WaitGroup
		for name, l := range listeners {
			if strings.HasPrefix(name, kindOutbound) == outbound {
				all.Go(func() { l.stop(until) })
			}
		}
		all.Wait()
	}
	return r.close()
}

// close ends what is left: connections that were upgraded, the identity, the operations listener.
func (r *Relay) close() error {
	r.cut()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listeners {
		_ = l.server.Close() // it is stopped, or the start failed
	}
	for _, s := range r.services {
		s.close()
	}
	if r.app != nil {
		r.app.transport.CloseIdleConnections()
	}
	var errs []error
	if r.src != nil {
		errs = append(errs, r.src.Close())
	}
	if r.ops != nil {
		errs = append(errs, r.ops.server.Close())
		<-r.ops.done
	}
	return errors.Join(errs...)
}
