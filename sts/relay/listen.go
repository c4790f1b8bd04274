package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/ca/mtls"
)

// listener is one address that is served; what answers there can be replaced while it is.
type listener struct {
	name, address string
	inner         net.Listener
	server        *http.Server
	handler       atomic.Pointer[http.Handler]
	done          chan struct{} // closed when serving has ended
}

// ServeHTTP implements http.Handler.
func (l *listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*l.handler.Load()).ServeHTTP(w, r)
}

// door is what a listener is to be.
type door struct {
	name, address string
	handler       http.Handler
	limits        *Limits     // nil: for this machine's own programs
	tls           *tls.Config // nil: plain
}

func open(ctx context.Context, d door, around func(http.Handler) http.Handler, log *slog.Logger) (*listener, error) {
	inner, err := listenAt(d.address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	l := &listener{name: d.name, address: d.address, inner: inner, done: make(chan struct{})}
	l.handler.Store(&d.handler)
	limits := internalLimits()
	if d.limits != nil {
		limits = *d.limits
		l.inner = &counted{Listener: inner, most: limits.Connections, perHost: limits.PerHost, hosts: map[netip.Addr]int{}}
	}
	l.server = &http.Server{
		Handler: unstalled(time.Duration(limits.Stall), around(l)), TLSConfig: d.tls,
		ReadHeaderTimeout: time.Duration(limits.HeaderTime), IdleTimeout: time.Duration(limits.Idle),
		MaxHeaderBytes: int(limits.Header), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: limits.Streams},
		ErrorLog:    slog.NewLogLogger(log.With("listener", d.name).Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
		Protocols:   &http.Protocols{},
	}
	l.server.Protocols.SetHTTP1(true)
	if d.tls == nil {
		l.server.Protocols.SetUnencryptedHTTP2(true)
	} else {
		l.server.Protocols.SetHTTP2(true)
	}
	go func() {
		defer close(l.done)
		var err error
		if d.tls != nil {
			err = l.server.ServeTLS(l.inner, "", "")
		} else {
			err = l.server.Serve(l.inner)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			log.Error("a listener ended", "listener", d.name, "error", err)
		}
	}()
	return l, nil
}

// stop lets requests in flight end until ctx does, then cuts them.
func (l *listener) stop(ctx context.Context) {
	if err := l.server.Shutdown(ctx); err != nil {
		_ = l.server.Close() // there is nothing more to be done
	}
	<-l.done
}

// listenAt listens at host:port or unix:/path. A socket that a process left behind is taken over; one that is served is not.
func listenAt(address string) (net.Listener, error) {
	path, ok := socketPath(address)
	if !ok {
		return net.Listen("tcp", address)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s is there and no socket", path)
		}
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, fmt.Errorf("%s is served by another process", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	// Who may connect is the service: the relay's user and its group, and nobody before this either, if the directory is as the
	// documentation says.
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// counted closes connections beyond its limits as soon as they are there. Those from loopback count in all, not by host.
type counted struct {
	net.Listener
	most, perHost int

	mu    sync.Mutex
	all   int
	hosts map[netip.Addr]int
}

// Accept implements net.Listener.
func (c *counted) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var host netip.Addr
		if at, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil && !at.Addr().Unmap().IsLoopback() {
			host = at.Addr().Unmap()
		}
		if c.take(host) {
			return &countedConn{Conn: conn, gone: sync.OnceFunc(func() { c.give(host) })}, nil
		}
		conn.Close()
	}
}

func (c *counted) take(host netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.most || host.IsValid() && c.hosts[host] >= c.perHost {
		return false
	}
	c.all++
	if host.IsValid() {
		c.hosts[host]++
	}
	return true
}

func (c *counted) give(host netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if host.IsValid() {
		if c.hosts[host]--; c.hosts[host] == 0 {
			delete(c.hosts, host)
		}
	}
}

type countedConn struct {
	net.Conn
	gone func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.gone()
	return c.Conn.Close()
}

// publicTLS is for users: the certificate of the files, or the relay's own.
func publicTLS(cfg TLS, src *mtls.Source) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}
	if cfg.Min == "1.2" {
		out.MinVersion = tls.VersionTLS12
	}
	if cfg.Cert == "" {
		out.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			id, err := src.Identity()
			if err != nil {
				return nil, err
			}
			own := id.TLS()
			return &own, nil
		}
		return out, nil
	}
	files := &pair{cert: cfg.Cert, key: cfg.Key}
	if _, err := files.get(); err != nil {
		return nil, fmt.Errorf("public.tls: %w", err)
	}
	out.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return files.get() }
	return out, nil
}

// pair is a certificate in files that somebody else renews. What can't be read leaves what was read before.
type pair struct {
	cert, key string

	mu     sync.Mutex
	looked time.Time
	stamp  [2]time.Time
	have   *tls.Certificate
}

func (p *pair) get() (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have != nil && time.Since(p.looked) < time.Second {
		return p.have, nil
	}
	p.looked = time.Now()
	var stamp [2]time.Time
	for i, path := range []string{p.cert, p.key} {
		if info, err := os.Stat(path); err == nil {
			stamp[i] = info.ModTime()
		}
	}
	if p.have != nil && stamp == p.stamp {
		return p.have, nil
	}
	read, err := tls.LoadX509KeyPair(p.cert, p.key)
	switch {
	case err == nil:
		p.have, p.stamp = &read, stamp
	case p.have == nil:
		return nil, err
	}
	return p.have, nil
}
