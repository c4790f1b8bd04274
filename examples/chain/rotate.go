package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/countersign/countersign/cmd/countersign/local"
)

// clients send requests at the same time.
const clients = 4

// load is what was seen of requests that flow.
type load struct {
	sent, failed atomic.Int64

	mu    sync.Mutex
	first error    // why the first one failed
	kids  []string // of the tokens at orders, in the order of their first appearance
}

// flow sends requests until ctx ends. Each must come through the whole chain.
func (c *chain) flow(ctx context.Context, token string, l *load) {
	for ctx.Err() == nil {
		got, err := c.call(ctx, token)
		if ctx.Err() != nil {
			return
		}
		l.sent.Add(1)
		l.mu.Lock()
		if err != nil {
			l.failed.Add(1)
			if l.first == nil {
				l.first = fmt.Errorf("%s: %w", time.Now().Format(time.StampMilli), err)
			}
		} else if !slices.Contains(l.kids, got.KID) {
			l.kids = append(l.kids, got.KID)
		}
		l.mu.Unlock()
		// A user's token is exchanged anew only when the one that is kept ends: a new login brings a new token through all hops.
		if err == nil && l.sent.Load()%20 == 0 {
			if next, err := c.login(ctx); err == nil {
				token = next
			}
		}
	}
}

// rotate changes all that can change while requests flow. None may fail.
func (c *chain) rotate(ctx context.Context) error {
	token, err := c.login(ctx)
	if err != nil {
		return err
	}
	flowing, stop := context.WithCancel(ctx)
	defer stop()
	var l load
	var group sync.WaitGroup
	for range clients {
		group.Go(func() { c.flow(flowing, token, &l) })
	}
	defer group.Wait()
	kid, err := c.rotateToken(ctx)
	var issuing string
	if err == nil {
		issuing, err = c.rotateIssuing(ctx)
	}
	if err == nil {
		err = c.renewAll(ctx, issuing)
	}
	if err != nil {
		stop()
		return err
	}
	select {
	case <-time.After(lead): // the new token key signs, with some requests after it
	case <-ctx.Done():
	}
	stop()
	group.Wait()
	c.line("requests", "%d through the whole chain meanwhile, %d failed", l.sent.Load(), l.failed.Load())
	switch {
	case l.failed.Load() > 0:
		return fmt.Errorf("%d requests failed; the first: %w", l.failed.Load(), l.first)
	case l.sent.Load() == 0:
		return errors.New("no request was sent")
	case len(l.kids) != 2 || l.kids[1] != kid:
		return fmt.Errorf("the tokens at orders were signed by %q; the last should be %s", l.kids, kid)
	}
	return nil
}

// rotateToken rotates the token key, and gives the new key of the algorithm that orders asks for.
func (c *chain) rotateToken(ctx context.Context) (string, error) {
	var plan struct {
		Keys []struct {
			KID, Alg  string
			New       bool
			SignsFrom time.Time `json:"signs_from"`
		}
	}
	if err := c.host.Ask(ctx, &plan, "key", "rotate", "token"); err != nil {
		return "", err
	}
	for _, k := range plan.Keys {
		if k.New && k.Alg == "RS256" {
			c.line("token key", "%s is published, and signs in %s", k.KID, time.Until(k.SignsFrom).Round(time.Second))
			return k.KID, nil
		}
	}
	return "", fmt.Errorf("the rotation brings no RS256 key: %+v", plan)
}

// rotateIssuing makes a new issuing key of the authority, and gives the serial of its certificate.
func (c *chain) rotateIssuing(ctx context.Context) (string, error) {
	var plan struct {
		New []struct{ Role, Serial string }
	}
	if err := c.host.Ask(ctx, &plan, "ca", "rotate", "intermediate"); err != nil {
		return "", err
	}
	if len(plan.New) != 1 || plan.New[0].Serial == "" {
		return "", fmt.Errorf("the rotation brings %+v", plan.New)
	}
	c.line("issuing key", "the authority signs certificates with a new one; what the old one signed is good until it ends")
	return plan.New[0].Serial, nil
}

// renewedWithin is how long a service may take to serve a new certificate.
const renewedWithin = 20 * time.Second

// renewAll gives every service a new certificate and key, and waits until it serves them, signed with the new issuing key.
func (c *chain) renewAll(ctx context.Context, issuing string) error {
	for _, name := range []string{warehouse, inventory, orders, gateway} {
		before, err := c.served(ctx, name)
		if err != nil {
			return err
		}
		if name == inventory {
			err = c.inventory.Signal(syscall.SIGHUP) // it renews by itself; this tells it to do so now
		} else {
			_, err = c.host.Run(ctx, 0, "cert", "renew", "--out", c.identity(name))
		}
		if err != nil {
			return err
		}
		after := before
		for began := time.Now(); after.serial == before.serial; {
			if time.Since(began) > renewedWithin {
				return fmt.Errorf("%s still serves the certificate %s", name, before.serial)
			}
			time.Sleep(50 * time.Millisecond)
			if after, err = c.served(ctx, name); err != nil {
				return err
			}
		}
		if before.issuer == issuing || after.issuer != issuing {
			return fmt.Errorf("the certificate of %s is signed by %s, and was by %s; the new issuing key is %s", name, after.issuer, before.issuer, issuing)
		}
		c.line("certificate", "%-9s serves %.16s… in place of %.16s…, signed with the new issuing key", name, after.serial, before.serial)
	}
	// The agent's own judgement: exit code 0 only if orders was seen to serve what is in its directory.
	if _, err := c.host.Run(ctx, 0, "agent", "once", "--config", c.agent); err != nil {
		return err
	}
	c.line("agent", "has looked: orders serves what is in its directory")
	return nil
}

// certificate is what a service shows to whoever connects.
type certificate struct{ serial, issuer string } // serials in hex: its own, and that of the intermediate that signed it

// served is what a service serves now: its chain is verified under the authority's root, for its name.
func (c *chain) served(ctx context.Context, name string) (certificate, error) {
	roots, err := local.Pool(c.authority.Root)
	if err != nil {
		return certificate{}, err
	}
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: name + "." + trustDomain}}
	connection, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:"+c.port(name))
	if err != nil {
		return certificate{}, fmt.Errorf("%s: %w", name, err)
	}
	defer func() { _ = connection.Close() }() // nothing was sent
	shown := connection.(*tls.Conn).ConnectionState().PeerCertificates
	if len(shown) < 2 {
		return certificate{}, fmt.Errorf("%s shows no intermediate", name)
	}
	return certificate{serial: serial(shown[0]), issuer: serial(shown[1])}, nil
}

// serial is how the command line spells it.
func serial(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }
