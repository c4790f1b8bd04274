package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/ca/mtls"
)

const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute

	writePause = 100 * time.Millisecond // between looks whether the directory holds a new identity
	writeLooks = 50                     // then it is an alarm
)

// keeper looks after one identity directory and its program.
type keeper struct {
	cfg     Identity // with the defaults of the whole configuration put in
	src     *mtls.Source
	opened  atomic.Pointer[mtls.Source] // src, for events, which come before it is known
	log     *slog.Logger
	now     func() time.Time
	metrics *metrics
	oneShot bool   // Once: a fault ends the delivery
	child   *Child // of ours, which is signalled in place of a PID file; nil: none

	mu        sync.Mutex
	reload    ReloadStatus
	springErr error
}

// run delivers every change to the program until ctx ends.
func (k *keeper) run(ctx context.Context) {
	for ctx.Err() == nil {
		changed := k.src.Changed()
		id, err := k.src.Identity()
		if id == nil || err != nil {
			wait(ctx, changed, nil)
			continue
		}
		k.deliverUntil(ctx, changed, id)
	}
}

// deliverUntil delivers id, again and again until it went well, and returns when there is something newer.
func (k *keeper) deliverUntil(ctx context.Context, changed <-chan struct{}, id *identity.Identity) {
	pause := firstRetry
	for {
		// What is newer ends a delivery that is under way: its hooks would tell the program of files that are old by now.
		attempt, cancel := context.WithCancel(ctx)
		watching := make(chan struct{})
		go func() {
			defer close(watching)
			wait(attempt, changed, nil)
			cancel()
		}()
		err := k.deliver(attempt, id)
		broken := attempt.Err() != nil
		cancel()
		<-watching
		if err == nil || ctx.Err() != nil {
			wait(ctx, changed, nil)
			return
		}
		if broken {
			return
		}
		// Decorrelated jitter: the next pause is drawn between the least and three times the last.
		pause = min(lastRetry, firstRetry+rand.N(3*pause-firstRetry+1))
		timer := time.NewTimer(pause)
		newer := wait(ctx, changed, timer.C)
		timer.Stop()
		if newer {
			return
		}
	}
}

// wait tells whether something newer came, or ctx ended, before the timer.
func wait(ctx context.Context, changed <-chan struct{}, timer <-chan time.Time) bool {
	select {
	case <-ctx.Done():
		return true
	case <-changed:
		return true
	case <-timer:
		return false
	}
}

// deliver does all that follows a change, unless it was done already, and notes that it went well.
func (k *keeper) deliver(ctx context.Context, id *identity.Identity) error {
	done, roots := readRecord(k.cfg.Dir), rootsHash(id)
	if done.Serial == id.Serial && done.Roots == roots && (done.Verified || k.cfg.Verify == nil) {
		k.settle(func(r *ReloadStatus) {
			*r = ReloadStatus{OK: true, Serial: done.Serial, At: done.At, Verified: done.Verified, Kept: kept(k.cfg.Dir)}
		})
		k.writeSpring(ctx, id)
		return nil
	}
	// Nothing may stand in a new directory before its identity does: it would be refused as another's.
	if err := k.awaitDisk(ctx, id); err != nil {
		return err
	}
	k.writeSpring(ctx, id)
	served, err := k.tell(ctx, id)
	if err != nil && ctx.Err() != nil {
		return err // broken off, not failed
	}
	if err != nil {
		k.alarm(id, served, err)
		return err
	}
	verified := k.cfg.Verify != nil
	if verified {
		// Crash point: before the link is there, the version before last may go at the next renewal, and the program serves this one.
		if err := keep(k.cfg.Dir, id.Serial); err != nil {
			k.alarm(id, served, err)
			return err
		}
	}
	r := record{Serial: id.Serial, Roots: roots, At: k.now().UTC().Truncate(time.Second), Verified: verified}
	if err := writeRecord(k.cfg.Dir, r); err != nil {
		k.alarm(id, served, err)
		return err
	}
	k.settle(func(s *ReloadStatus) {
		*s = ReloadStatus{OK: true, Serial: r.Serial, At: r.At, Verified: verified, Served: served, Kept: kept(k.cfg.Dir)}
	})
	if k.cfg.notifies() {
		k.log.Info("the program has the new certificate", "serial", id.Serial, "verified", verified)
	}
	return nil
}

// awaitDisk waits until the directory holds id: the source has it in memory before it is written, and for long when the disk is
// full. Until then the program would read the old files again. ctx ends the wait.
func (k *keeper) awaitDisk(ctx context.Context, id *identity.Identity) error {
	for n := 0; ; n++ {
		version, err := versionOf(k.cfg.Dir, id.Serial)
		if err == nil && version != "" {
			return nil
		}
		if n == writeLooks {
			if err == nil {
				err = fmt.Errorf("it is not written to %s", k.cfg.Dir)
			}
			if last := k.src.Status().LastError; last != nil {
				err = last
			}
			k.alarm(id, "", err)
			if k.oneShot {
				return err
			}
		}
		timer := time.NewTimer(writePause)
		ended := wait(ctx, nil, timer.C)
		timer.Stop()
		if ended {
			return ctx.Err()
		}
	}
}

// tell runs the hooks and waits until the program serves the certificate, where that is looked at.
func (k *keeper) tell(ctx context.Context, id *identity.Identity) (served string, err error) {
	d := delivery{dir: k.cfg.Dir, id: id.ID.String(), serial: id.Serial, notAfter: id.NotAfter, server: id.Server}
	for _, h := range k.hooks(id) {
		limit, cancel := context.WithTimeout(ctx, k.cfg.Reload.timeout())
		note, err := h.run(limit, d)
		cancel()
		if err != nil {
			k.metrics.hookFailed(k.cfg.name(), h.name)
			return "", fmt.Errorf("hook %s: %w", h.name, err)
		}
		k.log.Info("hook ran", "hook", h.name, "serial", id.Serial, "note", note)
	}
	if k.cfg.Verify == nil {
		return "", nil
	}
	within := time.Duration(k.cfg.Verify.Within)
	if within == 0 {
		within = defaultWithin
	}
	limit, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	served, err = awaitServed(limit, *k.cfg.Verify, id, k.now)
	if err != nil {
		err = fmt.Errorf("after %s: %w", within, err)
	}
	return served, err
}

// hooks are what has to be done for the program. A child that was started with these very files has read them already, and a
// signal that comes before it has set up its handlers would end it.
func (k *keeper) hooks(id *identity.Identity) []hook {
	if k.child == nil {
		return k.cfg.Reload.hooks()
	}
	if k.child.startedWith == fileKey(id) {
		return nil
	}
	r := k.cfg.Reload
	if r.Signal == 0 || r.PIDFile != "" {
		return r.hooks()
	}
	signal := r.Signal
	r.Signal = 0
	return append(r.hooks(), hook{"signal", func(context.Context, delivery) (string, error) {
		return "sent SIG" + signal.String() + " to the child", k.child.signal(signal)
	}})
}

// fileKey names a set of files: a certificate with its roots.
func fileKey(id *identity.Identity) string { return id.Serial + " " + rootsHash(id) }

// alarm tells that the program did not take the new files, and holds those that it was last seen to serve.
func (k *keeper) alarm(id *identity.Identity, served string, err error) {
	var attempts int
	k.settle(func(s *ReloadStatus) {
		s.OK, s.Error, s.Attempts, s.Kept = false, err.Error(), s.Attempts+1, kept(k.cfg.Dir)
		if served != "" {
			s.Served = served
		}
		attempts = s.Attempts
	})
	k.log.Error("the program did not take the new certificate; it is tried again, and the files that it serves are kept",
		"serial", id.Serial, "served", served, "attempt", attempts, "kept", kept(k.cfg.Dir), "err", err)
}

func (k *keeper) settle(change func(*ReloadStatus)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.reload)
}

// writeSpring writes the configuration for Spring Boot where it is asked for. A fault does not hold up the delivery: the file
// changes once in a blue moon.
func (k *keeper) writeSpring(ctx context.Context, id *identity.Identity) {
	if k.cfg.Spring == nil {
		return
	}
	err := func() error {
		issuer := k.cfg.Spring.Issuer
		if issuer == "" {
			c, err := k.src.Client()
			if err != nil {
				return err
			}
			metadata, err := c.Metadata(ctx)
			if err != nil {
				return err
			}
			if issuer = metadata.Issuer; checkServer(issuer) != nil {
				return errors.New("the daemon's metadata holds no issuer")
			}
		}
		changed, err := writeSpring(k.cfg.Dir, springText(k.cfg.Dir, issuer, *k.cfg.Spring))
		if changed && err == nil {
			k.log.Info("wrote the configuration for Spring Boot", "file", SpringFile, "issuer", issuer)
		}
		return err
	}()
	if err != nil {
		k.log.Warn("write the configuration for Spring Boot", "file", SpringFile, "err", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.springErr = err
}

// status is the state of the identity now.
func (k *keeper) status() IdentityStatus {
	now, st := k.now(), k.src.Status()
	s := IdentityStatus{
		Name: k.cfg.name(), Dir: k.cfg.Dir, RenewAt: st.RenewAt.UTC().Truncate(time.Second), Server: st.Server, LastAttempt: st.LastAttempt.UTC().Truncate(time.Second),
		Failures: st.Failures, Unwritten: st.Unwritten, Skew: st.Skew.Seconds(), Budget: st.Budget.Truncate(time.Second).Seconds(),
	}
	if st.LastError != nil {
		s.LastError = st.LastError.Error()
	}
	if id, _ := k.src.Identity(); id != nil {
		s.fill(id)
	}
	k.mu.Lock()
	s.Reload = k.reload
	if k.springErr != nil {
		s.SpringError = k.springErr.Error()
	}
	k.mu.Unlock()
	s.judge(now)
	return s
}
