package keyring

import (
	"bytes"
	"context"
	"crypto"
	"crypto/cipher"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// Config is what a [Ring] stands on.
type Config struct {
	Store  storage.Store
	Audit  *audit.Log
	KEK    []byte           // 32 bytes, not kept, the caller may clear it; nil: sealed
	KEKDir string           // where [ReadKEK] read it, and where [Ring.RotateKEK] replaces it; "": it can't
	Now    func() time.Time // nil: time.Now

	Logger *slog.Logger // nil: no logs

	Lead        time.Duration // from publishing token and svid keys to signing with them; 0: 1 h
	RotateEvery time.Duration // age at which token and svid keys are replaced, at least Lead; 0: 30 d

	// MaxTTL is the longest lifetime of a token that any node may sign; 0: 1 h. It decides how long old keys verify, so
	// it is the limit that the policy sets for every call, not what the present calls use.
	MaxTTL time.Duration

	// Guard is asked before anything is signed with a key of any purpose but [Audit], and before keys get their times: an
	// error, as of a clock that leapt, refuses it. Audit checkpoints are signed all the same. May be nil.
	Guard func() error

	// Upgrade lets Run make the first keys of a purpose that a store from before that purpose lacks. They sign after the
	// lead, as those of a rotation do: verifiers may have a copy of the published keys that lacks them.
	Upgrade bool

	Places  Places // where new keys are made, and other tokens with keys of the ring; zero: all in the store
	PINFile string // holds the PIN of tokens whose place names no file of its own; "": there are none

	Registerer prometheus.Registerer // may be nil
}

func (c *Config) defaults() error {
	if c.Store == nil || c.Audit == nil {
		return errors.New("keyring: a store and an audit log are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
	}{{"Lead", &c.Lead, time.Hour}, {"RotateEvery", &c.RotateEvery, 30 * 24 * time.Hour}, {"MaxTTL", &c.MaxTTL, time.Hour}} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < time.Second {
			return fmt.Errorf("keyring: %s is %s: at least 1s is needed", d.name, *d.v)
		}
	}
	if c.RotateEvery < c.Lead {
		return fmt.Errorf("keyring: RotateEvery (%s) is shorter than Lead (%s)", c.RotateEvery, c.Lead)
	}
	if err := c.Places.Check(); err != nil {
		return fmt.Errorf("keyring: %w", err)
	}
	for _, p := range c.Places.managed() {
		if err := p.Supported(); err != nil {
			return err
		}
	}
	return nil
}

// Ring is the keys of one store. It is safe for concurrent use.
type Ring struct {
	cfg       Config
	snap      atomic.Pointer[snapshot]
	rotations atomic.Uint64
	devices   []*device // the tokens of cfg.Places

	mu  sync.Mutex  // one change or reading at a time; never held by Keys, Signer and the other look-ups
	kek cipher.AEAD // nil while sealed; guarded by mu
}

// snapshot is immutable. Keys and Signer answer from the same one.
type snapshot struct {
	state   state
	ordered []Key                    // oldest first
	signing map[use][]Key            // the one that begins to sign last comes first
	signers map[string]crypto.Signer // by kid; nil while sealed
	changed chan struct{}
}

// use is what a caller of Signer asks for.
type use struct {
	purpose Purpose
	alg     string
}

// newSnapshot arranges st for the look-ups; signers are still missing.
func newSnapshot(st state) *snapshot {
	s := &snapshot{state: st, signing: map[use][]Key{}, changed: make(chan struct{})}
	for _, e := range st.entries {
		s.ordered = append(s.ordered, e.key)
	}
	sortKeys(s.ordered)
	for _, k := range slices.Backward(s.ordered) {
		of := use{k.Purpose, k.Alg}
		s.signing[of] = append(s.signing[of], k)
	}
	for _, keys := range s.signing {
		slices.SortStableFunc(keys, func(a, b Key) int { return b.SignsFrom.Compare(a.SignsFrom) })
	}
	return s
}

// active is the key that signs for of at now; of several, the one that began last.
func (s *snapshot) active(of use, now time.Time) (Key, bool) {
	keys := s.signing[of]
	i := slices.IndexFunc(keys, func(k Key) bool { return k.State(now) == Active })
	if i < 0 {
		return Key{}, false
	}
	return keys[i], true
}

// Open reads the ring. It is an error that matches [ErrKEK] if the KEK does not fit the store, and one that matches
// storage.ErrCorrupt if a key can't be unsealed or is missing. The first KEK that an empty store sees is recorded (as a
// check value, not the KEK), and only that one fits from then on.
func Open(ctx context.Context, cfg Config) (*Ring, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	kek := cfg.KEK
	cfg.KEK = nil
	r := &Ring{cfg: cfg}
	for _, p := range cfg.Places.managed() {
		r.devices = append(r.devices, newDevice(p, cfg.PINFile))
	}
	r.snap.Store(newSnapshot(state{}))
	st, err := load(ctx, cfg.Store)
	if err != nil {
		return nil, fmt.Errorf("open the keyring: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err = r.placed(st); err == nil && kek != nil {
		err = r.adopt(ctx, st, kek)
	} else if err == nil {
		err = r.publish(st)
	}
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("open the keyring: %w", err)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(collector{r}); err != nil {
			return nil, fmt.Errorf("open the keyring: %w", err)
		}
	}
	return r, nil
}

// Unseal gives a sealed ring its KEK. It is [ErrKEK] if the KEK does not fit, and then the ring stays sealed. A ring that
// is not sealed takes the same KEK again and refuses another. kek is not kept.
func (r *Ring) Unseal(kek []byte) error {
	// The signature has no context: nothing that a caller could abandon is done but, on an empty store, one write.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	st, err := load(ctx, r.cfg.Store)
	if err != nil {
		return fmt.Errorf("unseal the keyring: %w", err)
	}
	if err := r.adopt(ctx, st, kek); err != nil {
		return fmt.Errorf("unseal the keyring: %w", err)
	}
	return nil
}

// Sealed tells whether nothing can be signed for want of the KEK.
func (r *Ring) Sealed() bool { return r.snap.Load().signers == nil }

// adopt takes kek if it fits, records its check value if it is the store's first, and publishes st unsealed.
func (r *Ring) adopt(ctx context.Context, st state, kek []byte) error {
	aead, err := newAEAD(kek)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKEK, err)
	}
	if st.checkRev == 0 {
		if st, err = r.recordCheck(ctx, aead); err != nil {
			return err
		}
	}
	if !fits(aead, st.check) {
		next, ok, err := r.finishRotation(st)
		if err != nil {
			return err
		}
		if ok {
			aead = next
		}
	}
	before := r.kek
	r.kek = aead
	if err := r.publish(st); err != nil {
		r.kek = before
		return err
	}
	return nil
}

// recordCheck writes the check value unless another node was first, and reads the ring again.
func (r *Ring) recordCheck(ctx context.Context, kek cipher.AEAD) (state, error) {
	op, err := checkRecords().Put(kekKey, check{Value: checkValue(kek)}, time.Time{}, storage.Cond{Absent: true})
	if err != nil {
		return state{}, err
	}
	// ErrUnknown needs no case of its own: what is recorded is read next, and judged.
	_, err = r.cfg.Store.Apply(ctx, op)
	if err != nil && !errors.Is(err, storage.ErrConflict) && !errors.Is(err, storage.ErrUnknown) {
		return state{}, fmt.Errorf("record the check value of the KEK: %w", err)
	}
	st, err := load(ctx, r.cfg.Store)
	if err != nil {
		return state{}, err
	}
	if st.checkRev == 0 {
		return state{}, fmt.Errorf("record the check value of the KEK: %w", storage.ErrUnknown)
	}
	return st, nil
}

// publish makes st what Keys and Signer answer from. On an error the last good snapshot stays: a ring never serves part
// of its keys. r.mu is held.
func (r *Ring) publish(st state) error {
	next, err := r.prepare(st)
	if err != nil {
		return err
	}
	r.swap(next)
	return nil
}

// prepare makes the snapshot of st, all of it or none. Keys that were unsealed before are not unsealed again. r.mu is
// held.
func (r *Ring) prepare(st state) (*snapshot, error) { return r.prepareWith(r.kek, st) }

func (r *Ring) prepareWith(kek cipher.AEAD, st state) (*snapshot, error) {
	old := r.snap.Load()
	next := newSnapshot(st)
	if kek == nil {
		return next, nil
	}
	if !fits(kek, st.check) {
		return nil, ErrKEK
	}
	next.signers = make(map[string]crypto.Signer, len(st.entries))
	for id, e := range st.entries {
		if known, ok := old.signers[id]; ok && sameSeal(old.state.entries[id].record, e.record) {
			next.signers[id] = known
			continue
		}
		if e.record.KMS != "" {
			held, err := r.hold(kek, e)
			if err != nil {
				return nil, err
			}
			if held != nil {
				next.signers[id] = held
			}
			continue
		}
		unsealed, err := unseal(kek, id, e.key.Purpose, e.key.Public, e.record.Sealed)
		if err != nil {
			return nil, damaged("key %s: %v", id, err)
		}
		next.signers[id] = unsealed
	}
	return next, nil
}

// swap is the one instant at which keys become visible and begin or cease to be usable on this node.
func (r *Ring) swap(next *snapshot) {
	r.retain(next.state)
	close(r.snap.Swap(next).changed)
}

func sameSeal(a, b record) bool {
	return a.Purpose == b.Purpose && a.KMS == b.KMS && a.Sealed.Version == b.Sealed.Version &&
		bytes.Equal(a.Sealed.DataKey, b.Sealed.DataKey) && bytes.Equal(a.Sealed.Private, b.Sealed.Private)
}

// Changed is closed when a snapshot replaces the present one, and while [Ring.Run] runs also when a key's state
// changes by the clock. Call it, then read, then wait.
func (r *Ring) Changed() <-chan struct{} { return r.snap.Load().changed }

// Keys are the keys of purpose p that are not expired, oldest first: pending ones too, since verifiers must know a key
// before it signs.
func (r *Ring) Keys(p Purpose) []Key {
	now := r.cfg.Now()
	ordered := r.snap.Load().ordered
	keys := make([]Key, 0, len(ordered))
	for _, k := range ordered {
		if k.Purpose == p && k.State(now) != Expired {
			keys = append(keys, k)
		}
	}
	return keys
}

// All are the keys of purpose p in every state, oldest first; expired ones as long as they are recorded.
func (r *Ring) All(p Purpose) []Key {
	return slices.DeleteFunc(slices.Clone(r.snap.Load().ordered), func(k Key) bool { return k.Purpose != p })
}

// Key finds a key of any purpose and state by its kid. Expired token and svid keys are found for 30 days.
func (r *Ring) Key(id string) (Key, bool) {
	e, ok := r.snap.Load().state.entries[id]
	return e.key, ok
}

// Guard is why nothing that carries a time may be signed at the moment: what Config.Guard says. Who is about to record or
// to answer something that ends in a signature asks it first.
func (r *Ring) Guard() error {
	if r.cfg.Guard == nil {
		return nil
	}
	return r.cfg.Guard()
}

// Signer is the active key of purpose p for alg; of several, the one that began to sign last. It is CodeSealed, which
// matches [ErrSealed], without a KEK, CodeNoKey if there is none, CodeKMSDown while its token is lost,
// and for purposes other than [Audit] what [Ring.Guard] says.
func (r *Ring) Signer(p Purpose, alg string) (Key, crypto.Signer, error) {
	now, snap := r.cfg.Now(), r.snap.Load()
	if snap.signers == nil {
		return Key{}, nil, sealedError()
	}
	if p != Audit {
		if err := r.Guard(); err != nil {
			return Key{}, nil, err
		}
	}
	found, ok := snap.active(use{p, alg}, now)
	if !ok {
		return Key{}, nil, countersign.Errorf(countersign.CodeNoKey, "no key of purpose %s signs %s at the moment", p, alg).
			WithHint("countersign key list shows the keys and their times")
	}
	signer, err := snap.signer(found.ID)
	return found, signer, err
}

// SignerByID is the signer of a key of purpose [CA] or [OCSP] that is not expired: certificates name their issuer's key. Other
// purposes sign through [Ring.Signer] only, which minds their times (CodePurpose). It is CodeSealed without a KEK, CodeNoKey
// if there is no such key, and what [Ring.Guard] says.
func (r *Ring) SignerByID(id string) (crypto.Signer, error) {
	now, snap := r.cfg.Now(), r.snap.Load()
	if snap.signers == nil {
		return nil, sealedError()
	}
	if err := r.Guard(); err != nil {
		return nil, err
	}
	e, ok := snap.state.entries[id]
	if !ok || e.key.State(now) == Expired {
		return nil, countersign.Errorf(countersign.CodeNoKey, "there is no key %q that is not expired", id)
	}
	if !e.key.Purpose.named() {
		return nil, countersign.Errorf(countersign.CodePurpose, "key %q is of purpose %s: only keys of the purposes %s and %s sign by their id", id, e.key.Purpose, CA, OCSP)
	}
	return snap.signer(id)
}

// signer is the signer of a key that may sign now, or why it can't: a token that is lost is told before anything is recorded.
func (s *snapshot) signer(id string) (crypto.Signer, error) {
	found, ok := s.signers[id]
	if !ok { // it was over when the snapshot was made, and the clock says now that it was not
		return nil, countersign.Errorf(countersign.CodeNoKey, "the key %q can't be used at the moment", id)
	}
	if held, ok := found.(*heldKey); ok {
		if err := held.device.usable(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func sealedError() *countersign.Error {
	return countersign.Errorf(countersign.CodeSealed, "the daemon is sealed: it has no KEK and can't sign").
		WithHint("put the KEK in place as <dir>/kek, mode 0400; the daemon takes it within seconds").Because(ErrSealed)
}
