package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/sts"
)

// parts are the daemon's parts while they are open, in the order in which they were opened.
type parts struct {
	dir      Dir
	cfg      Config
	version  string
	log      *slog.Logger
	clock    *Clock
	now      func() time.Time // the clock's
	watch    clockWatch
	registry *prometheus.Registry
	fatal    chan error

	store  *bolt.Store
	audit  *audit.Log
	keys   *keyring.Ring
	book   *policy.Book
	ca     *ca.Authority
	sts    *sts.Service
	server atomic.Pointer[serverCertificate]

	closers []func() error // run last to first
}

// open takes the store's lock and opens what init needs too: store, audit log, keyring and policy. The caller closes
// the parts.
func open(ctx context.Context, o Options) (*parts, error) {
	p := &parts{
		dir: o.Dir, cfg: o.Config, version: o.Version, log: o.Log,
		registry: prometheus.NewRegistry(), fatal: make(chan error, 1),
	}
	if p.log == nil {
		p.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	var err error
	if p.clock, err = newClock(o.Now, o.Boot); err != nil {
		return nil, err
	}
	p.now = p.clock.Now
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, step := range []func(context.Context) error{p.openStore, p.checkInstance, p.openAudit, p.openClock, p.openKeys, p.openPolicy} {
		if err := p.unlessFatal(func() error { return step(ctx) }); err != nil {
			return nil, p.giveUp(err)
		}
	}
	return p, nil
}

func (p *parts) openStore(context.Context) error {
	store, err := bolt.Open(bolt.Config{
		Path: p.dir.database(), LockTimeout: 2 * time.Second, Now: p.now, Fatal: p.die, Logger: p.log,
	})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	p.store = store
	p.closers = append(p.closers, store.Close)
	return nil
}

func (p *parts) openAudit(ctx context.Context) error {
	reserve := int64(p.cfg.Audit.Reserve)
	if reserve == 0 {
		reserve = -1 // the log's word for none
	}
	log, err := audit.Open(ctx, audit.Config{
		Dir: p.dir.audit(), Store: p.store, Now: p.now, Logger: p.log, Fatal: p.die, Registerer: p.registry,
		Segment: int64(p.cfg.Audit.Segment), Reserve: reserve, Keep: time.Duration(p.cfg.Audit.Keep),
	})
	if err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	p.audit = log
	p.closers = append(p.closers, log.Close)
	return nil
}

// KEKError says that there is a key-encryption key and that it can't be used. It is never replaced.
type KEKError struct{ Err error }

// Error says what is wrong with it.
func (e *KEKError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *KEKError) Unwrap() error { return e.Err }

// openKeys reads the KEK. None is a sealed start; any other trouble with it is an error, and never a new KEK.
func (p *parts) openKeys(ctx context.Context) error {
	kek, err := keyring.ReadKEK(string(p.dir))
	if err != nil && !errors.Is(err, keyring.ErrNoKEK) {
		return &KEKError{fmt.Errorf("read the key-encryption key: %w", err)}
	}
	places, faults := p.cfg.places()
	if len(faults) > 0 {
		return &ConfigError{faults}
	}
	p.keys, err = keyring.Open(ctx, keyring.Config{
		Store: p.store, Audit: p.audit, KEK: kek, KEKDir: string(p.dir), Now: p.now, Logger: p.log, Registerer: p.registry,
		Lead: time.Duration(p.cfg.Token.Lead), RotateEvery: time.Duration(p.cfg.Token.Rotate), MaxTTL: maxTokenTTL,
		Guard: p.clock.Guard, Upgrade: true, Places: places, PINFile: p.cfg.Keys.PIN.File,
	})
	if errors.Is(err, keyring.ErrKEK) {
		return &KEKError{err}
	}
	if err != nil {
		return fmt.Errorf("open the keyring: %w", err)
	}
	p.closers = append(p.closers, p.keys.Close)
	p.audit.SetSigner(p.signCheckpoint)
	return nil
}

// maxTokenTTL is the longest that policy.md lets a call's tokens live; keys verify that much longer than they sign.
const maxTokenTTL = time.Hour

func (p *parts) openPolicy(ctx context.Context) error {
	book, err := policy.Open(ctx, policy.Config{
		Store: p.store, Audit: p.audit, Now: p.now, Logger: p.log,
		Env: policy.Env{TrustDomain: p.cfg.Domain, Issuer: p.cfg.Issuer, ReservedDNS: p.cfg.DNS, PermitDNS: p.cfg.CA.Permit},
	})
	if err != nil {
		return fmt.Errorf("open the policy: %w", err)
	}
	p.book = book
	return nil
}

func (p *parts) caConfig() ca.Config {
	return ca.Config{
		Store: p.store, Audit: p.audit, Keys: p.keys, Policy: p.book.Current, TrustDomain: p.cfg.Domain, DNS: p.cfg.DNS,
		Now: p.now, Logger: p.log, Registerer: p.registry,
		ServiceTTL: time.Duration(p.cfg.Certificate.TTL), OperatorTTL: time.Duration(p.cfg.Certificate.Operator),
		ServerTTL: time.Duration(p.cfg.Certificate.Server), JoinTTL: time.Duration(p.cfg.Join.TTL),
		IntermediateTTL: time.Duration(p.cfg.CA.Intermediate), RootTTL: time.Duration(p.cfg.CA.Root),
		Grace:    time.Duration(p.cfg.Certificate.Grace),
		RootLead: time.Duration(p.cfg.CA.Lead), PKI: p.cfg.PKI.URL, Permit: p.cfg.CA.Permit,
		OperatorKeys: p.cfg.KeyTypes.Operator, ServerKeys: p.cfg.KeyTypes.Server,
	}
}

func (p *parts) openAuthority(ctx context.Context) error {
	authority, err := ca.Open(ctx, p.caConfig())
	if err != nil {
		return fmt.Errorf("open the authority: %w", err)
	}
	p.ca = authority
	return nil
}

func (p *parts) openTokens(ctx context.Context) error {
	service, err := sts.New(ctx, sts.Config{
		Issuer: p.cfg.Issuer, Policy: p.book.Current, Keys: p.keys, Audit: p.audit, Store: p.store, Now: p.now, Logger: p.log,
		Registerer: p.registry, Lead: time.Duration(p.cfg.Token.Lead),
	})
	if err != nil {
		return fmt.Errorf("open the token service: %w", err)
	}
	p.sts = service
	return nil
}

// signCheckpoint signs the audit log's checkpoints with the key of purpose audit.
func (p *parts) signCheckpoint(payload []byte) (string, []byte, error) {
	key, signer, err := p.keys.Signer(keyring.Audit, "ES256")
	if err != nil {
		return "", nil, err
	}
	sig, err := audit.Sign(signer, payload)
	return key.ID, sig, err
}

// serverURL is where clients reach this daemon: its first name and the port it listens on.
func (p *parts) serverURL() string {
	u := url.URL{Scheme: "https"}
	_, port, err := net.SplitHostPort(p.cfg.Listen)
	if err != nil || port == "" || port == "0" {
		if issuer, err := url.Parse(p.cfg.Issuer); err == nil {
			port = issuer.Port()
		}
	}
	u.Host = p.cfg.DNS[0]
	if port != "" && port != "443" {
		u.Host = net.JoinHostPort(p.cfg.DNS[0], port)
	}
	return u.String()
}

// close closes the parts, last to first. It may be called twice.
func (p *parts) close() error {
	var errs []error
	for len(p.closers) > 0 {
		last := len(p.closers) - 1
		errs = append(errs, p.closers[last]())
		p.closers = p.closers[:last]
	}
	return errors.Join(errs...)
}

// record puts an event of the daemon itself into the audit log.
func (p *parts) record(ctx context.Context, kind string, detail any) error {
	_, err := p.audit.Append(ctx, audit.Event{
		Type: kind, Outcome: "ok", By: countersign.Daemon("serve"), Subject: p.cfg.Domain, Detail: detail,
	})
	return err
}
