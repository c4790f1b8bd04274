package jwt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxHeaders      = 64 << 10
	discoveryExpiry = time.Hour
)

// source is where the keys are, and since when that is known by discovery.
type source struct {
	uri   string
	found time.Time
}

// newClient copies the client of the configuration without its redirect policy and cookies: a redirect is an answer
// that is not 200. Connections are not kept, as the next fetch is minutes away.
func newClient(given *http.Client) *http.Client {
	c := http.Client{Transport: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeaders,
	}}
	if given != nil {
		c = *given
	}
	c.Jar = nil
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

// fetch gets the keys once; maxAge is 0 if the issuer does not say.
func (r *Remote) fetch() (set *Set, maxAge time.Duration, err error) {
	uri := r.cfg.JWKSURI
	if uri == "" {
		if r.source.uri == "" || r.cfg.Now().Sub(r.source.found) >= discoveryExpiry {
			if err := r.discover(); err != nil {
				return nil, 0, fmt.Errorf("discover where the keys are: %w", err)
			}
		}
		uri = r.source.uri
	}
	set, maxAge, err = r.fetchSet(uri)
	if err != nil {
		r.source = source{} // they may have moved
		return nil, 0, fmt.Errorf("fetch the keys from %s: %w", uri, err)
	}
	return set, maxAge, nil
}

func (r *Remote) fetchSet(uri string) (*Set, time.Duration, error) {
	body, header, err := get(r.client, r.timeout, uri)
	if err != nil {
		return nil, 0, err
	}
	set, err := ParseSet(body)
	if err != nil {
		return nil, 0, err
	}
	if set.Len() == 0 {
		return nil, 0, errors.New("the key set has no key for tokens")
	}
	return set, maxAgeOf(header), nil
}

// discover finds the keys' URI in the issuer's metadata.
func (r *Remote) discover() error {
	var uri string
	err := discover(r.client, r.timeout, r.cfg.Issuer, func(doc Claims) (err error) {
		if uri, err = foundURI(doc, r.cfg.Issuer, "jwks_uri"); err == nil && uri == "" {
			err = errors.New("the metadata has no jwks_uri")
		}
		return err
	})
	if err == nil {
		r.source = source{uri: uri, found: r.cfg.Now()}
	}
	return err
}

// DiscoverURI finds the URI that the issuer's metadata (RFC 8414, OpenID Connect Discovery) has as its member; "": there is
// metadata, and it has no such member. It asks as a [Remote] does: configured issuers only, https, or http on loopback, 3 s,
// no redirects. client may be nil.
func DiscoverURI(client *http.Client, issuer, member string) (uri string, err error) {
	err = discover(newClient(client), fetchTimeout, issuer, func(doc Claims) error {
		uri, err = foundURI(doc, issuer, member)
		return err
	})
	return uri, err
}

// discover hands the issuer's metadata to take. An answer that is not this issuer's metadata, or that take refuses, is not
// used and the next place is asked; no answer at all ends it, as all places are on the same host.
func discover(client *http.Client, timeout time.Duration, issuer string, take func(Claims) error) error {
	var refused error
	for _, place := range wellKnown(issuer) {
		body, _, err := get(client, timeout, place)
		if err == nil {
			var doc Claims
			if doc, err = readMetadata(body, issuer); err == nil {
				err = take(doc)
			}
		}
		if err == nil {
			return nil
		}
		refused = errors.Join(refused, fmt.Errorf("%s: %w", place, err))
		if urlErr := (*url.Error)(nil); errors.As(err, &urlErr) {
			break
		}
	}
	return refused
}

// wellKnown are the places of an issuer's metadata: RFC 8414 3.1, which puts the well-known path before the issuer's
// own, the same for OpenID's file name (RFC 8414 5), and OpenID Connect Discovery 4, which puts it behind.
func wellKnown(issuer string) []string {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil // checkIssuer parsed it
	}
	base := u.Scheme + "://" + u.Host
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	return slices.Compact([]string{
		base + "/.well-known/oauth-authorization-server" + path,
		base + "/.well-known/openid-configuration" + path,
		base + path + "/.well-known/openid-configuration",
	})
}

// readMetadata reads metadata whose issuer is exactly the one asked for (RFC 8414 3.3).
func readMetadata(body []byte, issuer string) (Claims, error) {
	doc, err := parseObject(body)
	if err != nil {
		return Claims{}, err
	}
	if got, _, err := doc.String("issuer"); err != nil || got != issuer {
		return Claims{}, fmt.Errorf("the metadata is of the issuer %.100q", got)
	}
	return doc, nil
}

func foundURI(doc Claims, issuer, member string) (string, error) {
	uri, ok, err := doc.String(member)
	if err != nil || !ok {
		return "", err
	}
	return uri, checkFoundURI(uri, issuer, member)
}

// get is one request: 256 KiB, no redirects. A *url.Error says that there was no answer.
func get(client *http.Client, timeout time.Duration, uri string) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the answer is %d, not 200 (redirects are not followed)", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxSet+1))
	if err != nil {
		return nil, nil, &url.Error{Op: "Get", URL: uri, Err: err}
	}
	if len(body) > MaxSet {
		return nil, nil, fmt.Errorf("the answer has more than %d bytes", MaxSet)
	}
	return body, resp.Header, nil
}

// maxAgeOf is the max-age of Cache-Control (RFC 9111 5.2.2.1), brought into bounds; 0: none was sent. An issuer can
// neither have us ask all the time nor keep a withdrawn key for long by accident.
func maxAgeOf(h http.Header) time.Duration {
	for directive := range strings.SplitSeq(strings.Join(h.Values("Cache-Control"), ","), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if !strings.EqualFold(name, "max-age") {
			continue
		}
		seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 32)
		if err != nil {
			return 0
		}
		return min(max(time.Duration(seconds)*time.Second, minMaxAge), maxMaxAge)
	}
	return 0
}

// checkIssuer judges an issuer identifier (RFC 8414 2).
func checkIssuer(issuer string) error {
	u, err := checkURL(issuer)
	if err != nil {
		return fmt.Errorf("the issuer %w", err)
	}
	if u.RawQuery != "" || u.ForceQuery {
		return fmt.Errorf("the issuer %.100q has a query", issuer)
	}
	return nil
}

// checkFoundURI judges a URI that metadata names. It takes http only from an issuer that is on loopback itself: a remote
// one must not point us at ourselves.
func checkFoundURI(uri, issuer, member string) error {
	u, err := checkURL(uri)
	if err != nil {
		return fmt.Errorf("the %s %w", member, err)
	}
	if u.Scheme == "http" && !strings.HasPrefix(issuer, "http:") {
		return fmt.Errorf("the %s %.100q is http though the issuer is https", member, uri)
	}
	return nil
}

// CheckURL judges a configured URL: https, or http on loopback; with a host, without user and fragment.
func CheckURL(raw string) error { _, err := checkURL(raw); return err }

func checkURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%.100q is no URL", raw)
	}
	if u.Host == "" || u.User != nil || u.Fragment != "" || strings.Contains(raw, "#") {
		return nil, fmt.Errorf("%.100q is not a URL with a host and without user and fragment", raw)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fmt.Errorf("%.100q is neither https nor http on loopback", raw)
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
