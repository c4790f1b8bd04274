package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api"
	"github.com/countersign/countersign/storage/keyring"
)

// Options say which daemon to run.
type Options struct {
	Dir     Dir
	Config  Config
	Version string
	Log     *slog.Logger
	Now     func() time.Time // the wall clock; nil: time.Now

	// Boot counts the time since some moment, also while the machine sleeps, and nobody can set it; see [Clock]. nil: the
	// kernel's; with a Now that is given, Now's own, so that both never part.
	Boot func() time.Duration
}

// Daemon is an assembled daemon whose listeners are open; Run serves them.
type Daemon struct {
	*parts
	api       *api.Server
	listeners []listener
	proxies   []netip.Prefix
	reload    chan struct{}
}

type listener struct {
	name   string
	net    net.Listener
	server *http.Server
}

const (
	drainTime   = 10 * time.Second
	unsealEvery = 5 * time.Second
)

// Start opens every part, in the order in which they need each other, and all listeners. What it opened it closes again
// when it fails.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	if err := checkOurs(string(o.Dir), os.Stat); err != nil {
		return nil, err
	}
	if o.Dir.Waits() {
		return nil, &WaitsError{o.Dir}
	}
	p, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	d := &Daemon{parts: p, reload: make(chan struct{}, 1)}
	for _, step := range []func(context.Context) error{p.openAuthority, p.openTokens, d.openAPI, p.ensureServer, d.listen} {
		if err := p.unlessFatal(func() error { return step(ctx) }); err != nil {
			d.closeListeners()
			return nil, p.giveUp(err)
		}
	}
	return d, nil
}

func (d *Daemon) openAPI(context.Context) error {
	for _, s := range d.cfg.Proxies {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return err
		}
		d.proxies = append(d.proxies, prefix)
	}
	terminators, err := d.cfg.certHeaders()
	if err != nil {
		return err
	}
	server, err := api.New(api.Config{
		CA: d.ca, STS: d.sts, Policy: d.book, Keys: d.keys, Audit: d.audit, Proxies: d.proxies, TLSProxies: terminators, Issuer: d.cfg.Issuer,
		TrustDomain: d.cfg.Domain, URL: d.serverURL(), Version: d.version, Logger: d.log, Registry: d.registry, Now: d.now,
		Limits: d.limits(), Clock: clockAPI{d.parts}, Backup: &backupAPI{parts: d.parts},
	})
	d.api = server
	return err
}

// listen opens the listeners. The store's lock is held already, so a second daemon on this directory never gets here.
func (d *Daemon) listen(context.Context) error {
	public, err := listenTCP("listen", d.cfg.Listen)
	if err != nil {
		return err
	}
	config := api.TLSConfig(d.certificate)
	if d.cfg.TLS.Min == "1.2" {
		config.MinVersion = tls.VersionTLS12
	}
	d.add("public", d.limit(public), api.NewServer(api.ServerConfig{Handler: d.api.Public(), TLS: config, Logger: d.log}))

	ops, err := listenTCP("ops.listen", d.cfg.Ops.Listen)
	if err != nil {
		return err
	}
	d.add("ops", ops, api.NewServer(api.ServerConfig{Handler: d.api.Ops(), Logger: d.log}))

	if d.cfg.PKI.Listen != "" {
		pki, err := listenTCP("pki.listen", d.cfg.PKI.Listen)
		if err != nil {
			return err
		}
		d.add("pki", d.limit(pki), api.NewServer(api.ServerConfig{Handler: d.api.PKI(), Logger: d.log}))
	}
	return d.listenSocket()
}

func (d *Daemon) listenSocket() error {
	path, err := d.dir.Socket()
	if err != nil {
		return err
	}
	if err := prepareSocket(path); err != nil {
		return fmt.Errorf("prepare the admin socket: %w", err)
	}
	// The umask closes the moment between bind and chmod in which another user could connect.
	old := syscall.Umask(0o177)
	socket, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return fmt.Errorf("open the admin socket: %w", err)
	}
	d.add("admin", socket, api.NewServer(api.ServerConfig{Handler: d.api.Admin(), ConnContext: api.PeerCred, Logger: d.log}))
	return nil
}

func (d *Daemon) limits() api.Limits {
	return api.Limits{
		Identity: d.cfg.Limits.Identity, Address: d.cfg.Limits.Address,
		Connections: d.cfg.Limits.Connections, PerHost: d.cfg.Limits.PerHost,
		Issuing: d.cfg.Limits.Issuing, Waiting: d.cfg.Limits.Waiting,
	}
}

func (d *Daemon) limit(l net.Listener) net.Listener {
	return api.LimitListener(l, d.limits(), d.proxies)
}

func (d *Daemon) add(name string, l net.Listener, s *http.Server) {
	d.listeners = append(d.listeners, listener{name, l, s})
}

// AddressError says that an address can't be listened on.
type AddressError struct {
	Key, Addr string
	Err       error
}

// Error names key and address.
func (e *AddressError) Error() string {
	return fmt.Sprintf("listen on %s (%s): %v", e.Addr, e.Key, e.Err)
}

// Unwrap gives the cause.
func (e *AddressError) Unwrap() error { return e.Err }

func listenTCP(key, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &AddressError{Key: key, Addr: addr, Err: err}
	}
	return l, nil
}

// Addr is the address of the listener named public, ops, pki or admin; nil if it is off.
func (d *Daemon) Addr(name string) net.Addr {
	for _, l := range d.listeners {
		if l.name == name {
			return l.net.Addr()
		}
	}
	return nil
}

// Sealed tells whether the daemon started without a KEK and has not found it since.
func (d *Daemon) Sealed() bool { return d.keys.Sealed() }

// Reload asks Run to look for the KEK and the tls.cert files again.
func (d *Daemon) Reload() {
	select {
	case d.reload <- struct{}{}:
	default:
	}
}

// Run serves until ctx ends, then drains: readiness goes first, requests in flight have 10 s, then the loops stop, the
// audit log signs its last checkpoint and the store closes. After a *FatalError nothing is closed: the process must end.
func (d *Daemon) Run(ctx context.Context) error {
	// A signal that comes this early is a stop like any other, and is recorded as one.
	started := map[string]any{"version": d.version, "pid": os.Getpid(), "sealed": d.keys.Sealed()}
	err := d.unlessFatal(func() error { return d.record(context.WithoutCancel(ctx), "daemon.started", started) })
	if err != nil {
		d.closeListeners()
		return d.giveUp(err)
	}
	loops, stop := context.WithCancel(context.WithoutCancel(ctx))
	group, running := errgroup.WithContext(loops)
	work := []func(context.Context) error{
		d.keys.Run, d.book.Run, d.ca.Run, d.sts.Run, d.sts.FollowRevocations, d.keepServer, d.keepUnsealed, d.keepClock,
	}
	if d.cfg.PKI.Listen != "" {
		work = append(work, d.ca.PublishCRLs, d.ca.KeepResponders)
	}
	for _, loop := range work {
		group.Go(func() error { return loop(running) })
	}
	for _, l := range d.listeners {
		group.Go(func() error { return serve(l) })
	}
	select {
	case <-ctx.Done():
	case <-running.Done(): // a listener or a loop failed
	case cause := <-d.fatal:
		stop()
		return &FatalError{cause}
	}
	drained := make(chan error, 1)
	go func() {
		d.drain()
		stop()
		drained <- group.Wait()
	}()
	select {
	case err = <-drained:
	case cause := <-d.fatal:
		return &FatalError{cause}
	}
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, d.unlessFatal(func() error {
		return errors.Join(d.record(context.WithoutCancel(ctx), "daemon.stopped", nil), d.close())
	}))
}

func serve(l listener) error {
	var err error
	if l.server.TLSConfig != nil {
		err = l.server.ServeTLS(l.net, "", "")
	} else {
		err = l.server.Serve(l.net)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.name, err)
}

// drain stops taking work, lets what is in flight end, and cuts it off after drainTime.
func (d *Daemon) drain() {
	d.api.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	// The operations listener is the last to go: until then /readyz tells load balancers to look elsewhere.
	for _, last := range []bool{false, true} {
		var group errgroup.Group
		for _, l := range d.listeners {
			if (l.name == "ops") == last {
				group.Go(func() error { return shutdown(ctx, l.server) })
			}
		}
		if err := group.Wait(); err != nil {
			d.log.Warn("close listeners", "err", err)
		}
	}
}

func shutdown(ctx context.Context, s *http.Server) error {
	if err := s.Shutdown(ctx); err != nil {
		return s.Close()
	}
	return nil
}

func (d *Daemon) closeListeners() {
	for _, l := range d.listeners {
		l.net.Close()
	}
}

// keepUnsealed looks for the KEK every 5 s while there is none, and at once when told to reload.
func (d *Daemon) keepUnsealed(ctx context.Context) error {
	tick := time.NewTicker(unsealEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-d.reload:
			if err := d.loadServer(); err != nil {
				d.log.Error("reload", "err", err)
			}
			d.keys.Retry()
		}
		if !d.keys.Sealed() {
			continue
		}
		if err := d.unseal(ctx); err != nil {
			return err
		}
	}
}

// unseal tries the KEK once. None yet is no error; one that does not fit ends the daemon, as it would at start.
func (d *Daemon) unseal(ctx context.Context) error {
	kek, err := keyring.ReadKEK(string(d.dir))
	if errors.Is(err, keyring.ErrNoKEK) {
		return nil
	}
	if err == nil {
		err = d.keys.Unseal(kek)
	}
	switch code := countersign.AsError(err).Code; {
	case err == nil:
	case code == countersign.CodeKMSDown: // its token comes later than the KEK
		d.log.Warn("unseal: it will be tried again", "err", err)
		return nil
	case code == countersign.CodeKMSPIN || code == countersign.CodeKMSKey:
		return fmt.Errorf("unseal: %w", err)
	}
	if err != nil {
		return &KEKError{fmt.Errorf("unseal: %w", err)}
	}
	d.log.Info("unsealed")
	if err := d.record(ctx, "daemon.unsealed", nil); err != nil {
		return err
	}
	return d.ensureOwn(ctx, d.server.Load().public)
}
