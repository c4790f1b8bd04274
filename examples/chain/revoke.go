package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// revokedWithin is how long verifiers may take to know.
const revokedWithin = 10 * time.Second

// revoke revokes the transaction of ana's request, as an operator would who sees something wrong: her request goes no further, with
// whatever token of that transaction it is tried. Who she is stays good: she logs in again.
func (c *chain) revoke(ctx context.Context) error {
	token, err := c.login(ctx)
	if err != nil {
		return err
	}
	first, err := c.call(ctx, token)
	if err != nil {
		return err
	}
	again, err := c.call(ctx, token)
	if err != nil {
		return err
	}
	if again.Transaction != first.Transaction {
		return fmt.Errorf("a second request with the same token is another transaction: %s, %s", first.Transaction, again.Transaction)
	}
	c.line("request", "of transaction %s: answered, twice", first.Transaction)
	var revoked struct{ Kind, Value string }
	if err := c.host.Ask(ctx, &revoked, "token", "revoke", "--txn", first.Transaction, "--reason", "the example"); err != nil {
		return err
	}
	began := time.Now()
	var stopped error
	for stopped == nil {
		if time.Since(began) > revokedWithin {
			return fmt.Errorf("the chain still answers %s after the revocation", revokedWithin)
		}
		if _, stopped = c.call(ctx, token); stopped == nil {
			time.Sleep(100 * time.Millisecond)
		}
	}
	var why *refusal
	if !errors.As(stopped, &why) {
		return stopped
	}
	c.line("revoked", "after %.1f s the same request is answered: %s", time.Since(began).Seconds(), why)
	for range 10 {
		if _, err := c.call(ctx, token); !errors.As(err, &why) {
			return fmt.Errorf("a later request of the revoked transaction ends with %w", err)
		}
	}
	if token, err = c.login(ctx); err != nil {
		return err
	}
	other, err := c.call(ctx, token)
	if err != nil {
		return fmt.Errorf("ana has logged in again, and her request fails: %w", err)
	}
	c.line("login", "ana logs in again; transaction %s: answered", other.Transaction)
	return nil
}
