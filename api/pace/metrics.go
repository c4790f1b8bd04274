package pace

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	waited *prometheus.HistogramVec
	putOff *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer, p *Pacer) (metrics, error) {
	m := metrics{
		waited: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "countersign_issuing_waited_seconds", Help: "How long requests for certificates waited that could not be served at once, by line.",
			Buckets: []float64{.005, .025, .1, .25, .5, 1, 2},
		}, []string{"line"}),
		putOff: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_issuing_put_off_total", Help: "Requests for certificates that were told to come again (503, Retry-After), by line.",
		}, []string{"line"}),
	}
	if registry == nil {
		return m, nil
	}
	collectors := []prometheus.Collector{m.waited, m.putOff, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "countersign_issuing_working", Help: "Requests for certificates that are in work.",
	}, func() float64 { p.mu.Lock(); defer p.mu.Unlock(); return float64(p.working) })}
	for _, l := range []Line{Renewals, Enrolments} {
		m.putOff.WithLabelValues(l.String()) // 0 is told too
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "countersign_issuing_waiting", Help: "Requests for certificates that wait, by line.",
			ConstLabels: prometheus.Labels{"line": l.String()},
		}, func() float64 { p.mu.Lock(); defer p.mu.Unlock(); return float64(len(p.lines[l].waiting)) }))
	}
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			return metrics{}, fmt.Errorf("register the metrics of issuing: %w", err)
		}
	}
	return m, nil
}
