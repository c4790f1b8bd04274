package observe

import (
	"bufio"
	"net"
	"net/http"
	"sync"
)

// writer counts what is answered. Unwrap lets http.ResponseController reach everything of the inner one.
type writer struct {
	http.ResponseWriter

	mu       sync.Mutex // a proxied 1xx comes from another goroutine
	status   int        // 0: nothing was answered
	bytes    int64
	upgraded bool
}

func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	w.mu.Lock()
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) { // the others are not the last word
		w.status = status
	}
	w.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.bytes += int64(n)
	return n, err
}

// Hijack is how a proxy upgrades a connection: it writes the 101 itself.
func (w *writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffer, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.upgraded = true
		if w.status == 0 {
			w.status = http.StatusSwitchingProtocols
		}
	}
	return conn, buffer, err
}

// result is what was answered; net/http answers 200 for a handler that says nothing.
func (w *writer) result() (status int, bytes int64, upgraded bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 {
		return http.StatusOK, w.bytes, w.upgraded
	}
	return w.status, w.bytes, w.upgraded
}
