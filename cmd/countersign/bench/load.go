package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load sends forms over connections that are kept, HTTP/1.1, one request at a time on each.
type load struct {
	url         string
	tls         *tls.Config
	connections int
	clients     []*http.Client
}

// run sends n requests, the forms in turn, and gives the time that each took. It ends at the first that is not answered
// with 200.
func (l *load) run(ctx context.Context, forms []string, n int) ([]time.Duration, error) {
	for len(l.clients) < l.connections {
		l.clients = append(l.clients, &http.Client{Transport: &http.Transport{
			TLSClientConfig: l.tls.Clone(), MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1,
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	took := make([]time.Duration, n)
	var next atomic.Int64
	var all sync.WaitGroup
	for _, client := range l.clients {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				begun := time.Now()
				if err := post(ctx, client, l.url, forms[i%len(forms)]); err != nil {
					cancel(err)
					return
				}
				took[i] = time.Since(begun)
			}
		})
	}
	all.Wait()
	return took, context.Cause(ctx)
}

func post(ctx context.Context, client *http.Client, url, form string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(form))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return fmt.Errorf("the daemon answered %s: %s", response.Status, said)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

func (l *load) close() {
	for _, client := range l.clients {
		client.CloseIdleConnections()
	}
}
