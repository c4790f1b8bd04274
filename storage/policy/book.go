package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// Config of a [Book]. Store, Audit and Env.TrustDomain are required.
type Config struct {
	Store  storage.Store
	Audit  *audit.Log
	Env    Env
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: discards
}

// Book holds the versions of the policy and knows the one in force. It is safe for concurrent use.
//
// Several nodes may have a Book on one store. A change is in force at once on the node that made it, and on the others
// as soon as their [Book.Run] sees it.
type Book struct {
	store storage.Store
	audit *audit.Log
	env   Env
	now   func() time.Time
	log   *slog.Logger

	// mu is held while the store is read in order to be believed, and during a change: so that Run never puts in
	// force what a change on this node has not recorded yet.
	mu      sync.Mutex
	base    *countersign.Policy // of the document in force, without state; guarded by mu
	sum     string              // hex SHA-256 of that document; "" before the first; guarded by mu
	baseRev storage.Rev         // of the record that says which version is the current one; guarded by mu
	states  map[string]state    // by service; guarded by mu
	freeze  freeze              // guarded by mu
	waiting map[string]waiting  // by key of a record whose audit record is not durable yet; guarded by mu

	current atomic.Pointer[countersign.Policy] // base and states merged

	changedMu sync.Mutex
	changed   chan struct{} // closed when current changes; guarded by changedMu
}

// Open reads the policy in force. A stored version that is damaged, or that has faults under this binary and Env, is an
// error: the daemon never runs on half a policy. A change whose audit record was lost in a crash gets it here.
func Open(ctx context.Context, cfg Config) (*Book, error) {
	if cfg.Store == nil || cfg.Audit == nil {
		return nil, errors.New("storage/policy: Config.Store and Config.Audit are required")
	}
	if err := countersign.CheckTrustDomain(cfg.Env.TrustDomain); err != nil {
		return nil, fmt.Errorf("storage/policy: Config.Env: %w", err)
	}
	b := &Book{
		store: cfg.Store, audit: cfg.Audit, env: cfg.Env, now: cfg.Now, log: cfg.Logger,
		base:    countersign.NewPolicy(0, cfg.Env.TrustDomain, nil, nil, nil),
		states:  make(map[string]state),
		waiting: make(map[string]waiting),
		changed: make(chan struct{}),
	}
	if b.now == nil {
		b.now = time.Now
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(ctx, false); err != nil {
		return nil, fmt.Errorf("open policy: %w", err)
	}
	b.publish()
	return b, nil
}

// Current is the policy in force, with the state of its services. It is never nil; before the first apply it has
// version 0 and is empty. It costs an atomic load and must not be changed.
func (b *Book) Current() *countersign.Policy { return b.current.Load() }

// Changed is closed when [Book.Current] changes. Call it, then read, then wait.
func (b *Book) Changed() <-chan struct{} {
	b.changedMu.Lock()
	defer b.changedMu.Unlock()
	return b.changed
}

// publish puts base and states in force. b.mu is held.
func (b *Book) publish() {
	b.current.Store(merge(b.base, b.states).WithFrozen(b.freeze.Frozen))
	b.changedMu.Lock()
	defer b.changedMu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
}

// merge gives the services of p their state.
func merge(p *countersign.Policy, states map[string]state) *countersign.Policy {
	if len(states) == 0 {
		return p
	}
	services := make([]countersign.Service, len(p.Services))
	copy(services, p.Services)
	for i := range services {
		s, ok := states[services[i].Name]
		if !ok {
			continue
		}
		services[i].VoidBefore = s.VoidBefore
		if s.Disabled {
			services[i].Disabled = &countersign.Disabled{Reason: s.Reason, By: s.By, At: s.At}
		}
	}
	return p.WithServices(services)
}

// storeError is what a caller may be told of a failure of the store.
func storeError(err error) *countersign.Error {
	switch {
	case errors.Is(err, storage.ErrConflict):
		return countersign.Errorf(countersign.CodePolicyConflict, "the policy or the service's state changed in the meantime").
			WithHint("look at the present one and try again").Because(err)
	case errors.Is(err, storage.ErrBusy):
		return countersign.Errorf(countersign.CodeBusy, "the store is busy or full; nothing was changed").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrUnknown):
		return countersign.Errorf(countersign.CodeUnknownOutcome, "it is not known whether the change was made").
			WithHint("look at the policy's history before trying again").After(time.Second).Because(err)
	case errors.Is(err, storage.ErrCorrupt):
		return countersign.Errorf(countersign.CodeDamaged, "a record of the policy is damaged").Because(err)
	case errors.Is(err, storage.ErrClosed):
		return countersign.Errorf(countersign.CodeStopping, "the daemon is stopping").Because(err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return countersign.Errorf(countersign.CodeTimeout, "the request ended before it was served").Because(err)
	}
	return countersign.AsError(err)
}
