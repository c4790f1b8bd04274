package mtls

import (
	"context"
	"time"
)

// WaitCallers waits until it is known who may call this service, from the authority or from what it said before, so that a
// server that has just started refuses nobody for not having heard yet. It is for a source whose [Callers] a [Server] uses; without
// one it waits for ctx.
func (s *Source) WaitCallers(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if g, _ := s.feed.now(); g != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.life.Done():
			return ErrClosed
		}
	}
}
