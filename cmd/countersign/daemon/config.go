package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
)

// Config is the daemon's configuration, as `countersign.yaml` and the environment give it. Keys are one word a level;
// the environment names them COUNTERSIGN_ + path with _. See [Load] for precedence and [Config.Validate] for ranges.
type Config struct {
	Domain  string   `yaml:"domain" mapstructure:"domain"`   // the trust domain; never changes after init
	Issuer  string   `yaml:"issuer" mapstructure:"issuer"`   // of tokens, exactly; never changes after init
	Listen  string   `yaml:"listen" mapstructure:"listen"`   // public TLS listener
	DNS     []string `yaml:"dns" mapstructure:"dns"`         // the daemon's own names and addresses, for its certificate
	Proxies []string `yaml:"proxies" mapstructure:"proxies"` // prefixes whose X-Forwarded-For is believed

	Ops         OpsConfig         `yaml:"ops" mapstructure:"ops"`
	PKI         PKIConfig         `yaml:"pki" mapstructure:"pki"`
	TLS         TLSConfig         `yaml:"tls" mapstructure:"tls"`
	Keys        KeysConfig        `yaml:"keys" mapstructure:"keys"`
	Token       TokenConfig       `yaml:"token" mapstructure:"token"`
	Certificate CertificateConfig `yaml:"certificate" mapstructure:"certificate"`
	KeyTypes    KeyTypesConfig    `yaml:"keytypes" mapstructure:"keytypes"`
	CA          CAConfig          `yaml:"ca" mapstructure:"ca"`
	Join        JoinConfig        `yaml:"join" mapstructure:"join"`
	Audit       AuditConfig       `yaml:"audit" mapstructure:"audit"`
	Limits      LimitsConfig      `yaml:"limits" mapstructure:"limits"`
	Log         LogConfig         `yaml:"log" mapstructure:"log"`
}

// OpsConfig is the operations listener: plain HTTP for /livez, /readyz and /metrics.
type OpsConfig struct {
	Listen string `yaml:"listen" mapstructure:"listen"`
}

// PKIConfig is the plain HTTP listener for revocation lists, OCSP and issuer certificates; "" is off.
type PKIConfig struct {
	Listen string `yaml:"listen" mapstructure:"listen"`
	URL    string `yaml:"url" mapstructure:"url"` // http://, where others reach it: certificates point there
}

// TLSConfig adds a certificate that public clients trust, served for its own names; the daemon's own serves all others.
type TLSConfig struct {
	Cert string `yaml:"cert" mapstructure:"cert"` // PEM file, leaf first
	Key  string `yaml:"key" mapstructure:"key"`   // PEM file
	Min  string `yaml:"min" mapstructure:"min"`   // "1.3" or "1.2"

	// Proxies are the services that end the TLS connections of OAuth clients and forward their certificates.
	Proxies []TLSProxy `yaml:"proxies" mapstructure:"proxies"`
}

// TokenConfig is about token signing keys.
type TokenConfig struct {
	Lead   Duration `yaml:"lead" mapstructure:"lead"`     // a new key is published this long before it signs
	Rotate Duration `yaml:"rotate" mapstructure:"rotate"` // a key signs this long
}

// CertificateConfig holds the lifetimes of leaf certificates.
type CertificateConfig struct {
	TTL      Duration `yaml:"ttl" mapstructure:"ttl"`           // services, unless the policy says otherwise
	Operator Duration `yaml:"operator" mapstructure:"operator"` // operators
	Server   Duration `yaml:"server" mapstructure:"server"`     // the daemon's own
	Grace    Duration `yaml:"grace" mapstructure:"grace"`       // for which an ended one may still be renewed
}

// KeyTypesConfig holds the key types that certificates may have; those of services stand in the policy.
type KeyTypesConfig struct {
	Operator []string `yaml:"operator" mapstructure:"operator"` // operators
	Server   []string `yaml:"server" mapstructure:"server"`     // the daemon's own; it makes the first
}

// CAConfig holds the lifetimes of the authority's certificates; they matter at init and at rotations.
type CAConfig struct {
	Root         Duration `yaml:"root" mapstructure:"root"`
	Intermediate Duration `yaml:"intermediate" mapstructure:"intermediate"`
	Lead         Duration `yaml:"lead" mapstructure:"lead"` // a new root is published this long before it signs; 0: computed

	// Permit are the suffixes of the DNS names that may be certified: name constraints of what init and rotations make.
	Permit []string `yaml:"permit" mapstructure:"permit"`
}

// JoinConfig is about join tokens.
type JoinConfig struct {
	TTL Duration `yaml:"ttl" mapstructure:"ttl"` // unless the one who makes it says otherwise
}

// AuditConfig is about the audit log on disk.
type AuditConfig struct {
	Segment Size     `yaml:"segment" mapstructure:"segment"`
	Reserve Size     `yaml:"reserve" mapstructure:"reserve"` // held back so that "disk full" is itself audited
	Keep    Duration `yaml:"keep" mapstructure:"keep"`
}

// LimitsConfig bounds what callers may do; 0 is off.
type LimitsConfig struct {
	Identity    int `yaml:"identity" mapstructure:"identity"`       // requests/s of one authenticated identity
	Address     int `yaml:"address" mapstructure:"address"`         // requests/s of one address without a credential
	Connections int `yaml:"connections" mapstructure:"connections"` // open connections in all
	PerHost     int `yaml:"perhost" mapstructure:"perhost"`         // open connections of one address
	Issuing     int `yaml:"issuing" mapstructure:"issuing"`         // requests for certificates in work at a time
	Waiting     int `yaml:"waiting" mapstructure:"waiting"`         // renewals, and as many enrolments, that wait for that
}

// LogConfig is about the log on standard error.
type LogConfig struct {
	Level  string `yaml:"level" mapstructure:"level"`   // debug, info, warn, error
	Format string `yaml:"format" mapstructure:"format"` // text, json
}

// Defaults is the configuration before the file, the environment and the flags have their say.
func Defaults() Config {
	return Config{
		Listen: ":8443",
		DNS:    []string{"localhost"},
		Ops:    OpsConfig{Listen: "127.0.0.1:8444"},
		TLS:    TLSConfig{Min: "1.3"},
		Token:  TokenConfig{Lead: Duration(time.Hour), Rotate: Duration(30 * day)},
		Certificate: CertificateConfig{
			TTL: Duration(day), Operator: Duration(30 * day), Server: Duration(7 * day), Grace: Duration(3 * day),
		},
		KeyTypes: KeyTypesConfig{Operator: ca.KeyTypes(), Server: []string{"P-256"}},
		CA:       CAConfig{Root: Duration(3650 * day), Intermediate: Duration(365 * day)},
		Join:     JoinConfig{TTL: Duration(10 * time.Minute)},
		Audit:    AuditConfig{Segment: 64 * mib, Reserve: 64 * mib, Keep: Duration(400 * day)},
		Limits:   LimitsConfig{Identity: 5000, Address: 50, Connections: 4096, PerHost: 64, Issuing: 256, Waiting: 4096},
		Log:      LogConfig{Level: "info", Format: "text"},
	}
}

// Range says what a duration, size or number of the configuration may be.
type Range struct {
	Key   string `json:"key"`
	Min   string `json:"min"`
	Max   string `json:"max"`
	Why   string `json:"why"`
	check func(Config) bool
}

func durationRange(key string, lo, hi time.Duration, get func(Config) Duration, why string) Range {
	return Range{Key: key, Min: Duration(lo).String(), Max: Duration(hi).String(), Why: why, check: func(c Config) bool {
		d := time.Duration(get(c))
		return d >= lo && d <= hi
	}}
}

func sizeRange(key string, lo, hi Size, get func(Config) Size, why string) Range {
	return Range{Key: key, Min: lo.String(), Max: hi.String(), Why: why, check: func(c Config) bool {
		return get(c) >= lo && get(c) <= hi
	}}
}

func countRange(key string, hi int, get func(Config) int, why string) Range {
	return Range{Key: key, Min: "0", Max: fmt.Sprint(hi), Why: why, check: func(c Config) bool {
		return get(c) >= 0 && get(c) <= hi
	}}
}

// Ranges are all bounds of the configuration, for [Config.Validate] and `config check`.
func Ranges() []Range {
	return []Range{
		durationRange("token.lead", 2*time.Second, 7*day, func(c Config) Duration { return c.Token.Lead },
			"verifiers must have fetched a key before it signs; under 10m is for tests"),
		durationRange("token.rotate", 10*time.Second, 365*day, func(c Config) Duration { return c.Token.Rotate },
			"how long one key signs; at least four leads"),
		durationRange("certificate.ttl", time.Minute, 90*day, func(c Config) Duration { return c.Certificate.TTL },
			"short-lived is the point"),
		durationRange("certificate.operator", time.Minute, 90*day, func(c Config) Duration { return c.Certificate.Operator },
			"an operator renews by `cert renew`"),
		durationRange("certificate.server", time.Minute, 90*day, func(c Config) Duration { return c.Certificate.Server },
			"a sealed daemon serves its keys until this expires"),
		durationRange("certificate.grace", 0, 6*day, func(c Config) Duration { return c.Certificate.Grace },
			"how long after its end a certificate may be renewed with itself; 0s is not at all"),
		durationRange("ca.intermediate", time.Hour, 3650*day, func(c Config) Duration { return c.CA.Intermediate },
			"no certificate outlives it"),
		durationRange("ca.root", day, 9125*day, func(c Config) Duration { return c.CA.Root },
			"at least as long as the intermediate"),
		durationRange("ca.lead", 0, 365*day, func(c Config) Duration { return c.CA.Lead },
			"everybody must have a new root before it signs; 0s is the longest certificate.ttl and 73h"),
		durationRange("join.ttl", time.Minute, day, func(c Config) Duration { return c.Join.TTL },
			"a join token is a secret on its way"),
		sizeRange("audit.segment", mib, gib, func(c Config) Size { return c.Audit.Segment },
			"one file of the audit log"),
		sizeRange("audit.reserve", 0, gib, func(c Config) Size { return c.Audit.Reserve },
			"disk held back for the record of a full disk"),
		durationRange("audit.keep", day, 36500*day, func(c Config) Duration { return c.Audit.Keep },
			"whole segments leave, oldest first"),
		countRange("limits.identity", 1_000_000, func(c Config) int { return c.Limits.Identity },
			"requests a second of one identity; 0 is off"),
		countRange("limits.address", 1_000_000, func(c Config) int { return c.Limits.Address },
			"requests a second of one address without a credential; 0 is off"),
		countRange("limits.connections", 1_000_000, func(c Config) int { return c.Limits.Connections },
			"open connections; 0 is off"),
		countRange("limits.perhost", 1_000_000, func(c Config) int { return c.Limits.PerHost },
			"open connections of one address; 0 is off"),
		countRange("limits.issuing", 100_000, func(c Config) int { return c.Limits.Issuing },
			"requests for certificates in work at a time; 0 is off, and then none waits"),
		countRange("limits.waiting", 100_000, func(c Config) int { return c.Limits.Waiting },
			"renewals, and as many enrolments, that wait for that; more are told when to come again"),
	}
}

// Validate tells everything that is wrong with c, each with its key.
func (c Config) Validate() []Problem {
	var faults []Problem
	add := func(key, format string, args ...any) {
		faults = append(faults, Problem{Key: key, Msg: fmt.Sprintf(format, args...)})
	}
	if err := countersign.CheckTrustDomain(c.Domain); err != nil {
		add("domain", "%v", err)
	}
	if err := CheckIssuer(c.Issuer); err != nil {
		add("issuer", "%v", err)
	}
	for _, l := range []struct{ key, addr string }{
		{"listen", c.Listen}, {"ops.listen", c.Ops.Listen}, {"pki.listen", c.PKI.Listen},
	} {
		if l.addr == "" && l.key == "pki.listen" {
			continue
		}
		if _, _, err := net.SplitHostPort(l.addr); err != nil {
			add(l.key, "%q is no address to listen on: write host:port or :port", l.addr)
		}
	}
	if len(c.DNS) == 0 {
		add("dns", "at least one name is needed: clients check the daemon's certificate against it")
	}
	for _, name := range c.DNS {
		if err := checkHost(name); err != nil {
			add("dns", "%v", err)
		}
	}
	faults = append(faults, c.validatePermit()...)
	for _, keys := range []struct {
		key  string
		list []string
	}{{"keytypes.operator", c.KeyTypes.Operator}, {"keytypes.server", c.KeyTypes.Server}} {
		if err := ca.CheckKeyTypes(keys.list); err != nil {
			add(keys.key, "%v", err)
		}
	}
	for _, p := range c.Proxies {
		if _, err := netip.ParsePrefix(p); err != nil {
			add("proxies", "%q is no prefix: write for example 10.1.2.3/32", p)
		}
	}
	if _, err := c.certHeaders(); err != nil {
		add("tls.proxies", "%v", err)
	}
	for _, r := range Ranges() {
		if !r.check(c) {
			add(r.Key, "must be between %s and %s: %s", r.Min, r.Max, r.Why)
		}
	}
	faults = append(faults, c.validateKeys()...)
	return append(faults, c.validateCombinations()...)
}

// validatePermit: the suffixes themselves, and the daemon's own names against them. Addresses are no DNS names.
func (c Config) validatePermit() []Problem {
	if err := ca.CheckPermit(c.CA.Permit); err != nil {
		return []Problem{{Key: "ca.permit", Msg: err.Error()}}
	}
	var faults []Problem
	for _, name := range c.DNS {
		if _, err := netip.ParseAddr(name); err != nil && !ca.Permits(c.CA.Permit, name) {
			faults = append(faults, Problem{Key: "dns", Msg: fmt.Sprintf(
				"%q is outside of ca.permit (%s), and nobody would take the daemon's certificate: give the daemon a name under it, or permit this one too",
				name, strings.Join(c.CA.Permit, ", "))})
		}
	}
	return faults
}

// validateCombinations checks values against each other and those of a fixed set.
func (c Config) validateCombinations() []Problem {
	var faults []Problem
	add := func(key, msg string) { faults = append(faults, Problem{Key: key, Msg: msg}) }
	if c.Token.Rotate < 4*c.Token.Lead {
		add("token.rotate", fmt.Sprintf("must be at least four times token.lead (%s): a key must sign longer than it waits", c.Token.Lead))
	}
	if c.CA.Intermediate > c.CA.Root {
		add("ca.intermediate", "must not be longer than ca.root")
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		add("tls.cert", "tls.cert and tls.key go together")
	}
	if c.PKI.URL != "" {
		if err := ca.CheckPKI(c.PKI.URL); err != nil {
			add("pki.url", err.Error())
		}
		if c.PKI.Listen == "" {
			add("pki.url", "needs pki.listen: certificates would point to what nobody serves")
		}
	}
	if !slices.Contains([]string{"1.2", "1.3"}, c.TLS.Min) {
		add("tls.min", `must be "1.3" or "1.2"`)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level) {
		add("log.level", "must be debug, info, warn or error")
	}
	if !slices.Contains([]string{"text", "json"}, c.Log.Format) {
		add("log.format", "must be text or json")
	}
	return faults
}

// CheckIssuer tells why s can't be the issuer identifier (RFC 8414 2): https, a host, no query, no fragment, no user,
// no trailing slash, and spelt as URLs are spelt, because verifiers compare it byte by byte.
func CheckIssuer(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("the issuer %q must be an https:// URL with a host", s)
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.ContainsAny(s, "?#"):
		return fmt.Errorf("the issuer %q must have no query, fragment or user", s)
	case strings.HasSuffix(s, "/"):
		return fmt.Errorf("the issuer %q must not end with a slash", s)
	case u.String() != s || strings.ToLower(u.Host) != u.Host:
		return fmt.Errorf("the issuer %q must be spelt in lower case and without escapes, as %q", s, strings.ToLower(u.String()))
	}
	return nil
}

// checkHost tells why s can be neither a DNS name nor an address in the daemon's certificate.
func checkHost(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if countersign.CheckTrustDomain(s) != nil { // the same alphabet: lower-case labels
		return fmt.Errorf("%q is neither an IP address nor a lower-case DNS name", s)
	}
	return nil
}
