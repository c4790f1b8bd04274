package agent

import (
	"context"
	"errors"
	"fmt"
)

// Once enrols or renews what is due and tells the programs, one attempt each. The error is the first thing that went wrong; the
// other identities were seen to all the same.
func (a *Agent) Once(ctx context.Context) error {
	var first error
	for _, k := range a.list() {
		if err := k.once(ctx); err != nil && first == nil {
			first = &IdentityError{k.cfg.name(), err}
		}
	}
	return first
}

func (k *keeper) once(ctx context.Context) error {
	k.oneShot = true
	id, err := k.src.Identity()
	var renewal error
	if err != nil || !k.now().Before(k.src.Status().RenewAt) {
		if renewal = k.src.Renew(ctx); renewal == nil {
			id, err = k.src.Identity()
		}
	}
	switch {
	case err != nil && renewal != nil:
		return renewal
	case err != nil:
		return err
	}
	// What is still good is delivered also when the renewal failed: an earlier run may have ended before it could.
	if err := k.deliver(ctx, id); err != nil {
		return errors.Join(renewal, fmt.Errorf("the program did not take the new certificate: %w", err))
	}
	return renewal
}
