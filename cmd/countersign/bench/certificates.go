package bench

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
)

// CertificateOptions say how to load the endpoint for certificates.
type CertificateOptions struct {
	Executable  string    // our own binary
	Progress    io.Writer // one line a row
	Connections []int     // for each a row: requests that are under way at a time
	Requests    int       // of each row
}

// CertificateReport is what a benchmark of certificates found.
type CertificateReport struct {
	Machine  string           `json:"machine"`
	Requests int              `json:"requests"` // of each row
	Raw      CertificateRaw   `json:"raw"`
	Rows     []CertificateRow `json:"rows"`
}

// CertificateRow is one phase.
type CertificateRow struct {
	Name        string  `json:"name"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"rate"` // per second
	P50         float64 `json:"p50_ms"`
	P99         float64 `json:"p99_ms"`
	CPU         float64 `json:"server_cpu_ms"` // of the daemon, a certificate
	ClientCPU   float64 `json:"client_cpu_ms"` // of the load, a certificate
	TimesRaw    float64 `json:"times_raw"`     // CPU over that of the bare cryptography
}

const (
	service  = "gateway"
	lineages = 512 // that are renewed in turn: few, because each connection that waits costs the daemon garbage collection
)

// Issue runs the benchmark of enrolments: a certificate for each of as many join tokens, on kept connections without a client
// certificate. Tokens, keys and requests are made before.
func Issue(ctx context.Context, o CertificateOptions) (*CertificateReport, error) {
	return certificates(ctx, o, func(b *certBench, raw CertificateRaw, row int) ([]CertificateRow, error) {
		b.say("issue: %d join tokens and requests are made", o.Requests)
		orders, err := b.enrolments(ctx, o.Requests)
		if err != nil {
			return nil, err
		}
		r, err := b.issue(ctx, orders, row)
		r.TimesRaw = r.CPU / (raw.Request + raw.Certificate)
		return []CertificateRow{r}, err
	})
}

// Renew runs the benchmark of renewals: as many services as lineages renew their certificates, each with a new key, by mutual TLS
// with the newest that they have. "kept": each has its connection already, on which it was heard once. "new": each comes with a new
// connection, as agents do, and the handshake counts.
func Renew(ctx context.Context, o CertificateOptions) (*CertificateReport, error) {
	var all []*holder
	return certificates(ctx, o, func(b *certBench, raw CertificateRaw, row int) (rows []CertificateRow, err error) {
		if all == nil {
			if all, err = b.holders(ctx, min(lineages, o.Requests)); err != nil {
				return nil, err
			}
		}
		for _, kind := range []struct {
			name string
			kept bool
			raw  float64
		}{{"kept", true, raw.Request + raw.Certificate}, {"new", false, raw.Request + raw.Certificate + raw.Handshake}} {
			b.say("renew: %d on %d connections (%s)", o.Requests, row, kind.name)
			r, err := b.renew(ctx, all, row, kind.kept)
			if err != nil {
				return rows, err
			}
			r.Name, r.TimesRaw = kind.name, r.CPU/kind.raw
			rows = append(rows, r)
		}
		return rows, nil
	})
}

func certificates(ctx context.Context, o CertificateOptions, row func(*certBench, CertificateRaw, int) ([]CertificateRow, error)) (*CertificateReport, error) {
	if len(o.Connections) == 0 || o.Requests < 100 {
		return nil, errors.New("there must be numbers of connections, and 100 requests or more")
	}
	for _, n := range o.Connections {
		if n < 1 || n > 1000 {
			return nil, errors.New("connections must be 1 to 1000")
		}
	}
	dir, leave, err := workplace("countersign-bench-")
	if err != nil {
		return nil, err
	}
	defer leave()
	b := &certBench{CertificateOptions: o, host: local.Host{Executable: o.Executable, Dir: dir}}
	defer b.host.StopAll()
	b.say("starting an authority")
	if err := b.start(ctx); err != nil {
		return nil, err
	}
	report := &CertificateReport{Machine: machine(), Requests: o.Requests}
	if report.Raw, err = measureCertificateRaw(); err != nil {
		return nil, err
	}
	for _, n := range o.Connections {
		rows, err := row(b, report.Raw, n)
		if err != nil {
			return nil, fmt.Errorf("on %d connections: %w", n, err)
		}
		report.Rows = append(report.Rows, rows...)
	}
	return report, nil
}

type certBench struct {
	CertificateOptions
	host      local.Host
	authority *local.Authority
	address   string
	tls       *tls.Config
}

func (b *certBench) say(format string, args ...any) { fmt.Fprintf(b.Progress, format+"\n", args...) }

func (b *certBench) start(ctx context.Context) (err error) {
	if b.authority, err = b.host.StartAuthority(ctx, "bench.internal", "COUNTERSIGN_LIMITS_IDENTITY=0"); err != nil {
		return err
	}
	document := filepath.Join(b.host.Dir, "policy.yaml")
	if err := os.WriteFile(document, []byte("trust_domain: bench.internal\nservices:\n  - {name: "+service+"}\n"), 0o600); err != nil {
		return err
	}
	if _, err := b.host.Run(ctx, 0, "--dir", b.host.AuthorityDir(), "policy", "apply", document); err != nil {
		return err
	}
	pool, err := local.Pool(filepath.Join(b.host.AuthorityDir(), "root.pem"))
	b.address = strings.TrimPrefix(b.authority.Issuer, "https://")
	b.tls = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "localhost"}
	return err
}

// enrolment is a request with the join token in it, and the key that it is for.
type enrolment struct {
	key     crypto.Signer
	request []byte
}

// enrolments are n requests for certificates, each with a join token of its own.
func (b *certBench) enrolments(ctx context.Context, n int) ([]enrolment, error) {
	const makers = 16
	all := make([]enrolment, n)
	group, ctx := errgroup.WithContext(ctx)
	for m := range makers {
		group.Go(func() error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(b.host.AuthorityDir(), "admin.sock"))
			if err != nil {
				return err
			}
			c := newTalk(conn)
			defer c.close()
			ask := message("/v1/join-tokens", "", []byte(`{"service":"`+service+`","ttl":"1h"}`))
			for i := m; i < n && ctx.Err() == nil; i += makers {
				body, err := c.do(ask)
				if err != nil {
					return err
				}
				var made wire.JoinToken
				if err := json.Unmarshal(body, &made); err != nil {
					return err
				}
				if all[i], err = newEnrolment(made.Token); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return all, group.Wait()
}

// newEnrolment makes a key and a request for it, of who holds the join token; "": of who comes with a certificate.
func newEnrolment(token string) (enrolment, error) {
	key, err := identity.NewKey("P-256")
	if err != nil {
		return enrolment{}, err
	}
	csr, err := identity.CSR(key)
	if err != nil {
		return enrolment{}, err
	}
	body, err := json.Marshal(wire.CertificateRequest{CSR: string(csr)})
	return enrolment{key: key, request: message("/v1/certificates", token, body)}, err
}

// issue sends the enrolments over n kept connections.
func (b *certBench) issue(ctx context.Context, all []enrolment, n int) (CertificateRow, error) {
	talks := make([]*talk, n)
	for i := range talks {
		var err error
		if talks[i], err = b.dial(ctx, b.tls); err != nil {
			return CertificateRow{}, err
		}
		defer talks[i].close()
	}
	m := meter{pid: b.authority.Process.PID()}
	err := m.run(ctx, n, len(all), func(worker, i int) error {
		_, err := talks[worker].do(all[i].request)
		return err
	})
	return m.row("issue", n), err
}

// holder is a service with its newest certificate, and its next key.
type holder struct {
	certificate tls.Certificate
	next        enrolment
	talk        *talk
	answer      []byte
}

// holders enrols n services of one name.
func (b *certBench) holders(ctx context.Context, n int) ([]*holder, error) {
	b.say("renew: %d lineages are enrolled", n)
	orders, err := b.enrolments(ctx, n)
	if err != nil {
		return nil, err
	}
	all := make([]*holder, n)
	return all, inParallel(ctx, n, func(i int) error {
		c, err := b.dial(ctx, b.tls)
		if err != nil {
			return err
		}
		defer c.close()
		answer, err := c.do(orders[i].request)
		all[i] = &holder{next: orders[i], answer: bytes.Clone(answer)}
		return err
	})
}

// ready makes the certificate that was answered last the holder's own, and its next request. connected: on a connection on
// which the holder was heard once, so that the chain is verified and first sight recorded.
func (b *certBench) ready(ctx context.Context, h *holder, connected bool) error {
	var got wire.Certificate
	if err := json.Unmarshal(h.answer, &got); err != nil {
		return err
	}
	chain, err := identity.ParseCertificates([]byte(got.Certificate))
	if err != nil {
		return err
	}
	h.certificate = tls.Certificate{PrivateKey: h.next.key, Leaf: chain[0]}
	for _, c := range chain {
		h.certificate.Certificate = append(h.certificate.Certificate, c.Raw)
	}
	if h.next, err = newEnrolment(""); err != nil || !connected {
		return err
	}
	if h.talk, err = b.dial(ctx, b.mutual(h)); err != nil {
		return err
	}
	_, err = h.talk.do([]byte("GET /v1/callers HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	return err
}

func (b *certBench) mutual(h *holder) *tls.Config {
	cfg := b.tls.Clone()
	cfg.Certificates = []tls.Certificate{h.certificate}
	return cfg
}

// renew lets the holders renew in turn, n at a time, until all requests are sent.
func (b *certBench) renew(ctx context.Context, all []*holder, n int, kept bool) (CertificateRow, error) {
	m := meter{pid: b.authority.Process.PID()}
	for left := b.Requests; left > 0; left -= len(all) {
		round := all[:min(left, len(all))]
		if err := inParallel(ctx, len(round), func(i int) error { return b.ready(ctx, round[i], kept) }); err != nil {
			return CertificateRow{}, err
		}
		err := m.run(ctx, n, len(round), func(_, i int) (err error) {
			h := round[i]
			if !kept {
				if h.talk, err = b.dial(ctx, b.mutual(h)); err != nil {
					return err
				}
				defer h.talk.close()
			}
			h.answer, err = h.talk.do(h.next.request)
			return err
		})
		for _, h := range round {
			h.answer = bytes.Clone(h.answer)
			h.talk.close()
		}
		if err != nil {
			return CertificateRow{}, err
		}
	}
	return m.row("renew", n), nil
}

// inParallel does n things outside of any measurement.
func inParallel(ctx context.Context, n int, do func(i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}

// message is a request as it goes over the wire.
func message(path, token string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n", path, len(body))
	if token != "" {
		fmt.Fprintf(&b, "Authorization: Bearer %s\r\n", token)
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}
