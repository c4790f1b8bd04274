package sts

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
)

// metrics counts answers. Labels come from the table of codes, never from a request.
type metrics struct {
	exchanges *prometheus.CounterVec
	duration  prometheus.Histogram

	revocations    *prometheus.CounterVec
	introspections *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, revocations func() int) (*metrics, error) {
	m := &metrics{
		exchanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_exchanges_total", Help: "Token requests by result (issued, denied, failed) and code.",
		}, []string{"result", "code"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "countersign_exchange_duration_seconds", Help: "Time to answer a token request, its audit record included.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16),
		}),
	}
	m.revocations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "countersign_revocations_total", Help: "Revocations that were made, by kind (jti, txn, sid, sub, service).",
	}, []string{"kind"})
	m.introspections = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "countersign_introspections_total", Help: "Introspections by answer (active, inactive).",
	}, []string{"answer"})
	if r == nil {
		return m, nil
	}
	inForce := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "countersign_revocations", Help: "Revocations that are kept; at 131072 there is no room for more.",
	}, func() float64 { return float64(revocations()) })
	for _, c := range []prometheus.Collector{m.exchanges, m.duration, m.revocations, m.introspections, inForce} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the token metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(err error, took time.Duration) {
	result, code := "issued", ""
	if err != nil {
		e := countersign.AsError(err)
		result, code = "denied", string(e.Code)
		if e.Kind == countersign.Internal || e.Kind == countersign.Unavailable {
			result = "failed"
		}
	}
	m.exchanges.WithLabelValues(result, code).Inc()
	m.duration.Observe(took.Seconds())
}
