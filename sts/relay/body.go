package relay

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

// boundedBody says why reading failed to who answers for it.
type boundedBody struct {
	io.ReadCloser
	request *observe.Request
	most    int64
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		b.request.Fail(countersign.Errorf(countersign.CodeRelayTooLarge, "the body has over %d bytes", b.most))
	}
	return n, err
}

// buffers are those through which bodies are copied.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func newBuffers() *buffers {
	return &buffers{pool: sync.Pool{New: func() any { return new([bufferSize]byte) }}}
}

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte { return b.pool.Get().(*[bufferSize]byte)[:] }

// Put implements httputil.BufferPool.
func (b *buffers) Put(p []byte) {
	if cap(p) >= bufferSize {
		b.pool.Put((*[bufferSize]byte)(p[:bufferSize]))
	}
}

// unstalled lets neither the reading nor the writing of a body pause for longer than stall: a caller that does nothing holds
// nothing. What it has to bound is one read and one write; how long a whole body takes is bounded by nobody.
func unstalled(stall time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &pacedBody{ReadCloser: r.Body, control: control, stall: stall}
		}
		if r.ProtoMajor == 1 { // of HTTP/2 each stream has its own
			_ = control.SetWriteDeadline(time.Time{})                              // that of the request before on this connection
			defer func() { _ = control.SetWriteDeadline(time.Now().Add(stall)) }() // what is left in the buffers
		}
		next.ServeHTTP(&pacedWriter{ResponseWriter: w, control: control, stall: stall}, r)
	})
}

type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
	stall   time.Duration
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(b.stall)) // a connection without deadlines is none of ours
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		// From here on the server waits for the connection to end: the deadline would be taken for that while the answer is made.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	// After any other error it stays: net/http reads what is left of a body before it answers, which may never come.
	return n, err
}

type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

// Unwrap lets http.ResponseController reach the inner one.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements http.ResponseWriter.
func (w *pacedWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(w.stall))
	return w.ResponseWriter.Write(p)
}

// FlushError is how http.ResponseController flushes.
func (w *pacedWriter) FlushError() error {
	_ = w.control.SetWriteDeadline(time.Now().Add(w.stall))
	return w.control.Flush()
}
