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
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/sts"
)

// tracked is a request's context with what its one line in the log tells. observe makes it; all after it share the one.
type tracked struct {
	echo.Context
	id     string
	caller countersign.Caller // as far as it is known
	proof  *sts.Attestation   // of a caller by attestation
	stream bool

	renewal ca.Renewal // of a caller by a proof of renewal
}

// trackOf is nil before observe.
func trackOf(c echo.Context) *tracked {
	switch c := c.(type) {
	case *tracked:
		return c
	case *request:
		return trackOf(c.Context)
	}
	return nil
}

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
			t := &tracked{Context: c, id: newRequestID()}
			s.metrics.inflight.Inc()
			defer s.metrics.inflight.Dec()
			s.commonHeaders(t, oauth[c.Path()])
			if err := recovered(next, t); err != nil {
				s.writeError(t, err, oauth[c.Path()])
			}
			s.account(t, time.Since(begun))
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

// The values of headers are arrays made once, under names in their canonical form: nobody changes one in place.
type headerValues struct{ nosniff, noStore, noCache []string }

func newHeaderValues() headerValues {
	return headerValues{nosniff: []string{"nosniff"}, noStore: []string{"no-store"}, noCache: []string{"no-cache"}}
}

func (s *Server) commonHeaders(t *tracked, oauth bool) {
	h := t.Response().Header()
	h[wire.RequestID] = []string{t.id}
	h["X-Content-Type-Options"] = s.values.nosniff
	if oauth || strings.HasPrefix(t.Path(), "/v1/") {
		h["Cache-Control"] = s.values.noStore
	}
	if oauth { // RFC 6749 5.1
		h["Pragma"] = s.values.noCache
	}
}

func (s *Server) account(t *tracked, took time.Duration) {
	rq, route := t.Request(), t.Path()
	method := rq.Method
	if route == "" {
		route = "none"
	}
	if !knownMethod(method) {
		method = "OTHER"
	}
	status := t.Response().Status
	s.metrics.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	if !t.stream {
		s.metrics.duration.WithLabelValues(route).Observe(took.Seconds())
	}
	attrs := [8]slog.Attr{
		slog.String("method", method), slog.String("route", route), slog.Int("status", status), slog.Duration("duration", took),
		slog.String("caller", t.caller.Name), slog.String("addr", t.RealIP()), slog.String("request_id", t.id),
	}
	n := 7
	if theirs := rq.Header.Get(wire.RequestID); saneID(theirs) {
		attrs[n] = slog.String("client_request_id", theirs)
		n++
	}
	s.Logger.LogAttrs(rq.Context(), slog.LevelInfo, "request", attrs[:n]...)
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

func requestID(c echo.Context) string {
	if t := trackOf(c); t != nil {
		return t.id
	}
	return ""
}

// known notes who the caller was found to be.
func known(c echo.Context, caller countersign.Caller) {
	if t := trackOf(c); t != nil {
		t.caller = caller
	}
}

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
