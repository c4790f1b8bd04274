package jwt

import (
	"container/list"
	"crypto"
	"crypto/sha256"
	"sync"
)

// The bounds of a [Verified]: about 3 times the bytes are in use, for what was parsed.
const (
	maxVerified      = 4096
	maxVerifiedBytes = 2 << 20 // of tokens
)

// Verified remembers tokens whose signature was found good, the most recently used ones, so that a token that comes again
// and again is parsed and verified once. It decides nothing else: that the key still is the one that the issuer publishes
// for the token's kid is asked each time, and times, audience, revocation and all other claims are the caller's to judge
// each time. The zero value is ready; it is safe for concurrent use.
//
// The key of an entry is the SHA-256 of the token's text. That is a hash of verified content, because a token has one
// text: [Parse] takes no other spelling of the same bytes, and only what it took is remembered.
type Verified struct {
	mu    sync.Mutex
	at    map[[32]byte]*list.Element
	order list.List // of *verified, the most recently used first
	bytes int
}

type verified struct {
	sum   [32]byte
	token *Token
	key   crypto.PublicKey // that verified it
}

// Parse is [Parse], from memory where that is possible.
func (v *Verified) Parse(compact string) (*Token, error) {
	if len(compact) > MaxToken {
		return Parse(compact)
	}
	sum := sha256.Sum256([]byte(compact))
	if e := v.recall(sum); e != nil {
		return e.token, nil
	}
	t, err := Parse(compact)
	if err == nil {
		t.digest = &sum
	}
	return t, err
}

// Known tells whether the token is remembered: somebody sent it before, and it was found good then.
func (v *Verified) Known(t *Token) bool { return v.recall(t.Digest()) != nil }

func (v *Verified) recall(sum [32]byte) *verified {
	v.mu.Lock()
	defer v.mu.Unlock()
	e, ok := v.at[sum]
	if !ok {
		return nil
	}
	v.order.MoveToFront(e)
	return e.Value.(*verified)
}

// Verify is [Token.Verify]. Where the token is remembered and the key that keys and algs lead to is the one that verified
// it, nothing is computed.
func (v *Verified) Verify(t *Token, keys *Set, algs []string) error {
	key, err := t.key(keys, algs)
	if err != nil {
		return err
	}
	sum := t.Digest()
	if e := v.recall(sum); e != nil && sameKey(e.key, key.Key) {
		return nil
	}
	if err := t.verify(key); err != nil {
		return err
	}
	v.remember(&verified{sum, t, key.Key})
	return nil
}

// Digest is the SHA-256 of the token's text, which has one spelling.
func (t *Token) Digest() [32]byte {
	if t.digest != nil {
		return *t.digest
	}
	return sha256.Sum256([]byte(t.compact))
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func (v *Verified) remember(e *verified) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.at == nil {
		v.at = make(map[[32]byte]*list.Element)
	}
	if old, ok := v.at[e.sum]; ok {
		v.forget(old)
	}
	v.at[e.sum] = v.order.PushFront(e)
	v.bytes += len(e.token.compact)
	for v.order.Len() > maxVerified || v.bytes > maxVerifiedBytes {
		v.forget(v.order.Back())
	}
}

// forget drops an entry. v.mu is held.
func (v *Verified) forget(e *list.Element) {
	gone := v.order.Remove(e).(*verified)
	delete(v.at, gone.sum)
	v.bytes -= len(gone.token.compact)
}
