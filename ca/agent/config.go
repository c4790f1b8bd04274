package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/countersign/countersign"
)

// Config is what the agent keeps, as its file (`--config`) says it, or the flags for one identity. docs/agent.md explains
// each key; [Config.Validate] holds the ranges.
type Config struct {
	Server     string     `yaml:"server"` // https://host:port; for identities that name none; default: what their directories or join strings say
	Root       string     `yaml:"root"`   // PEM file with the authority's roots; needed where `attest` makes the first certificate
	Socket     string     `yaml:"socket"` // of `agent status`; "": agent.sock in the runtime directory
	Ops        Ops        `yaml:"ops"`
	Log        Log        `yaml:"log"`
	Identities []Identity `yaml:"identities"`
	API        *API       `yaml:"api"`
}

// Ops is the listener with /livez, /readyz and /metrics: plain HTTP, loopback only.
type Ops struct {
	Listen string `yaml:"listen"` // "": none
}

// Log is about the log on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // text (default), json
}

// API is the local socket with the SPIFFE Workload API, SDS and /exchange (package local).
type API struct {
	Socket string `yaml:"socket"` // absolute path
	Rules  []Rule `yaml:"rules"`
}

// Rule gives one identity to some callers of the socket; package local says what its fields mean and checks them.
type Rule struct {
	UID      *uint32 `yaml:"uid"`
	GID      *uint32 `yaml:"gid"`
	Exe      string  `yaml:"exe"`
	Identity string  `yaml:"identity"` // a name of `identities`
}

// Identity is one identity directory and the program that uses it.
type Identity struct {
	Name         string   `yaml:"name"`      // in logs, metrics and `agent status`; default: the last part of dir
	Dir          string   `yaml:"dir"`       // the identity directory
	JoinFile     string   `yaml:"join_file"` // file with a join string, for the first certificate
	Attest       string   `yaml:"attest"`    // file with a workload JWT, read anew each time
	ID           string   `yaml:"id"`        // with attest: the spiffe:// ID to be
	Server       string   `yaml:"server"`
	Root         string   `yaml:"root"`
	Key          string   `yaml:"key"`     // kind of key; default P-256, or the first that the policy allows
	TTL          Duration `yaml:"ttl"`     // lifetime to ask for; 0: what the policy gives
	Survive      Duration `yaml:"survive"` // outage of the authority to survive: the lifetime to ask for follows from it
	PasswordFile string   `yaml:"p12_password_file"`
	Spring       *Spring  `yaml:"spring"`
	Reload       Reload   `yaml:"reload"`
	Verify       *Verify  `yaml:"verify"`
}

// Reload is how the program learns of new files. All that are set are done, in this order.
type Reload struct {
	Exec    []string `yaml:"exec"`     // a program and its arguments; no shell
	Signal  Signal   `yaml:"signal"`   // sent to the process that pid_file names
	PIDFile string   `yaml:"pid_file"` // read anew each time
	Systemd string   `yaml:"systemd"`  // a unit, for systemctl reload
	Timeout Duration `yaml:"timeout"`  // of each of them; default 30s
}

// Verify is a TLS server that must serve the new certificate after a reload.
type Verify struct {
	Address    string   `yaml:"address"`     // tcp://host:port
	ServerName string   `yaml:"server_name"` // for SNI and the check of the name; default: the first DNS name of the certificate
	Within     Duration `yaml:"within"`      // after the hooks; then it is an alarm. Default 1m
}

// Spring asks for application-countersign.yaml beside the identity directory's links.
type Spring struct {
	Audience   string   `yaml:"audience"`   // of the relay tokens that the service takes: its name
	Issuer     string   `yaml:"issuer"`     // default: what the daemon says in its metadata
	Algorithms []string `yaml:"algorithms"` // default ES256 and RS256
}

const (
	defaultHookTimeout = 30 * time.Second
	defaultWithin      = time.Minute
	maxHookTimeout     = 10 * time.Minute
)

// Validate tells everything that is wrong with c, each with its key.
func (c Config) Validate() []Problem { return c.validate(false) }

// ValidateWrap is Validate for [Agent.Wrap]: a signal without a PID file goes to the child.
func (c Config) ValidateWrap() []Problem { return c.validate(true) }

func (c Config) validate(wraps bool) []Problem {
	v := validation{wraps: wraps}
	if len(c.Identities) == 0 {
		v.add("identities", "at least one identity is needed")
	}
	if len(c.Identities) > maxIdentities {
		v.add("identities", "there are %d; an agent keeps at most %d", len(c.Identities), maxIdentities)
	}
	v.server("server", c.Server)
	v.path("socket", c.Socket)
	if c.Ops.Listen != "" {
		if err := checkLoopback(c.Ops.Listen); err != nil {
			v.add("ops.listen", "%v", err)
		}
	}
	v.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", c.Log.Format, "text", "json")
	names, dirs := map[string]string{}, map[string]string{}
	for i, id := range c.Identities {
		key := fmt.Sprintf("identities[%d]", i)
		v.identity(key, c, id)
		v.unique(key+".name", id.name(), "name", names)
		if id.Dir != "" {
			v.unique(key+".dir", filepath.Clean(id.Dir), "dir", dirs)
		}
	}
	if c.API != nil {
		v.api(*c.API, names)
	}
	return v.problems
}

// name is the identity's name: what it is given, or the last part of its directory.
func (id Identity) name() string {
	if id.Name != "" {
		return id.Name
	}
	return filepath.Base(filepath.Clean(id.Dir))
}

// lifetime is what to ask for; 0: what the policy gives. A renewal is due at 0.67 of a lifetime at the latest, so of a
// lifetime L at least 0.33 L is left then: to survive an outage takes three times as long a lifetime.
func (id Identity) lifetime() time.Duration {
	if id.Survive > 0 {
		return (3*time.Duration(id.Survive) + 10*time.Minute - 1).Truncate(10 * time.Minute)
	}
	return time.Duration(id.TTL)
}

type validation struct {
	problems []Problem
	wraps    bool
}

func (v *validation) add(key, format string, args ...any) {
	v.problems = append(v.problems, Problem{Key: key, Msg: fmt.Sprintf(format, args...)})
}

func (v *validation) oneOf(key, value string, known ...string) {
	if value == "" {
		return
	}
	for _, k := range known {
		if value == k {
			return
		}
	}
	msg := fmt.Sprintf("%q is not known here: there are %s", value, strings.Join(known, ", "))
	if near := countersign.Nearest(value, known); near != "" {
		msg = fmt.Sprintf("%q is not known here; did you mean %s?", value, near)
	}
	v.add(key, "%s", msg)
}

func (v *validation) unique(key, value, what string, seen map[string]string) {
	if first, ok := seen[value]; ok {
		v.add(key, "the %s %s is that of %s too", what, value, strings.TrimSuffix(first, "."+what))
		return
	}
	seen[value] = key
}

func (v *validation) path(key, path string) {
	if strings.ContainsFunc(path, unicode.IsControl) { // it stands in logs and in a comment of Spring's file
		v.add(key, "a path has no control characters")
	}
}

func (v *validation) span(key string, d Duration, lo, hi time.Duration) {
	if d != 0 && (time.Duration(d) < lo || time.Duration(d) > hi) {
		v.add(key, "must be between %s and %s", Duration(lo), Duration(hi))
	}
}

func (v *validation) server(key, url string) {
	if url == "" {
		return
	}
	if err := checkServer(url); err != nil {
		v.add(key, "%v", err)
	}
}

func (v *validation) identity(key string, c Config, id Identity) {
	if id.Dir == "" {
		v.add(key+".dir", "is needed: the identity directory, as /etc/orders/identity")
	}
	if !plainName(id.name()) && id.Dir != "" {
		v.add(key+".name", "%q is no name: write 1 to 64 letters, digits and . _ -", id.name())
	}
	for name, path := range map[string]string{"dir": id.Dir, "join_file": id.JoinFile, "attest": id.Attest, "root": id.Root, "p12_password_file": id.PasswordFile} {
		v.path(key+"."+name, path)
	}
	v.server(key+".server", id.Server)
	if id.JoinFile != "" && id.Attest != "" {
		v.add(key+".attest", "join_file and attest are two ways to the first certificate: keep one")
	}
	if id.Attest != "" {
		v.attested(key, c, id)
	} else if id.ID != "" {
		v.add(key+".id", "goes with attest only: a join string says itself whose it is")
	}
	v.oneOf(key+".key", id.Key, "P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072", "RSA-4096")
	v.span(key+".ttl", id.TTL, time.Minute, 90*24*time.Hour)
	v.span(key+".survive", id.Survive, time.Minute, 30*24*time.Hour)
	if id.TTL != 0 && id.Survive != 0 {
		v.add(key+".survive", "ttl and survive both set the lifetime: keep one")
	}
	v.reload(key+".reload", id.Reload)
	if id.Verify != nil {
		v.verify(key+".verify", *id.Verify)
	}
	if id.Spring != nil {
		v.spring(key+".spring", *id.Spring)
	}
}

func (v *validation) attested(key string, c Config, id Identity) {
	parsed, err := countersign.ParseID(id.ID)
	switch {
	case id.ID == "":
		v.add(key+".id", "attest needs it: the ID that the workload's token proves, as spiffe://shop.internal/orders")
	case err != nil:
		v.add(key+".id", "%v", err)
	case parsed.Kind() != countersign.ServiceID:
		v.add(key+".id", "%s is not the ID of a service", id.ID)
	}
	if id.Server == "" && c.Server == "" {
		v.add(key+".server", "attest needs it: the daemon's public address, as https://ca.internal:8443")
	}
	if id.Root == "" && c.Root == "" {
		v.add(key+".root", "attest needs it: a file with the authority's roots, as `countersign ca root` prints them")
	}
}

func (v *validation) reload(key string, r Reload) {
	if len(r.Exec) > 0 && r.Exec[0] == "" {
		v.add(key+".exec", "the program's name is empty")
	}
	for i, word := range r.Exec {
		if strings.ContainsRune(word, 0) {
			v.add(fmt.Sprintf("%s.exec[%d]", key, i), "an argument has no zero byte")
		}
	}
	v.path(key+".pid_file", r.PIDFile)
	if r.PIDFile != "" && r.Signal == 0 {
		v.add(key+".pid_file", "goes with signal: which one shall be sent?")
	}
	if r.Signal != 0 && r.PIDFile == "" && !v.wraps {
		v.add(key+".signal", "goes with pid_file: whom shall it be sent to?")
	}
	if r.Systemd != "" && (strings.HasPrefix(r.Systemd, "-") || strings.ContainsAny(r.Systemd, " /\t\n\x00")) {
		v.add(key+".systemd", "%q is no unit: write for example nginx.service", r.Systemd)
	}
	v.span(key+".timeout", r.Timeout, 100*time.Millisecond, maxHookTimeout)
}

func (v *validation) verify(key string, check Verify) {
	if _, err := parseTarget(check.Address); err != nil {
		v.add(key+".address", "%v", err)
	}
	v.span(key+".within", check.Within, 100*time.Millisecond, time.Hour)
}

func (v *validation) spring(key string, s Spring) {
	if s.Audience == "" {
		v.add(key+".audience", "is needed: the service's name, as it stands in aud of the tokens that it takes")
	}
	if s.Issuer != "" {
		if err := checkServer(s.Issuer); err != nil {
			v.add(key+".issuer", "%v", err)
		}
	}
	for i, alg := range s.Algorithms {
		at := fmt.Sprintf("%s.algorithms[%d]", key, i)
		if alg == "" {
			v.add(at, "is empty: there are ES256, RS256")
		}
		v.oneOf(at, alg, "ES256", "RS256")
	}
}

func (v *validation) api(a API, names map[string]string) {
	if !filepath.IsAbs(a.Socket) || len(a.Socket) > maxSocketPath {
		v.add("api.socket", "%q: an absolute path of at most %d bytes is needed", a.Socket, maxSocketPath)
	}
	for i, rule := range a.Rules {
		if _, ok := names[rule.Identity]; !ok {
			v.add(fmt.Sprintf("api.rules[%d].identity", i), "there is no identity %q", rule.Identity)
		}
	}
}

// plainName tells whether s can stand in metrics, logs and file names without quoting.
func plainName(s string) bool {
	if len(s) == 0 || len(s) > 64 || s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return false
		}
	}
	return true
}

// Signal is a signal by its name, "HUP" or "SIGHUP"; 0 is none.
type Signal syscall.Signal

// UnmarshalText reads the name of a signal that makes sense as "read your files again": none that only kills or stops.
func (s *Signal) UnmarshalText(b []byte) error {
	name := strings.ToUpper(string(b))
	known := []string{"SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT", "SIGTERM", "SIGWINCH", "SIGALRM", "SIGCONT"}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	for _, k := range known {
		if k == name {
			*s = Signal(unix.SignalNum(name))
			return nil
		}
	}
	return fmt.Errorf("%q is no signal to reload with: there are %s", b, strings.ReplaceAll(strings.Join(known, ", "), "SIG", ""))
}

// String is the name as the configuration has it.
func (s Signal) String() string { return strings.TrimPrefix(unix.SignalName(syscall.Signal(s)), "SIG") }

// Duration is a length of time in the configuration: "90s", "24h", "30d". A number without a unit is refused.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads, and days as "30d". None is negative.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100_000 {
			*d = Duration(time.Duration(n) * 24 * time.Hour)
			return nil
		}
	}
	parsed, err := time.ParseDuration(s)
	if err == nil && parsed < 0 {
		err = errors.New("negative")
	}
	if err != nil {
		return fmt.Errorf("%q is no duration: write for example 90s, 15m, 24h or 30d", s)
	}
	*d = Duration(parsed)
	return nil
}

// String is time.Duration's form without zero parts.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
