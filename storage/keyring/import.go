package keyring

import (
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// Thumbprint is the id that a key with this public half has, or would have, in a ring (RFC 7638).
func Thumbprint(pub crypto.PublicKey) (string, error) { return thumbprint(pub) }

// Importable tells why a key of purpose [CA] can't be one with this public half; nil: it can.
func Importable(pub crypto.PublicKey) error {
	_, err := algOf(pub)
	return err
}

// Import seals a private key that was made elsewhere, of purpose [CA]: P-256, P-384, or RSA of 2048 bits and more
// (CodeParameter). One that the ring has is no error, and nothing changes; one of another purpose is CodePurpose. The
// caller's copy is the caller's to forget. Where roots' keys are made in a token none is taken (CodeParameter): a key that was
// in a file is not what that promises. It is CodeSealed without a KEK.
func (r *Ring) Import(ctx context.Context, by countersign.Caller, key crypto.Signer) (Key, error) {
	alg, err := algOf(key.Public())
	if err != nil {
		return Key{}, countersign.Errorf(countersign.CodeParameter, "the key can't be taken into the keyring: %v", err)
	}
	if place := r.cfg.Places.of(CA, true); place.Managed() {
		return Key{}, countersign.Errorf(countersign.CodeParameter, "roots' keys are made in the token %s and nowhere else: a key from a file does not go there", place)
	}
	id, err := thumbprint(key.Public())
	if err != nil {
		return Key{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kek == nil {
		return Key{}, sealedError()
	}
	closed, err := seal(r.kek, id, CA, key)
	if err != nil {
		return Key{}, fmt.Errorf("seal key %s: %w", id, err)
	}
	now := utc(r.cfg.Now())
	e := entry{key: Key{ID: id, Purpose: CA, Alg: alg, Public: key.Public(), Published: now, SignsFrom: now}}
	if e.record, err = newRecord(e.key, closed); err != nil {
		return Key{}, err
	}
	row := e.key.Planned(now)
	row.New = true
	c := change{event: eventImported, subject: id, add: []entry{e}, detail: detail{Keys: []PlannedKey{row}}}
	for range conflictTries {
		st, err := load(ctx, r.cfg.Store)
		if err != nil {
			return Key{}, storeError(err)
		}
		if have, ok := st.entries[id]; ok {
			if have.key.Purpose != CA {
				return Key{}, countersign.Errorf(countersign.CodePurpose, "the keyring has this key, of purpose %s", have.key.Purpose)
			}
			return have.key, r.publish(st)
		}
		if err := r.commit(ctx, by, st, c); err == nil {
			return e.key, nil
		} else if !errors.Is(err, storage.ErrConflict) {
			return Key{}, err
		}
	}
	return Key{}, storeError(storage.ErrConflict)
}
