// Inventory is service B of the chain, in Go with the SDK: ca/mtls is who it is, sts/verify is who asks, and ca/mtls again carries
// the user on to the next service. It makes no decision of its own about certificates or tokens, and holds no list of callers.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/verify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var s service
	flag.StringVar(&s.listen, "listen", "", "where to serve: 127.0.0.1:PORT")
	flag.StringVar(&s.dir, "identity", "", "its identity directory")
	flag.StringVar(&s.join, "join-file", "", "file with its join string, for the first start")
	flag.StringVar(&s.issuer, "issuer", "", "issuer of relay tokens")
	flag.StringVar(&s.warehouse, "warehouse", "", "URL of the next service")
	flag.Parse()
	if err := s.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "inventory:", err)
		os.Exit(1)
	}
}

type service struct {
	listen, dir, join, issuer, warehouse string

	next *http.Client
}

func (s *service) run(ctx context.Context) error {
	src, err := mtls.Open(ctx, mtls.Config{Dir: s.dir, JoinFile: s.join})
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if err := src.Wait(ctx); err != nil {
		return err
	}
	id, err := src.Identity()
	if err != nil {
		return err
	}

	// Who asks: relay tokens for inventory, from whom they were made for.
	tokens, err := verify.New(verify.Config{Issuer: s.issuer, Audience: "inventory", Roots: id.Pool()})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /stock", tokens.RequireScope("stock:read")(http.HandlerFunc(s.stock)))

	// The next service: by mTLS to nobody else, with the token of the request exchanged for one that is good there only.
	over := mtls.NewTokens(src).Transport("warehouse", []string{"shelf:read"}, &http.Transport{DialContext: onLoopback, MaxIdleConnsPerHost: 16})
	s.next = &http.Client{Transport: over, Timeout: 10 * time.Second}

	// Who may connect: the callers that the call graph has, as long as their certificates are not revoked.
	server := &http.Server{Handler: mux, TLSConfig: mtls.Server(src, mtls.Callers()), ReadHeaderTimeout: 5 * time.Second}
	listener, err := net.Listen("tcp", s.listen)
	if err != nil {
		return err
	}
	defer renewOnHangup(ctx, src)()
	fmt.Println("listening on https://" + listener.Addr().String())
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ServeTLS(listener, "", ""); ctx.Err() == nil {
		return err
	}
	return nil
}

// renewOnHangup renews on SIGHUP, for an operator who does not want to wait until it is due.
func renewOnHangup(ctx context.Context, src *mtls.Source) (stop func()) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		for range hangup {
			if err := src.Renew(ctx); err != nil {
				fmt.Fprintln(os.Stderr, "inventory: renew:", err)
			}
		}
	}()
	return func() { signal.Stop(hangup); close(hangup) }
}

// stock answers with what is in stock, and where the warehouse keeps it.
func (s *service) stock(w http.ResponseWriter, r *http.Request) {
	claims, _ := verify.FromContext(r.Context())
	caller, _ := mtls.Peer(r.TLS)
	answer := map[string]any{
		"service": "inventory", "runs": "Go, with the SDK", "caller": caller.String(), "user": claims.User(), "scopes": claims.Scopes,
		"chain": claims.Chain(), "transaction": claims.Transaction,
	}
	status := http.StatusOK
	if next, err := s.shelf(r.Context()); err != nil {
		fmt.Fprintln(os.Stderr, "inventory:", err)
		status = http.StatusBadGateway
		answer["error"] = "no answer from warehouse"
	} else {
		answer["next"] = next
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the caller is gone; nothing to tell it
}

// shelf asks the warehouse. The token of the incoming request is in ctx; the transport exchanges it.
func (s *service) shelf(ctx context.Context) (json.RawMessage, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.warehouse, nil)
	if err != nil {
		return nil, err
	}
	response, err := s.next.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }() // only read from
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("warehouse answers %s", response.Status)
	}
	return body, nil
}

// onLoopback reaches every service on this machine: the names of the example are in no DNS. Certificates are still held to them.
func onLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}
