package mtls

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

const (
	longPoll   = 25 * time.Second
	feedFirst  = time.Second // waits after failures: twice as long each time, to feedMost, with jitter
	feedMost   = 4 * time.Second
	feedPatrol = time.Second // kept connections are judged again so often: certificates of ours end too
)

type callers struct{}

// Callers admits the services that the call graph lets call this one, as the authority tells (GET /v1/callers): edges and
// revocations, at the handshake and, within seconds, on kept connections, which are closed. What was told last is kept in Dir
// and counts while the authority is gone, until the own certificate is over; before anything was told, nobody is admitted.
func Callers() Authorizer { return callers{} }

func (callers) begin(src *Source) { src.feed.begin() }

func (callers) authorize(src *Source, p peer) error {
	if _, err := src.usable(); err != nil {
		return err
	}
	g, until := src.feed.now()
	switch {
	case g == nil:
		return errors.New("the authority has not said yet who may call")
	case src.now().After(until):
		return errors.New("the authority has not said who may call since the certificate of then")
	}
	return g.admits(p)
}

// graph is what the feed said, for look-ups. It is never changed.
type graph struct {
	told    wire.Callers
	ids     map[countersign.ID]bool
	serials map[string]bool
	keys    map[string]bool
}

func (g *graph) admits(p peer) error {
	switch {
	case !g.ids[p.id]:
		return errors.New("the call graph has no call from it to this service")
	case g.serials[p.serial]:
		return errors.New("its certificate is revoked")
	case g.keys[p.spki]:
		return errors.New("its key is compromised")
	}
	return nil
}

// readGraph judges what the feed or its file says: it must be for this service, and whole. It is pure.
func readGraph(c wire.Callers, own countersign.ID) (*graph, error) {
	if c.Service != own {
		return nil, fmt.Errorf("it says who may call %q and not %s", c.Service, own)
	}
	g := &graph{told: c, ids: map[countersign.ID]bool{}, serials: map[string]bool{}, keys: map[string]bool{}}
	for _, caller := range c.Callers {
		if caller.ID.Kind() != countersign.ServiceID || caller.ID.TrustDomain() != own.TrustDomain() {
			return nil, fmt.Errorf("it names %q, which is no service of %s", caller.ID, own.TrustDomain())
		}
		g.ids[caller.ID] = true
	}
	for _, s := range c.Revoked.Serials {
		if !lowerHex(s, 32) {
			return nil, fmt.Errorf("it names the serial %.40q", s)
		}
		g.serials[s] = true
	}
	for _, s := range c.Revoked.Keys {
		if !lowerHex(s, 2*sha256.Size) {
			return nil, fmt.Errorf("it names the key %.80q", s)
		}
		g.keys[s] = true
	}
	return g, nil
}

func lowerHex(s string, length int) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(s) == length
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// callersFeed follows GET /v1/callers for a source, once somebody wants it.
type callersFeed struct {
	src  *Source
	once sync.Once
	runs sync.WaitGroup

	mu    sync.Mutex
	graph *graph
	until time.Time // how long it counts: the end of the certificate that was the own one when it was last said
}

func newCallersFeed(s *Source) *callersFeed { return &callersFeed{src: s} }

// begin starts the feed. What the file says counts at once.
func (f *callersFeed) begin() {
	f.once.Do(func() {
		if f.src.life.Err() != nil {
			return
		}
		f.recall()
		f.tidy()
		f.runs.Add(2)
		go f.follow()
		go f.patrol()
	})
}

// wait waits for the end of what begin started, and keeps it from starting.
func (f *callersFeed) wait() {
	f.once.Do(func() {})
	f.runs.Wait()
}

func (f *callersFeed) now() (*graph, time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.graph, f.until
}

// follow asks again and again; each answer counts at once.
func (f *callersFeed) follow() {
	defer f.runs.Done()
	ctx, tag, pause := f.src.life, "", time.Duration(0)
	for ctx.Err() == nil {
		f.recall()
		changed := f.src.Changed()
		next, err := f.ask(ctx, tag)
		if err == nil {
			tag, pause = next, 0
			continue
		}
		if pause == 0 && ctx.Err() == nil {
			f.src.cfg.Logger.Warn("who may call can't be asked for; what was said last counts", "error", err)
		}
		pause = min(max(2*pause, feedFirst), feedMost)
		wait := max(pause/2+part(pause/2, random()), min(busyFor(err), time.Minute))
		select {
		case <-ctx.Done():
		case <-changed: // perhaps the identity that was missing
		case <-time.After(wait):
		}
	}
}

// ask asks once, for as long as nothing changes.
func (f *callersFeed) ask(ctx context.Context, tag string) (string, error) {
	c, own, err := f.src.clientNow()
	if err != nil {
		return tag, err
	}
	told, next, changed, err := c.Callers(ctx, tag, longPoll)
	if err != nil {
		return tag, err
	}
	g, until := f.now()
	if changed {
		if g, err = readGraph(told, own.ID); err != nil {
			return tag, &answerError{err}
		}
	}
	if g == nil {
		return "", &answerError{errors.New("nothing changed, it says, and nothing was said before")}
	}
	if !changed && until.Equal(own.NotAfter) {
		return next, nil
	}
	f.take(g, own.NotAfter)
	if err := f.remember(g, own.NotAfter); err != nil {
		f.src.cfg.Logger.Warn("who may call can't be kept for the next start", "error", err)
	}
	return next, nil
}

func (f *callersFeed) take(g *graph, until time.Time) {
	f.mu.Lock()
	f.graph, f.until = g, until
	f.mu.Unlock()
	if n := f.src.conns.sweep(); n > 0 {
		f.src.cfg.Logger.Info("connections of callers that may no longer call were closed", "connections", n)
	}
}

// patrol judges the kept connections again when the feed says nothing: the own certificate may be over.
func (f *callersFeed) patrol() {
	defer f.runs.Done()
	tick := time.NewTicker(feedPatrol)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.src.conns.sweep()
		case <-f.src.life.Done():
			f.src.conns.sweep()
			return
		}
	}
}
