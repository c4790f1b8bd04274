package daemon

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

// machine is what stands around a daemon: a wall clock that can be set, a boot clock that can't, and its callers.
type machine struct {
	*testing.T
	dir    Dir
	cfg    Config
	offset atomic.Int64 // of the wall clock
	asleep atomic.Int64 // what both clocks gained while the process stood still

	*Daemon
	stop  func()
	admin *client.Client
	roots *x509.CertPool
}

func (m *machine) wall() time.Time {
	return time.Now().Round(0).Add(time.Duration(m.offset.Load() + m.asleep.Load()))
}

func (m *machine) boot() time.Duration {
	return time.Since(epoch()) + time.Duration(m.asleep.Load())
}

func (m *machine) set(offset time.Duration) { m.offset.Store(int64(offset)) }

func (m *machine) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// on starts the daemon. Nothing is sampled but by the daemon's loop, and nothing waits for that.
func (m *machine) on() {
	m.Helper()
	d, err := Start(m.Context(), Options{Dir: m.dir, Config: m.cfg, Version: "test", Now: m.wall, Boot: m.boot})
	m.must(err)
	m.Daemon, m.stop = d, run(m.T, d)
	path, err := m.dir.Socket()
	m.must(err)
	m.admin, err = client.New(client.Config{Socket: path})
	m.must(err)
	m.Cleanup(m.admin.Close)
	pool := x509.NewCertPool()
	for _, root := range d.ca.Roots() {
		pool.AddCert(root)
	}
	m.roots = pool
}

// public is a client of the TLS listener, with an identity or nil.
func (m *machine) public(id *identity.Identity) *client.Client {
	m.Helper()
	_, port, err := net.SplitHostPort(m.Addr("public").String())
	m.must(err)
	c, err := client.New(client.Config{URL: "https://localhost:" + port, Identity: id, Roots: m.roots, TrustDomain: "shop.internal"})
	m.must(err)
	m.Cleanup(c.Close)
	return c
}

func (m *machine) request() (wire.CertificateRequest, *identity.Identity) {
	m.Helper()
	key, err := identity.NewKey("")
	m.must(err)
	csr, err := identity.CSR(key)
	m.must(err)
	return wire.CertificateRequest{CSR: string(csr)}, &identity.Identity{Key: key, Roots: m.ca.Roots()}
}

func (m *machine) token(service string) string {
	m.Helper()
	made, err := m.admin.CreateJoinToken(m.Context(), wire.JoinTokenRequest{Service: service, TTL: countersign.Duration(day)})
	m.must(err)
	return made.Token
}

func (m *machine) join(service string) *identity.Identity {
	m.Helper()
	rq, id := m.request()
	cert, err := m.public(nil).Join(m.Context(), m.token(service), rq)
	m.must(err)
	id.ID, id.Serial = cert.ID, cert.Serial
	for rest := []byte(cert.Certificate); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return id
		}
		parsed, err := x509.ParseCertificate(block.Bytes)
		m.must(err)
		id.Chain = append(id.Chain, parsed)
	}
}

func (m *machine) exchange(id *identity.Identity) error {
	m.Helper()
	_, err := m.public(id).Token(m.Context(), url.Values{"grant_type": {"client_credentials"}, "audience": {"b"}})
	return err
}

// written is all that the daemon keeps but its audit log.
func (m *machine) written() string {
	m.Helper()
	certificates, err := m.admin.Certificates(m.Context(), client.CertificateQuery{Limit: 1000})
	m.must(err)
	keys, err := m.admin.Keys(m.Context())
	m.must(err)
	history, err := m.admin.PolicyHistory(m.Context(), 100)
	m.must(err)
	all, err := json.MarshalIndent([]any{certificates, keys, history}, "", " ")
	m.must(err)
	return string(all)
}

// events are the types of the audit records after seq.
func (m *machine) events(seq uint64) []string {
	m.Helper()
	page, err := m.admin.Audit(m.Context(), client.AuditQuery{After: seq, Limit: 1000})
	m.must(err)
	var types []string
	for _, r := range page.Records {
		types = append(types, r.Type)
	}
	return types
}

func (m *machine) readyz() (int, string) {
	m.Helper()
	response, err := http.Get("http://" + m.Addr("ops").String() + "/readyz")
	m.must(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	m.must(err)
	return response.StatusCode, string(body)
}

// refused goes to every door at which something with a time would be signed, and to those that stay open.
func (m *machine) refused(when string, id *identity.Identity, token string, jwks []byte) {
	m.Helper()
	ctx, before, seq := m.Context(), m.written(), m.audit.Head().Seq
	rq, _ := m.request()
	var errs [6]error
	_, errs[0] = m.public(nil).Join(ctx, token, rq)
	_, errs[1] = m.public(id).Renew(ctx, rq)
	errs[2] = m.exchange(id)
	_, errs[3] = m.admin.AddOperator(ctx, wire.OperatorRequest{Name: "ana", Role: "viewer", CSR: rq.CSR})
	_, errs[4] = m.admin.CreateJoinToken(ctx, wire.JoinTokenRequest{Service: "a"})
	_, errs[5] = m.admin.Rotate(ctx, "token", wire.RotateRequest{})
	for n, err := range errs {
		var problem *client.APIError
		var oauth *client.OAuthError
		switch {
		case errors.As(err, &problem) && problem.Status == 503 && problem.Code() == countersign.CodeClock && problem.RetryAfter == clockRetry:
		case errors.As(err, &oauth) && oauth.Status == 503 && oauth.Body.Error == "temporarily_unavailable" && oauth.Body.Code == countersign.CodeClock:
		default:
			m.Errorf("%s: door %d answers %v", when, n, err)
		}
	}
	if diff := cmp.Diff(before, m.written()); diff != "" {
		m.Errorf("%s: something was written:\n%s", when, diff)
	}
	for _, kind := range m.events(seq) {
		if !slices.Contains([]string{eventParted, "certificate.denied", "token.denied", "key.denied", "key.rotated"}, kind) {
			m.Errorf("%s: a refusal left a record of %s", when, kind)
		}
	}
	if served, err := m.public(nil).JWKS(ctx); err != nil || !bytes.Equal(served, jwks) {
		m.Errorf("%s: the JWKS changed: %s, %v", when, served, err)
	}
	_, err := m.public(nil).RootsPEM(ctx)
	m.must(err)
	m.must(m.admin.DisableService(ctx, "c", "test"))
	m.must(m.admin.EnableService(ctx, "c", "test"))
	if status, body := m.readyz(); status != http.StatusServiceUnavailable || !strings.Contains(body, "the daemon's clock") {
		m.Errorf("%s: readiness says %d %s", when, status, body)
	}
}

// confirmed is what ends a doubt: only with the time that the wall clock says, and only by an admin.
func (m *machine) confirmed(when string) {
	m.Helper()
	_, err := m.admin.ConfirmClock(m.Context(), wire.ClockConfirmation{Time: m.wall().Add(2 * time.Minute)})
	var problem *client.APIError
	if !errors.As(err, &problem) || problem.Code() != countersign.CodeParameter {
		m.Errorf("%s: another time was confirmed: %v", when, err)
	}
	if m.clock.Guard() == nil {
		m.Errorf("%s: a refused confirmation counts", when)
	}
	state, err := m.admin.ConfirmClock(m.Context(), wire.ClockConfirmation{Time: m.wall()})
	m.must(err)
	if !state.Trusted || state.Why != "" || state.Time.Sub(m.wall()).Abs() > time.Minute {
		m.Errorf("%s: after the confirmation: %+v", when, state)
	}
	if status, body := m.readyz(); status != http.StatusOK {
		m.Errorf("%s: readiness says %d %s", when, status, body)
	}
}

// tell is the daemon's sample of now, which it takes each second anyway.
func (m *machine) tell() { m.Helper(); m.must(m.tellClock(m.Context())) }

// A wall clock that leaps makes nothing expire and gets nothing signed, until it comes back or an operator confirms it;
// starting the daemon anew is no way around that.
func TestClockAtTheDoor(t *testing.T) {
	m := &machine{T: t}
	m.dir, m.cfg = testDir(t, nil)
	m.on()
	_, err := m.admin.ApplyPolicy(t.Context(), []byte(`trust_domain: shop.internal
services: [{name: a}, {name: b}, {name: c}]
calls: [{from: a, to: b, scopes: [x], machine: [x]}]
`), client.ApplyOptions{})
	m.must(err)
	id, other, token := m.join("a"), m.join("c"), m.token("a")
	jwks, err := m.public(nil).JWKS(t.Context())
	m.must(err)

	m.asleep.Add(int64(10 * time.Hour)) // the machine slept: both clocks went on
	m.tell()
	m.must(m.exchange(id))

	m.set(365 * day)
	m.refused("a year forward, before any sample", id, token, jwks)
	m.tell()
	m.refused("a year forward", id, token, jwks)
	m.must(m.admin.Revoke(t.Context(), other.Serial, "superseded"))
	m.set(0)
	m.tell()
	m.must(m.exchange(id))

	m.set(-time.Hour)
	m.tell()
	m.refused("an hour back", id, token, jwks)
	m.confirmed("an hour back")
	m.must(m.exchange(m.join("a")))

	m.stop()
	m.set(-3 * time.Hour)
	m.on()
	m.refused("set back while the daemon was down", id, token, jwks)
	m.stop()
	m.set(0)
	m.on()
	m.refused("started anew without a confirmation", id, token, jwks)
	m.confirmed("after the start")
	m.must(m.exchange(m.join("a")))
	m.tell()
	m.stop()
	m.on()
	m.must(m.exchange(m.join("a")))

	var told []string
	for _, kind := range m.events(0) {
		if strings.HasPrefix(kind, "clock.") {
			told = append(told, kind)
		}
	}
	want := []string{eventParted, eventRestored, eventParted, eventConfirmed, eventParted, eventParted, eventConfirmed}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("the audit log tells of the clock (-want +got):\n%s", diff)
	}
}
