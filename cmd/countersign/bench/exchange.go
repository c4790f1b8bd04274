package bench

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/local"
	"github.com/countersign/countersign/sts"
	"github.com/countersign/countersign/sts/jwt"
)

// ExchangeOptions say how to load the token endpoint.
type ExchangeOptions struct {
	Executable  string    // our own binary
	Progress    io.Writer // one line a phase
	Connections int       // kept ones, each with one request at a time
	Requests    int       // of each phase
	Tokens      int       // different subject tokens of the first phase; used in turn if there are fewer than requests
	Alg         string    // of the minted tokens: ES256 or RS256
}

const (
	warmUp   = 2000
	repeated = 16 // different subject tokens of the second phase
	kid      = "bench-1"
	client   = "gateway"
)

// workplace is a directory for a benchmark and its child processes, which are told to die with the thread that started them. leave
// gives both back, when the children have ended.
func workplace(pattern string) (dir string, leave func(), err error) {
	runtime.LockOSThread()
	if dir, err = os.MkdirTemp("", pattern); err != nil {
		runtime.UnlockOSThread()
		return "", nil, err
	}
	return dir, func() {
		os.RemoveAll(dir)
		runtime.UnlockOSThread()
	}, nil
}

// Exchange runs the benchmark of RFC 8693 exchanges: a user's token, which an issuer of the policy signed with ES256, for
// a relay token. First with distinct subject tokens, then with a few that are sent again and again.
func Exchange(ctx context.Context, o ExchangeOptions) (*Report, error) {
	if o.Connections < 1 || o.Requests < 1 || o.Tokens < 1 || o.Alg != "ES256" && o.Alg != "RS256" {
		return nil, errors.New("connections, requests and tokens must be 1 or more, and the algorithm ES256 or RS256")
	}
	dir, leave, err := workplace("countersign-bench-")
	if err != nil {
		return nil, err
	}
	defer leave()
	b := &exchange{ExchangeOptions: o, host: local.Host{Executable: o.Executable, Dir: dir}}
	defer b.host.StopAll()
	fmt.Fprintln(o.Progress, "starting an authority and an issuer of user tokens")
	stop, err := b.start(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	report := &Report{Machine: machine(), Connections: o.Connections, Requests: o.Requests, Alg: o.Alg}
	if report.Raw, err = measureRaw(o.Alg); err != nil {
		return nil, err
	}
	for _, phase := range []struct {
		name   string
		tokens int
		raw    float64
	}{
		{"distinct", o.Tokens, report.Raw.Verify + report.Raw.Sign},
		{"repeated", repeated, report.Raw.Sign},
	} {
		fmt.Fprintf(o.Progress, "%s subject tokens: %d requests on %d connections\n", phase.name, o.Requests, o.Connections)
		row, err := b.phase(ctx, phase.tokens)
		if err != nil {
			return nil, fmt.Errorf("with %s subject tokens: %w", phase.name, err)
		}
		row.Name, row.TimesRaw = phase.name, row.CPU/phase.raw
		report.Rows = append(report.Rows, row)
	}
	return report, nil
}

type exchange struct {
	ExchangeOptions
	host      local.Host
	authority *local.Authority
	endpoint  string
	issuer    string
	key       crypto.Signer
	tls       *tls.Config
}

// start gets everything ready: the authority, its policy, the client's certificate, and the issuer's keys served.
func (b *exchange) start(ctx context.Context) (stop func(), err error) {
	caFile := filepath.Join(b.host.Dir, "idp-ca.pem")
	certificate, err := local.SelfSigned(caFile)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.key, b.issuer = key, fmt.Sprintf("https://localhost:%d", listener.Addr().(*net.TCPAddr).Port)
	serving, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	stop = func() { cancel(); <-done }
	go func() {
		done <- local.ServeTLS(serving, listener, b.keys(), &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}})
	}()
	if err := b.startAuthority(ctx); err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// keys serves the issuer's key set.
func (b *exchange) keys() http.Handler {
	set, err := jwt.NewSet(jwt.PublicKey{KID: kid, Alg: "ES256", Key: b.key.Public()})
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(set.JSON()) // the peer is gone; nothing to tell it
	})
}

const policyTemplate = `trust_domain: bench.internal
issuers:
  - {name: idp, use: users, issuer: "ISSUER", jwks_uri: "ISSUER/jwks", ca_file: idp-ca.pem, scopes: ["orders:read"], carry: [email]}
services:
  - {name: gateway, accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, token: {alg: ALG}}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read"]}
`

func (b *exchange) startAuthority(ctx context.Context) (err error) {
	b.authority, err = b.host.StartAuthority(ctx, "bench.internal", "COUNTERSIGN_LIMITS_IDENTITY=0")
	if err != nil {
		return err
	}
	b.endpoint = b.authority.Issuer + "/oauth2/token"
	path := filepath.Join(b.host.Dir, "policy.yaml")
	document := strings.NewReplacer("ISSUER", b.issuer, "ALG", b.Alg).Replace(policyTemplate)
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		return err
	}
	if _, err := b.host.Run(ctx, 0, "--dir", b.host.AuthorityDir(), "policy", "apply", path); err != nil {
		return err
	}
	var token struct{ Join string }
	if err := b.host.Ask(ctx, &token, "join-token", "create", client); err != nil {
		return err
	}
	own := filepath.Join(b.host.Dir, client)
	if _, err := b.host.Run(ctx, 0, "join", token.Join, "--out", own); err != nil {
		return err
	}
	id, err := identity.Load(own)
	if err != nil {
		return err
	}
	b.tls = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: id.Pool(), Certificates: []tls.Certificate{id.TLS()}}
	return nil
}

// forms are n token requests, each with a subject token of its own.
func (b *exchange) forms(n int) ([]string, error) {
	forms, now := make([]string, n), time.Now()
	for i := range forms {
		token, err := jwt.Sign(b.key, "ES256", kid, "at+jwt", map[string]any{
			"iss": b.issuer, "sub": fmt.Sprintf("user-%d", i), "aud": "shop-web", "scope": "orders:read",
			"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "jti": rand.Text(), "client_id": "shop-app",
			"email": fmt.Sprintf("user-%d@shop.example", i),
		})
		if err != nil {
			return nil, err
		}
		forms[i] = url.Values{
			"grant_type": {sts.GrantExchange}, "subject_token": {token}, "subject_token_type": {sts.TypeAccessToken},
			"audience": {"orders"}, "scope": {"orders:read"},
		}.Encode()
	}
	return forms, nil
}

// phase loads the endpoint with tokens that it has not seen before.
func (b *exchange) phase(ctx context.Context, tokens int) (Row, error) {
	early, err := b.forms(min(tokens, warmUp))
	if err != nil {
		return Row{}, err
	}
	forms, err := b.forms(tokens)
	if err != nil {
		return Row{}, err
	}
	l := &load{url: b.endpoint, tls: b.tls, connections: b.Connections}
	defer l.close()
	if tokens == repeated {
		early = forms
	}
	if _, err := l.run(ctx, early, min(warmUp, b.Requests)); err != nil {
		return Row{}, fmt.Errorf("warm up: %w", err)
	}
	return measure(b.authority.Process.PID(), b.Requests, func() ([]time.Duration, error) { return l.run(ctx, forms, b.Requests) })
}
