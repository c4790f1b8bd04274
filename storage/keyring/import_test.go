package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"slices"
	"strings"
	"testing"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// A key that was made elsewhere signs here, also after a restart, and importing it again changes nothing.
func TestImport(t *testing.T) {
	t.Parallel()
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ES256": curveKey(t, elliptic.P256()), "ES384": curveKey(t, elliptic.P384()), "RS256": weak} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.init()
			got, err := b.ring.Import(t.Context(), admin(), key)
			if err != nil || got.Alg != name || got.Purpose != CA {
				t.Fatalf("%+v, %v", got, err)
			}
			told := len(b.records())
			if again, err := b.ring.Import(t.Context(), admin(), key); err != nil || again.ID != got.ID || len(b.records()) != told {
				t.Errorf("again: %+v, %v, %d records", again, err, len(b.records())-told)
			}
			b.stop()
			b.start()
			signer, err := b.ring.SignerByID(got.ID)
			if err != nil {
				t.Fatal(err)
			}
			verify(t, signer, key.Public())
			if n := slices.Index(b.events(), eventImported+" ok"); n < 0 {
				t.Errorf("events %q", b.events())
			}
		})
	}
}

func curveKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Each refusal leaves the ring as it was.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.init()
	key := curveKey(t, elliptic.P256())
	before := len(b.ring.Keys(CA))
	_, err := b.ring.Import(t.Context(), admin(), curveKey(t, elliptic.P521()))
	wantCode(t, err, countersign.CodeParameter)

	b.ring.cfg.Places.Root = Place{module: "/nowhere.so", by: "token", token: "shop"}
	_, err = b.ring.Import(t.Context(), admin(), key)
	wantCode(t, err, countersign.CodeParameter)
	if !strings.Contains(err.Error(), "pkcs11:token=shop") {
		t.Error(err)
	}
	b.ring.cfg.Places.Root = Place{}

	b.store.before = func(ops []storage.Op) error {
		if writesKeys(ops) {
			return storage.ErrConflict
		}
		return nil
	}
	_, err = b.ring.Import(t.Context(), admin(), key)
	wantCode(t, err, countersign.CodeBusy)
	b.store.before = nil
	if len(b.ring.Keys(CA)) != before {
		t.Errorf("%d keys and not %d", len(b.ring.Keys(CA)), before)
	}

	_, err = b.ring.Import(t.Context(), admin(), tokenKey(t, b))
	wantCode(t, err, countersign.CodePurpose)

	b.stop()
	kek := b.kek
	b.kek = nil
	b.start()
	_, err = b.ring.Import(t.Context(), admin(), key)
	wantCode(t, err, countersign.CodeSealed)
	b.stop()
	b.kek = kek
	b.start()
	if len(b.ring.Keys(CA)) != before {
		t.Error("a refused key was taken")
	}
}

// tokenKey is a key that the ring has for tokens, and that somebody has in a file too.
func tokenKey(t *testing.T, b *bench) crypto.Signer {
	t.Helper()
	key := curveKey(t, elliptic.P256())
	id, err := thumbprint(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	closed, err := seal(b.ring.kek, id, Token, key)
	if err != nil {
		t.Fatal(err)
	}
	e := entry{key: Key{ID: id, Purpose: Token, Alg: algES256, Public: key.Public(), Published: b.clock.now(), SignsFrom: b.clock.now()}}
	if e.record, err = newRecord(e.key, closed); err != nil {
		t.Fatal(err)
	}
	st, err := load(t.Context(), b.store)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.ring.commit(t.Context(), admin(), st, change{event: eventCreated, subject: id, add: []entry{e}}); err != nil {
		t.Fatal(err)
	}
	return key
}

// Two nodes import one key at the same moment: both have it, and it is there once.
func TestImportConflict(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.init()
	key, other := curveKey(t, elliptic.P256()), b.open(b.kek)
	first := true
	b.store.before = func(ops []storage.Op) error {
		if !writesKeys(ops) || !first {
			return nil
		}
		first = false
		_, err := other.Import(t.Context(), admin(), key)
		return err
	}
	got, err := b.ring.Import(t.Context(), admin(), key)
	if err != nil {
		t.Fatal(err)
	}
	if keys := b.ring.Keys(CA); len(keys) != 1 || keys[0].ID != got.ID {
		t.Errorf("%+v", keys)
	}
	signer, err := b.ring.SignerByID(got.ID)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, signer, key.Public())
}
