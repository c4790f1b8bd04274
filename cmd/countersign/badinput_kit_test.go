package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

const (
	typeID  = "urn:ietf:params:oauth:token-type:id_token"
	typeJWT = "urn:ietf:params:oauth:token-type:jwt"
)

// door is the daemon as users get it, in a process of its own, with services that have joined. Bad input is sent to its
// public listener, as a stranger or as somebody with a credential would.
type door struct {
	*testing.T
	*instance
	idp    *hostileIssuer
	admin  *client.Client
	url    string
	roots  *x509.CertPool
	people map[string]*identity.Identity // services by name, and the operator "admin"
}

// doorPolicy has a way back, from orders to gateway, so that a loop can be tried.
const doorPolicy = `trust_domain: shop.internal
issuers:
  - {name: idp, use: users, issuer: "IDP", scopes: [shop.read, shop.write, "orders:read"], carry: [email]}
services:
  - {name: gateway, dns: [gateway.shop.internal], accepts: [{issuer: idp, audiences: [shop-web]}]}
  - {name: orders, dns: [orders.shop.internal], token: {alg: RS256, typ: JWT}}
  - {name: inventory, dns: [inventory.shop.internal]}
  - {name: spare}
calls:
  - {from: gateway, to: orders, scopes: ["orders:read", {name: "orders:write", needs: [shop.write]}]}
  - {from: orders, to: inventory, scopes: [{name: "stock:read", needs: ["orders:read"]}]}
  - {from: orders, to: gateway, scopes: [{name: "back", needs: ["orders:read"]}]}
`

// openDoor starts the daemon with doorPolicy in force and enrols the named services.
func openDoor(t *testing.T, env []string, services ...string) *door {
	t.Helper()
	d := &door{T: t, instance: newInstance(t, plainBinary(t), env...), idp: newHostileIssuer(t), people: map[string]*identity.Identity{}}
	d.apply(t, strings.ReplaceAll(doorPolicy, "IDP", d.idp.URL))
	d.url, d.admin = "https://localhost:"+d.port(), socketClient(t, d.instance)
	for _, name := range services {
		d.people[name] = d.load(d.join(t, name))
	}
	d.people["admin"] = d.load(d.dir + "/operators/admin")
	d.roots = d.people["admin"].Pool()
	return d
}

func (d *door) must(err error) {
	d.Helper()
	if err != nil {
		d.Fatal(err)
	}
}

func (d *door) load(dir string) *identity.Identity {
	d.Helper()
	id, err := identity.Load(dir)
	d.must(err)
	return id
}

// tls is the client's side of a connection: with the certificate of a service or of "admin", or "" for none.
func (d *door) tls(who string, protocols ...string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: d.roots, ServerName: "localhost", NextProtos: protocols}
	if id := d.people[who]; id != nil {
		config.Certificates = []tls.Certificate{id.TLS()}
	}
	return config
}

// http is a client over HTTP/2, or HTTP/1.1 if asked; its connection is kept.
func (d *door) http(config *tls.Config, http1 bool) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: !http1, DisableCompression: true, MaxConnsPerHost: 1}
	d.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// as is a new connection with that credential.
func (d *door) as(who string) *http.Client { return d.http(d.tls(who), false) }

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (d *door) send(c *http.Client, method, path, body string, header ...string) reply {
	d.Helper()
	rq, err := http.NewRequestWithContext(d.Context(), method, d.url+path, strings.NewReader(body))
	d.must(err)
	for i := 0; i+1 < len(header); i += 2 {
		rq.Header.Add(header[i], header[i+1])
	}
	response, err := c.Do(rq)
	d.must(err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	d.must(err)
	return reply{status: response.StatusCode, header: response.Header, body: text}
}

func (d *door) post(c *http.Client, form url.Values) reply {
	d.Helper()
	return d.send(c, http.MethodPost, "/oauth2/token", form.Encode(), "Content-Type", wire.Form)
}

// exchange asks, as a service, for a token of the one target that subject may be good for.
func (d *door) exchange(c *http.Client, subject, audience string) reply {
	d.Helper()
	return d.post(c, exchangeForm(subject, audience))
}

func exchangeForm(subject, audience string) url.Values {
	return url.Values{
		"grant_type": {grantExchange}, "subject_token": {subject}, "subject_token_type": {typeAccess}, "audience": {audience},
	}
}

// refusal is what a wrong request must be answered with.
type refusal struct {
	status int
	oauth  string // the error of RFC 6749 5.2; "": problem details (RFC 9457)
	code   countersign.Code
}

func badRequest(code countersign.Code) refusal { return refusal{400, "invalid_request", code} }

// check holds an answer to the standard form of errors: status, media type, members, caching.
func (r refusal) check(got reply) error {
	var body struct {
		Error, Type, Title, Detail string
		Status                     int
		Code                       countersign.Code
		RequestID                  string `json:"request_id"`
		Description                string `json:"error_description"`
	}
	if err := json.Unmarshal(got.body, &body); err != nil {
		return fmt.Errorf("%d with the body %q, which is no JSON", got.status, got.body)
	}
	media, no := wire.Problem, "no-store"
	if r.oauth != "" {
		media = wire.JSON
	}
	switch h := got.header; {
	case got.status != r.status || body.Code != r.code:
		return fmt.Errorf("%d %s, want %d %s", got.status, got.body, r.status, r.code)
	case h.Get("Content-Type") != media || h.Get("Cache-Control") != no || body.RequestID == "" || body.RequestID != h.Get(wire.RequestID):
		return fmt.Errorf("%s with the headers %v", got.body, h)
	case r.oauth != "" && (body.Error != r.oauth || body.Description == "" || h.Get("Pragma") != "no-cache"):
		return fmt.Errorf("%s, want the OAuth error %s", got.body, r.oauth)
	case r.oauth == "" && (body.Status != r.status || body.Type != "urn:countersign:error:"+string(r.code) || body.Title == "" || body.Detail == ""):
		return fmt.Errorf("%s, want the members of RFC 9457", got.body)
	}
	return nil
}

// state is all that the daemon keeps and that bad input must not change.
type state struct {
	certificates string
	policy       int
	services     string
	keys         string
	events       map[string]int // audit records by type
}

func (d *door) state() state {
	d.Helper()
	ctx := d.Context()
	page, err := d.admin.Certificates(ctx, client.CertificateQuery{Limit: 1000})
	d.must(err)
	status, err := d.admin.Status(ctx)
	d.must(err)
	services, err := d.admin.Services(ctx)
	d.must(err)
	keys, err := d.admin.Keys(ctx)
	d.must(err)
	s := state{
		certificates: fmt.Sprintf("%+v", page), policy: status.PolicyVersion,
		services: fmt.Sprintf("%+v", services), keys: fmt.Sprintf("%+v", keys), events: map[string]int{},
	}
	for after := uint64(0); ; {
		records, err := d.admin.Audit(ctx, client.AuditQuery{After: after, Limit: 1000})
		d.must(err)
		if len(records.Records) == 0 {
			return s
		}
		for _, r := range records.Records {
			s.events[r.Type]++
			after = r.Seq
		}
	}
}

// unchanged demands that since before nothing was written but denials: exactly so many of each type, where a number is
// given. Strangers are counted by the minute, so their records may be any number.
func (d *door) unchanged(before state, denials map[string]int) {
	d.Helper()
	after := d.state()
	if after.certificates != before.certificates || after.policy != before.policy || after.services != before.services || after.keys != before.keys {
		d.Errorf("the records changed:\n%+v\n%+v", before, after)
	}
	for kind, n := range after.events {
		grown, expected := n-before.events[kind], denials[kind]
		if kind != "request.refused" && expected >= 0 && grown != expected {
			d.Errorf("%d audit records of the type %s were added, want %d", grown, kind, expected)
		}
	}
}

// stillGood does what the daemon is for: a service joins, and a user's token goes one hop.
func (d *door) stillGood() {
	d.Helper()
	d.join(d.T, "spare")
	if got := d.exchange(d.as("gateway"), d.idp.good(), "orders"); got.status != http.StatusOK {
		d.Errorf("a good exchange afterwards: %d %s\n%s", got.status, got.body, d.logText())
	}
	if report, err := d.admin.VerifyAudit(d.Context()); err != nil || !report.OK {
		d.Errorf("the audit log: %v, %v", report.Faults, err)
	}
}
