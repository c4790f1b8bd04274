package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/countersign/countersign/sts/jwt"
)

// jtiOf reads the identifier of a token.
func jtiOf(token string) (string, error) {
	parsed, err := jwt.Parse(token)
	if err != nil {
		return "", err
	}
	jti, _, err := parsed.Claims.String("jti")
	return jti, err
}

// switchState is what is known of a service's state: an answer says it, a request without one leaves it open.
type switchState struct {
	disabled, open bool
}

// kill -9 while certificates and tokens are issued, keys rotate, policies are applied and a service is disabled and
// enabled: each version that was acknowledged is there byte by byte, the newest is in force, states are as answered.
func TestFaultKill(t *testing.T) {
	i := newInstance(t, plainBinary(t), "COUNTERSIGN_TOKEN_LEAD=2s")
	w := newWorker(t, i)
	var state switchState
	for range 12 {
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		c := w.service()
		group.Go(func() { untilError(ctx, func() error { return w.enrol(ctx) }) })
		group.Go(func() { untilError(ctx, func() error { return w.token(ctx, c) }) })
		group.Go(func() { rotateLoop(ctx, t, i) })
		group.Go(func() { untilError(ctx, func() error { return w.applyPolicy(ctx, fmt.Sprint(rand.Uint64())) }) })
		group.Go(func() { untilError(ctx, func() error { return w.toggle(ctx, &state) }) })
		time.Sleep(rand.N(300 * time.Millisecond))
		i.stop(t, syscall.SIGKILL)
		stop()
		group.Wait()
		i.start(t)
		w.check()
		w.checkNewest()
		w.checkState(&state)
	}
	if len(w.acked.serials) == 0 || len(w.acked.jtis) == 0 || len(w.policies) < 3 {
		t.Errorf("too little was acknowledged: %d certificates, %d tokens, %d policies", len(w.acked.serials), len(w.acked.jtis), len(w.policies))
	}
	t.Logf("%d certificates, %d tokens, %d policies", len(w.acked.serials), len(w.acked.jtis), len(w.policies))
}

func untilError(ctx context.Context, do func() error) {
	for ctx.Err() == nil {
		if do() != nil {
			return
		}
	}
}

// toggle disables service c, or enables it.
func (w *worker) toggle(ctx context.Context, s *switchState) error {
	call := w.admin.DisableService
	if s.disabled {
		call = w.admin.EnableService
	}
	s.open = true
	if err := call(ctx, "c", "kill test"); err != nil {
		return err
	}
	s.disabled, s.open = !s.disabled, false
	return nil
}

func (w *worker) checkState(s *switchState) {
	w.t.Helper()
	list, err := w.admin.Services(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, service := range list.Services {
		if service.Name != "c" {
			continue
		}
		if disabled := service.Disabled != nil; !s.open && disabled != s.disabled {
			w.t.Fatalf("service c is disabled: %v; acknowledged: %v", disabled, s.disabled)
		}
		s.disabled, s.open = service.Disabled != nil, false
	}
}

// checkNewest wants the newest acknowledged version in force, or one whose answer the kill swallowed.
func (w *worker) checkNewest() {
	w.t.Helper()
	newest := 0
	for version := range w.policies {
		newest = max(newest, version)
	}
	current, err := w.admin.Policy(w.t.Context(), 0)
	if err != nil || current.Version < newest || current.Version > newest+1 {
		w.t.Fatalf("version %d is in force, and %d was acknowledged: %v", current.Version, newest, err)
	}
	w.policies[current.Version] = current.Document
}
