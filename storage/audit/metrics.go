package audit

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	registerer prometheus.Registerer // may be nil
	registered []prometheus.Collector

	records    prometheus.Counter
	drain      prometheus.Histogram
	checkpoint prometheus.Gauge
}

// newMetrics makes the metrics of l and registers them, all or none.
func newMetrics(l *Log) (*metrics, error) {
	const space, sub = "countersign", "audit"
	m := &metrics{
		registerer: l.cfg.Registerer,
		records: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: space, Subsystem: sub, Name: "records_total",
			Help: "Events made durable since the start.",
		}),
		drain: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: space, Subsystem: sub, Name: "drain_seconds",
			Help:    "Time to make what waited durable: one write and one fdatasync.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 14), // 0.1 ms to 0.8 s
		}),
		checkpoint: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: space, Subsystem: sub, Name: "checkpoint_timestamp_seconds",
			Help: "When the head was last signed; 0: not since the start.",
		}),
	}
	depth := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: space, Subsystem: sub, Name: "queue_events", Help: "Events that wait for the writer.",
	}, func() float64 { return float64(l.queue.depth()) })
	head := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: space, Subsystem: sub, Name: "head_sequence", Help: "Sequence of the newest durable record.",
	}, func() float64 {
		if t := l.head.Load(); t != nil {
			return float64(t.seq)
		}
		return 0
	})
	if m.registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.records, m.drain, m.checkpoint, depth, head} {
		if err := m.registerer.Register(c); err != nil {
			m.unregister()
			return nil, fmt.Errorf("register the metrics of the audit log: %w", err)
		}
		m.registered = append(m.registered, c)
	}
	return m, nil
}

// unregister makes room for the metrics of the next Open.
func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
	m.registered = nil
}
