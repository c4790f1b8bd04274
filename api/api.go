// Package api is the HTTP of the daemon: routes, the authentication of callers, limits, the decoding of requests and
// the encoding of answers and errors. Every route stands in one table with its authentication.
//
// It never decides who may have which certificate or token: ca and sts do, of the [countersign.Caller] that is proved
// here. It never takes an identity from a header, unless a proxy that is configured for it and came by mTLS vouches for the
// client's certificate; never shows the cause of an error; and reads no body before its sender is known, but a form in which
// an OAuth client's assertion may stand, and never more of it than the route allows. Echo is used here and nowhere else.
package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/pace"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/storage/policy"
	"github.com/countersign/countersign/sts"
)

// Config of a [Server]. CA, STS, Policy, Keys, Audit, Issuer and TrustDomain are required.
type Config struct {
	CA     *ca.Authority
	STS    *sts.Service
	Policy *policy.Book
	Keys   *keyring.Ring
	Audit  *audit.Log

	Issuer      string // the issuer identifier: its path decides where the metadata is
	TrustDomain string
	URL         string // https://host:port that join tokens name; "": answers hold no join string
	Version     string // of the binary, for GET /v1/status

	Limits  Limits         // the zero one is no limit at all; see DefaultLimits
	Proxies []netip.Prefix // whose X-Forwarded-For is believed, and nobody else's

	// TLSProxies are the services that end the TLS connections of others and forward their client certificates, as OAuth
	// clients, each in one header. Such a service is nobody by itself, see forwarded.
	TLSProxies map[countersign.ID]CertHeader

	Logger   *slog.Logger         // nil: discards
	Registry *prometheus.Registry // what /metrics shows; nil: one of its own
	Now      func() time.Time     // nil: time.Now
	Ready    func() error         // a further reason not to be ready; may be nil
	Clock    Clock                // nil: the clock is not guarded, and /v1/clock is not found
	Backup   Backup               // nil: there is none to be had, and /v1/backup is not found
}

// Server makes the handlers of the listeners. It starts no goroutine.
type Server struct {
	Config
	public, admin http.Handler
	ops           http.Handler
	uid           int
	identities    *buckets
	addresses     *buckets
	rooms         rooms
	metrics       metrics
	callersBook   callersBook
	waiters       waiters
	pacer         *pace.Pacer // nil: nothing is paced
	values        headerValues
	answers       sync.Pool // of *[]byte, for tokens
	stop          sync.Once
	stopping      chan struct{}
}

// New puts the routes together. An error is a fault of the configuration.
func New(cfg Config) (*Server, error) {
	if cfg.CA == nil || cfg.STS == nil || cfg.Policy == nil || cfg.Keys == nil || cfg.Audit == nil {
		return nil, errors.New("api: CA, STS, Policy, Keys and Audit are required")
	}
	for id, header := range cfg.TLSProxies {
		if header != ClientCert && header != XFCC {
			return nil, fmt.Errorf("api: no header is named in which %s forwards certificates", id)
		}
	}
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Scheme != "https" || issuer.Host == "" {
		return nil, fmt.Errorf("api: the issuer %q is no https URL", cfg.Issuer)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		Config:      cfg,
		uid:         os.Getuid(),
		identities:  newBuckets(cfg.Limits.Identity),
		addresses:   newBuckets(cfg.Limits.Address),
		rooms:       newRooms(),
		callersBook: callersBook{ca: cfg.CA, changed: cfg.Policy.Changed},
		values:      newHeaderValues(),
		stopping:    make(chan struct{}),
	}
	if s.metrics, err = newMetrics(cfg.Registry); err != nil {
		return nil, err
	}
	if cfg.Limits.Issuing > 0 {
		s.pacer, err = pace.New(pace.Config{
			Work: cfg.Limits.Issuing, Queue: cfg.Limits.Waiting, Logger: cfg.Logger, Registry: cfg.Registry,
		})
		if err != nil {
			return nil, err
		}
	}
	table := routes(strings.TrimSuffix(issuer.EscapedPath(), "/"))
	if s.public, err = s.mount(table, publicListener); err != nil {
		return nil, err
	}
	if s.admin, err = s.mount(table, adminSocket); err != nil {
		return nil, err
	}
	s.ops = s.opsHandler()
	return s, nil
}

// Public is the handler of the TLS listener, see [TLSConfig].
func (s *Server) Public() http.Handler { return s.public }

// Admin is the handler of the admin socket, whose http.Server must have [PeerCred] as its ConnContext: a connection
// without peer credentials is refused.
func (s *Server) Admin() http.Handler { return s.admin }

// Ops is the handler of the operations listener: /livez, /readyz and /metrics, without authentication.
func (s *Server) Ops() http.Handler { return s.ops }

// Stop makes /readyz say so and ends the streams. It is called before http.Server.Shutdown, which waits for streams.
// Requests are still served: load balancers need a while to look elsewhere.
func (s *Server) Stop() { s.stop.Do(func() { close(s.stopping) }) }

// listener is where a handler is served.
type listener uint8

const (
	publicListener listener = iota
	adminSocket
)

// mount makes the handler of one listener from the table.
func (s *Server) mount(table []route, l listener) (http.Handler, error) {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.Logger.SetOutput(discard{})
	e.IPExtractor = s.ipExtractor()
	oauth := map[string]bool{}
	for _, r := range table {
		if r.auth == authUnset || r.handle == nil {
			return nil, fmt.Errorf("api: the route %s %s names no authentication or no handler", r.method, r.path)
		}
		oauth[r.path] = oauth[r.path] || r.oauth
		if l == adminSocket && !r.socket() {
			continue
		}
		handler := s.guard(r, l)
		e.Add(r.method, r.path, handler)
		if r.method == http.MethodGet && r.auth == authPublic { // RFC 9110 9.1; the body is dropped by net/http
			e.Add(http.MethodHead, r.path, handler)
		}
	}
	e.Use(s.observe(oauth))
	// What a panic or echo itself leaves over; observe has answered everything else.
	e.HTTPErrorHandler = func(err error, c echo.Context) { s.writeError(c, err, false) }
	return e, nil
}

// ipExtractor believes X-Forwarded-For from the configured proxies only. Echo's default believes it from everybody.
func (s *Server) ipExtractor() echo.IPExtractor {
	if len(s.Proxies) == 0 {
		return echo.ExtractIPDirect()
	}
	trust := []echo.TrustOption{echo.TrustLoopback(false), echo.TrustLinkLocal(false), echo.TrustPrivateNet(false)}
	for _, prefix := range s.Proxies {
		trust = append(trust, echo.TrustIPRange(ipNet(prefix)))
	}
	return echo.ExtractIPFromXFFHeader(trust...)
}

// discard takes what echo's own logger writes; nothing is told there that isn't in ours.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
