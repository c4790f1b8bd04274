package main

import (
	"bufio"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

// gun is one of a crowd's connections. It is kept from one request to the next, and opened anew if the daemon ended it.
type gun struct {
	d      *door
	config *tls.Config
	conn   *tls.Conn
	in     *bufio.Reader
}

// fire sends a whole request and gives the status of its answer.
func (g *gun) fire(request string) (status string, err error) {
	if g.conn == nil {
		if g.conn, err = tls.Dial("tcp", "127.0.0.1:"+g.d.port(), g.config); err != nil {
			return "", err
		}
		g.in = bufio.NewReader(g.conn)
	}
	_ = g.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(g.conn, request); err != nil {
		g.close()
		return "", err
	}
	answer, err := http.ReadResponse(g.in, nil)
	if err != nil {
		g.close()
		return "", err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.Close {
		g.close()
	}
	return fmt.Sprint(answer.StatusCode), err
}

func (g *gun) close() {
	if g.conn != nil {
		g.conn.Close()
		g.conn = nil
	}
}

// crowdOf are a hundred connections with one credential.
func (d *door) crowdOf(config *tls.Config) []*gun {
	all := make([]*gun, crowd)
	for n := range all {
		all[n] = &gun{d: d, config: config}
	}
	d.Cleanup(func() {
		for _, g := range all {
			g.close()
		}
	})
	return all
}

// volley fires one request over all connections at once, and counts what came back.
func volley(guns []*gun, request string) map[string]int { return volleys(guns, len(guns), request) }

// opened fires a first request, over few new connections at a time: on a busy machine a hundred handshakes take longer than the
// daemon waits for the first header of a connection.
func opened(guns []*gun, request string) map[string]int { return volleys(guns, 16, request) }

func volleys(guns []*gun, together int, request string) map[string]int {
	var mu sync.Mutex
	answers, places := map[string]int{}, make(chan struct{}, together)
	atOnce(len(guns), func(n int) {
		places <- struct{}{}
		defer func() { <-places }()
		status, err := guns[n].fire(request)
		if err != nil {
			status = err.Error()
		}
		mu.Lock()
		defer mu.Unlock()
		answers[status]++
	})
	return answers
}

// blow is one bad input as a whole request, and the status that it gets.
type blow struct {
	name, request string
	status        int
}

func rawRequest(method, path, media, body string, header ...string) string {
	return requestHead(method, path, media, append(header, fmt.Sprintf("Content-Length: %d", len(body)))...) + body
}

// measured fires each blow alone over a hundred connections that were used before for a good request, and holds the
// daemon's memory to what it had then: what one input left behind counts against those that follow.
func (d *door) measured(what string, guns []*gun, good string, blows []blow) {
	d.Helper()
	for range 3 {
		if answers := volley(guns, good); answers["200"] != crowd {
			d.Fatalf("%s: good requests were answered %v", what, answers)
		}
	}
	base, most, worst := d.rss(), 0, ""
	for _, b := range blows {
		var answers map[string]int
		peak := d.peak(func() { answers = volley(guns, b.request) })
		if answers[fmt.Sprint(b.status)] != crowd {
			d.Errorf("%s, %s: answered %v, want %d", what, b.name, answers, b.status)
		}
		if peak-base >= maxGrowth {
			d.Errorf("%s, %s over %d connections: RSS grew by %d KiB", what, b.name, crowd, peak-base)
		}
		if peak > most {
			most, worst = peak, b.name
		}
	}
	for _, g := range guns {
		g.close()
	}
	d.Logf("%-28s %3d inputs: from %d KiB, at most %+d KiB (%s)", what, len(blows), base, most-base, worst)
}

// TestMemoryOfEachInput: each bad input of the other tests, alone, over a hundred connections.
func TestMemoryOfEachInput(t *testing.T) {
	t.Parallel()
	d := openDoor(t, ownName(), "gateway")
	d.warm()
	joining := append(d.joinBlows(), d.csrBlows(d.joinToken("spare").Token)...)
	before := d.state()
	public := "GET /roots.pem HTTP/1.1\r\nHost: localhost\r\n\r\n"
	exchange := rawRequest(http.MethodPost, "/oauth2/token", wire.Form, exchangeForm(d.idp.good(), "orders").Encode())
	gateway, nobody, admin := d.tls("gateway", "http/1.1"), d.tls("", "http/1.1"), d.tls("admin", "http/1.1")
	d.measured("forms", d.crowdOf(gateway), exchange, d.formBlows())
	for name, blows := range d.tokenBlows() {
		d.measured("tokens: "+name, d.crowdOf(gateway), exchange, blows)
	}
	d.measured("certificate requests", d.crowdOf(gateway), exchange, d.csrBlows(""))
	d.measured("the same, joining", d.crowdOf(nobody), public, joining)
	d.measured("methods and types", d.crowdOf(nobody), public, methodBlows(t))
	d.measured("types", d.crowdOf(admin), public, typeBlows(t))
	d.measured("policies", d.crowdOf(admin), public, d.policyBlows())
	d.unchanged(before, attackDenials())
	d.stillGood()
}

func (d *door) joinToken(service string) wire.JoinToken {
	d.Helper()
	made, err := d.admin.CreateJoinToken(d.Context(), wire.JoinTokenRequest{Service: service})
	d.must(err)
	return made
}

func (d *door) formBlows() []blow {
	var all []blow
	for _, bad := range d.badForms() {
		all = append(all, blow{bad.name, rawRequest(http.MethodPost, "/oauth2/token"+bad.path, wire.Form, bad.form), bad.want.status})
	}
	return all
}

func (d *door) tokenBlows() map[string][]blow {
	all := map[string][]blow{}
	for name, some := range d.idp.hostiles(newTrap(d.T).URL) {
		for _, h := range some {
			all[name] = append(all[name], blow{h.name, rawRequest(http.MethodPost, "/oauth2/token", wire.Form, exchangeForm(h.token, "orders").Encode()), 400})
		}
	}
	return all
}

// csrBlows come with a join token, or without one, from who has a certificate.
func (d *door) csrBlows(token string) []blow {
	var header []string
	if token != "" {
		header = []string{"Authorization: Bearer " + token}
	}
	var all []blow
	good := d.idp.json(d.csr(d.key(elliptic.P256()), &x509.CertificateRequest{}))
	for _, bad := range d.badCSRs() {
		all = append(all, blow{bad.name, rawRequest(http.MethodPost, "/v1/certificates", wire.JSON, `{"csr":`+d.idp.json(bad.csr)+`}`, header...), 400})
	}
	for _, bad := range badBodies(good) {
		all = append(all, blow{bad.name, rawRequest(http.MethodPost, "/v1/certificates", wire.JSON, bad.csr, header...), 400})
	}
	return all
}

// joinBlows come with a join token that nobody made, with none at all, and with one that was used, or voided.
func (d *door) joinBlows() []blow {
	d.Helper()
	used, voided := d.joinToken("spare").Token, d.joinToken("spare").Token
	certificate := func(name, authorization string) blow {
		body := `{"csr":` + d.idp.json(d.csr(d.key(elliptic.P256()), &x509.CertificateRequest{})) + `}`
		return blow{name, rawRequest(http.MethodPost, "/v1/certificates", wire.JSON, body, "Authorization: "+authorization), 401}
	}
	if got, err := d.crowdOf(d.tls("", "http/1.1"))[0].fire(certificate("", "Bearer "+used).request); got != "201" {
		d.Fatalf("joining: %s, %v", got, err)
	}
	d.must(d.admin.DisableService(d.Context(), "spare", "voids its join tokens"))
	d.must(d.admin.EnableService(d.Context(), "spare", "is needed"))
	return []blow{
		certificate("used join token", "Bearer "+used), certificate("voided join token", "Bearer "+voided),
		certificate("wrong join token", "Bearer aaaaaaaaaaaaaaaaaaaaaaaaaa"), certificate("long join token", "Bearer "+strings.Repeat("a", 8<<10)),
		certificate("another scheme", "Basic YTpi"), certificate("user's token", "Bearer "+d.idp.good()),
	}
}

func methodBlows(t *testing.T) []blow {
	var all []blow
	for _, r := range goldenRoutes(t) {
		all = append(all, blow{"PATCH " + r.path, rawRequest("PATCH", r.path, wire.JSON, ""), 405})
	}
	return all
}

func typeBlows(t *testing.T) []blow {
	var all []blow
	for _, r := range goldenRoutes(t) {
		if want := r.refused(http.StatusUnsupportedMediaType, countersign.CodeContentType); r.body > 0 && r.auth != "client" && r.auth != "service" {
			all = append(all, blow{r.method + " " + r.path, rawRequest(r.method, r.path, "text/plain", strings.Repeat("x", 1024)), want.status})
		}
	}
	return all
}

func (d *door) policyBlows() []blow {
	d.Helper()
	var all []blow
	for _, some := range [][]brokenPolicy{brokenTexts(), brokenIssuers(), brokenServices(), brokenCalls()} {
		for _, b := range some {
			document, _, _ := b.document(d.T)
			document = strings.ReplaceAll(document, "ISSUER", d.url)
			all = append(all, blow{b.with, rawRequest(http.MethodPut, "/v1/policy", wire.YAML, document), 400})
		}
	}
	return all
}
