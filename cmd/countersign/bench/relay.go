package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
	"github.com/countersign/countersign/sts/jwt"
)

// RelayOptions say how to load the relay and what it is compared with.
type RelayOptions struct {
	Executable  string    // our own binary
	Progress    io.Writer // one line a phase
	Connections int       // kept ones to each, each with one request at a time
	Requests    int       // of each phase, to each
}

// RelayReport is what the relay adds to a plain reverse proxy.
type RelayReport struct {
	Machine     string     `json:"machine"`
	Connections int        `json:"connections"`
	Requests    int        `json:"requests"` // of each row, to each of the two
	Rows        []RelayRow `json:"rows"`
}

// RelayRow is one shape. CPU is of the proxy's or relay's process, a request.
type RelayRow struct {
	Name     string  `json:"name"`
	Plain50  float64 `json:"plain_p50_ms"`
	Plain99  float64 `json:"plain_p99_ms"`
	Relay50  float64 `json:"relay_p50_ms"`
	Relay99  float64 `json:"relay_p99_ms"`
	Added    float64 `json:"added_p50_ms"`
	PlainCPU float64 `json:"plain_cpu_ms"`
	RelayCPU float64 `json:"relay_cpu_ms"`
}

// Relay compares the relay with a plain reverse proxy of the same shape: both are child processes, between the same client
// and the same application. Requests go to the one and the other in turn, so that whatever else the machine does meets both.
// Tokens are exchanged before the measurement begins; verifying them is in it.
func Relay(ctx context.Context, o RelayOptions) (*RelayReport, error) {
	if o.Connections < 1 || o.Requests < 100 {
		return nil, errors.New("connections must be 1 or more, and requests 100 or more")
	}
	dir, leave, err := workplace("csb-") // sockets have short paths
	if err != nil {
		return nil, err
	}
	defer leave()
	b := &relayBench{
		exchange: exchange{ExchangeOptions: ExchangeOptions{Executable: o.Executable, Progress: o.Progress, Alg: "ES256"}, host: local.Host{Executable: o.Executable, Dir: dir}},
		o:        o,
	}
	defer b.host.StopAll()
	fmt.Fprintln(o.Progress, "starting an authority, an issuer of user tokens, an application, two relays and two plain proxies")
	stop, err := b.start(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	shapes, err := b.shapes(ctx)
	if err != nil {
		return nil, err
	}
	report := &RelayReport{Machine: machine(), Connections: o.Connections, Requests: o.Requests}
	for _, s := range shapes {
		fmt.Fprintf(o.Progress, "%s: %d requests to each, on %d connections\n", s.name, o.Requests, o.Connections)
		row, err := b.compare(ctx, s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		report.Rows = append(report.Rows, row)
	}
	return report, nil
}

type relayBench struct {
	exchange
	o RelayOptions
}

// shape is one way for a request through a relay, and the same without one.
type shape struct {
	name         string
	host         string // by which the client knows both
	token        string
	tls          *tls.Config
	relay, plain string // addresses
	relayPID     int
	plainPID     int
}

const relayPolicy = `trust_domain: bench.internal
issuers:
  - {name: idp, use: users, issuer: "ISSUER", jwks_uri: "ISSUER/jwks", ca_file: idp-ca.pem, scopes: ["orders:read"], carry: [email]}
services:
  - {name: gateway, dns: [gateway.bench.internal], accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.bench.internal], token: {alg: ES256, bind: mtls}}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read"]}
`

const ordersRelay = `identity: {dir: orders, readonly: true}
ops: {listen: "OPS"}
app: {socket: app.sock}
internal:
  listen: "LISTEN"
  routes:
    - {name: order, methods: [GET], path: "/orders/{id}", scopes: ["orders:read"], rate: {key: user, replenish_rate: 1000000}}
`

const gatewayRelay = `identity: {dir: gateway, readonly: true}
ops: {listen: "OPS"}
public:
  listen: "LISTEN"
  users: {issuer: "ISSUER", jwks_uri: "ISSUER/jwks", ca_file: idp-ca.pem, audiences: [shop-web]}
  rate: {key: address, replenish_rate: 1000000}
  routes:
    - {name: order, methods: [GET], path: "/orders/{id}", to: orders, scopes: ["orders:read"], rate: {key: user, replenish_rate: 1000000}}
outbound:
  - {name: orders, url: "https://orders.bench.internal", address: "ORDERS"}
`

// shapes starts the children, and gets the tokens.
func (b *relayBench) shapes(ctx context.Context) ([]shape, error) {
	gateway, err := b.identities(ctx)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(b.host.Dir, "app.sock")
	app, err := b.host.StartPart(ctx, "app", "bench", "app", "--identity", b.dir("orders"), "--socket", socket)
	if err != nil {
		return nil, err
	}
	user, err := b.userToken()
	if err != nil {
		return nil, err
	}
	exchanged, err := b.relayToken(ctx, user)
	if err != nil {
		return nil, err
	}
	inbound := shape{
		name: "inbound", host: "orders.bench.internal", token: exchanged,
		tls: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: gateway.Pool(), Certificates: []tls.Certificate{gateway.TLS()}},
	}
	front := shape{name: "gateway", host: "gateway.bench.internal", token: user, tls: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: gateway.Pool()}}
	if err := b.relay(ctx, &inbound, ordersRelay, app); err != nil {
		return nil, err
	}
	if err := b.relay(ctx, &front, gatewayRelay, app); err != nil {
		return nil, err
	}
	if err := b.proxy(ctx, &inbound, "--identity", b.dir("orders"), "--socket", socket); err != nil {
		return nil, err
	}
	err = b.proxy(ctx, &front, "--identity", b.dir("gateway"), "--upstream", "https://orders.bench.internal", "--address", app)
	return []shape{inbound, front}, err
}

func (b *relayBench) dir(service string) string { return filepath.Join(b.host.Dir, service) }

// identities replaces the policy of the other benchmark, and joins both services; the client is the gateway already.
func (b *relayBench) identities(ctx context.Context) (*identity.Identity, error) {
	path := filepath.Join(b.host.Dir, "relay-policy.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(relayPolicy, "ISSUER", b.issuer)), 0o600); err != nil {
		return nil, err
	}
	if _, err := b.host.Run(ctx, 0, "--dir", b.host.AuthorityDir(), "policy", "apply", path); err != nil {
		return nil, err
	}
	// The gateway joined before it had a DNS name.
	if err := os.RemoveAll(b.dir(client)); err != nil {
		return nil, err
	}
	for _, service := range []string{client, "orders"} {
		var token struct{ Join string }
		if err := b.host.Ask(ctx, &token, "join-token", "create", service); err != nil {
			return nil, err
		}
		if _, err := b.host.Run(ctx, 0, "join", token.Join, "--out", b.dir(service)); err != nil {
			return nil, err
		}
	}
	return identity.Load(b.dir(client))
}

func (b *relayBench) userToken() (string, error) {
	now := time.Now()
	return jwt.Sign(b.key, "ES256", kid, "at+jwt", map[string]any{
		"iss": b.issuer, "sub": "user-1", "aud": "shop-web", "scope": "orders:read", "client_id": "shop-app",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": "bench", "email": "user-1@shop.example",
	})
}

func (b *relayBench) relayToken(ctx context.Context, user string) (string, error) {
	file := filepath.Join(b.host.Dir, "user.jwt")
	if err := os.WriteFile(file, []byte(user), 0o600); err != nil {
		return "", err
	}
	out, err := b.host.Run(ctx, 0, "token", "exchange", "--identity", b.dir(client), "--subject-token", file, "--audience", "orders")
	return strings.TrimSpace(string(out)), err
}

func (b *relayBench) relay(ctx context.Context, s *shape, config, app string) error {
	ops, err := local.FreeAddress()
	if err != nil {
		return err
	}
	if s.relay, err = local.FreeAddress(); err != nil {
		return err
	}
	name := "relay-" + s.name
	file := filepath.Join(b.host.Dir, name+".yaml")
	document := strings.NewReplacer("OPS", ops, "LISTEN", s.relay, "ORDERS", app, "ISSUER", b.issuer).Replace(config)
	if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
		return err
	}
	p, err := b.host.StartReady(ctx, name, ops, b.host.Executable, nil, "relay", "--config", file)
	if err != nil {
		return err
	}
	s.relayPID = p.PID()
	return nil
}

func (b *relayBench) proxy(ctx context.Context, s *shape, args ...string) (err error) {
	name := "proxy-" + s.name
	s.plain, err = b.host.StartPart(ctx, name, append([]string{"bench", "proxy"}, args...)...)
	s.plainPID = b.host.PIDOf(name)
	return err
}

// compare measures one shape.
func (b *relayBench) compare(ctx context.Context, s shape) (RelayRow, error) {
	visitors := make([]*visitor, b.o.Connections)
	for i := range visitors {
		visitors[i] = newVisitor(s)
		defer visitors[i].close()
	}
	if _, _, err := visitAll(ctx, visitors, max(200, b.o.Requests/10)); err != nil {
		return RelayRow{}, fmt.Errorf("warm up: %w", err)
	}
	before, err := usagesOf(s.relayPID, s.plainPID)
	if err != nil {
		return RelayRow{}, err
	}
	relayed, plain, err := visitAll(ctx, visitors, b.o.Requests)
	if err != nil {
		return RelayRow{}, err
	}
	after, err := usagesOf(s.relayPID, s.plainPID)
	if err != nil {
		return RelayRow{}, err
	}
	slices.Sort(relayed)
	slices.Sort(plain)
	n := len(plain)
	row := RelayRow{
		Name: s.name, Plain50: ms(plain[n/2]), Plain99: ms(plain[n*99/100]), Relay50: ms(relayed[n/2]), Relay99: ms(relayed[n*99/100]),
		RelayCPU: ms(after[0].cpu-before[0].cpu) / float64(n), PlainCPU: ms(after[1].cpu-before[1].cpu) / float64(n),
	}
	row.Added = row.Relay50 - row.Plain50
	return row, nil
}

func usagesOf(pids ...int) ([]usage, error) {
	all := make([]usage, len(pids))
	for i, pid := range pids {
		var err error
		if all[i], err = usageOf(pid); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// visitAll sends n requests to each of the two, in turn on every connection, and gives the times that they took.
func visitAll(ctx context.Context, visitors []*visitor, n int) (relayed, plain []time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	each := max(1, n/len(visitors))
	relayed, plain = make([]time.Duration, each*len(visitors)), make([]time.Duration, each*len(visitors))
	var all sync.WaitGroup
	for v, visitor := range visitors {
		all.Go(func() {
			for i := v * each; i < (v+1)*each && ctx.Err() == nil; i++ {
				var err, other error
				if i%2 == 0 { // neither always comes first
					relayed[i], err = visitor.visit(ctx, visitor.relay)
					plain[i], other = visitor.visit(ctx, visitor.plain)
				} else {
					plain[i], other = visitor.visit(ctx, visitor.plain)
					relayed[i], err = visitor.visit(ctx, visitor.relay)
				}
				if err := errors.Join(err, other); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	return relayed, plain, context.Cause(ctx)
}

// visitor is a client with one kept connection to each of the two.
type visitor struct {
	url, token   string
	relay, plain *http.Client
}

func newVisitor(s shape) *visitor {
	to := func(address string) *http.Client {
		return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			TLSClientConfig: s.tls.Clone(), MaxConnsPerHost: 1, MaxIdleConnsPerHost: 1,
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", address)
			},
		}}
	}
	return &visitor{url: "https://" + s.host + "/orders/42", token: s.token, relay: to(s.relay), plain: to(s.plain)}
}

func (v *visitor) visit(ctx context.Context, client *http.Client) (time.Duration, error) {
	begun := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, v.url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+v.token)
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("the answer is %s: %.500s", response.Status, body)
	}
	return time.Since(begun), err
}

func (v *visitor) close() {
	v.relay.CloseIdleConnections()
	v.plain.CloseIdleConnections()
}
