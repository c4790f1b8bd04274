package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/cmd/countersign/daemon"
)

const bitFlips = 300

// facts are the answers of a daemon that nothing was done to, by question: its certificates (one is revoked), policy,
// keys and the states of services (one is disabled).
type facts map[string]string

// One bit of the database of a stopped daemon flips: it does not start, or says of a record that it is damaged, or answers
// as before; nothing is missing. The daemon runs in this process, and a few times in its own.
func TestFaultFlips(t *testing.T) {
	i := newInstance(t, plainBinary(t), smallLog()...)
	w := newWorker(t, i)
	serials := w.history(t)
	w.usedToken(t)
	want, err := ask(t.Context(), w.admin, serials)
	if err != nil {
		t.Fatal(err)
	}
	i.stop(t, syscall.SIGTERM)
	store := filepath.Join(i.dir, "countersign.db")
	sound := mustRead(t, store)
	length, size := used(t, store), int64(len(sound))
	segment := filepath.Join(i.dir, "audit", "00000000000000000001.segment")
	log := mustRead(t, segment)[:used(t, segment)]
	seed := rand.Uint64()
	t.Logf("seed %d, %d bytes", seed, length)
	random, counts := rand.New(rand.NewPCG(seed, 0)), map[string]int{}
	for n := range bitFlips {
		bit := random.IntN(length * 8)
		damaged := append([]byte(nil), sound[:length]...)
		damaged[bit/8] ^= 1 << (bit % 8)
		mustWrite(t, store, damaged)
		mustWrite(t, segment, log)
		if err := os.Truncate(store, size); err != nil {
			t.Fatal(err)
		}
		counts[flipped(t, w, serials, want, bit, n%60 == 0)]++
	}
	t.Logf("%v", counts)
	if counts["no start"] == 0 || counts["as before"] == 0 {
		t.Errorf("the flips show nothing: %v", counts)
	}
	mustWrite(t, store, sound)
	mustWrite(t, segment, log)
}

// history enrols, revokes and disables, and gives the serials.
func (w *worker) history(t *testing.T) []string {
	t.Helper()
	for n := range 12 {
		if err := errors.Join(w.enrol(t.Context()), w.applyPolicy(t.Context(), fmt.Sprint("version ", n))); err != nil {
			t.Fatal(err)
		}
	}
	for _, serial := range w.acked.serials[:4] {
		if err := w.admin.Revoke(t.Context(), serial, "keyCompromise"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.admin.DisableService(t.Context(), "c", "flip test"); err != nil {
		t.Fatal(err)
	}
	return w.acked.serials
}

// usedToken makes a join token and uses it up.
func (w *worker) usedToken(t *testing.T) {
	t.Helper()
	token, err := w.joinToken(t.Context(), "b")
	if err == nil {
		err = w.enrolWith(t.Context(), token)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.spent = token
}

// ask puts each question to a daemon. An answer that refuses is left out; any other failure is the error.
func ask(ctx context.Context, c *client.Client, serials []string) (facts, error) {
	found := facts{}
	note := func(question string, answer any, err error) error {
		var refused *client.APIError
		switch {
		case errors.As(err, &refused) && refused.Code() == countersign.CodeDamaged:
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", question, err)
		}
		text, err := json.Marshal(answer)
		found[question] = string(text)
		return err
	}
	var errs []error
	for _, serial := range serials {
		record, err := c.Certificate(ctx, serial)
		errs = append(errs, note("certificate "+serial, record, err))
	}
	for version := range 8 {
		document, err := c.Policy(ctx, version)
		errs = append(errs, note(fmt.Sprint("policy ", version), document, err))
	}
	keys, err := c.Keys(ctx)
	for n := range keys.Keys {
		errs = append(errs, note("key "+keys.Keys[n].ID, keys.Keys[n], nil))
	}
	errs = append(errs, note("keys", len(keys.Keys), err))
	services, err := c.Services(ctx)
	errs = append(errs, note("services", services, err))
	return found, errors.Join(errs...)
}

// flipped starts the daemon on the damaged file and judges what it answers.
func flipped(t *testing.T, w *worker, serials []string, want facts, bit int, process bool) string {
	t.Helper()
	i, c := w.i, w.admin
	start := i.startHere
	if process {
		start = i.startOrEnd
	}
	stop, err := start(t)
	if err != nil {
		if err.Error() == "" {
			t.Errorf("bit %d: no start, and no word of why", bit)
		}
		if process { // the error is what it printed; its exit code was judged
			if !strings.Contains(err.Error(), "next: ") {
				t.Errorf("bit %d: no start, and no word of what to do: %s", bit, err)
			}
			return "no start"
		}
		if f := explain(notStarted(t.Context(), err)); f.Exit != exitLocal || f.Next == "" {
			t.Errorf("bit %d: no start, with exit code %d, %q, next %q", bit, f.Exit, f.What, f.Next)
		}
		return "no start"
	}
	defer c.Close()
	defer stop()
	found, err := ask(t.Context(), c, serials)
	if err != nil {
		t.Errorf("bit %d: %v", bit, err)
	}
	if w.enrolWith(t.Context(), w.spent) == nil {
		t.Errorf("bit %d: a used join token was good again", bit)
	}
	verdict := "as before"
	for question, answer := range want {
		switch got, ok := found[question]; {
		case !ok:
			verdict = "refused"
		case got != answer:
			t.Errorf("bit %d: %s: a silent wrong answer:\n%s\ninstead of\n%s", bit, question, got, answer)
		}
	}
	return verdict
}

// startHere runs the daemon in this process.
func (i *instance) startHere(t *testing.T) (stop func(), err error) {
	t.Helper()
	loaded, err := daemon.Load(i.dir, daemon.LoadOptions{Environ: i.env})
	if err != nil {
		return nil, err
	}
	loaded.Config.Audit.Segment, loaded.Config.Audit.Reserve = 1<<20, 0
	d, err := daemon.Start(t.Context(), daemon.Options{Dir: daemon.Dir(i.dir), Config: loaded.Config})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	return func() { cancel(); <-ended }, nil
}

// startOrEnd runs it in a process of its own, as users do.
func (i *instance) startOrEnd(t *testing.T) (stop func(), err error) {
	t.Helper()
	stopHere, err := i.startHere(t)
	if err != nil {
		code, said := i.startFails(t)
		if code != exitLocal {
			t.Errorf("exit code %d: %s", code, said)
		}
		return nil, errors.New(said)
	}
	stopHere()
	i.start(t)
	return func() { i.stop(t, syscall.SIGKILL) }, nil
}
