package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/relay/observe"
)

// exchangeTime bounds the wait for the authority: a call without a token is refused, and soon.
const exchangeTime = 10 * time.Second

// service is a service that requests go on to, over mutual TLS and with a token for it alone.
type service struct {
	cfg     *Outbound
	target  *url.URL
	src     *mtls.Source
	tokens  *mtls.Tokens
	foreign []string
	buffers httputil.BufferPool
	log     *slog.Logger

	mu      sync.Mutex
	serial  string // of the certificate that transport's connections show
	present *http.Transport
}

func newService(cfg *Outbound, p *parts) (*service, error) {
	target, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("the url of %s: %w", cfg.Name, err)
	}
	return &service{
		cfg: cfg, target: target, src: p.src, tokens: p.tokens, foreign: foreignHeaders(), buffers: p.buffers, log: p.log,
	}, nil
}

// token is one for this service: for the user behind a, or, if a is nil, for the service that we are.
func (s *service) token(ctx context.Context, a *admitted) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	var token mtls.Token
	var err error
	if a == nil {
		token, err = s.tokens.Machine(ctx, s.cfg.Service, s.cfg.Scopes...)
	} else {
		token, err = s.tokens.Exchange(ctx, a.token, s.cfg.Service, s.cfg.Scopes...)
	}
	if err != nil {
		return "", s.noToken(err)
	}
	return token.Value, nil
}

// noToken says why there is none. It is on the operator to find out more, with the id of the authority's own record.
func (s *service) noToken(err error) error {
	var refused *client.OAuthError
	switch {
	case errors.As(err, &refused) && refused.Status < 500 && refused.Body.Error != "invalid_client" && refused.Status != http.StatusTooManyRequests:
		return countersign.Errorf(countersign.CodeRelayExchange, "the authority gives no token for %s: %s (%s, its request %s)",
			s.cfg.Service, refused.Body.Error, refused.Body.Code, refused.Body.RequestID).Because(err)
	case errors.As(err, &refused) && refused.Body.Error == "invalid_client":
		return countersign.Errorf(countersign.CodeRelayIdentity, "the authority does not take the relay's certificate").Because(err)
	case errors.Is(err, mtls.ErrNone), errors.Is(err, mtls.ErrExpired), errors.Is(err, mtls.ErrClosed):
		return countersign.Errorf(countersign.CodeRelayIdentity, "the relay has no certificate that is good now").Because(err)
	}
	return countersign.Errorf(countersign.CodeRelayAuthority, "the authority can't be asked for a token for %s", s.cfg.Service).Because(err)
}

// over gives a token and connections that show the certificate that it may be bound to, or a later one.
func (s *service) over(ctx context.Context, a *admitted) (string, *http.Transport, error) {
	for {
		before, err := s.src.Identity()
		if err != nil {
			return "", nil, s.noToken(err)
		}
		token, err := s.token(ctx, a)
		if err != nil {
			return "", nil, err
		}
		now, err := s.src.Identity()
		if err != nil {
			return "", nil, s.noToken(err)
		}
		if before.Serial != now.Serial { // renewed meanwhile, which happens once in hours: it may be bound to either
			continue
		}
		over, err := s.connections(now.Serial, now.ID.TrustDomain())
		return token, over, err
	}
}

// connections are those that show the certificate of that serial. After a renewal there are new ones; those before end when
// their requests do.
func (s *service) connections(serial, domain string) (*http.Transport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present != nil && s.serial == serial {
		return s.present, nil
	}
	id, err := countersign.NewServiceID(domain, s.cfg.Service)
	if err != nil {
		return nil, err
	}
	if s.present != nil {
		s.present.CloseIdleConnections()
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	s.serial, s.present = serial, &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if s.cfg.Address != "" {
				address = s.cfg.Address
			}
			return dialer.DialContext(ctx, network, address)
		},
		TLSClientConfig:        mtls.Client(s.src, mtls.Only(id)),
		TLSHandshakeTimeout:    5 * time.Second,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        60 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ExpectContinueTimeout:  time.Second,
		DisableCompression:     true,
	}
	return s.present, nil
}

func (s *service) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present != nil {
		s.present.CloseIdleConnections()
	}
}

// forward sends the request on, with a token that was exchanged for this service, or refuses it. strip is taken from the front
// of the path.
func (s *service) forward(w http.ResponseWriter, r *http.Request, a *admitted, timeout, idle Duration, strip string) {
	token, over, err := s.over(r.Context(), a)
	if err != nil {
		if r.Context().Err() != nil {
			observe.From(r.Context()).Fail(errors.New("the caller went away"))
			panic(http.ErrAbortHandler)
		}
		refuse(w, r, err)
		return
	}
	h := &hop{
		to: "the service " + s.cfg.Service, transport: over, timeout: time.Duration(timeout), idle: time.Duration(idle),
		buffers: s.buffers, log: s.log,
		rewrite: func(p *httputil.ProxyRequest) {
			clean(p.Out.Header, s.foreign)
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "https", s.target.Host, s.target.Host
			stripPath(p.Out.URL, strip)
			if !s.cfg.Cookies {
				p.Out.Header.Del("Cookie")
			}
			// Whatever credential came is its sender's and this relay's business; only the exchanged one goes on.
			p.Out.Header.Del("Dpop")
			p.Out.Header.Set("Authorization", "Bearer "+token)
			observed(p)
		},
		answer: func(header http.Header) {
			if !s.cfg.Cookies {
				header.Del("Set-Cookie")
			}
		},
	}
	if a != nil {
		h.again = a.still
	}
	h.serve(w, r)
}

// observed sets what the caller might have had removed by naming it in Connection (RFC 9110 7.6.1).
func observed(p *httputil.ProxyRequest) {
	request := observe.From(p.In.Context())
	p.Out.Header.Set(observe.RequestID, request.ID)
	p.Out.Header.Set("Traceparent", request.Trace.String())
	if request.Trace.State != "" {
		p.Out.Header.Set("Tracestate", request.Trace.State)
	}
}

// stripPath takes prefix from the front of the path. The routes have seen that it stands there.
func stripPath(u *url.URL, prefix string) {
	if prefix == "" {
		return
	}
	cut := func(path string) string {
		if len(path) >= len(prefix) && path[:len(prefix)] == prefix {
			path = path[len(prefix):]
		}
		if path == "" || path[0] != '/' {
			path = "/" + path
		}
		return path
	}
	raw := u.RawPath
	u.Path, u.RawPath = cut(u.Path), ""
	if raw != "" {
		u.RawPath = cut(raw) // if it does not fit Path any more, it is ignored (net/url)
	}
}
