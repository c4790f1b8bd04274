package ca

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
)

// metrics of the authority; the counts are those that Status shows too.
type metrics struct {
	issued      *prometheus.CounterVec
	denied      *prometheus.CounterVec
	blocked     *prometheus.CounterVec
	ends        *prometheus.GaugeVec
	responders  *prometheus.GaugeVec
	ocsp        *prometheus.CounterVec
	issuedCount atomic.Uint64
	deniedCount atomic.Uint64
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		issued: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_certificates_issued_total", Help: "Certificates issued, by profile and way.",
		}, []string{"kind", "how"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_certificates_denied_total", Help: "Requests about certificates that were refused, by code.",
		}, []string{"code"}),
		blocked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_lineages_blocked_total", Help: "Lineages of certificates that were blocked, by reason. keyCompromise without a command means that two hold one key.",
		}, []string{"reason"}),
		ends: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "countersign_authority_not_after_seconds", Help: "When a signing certificate ends, as Unix time.",
		}, []string{"role", "serial"}),
		responders: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "countersign_ocsp_responder_not_after_seconds", Help: "When the certificate with which OCSP answers of an issuer are signed ends, as Unix time.",
		}, []string{"issuer"}),
		ocsp: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "countersign_ocsp_responses_total", Help: "OCSP responses by status (RFC 6960 4.2.1), and whether they cost a signature.",
		}, []string{"status", "signed"}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.issued, m.denied, m.blocked, m.ends, m.responders, m.ocsp} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// show shows the ends of all that is not retired.
func (m *metrics) show(s *issuers) {
	m.ends.Reset()
	for _, i := range s.all {
		if i.Retired.IsZero() {
			m.ends.WithLabelValues(string(i.Role), i.serial).Set(float64(i.cert.NotAfter.Unix()))
		}
	}
}

func (m *metrics) countIssued(p Profile, how string) {
	m.issued.WithLabelValues(string(p), how).Inc()
	m.issuedCount.Add(1)
}

func (m *metrics) countDenied(code countersign.Code) {
	m.denied.WithLabelValues(string(code)).Inc()
	m.deniedCount.Add(1)
}
