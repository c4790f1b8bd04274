package local

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/ca/mtls"
)

const (
	firstRetry  = time.Second
	lastRetry   = time.Minute
	refreshMost = 5 * time.Minute
	againAfter  = 10 * time.Second // the least time between two fetches that callers cause
	firstWait   = 5 * time.Second  // for the first keys
)

// jwtKeys are the public keys of JWT-SVIDs of one state of the trust bundle. They are never changed.
type jwtKeys struct {
	json []byte // as a JWK set
	keys map[string]crypto.PublicKey
}

// bundle keeps the keys of JWT-SVIDs as the daemon publishes them, from the first time that somebody wants them. When the
// daemon can't be asked the last ones stay; who uses them demands a valid certificate of his own, which bounds that.
type bundle struct {
	source *mtls.Source
	now    func() time.Time
	ask    chan struct{} // somebody wants the keys, or wants them anew

	mu      sync.Mutex
	keys    *jwtKeys
	fetched time.Time
	changed chan struct{} // closed when keys is replaced
	round   chan struct{} // closed when a fetch ends
}

func newBundle(source *mtls.Source, now func() time.Time) *bundle {
	return &bundle{source: source, now: now, ask: make(chan struct{}, 1), changed: make(chan struct{}), round: make(chan struct{})}
}

func (b *bundle) want() {
	select {
	case b.ask <- struct{}{}:
	default:
	}
}

// get is the keys of this moment, nil if there are none yet, and when that changes.
func (b *bundle) get() (*jwtKeys, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys == nil {
		b.want()
	}
	return b.keys, b.changed
}

// wait is the keys; it waits for the first ones a little.
func (b *bundle) wait(ctx context.Context) (*jwtKeys, error) {
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	for {
		keys, changed := b.get()
		if keys != nil {
			return keys, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.New("the keys of JWT-SVIDs could not be fetched yet")
		}
	}
}

// again fetches the keys anew, unless that was done a moment ago, and tells whether they are others than before.
func (b *bundle) again(ctx context.Context, before *jwtKeys) bool {
	b.mu.Lock()
	round, since := b.round, b.now().Sub(b.fetched)
	b.mu.Unlock()
	if since < againAfter && since >= 0 {
		return false
	}
	b.want()
	ctx, cancel := context.WithTimeout(ctx, firstWait)
	defer cancel()
	select {
	case <-round:
	case <-ctx.Done():
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keys != before
}

// follow fetches the bundle when somebody wants it, and from then on as its refresh hint says, until ctx ends.
func (b *bundle) follow(ctx context.Context, log *slog.Logger) error {
	var timer <-chan time.Time
	retry := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.ask:
		case <-timer:
		}
		renewed := b.source.Changed()
		hint, err := b.fetch(ctx)
		wait := min(max(hint, time.Second), refreshMost)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			log.Warn("local API: the keys of JWT-SVIDs could not be fetched; the last ones stay", "error", err, "again", retry)
			wait, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		timer = time.After(wait - time.Duration(rand.Int64N(int64(wait/10)+1)))
		if err != nil {
			select { // who waits for the first keys must not make a failing daemon fail faster
			case <-ctx.Done():
				return nil
			case <-renewed:
			case <-time.After(min(wait, againAfter)):
			}
		}
	}
}

// fetch takes the bundle of now.
func (b *bundle) fetch(ctx context.Context) (hint time.Duration, err error) {
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.fetched = b.now()
		close(b.round)
		b.round = make(chan struct{})
	}()
	c, err := b.source.Client()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	got, err := c.Bundle(ctx)
	if err != nil {
		return 0, err
	}
	keys, err := readKeys(got)
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys == nil || !bytes.Equal(b.keys.json, keys.json) {
		b.keys = keys
		close(b.changed)
		b.changed = make(chan struct{})
	}
	return time.Duration(got.RefreshHint) * time.Second, nil
}

// maxKeys is more than the daemon ever publishes of one purpose.
const maxKeys = 64

// readKeys takes the keys of JWT-SVIDs out of a bundle. Whole or not at all: a key that can't be read is no smaller set. It is
// pure.
func readKeys(in wire.Bundle) (*jwtKeys, error) {
	out := &jwtKeys{keys: map[string]crypto.PublicKey{}}
	set := struct {
		Keys []wire.JWK `json:"keys"`
	}{Keys: []wire.JWK{}}
	for _, jwk := range in.Keys {
		if jwk.Use != "jwt-svid" {
			continue
		}
		key, err := publicKey(jwk)
		if err != nil {
			return nil, err
		}
		if _, twice := out.keys[jwk.KID]; jwk.KID == "" || twice || len(out.keys) == maxKeys {
			return nil, errors.New("the bundle's keys of JWT-SVIDs lack an id, share one, or are too many")
		}
		out.keys[jwk.KID] = key
		set.Keys = append(set.Keys, jwk)
	}
	var err error
	out.json, err = json.Marshal(set)
	return out, err
}

func publicKey(jwk wire.JWK) (crypto.PublicKey, error) {
	x, errX := base64.RawURLEncoding.DecodeString(jwk.X)
	y, errY := base64.RawURLEncoding.DecodeString(jwk.Y)
	if jwk.Kty != "EC" || jwk.Crv != "P-256" || errX != nil || errY != nil || len(x) != 32 || len(y) != 32 {
		return nil, errors.New("a key of JWT-SVIDs in the bundle is not of P-256")
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
}
