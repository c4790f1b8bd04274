package relay

import (
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/countersign/countersign/sts/relay/conf"
	"github.com/countersign/countersign/sts/relay/filter"
	"github.com/countersign/countersign/sts/relay/limit"
)

// ParseConfig reads a configuration, fills the defaults in, and tells everything that is wrong with it at once as a
// [*conf.Error]. It opens no file; the paths of the document count from the directory of file.
func ParseConfig(file string, doc []byte) (*Config, error) {
	cfg := &Config{}
	d := conf.Read(file, doc, cfg)
	cfg.complete(d.Check(""))
	cfg.check(d.Check(""))
	if err := d.Err(); err != nil {
		return nil, err
	}
	cfg.resolve(filepath.Dir(file))
	return cfg, nil
}

// or fills in what the document does not say. A zero that it does say stays, for the checks to judge.
func or[T any](c conf.Check, key string, value *T, otherwise T) {
	if !c.Has(key) {
		*value = otherwise
	}
}

// complete fills in the defaults.
func (cfg *Config) complete(c conf.Check) {
	or(c, "issuer", &cfg.Issuer, cfg.Server)
	or(c, "max_stale", &cfg.MaxStale, Duration(5*time.Minute))
	or(c, "ops.listen", &cfg.Ops.Listen, "127.0.0.1:8445")
	or(c, "log.level", &cfg.Log.Level, "info")
	or(c, "log.format", &cfg.Log.Format, "text")
	or(c, "drain", &cfg.Drain, Duration(10*time.Second))
	if app := cfg.App; app != nil {
		or(c, "app.token", &app.Token, TokenHandle)
		or(c, "app.handles", &app.Handles, 10_000)
	}
	if p := cfg.Public; p != nil {
		or(c, "public.tls.min", &p.TLS.Min, "1.3")
		or(c, "public.users.scope_claim", &p.Users.ScopeClaim, "scope")
		if p.Rate == nil {
			p.Rate = &limit.Config{Key: limit.Address, ReplenishRate: 50, Burst: 100, RequestedTokens: 1}
		}
		p.Limits.complete(c.In("public.limits"), publicLimits())
		completeRoutes(c.In("public.routes"), p.Routes)
	}
	if i := cfg.Internal; i != nil {
		i.Limits.complete(c.In("internal.limits"), internalLimits())
		completeRoutes(c.In("internal.routes"), i.Routes)
	}
	for i, o := range cfg.Outbound {
		if o != nil {
			o.complete(c.In("outbound").Item(i))
		}
	}
}

func (o *Outbound) complete(c conf.Check) {
	or(c, "name", &o.Name, o.Service)
	or(c, "service", &o.Service, o.Name)
	or(c, "timeout", &o.Timeout, defaultTimeout)
	or(c, "idle", &o.Idle, defaultIdle)
	or(c, "body", &o.Body, 64*conf.MiB)
}

const (
	defaultTimeout = Duration(30 * time.Second)
	defaultIdle    = Duration(5 * time.Minute)
)

// publicLimits are for strangers, internalLimits for services that are known.
func publicLimits() Limits {
	return Limits{
		Connections: 1024, PerHost: 32, Streams: 100, Header: 16 * conf.KiB,
		HeaderTime: Duration(5 * time.Second), Stall: Duration(15 * time.Second), Idle: Duration(30 * time.Second),
	}
}

func internalLimits() Limits {
	return Limits{
		Connections: 4096, PerHost: 1024, Streams: 250, Header: 32 * conf.KiB,
		HeaderTime: Duration(10 * time.Second), Stall: Duration(time.Minute), Idle: Duration(2 * time.Minute),
	}
}

func (l *Limits) complete(c conf.Check, d Limits) {
	or(c, "connections", &l.Connections, d.Connections)
	or(c, "perhost", &l.PerHost, min(d.PerHost, l.Connections))
	or(c, "streams", &l.Streams, d.Streams)
	or(c, "header", &l.Header, d.Header)
	or(c, "header_time", &l.HeaderTime, d.HeaderTime)
	or(c, "stall", &l.Stall, d.Stall)
	or(c, "idle", &l.Idle, d.Idle)
}

func completeRoutes(list conf.Check, routes []*Route) {
	for i, r := range routes {
		if r == nil {
			continue
		}
		c := list.Item(i)
		or(c, "to", &r.To, ToApp)
		or(c, "token", &r.Token, TokenRequired)
		or(c, "timeout", &r.Timeout, defaultTimeout)
		or(c, "idle", &r.Idle, defaultIdle)
	}
}

// resolve makes the paths of files those that they are from dir.
func (cfg *Config) resolve(dir string) {
	paths := []*string{
		&cfg.Identity.Dir, &cfg.Identity.JoinFile, &cfg.Identity.Attest, &cfg.Identity.Roots,
	}
	if app := cfg.App; app != nil {
		paths = append(paths, &app.Socket, &app.SecretFile)
	}
	var routes []*Route
	if p := cfg.Public; p != nil {
		paths = append(paths, &p.TLS.Cert, &p.TLS.Key, &p.Users.CAFile)
		routes = append(routes, p.Routes...)
	}
	if i := cfg.Internal; i != nil {
		routes = append(routes, i.Routes...)
	}
	for _, r := range routes {
		paths = append(paths, &r.OpenAPI.File)
	}
	for _, path := range paths {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	for _, o := range cfg.Outbound {
		if socket, ok := socketPath(o.Listen); ok && !filepath.IsAbs(socket) {
			o.Listen = unixPrefix + filepath.Join(dir, socket)
		}
	}
}

// CheckFiles reads the files that the configuration names and tells everything that is wrong with them, as far as that can be
// told before the start.
func (cfg *Config) CheckFiles() error {
	var errs []error
	note := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	certificates := func(key, path string) {
		if path != "" {
			_, err := readCertificates(path)
			note(key, err)
		}
	}
	certificates("identity.roots", cfg.Identity.Roots)
	documents := func(listener string, routes []*Route) {
		for i, r := range routes {
			_, err := filter.NewValidator(r.Route, "")
			note(fmt.Sprintf("%s.routes[%d].openapi", listener, i), err)
		}
	}
	if p := cfg.Public; p != nil {
		certificates("public.users.ca_file", p.Users.CAFile)
		if p.TLS.Cert != "" {
			_, err := tls.LoadX509KeyPair(p.TLS.Cert, p.TLS.Key)
			note("public.tls", err)
		}
		documents("public", p.Routes)
	}
	if i := cfg.Internal; i != nil {
		documents("internal", i.Routes)
	}
	return errors.Join(errs...)
}
