package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
)

// waitMost is how long a command waits for its place in all, when more certificates are asked for than the daemon can make. Places
// are up to five minutes away, and somebody sits at the terminal, or a start script has a time limit of its own.
const waitMost = 2 * time.Minute

// atItsPlace asks for a certificate, and once more at each time that a daemon names that is overloaded (CS1023): nothing was done
// by then, and a place is kept. Whatever else is answered is given as it is. It ends with ctx.
func (a *app) atItsPlace(ctx context.Context, ask func() (wire.Certificate, error)) (wire.Certificate, error) {
	for begun := time.Now(); ; {
		cert, err := ask()
		wait, ok := untilPlace(err, rand.Float64())
		if !ok {
			return cert, err
		}
		if time.Since(begun)+wait > waitMost {
			f := explain(err)
			f.Next = fmt.Sprintf("run this again in %s: a place is kept for you then", span(wait))
			return cert, f
		}
		if err := a.waitFor(ctx, wait); err != nil {
			return cert, err
		}
	}
}

// untilPlace is how long it is until the place that the daemon keeps for who asked. Retry-After is cut to seconds, so those of one
// second come spread over the next; u is uniform in [0, 1). Not ok: err keeps no place.
func untilPlace(err error, u float64) (wait time.Duration, ok bool) {
	var e *client.APIError
	if !errors.As(err, &e) || e.Code() != countersign.CodePaced {
		return 0, false
	}
	return max(e.RetryAfter, time.Second) + time.Duration(u*float64(time.Second)), true
}

// waitFor waits, and counts the seconds down on a terminal.
func (a *app) waitFor(ctx context.Context, d time.Duration) error {
	tell, end := a.progress("s until the daemon, which is overloaded, has a place for this certificate ")
	if tell == nil || a.output != defaultOutput {
		tell = func(int64) {}
	}
	defer end()
	over := time.NewTimer(d)
	defer over.Stop()
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for until := time.Now().Add(d); ; {
		tell(int64((time.Until(until) + time.Second - 1) / time.Second))
		select {
		case <-over.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-second.C:
		}
	}
}
