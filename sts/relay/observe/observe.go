package observe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
)

// Config of one listener. Registry and Logger are needed.
type Config struct {
	Listener string  // public, internal or outbound: a label of the metrics, and in the log
	Trust    bool    // who asks is inside: his request id and his trace are carried on. False at a public listener
	Sample   float64 // share of the traces begun here that are sampled, 0 to 1
	Registry prometheus.Registerer
	Logger   *slog.Logger
}

// New is the outermost layer of a listener: it goes around every request, also those without a route.
func New(cfg Config) (func(http.Handler) http.Handler, error) {
	switch {
	case cfg.Listener == "" || cfg.Registry == nil || cfg.Logger == nil:
		return nil, errors.New("a listener is observed under its name, with a registry and a logger")
	case !(cfg.Sample >= 0 && cfg.Sample <= 1): // also not a NaN
		return nil, fmt.Errorf("the share of sampled traces is %v: it must be 0 to 1", cfg.Sample)
	}
	m, err := newMetrics(cfg.Registry, cfg.Listener)
	if err != nil {
		return nil, err
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { cfg.serve(m, next, w, r) })
	}, nil
}

func (cfg *Config) serve(m *metrics, next http.Handler, w http.ResponseWriter, r *http.Request) {
	begun := time.Now()
	request := &Request{
		ID: readRequestID(r.Header, cfg.Trust), Trace: readTrace(r.Header, cfg.Trust, cfg.Sample),
		metrics: m, who: Identity{Address: PeerAddress(r)},
	}
	request.Trace.write(r.Header, cfg.Trust)
	r.Header.Set(RequestID, request.ID)
	w.Header().Set(RequestID, request.ID)
	counted := &writer{ResponseWriter: w}
	r = r.WithContext(NewContext(r.Context(), request))
	defer func() {
		// An aborted answer goes on panicking: net/http then cuts the connection, so that nobody takes the part for the whole.
		aborted := recover()
		if aborted != nil && aborted != http.ErrAbortHandler {
			aborted = cfg.broken(aborted, counted, r)
		}
		cfg.account(m, counted, r, time.Since(begun), aborted != nil)
		if aborted != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	next.ServeHTTP(counted, r)
}

// broken makes one answer of 500 of a panic, or aborts the answer that had begun.
func (cfg *Config) broken(p any, w *writer, r *http.Request) (aborted any) {
	err := fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	w.mu.Lock()
	begun := w.status != 0
	w.mu.Unlock()
	if begun {
		From(r.Context()).setCode(countersign.CodeInternal)
		From(r.Context()).Fail(err)
		return http.ErrAbortHandler
	}
	Refuse(w, r, countersign.Errorf(countersign.CodeInternal, "internal error").Because(err))
	return nil
}

// account writes the one line of the access log, and counts.
func (cfg *Config) account(m *metrics, w *writer, r *http.Request, took time.Duration, aborted bool) {
	status, bytes, upgraded := w.result()
	request := From(r.Context())
	route, who, code, cause := request.Route(), request.Identity(), request.Code(), request.Failed()
	m.leave(route, status, code, took, upgraded)
	if route == "" {
		route = noRoute
	}
	attrs := []slog.Attr{
		slog.String("listener", cfg.Listener), slog.String("method", method(r.Method)), slog.String("route", route),
		slog.Int("status", status), slog.Int64("bytes", bytes), slog.Duration("duration", took),
		slog.String("user", who.User), slog.String("client", who.Client), slog.String("addr", who.Address.String()),
		slog.String("request_id", request.ID), slog.String("trace_id", request.Trace.ID), slog.String("span_id", request.Trace.Span),
	}
	if code != "" {
		attrs = append(attrs, slog.String("code", string(code)))
	}
	if aborted {
		attrs = append(attrs, slog.Bool("aborted", true))
	}
	if cause != nil {
		attrs = append(attrs, slog.Any("error", cause))
	}
	level := slog.LevelInfo
	if code == countersign.CodeInternal {
		level = slog.LevelError
	}
	cfg.Logger.LogAttrs(context.WithoutCancel(r.Context()), level, "request", attrs...)
}

// method keeps words that a stranger made up out of the log.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "OTHER"
}
