package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/limit"
	"github.com/countersign/countersign/sts/relay/observe"
)

// recheck is how often the token of a request that is being served is looked at again.
const recheck = 5 * time.Second

// hop is how one request goes on to an upstream.
type hop struct {
	to        string // in words, for whom is told that it failed
	transport http.RoundTripper
	rewrite   func(*httputil.ProxyRequest) // sets URL and header of what is sent; hop-by-hop headers are gone already
	answer    func(http.Header)            // takes more out of the answer's header; may be nil
	timeout   time.Duration                // without progress, until the answer begins
	idle      time.Duration                // without progress after that
	// again judges the request's token once more; upgraded: the connection speaks another protocol by now. nil: there is none.
	again   func(ctx context.Context, upgraded bool) error
	buffers httputil.BufferPool
	log     *slog.Logger
}

var (
	errTimeout = errors.New("the upstream did not answer in time")
	errIdle    = errors.New("nothing moved for too long")
	errRevoked = errors.New("the token of the request is no longer good")
)

// serve sends r on and its answer back. An answer that breaks off in the middle is broken off here too.
func (h *hop) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	watch := newWatch(ctx, h, cancel)
	defer watch.stop()
	out := r.WithContext(ctx)
	out.Trailer = nil // they would come after everything was judged
	sent := &sending{watch: watch}
	if r.Body != nil && r.Body != http.NoBody {
		sent.ReadCloser, out.Body = r.Body, sent
	}
	proxy := httputil.ReverseProxy{
		Transport: h.transport, Rewrite: h.rewrite, BufferPool: h.buffers,
		ModifyResponse: func(response *http.Response) error { h.begin(response, watch); return nil },
		ErrorHandler:   func(w http.ResponseWriter, _ *http.Request, err error) { h.failed(ctx, w, r, sent, err) },
		ErrorLog:       slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, out)
}

// begin is called when the answer's header is there.
func (h *hop) begin(response *http.Response, watch *watch) {
	upgraded := response.StatusCode == http.StatusSwitchingProtocols
	watch.answered(h.idle, upgraded)
	cleanAnswer(response.Header)
	for _, name := range limit.Headers() {
		response.Header.Del(name)
	}
	if h.answer != nil {
		h.answer(response.Header)
	}
	for name := range response.Trailer {
		if hasPrefixFold(name, ours) {
			delete(response.Trailer, name)
		}
	}
	if both, ok := response.Body.(io.ReadWriteCloser); ok {
		response.Body = &tunnel{ReadWriteCloser: both, watch: watch}
		return
	}
	response.Body = &answering{ReadCloser: response.Body, response: response, watch: watch}
}

// failed answers a request whose answer has not begun.
func (h *hop) failed(ctx context.Context, w http.ResponseWriter, r *http.Request, sent *sending, err error) {
	request := observe.From(r.Context())
	if failed := request.Failed(); failed != nil { // its body was not what the route takes
		refuse(w, r, failed)
		return
	}
	var known *countersign.Error
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errTimeout) || errors.Is(cause, errIdle):
		refuse(w, r, countersign.Errorf(countersign.CodeRelayTimeout, "%s did not answer in time", h.to).Because(err))
	case errors.Is(cause, errRevoked):
		refuse(w, r, countersign.Errorf(countersign.CodeRelayToken, "the token is no longer good").Because(cause))
	case sent.stalled():
		w.Header().Set("Connection", "close")
		refuse(w, r, countersign.Errorf(countersign.CodeRelayStalled, "the body did not come in time").Because(err))
	case r.Context().Err() != nil:
		request.Fail(errors.New("the caller went away"))
		panic(http.ErrAbortHandler)
	case errors.As(err, &known):
		refuse(w, r, known)
	default:
		refuse(w, r, countersign.Errorf(countersign.CodeRelayUpstream, "%s could not be reached, or broke off", h.to).Because(err))
	}
}

// refuse answers in place of an upstream, or before one is asked.
func refuse(w http.ResponseWriter, r *http.Request, err error) { observe.Refuse(w, r, err) }

// watch ends a request on which nothing moves, or whose token stops being good.
type watch struct {
	ctx      context.Context //nolint:containedctx // it is the request's
	hop      *hop
	cancel   context.CancelCauseFunc
	pause    atomic.Int64 // nanoseconds that may pass without progress
	begun    atomic.Bool  // the answer has
	upgraded atomic.Bool
	timer    *time.Timer

	mu      sync.Mutex
	stopped bool
	look    *time.Timer
}

func newWatch(ctx context.Context, h *hop, cancel context.CancelCauseFunc) *watch {
	w := &watch{ctx: ctx, hop: h, cancel: cancel}
	w.pause.Store(int64(h.timeout))
	w.timer = time.AfterFunc(h.timeout, func() {
		if w.begun.Load() {
			cancel(errIdle)
		} else {
			cancel(errTimeout)
		}
	})
	if h.again != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.look = time.AfterFunc(recheck, w.judge)
	}
	return w
}

func (w *watch) progress() { w.timer.Reset(time.Duration(w.pause.Load())) }

func (w *watch) answered(idle time.Duration, upgraded bool) {
	w.pause.Store(int64(idle))
	w.upgraded.Store(upgraded)
	w.begun.Store(true)
	w.progress()
}

// judge looks at the token again. It runs on a timer's goroutine.
func (w *watch) judge() {
	if err := w.hop.again(w.ctx, w.upgraded.Load()); err != nil {
		w.cancel(errors.Join(errRevoked, err))
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.look.Reset(recheck)
	}
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
	if w.look != nil {
		w.look.Stop()
	}
}

// sending is the request's body on its way to the upstream.
type sending struct {
	io.ReadCloser
	watch  *watch
	broken atomic.Bool // reading from the caller failed
}

// Read implements io.Reader.
func (s *sending) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if n > 0 || err == io.EOF {
		s.watch.progress()
	}
	if err != nil && err != io.EOF {
		s.broken.Store(true)
	}
	return n, err
}

func (s *sending) stalled() bool { return s.broken.Load() }

// answering is the answer's body on its way back.
type answering struct {
	io.ReadCloser
	response *http.Response
	watch    *watch
}

// Read implements io.Reader.
func (a *answering) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	a.watch.progress()
	if err == io.EOF { // now the trailers are there that nobody announced
		for name := range a.response.Trailer {
			if hasPrefixFold(name, ours) {
				delete(a.response.Trailer, name)
			}
		}
	}
	return n, err
}

// tunnel is the upstream's side of an upgraded connection.
type tunnel struct {
	io.ReadWriteCloser
	watch *watch
}

// Read implements io.Reader.
func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.ReadWriteCloser.Read(p)
	t.watch.progress()
	return n, err
}

// Write implements io.Writer.
func (t *tunnel) Write(p []byte) (int, error) {
	t.watch.progress()
	return t.ReadWriteCloser.Write(p)
}
