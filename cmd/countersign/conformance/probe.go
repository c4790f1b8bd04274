package conformance

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	grantExchange   = "urn:ietf:params:oauth:grant-type:token-exchange"
	typePrefix      = "urn:ietf:params:oauth:token-type:"
	typeAccessToken = typePrefix + "access_token"
	typeJWT         = typePrefix + "jwt"
	typeIDToken     = typePrefix + "id_token"
	typeSAML2       = typePrefix + "saml2"
	typeForm        = "application/x-www-form-urlencoded"
	assertionType   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

	// nobody names what no server has.
	nobody = "countersign-conformance-nobody"
)

const (
	maxBody    = 1 << 20 // bytes of an answer
	maxRetries = 20      // of one request that was answered with 429 or 503
	maxPause   = 5 * time.Second
)

// probe sends the requests of one run and keeps what the checks share.
type probe struct {
	cfg     Config
	ctx     context.Context //nolint:containedctx // one run, one context: the checks are functions of the probe alone
	clients map[string]*http.Client
	secrets []string // what no text of ours may hold

	replies  []*reply // all answers of the token endpoint, for the checks that judge them together
	answered bool     // anything at all answered
	lastErr  error

	good, again, next *reply // the answers to the good request, the same once more, and the exchange of its token
	meta, jwks        *reply
	shape             *regexp.Regexp // of a token
}

func newProbe(ctx context.Context, cfg Config) *probe {
	p := &probe{cfg: cfg, ctx: ctx, clients: map[string]*http.Client{}, shape: regexp.MustCompile(`eyJ[\w-]{8,}(\.[\w-]*){0,4}`)}
	p.conceal(cfg.SubjectToken, cfg.ForeignSubjectToken, cfg.ExpiredSubjectToken)
	p.clients["client"] = newClient(cfg, cfg.Certificate)
	p.clients["nobody"] = newClient(cfg, nil)
	if cfg.Next != nil {
		p.clients["next"] = newClient(cfg, cfg.Next)
	}
	return p
}

// newClient follows no redirect: a token request is answered where it was sent.
func newClient(cfg Config, certificate *tls.Certificate) *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots}
	if certificate != nil { // whatever authorities the server names
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return &http.Client{
		Timeout:       cfg.Timeout,
		Transport:     &http.Transport{TLSClientConfig: config, DisableCompression: true, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (p *probe) close() {
	for _, c := range p.clients {
		c.CloseIdleConnections()
	}
}

// conceal makes sure that no text of ours holds a secret, or the signature of one.
func (p *probe) conceal(secrets ...string) {
	for _, s := range secrets {
		if s != "" && !slices.Contains(p.secrets, s) {
			p.secrets = append(p.secrets, s)
			if i := strings.LastIndexByte(s, '.'); len(s)-i > 16 {
				p.secrets = append(p.secrets, s[i+1:])
			}
		}
	}
}

// unreachable tells that the endpoint answered nothing, so that nothing was tested.
func (p *probe) unreachable() error {
	if p.answered || p.lastErr == nil {
		return nil
	}
	return fmt.Errorf("the token endpoint answered nothing: %w", p.lastErr)
}

// message is one request. Its zero method is POST, its zero client the good one, and its zero type a form.
type message struct {
	as     string // "client", "nobody", "next", or a client of the check's own
	method string
	typ    string // "-": no Content-Type
	query  string
	body   string
	bare   bool // not an honest attempt at the form of a token request: its refusal is judged leniently
	header http.Header
	url    string // "": the token endpoint
}

// reply is an answer, or the error that came instead.
type reply struct {
	sent   string
	bare   bool
	token  bool // of the token endpoint
	err    error
	status int
	header http.Header
	body   []byte
	object map[string]json.RawMessage // the body, if it is a JSON object
	p      *probe
	at     time.Time // when it came
}

// send sends a request; one that is answered with 429 or 503 it sends again, when the server says.
func (p *probe) send(m message) *reply {
	r := p.once(m)
	for n := 0; n < maxRetries && (r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable) && p.ctx.Err() == nil; n++ {
		pause := time.Second
		if s, err := strconv.Atoi(r.header.Get("Retry-After")); err == nil && s >= 0 {
			pause = min(time.Duration(s)*time.Second, maxPause)
		}
		timer := time.NewTimer(pause)
		select {
		case <-p.ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		r = p.once(m)
	}
	if r.token {
		p.replies = append(p.replies, r)
	}
	return r
}

func (p *probe) once(m message) *reply {
	r := &reply{p: p, bare: m.bare, token: m.url == ""}
	target := m.url
	if target == "" {
		target = p.cfg.Endpoint
	}
	if m.query != "" {
		target += "?" + m.query
	}
	if m.method == "" {
		m.method = http.MethodPost
	}
	r.sent = describe(m)
	rq, err := http.NewRequestWithContext(p.ctx, m.method, target, strings.NewReader(m.body))
	if err != nil {
		r.err = err
		return r
	}
	for name, values := range m.header {
		rq.Header[name] = values
	}
	rq.Header.Set("User-Agent", "countersign-conformance")
	rq.Header.Set("Accept", "application/json")
	switch m.typ {
	case "-":
	case "":
		if m.method == http.MethodPost {
			rq.Header.Set("Content-Type", typeForm)
		}
	default:
		rq.Header.Set("Content-Type", m.typ)
	}
	if m.as == "" {
		m.as = "client"
	}
	p.receive(r, p.clients[m.as], rq)
	return r
}

func (p *probe) receive(r *reply, client *http.Client, rq *http.Request) {
	response, err := client.Do(rq)
	if err != nil {
		if e, ok := err.(*url.Error); ok { //nolint:errorlint // http.Client documents it: its text holds the URL, and so a token
			err = e.Err
		}
		r.err, p.lastErr = err, err
		return
	}
	defer response.Body.Close()
	r.at = time.Now()
	r.status, r.header, p.answered = response.StatusCode, response.Header, true
	if r.body, err = io.ReadAll(io.LimitReader(response.Body, maxBody)); err != nil {
		r.err = err
		return
	}
	if err := json.Unmarshal(r.body, &r.object); err != nil {
		r.object = nil
	}
	for _, name := range []string{"access_token", "refresh_token", "id_token"} {
		p.conceal(r.text(name))
	}
}

// text is a member that is a string, else "".
func (r *reply) text(name string) string {
	var s string
	if json.Unmarshal(r.object[name], &s) != nil {
		return ""
	}
	return s
}

// issued tells that a token was given.
func (r *reply) issued() bool {
	return r.err == nil && len(r.object["access_token"]) > 0 && string(r.object["access_token"]) != "null"
}

// form is the good request's, changed: name=value sets, a name alone removes, and +name=value adds.
func (p *probe) form(changes ...string) url.Values {
	f := url.Values{
		"grant_type": {grantExchange}, "subject_token": {p.cfg.SubjectToken}, "subject_token_type": {p.cfg.SubjectTokenType},
		"audience": {p.cfg.Audience},
	}
	if p.cfg.Scope != "" {
		f.Set("scope", p.cfg.Scope)
	}
	if p.cfg.ClientID != "" {
		f.Set("client_id", p.cfg.ClientID)
	}
	for _, change := range changes {
		name, value, set := strings.Cut(change, "=")
		added, add := strings.CutPrefix(name, "+")
		switch {
		case add:
			f.Add(added, value)
		case set:
			f.Set(name, value)
		default:
			f.Del(name)
		}
	}
	return f
}

// prove adds a new client assertion, where the client has one.
func (p *probe) prove(f url.Values) url.Values {
	if p.cfg.Assertion != nil {
		assertion, err := p.cfg.Assertion()
		if err != nil {
			p.lastErr = err
			return f
		}
		p.conceal(assertion)
		f.Set("client_assertion_type", assertionType)
		f.Set("client_assertion", assertion)
	}
	return f
}

// ask sends the good request, changed.
func (p *probe) ask(changes ...string) *reply {
	return p.send(message{body: p.prove(p.form(changes...)).Encode()})
}

// goodReply is the answer to the good request, sent once.
func (p *probe) goodReply() *reply {
	if p.good == nil {
		p.good = p.ask()
	}
	return p.good
}

// describe is a request in one line, without its secrets.
func describe(m message) string {
	var b bytes.Buffer
	b.WriteString(m.method)
	if m.url != "" {
		b.WriteString(" " + m.url)
	}
	if m.query != "" {
		b.WriteString(" ?" + parameters(m.query))
	}
	if m.as != "" && m.as != "client" {
		b.WriteString(" as " + m.as)
	}
	for name := range m.header {
		b.WriteString(" with " + name)
	}
	if m.typ != "" {
		b.WriteString(" " + m.typ)
	}
	switch {
	case m.body == "":
	case m.typ == "" || strings.HasPrefix(m.typ, typeForm) || m.typ == "text/plain" || m.typ == "-":
		b.WriteString(" " + parameters(m.body))
	default:
		fmt.Fprintf(&b, " <%d bytes>", len(m.body))
	}
	return b.String()
}

// parameters shows a form; of every long value, and of every one that may be a secret, only its size.
func parameters(form string) string {
	var out []string
	for pair := range strings.SplitSeq(form, "&") {
		name, value, _ := strings.Cut(pair, "=")
		text, err := url.QueryUnescape(value)
		if err != nil {
			text = value
		}
		secret := strings.HasSuffix(name, "_token") || strings.HasSuffix(name, "assertion") || strings.HasSuffix(name, "secret") || len(text) > 120
		if secret && text != "" {
			text = fmt.Sprintf("<%d bytes>", len(text))
		}
		if len(out) < 24 {
			out = append(out, name+"="+text)
		}
	}
	return strings.Join(out, " ")
}

// seen is an answer in one line, without secrets.
func (r *reply) seen() string {
	if r.err != nil {
		return r.p.redact(r.err.Error())
	}
	body := string(r.body)
	if r.object != nil {
		shown := map[string]json.RawMessage{}
		for name, raw := range r.object {
			if strings.HasSuffix(name, "_token") && len(raw) > 8 {
				raw = json.RawMessage(fmt.Sprintf(`"<%d bytes>"`, len(raw)-2))
			}
			shown[name] = raw
		}
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(shown)
		body = b.String()
	}
	body = r.p.redact(strings.Join(strings.Fields(body), " "))
	if len(body) > 300 {
		body = strings.ToValidUTF8(body[:300], "") + "…"
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s %s", r.status, r.header.Get("Content-Type"), body))
}

func (p *probe) redact(text string) string {
	for _, secret := range p.secrets {
		text = strings.ReplaceAll(text, secret, "<token>")
	}
	return p.shape.ReplaceAllString(text, "<token>")
}
