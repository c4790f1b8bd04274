package observe

import (
	"context"
	"net/http"
	"net/netip"
	"sync"

	"github.com/countersign/countersign"
)

// Identity is who asks, as the layers that verified it say. The zero value is nobody.
type Identity struct {
	User    string     // unique across issuers: "" if no user stands behind the request
	Client  string     // the ID of the service that the connection proved, or the client of the user's token
	Address netip.Addr // of the connection, never from a header
}

// Request is what is known of one request. It is safe for concurrent use: a body is read beside the handler.
type Request struct {
	ID    string // of this request, in X-Request-Id and in the log
	Trace Trace

	metrics *metrics // nil: not counted
	mu      sync.Mutex
	who     Identity
	route   string
	code    countersign.Code // why it was refused; "": it was not
	cause   error
}

type requestKey struct{}

// NewContext gives ctx a Request. The middleware does it; by hand it is for tests.
func NewContext(ctx context.Context, r *Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// From is the Request of ctx; without one it is a new one that nobody looks at, and that names nobody.
func From(ctx context.Context) *Request {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		return r
	}
	return &Request{}
}

// Identity is who asks; the zero value: nobody was found out.
func (r *Request) Identity() Identity { r.mu.Lock(); defer r.mu.Unlock(); return r.who }

// SetIdentity is for the layer that verified it.
func (r *Request) SetIdentity(who Identity) { r.mu.Lock(); defer r.mu.Unlock(); r.who = who }

// Route is the name of the route; "" before one was found.
func (r *Request) Route() string { r.mu.Lock(); defer r.mu.Unlock(); return r.route }

// SetRoute names the route, once. It is a label of the metrics: a name of the configuration, never a path.
func (r *Request) SetRoute(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.route == "" && name != "" {
		r.route = name
		r.metrics.enter(name)
	}
}

// Fail remembers why the request can't be served, found where no answer can be written: while its body is read. The first
// one counts.
func (r *Request) Fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause == nil {
		r.cause = err
	}
}

// Failed is what Fail was told; nil: nothing. Who forwards a body and meets an error asks here first.
func (r *Request) Failed() error { r.mu.Lock(); defer r.mu.Unlock(); return r.cause }

// Code is why the request was refused; "": it was not.
func (r *Request) Code() countersign.Code { r.mu.Lock(); defer r.mu.Unlock(); return r.code }

func (r *Request) setCode(c countersign.Code) { r.mu.Lock(); defer r.mu.Unlock(); r.code = c }

// PeerAddress is the address of the connection; invalid if it has none.
func PeerAddress(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}
