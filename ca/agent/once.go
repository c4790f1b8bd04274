package agent

import (
	"context"
	"errors"
)

// DeliveryError says that a program did not take its new certificate: a hook failed, or it does not serve it.
type DeliveryError struct{ Err error }

// Error gives the reason.
func (e *DeliveryError) Error() string {
	return "the program did not take the new certificate: " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *DeliveryError) Unwrap() error { return e.Err }

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
		return errors.Join(renewal, &DeliveryError{err})
	}
	return renewal
}
