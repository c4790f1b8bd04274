package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	Permit      []string         // name constraints of what signs: suffixes of the DNS names that may be certified; none: all
	Now         func() time.Time // nil: time.Now
	Logger      *slog.Logger     // nil: discards

	ServiceTTL      time.Duration // unless the policy says otherwise; 1 min to 90 d, default 24 h
	OperatorTTL     time.Duration // default 30 d
	ServerTTL       time.Duration // the daemon's own certificate, default 7 d
	IntermediateTTL time.Duration // default 365 d
	RootTTL         time.Duration // default 3650 d
	Grace           time.Duration // for which an ended certificate may still be renewed; 0: none, at most 6 d
	RootLead        time.Duration // from publishing a new root to signing with it; 0: the longest life of a leaf + 73 h
	OperatorKeys    []string      // key types of operators' certificates; nil: all of [KeyTypes]
	ServerKeys      []string      // key types of the daemon's own; nil: all
	JoinTTL         time.Duration // of join tokens unless asked for; 1 min to 24 h, default 10 min

	// PKI is where relying parties reach the lists of [Authority.CRL] and the issuers' certificates: http:// without a slash at
	// the end (RFC 5280 8 wants no https there). It stands in new certificates of services and operators; "": they point nowhere.
	PKI string

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
	if c.Grace < 0 || c.Grace > keepExpired-day {
		return c, fmt.Errorf("ca: Grace is %v; it may be 0 to %v", c.Grace, keepExpired-day)
	}
	if c.PKI != "" {
		if err := CheckPKI(c.PKI); err != nil {
			return c, fmt.Errorf("ca: %w", err)
		}
	}
	if err := CheckPermit(c.Permit); err != nil {
		return c, fmt.Errorf("ca: Permit: %w", err)
	}
	for _, keys := range []*[]string{&c.OperatorKeys, &c.ServerKeys} {
		if *keys == nil {
			*keys = allKeyTypes()
		}
		if err := CheckKeyTypes(*keys); err != nil {
			return c, fmt.Errorf("ca: OperatorKeys, ServerKeys: %w", err)
		}
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
	issuers atomic.Pointer[issuers]
	metrics *metrics
	chains  chainCache
	judged  judged
	flights flights
	lists   lists
	ocsp    *responders

	rolling sync.Mutex // one change of the authority's own certificates at a time
	heldMu  sync.Mutex
	held    map[string]time.Time // by intermediate, when the last certificate of it ends; guarded by heldMu
}

// Open reads the authority that [Init] made and settles what a crash left open: see [Authority.Run].
func Open(ctx context.Context, cfg Config) (*Authority, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Authority{cfg: cfg, ocsp: newResponders()}
	for _, name := range cfg.DNS {
		if ip := net.ParseIP(name); ip != nil {
			a.ips = append(a.ips, ip)
			continue
		}
		a.dns = append(a.dns, strings.ToLower(name))
	}
	if a.metrics, err = newMetrics(cfg.Registerer); err != nil {
		return nil, err
	}
	if err := a.reload(ctx); err != nil {
		return nil, err
	}
	if err := a.readResponders(ctx); err != nil && !errors.Is(err, storage.ErrCorrupt) { // new ones are made then
		return nil, fmt.Errorf("read the OCSP responders: %w", err)
	}
	if err := a.settleAll(ctx); err != nil {
		return nil, fmt.Errorf("settle what was open: %w", err)
	}
	if err := a.indexRevoked(ctx); err != nil {
		return nil, fmt.Errorf("index what is revoked: %w", err)
	}
	return a, nil
}

// reload reads the authority's own certificates anew.
func (a *Authority) reload(ctx context.Context) error {
	s, err := loadIssuers(ctx, a.cfg)
	if err != nil {
		return err
	}
	if old := a.issuers.Load(); old != nil && slices.EqualFunc(old.all, s.all, sameIssuer) {
		return nil
	}
	a.issuers.Store(s)
	a.chains.clear() // what was verified may have hung on one that is retired
	a.metrics.show(s)
	return nil
}

// Roots are the trust anchors, oldest first. The daemon's chain leads to each of them, since a new root is certified by
// the older ones.
func (a *Authority) Roots() []*x509.Certificate {
	return certificates(a.issuers.Load().published(ProfileRoot))
}

// RootsChanged is when the trust anchors last became others, in milliseconds since 1970: it grows whenever one comes or goes.
func (a *Authority) RootsChanged() int64 {
	var at int64
	for _, i := range a.issuers.Load().all {
		if i.Role == ProfileRoot {
			at = max(at, i.cert.NotBefore.UnixMilli(), i.Made.UnixMilli(), i.Retired.UnixMilli())
		}
	}
	return at
}

// Intermediates are the certificates that sign leaves, signed them or are to sign them, oldest first.
func (a *Authority) Intermediates() []*x509.Certificate {
	return certificates(a.issuers.Load().published(ProfileIntermediate))
}

// Signing is the intermediate that signs leaves now.
func (a *Authority) Signing() *x509.Certificate {
	i, _ := a.issuers.Load().signing(a.cfg.Now())
	return i.cert
}
