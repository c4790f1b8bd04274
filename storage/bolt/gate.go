package bolt

import (
	"context"
	"fmt"
	"sync"

	"github.com/countersign/countersign/storage"
)

// gate knows the last durable transaction. bbolt shows a commit to readers when its meta page is written, which is before
// the fdatasync; whoever saw it waits here, so that no answer tells of something that a power cut could undo.
type gate struct {
	mu      sync.Mutex
	durable int // transaction id
	failed  error
	moved   chan struct{} // closed and renewed when durable or failed changes
}

func (g *gate) init(durable int) {
	g.durable = durable
	g.moved = make(chan struct{})
}

func (g *gate) last() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.durable
}

func (g *gate) move(durable int, failed error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.durable, g.failed = durable, failed
	close(g.moved)
	g.moved = make(chan struct{})
}

// wait returns when transaction id is durable. It's called with no read transaction open.
func (g *gate) wait(ctx context.Context, id int) error {
	for {
		g.mu.Lock()
		durable, failed, moved := g.durable, g.failed, g.moved
		g.mu.Unlock()
		switch {
		case failed != nil:
			return fmt.Errorf("%w: %w", storage.ErrClosed, failed)
		case id <= durable:
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
