package jwt

import (
	"crypto"
	"crypto/sha256"
	"slices"
	"sync"
)

// The bounds of a [Verified]: about 1 MiB.
const (
	maxVerified     = 4096 // of one generation
	maxVerifiedKeys = 256  // that verified them
)

// Verified remembers which tokens had a good signature, so that it is computed once for a token that comes again and again. It
// decides nothing else: that the key still is the one that the issuer publishes for the token's kid is asked each time, and all
// claims are the caller's to judge each time. The zero value is ready; it is safe for concurrent use.
//
// What is kept of a token is the SHA-256 of its text. That is a hash of verified content, because a token has one text: [Parse]
// takes no other spelling of the same bytes, and only what it took is remembered. There is no pointer in it: a daemon that sees
// thousands of tokens once must not have to look through them at each garbage collection.
type Verified struct {
	mu sync.Mutex
	// Two generations: when the younger one is full, it becomes the older, which is forgotten. Who is asked for is young again.
	young, old map[[sha256.Size]byte]uint8 // the place of the key in keys
	keys       []crypto.PublicKey
}

// Parse is [Parse], with the token's digest at hand.
func (v *Verified) Parse(compact string) (*Token, error) {
	t, err := Parse(compact)
	if err == nil {
		t.digest = new([sha256.Size]byte)
		*t.digest = Digest(compact)
	}
	return t, err
}

// Known tells whether the token is remembered: somebody sent it before, and it was found good then.
func (v *Verified) Known(t *Token) bool { return v.by(t.Digest()) != nil }

// by is the key that verified the token with the digest; nil: it is not remembered.
func (v *Verified) by(digest [sha256.Size]byte) crypto.PublicKey {
	v.mu.Lock()
	defer v.mu.Unlock()
	if at, ok := v.young[digest]; ok {
		return v.keys[at]
	}
	if at, ok := v.old[digest]; ok {
		key := v.keys[at]
		v.put(digest, key)
		return key
	}
	return nil
}

// Verify is [Token.Verify]. Where the token is remembered and the key that keys and algs lead to is the one that verified
// it, nothing is computed.
func (v *Verified) Verify(t *Token, keys *Set, algs []string) error {
	key, err := t.key(keys, algs)
	if err != nil {
		return err
	}
	digest := t.Digest()
	if known := v.by(digest); known != nil && sameKey(known, key.Key) {
		return nil
	}
	if err := t.verify(key); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.put(digest, key.Key)
	return nil
}

// put remembers that key verified the token with the digest. v.mu is held.
func (v *Verified) put(digest [sha256.Size]byte, key crypto.PublicKey) {
	at := slices.IndexFunc(v.keys, func(k crypto.PublicKey) bool { return sameKey(k, key) })
	if at < 0 {
		if len(v.keys) == maxVerifiedKeys { // hundreds of rotations: whose tokens they were is over
			v.keys, v.young, v.old = nil, nil, nil
		}
		v.keys = append(v.keys, key)
		at = len(v.keys) - 1
	}
	if len(v.young) == maxVerified {
		v.young, v.old = nil, v.young
	}
	if v.young == nil {
		v.young = make(map[[sha256.Size]byte]uint8, maxVerified/8)
	}
	v.young[digest] = uint8(at)
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Digest is the SHA-256 of the token's text, which has one spelling.
func (t *Token) Digest() [sha256.Size]byte {
	if t.digest != nil {
		return *t.digest
	}
	return Digest(t.compact)
}

// Digest is the SHA-256 of a token's text. Most texts need no copy on the heap for it.
func Digest(compact string) [sha256.Size]byte {
	var room [tokenRoom]byte
	if len(compact) > len(room) {
		return sha256.Sum256([]byte(compact))
	}
	return sha256.Sum256(room[:copy(room[:], compact)])
}
