package keyring

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// edit changes one record in the store as somebody with access to the file could.
func edit(t *testing.T, b *bench, id string, change func(*record)) {
	t.Helper()
	item, err := keyRecords().Get(t.Context(), b.store, id)
	if err != nil {
		t.Fatal(err)
	}
	change(&item.Value)
	op, err := keyRecords().Put(id, item.Value, time.Time{}, storage.Cond{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Apply(t.Context(), op); err != nil {
		t.Fatal(err)
	}
}

func TestTamperedRecordsAreRefused(t *testing.T) {
	get := func(b *bench, id string) record { return b.ring.snap.Load().state.entries[id].record }
	for name, tamper := range map[string]func(t *testing.T, b *bench, ca, token string){
		"sealing of another key": func(t *testing.T, b *bench, ca, token string) {
			edit(t, b, ca, func(r *record) { r.Sealed = get(b, token).Sealed })
		},
		"data key of another key": func(t *testing.T, b *bench, ca, token string) {
			edit(t, b, ca, func(r *record) { r.Sealed.DataKey = get(b, token).Sealed.DataKey })
		},
		"private half of another key": func(t *testing.T, b *bench, ca, token string) {
			edit(t, b, ca, func(r *record) { r.Sealed.Private = get(b, token).Sealed.Private })
		},
		"key of another key, with its public half": func(t *testing.T, b *bench, ca, token string) {
			edit(t, b, ca, func(r *record) { r.Sealed, r.Public = get(b, token).Sealed, get(b, token).Public })
		},
		"another purpose": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Purpose = Token })
		},
		"unknown purpose": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Purpose = "svids" })
		},
		"another version": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Sealed.Version++ })
		},
		"another algorithm": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Alg = algRS256 })
		},
		"a flipped bit": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Sealed.Private[20] ^= 1 })
		},
		"a truncated data key": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Sealed.DataKey = r.Sealed.DataKey[:10] })
		},
		"no sealing": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Sealed = sealed{} })
		},
		"no public half": func(t *testing.T, b *bench, ca, _ string) {
			edit(t, b, ca, func(r *record) { r.Public = nil })
		},
		"no record": func(t *testing.T, b *bench, ca, _ string) {
			apply(t, b, keyRecords().Delete(ca, storage.Cond{}))
		},
		"a record more": func(t *testing.T, b *bench, ca, _ string) {
			k, err := generate(algES256)
			if err != nil {
				t.Fatal(err)
			}
			id, err := thumbprint(k.Public())
			if err != nil {
				t.Fatal(err)
			}
			rec, err := newRecord(Key{Purpose: Token, Alg: algES256, Public: k.Public(), SignsFrom: b.clock.now()}, sealed{})
			if err != nil {
				t.Fatal(err)
			}
			op, err := keyRecords().Put(id, rec, time.Time{}, storage.Cond{})
			if err != nil {
				t.Fatal(err)
			}
			apply(t, b, op)
		},
		"no check value": func(t *testing.T, b *bench, _, _ string) {
			apply(t, b, checkRecords().Delete(kekKey, storage.Cond{}))
		},
		"no head": func(t *testing.T, b *bench, _, _ string) {
			apply(t, b, headRecords().Delete(headKey, storage.Cond{}))
		},
		"no JSON": func(t *testing.T, b *bench, ca, _ string) {
			apply(t, b, storage.Op{Kind: storage.Put, Table: keyTable, Key: ca, Value: []byte("{")})
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			keys, err := b.ring.Create(t.Context(), admin(), NewKey{Purpose: CA, Alg: algES256}, NewKey{Purpose: Token, Alg: algES256})
			if err != nil {
				t.Fatal(err)
			}
			sealedNode := b.open(nil)
			tamper(t, b, keys[0].ID, keys[1].ID)
			if _, err := Open(t.Context(), b.config(b.kek)); !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("Open: %v", err)
			}
			if err := sealedNode.Unseal(b.kek); !errors.Is(err, storage.ErrCorrupt) || !sealedNode.Sealed() {
				t.Errorf("Unseal: %v, sealed %v", err, sealedNode.Sealed())
			}
			if err := b.ring.Unseal(b.kek); !errors.Is(err, storage.ErrCorrupt) {
				t.Errorf("Unseal of an unsealed ring: %v", err)
			}
			// What was good before goes on; nothing takes the place of what is damaged.
			if _, s, err := b.ring.Signer(Token, algES256); err != nil {
				t.Error(err)
			} else {
				verify(t, s, keys[1].Public)
			}
			_, err = b.ring.Rotate(t.Context(), admin(), Token, RotateOptions{})
			wantCode(t, err, countersign.CodeDamaged)
			if got := b.events(); len(got) != 2 {
				t.Errorf("a change was begun on a damaged ring: %v", got)
			}
		})
	}
}

func apply(t *testing.T, b *bench, ops ...storage.Op) {
	t.Helper()
	if _, err := b.store.Apply(t.Context(), ops...); err != nil {
		t.Fatal(err)
	}
}

func TestSealsDifferEachTime(t *testing.T) {
	kek, err := newAEAD(NewKEK())
	if err != nil {
		t.Fatal(err)
	}
	key, err := generate(algES256)
	if err != nil {
		t.Fatal(err)
	}
	a, err := seal(kek, "id", CA, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := seal(kek, "id", CA, key)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Equal(a.DataKey, b.DataKey) || slices.Equal(a.Private, b.Private) {
		t.Error("two sealings of one key are alike")
	}
	if _, err := unseal(kek, "id", CA, key.Public(), sealed{Version: a.Version, DataKey: a.DataKey, Private: b.Private}); err == nil {
		t.Error("halves of two sealings fit together")
	}
}

func TestAdditionalDataIsUnambiguous(t *testing.T) {
	seen := map[string]string{}
	for _, label := range []string{"a", "ab"} {
		for _, id := range []string{"", "b", "bc"} {
			for _, p := range []Purpose{"", "c", "bc"} {
				for _, v := range []uint32{0, 1, 256} {
					s := string(additionalData(label, id, p, v))
					this := fmt.Sprintf("%q %q %q %d", label, id, p, v)
					if before, ok := seen[s]; ok {
						t.Errorf("%s encodes like %s", this, before)
					}
					seen[s] = this
				}
			}
		}
	}
}
