package sts

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// issuerMetrics tells of the keys of every issuer of the policy in force, and of no other: what leaves the policy takes its
// labels with it.
type issuerMetrics struct {
	policy  func() *countersign.Policy
	issuers *issuers
	age     *prometheus.Desc
	fetches *prometheus.Desc
}

func newIssuerMetrics(policy func() *countersign.Policy, i *issuers) *issuerMetrics {
	return &issuerMetrics{
		policy: policy, issuers: i,
		age: prometheus.NewDesc("countersign_issuer_keys_age_seconds",
			"Time since the last good fetch of the keys of an issuer of the policy; +Inf: there was none.", []string{"issuer"}, nil),
		fetches: prometheus.NewDesc("countersign_issuer_fetches_total",
			"Fetches of the keys of an issuer of the policy by result (good, failed).", []string{"issuer", "result"}, nil),
	}
}

// Describe implements [prometheus.Collector].
func (m *issuerMetrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.age
	out <- m.fetches
}

// Collect implements [prometheus.Collector].
func (m *issuerMetrics) Collect(out chan<- prometheus.Metric) {
	p := m.policy()
	for i := range p.Issuers {
		if p.Issuers[i].JWKS != "" {
			continue // nothing is fetched
		}
		age, good, failed := math.Inf(1), uint64(0), uint64(0)
		if r := m.issuers.known(&p.Issuers[i]); r != nil {
			good, failed = r.Fetches()
			if at, _ := r.Fetched(); !at.IsZero() {
				age = m.issuers.now().Sub(at).Seconds()
			}
		}
		name := p.Issuers[i].Name
		out <- prometheus.MustNewConstMetric(m.age, prometheus.GaugeValue, age, name)
		out <- prometheus.MustNewConstMetric(m.fetches, prometheus.CounterValue, float64(good), name, "good")
		out <- prometheus.MustNewConstMetric(m.fetches, prometheus.CounterValue, float64(failed), name, "failed")
	}
}

// known is the cache of an issuer if its keys were asked for already.
func (i *issuers) known(issuer *countersign.Issuer) *jwt.Remote {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.remotes[sourceOf(issuer)]
}

// IssuerKeys is how the daemon stands with the keys of an issuer of the policy in force.
type IssuerKeys struct {
	Issuer  string    // its name in the policy
	Pinned  bool      // they stand in the policy: nothing is fetched
	Fetched time.Time // the last good fetch; zero: there was none
	Failing bool      // the last fetch was no good
}

// IssuerKeys tells of every issuer of the policy in force, in its order. It asks nobody: it is what Run found.
func (s *Service) IssuerKeys() []IssuerKeys {
	p := s.cfg.Policy()
	all := make([]IssuerKeys, 0, len(p.Issuers))
	for i := range p.Issuers {
		keys := IssuerKeys{Issuer: p.Issuers[i].Name, Pinned: p.Issuers[i].JWKS != ""}
		if r := s.issuers.known(&p.Issuers[i]); r != nil && !keys.Pinned {
			at, err := r.Fetched()
			keys.Fetched, keys.Failing = at, err != nil
		}
		all = append(all, keys)
	}
	return all
}
