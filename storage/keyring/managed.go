package keyring

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/countersign/countersign"
)

// device is the token of a place; all that are configured have one.
func (r *Ring) device(p Place) *device {
	for _, d := range r.devices {
		if d.place.same(p) {
			return d
		}
	}
	return nil
}

// deviceOf is the token that a key's URI names: CodeKMSBuild in a build without PKCS#11, CodeKMSPlace if it is not configured.
func (r *Ring) deviceOf(uri string) (*device, error) {
	if named, _, _ := strings.Cut(uri, ";id="); !pkcs11Built {
		return nil, countersign.Errorf(countersign.CodeKMSBuild, "a key is in %.200s, behind a PKCS#11 module, and this build of countersign, which is static, can't load one", named).
			WithHint("run the build for hardware keys in its place: make build-hsm, which makes bin/countersign-hsm")
	}
	p, err := placeOf(uri, r.cfg.Places.managed())
	if err != nil {
		return nil, err
	}
	return r.device(p), nil
}

// placed demands that the tokens of all keys that are not expired can be used by this build and configuration, also by a
// sealed ring: it would not serve once it is unsealed.
func (r *Ring) placed(st state) error {
	now := r.cfg.Now()
	for id, e := range st.entries {
		if e.record.KMS == "" || e.key.State(now) == Expired {
			continue
		}
		if _, err := r.deviceOf(e.record.KMS); err != nil {
			known := countersign.AsError(err)
			return countersign.Errorf(known.Code, "the key %s of purpose %s: %s", id, e.key.Purpose, known.Msg).WithHint("%s", known.Hint)
		}
	}
	return nil
}

// newManaged makes a new key in a token, under a name that no other key has.
func (r *Ring) newManaged(k Key, p Place) (entry, error) {
	d := r.device(p)
	for {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails: crypto/rand ends the process instead
		name := hex.EncodeToString(id[:])
		k.KMS = p.keyURI(name, "countersign-"+string(k.Purpose)+"-"+strings.ToLower(k.Alg)+"-"+name[:8])
		var err error
		if k.Public, err = d.create(k.Alg, k.KMS); err != nil {
			return entry{}, err
		}
		if k.ID, err = thumbprint(k.Public); err != nil {
			return entry{}, err
		}
		if k.ID[0] != '-' { // as with sealed keys: a kid is typed as an argument
			break
		}
		if err := d.destroy(k.KMS); err != nil {
			return entry{}, err
		}
	}
	bound, err := sealBytes(r.kek, labelURI, k.ID, k.Purpose, []byte(k.KMS))
	if err != nil {
		return entry{}, err
	}
	rec, err := newRecord(k, bound)
	return entry{key: k, record: rec}, err
}

// hold is the signer of a key in a token, nil for one that is expired: its token may be gone for good. The URI counts only if it is
// the one that was bound to kid and purpose under the KEK: who can write to the store can't have another key sign.
func (r *Ring) hold(kek cipher.AEAD, e entry) (*heldKey, error) {
	bound, err := unsealBytes(kek, labelURI, e.key.ID, e.key.Purpose, e.record.Sealed)
	if err != nil || string(bound) != e.record.KMS {
		return nil, damaged("key %s: the URI of its key is not the one that was recorded with it", e.key.ID)
	}
	if e.key.State(r.cfg.Now()) == Expired {
		return nil, nil //nolint:nilnil // as the comment says
	}
	d, err := r.deviceOf(e.record.KMS)
	if err != nil {
		return nil, err
	}
	held, err := d.key(e.record.KMS, e.key.Public)
	if err != nil {
		known := countersign.AsError(err)
		return nil, countersign.Errorf(known.Code, "the key %s of purpose %s: %s", e.key.ID, e.key.Purpose, known.Msg).
			WithHint("%s", known.Hint).After(known.RetryAfter).Because(known.Err)
	}
	return held, nil
}

// retain has the tokens forget keys that are not in st.
func (r *Ring) retain(st state) {
	if len(r.devices) == 0 {
		return
	}
	uris := map[string]bool{}
	for _, e := range st.entries {
		uris[e.record.KMS] = true
	}
	for _, d := range r.devices {
		d.retain(uris)
	}
}

// unmake destroys keys that were made in tokens for a change that failed, if it is certain that no record names them. Nothing
// depends on its success: a key that nobody names does no harm.
func (r *Ring) unmake(ctx context.Context, made []entry, failed error) {
	if failed == nil || !slices.ContainsFunc(made, func(e entry) bool { return e.record.KMS != "" }) {
		return
	}
	st, err := load(context.WithoutCancel(ctx), r.cfg.Store)
	if err != nil || countersign.AsError(failed).Code == countersign.CodeUnknownOutcome {
		return
	}
	for _, e := range made {
		if _, recorded := st.entries[e.key.ID]; recorded || e.record.KMS == "" {
			continue
		}
		d, err := r.deviceOf(e.record.KMS)
		if err == nil {
			err = d.destroy(e.record.KMS)
		}
		if err != nil {
			r.cfg.Logger.Warn("keyring: a key that nothing needs is still in its token", "kms", e.record.KMS, "error", err)
		}
	}
}

// bury destroys the keys that were dropped here and are still in their tokens. What can't be destroyed now stays on the list,
// and the next step of [Ring.Run] tries again. r.mu is held.
func (r *Ring) bury(ctx context.Context) {
	st := r.snap.Load().state
	if len(st.head.Doomed) == 0 {
		return
	}
	var left []string
	for _, uri := range st.head.Doomed {
		d, err := r.deviceOf(uri)
		if err == nil {
			err = d.destroy(uri)
		}
		if err != nil {
			r.cfg.Logger.Warn("keyring: a key that was dropped is still in its token", "kms", uri, "error", err)
			left = append(left, uri)
		}
	}
	if len(left) == len(st.head.Doomed) {
		return
	}
	st.head.Doomed = left
	// Crash here, or a change by another node: what is not there any more is destroyed again, which is no error.
	if err := r.writeHead(ctx, st); err != nil {
		r.cfg.Logger.Warn("keyring: the list of keys to destroy was not shortened", "error", err)
	}
}

// Lost are the tokens whose keys can't be used at the moment, in words.
func (r *Ring) Lost() []string {
	var lost []string
	for _, d := range r.devices {
		if err := d.usable(); err != nil {
			lost = append(lost, "the token "+d.place.String()+" is lost: nothing is signed with the keys in it")
		}
	}
	return lost
}

// Outside are the keys that are not expired and whose private halves are in tokens: no backup of the store holds those.
func (r *Ring) Outside() []Key {
	var keys []Key
	for _, k := range r.snap.Load().ordered {
		if k.KMS != "" && k.State(r.cfg.Now()) != Expired {
			keys = append(keys, k)
		}
	}
	return keys
}

// Close gives the tokens back. Nothing is signed with their keys afterwards. It is for the end, after Run has returned.
func (r *Ring) Close() error {
	for _, d := range r.devices {
		d.close()
	}
	return nil
}
