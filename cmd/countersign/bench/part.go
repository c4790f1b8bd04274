package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
)

// answer is what the application says to each request: 1 KiB.
func answer(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // what it is makes no difference
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, `{"order":%q}`, strings.Repeat("x", 1012)) // the peer is gone; nothing to tell it
}

// ServeApp is the child behind both proxies: an application that answers at once, at a Unix socket and, with the identity of a
// directory, at a port of loopback that takes certificates of the same authority only.
func ServeApp(ctx context.Context, dir, socket string, out io.Writer) error {
	id, err := identity.Load(dir)
	if err != nil {
		return err
	}
	plain, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer os.Remove(socket)
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		plain.Close()
		return err
	}
	fmt.Fprintln(out, local.Listening+secure.Addr().String())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return local.ServeTLS(ctx, secure, http.HandlerFunc(answer), mutual(id)) })
	group.Go(func() error {
		server := &http.Server{Handler: http.HandlerFunc(answer)}
		stop := context.AfterFunc(ctx, func() { server.Close() })
		defer stop()
		if err := server.Serve(plain); ctx.Err() == nil {
			return err
		}
		return nil
	})
	return group.Wait()
}

// mutual is TLS 1.3 with certificates of one authority at both ends, as a server.
func mutual(id *identity.Identity) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{id.TLS()}, ClientCAs: id.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// ServeProxy is the child that a relay is compared with: httputil.ReverseProxy with nothing around it. It goes to a Unix socket
// and demands certificates, or, with a URL, takes anyone and shows its own certificate to the upstream at address: what the relay
// does at its internal and its public listener.
func ServeProxy(ctx context.Context, dir, socket, upstream, address string, out io.Writer) error {
	id, err := identity.Load(dir)
	if err != nil {
		return err
	}
	target, server := &url.URL{Scheme: "http", Host: "application"}, mutual(id)
	transport := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	if upstream != "" {
		if target, err = url.Parse(upstream); err != nil {
			return err
		}
		server.ClientAuth = tls.NoClientCert
		transport.ForceAttemptHTTP2 = true
		transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: id.Pool(), Certificates: []tls.Certificate{id.TLS()}}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, local.Listening+listener.Addr().String())
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	return local.ServeTLS(ctx, listener, proxy, server)
}
