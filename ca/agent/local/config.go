package local

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/countersign/countersign/ca/mtls"
)

// Identity is one identity that callers may get.
type Identity struct {
	Name   string // by which rules name it
	Source *mtls.Source
	Tokens *mtls.Tokens // of Source, for /exchange; nil: made here
}

// maxSocketPath is Linux's limit on the path of a Unix socket, without its final zero (unix(7)).
const maxSocketPath = 107

// Config of a [Server].
type Config struct {
	Socket     string // path; a socket of ours that nobody serves any more is replaced, anything else is an error
	Identities []Identity
	Rules      []Rule           // first match wins; none: everybody is denied
	Logger     *slog.Logger     // nil: discards; denials are its lines "local API: denied"
	Limits     Limits           // zero fields take the defaults
	Now        func() time.Time // nil: time.Now
}

// Limits bound what callers may cost. The zero value of each takes the default.
type Limits struct {
	Connections int // of all callers; 1024
	PerUser     int // connections of one user; 128
	Streams     int // calls of one user at one time, streams among them; 256
}

func (l *Limits) defaults() {
	for _, d := range []struct {
		v   *int
		def int
	}{{&l.Connections, 1024}, {&l.PerUser, 128}, {&l.Streams, 256}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
}

// check tells everything that is wrong with cfg. It is pure.
func (cfg Config) check() error {
	var errs []error
	if !filepath.IsAbs(cfg.Socket) || len(cfg.Socket) > maxSocketPath {
		errs = append(errs, fmt.Errorf("socket %q: an absolute path of at most %d bytes is needed", cfg.Socket, maxSocketPath))
	}
	names := map[string]bool{}
	for _, id := range cfg.Identities {
		if id.Name == "" || id.Source == nil || names[id.Name] {
			errs = append(errs, fmt.Errorf("identity %q: a name of its own and a source are needed", id.Name))
		}
		names[id.Name] = true
	}
	for i, r := range cfg.Rules {
		if err := r.fault(func(name string) bool { return names[name] }); err != nil {
			errs = append(errs, fmt.Errorf("rule %d: %w", i+1, err))
		}
	}
	if l := cfg.Limits; l.Connections < 0 || l.PerUser < 0 || l.Streams < 0 {
		errs = append(errs, errors.New("limits can't be negative"))
	}
	return errors.Join(errs...)
}
