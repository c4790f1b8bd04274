package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are counters that last, and gauges that are read from the status when somebody asks: an identity that is no longer
// kept is no longer there.
type metrics struct {
	status   func() Status
	failures *prometheus.CounterVec
	renewals *prometheus.CounterVec
	hooks    *prometheus.CounterVec

	notAfter, ready, reloadOK, budget, skew *prometheus.Desc
}

func newMetrics(status func() Status) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "countersign", Subsystem: "agent", Name: name, Help: help}, append([]string{"identity"}, labels...))
	}
	gauge := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("countersign_agent_"+name, help, []string{"identity"}, nil)
	}
	return &metrics{
		status:   status,
		failures: counter("renew_failures_total", "Attempts at a certificate that failed, by reason.", "reason"),
		renewals: counter("renewals_total", "Certificates that were fetched, the first one too."),
		hooks:    counter("hook_failures_total", "Hooks that failed after a change.", "hook"),
		notAfter: gauge("not_after_seconds", "When the certificate ends, in seconds since 1970; 0: there is none."),
		ready:    gauge("ready", "1 while at least a sixth of the lifetime is left."),
		reloadOK: gauge("reload_ok", "0 while the program has not taken the newest certificate and should have."),
		budget:   gauge("outage_budget_seconds", "How long the authority may be away from now on without harm."),
		skew:     gauge("skew_seconds", "By how much this machine's clock is ahead of the authority's."),
	}
}

func (m *metrics) renewed(name string)        { m.renewals.WithLabelValues(name).Inc() }
func (m *metrics) failed(name, reason string) { m.failures.WithLabelValues(name, reason).Inc() }
func (m *metrics) hookFailed(name, h string)  { m.hooks.WithLabelValues(name, h).Inc() }

// Describe is prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Collector{m.failures, m.renewals, m.hooks} {
		c.Describe(out)
	}
	for _, d := range []*prometheus.Desc{m.notAfter, m.ready, m.reloadOK, m.budget, m.skew} {
		out <- d
	}
}

// Collect is prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.failures, m.renewals, m.hooks} {
		c.Collect(out)
	}
	for _, i := range m.status().Identities {
		for _, g := range []struct {
			desc  *prometheus.Desc
			value float64
		}{
			{m.notAfter, seconds(i.NotAfter)}, {m.ready, truth(i.State.ready())}, {m.reloadOK, truth(i.Reload.OK)},
			{m.budget, i.Budget}, {m.skew, i.Skew},
		} {
			out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value, i.Name)
		}
	}
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
