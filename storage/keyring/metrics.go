package keyring

import "github.com/prometheus/client_golang/prometheus"

// collector computes the metrics when they are asked for, from the clock, as everything else here.
type collector struct{ ring *Ring }

func (collector) sealed() *prometheus.Desc {
	return prometheus.NewDesc("countersign_keyring_sealed", "1 while nothing can be signed for want of the KEK.", nil, nil)
}

func (collector) rotations() *prometheus.Desc {
	return prometheus.NewDesc("countersign_key_rotations_total", "Rotations of token and svid keys made by this process.", nil, nil)
}

func (collector) age() *prometheus.Desc {
	return prometheus.NewDesc("countersign_key_age_seconds", "How long the active key has been signing.", []string{"purpose", "alg"}, nil)
}

func (collector) signsUntil() *prometheus.Desc {
	return prometheus.NewDesc("countersign_key_signs_until_timestamp_seconds",
		"When the active key ceases to sign; absent while that is open.", []string{"purpose", "alg"}, nil)
}

func (collector) up() *prometheus.Desc {
	return prometheus.NewDesc("countersign_kms_up", "1 while the keys in the token can be used.", []string{"token"}, nil)
}

func (collector) losses() *prometheus.Desc {
	return prometheus.NewDesc("countersign_kms_losses_total", "How often the token was lost since the start.", []string{"token"}, nil)
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.sealed(), c.rotations(), c.age(), c.signsUntil(), c.up(), c.losses()} {
		out <- d
	}
}

// Collect implements prometheus.Collector. Of several active keys of a purpose and algorithm the newest counts.
func (c collector) Collect(out chan<- prometheus.Metric) {
	isSealed := 0.0
	if c.ring.Sealed() {
		isSealed = 1
	}
	out <- prometheus.MustNewConstMetric(c.sealed(), prometheus.GaugeValue, isSealed)
	out <- prometheus.MustNewConstMetric(c.rotations(), prometheus.CounterValue, float64(c.ring.rotations.Load()))
	for _, d := range c.ring.devices {
		up := 1.0
		if d.usable() != nil {
			up = 0
		}
		token := d.place.String()
		out <- prometheus.MustNewConstMetric(c.up(), prometheus.GaugeValue, up, token)
		out <- prometheus.MustNewConstMetric(c.losses(), prometheus.CounterValue, float64(d.losses.Load()), token)
	}
	now, snap := c.ring.cfg.Now(), c.ring.snap.Load()
	for of := range snap.signing {
		k, ok := snap.active(of, now)
		if !ok {
			continue
		}
		labels := []string{string(of.purpose), of.alg}
		out <- prometheus.MustNewConstMetric(c.age(), prometheus.GaugeValue, now.Sub(k.SignsFrom).Seconds(), labels...)
		if !k.SignsUntil.IsZero() {
			out <- prometheus.MustNewConstMetric(c.signsUntil(), prometheus.GaugeValue, float64(k.SignsUntil.Unix()), labels...)
		}
	}
}
