package api

import (
	"context"
	"net/http"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// Clock is the guard of the daemon's clock.
type Clock interface {
	// State is what the clocks say now.
	State() wire.Clock
	// Confirm says that the wall clock is right; seen is what time it is, as the caller knows it. It is recorded before it
	// takes effect. Without a doubt it changes nothing.
	Confirm(ctx context.Context, by countersign.Caller, seen time.Time) error
}

// clock tells whether the clock is believed.
func (s *Server) clock(rq *request) error {
	if s.Clock == nil {
		return errNoClock()
	}
	return rq.answer(http.StatusOK, s.Clock.State())
}

// confirmClock ends a doubt about the clock.
func (s *Server) confirmClock(rq *request) error {
	var in wire.ClockConfirmation
	if err := rq.decodeJSON(&in); err != nil {
		return err
	}
	if s.Clock == nil {
		return errNoClock()
	}
	if in.Time.IsZero() {
		return countersign.Errorf(countersign.CodeParameter, "time is missing: what time is it, by a clock that you believe?")
	}
	if err := s.Clock.Confirm(rq.Request().Context(), rq.caller, in.Time); err != nil {
		return err
	}
	return rq.answer(http.StatusOK, s.Clock.State())
}

func errNoClock() error {
	return countersign.Errorf(countersign.CodeNoRoute, "the clock is not guarded here")
}
