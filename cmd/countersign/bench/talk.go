package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// talk is a connection of HTTP/1.1 with requests that were made before: what the load costs is taken from the processors that
// the daemon has.
type talk struct {
	conn net.Conn
	in   *bufio.Reader
	body bytes.Buffer
}

func newTalk(conn net.Conn) *talk { return &talk{conn: conn, in: bufio.NewReader(conn)} }

// dial is a connection to the daemon whose handshake is done.
func (b *certBench) dial(ctx context.Context, cfg *tls.Config) (*talk, error) {
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", b.address)
	if err != nil {
		return nil, err
	}
	return newTalk(conn), nil
}

// do sends a request and gives the body of the answer, which is good until the next one.
func (t *talk) do(request []byte) ([]byte, error) {
	if _, err := t.conn.Write(request); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(t.in, nil)
	if err != nil {
		return nil, err
	}
	t.body.Reset()
	if _, err := t.body.ReadFrom(io.LimitReader(response.Body, 1<<20)); err != nil {
		return nil, err
	}
	if response.StatusCode/100 != 2 {
		return nil, fmt.Errorf("the daemon answered %s: %s", response.Status, t.body.Bytes())
	}
	return t.body.Bytes(), nil
}

func (t *talk) close() {
	if t != nil {
		t.conn.Close()
	}
}

// meter adds up what rounds of requests cost.
type meter struct {
	pid            int
	took           []time.Duration
	wall           time.Duration
	server, client time.Duration // CPU
}

// run does n things, of which as many as there are workers at a time. It ends at the first error.
func (m *meter) run(ctx context.Context, workers, n int, do func(worker, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	took := make([]time.Duration, n)
	server, err := usageOf(m.pid)
	if err != nil {
		return err
	}
	client, begun := ownCPU(), time.Now()
	var next atomic.Int64
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				begun := time.Now()
				if err := do(worker, i); err != nil {
					cancel(err)
					return
				}
				took[i] = time.Since(begun)
			}
		})
	}
	all.Wait()
	m.wall += time.Since(begun)
	m.client += ownCPU() - client
	m.took = append(m.took, took...)
	after, err := usageOf(m.pid)
	m.server += after.cpu - server.cpu
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// row is what all rounds cost, a request.
func (m *meter) row(name string, connections int) CertificateRow {
	n := len(m.took)
	if n == 0 {
		return CertificateRow{}
	}
	slices.Sort(m.took)
	return CertificateRow{
		Name: name, Connections: connections, Rate: float64(n) / m.wall.Seconds(), P50: ms(m.took[n/2]), P99: ms(m.took[n*99/100]),
		CPU: ms(m.server) / float64(n), ClientCPU: ms(m.client) / float64(n),
	}
}

// ownCPU is the time that this process has used.
func ownCPU() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r) // can't fail with this argument
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
