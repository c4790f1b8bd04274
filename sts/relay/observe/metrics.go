package observe

import (
	"fmt"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
)

const noRoute = "none" // the label of requests that no route takes

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inflight *prometheus.GaugeVec
	limited  *prometheus.CounterVec
	refused  *prometheus.CounterVec
}

// newMetrics registers under the label listener, so that each listener of a process has its own.
func newMetrics(registry prometheus.Registerer, listener string) (*metrics, error) {
	registry = prometheus.WrapRegistererWith(prometheus.Labels{"listener": listener}, registry)
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_relay_requests_total", Help: "Requests by route and class of the answer's status.",
		}, []string{"route", "class"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "countersign_relay_request_duration_seconds", Help: "Time to the end of the answer, by route; upgraded connections are left out.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
		}, []string{"route"}),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "countersign_relay_requests_inflight", Help: "Requests that are being served, by route.",
		}, []string{"route"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_relay_rate_limited_total", Help: "Requests that were refused because their bucket was empty, by route.",
		}, []string{"route"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_relay_refused_total", Help: "Requests that the relay itself refused, by route and code (docs/errors.md).",
		}, []string{"route", "code"}),
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration, m.inflight, m.limited, m.refused} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the listener %s: %w", listener, err)
		}
	}
	return m, nil
}

// enter counts a request in, as soon as its route is known.
func (m *metrics) enter(route string) {
	if m != nil {
		m.inflight.WithLabelValues(route).Inc()
	}
}

// leave counts it out.
func (m *metrics) leave(route string, status int, code countersign.Code, took time.Duration, upgraded bool) {
	if route == "" {
		route = noRoute
	} else {
		m.inflight.WithLabelValues(route).Dec()
	}
	m.requests.WithLabelValues(route, classOf(status)).Inc()
	if !upgraded {
		m.duration.WithLabelValues(route).Observe(took.Seconds())
	}
	if code != "" {
		m.refused.WithLabelValues(route, string(code)).Inc()
	}
	if code == countersign.CodeRelayRate {
		m.limited.WithLabelValues(route).Inc()
	}
}

// classOf is 1xx to 5xx.
func classOf(status int) string {
	if status < 100 || status > 599 {
		return "other"
	}
	return strconv.Itoa(status/100) + "xx"
}
