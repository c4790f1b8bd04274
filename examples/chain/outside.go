package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
)

// stranger has no certificate.
const stranger = ""

const exitDenied = 3 // of the command line (interfaces.md)

// paths are what the services serve.
var paths = map[string]string{gateway: "/orders/42", orders: "/orders/42", inventory: "/stock", warehouse: "/shelf"}

// outside tries what the graph does not have, with the real identities of services of this very trust domain: at the handshake of
// each kind of server, and at the exchange.
func (c *chain) outside(ctx context.Context) error {
	for _, call := range []struct{ from, to, how string }{
		{inventory, orders, "Java's own TLS, with the callers feed"},
		{gateway, inventory, "the Go SDK"},
		{orders, warehouse, "countersign relay"},
		{stranger, orders, ""}, {stranger, inventory, ""}, {stranger, warehouse, ""},
	} {
		if err := c.refusedAtHandshake(ctx, call.from, call.to); err != nil {
			return err
		}
		if call.from == stranger {
			continue
		}
		c.line("handshake", "%s -> %s: refused by %s", call.from, call.to, call.how)
	}
	c.line("handshake", "whoever has no certificate: refused by each of them")
	token, err := c.login(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(c.dir, "user.jwt")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		return err
	}
	body, err := c.host.Run(ctx, exitDenied, "-o", "json", "token", "exchange", "--identity", c.identity(gateway),
		"--subject-token", path, "--audience", inventory)
	if err != nil {
		return err
	}
	if len(body) > 0 {
		return errors.New("something was printed where a token would be")
	}
	var found struct{ Code string }
	if err := c.host.Ask(ctx, &found, "audit", "search", "--type", "token.denied", "--limit", "1"); err != nil {
		return err
	}
	if found.Code != "CS3021" {
		return fmt.Errorf("the denial has the code %q instead of CS3021", found.Code)
	}
	c.line("exchange", "gateway asks for a token for inventory: invalid_target (%s), and the audit log has the reason", found.Code)
	return nil
}

// refusedAtHandshake demands that a server takes no connection of a service, and that it does take one of its caller: else it might
// refuse everybody.
func (c *chain) refusedAtHandshake(ctx context.Context, from, to string) error {
	status, err := c.connect(ctx, from, to)
	if err == nil {
		return fmt.Errorf("%s answers %q with %d instead of refusing the connection", to, from, status)
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	caller := map[string]string{orders: gateway, inventory: orders, warehouse: inventory}[to]
	status, err = c.connect(ctx, caller, to)
	if err == nil && status != http.StatusUnauthorized {
		err = fmt.Errorf("it answers %d instead of 401", status)
	}
	if err != nil {
		return fmt.Errorf("%s and its caller %s, who sends no token: %w", to, caller, err)
	}
	return nil
}

// connect sends a request without a token, with the identity of a service.
func (c *chain) connect(ctx context.Context, from, to string) (int, error) {
	roots, err := local.Pool(c.authority.Root)
	if err != nil {
		return 0, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	if from != stranger {
		own, err := identity.Load(c.identity(from))
		if err != nil {
			return 0, err
		}
		certificate := own.TLS()
		// Whatever issuers the server asks for, as somebody would who tries.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	client := local.Client(config)
	defer client.CloseIdleConnections()
	limited, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(limited, http.MethodGet, c.addresses[to]+paths[to], nil)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }() // only read from
	_, err = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, err
}
