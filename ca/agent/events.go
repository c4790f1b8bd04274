package agent

import (
	"context"
	"log/slog"
	"time"

	"github.com/countersign/countersign/ca/mtls"
)

// levelCritical is above Error: hours are left, or less.
const levelCritical = slog.LevelError + 4

// level is how loud a failed renewal is told: louder the less of the lifetime is left.
func (s State) level() slog.Level {
	switch s {
	case StateOK:
		return slog.LevelInfo
	case StateLate:
		return slog.LevelWarn
	case StateLow, StateNone:
		return slog.LevelError
	}
	return levelCritical
}

// event takes what happened to the source into the log and the metrics.
func (k *keeper) event(e mtls.Event) {
	name, ctx := k.cfg.name(), context.Background()
	switch e.Kind {
	case mtls.Enrolled, mtls.Renewed:
		k.metrics.renewed(name)
		k.log.Info("the certificate is new", "how", string(e.Kind), "serial", e.Serial)
	case mtls.Failed:
		k.metrics.failed(name, string(e.Reason))
		var s mtls.Status
		if src := k.opened.Load(); src != nil {
			s = src.Status()
		}
		now := k.now()
		k.log.Log(ctx, stateAt(now, s.NotBefore, s.NotAfter).level(), "no new certificate; it is tried again", "reason", string(e.Reason), "err", e.Err,
			"failures", s.Failures, "left", max(0, s.NotAfter.Sub(now).Round(time.Second)).String())
	case mtls.Expired:
		k.log.Log(ctx, levelCritical, "the certificate is over; it is tried on", "serial", e.Serial)
	case mtls.Skewed:
		k.log.Log(ctx, slog.LevelError, skewText(e.Skew), "skew", e.Skew.Round(time.Second).String())
	default:
		k.log.Info("the identity changed", "how", string(e.Kind), "serial", e.Serial)
	}
}

// skewText says whose clock is off, and by how much.
func skewText(skew time.Duration) string {
	side := "ahead of"
	if skew < 0 {
		side, skew = "behind", -skew
	}
	return "the clock of this machine is " + skew.Round(time.Second).String() + " " + side + " the authority's: set it right (NTP)"
}
