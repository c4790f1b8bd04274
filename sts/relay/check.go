package relay

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/conf"
	"github.com/countersign/countersign/sts/relay/filter"
	"github.com/countersign/countersign/sts/relay/limit"
)

const (
	maxRoutes   = 1000
	maxOutbound = 200
	unixPrefix  = "unix:"
)

// check tells all that is wrong with a completed configuration.
func (cfg *Config) check(c conf.Check) {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, cfg.Log.Level) {
		c.Fault("log.level", "write debug, info, warn or error", "%.32q is no level", cfg.Log.Level)
	}
	if !slices.Contains([]string{"text", "json"}, cfg.Log.Format) {
		c.Fault("log.format", "write text or json", "%.32q is no format", cfg.Log.Format)
	}
	if cfg.Ops.Listen != "off" {
		checkListen(c, "ops.listen", cfg.Ops.Listen)
	}
	number(c, "trace.percent", cfg.Trace.Percent, 0, 100)
	span(c, "drain", cfg.Drain, 0, 5*time.Minute)
	span(c, "max_stale", cfg.MaxStale, 5*time.Second, 24*time.Hour)
	cfg.checkIdentity(c)
	if cfg.Public == nil && cfg.Internal == nil && len(cfg.Outbound) == 0 {
		c.Fault("", "countersign relay config example", "there is nothing to do: neither public nor internal nor outbound is there")
	}
	if cfg.App != nil {
		cfg.App.check(c.In("app"))
	}
	outbound := cfg.checkOutbound(c.In("outbound"))
	names := map[string]bool{}
	if cfg.Public != nil {
		cfg.checkPublic(c.In("public"))
		cfg.checkRoutes(c.In("public"), cfg.Public.Routes, outbound, names)
	}
	if cfg.Internal != nil {
		checkListen(c, "internal.listen", cfg.Internal.Listen)
		cfg.Internal.Limits.check(c.In("internal.limits"))
		cfg.checkRoutes(c.In("internal"), cfg.Internal.Routes, outbound, names)
	}
	cfg.checkAddresses(c)
}

func (cfg *Config) checkIdentity(c conf.Check) {
	id := cfg.Identity
	if id.Dir == "" && id.JoinFile == "" && id.Attest == "" {
		c.Fault("identity", "write identity: {dir: DIR}, made by `countersign join --out DIR`", "the relay has no certificate: dir, join_file or attest is needed")
	}
	if id.ReadOnly && (id.Dir == "" || id.JoinFile != "" || id.Attest != "") {
		c.Fault("identity.readonly", "", "goes with dir, and not with join_file or attest: somebody else keeps the directory")
	}
	if id.Attest != "" && (cfg.Server == "" || id.Roots == "" || id.ID == "") {
		c.Fault("identity.attest", "", "needs server, identity.roots and identity.id: the token names none of them")
	}
	if id.ID != "" {
		if parsed, err := countersign.ParseID(id.ID); err != nil || parsed.Kind() != countersign.ServiceID {
			c.Fault("identity.id", "write spiffe://trust-domain/name", "%.100q is no ID of a service", id.ID)
		}
	}
	if id.TTL != 0 {
		span(c, "identity.ttl", id.TTL, time.Minute, 90*24*time.Hour)
	}
	for _, f := range []struct{ key, value string }{{"server", cfg.Server}, {"issuer", cfg.Issuer}} {
		if f.value == "" || f.key == "issuer" && !c.Has("issuer") {
			continue
		}
		checkHTTPS(c, f.key, f.value, f.key == "issuer")
	}
	if cfg.Audience != "" && countersign.CheckName(cfg.Audience) != nil {
		c.Fault("audience", "write the service's name as the policy has it", "%.100q is no name of a service", cfg.Audience)
	}
}

func (app *App) check(c conf.Check) {
	switch {
	case (app.Socket == "") == (app.URL == ""):
		c.Fault("", "write app: {socket: PATH}", "the application is at a socket or at a url: exactly one of them")
	case app.URL != "":
		checkAppURL(c, app.URL)
		if app.SecretFile == "" {
			c.Fault("secret_file", "or use a socket, whose directory says who may connect",
				"is needed with url: without the secret any process of this machine could send the application identity headers")
		}
	case app.SecretFile != "":
		c.Fault("secret_file", "", "goes with url; a socket needs none")
	}
	if f := app.SecretFile; f != "" && !slices.ContainsFunc([]string{".env", ".yaml", ".yml"}, func(s string) bool { return strings.HasSuffix(f, s) }) {
		c.Fault("secret_file", "", "must end with .env or .yaml: that decides its form")
	}
	if app.Token != TokenHandle && app.Token != TokenAuthorization {
		c.Fault("token", "write handle or authorization", "%.32q is neither", app.Token)
	}
	span(c, "linger", app.Linger, 0, 5*time.Minute)
	number(c, "handles", app.Handles, 1, 1_000_000)
}

func checkAppURL(c conf.Check, raw string) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		c.Fault("url", "write http://127.0.0.1:PORT", "%.200q is not http://, an address of this machine, and a port", raw)
		return
	}
	if !isLoopback(u.Hostname()) {
		c.Fault("url", "write http://127.0.0.1:PORT", "%.200q is not on loopback: identity headers would cross a network in the clear", u.Hostname())
	}
}

// isLoopback knows addresses only: what a name means is decided elsewhere, and may change.
func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func (cfg *Config) checkPublic(c conf.Check) {
	p := cfg.Public
	checkListen(c, "listen", p.Listen)
	if (p.TLS.Cert == "") != (p.TLS.Key == "") {
		c.Fault("tls", "", "cert and key go together")
	}
	if p.TLS.Min != "1.2" && p.TLS.Min != "1.3" {
		c.Fault("tls.min", `write "1.2" or "1.3", in quotes`, "%.32q is no version that is taken", p.TLS.Min)
	}
	if p.URL != "" {
		checkHTTPS(c, "url", p.URL, true)
	}
	if p.Users.Issuer == "" {
		c.Fault("users.issuer", "write users: {issuer: https://idp.shop.example, audiences: [shop-web]}",
			"is needed: a public listener takes requests with a user's access token only")
	}
	if len(p.Users.Audiences) == 0 || slices.Contains(p.Users.Audiences, "") {
		c.Fault("users.audiences", "write those of this service in the policy's accepts", "at least one is needed, and none is empty")
	}
	if p.Users.ScopeClaim != "scope" && p.Users.ScopeClaim != "scp" {
		c.Fault("users.scope_claim", "write scope or scp", "%.32q is neither", p.Users.ScopeClaim)
	}
	p.Limits.check(c.In("limits"))
	if p.Rate.Key == limit.User || p.Rate.Key == limit.Client {
		c.Fault("rate.key", "write address; per user and client a route limits", "%s is not known before the token is looked at", p.Rate.Key)
	} else if err := p.Rate.Validate(); err != nil {
		c.Fault("rate", "", "%v", err)
	}
}

func (l Limits) check(c conf.Check) {
	number(c, "connections", l.Connections, 1, 1_000_000)
	number(c, "perhost", l.PerHost, 1, 1_000_000)
	number(c, "streams", l.Streams, 1, 10_000)
	if l.Header < conf.KiB || l.Header > conf.MiB {
		c.Fault("header", "", "must be 1KiB to 1MiB")
	}
	span(c, "header_time", l.HeaderTime, 100*time.Millisecond, time.Minute)
	span(c, "stall", l.Stall, 100*time.Millisecond, time.Hour)
	span(c, "idle", l.Idle, 100*time.Millisecond, time.Hour)
}

func (cfg *Config) checkRoutes(c conf.Check, routes []*Route, outbound map[string]*Outbound, names map[string]bool) {
	if len(routes) == 0 || len(routes) > maxRoutes {
		c.Fault("routes", `for example routes: [{name: all, methods: [GET, POST], path: "/**", scopes: [orders:read]}]`,
			"1 to %d routes are needed: what no route names is refused", maxRoutes)
	}
	for i, r := range routes {
		if r != nil {
			cfg.checkRoute(c, c.In("routes").Item(i), r, outbound)
			if r.Name != "" && names[r.Name] {
				c.In("routes").Item(i).Fault("name", "", "there is another route %.64q", r.Name)
			}
			names[r.Name] = true
		}
	}
	checkTable(c, routes)
}

// checkTable tells what is wrong with the routes as package filter sees them: each by itself, and, if none is, how they go together.
func checkTable(c conf.Check, routes []*Route) {
	table, whole := make([]filter.Route, 0, len(routes)), true
	for i, r := range routes {
		if r == nil {
			continue
		}
		table = append(table, r.Route)
		if err := r.Validate(); err != nil {
			whole = false
			c.In("routes").Item(i).Fault("", "", "%v", err)
		}
	}
	if whole && len(table) <= maxRoutes {
		if _, err := filter.NewRouter(table); err != nil {
			c.Fault("routes", "", "%v", err)
		}
	}
}

func (cfg *Config) checkRoute(listener, c conf.Check, r *Route, outbound map[string]*Outbound) {
	switch {
	case r.To == ToApp && cfg.App == nil:
		c.Fault("to", "say where the application is: app: {socket: PATH}; or name an outbound", "goes to the application, and there is no app")
	case r.To != ToApp && outbound[r.To] == nil:
		hint := "outbound has none"
		if near := countersign.Nearest(r.To, slices.Collect(keysOf(outbound))); near != "" {
			hint = "did you mean " + near + "?"
		}
		c.Fault("to", hint, "there is no outbound %.64q", r.To)
	}
	switch {
	case r.Token != TokenRequired && r.Token != TokenNone:
		c.Fault("token", "write required or none", "%.32q is neither", r.Token)
	case r.Token == TokenNone && cfg.Public != nil && listener.Is("public"):
		c.Fault("token", "", "none is for the internal listener, where the certificate says who asks")
	case r.Token == TokenNone && len(r.Scopes) > 0:
		c.Fault("scopes", "", "without a token there are no scopes")
	case r.Token == TokenNone && r.To != ToApp:
		c.Fault("token", "", "none is for routes to the application: without a token there is nothing to exchange")
	case r.Token == TokenRequired && r.Scopes == nil:
		c.Fault("scopes", "write the scopes that are needed, or [] if any valid token will do", "must be said")
	}
	checkScopes(c, r.Scopes)
	if r.Strip != "" && (!strings.HasPrefix(r.Strip, "/") || strings.HasSuffix(r.Strip, "/") || !strings.HasPrefix(r.Path, r.Strip) || strings.ContainsAny(r.Strip, "{}*%?#")) {
		c.Fault("strip", "", "must be the beginning of path, begin with / and not end with it, as /api")
	}
	span(c, "timeout", r.Timeout, 10*time.Millisecond, time.Hour)
	span(c, "idle", r.Idle, 10*time.Millisecond, 24*time.Hour)
	if r.Rate != nil {
		if err := r.Rate.Validate(); err != nil {
			c.Fault("rate", "", "%v", err)
		}
	}
}

func keysOf[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func checkScopes(c conf.Check, scopes []string) {
	for i, s := range scopes {
		if s == "" || len(s) > 128 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			c.In("scopes").Item(i).Fault("", "", "%.64q is no scope (RFC 6749 3.3)", s)
		}
	}
}

func (cfg *Config) checkOutbound(c conf.Check) map[string]*Outbound {
	known := map[string]*Outbound{}
	if len(cfg.Outbound) > maxOutbound {
		c.Fault("", "", "there are %d, and at most %d are taken", len(cfg.Outbound), maxOutbound)
	}
	for i, o := range cfg.Outbound {
		if o == nil {
			continue
		}
		at := c.Item(i)
		switch {
		case o.Name == "" || countersign.CheckName(o.Name) != nil:
			at.Fault("name", "letters, digits and -, at most 63", "%.64q is no name", o.Name)
		case o.Name == ToApp:
			at.Fault("name", "", "%s is the application's", ToApp)
		case known[o.Name] != nil:
			at.Fault("name", "", "there is another outbound %.64q", o.Name)
		case countersign.CheckName(o.Service) != nil:
			at.Fault("service", "write its name as the policy has it", "%.64q is no name of a service", o.Service)
		}
		known[o.Name] = o
		o.check(at)
	}
	return known
}

func (o *Outbound) check(c conf.Check) {
	if o.URL == "" {
		c.Fault("url", "write url: https://orders.shop.internal:8443", "is needed: where the service is")
	} else {
		checkHTTPS(c, "url", o.URL, false)
	}
	if o.Address != "" {
		if host, port, err := net.SplitHostPort(o.Address); err != nil || host == "" || !isPort(port) {
			c.Fault("address", "", "%.100q is not host:port", o.Address)
		}
	}
	if path, ok := socketPath(o.Listen); ok {
		if path == "" || len(path) > 100 {
			c.Fault("listen", "", "the path of the socket must have 1 to 100 bytes")
		}
	} else if o.Listen != "" {
		if host, port, err := net.SplitHostPort(o.Listen); err != nil || !isLoopback(host) || !isPort(port) {
			c.Fault("listen", "write 127.0.0.1:PORT or unix:/path",
				"%.100q is no address on loopback: whoever reaches it calls as this service", o.Listen)
		}
	}
	checkScopes(c, o.Scopes)
	span(c, "timeout", o.Timeout, 10*time.Millisecond, time.Hour)
	span(c, "idle", o.Idle, 10*time.Millisecond, 24*time.Hour)
	if o.Body < 0 || o.Body > 1024*conf.GiB {
		c.Fault("body", "", "must be 0 to 1024GiB")
	}
}

// checkAddresses finds two listeners at one address, which could only be found out at the start.
func (cfg *Config) checkAddresses(c conf.Check) {
	seen := map[string]string{}
	add := func(key, address string) {
		if address == "" || address == "off" || strings.HasSuffix(address, ":0") {
			return
		}
		if other, ok := seen[address]; ok {
			c.Fault(key, "", "%s is listened on by %s already", address, other)
			return
		}
		seen[address] = key
	}
	add("ops.listen", cfg.Ops.Listen)
	if cfg.Public != nil {
		add("public.listen", cfg.Public.Listen)
	}
	if cfg.Internal != nil {
		add("internal.listen", cfg.Internal.Listen)
	}
	for i, o := range cfg.Outbound {
		if o != nil {
			add(fmt.Sprintf("outbound[%d].listen", i), o.Listen)
		}
	}
}

func socketPath(listen string) (string, bool) { return strings.CutPrefix(listen, unixPrefix) }

func checkListen(c conf.Check, key, address string) {
	if _, port, err := net.SplitHostPort(address); err != nil || !isPort(port) {
		c.Fault(key, "write host:port or :port", "%.100q is no address to listen on", address)
	}
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && strconv.FormatUint(n, 10) == s
}

// checkHTTPS demands a plain https URL, whose path is empty unless it may have one.
func checkHTTPS(c conf.Check, key, raw string, path bool) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		c.Fault(key, "", "%.200q is not https:// and a host, without user, query and fragment", raw)
	case !path && strings.Trim(u.Path, "/") != "":
		c.Fault(key, "", "%.200q has a path: only host and port are taken", raw)
	case u.Port() != "" && !isPort(u.Port()):
		c.Fault(key, "", "%.200q has no port that there can be", raw)
	}
}

func span(c conf.Check, key string, d Duration, least, most time.Duration) {
	if time.Duration(d) < least || time.Duration(d) > most {
		c.Fault(key, "", "is %s: it must be %s to %s", d, Duration(least), Duration(most))
	}
}

func number(c conf.Check, key string, n, least, most int) {
	if n < least || n > most {
		c.Fault(key, "", "is %d: it must be %d to %d", n, least, most)
	}
}
