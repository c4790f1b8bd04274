package mtls

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/ca/identity"
)

// Token is a token for one service.
type Token struct {
	Value   string // secret
	Expires time.Time
	Scopes  []string
}

const (
	maxTokens   = 4096             // kept at a time; the one that was not used for longest leaves
	fastExpiry  = 2 * time.Second  // so much less than it says is a token taken for good
	refreshPart = 4                // a token is asked for anew in the last quarter of its life,
	refreshMost = 30 * time.Second // or this much before its end
	errorKept   = time.Second
	accessToken = "urn:ietf:params:oauth:token-type:access_token"
	exchange    = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// Tokens gets tokens for the next hop and keeps them. It is safe for concurrent use.
type Tokens struct {
	src *Source

	mu    sync.Mutex
	known map[tokenKey]*entry
	used  *list.List // of *entry, the last used first
}

// NewTokens gets tokens with the identity of src.
func NewTokens(src *Source) *Tokens {
	return &Tokens{src: src, known: map[tokenKey]*entry{}, used: list.New()}
}

// tokenKey names what a token was given for. The certificate is part of it: a token may be bound to it, and after a renewal
// the next one is asked for.
type tokenKey struct {
	subject  [sha256.Size]byte // zero: none, a machine's token
	machine  bool
	audience string
	scopes   string // sorted, with spaces
	serial   string
}

// entry is a token, or the last failure, or a question that is on its way. The lock of Tokens guards it.
type entry struct {
	key     tokenKey
	at      *list.Element
	token   Token
	refresh time.Time // from here on it is asked for anew
	err     error
	errAt   time.Time
	flight  chan struct{} // closed when the answer is there; nil: nobody asks
}

// Exchange exchanges subjectToken for one for audience (a service's name or ID), with these scopes; none: all that the policy
// allows. The subject token must have been verified here: the same one gets the same answer until that is over.
// Refusals of the authority are of type *client.OAuthError.
func (t *Tokens) Exchange(ctx context.Context, subjectToken, audience string, scopes ...string) (Token, error) {
	if subjectToken == "" {
		return Token{}, ErrNoToken
	}
	form := url.Values{"grant_type": {exchange}, "subject_token": {subjectToken}, "subject_token_type": {accessToken}}
	return t.get(ctx, tokenKey{subject: sha256.Sum256([]byte(subjectToken))}, form, audience, scopes, nil)
}

// Machine gets a token without a user, along a call whose `machine` lists the scopes.
func (t *Tokens) Machine(ctx context.Context, audience string, scopes ...string) (Token, error) {
	return t.get(ctx, tokenKey{machine: true}, url.Values{"grant_type": {"client_credentials"}}, audience, scopes, nil)
}

// ErrNoToken is what a call without a verified token of a request gets: nothing was sent.
var ErrNoToken = errors.New("mtls: there is no verified token of an incoming request to exchange")

// get takes the identity that it is to be for; nil: the present one.
func (t *Tokens) get(ctx context.Context, key tokenKey, form url.Values, audience string, scopes []string, as *identity.Identity) (Token, error) {
	if audience == "" {
		return Token{}, errors.New("mtls: a token needs an audience")
	}
	c, own, err := t.src.clientNow()
	if err != nil {
		return Token{}, err
	}
	if as != nil && as.Serial != own.Serial {
		return Token{}, errRenewed
	}
	scopes = slices.Clone(scopes)
	slices.Sort(scopes)
	key.audience, key.scopes, key.serial = audience, strings.Join(slices.Compact(scopes), " "), own.Serial
	form.Set("audience", audience)
	form.Set("client_id", own.ID.String()) // RFC 8705 2
	if key.scopes != "" {
		form.Set("scope", key.scopes)
	}
	ask := func(ctx context.Context) (Token, error) { return t.ask(ctx, c, form) }
	return t.wait(ctx, key, ask)
}

// errRenewed says that a renewal came between the choice of a connection and the token for it.
var errRenewed = errors.New("mtls: the certificate was renewed meanwhile")

func (t *Tokens) ask(ctx context.Context, c *client.Client, form url.Values) (Token, error) {
	sent := t.src.now()
	answer, err := c.Token(ctx, form)
	if err != nil {
		return Token{}, err
	}
	if answer.AccessToken == "" || answer.ExpiresIn <= 0 || !strings.EqualFold(answer.TokenType, "Bearer") {
		return Token{}, fmt.Errorf("mtls: the authority's answer holds no bearer token (token_type %.20q)", answer.TokenType)
	}
	return Token{
		Value: answer.AccessToken, Expires: sent.Add(time.Duration(answer.ExpiresIn) * time.Second), Scopes: strings.Fields(answer.Scope),
	}, nil
}

// wait gives the token of key: the kept one as long as it is good, and asks in the background when it is in its last quarter.
func (t *Tokens) wait(ctx context.Context, key tokenKey, ask func(context.Context) (Token, error)) (Token, error) {
	for {
		t.mu.Lock()
		now := t.src.now()
		e := t.entry(key)
		good := e.token.Value != "" && now.Add(fastExpiry).Before(e.token.Expires)
		recent := e.err != nil && now.Sub(e.errAt) < errorKept && !now.Before(e.errAt)
		if e.flight == nil && !recent && (!good || !now.Before(e.refresh)) {
			e.flight = make(chan struct{})
			go t.fly(e, ask)
		}
		token, err, flight := e.token, e.err, e.flight
		t.mu.Unlock()
		switch {
		case good:
			return token, nil
		case flight == nil:
			return Token{}, err
		}
		select {
		case <-flight:
		case <-ctx.Done():
			return Token{}, ctx.Err()
		}
	}
}

// fly asks once for all who wait. It does not end with the request that began it, but with the source.
func (t *Tokens) fly(e *entry, ask func(context.Context) (Token, error)) {
	ctx, cancel := context.WithTimeout(t.src.life, callTimeout)
	defer cancel()
	token, err := ask(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.src.now()
	e.err, e.errAt = err, now
	if err == nil {
		life := token.Expires.Sub(now)
		refresh := token.Expires.Add(-min(life/refreshPart, refreshMost))
		// The subject token's end is the end of all that is made of it: then a new one is no better, and none is asked for.
		if !token.Expires.After(e.token.Expires.Add(time.Second)) {
			refresh = token.Expires
		}
		e.token, e.refresh = token, refresh
	}
	close(e.flight)
	e.flight = nil
}

// entry finds or makes the entry of key. The caller holds the lock.
func (t *Tokens) entry(key tokenKey) *entry {
	if e, ok := t.known[key]; ok {
		t.used.MoveToFront(e.at)
		return e
	}
	e := &entry{key: key}
	e.at = t.used.PushFront(e)
	t.known[key] = e
	if t.used.Len() > maxTokens {
		oldest, _ := t.used.Remove(t.used.Back()).(*entry)
		delete(t.known, oldest.key)
	}
	return e
}
