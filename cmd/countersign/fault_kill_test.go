package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"
)

// switchState is what is known of a service's state: an answer says it, a request without one leaves it open.
type switchState struct {
	disabled, open bool
}

// kill -9 while certificates and machine tokens are issued, users' tokens are exchanged along two hops, keys rotate,
// policies are applied and a service is disabled and enabled. After each restart everything that was answered is there:
// certificates, the record of each token with its user, transaction and parent, each policy byte by byte, the newest in
// force, states as answered; and a relay token that was answered before is good for its next hop.
func TestFaultKill(t *testing.T) {
	t.Run("plain", func(t *testing.T) { killRounds(t, plainBinary(t), 12) })
	t.Run("race", func(t *testing.T) { killRounds(t, raceBinary(t), 4) })
}

func killRounds(t *testing.T, bin string, rounds int) {
	i := newInstance(t, bin, "COUNTERSIGN_TOKEN_LEAD=2s")
	w := newWorker(t, i)
	b := w.joined(t, "b")
	var state switchState
	for range rounds {
		ctx, stop := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for _, do := range []func() error{
			func() error { return w.enrol(ctx) },
			func() error { return w.applyPolicy(ctx, fmt.Sprint(rand.Uint64())) },
			func() error { return w.toggle(ctx, &state) },
		} {
			group.Go(func() { untilError(ctx, do) })
		}
		entry, next := w.service(), w.client(b)
		group.Go(func() { untilError(ctx, func() error { return w.token(ctx, entry) }) })
		group.Go(func() { untilError(ctx, func() error { return w.relay(ctx, entry, next) }) })
		group.Go(func() { rotateLoop(ctx, t, i) })
		time.Sleep(50*time.Millisecond + rand.N(300*time.Millisecond))
		i.stop(t, syscall.SIGKILL)
		stop()
		group.Wait()
		i.start(t)
		w.check()
		w.checkNewest()
		w.checkState(&state)
		if w.relayed != "" {
			if _, err := w.exchange(t.Context(), w.client(b), w.relayed, "c"); err != nil {
				t.Fatalf("a relay token of before the kill: %v", err)
			}
		}
	}
	relayed := 0
	for _, token := range w.acked.tokens {
		if token.Parent != "" {
			relayed++
		}
	}
	if len(w.acked.serials) == 0 || len(w.acked.tokens) == 2*relayed || relayed == 0 || len(w.policies) < 3 {
		t.Errorf("too little was acknowledged: %d certificates, %d tokens, %d of them second hops, %d policies",
			len(w.acked.serials), len(w.acked.tokens), relayed, len(w.policies))
	}
	t.Logf("%d certificates, %d tokens, %d of them second hops, %d policies", len(w.acked.serials), len(w.acked.tokens), relayed, len(w.policies))
}

func untilError(ctx context.Context, do func() error) {
	for ctx.Err() == nil {
		if do() != nil {
			return
		}
	}
}

// toggle disables service d, or enables it.
func (w *worker) toggle(ctx context.Context, s *switchState) error {
	call := w.admin.DisableService
	if s.disabled {
		call = w.admin.EnableService
	}
	s.open = true
	if err := call(ctx, "d", "kill test"); err != nil {
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
		if service.Name != "d" {
			continue
		}
		if disabled := service.Disabled != nil; !s.open && disabled != s.disabled {
			w.t.Fatalf("service d is disabled: %v; acknowledged: %v", disabled, s.disabled)
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
