package sts

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

const (
	refreshEvery = 15 * time.Second // how often it is looked whether an issuer's keys are due
	keysTimeout  = 8 * time.Second  // how long a request waits for an issuer's keys
	maxHeaders   = 64 << 10
)

// source is where and how an issuer's keys are fetched. Nothing of it ever comes from a token.
type source struct{ url, jwksURI, ca string }

func sourceOf(i *countersign.Issuer) source { return source{i.URL, i.JWKSURI, i.CAPEM} }

// issuers keeps the keys of the external issuers of the policy in force: one cache for each source. A source that leaves the
// policy takes its keys with it.
type issuers struct {
	now       func() time.Time
	log       *slog.Logger
	transport http.RoundTripper // nil: one by the issuer's ca

	mu      sync.Mutex
	policy  *countersign.Policy // for which remotes was last cleared
	remotes map[source]*jwt.Remote
	pinned  map[string]*jwt.Set // parsed once, by the text of the policy
}

func (i *issuers) remote(p *countersign.Policy, issuer *countersign.Issuer) (*jwt.Remote, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.clear(p)
	s := sourceOf(issuer)
	if r, ok := i.remotes[s]; ok {
		return r, nil
	}
	r, err := i.open(s)
	if err != nil {
		return nil, err
	}
	i.remotes[s] = r
	return r, nil
}

// clear forgets what p does not name any more. i.mu is held.
func (i *issuers) clear(p *countersign.Policy) {
	if i.policy == p {
		return
	}
	for s := range i.remotes {
		if !slices.ContainsFunc(p.Issuers, func(kept countersign.Issuer) bool { return sourceOf(&kept) == s }) {
			delete(i.remotes, s)
		}
	}
	for set := range i.pinned {
		if !slices.ContainsFunc(p.Issuers, func(kept countersign.Issuer) bool { return kept.JWKS == set }) {
			delete(i.pinned, set)
		}
	}
	i.policy = p
}

// fixed are the keys of an issuer that stand in the policy itself: nothing is ever fetched for them.
func (i *issuers) fixed(p *countersign.Policy, issuer *countersign.Issuer) (*jwt.Set, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.clear(p)
	if set, ok := i.pinned[issuer.JWKS]; ok {
		return set, nil
	}
	set, err := jwt.ParseSet([]byte(issuer.JWKS))
	if err != nil {
		return nil, err
	}
	if i.pinned == nil {
		i.pinned = map[string]*jwt.Set{}
	}
	i.pinned[issuer.JWKS] = set
	return set, nil
}

// open makes the cache of a source. The proxies of the environment are not used: what is trusted must not depend on it.
func (i *issuers) open(s source) (*jwt.Remote, error) {
	client := &http.Client{Transport: i.transport}
	if i.transport == nil {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if s.ca != "" {
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM([]byte(s.ca)) {
				return nil, errors.New("the issuer's ca holds no certificate")
			}
		}
		client.Transport = &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, MaxResponseHeaderBytes: maxHeaders}
	}
	return jwt.NewRemote(jwt.RemoteConfig{Issuer: s.url, JWKSURI: s.jwksURI, Client: client, Now: i.now, Logger: i.log})
}

// keys are the issuer's, with kid if it publishes that one.
func (i *issuers) keys(ctx context.Context, p *countersign.Policy, issuer *countersign.Issuer, kid string) (*jwt.Set, error) {
	down := func(err error) error {
		return countersign.Errorf(countersign.CodeIssuerDown, "the keys of the issuer %s can't be had", issuer.Name).
			WithHint("is its jwks_uri right, and can the daemon reach it?").After(5 * time.Second).Because(err)
	}
	if issuer.JWKS != "" {
		set, err := i.fixed(p, issuer)
		if err != nil {
			return nil, down(err)
		}
		return set, nil
	}
	remote, err := i.remote(p, issuer)
	if err != nil {
		return nil, down(err)
	}
	if set, ok := remote.Ready(kid); ok {
		return set, nil
	}
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	set, err := remote.Set(ctx, kid)
	if err != nil {
		return nil, down(err)
	}
	return set, nil
}

// ready is keys for who does not want to wait: false where keys would, or has an error.
func (i *issuers) ready(p *countersign.Policy, issuer *countersign.Issuer, kid string) (*jwt.Set, bool) {
	if issuer.JWKS != "" {
		set, err := i.fixed(p, issuer)
		return set, err == nil
	}
	remote, err := i.remote(p, issuer)
	if err != nil {
		return nil, false
	}
	return remote.Ready(kid)
}

// Run fetches the keys of every issuer of the policy in force before they are needed, until ctx ends. An issuer that can't
// be reached is told of in the log and tried again. It also removes the records of client assertions that have expired.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		var all sync.WaitGroup // side by side: a slow issuer must not keep another's keys from coming
		for p, i := s.cfg.Policy(), 0; i < len(p.Issuers); i++ {
			issuer := &p.Issuers[i]
			all.Go(func() {
				if _, err := s.issuers.keys(ctx, p, issuer, ""); err != nil && ctx.Err() == nil {
					s.log.Debug("keys of an issuer are not at hand", "issuer", issuer.Name, "error", err)
				}
			})
		}
		all.Wait()
		s.prune(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
