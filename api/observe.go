package api

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

const (
	requestIDKey = "request id"
	callerKey    = "caller"
	proofKey     = "proof" // *sts.Attestation
)

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inflight prometheus.Gauge
	ignored  prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) (metrics, error) {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_http_requests_total", Help: "Requests by route template, method and status.",
		}, []string{"route", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "countersign_http_request_duration_seconds", Help: "Time to answer, by route template; streams are left out.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"route"}),
		inflight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "countersign_http_requests_inflight", Help: "Requests that are being served.",
		}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "countersign_http_forwarded_certificates_ignored_total",
			Help: "Requests with Client-Cert, Client-Cert-Chain or x-forwarded-client-cert that had no effect: from a peer that is not in tls.proxies, or does not speak that header.",
		}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.inflight, m.ignored} {
		if err := registry.Register(c); err != nil {
			return metrics{}, fmt.Errorf("register the metrics of the API: %w", err)
		}
	}
	return m, nil
}

// observe goes around every request, also those without a route: its id, the headers of every answer, errors and panics,
// one line in the log, and the metrics. Names of routes are templates: what a stranger sends is never a label.
func (s *Server) observe(oauth map[string]bool) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			begun := time.Now() // durations of a wall clock that tests turn would be wrong
			c.Set(requestIDKey, newRequestID())
			s.metrics.inflight.Inc()
			defer s.metrics.inflight.Dec()
			s.commonHeaders(c, oauth[c.Path()])
			if err := recovered(next, c); err != nil {
				s.writeError(c, err, oauth[c.Path()])
			}
			s.account(c, time.Since(begun))
			return nil
		}
	}
}

// recovered turns a panic into an error, so that one broken handler is one answer of 500 and not the daemon's end.
func recovered(next echo.HandlerFunc, c echo.Context) (err error) {
	defer func() {
		switch p := recover(); {
		case p == nil:
		case p == http.ErrAbortHandler:
			panic(p)
		default:
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return next(c)
}

func (s *Server) commonHeaders(c echo.Context, oauth bool) {
	h := c.Response().Header()
	h.Set(wire.RequestID, requestID(c))
	h.Set("X-Content-Type-Options", "nosniff")
	if oauth || strings.HasPrefix(c.Path(), "/v1/") {
		h.Set("Cache-Control", "no-store")
	}
	if oauth { // RFC 6749 5.1
		h.Set("Pragma", "no-cache")
	}
}

func (s *Server) account(c echo.Context, took time.Duration) {
	route, method := c.Path(), c.Request().Method
	if route == "" {
		route = "none"
	}
	if !knownMethod(method) {
		method = "OTHER"
	}
	status := c.Response().Status
	s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	if c.Get(streamKey) == nil {
		s.metrics.duration.WithLabelValues(route).Observe(took.Seconds())
	}
	caller, _ := c.Get(callerKey).(countersign.Caller)
	attrs := []any{
		"method", method, "route", route, "status", status, "duration", took,
		"caller", caller.Name, "addr", c.RealIP(), "request_id", requestID(c),
	}
	if theirs := c.Request().Header.Get(wire.RequestID); saneID(theirs) {
		attrs = append(attrs, "client_request_id", theirs)
	}
	s.Logger.Log(c.Request().Context(), slog.LevelInfo, "request", attrs...)
}

func knownMethod(m string) bool {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return true
	}
	return false
}

// newRequestID is always our own: an id that a caller could choose would let him write under another request's.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func requestID(c echo.Context) string { id, _ := c.Get(requestIDKey).(string); return id }

// saneID tells whether a caller's own request id may stand in our log.
func saneID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}
