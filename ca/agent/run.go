package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const stopTime = 5 * time.Second // for answers that are under way

// AddressError says that the operations listener can't listen.
type AddressError struct {
	Addr string
	Err  error
}

// Error names the address.
func (e *AddressError) Error() string { return fmt.Sprintf("listen on %s: %v", e.Addr, e.Err) }

// Unwrap gives the cause.
func (e *AddressError) Unwrap() error { return e.Err }

// Run keeps all identities until ctx ends, and serves what the configuration names. socket is the status socket; "": none. It
// returns nil when ctx ended, or why it can't serve: an authority that is away, an expired certificate and a failing hook never
// end it. An Agent runs once.
func (a *Agent) Run(ctx context.Context, socket string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer a.Close()
	servers, err := a.listen(ctx, socket)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.running = ctx
	for _, k := range a.keepers {
		k.begin(ctx)
	}
	a.mu.Unlock()
	failed := make(chan error, len(servers))
	var group sync.WaitGroup
	for _, s := range servers {
		group.Go(func() { failed <- s(ctx) })
	}
	a.notify("READY=1")
	stopWatchdog := a.watchdog()
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	a.notify("STOPPING=1")
	stopWatchdog()
	cancel()
	group.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.keepers {
		k.stop()
		<-k.done
	}
	return err
}

// server serves until its context ends; then it gives nil.
type server func(context.Context) error

// listen opens all listeners, or none.
func (a *Agent) listen(ctx context.Context, socket string) (servers []server, err error) {
	var opened []interface{ Close() error }
	defer func() {
		if err != nil {
			for _, o := range opened {
				_ = o.Close()
			}
		}
	}()
	if socket != "" {
		listener, lock, err := listenSocket(socket)
		if err != nil {
			return nil, err
		}
		opened = append(opened, listener, lock)
		servers = append(servers, func(ctx context.Context) error {
			defer lock.Close()
			return serveHTTP(ctx, listener, a.statusHandler())
		})
	}
	servers = append(servers, a.serveAPI)
	if addr := a.cfg.Ops.Listen; addr != "" {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return servers, &AddressError{addr, err}
		}
		opened = append(opened, listener)
		a.o.Logger.Info("health and metrics", "listen", listener.Addr().String())
		servers = append(servers, func(ctx context.Context) error { return serveHTTP(ctx, listener, a.opsHandler()) })
	}
	return servers, nil
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if s.Shutdown(limit) != nil {
			_ = s.Close()
		}
	})
	err := s.Serve(l)
	if stop() {
		return err // it ended by itself
	}
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// opsHandler is /livez, /readyz and /metrics.
func (a *Agent) opsHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(a.metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		red := ""
		for _, i := range a.Status().Identities {
			if !i.State.ready() {
				red += i.Name + ": " + i.Why + "\n"
			}
		}
		if red != "" {
			http.Error(w, red, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return mux
}

func (a *Agent) notify(state string) {
	if a.o.Notify == nil {
		return
	}
	if err := a.o.Notify(state); err != nil {
		a.o.Logger.Warn("tell systemd", "err", err)
	}
}

// watchdog tells systemd twice in each of its intervals that the agent is alive (sd_watchdog_enabled(3)).
func (a *Agent) watchdog() (stop func()) {
	micros, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || micros < 2 || micros > int64(24*time.Hour/time.Microsecond) || a.o.Notify == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(time.Duration(micros) * time.Microsecond / 2)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				_ = a.Status() // whoever holds a lock for ever shall not seem alive
				a.notify("WATCHDOG=1")
			}
		}
	}()
	return func() { cancel(); <-done }
}
