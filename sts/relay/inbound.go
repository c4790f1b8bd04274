package relay

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/mtls"
	"github.com/countersign/countersign/sts/relay/filter"
	"github.com/countersign/countersign/sts/relay/limit"
	"github.com/countersign/countersign/sts/relay/observe"
	"github.com/countersign/countersign/sts/verify"
)

// inbound takes the requests of one listener, public or internal.
type inbound struct {
	public   bool
	verifier *verify.Verifier
	live     *live
	app      *application // nil: no route leads to it
	services map[string]*service
	foreign  []string
	log      *slog.Logger
}

// caller is what was found out about who asks.
type caller struct {
	*admitted                // nil: a route without a token
	id        countersign.ID // by mTLS; zero: at the public listener
}

type callerKey struct{}

// handler is the whole of the listener but for what observe does around it.
func (in *inbound) handler(routes []*Route, rate *limit.Config) (http.Handler, error) {
	table := make([]filter.Route, len(routes))
	for i, r := range routes {
		table[i] = r.Route
	}
	router, err := filter.NewRouter(table)
	if err != nil {
		return nil, err
	}
	handlers := make([]http.Handler, len(routes))
	for i, r := range routes {
		if handlers[i], err = in.route(r); err != nil {
			return nil, err
		}
	}
	handler := router.Handler(func(i int) http.Handler { return handlers[i] })
	if in.public {
		// Who is nobody does not even learn which routes there are.
		handler = in.authenticate(handler)
	}
	if rate != nil {
		limiter, err := limit.New(*rate, limit.Options{})
		if err != nil {
			return nil, err
		}
		handler = limiter.Middleware(handler)
	}
	return in.clean(handler), nil
}

// clean is first: nothing inside sees a header that only the relay may set.
func (in *inbound) clean(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		clean(r.Header, in.foreign)
		next.ServeHTTP(w, r)
	})
}

// route is what happens to the requests of one route, from the token on.
func (in *inbound) route(r *Route) (http.Handler, error) {
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) { in.forward(w, request, r) })
	if r.OpenAPI.File != "" {
		validator, err := filter.NewValidator(r.Route, "")
		if err != nil {
			return nil, err
		}
		handler = validator.Middleware(handler)
	}
	handler = filter.Limits(r.Route)(handler)
	if r.Rate != nil {
		limiter, err := limit.New(*r.Rate, limit.Options{})
		if err != nil {
			return nil, err
		}
		handler = limiter.Middleware(handler)
	}
	handler = in.scopes(r, handler)
	switch {
	case in.public:
	case r.Token == TokenNone:
		handler = in.certificateAlone(handler)
	default:
		handler = in.authenticate(handler)
	}
	return handler, nil
}

// peer is the service at the other end of the connection, which the handshake has admitted.
func (in *inbound) peer(w http.ResponseWriter, r *http.Request) (countersign.ID, bool) {
	id, ok := mtls.Peer(r.TLS)
	if !ok || verify.Peer(r.TLS) == nil {
		refuse(w, r, countersign.Errorf(countersign.CodeBadCertificate, "the connection has no verified certificate of a service"))
	}
	return id, ok
}

// certificateAlone lets a caller of the call graph through without a token. One that it sends says nothing here.
func (in *inbound) certificateAlone(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := in.peer(w, r)
		if !ok {
			return
		}
		observe.From(r.Context()).SetIdentity(observe.Identity{Client: id.String(), Address: observe.PeerAddress(r)})
		next.ServeHTTP(w, withCaller(r, &caller{id: id}))
	})
}

// authenticate verifies the token, and at the internal listener that who sends it is who it was issued to.
func (in *inbound) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := &caller{}
		if !in.public {
			var ok bool
			if who.id, ok = in.peer(w, r); !ok {
				return
			}
		}
		claims, err := in.verifier.VerifyRequest(r)
		if err != nil {
			refuseToken(w, r, in.verifier, err)
			return
		}
		client := claims.ClientID
		if !in.public {
			client = who.id.String()
			// A token that is bound to no certificate could be one that another caller let slip.
			if claims.ClientID != client {
				w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
				refuse(w, r, countersign.Errorf(countersign.CodeRelayCaller, "the token was not issued to %s", client))
				return
			}
		}
		user, _ := userOf(claims)
		if user != "" && in.public {
			user = claims.Issuer + " " + user
		}
		observe.From(r.Context()).SetIdentity(observe.Identity{User: user, Client: client, Address: observe.PeerAddress(r)})
		who.admitted = &admitted{
			token: bearer(r.Header), claims: claims, verifier: in.verifier, peer: verify.Peer(r.TLS), proved: claims.ProofKey != "",
		}
		if in.public {
			who.peer = nil
		}
		next.ServeHTTP(w, withCaller(r, who))
	})
}

func withCaller(r *http.Request, c *caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

func callerOf(r *http.Request) *caller {
	c, _ := r.Context().Value(callerKey{}).(*caller)
	return c
}

// scopes holds the token against what the route needs.
func (in *inbound) scopes(route *Route, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if who := callerOf(r); who.admitted != nil {
			if err := needsAll(who.claims, route.Scopes); err != nil {
				refuseToken(w, r, in.verifier, err)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// forward hands the request to the application, or on to a service.
func (in *inbound) forward(w http.ResponseWriter, r *http.Request, route *Route) {
	who := callerOf(r)
	if route.To != ToApp {
		in.services[route.To].forward(w, r, who.admitted, route.Timeout, route.Idle, route.Strip)
		return
	}
	is := identity{client: who.id}
	h := &hop{
		to: "the application", transport: in.app.transport, timeout: time.Duration(route.Timeout), idle: time.Duration(route.Idle),
		buffers: in.app.buffers, log: in.log,
	}
	if who.admitted != nil {
		handle, done, ok := in.live.admit(who.admitted)
		if !ok {
			refuse(w, r, countersign.Errorf(countersign.CodeRelayHandles, "as many requests as may hold a handle are being served").After(time.Second))
			return
		}
		defer done()
		is.claims, is.handle, h.again = who.claims, handle, who.still
	}
	h.rewrite = func(p *httputil.ProxyRequest) { in.app.rewrite(p, is, who, route.Strip) }
	h.serve(w, r)
}
