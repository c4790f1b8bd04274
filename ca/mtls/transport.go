package mtls

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/sts/verify"
)

// HTTPClient is a client for one service: mutual TLS to nobody but it, and in each request the token that the incoming
// request's token was exchanged for. Requests must carry the context of the incoming request, which package verify's
// middleware has passed.
func (t *Tokens) HTTPClient(audience string, scopes ...string) *http.Client {
	return &http.Client{Transport: t.Transport(audience, scopes, nil)}
}

// Transport is the RoundTripper of [Tokens.HTTPClient]. base gives settings as timeouts and pool sizes: it is nil or an
// *http.Transport, whose dialer, timeouts and limits are taken over. Its TLS and its proxy are not: connections lead to the service of audience (a
// name or an ID), proved by mutual TLS, or nowhere. The token is that of [verify.TokenFromContext]; a request without one is
// refused with ErrNoToken. Whatever stands in its Authorization is replaced, and on any failure nothing is sent.
func (t *Tokens) Transport(audience string, scopes []string, base http.RoundTripper) http.RoundTripper {
	return &transport{tokens: t, audience: audience, scopes: scopes, base: base}
}

type transport struct {
	tokens   *Tokens
	audience string
	scopes   []string
	base     http.RoundTripper

	mu      sync.Mutex
	serial  string
	present *http.Transport // with the identity of serial
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.roundTrip(r)
	if err != nil && r.Body != nil && response == nil {
		r.Body.Close() // as http.RoundTripper demands; closing twice does no harm
	}
	return response, err
}

func (t *transport) roundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("mtls: %s is not called over %q: tokens go over mutual TLS only", t.audience, r.URL.Scheme)
	}
	subject, ok := verify.TokenFromContext(r.Context())
	if !ok {
		return nil, ErrNoToken
	}
	for range 3 {
		own, err := t.tokens.src.usable()
		if err != nil {
			return nil, err
		}
		over, err := t.over(own)
		if err != nil {
			return nil, err
		}
		form := url.Values{"grant_type": {exchange}, "subject_token": {subject}, "subject_token_type": {accessToken}}
		token, err := t.tokens.get(r.Context(), tokenKey{subject: sha256.Sum256([]byte(subject))}, form, t.audience, t.scopes, own)
		if errors.Is(err, errRenewed) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("mtls: no token for %s: %w", t.audience, err)
		}
		out := r.Clone(r.Context())
		out.Header.Set("Authorization", "Bearer "+token.Value)
		return over.RoundTrip(out)
	}
	return nil, errRenewed
}

// over is the transport whose connections show this identity. A token may be bound to it, so after a renewal requests go
// over new connections; the old ones end when they are idle.
func (t *transport) over(own *identity.Identity) (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.present != nil && t.serial == own.Serial {
		return t.present, nil
	}
	made := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second,
	}
	switch base := t.base.(type) {
	case nil:
	case *http.Transport:
		made = settings(base)
	default:
		return nil, fmt.Errorf("mtls: a base of type %T can't be taken: it decides whom a token reaches, so it is an *http.Transport or nil", base)
	}
	made.ForceAttemptHTTP2 = true
	made.TLSClientConfig = clientTLS(t.tokens.src, service(t.audience), own)
	if t.present != nil {
		t.present.CloseIdleConnections()
	}
	t.present, t.serial = made, own.Serial
	return made, nil
}

// settings takes over what cannot lead a request elsewhere: a connection that another dialer makes is still proved by TLS.
func settings(from *http.Transport) *http.Transport {
	return &http.Transport{
		DialContext: from.DialContext, TLSHandshakeTimeout: from.TLSHandshakeTimeout,
		DisableKeepAlives: from.DisableKeepAlives, DisableCompression: from.DisableCompression,
		MaxIdleConns: from.MaxIdleConns, MaxIdleConnsPerHost: from.MaxIdleConnsPerHost, MaxConnsPerHost: from.MaxConnsPerHost,
		IdleConnTimeout: from.IdleConnTimeout, ResponseHeaderTimeout: from.ResponseHeaderTimeout, ExpectContinueTimeout: from.ExpectContinueTimeout,
		MaxResponseHeaderBytes: from.MaxResponseHeaderBytes, WriteBufferSize: from.WriteBufferSize, ReadBufferSize: from.ReadBufferSize,
		HTTP2: from.HTTP2,
	}
}

// CloseIdleConnections is what http.Client.CloseIdleConnections calls.
func (t *transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.present != nil {
		t.present.CloseIdleConnections()
	}
}

// service admits the one service that an audience names.
type service string

func (service) begin(*Source) {}

func (n service) authorize(src *Source, p peer) error {
	own, err := src.usable()
	if err != nil {
		return err
	}
	id, err := countersign.ParseID(string(n))
	if err != nil {
		id, err = countersign.NewServiceID(own.ID.TrustDomain(), string(n))
	}
	if err != nil {
		return err
	}
	if p.id != id {
		return fmt.Errorf("it is not %s", id)
	}
	return nil
}
