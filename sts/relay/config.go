package relay

import (
	"github.com/countersign/countersign/sts/relay/conf"
	"github.com/countersign/countersign/sts/relay/filter"
	"github.com/countersign/countersign/sts/relay/limit"
)

// Config is a relay's configuration, as its YAML file has it. [ParseConfig] reads, completes and judges it.
type Config struct {
	Identity Identity    `yaml:"identity"`
	Server   string      `yaml:"server"`    // https://host:port of the daemon; default: what the identity names
	Issuer   string      `yaml:"issuer"`    // of relay tokens, exactly; default: server
	Audience string      `yaml:"audience"`  // what relay tokens for this service name; default: the name in the identity's ID
	MaxStale Duration    `yaml:"max_stale"` // the longest that relay tokens are taken by an old list of revocations; default 5m, 5s to 24h
	App      *App        `yaml:"app"`       // needed by routes to it
	Public   *Public     `yaml:"public"`    // users from outside
	Internal *Internal   `yaml:"internal"`  // services of the call graph
	Outbound []*Outbound `yaml:"outbound"`  // services that are called through the relay
	Ops      Ops         `yaml:"ops"`
	Trace    Trace       `yaml:"trace"`
	Log      Log         `yaml:"log"`
	Drain    Duration    `yaml:"drain"` // how long requests in flight have after SIGTERM; default 10s, 0s to 5m
}

// Duration and Size are those of package conf.
type (
	Duration = conf.Duration
	Size     = conf.Size
)

// Identity says where the relay's certificate is, and who keeps it fresh.
type Identity struct {
	Dir      string   `yaml:"dir"`       // the identity directory
	ReadOnly bool     `yaml:"readonly"`  // an agent renews it; default: the relay does
	JoinFile string   `yaml:"join_file"` // with a join string, for the first certificate
	Attest   string   `yaml:"attest"`    // file with a token of a `workloads` issuer, read anew each time; needs server, roots and id
	Roots    string   `yaml:"roots"`     // PEM file with the authority's roots, for the first start with attest
	ID       string   `yaml:"id"`        // of the service, with attest
	TTL      Duration `yaml:"ttl"`       // of certificates; default: the policy's
}

// App is the application behind the relay.
type App struct {
	Socket     string   `yaml:"socket"`      // path of its Unix socket; or
	URL        string   `yaml:"url"`         // http://127.0.0.1:PORT, with secret_file
	SecretFile string   `yaml:"secret_file"` // written at each start (0600) with the secret of [SecretHeader]; .yaml, .yml or .env
	HTTP2      bool     `yaml:"http2"`       // the application speaks HTTP/2 without TLS, as gRPC servers do
	Token      string   `yaml:"token"`       // handle (default): it gets the handle alone; authorization: the token too
	Linger     Duration `yaml:"linger"`      // how long token and handle are good after the answer; default 0s, up to 5m
	Handles    int      `yaml:"handles"`     // requests that may hold a handle at a time; default 10000, 1 to 1000000
}

// The values of App.Token.
const (
	TokenHandle        = "handle"
	TokenAuthorization = "authorization"
)

// Limits of a listener.
type Limits struct {
	Connections int      `yaml:"connections"` // open at a time; default 1024 public, 4096 internal
	PerHost     int      `yaml:"perhost"`     // of them from one address; default 32 public, 1024 internal. Loopback is exempt
	Streams     int      `yaml:"streams"`     // HTTP/2 requests at a time on one connection; default 100 public, 250 internal
	Header      Size     `yaml:"header"`      // of a request; default 16KiB public, 32KiB internal
	HeaderTime  Duration `yaml:"header_time"` // to send it; default 5s public, 10s internal
	Stall       Duration `yaml:"stall"`       // longest pause while a body is sent or taken; default 15s public, 60s internal
	Idle        Duration `yaml:"idle"`        // how long a connection without requests is kept; default 30s public, 2m internal
}

// Public is the listener for users from outside: HTTPS only, each request with a user's access token.
type Public struct {
	Listen string        `yaml:"listen"` // host:port
	TLS    TLS           `yaml:"tls"`
	URL    string        `yaml:"url"`   // under which users reach it; needed for DPoP (RFC 9449)
	Users  Users         `yaml:"users"` // whose tokens are taken
	Limits Limits        `yaml:"limits"`
	Rate   *limit.Config `yaml:"rate"` // of every request, before its token is looked at; default: 50 a second and address, bursts of 100
	Routes []*Route      `yaml:"routes"`
}

// TLS is the certificate that the public listener shows; the relay's own if it is not said. The files are looked at again when
// they change.
type TLS struct {
	Cert string `yaml:"cert"` // PEM file, leaf first
	Key  string `yaml:"key"`  // PEM file
	Min  string `yaml:"min"`  // "1.2" or "1.3", the default
}

// Users says whose access tokens are taken at the public listener, as the policy's `issuers` and the service's `accepts` do.
type Users struct {
	Issuer     string   `yaml:"issuer"`
	Audiences  []string `yaml:"audiences"` // one of them must be in `aud`
	JWKSURI    string   `yaml:"jwks_uri"`  // default: by discovery
	CAFile     string   `yaml:"ca_file"`   // PEM; default: the system's roots
	Algorithms []string `yaml:"algorithms"`
	ScopeClaim string   `yaml:"scope_claim"` // scope (default) or scp
}

// Internal is the listener for services of the call graph: mTLS only.
type Internal struct {
	Listen string   `yaml:"listen"` // host:port
	Limits Limits   `yaml:"limits"`
	Routes []*Route `yaml:"routes"`
}

// Route is one row of a listener's table. What no row names is refused.
type Route struct {
	filter.Route `yaml:",inline"`

	To      string        `yaml:"to"`      // app (default), or the name of an outbound: the request goes on to that service
	Token   string        `yaml:"token"`   // required (default) or, at the internal listener, none: then the certificate alone says who asks
	Scopes  []string      `yaml:"scopes"`  // all of them are needed; [] has to be written out: any token will do
	Strip   string        `yaml:"strip"`   // what is taken away from the front of the path; /api makes /api/orders /orders
	Timeout Duration      `yaml:"timeout"` // until the upstream's answer begins; default 30s, 10ms to 1h
	Idle    Duration      `yaml:"idle"`    // longest pause within the answer; default 5m, 10ms to 24h
	Rate    *limit.Config `yaml:"rate"`    // default: none
}

// The values of Route.Token.
const (
	TokenRequired = "required"
	TokenNone     = "none"
)

// ToApp is the Route.To of the application.
const ToApp = "app"

// Outbound is a service that is called through the relay.
type Outbound struct {
	Name    string   `yaml:"name"`    // for routes, log and metrics; default: service
	Service string   `yaml:"service"` // its name in the policy: the audience, and whose certificate is demanded; default: name
	URL     string   `yaml:"url"`     // https://host[:port]; the host is one of the service's DNS names
	Address string   `yaml:"address"` // host:port to connect to, if it is not url's
	Listen  string   `yaml:"listen"`  // where the application calls it: 127.0.0.1:PORT or unix:/path. Not needed for routes
	Scopes  []string `yaml:"scopes"`  // that are asked for; default: all that the policy allows
	Machine bool     `yaml:"machine"` // a request without token and handle goes out as the service itself. Never the default
	Cookies bool     `yaml:"cookies"` // cookies pass, both ways. Default: they do not
	Timeout Duration `yaml:"timeout"` // until the answer begins; default 30s, 10ms to 1h. Of routes: theirs
	Idle    Duration `yaml:"idle"`    // longest pause within the answer; default 5m
	Body    Size     `yaml:"body"`    // of a request of the application; default 64MiB
}

// Ops is the listener for /livez, /readyz and /metrics: plain HTTP, for this machine.
type Ops struct {
	Listen string `yaml:"listen"` // default 127.0.0.1:8445; off: none
}

// Trace is about W3C trace contexts that begin here.
type Trace struct {
	Percent int `yaml:"percent"` // of them that are marked as sampled, 0 to 100; default 0
}

// Log is about the log on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // text (default) or json
}
