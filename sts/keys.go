package sts

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/keyring"
	"github.com/countersign/countersign/sts/jwt"
)

// keySet is one state of our public token keys: the document that is served and the keys that verify our own tokens are
// the same.
type keySet struct {
	set     *jwt.Set
	body    []byte
	etag    string
	changed <-chan struct{} // of the ring, taken before its keys were read
	until   time.Time       // when the first of the keys is over; zero: none ends
}

// fresh tells whether the set may be used at now.
func (k *keySet) fresh(now time.Time) bool {
	select {
	case <-k.changed:
		return false
	default:
		return k.until.IsZero() || now.Before(k.until)
	}
}

// published keeps the keySet of the ring's present state. Reading costs two loads; it is made anew after a change of the ring
// and when a key is over by the clock.
type published struct {
	ring *keyring.Ring
	now  func() time.Time

	// mu makes one caller at a time read the ring and store the result. So no older state ever replaces a newer one, and
	// once [published.with] returned a key, every later document holds it until the key is over.
	mu      sync.Mutex
	current atomic.Pointer[keySet]
}

// get is the set of this moment.
func (p *published) get() (*keySet, error) {
	if k := p.current.Load(); k != nil && k.fresh(p.now()) {
		return k, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.current.Load(); k != nil && k.fresh(p.now()) {
		return k, nil
	}
	return p.read()
}

// with is a set that holds the key kid, which the ring gave to sign with. The ring may tell of a change a moment after it
// took effect; that moment is bridged here.
func (p *published) with(kid string) (*keySet, error) {
	k, err := p.get()
	if err != nil || k.set.Has(kid) {
		return k, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, err = p.read(); err != nil {
		return nil, err
	}
	if !k.set.Has(kid) {
		return nil, countersign.Errorf(countersign.CodeNoKey, "the signing key is not published").
			Because(fmt.Errorf("key %s is not among the ring's token keys", kid))
	}
	return k, nil
}

// read makes the set of the ring's present state. p.mu is held.
func (p *published) read() (*keySet, error) {
	k := &keySet{changed: p.ring.Changed()}
	now := p.now()
	var keys []jwt.PublicKey
	for _, key := range p.ring.Keys(keyring.Token) {
		if key.State(now) == keyring.Expired {
			continue
		}
		keys = append(keys, jwt.PublicKey{KID: key.ID, Alg: key.Alg, Key: key.Public})
		if end := key.VerifiesUntil; !end.IsZero() && (k.until.IsZero() || end.Before(k.until)) {
			k.until = end
		}
	}
	set, err := jwt.NewSet(keys...)
	if err != nil {
		return nil, fmt.Errorf("publish the token keys: %w", err)
	}
	k.set, k.body = set, set.JSON()
	sum := sha256.Sum256(k.body)
	k.etag = `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
	p.current.Store(k)
	return k, nil
}

// JWKS is the document of our public token keys (RFC 7517 5), its strong entity tag, quoted, and how long it may be
// cached: half of the lead, so that every cache has a key before it signs. The body must not be changed. It also answers
// while the daemon is sealed.
func (s *Service) JWKS() (body []byte, etag string, maxAge time.Duration) {
	k, err := s.keys.get()
	if err != nil {
		s.log.Error("the token keys can't be published; the last document stays", "error", err)
		if k = s.keys.current.Load(); k == nil {
			k = &keySet{body: []byte(`{"keys":[]}`), etag: `"none"`}
		}
	}
	return slices.Clip(k.body), k.etag, s.cfg.Lead / 2
}
