package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
)

// Config of an [Authority]. Store, Audit, Keys, Policy and TrustDomain are required.
type Config struct {
	Store       storage.Store
	Audit       *audit.Log
	Keys        *keyring.Ring
	Policy      func() *countersign.Policy // the policy in force; never nil
	TrustDomain string
	DNS         []string         // the daemon's own names: DNS names and IP addresses
	Now         func() time.Time // nil: time.Now
	Logger      *slog.Logger     // nil: discards

	ServiceTTL      time.Duration // unless the policy says otherwise; 1 min to 90 d, default 24 h
	OperatorTTL     time.Duration // default 30 d
	ServerTTL       time.Duration // the daemon's own certificate, default 7 d
	IntermediateTTL time.Duration // default 365 d
	RootTTL         time.Duration // default 3650 d
	JoinTTL         time.Duration // of join tokens unless asked for; 1 min to 24 h, default 10 min

	Registerer prometheus.Registerer // nil: metrics are counted and shown nowhere
}

const (
	day     = 24 * time.Hour
	minTTL  = time.Minute
	maxTTL  = 90 * day
	maxJoin = day
)

// withDefaults fills what is unset and refuses what can't work.
func (c Config) withDefaults() (Config, error) {
	if c.Store == nil || c.Audit == nil || c.Keys == nil || c.Policy == nil {
		return c, errors.New("ca: Config lacks Store, Audit, Keys or Policy")
	}
	if err := countersign.CheckTrustDomain(c.TrustDomain); err != nil {
		return c, fmt.Errorf("ca: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		name                   string
		value                  *time.Duration
		otherwise, least, most time.Duration
	}{
		{"ServiceTTL", &c.ServiceTTL, day, minTTL, maxTTL},
		{"OperatorTTL", &c.OperatorTTL, 30 * day, minTTL, maxTTL},
		{"ServerTTL", &c.ServerTTL, 7 * day, minTTL, maxTTL},
		{"IntermediateTTL", &c.IntermediateTTL, 365 * day, minTTL, 100 * 365 * day},
		{"RootTTL", &c.RootTTL, 3650 * day, minTTL, 100 * 365 * day},
		{"JoinTTL", &c.JoinTTL, 10 * time.Minute, minTTL, maxJoin},
	} {
		if *d.value == 0 {
			*d.value = d.otherwise
		}
		if *d.value < d.least || *d.value > d.most {
			return c, fmt.Errorf("ca: %s is %v; it may be %v to %v", d.name, *d.value, d.least, d.most)
		}
	}
	return c, nil
}

// Authority issues certificates. It is safe for concurrent use.
type Authority struct {
	cfg     Config
	dns     []string // of cfg.DNS
	ips     []net.IP // of cfg.DNS
	issuers issuers  // never changes after Open
	metrics *metrics
	chains  chainCache
	judged  judged
	flights flights
}

// Open reads the authority that [Init] made and settles what a crash left open: see [Authority.Run].
func Open(ctx context.Context, cfg Config) (*Authority, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Authority{cfg: cfg}
	for _, name := range cfg.DNS {
		if ip := net.ParseIP(name); ip != nil {
			a.ips = append(a.ips, ip)
			continue
		}
		a.dns = append(a.dns, strings.ToLower(name))
	}
	if a.issuers, err = loadIssuers(ctx, cfg); err != nil {
		return nil, err
	}
	if a.metrics, err = newMetrics(cfg.Registerer, a.issuers); err != nil {
		return nil, err
	}
	if err := a.settleAll(ctx); err != nil {
		return nil, fmt.Errorf("settle what was open: %w", err)
	}
	if err := a.indexRevoked(ctx); err != nil {
		return nil, fmt.Errorf("index what is revoked: %w", err)
	}
	return a, nil
}

// Roots are the trust anchors.
func (a *Authority) Roots() []*x509.Certificate { return certificates(a.issuers.roots) }

// Intermediates are the certificates that sign leaves.
func (a *Authority) Intermediates() []*x509.Certificate {
	return certificates(a.issuers.intermediates)
}

// Issuer is a signing certificate as [Status] shows it.
type Issuer struct {
	Subject     string    `json:"subject"`
	Fingerprint string    `json:"fingerprint"` // lower-case hex SHA-256 of the certificate
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	KeyID       string    `json:"key_id"` // in the keyring
}

// Status is the state of the authority.
type Status struct {
	Roots         []Issuer `json:"roots"`
	Intermediates []Issuer `json:"intermediates"`
	Issued        uint64   `json:"issued"` // by this process
	Denied        uint64   `json:"denied"` // by this process
}

// Status tells what signs, until when, and how much was done since the start. Its cost does not grow with the inventory.
func (a *Authority) Status(context.Context) (Status, error) {
	s := Status{Issued: a.metrics.issuedCount.Load(), Denied: a.metrics.deniedCount.Load()}
	for _, i := range a.issuers.roots {
		s.Roots = append(s.Roots, i.describe())
	}
	for _, i := range a.issuers.intermediates {
		s.Intermediates = append(s.Intermediates, i.describe())
	}
	return s, nil
}
