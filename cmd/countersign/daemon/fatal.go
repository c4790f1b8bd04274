package daemon

import "errors"

// FatalError is what the disk did to us: the process must end at once, without closing anything, and be started anew.
type FatalError struct{ Err error }

// Error says what failed.
func (e *FatalError) Error() string { return "the disk failed: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *FatalError) Unwrap() error { return e.Err }

// die is the Fatal of store and audit log: what they hold in memory may differ from the disk, so nothing may run on.
// It hands the reason to whoever starts, runs or stops the daemon, and never returns.
func (p *parts) die(err error) {
	select {
	case p.fatal <- err:
	default:
	}
	select {}
}

// unlessFatal does what may change store or audit log. Whoever waits for either after a failed fsync waits for ever, so
// the reason is awaited beside do, which is then left behind: the process is about to end.
func (p *parts) unlessFatal(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case cause := <-p.fatal:
		return &FatalError{cause}
	}
}

// giveUp closes the parts after a failure, unless it was the disk's: then nothing may be closed any more.
func (p *parts) giveUp(err error) error {
	var fatal *FatalError
	if errors.As(err, &fatal) {
		return err
	}
	return errors.Join(err, p.unlessFatal(p.close))
}
