package agent

import (
	"context"

	"github.com/countersign/countersign/ca/agent/local"
)

// localConfig is the local API of cfg in the words of package local, with the sources of these keepers.
func (a *Agent) localConfig(cfg Config, keepers map[string]*running) local.Config {
	out := local.Config{Socket: cfg.API.Socket, Logger: a.o.Logger.With("part", "local API"), Now: a.o.Now}
	for _, id := range cfg.Identities {
		out.Identities = append(out.Identities, local.Identity{Name: id.name(), Source: keepers[id.name()].src})
	}
	for _, rule := range cfg.API.Rules {
		out.Rules = append(out.Rules, local.Rule(rule))
	}
	return out
}

// checkAPI tells what package local has against the configuration.
func (a *Agent) checkAPI(cfg Config, keepers map[string]*running) error {
	if cfg.API == nil {
		return nil
	}
	if _, err := local.New(a.localConfig(cfg, keepers)); err != nil {
		return &ConfigError{[]Problem{{Key: "api", Msg: err.Error()}}}
	}
	return nil
}

// serveAPI serves the local API until ctx ends, and anew after each reload: rules and sources may be others then.
func (a *Agent) serveAPI(ctx context.Context) error {
	for {
		a.mu.Lock()
		cfg, changed := a.cfg, a.reloaded
		if cfg.API == nil {
			a.mu.Unlock()
			wait(ctx, changed, nil)
			if ctx.Err() != nil {
				return nil
			}
			continue
		}
		server, err := local.New(a.localConfig(cfg, a.keepers))
		a.mu.Unlock()
		if err != nil {
			return err
		}
		run, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(run) }()
		select {
		case err = <-ended:
			stop()
			return err
		case <-changed:
		case <-ctx.Done():
		}
		stop()
		if err := <-ended; err != nil || ctx.Err() != nil {
			return err
		}
	}
}
