package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/mtls"
)

// Options of an [Agent].
type Options struct {
	Config  Config
	Version string
	Logger  *slog.Logger
	Now     func() time.Time
	Notify  func(state string) error // sd_notify(3); nil: nobody is told
	Wraps   bool                     // Wrap is called, not Run
}

// Agent keeps the identities of one configuration.
type Agent struct {
	o       Options
	since   time.Time
	metrics *metrics

	mu      sync.Mutex
	cfg     Config
	running context.Context //nolint:containedctx // of Run: keepers that a reload starts end with it
	keepers map[string]*running

	reloaded chan struct{} // closed at the next reload
}

// running is a keeper with what ends it.
type running struct {
	*keeper
	stop context.CancelFunc
	done chan struct{}
}

// IdentityError says that the configuration of one identity can't be used.
type IdentityError struct {
	Name string
	Err  error
}

// Error names the identity.
func (e *IdentityError) Error() string { return fmt.Sprintf("identity %s: %v", e.Name, e.Err) }

// Unwrap gives the cause.
func (e *IdentityError) Unwrap() error { return e.Err }

// New checks the configuration and opens every identity. It waits for nothing; an authority that is away is no error.
func New(ctx context.Context, o Options) (*Agent, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if problems := o.Config.validate(o.Wraps); len(problems) > 0 {
		return nil, &ConfigError{problems}
	}
	a := &Agent{o: o, since: o.Now(), cfg: o.Config, keepers: map[string]*running{}, reloaded: make(chan struct{})}
	a.metrics = newMetrics(a.Status)
	for _, cfg := range o.Config.Identities {
		k, err := a.open(ctx, o.Config, cfg)
		if err != nil {
			a.Close()
			return nil, err
		}
		a.keepers[k.cfg.name()] = &running{keeper: k}
	}
	if err := a.checkAPI(o.Config, a.keepers); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Close ends what Run left open: all sources. Keepers that run must have ended.
func (a *Agent) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.keepers {
		_ = k.src.Close() // it only stops
	}
}

// open makes a keeper: it reads the small files of an identity's configuration.
func (a *Agent) open(ctx context.Context, whole Config, cfg Identity) (*keeper, error) {
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil { // what hooks and Spring are told
		return nil, &IdentityError{cfg.name(), err}
	}
	k := &keeper{cfg: cfg, now: a.o.Now, metrics: a.metrics, log: a.o.Logger.With("identity", cfg.name()), reload: ReloadStatus{OK: true}}
	src, err := sourceConfig(whole, cfg)
	if err != nil {
		return nil, &IdentityError{cfg.name(), err}
	}
	src.Now, src.OnEvent = a.o.Now, k.event
	if k.src, err = mtls.Open(ctx, src); err != nil {
		return nil, &IdentityError{cfg.name(), err}
	}
	k.opened.Store(k.src)
	return k, nil
}

// sourceConfig is an identity of ours in the words of ca/mtls.
func sourceConfig(whole Config, cfg Identity) (mtls.Config, error) {
	out := mtls.Config{
		Dir: cfg.Dir, JoinFile: cfg.JoinFile, Server: cfg.Server, KeyType: cfg.Key, TTL: cfg.lifetime(),
		Logger: slog.New(slog.DiscardHandler), // what it has to say comes as events, and is told once
	}
	if out.Server == "" {
		out.Server = whole.Server
	}
	root := cfg.Root
	if root == "" {
		root = whole.Root
	}
	var err error
	if root != "" {
		if out.Roots, err = readRoots(root); err != nil {
			return out, err
		}
	}
	if cfg.PasswordFile != "" {
		body, err := readSmall(cfg.PasswordFile, 1<<10)
		if err != nil {
			return out, err
		}
		if out.Password = strings.TrimRight(string(body), "\r\n"); out.Password == "" {
			return out, fmt.Errorf("there is no password in %s: Java loads nothing from a store with an empty one", cfg.PasswordFile)
		}
	}
	if cfg.Attest == "" {
		return out, nil
	}
	if out.ID, err = countersign.ParseID(cfg.ID); err != nil {
		return out, err
	}
	out.Attest = func(context.Context) (string, error) {
		body, err := readSmall(cfg.Attest, 64<<10)
		return strings.TrimSpace(string(body)), err
	}
	return out, nil
}

func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return body, err
}

func readRoots(path string) ([]*x509.Certificate, error) {
	rest, err := readSmall(path, 1<<20)
	if err != nil {
		return nil, err
	}
	var roots []*x509.Certificate
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s holds a PEM block %s; roots are CERTIFICATE", path, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("there is no PEM certificate in %s", path)
	}
	return roots, nil
}

// Status is the state of all identities now.
func (a *Agent) Status() Status {
	s := Status{Running: true, PID: os.Getpid(), Version: a.o.Version, Since: a.since.UTC().Truncate(time.Second), Identities: []IdentityStatus{}}
	for _, k := range a.list() {
		s.Identities = append(s.Identities, k.status())
	}
	return s.judged()
}

// list is the keepers in the order of their names.
func (a *Agent) list() []*running {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*running
	for _, name := range slices.Sorted(maps.Keys(a.keepers)) {
		all = append(all, a.keepers[name])
	}
	return all
}

// Wait waits until every identity has a certificate that is in time.
func (a *Agent) Wait(ctx context.Context) error {
	for _, k := range a.list() {
		if err := k.src.Wait(ctx); err != nil {
			if last := k.src.Status().LastError; last != nil {
				err = errors.Join(last, err)
			}
			return &IdentityError{k.cfg.name(), err}
		}
	}
	return nil
}

// Reload takes a new configuration: identities that are as they were go on undisturbed, others stop, start, or do both. When
// anything is wrong, nothing changes. Socket, ops and log need a restart; reload says so. The local API begins anew: its streams
// end, and clients come back.
func (a *Agent) Reload(cfg Config) error {
	if problems := cfg.Validate(); len(problems) > 0 {
		return &ConfigError{problems}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running == nil || a.running.Err() != nil {
		return errors.New("the agent does not run")
	}
	old := map[string]Identity{}
	for _, id := range a.cfg.Identities {
		old[id.name()] = id
	}
	sameDefaults := cfg.Server == a.cfg.Server && cfg.Root == a.cfg.Root
	fresh := map[string]*running{}
	next := map[string]*running{}
	for _, id := range cfg.Identities {
		if was, ok := old[id.name()]; ok && sameDefaults && reflect.DeepEqual(was, id) {
			next[id.name()] = a.keepers[id.name()]
			continue
		}
		k, err := a.open(a.running, cfg, id)
		if err != nil {
			closeAll(fresh)
			return err
		}
		fresh[id.name()] = &running{keeper: k}
		next[id.name()] = fresh[id.name()]
	}
	if err := a.checkAPI(cfg, next); err != nil {
		closeAll(fresh)
		return err
	}
	for name, k := range a.keepers {
		if next[name] != k {
			k.end()
			a.o.Logger.Info("the identity is not kept any more, or anew", "identity", name)
		}
	}
	if cfg.Socket != a.cfg.Socket || cfg.Ops != a.cfg.Ops || cfg.Log != a.cfg.Log {
		a.o.Logger.Warn("socket, ops and log are read at the start only: restart the agent for them")
	}
	a.cfg, a.keepers = cfg, next
	close(a.reloaded)
	a.reloaded = make(chan struct{})
	for _, k := range fresh {
		k.begin(a.running)
	}
	return nil
}

func closeAll(opened map[string]*running) {
	for _, k := range opened {
		_ = k.src.Close() // it only stops
	}
}

func (r *running) begin(ctx context.Context) {
	ctx, r.stop = context.WithCancel(ctx)
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		r.keeper.greet()
		r.keeper.run(ctx)
	}()
}

func (r *running) end() {
	r.stop()
	<-r.done
	_ = r.src.Close()
}

// greet says how long the identity survives without the authority.
func (k *keeper) greet() {
	id, _ := k.src.Identity()
	if id == nil {
		k.log.Info("there is no certificate yet")
		return
	}
	st := k.src.Status()
	k.log.Info("keeps the identity", "id", id.ID.String(), "serial", id.Serial, "not_after", id.NotAfter.UTC().Format(time.RFC3339),
		"renew_at", st.RenewAt.UTC().Format(time.RFC3339), "survives_without_the_authority", st.Budget.Round(time.Second).String(),
		"always_at_least", (id.NotAfter.Sub(id.NotBefore) / 3).Round(time.Second).String())
}
