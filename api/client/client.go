// Package client speaks the HTTP API: over the daemon's admin socket, or over TLS 1.3 with an identity of ours.
//
// Over TLS it demands the authority's ID besides its name: a certificate of another service of the same roots is not
// the daemon. It never follows a redirect, uses no proxy, trusts no root but the given ones, keeps nothing on disk, and
// never retries: whether a repeat is safe is for the caller to know. (Where the daemon asks who a proxy means, or saw no
// certificate for a renewal, and nothing else was done, it says so.)
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/identity"
)

// maxResponse bounds what is read of one answer; the largest honest one is a page of 1,000 certificates or records.
const maxResponse = 32 << 20

// Config says where the daemon is and who asks. Exactly one of Socket and URL is given.
type Config struct {
	Socket string // path of the admin socket
	URL    string // https://host:port, without a path

	Identity    *identity.Identity // the client certificate, and the roots and the trust domain unless they are given; may be nil
	Roots       *x509.CertPool     // the only roots that are trusted; nil: the identity's
	TrustDomain string             // the authority's; "": the identity's

	// TLS stands for Identity, Roots and TrustDomain: it is used as it is, and must demand as much. It is for the first
	// connection of `join`, which knows the root by its fingerprint only.
	TLS *tls.Config

	// Date is told of every answer the time that the server says it is (RFC 9110 6.6.1), to the second: for
	// comparing clocks. It must not block.
	Date func(time.Time)

	Now func() time.Time // by which certificates are judged; nil: time.Now. Not with TLS

	Timeout time.Duration // of one call, but not of FollowAudit and VerifyAudit; default 30 s
}

// Client is safe for concurrent use.
type Client struct {
	http    *http.Client
	base    string
	timeout time.Duration
	date    func(time.Time)
	now     func() time.Time
	// identity is that of the configuration, to sign a proof of renewal with; nil: none.
	identity *identity.Identity
	own      []http.Header // that name the identity's certificate, as a proxy does: RFC 9440, Envoy; empty without one
}

// New checks the configuration; it opens no connection.
func New(cfg Config) (*Client, error) {
	c := &Client{timeout: cfg.Timeout, date: cfg.Date, now: cfg.Now, identity: cfg.Identity}
	if c.now == nil {
		c.now = time.Now
	}
	if c.timeout == 0 {
		c.timeout = 30 * time.Second
	}
	transport := &http.Transport{
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
	if (cfg.Socket == "") == (cfg.URL == "") {
		return nil, errors.New("a client takes either the admin socket or a URL")
	}
	if cfg.Socket != "" {
		c.base = "http://countersign"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", cfg.Socket)
		}
	} else {
		base, err := checkURL(cfg.URL)
		if err != nil {
			return nil, err
		}
		c.base = base
		transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
		transport.TLSHandshakeTimeout = 10 * time.Second
		transport.ForceAttemptHTTP2 = true
		// A connection that died without a word is noticed in ten seconds, also by a call that waits for half a minute.
		transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second}
		if transport.TLSClientConfig, err = tlsConfig(cfg); err != nil {
			return nil, err
		}
	}
	if cfg.Identity != nil && cfg.Socket == "" && cfg.TLS == nil && len(cfg.Identity.Chain) > 0 {
		c.own = ownHeaders(cfg.Identity.Chain[0].Raw)
	}
	c.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Close ends the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CheckURL tells why s can't be Config.URL.
func CheckURL(s string) error {
	_, err := checkURL(s)
	return err
}

func checkURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("the server's URL can't be read: %w", err)
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("the server's URL %q must be https://host:port and nothing else", s)
	}
	return "https://" + u.Host, nil
}

func tlsConfig(cfg Config) (*tls.Config, error) {
	if cfg.TLS != nil {
		return cfg.TLS.Clone(), nil
	}
	roots, domain := cfg.Roots, cfg.TrustDomain
	if cfg.Identity != nil {
		if roots == nil {
			roots = cfg.Identity.Pool()
		}
		if domain == "" {
			domain = cfg.Identity.ID.TrustDomain()
		}
	}
	if roots == nil {
		return nil, errors.New("a client over TLS needs an identity or roots: the system's roots say nothing about this authority")
	}
	authority, err := countersign.NewAuthorityID(domain)
	if err != nil {
		return nil, fmt.Errorf("a client over TLS needs the authority's trust domain: %w", err)
	}
	config := &tls.Config{
		MinVersion:       tls.VersionTLS13,
		RootCAs:          roots,
		Time:             cfg.Now,
		VerifyConnection: func(state tls.ConnectionState) error { return VerifyAuthority(state, authority) },
	}
	if cfg.Identity != nil {
		certificate := cfg.Identity.TLS()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	return config, nil
}

// VerifyAuthority tells why the peer is not the authority with the given ID. It is a check on top of the chain and the
// host name, which crypto/tls verified before.
func VerifyAuthority(state tls.ConnectionState, authority countersign.ID) error {
	if len(state.PeerCertificates) == 0 || len(state.VerifiedChains) == 0 {
		return errors.New("the server showed no certificate that could be verified")
	}
	uris := state.PeerCertificates[0].URIs
	if len(uris) == 1 && uris[0].String() == authority.String() {
		return nil
	}
	names := make([]string, 0, len(uris))
	for _, uri := range uris {
		names = append(names, uri.String())
	}
	slices.Sort(names)
	return fmt.Errorf("the server is %q and not the authority %s", strings.Join(names, " "), authority)
}

// call is one request and what is expected back.
type call struct {
	method, path string
	query        url.Values
	body         any // []byte as it is, anything else as JSON; nil: none
	mediaType    string
	accept       string
	header       http.Header
	empty        bool   // only 204 says that it is done: another server's 200 does not
	known        string // the ETag of what the caller has: 304 is an answer too
	long         bool   // takes as long as it takes: only the caller's context ends it
}

// do sends one call and decodes a JSON answer into out, unless out is nil.
func (c *Client) do(ctx context.Context, rq call, out any) error {
	rq.empty = out == nil
	body, err := c.bytes(ctx, rq)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return &AnswerError{Method: rq.method, Path: rq.path, Err: err}
	}
	return nil
}

// bytes sends one call and gives the answer's body.
func (c *Client) bytes(ctx context.Context, rq call) ([]byte, error) {
	if !rq.long {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	response, err := c.sendOwn(ctx, rq)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return readBody(response, rq)
}

// ownHeaders name a certificate in each of the ways in which a proxy may; which one is configured is for the daemon to know.
func ownHeaders(der []byte) []http.Header {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return []http.Header{
		{"Client-Cert": {":" + base64.StdEncoding.EncodeToString(der) + ":"}},
		{"X-Forwarded-Client-Cert": {`Cert="` + url.PathEscape(string(text)) + `"`}},
	}
}

// sendOwn sends one call, with the identity's certificate in a header if the daemon asks for that.
func (c *Client) sendOwn(ctx context.Context, rq call) (*http.Response, error) {
	response, err := c.send(ctx, rq)
	for _, own := range c.own {
		if !isProxyAlone(err) {
			break
		}
		with := rq
		with.header = rq.header.Clone()
		if with.header == nil {
			with.header = http.Header{}
		}
		maps.Copy(with.header, own)
		response, err = c.send(ctx, with)
	}
	return response, err
}

// isProxyAlone tells whether the daemon takes the identity for a proxy that may speak for others, and did nothing before it
// says for whom. Only the daemon itself hears the answer; a proxy before it replaces the header.
func isProxyAlone(err error) bool {
	var refused interface{ Code() countersign.Code }
	return errors.As(err, &refused) && refused.Code() == countersign.CodeProxyAlone
}

// send gives a successful response, whose body the caller closes.
func (c *Client) send(ctx context.Context, rq call) (*http.Response, error) {
	request, err := c.request(ctx, rq)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		var wrapped *url.Error // its text repeats the URL, and with it the query
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, &UnreachableError{Method: rq.method, Path: rq.path, Err: err}
	}
	if c.date != nil {
		if at, err := http.ParseTime(response.Header.Get("Date")); err == nil {
			c.date(at)
		}
	}
	if rq.known != "" && response.StatusCode == http.StatusNotModified {
		return response, nil
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		return nil, responseError(response, rq)
	}
	if rq.empty && response.StatusCode != http.StatusNoContent {
		response.Body.Close()
		return nil, &AnswerError{Method: rq.method, Path: rq.path, Err: errors.New(response.Status + " instead of 204")}
	}
	return response, nil
}

func (c *Client) request(ctx context.Context, rq call) (*http.Request, error) {
	var body io.Reader
	switch b := rq.body.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(b)
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			return nil, fmt.Errorf("encode the body of %s %s: %w", rq.method, rq.path, err)
		}
		body, rq.mediaType = bytes.NewReader(encoded), wire.JSON
	}
	target := c.base + rq.path
	if len(rq.query) > 0 {
		target += "?" + rq.query.Encode()
	}
	request, err := http.NewRequestWithContext(ctx, rq.method, target, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", rq.method, rq.path, err)
	}
	if rq.mediaType != "" {
		request.Header.Set("Content-Type", rq.mediaType)
	}
	if rq.accept != "" {
		request.Header.Set("Accept", rq.accept)
	}
	if rq.known != "" {
		request.Header.Set("If-None-Match", rq.known)
	}
	for name, values := range rq.header {
		request.Header[name] = values
	}
	return request, nil
}

func readBody(response *http.Response, rq call) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse+1))
	if err != nil {
		return nil, &AnswerError{Method: rq.method, Path: rq.path, Err: err}
	}
	if len(body) > maxResponse {
		return nil, &AnswerError{Method: rq.method, Path: rq.path, Err: fmt.Errorf("it has over %d bytes", maxResponse)}
	}
	return body, nil
}
