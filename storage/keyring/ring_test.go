package keyring

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign"
)

// verify fails unless s signs what pub verifies.
func verify(t testing.TB, s crypto.Signer, pub crypto.PublicKey) {
	t.Helper()
	sum := sha256.Sum256([]byte("payload"))
	sig, err := s.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(k, sum[:], sig) {
			t.Fatal("the signature does not verify")
		}
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("public half is a %T", pub)
	}
}

func TestCreateSignsAndSurvivesARestart(t *testing.T) {
	b := newBench(t)
	made := b.init()
	auditKeys, err := b.ring.Create(t.Context(), admin(), NewKey{Purpose: Audit, Alg: algES256})
	if err != nil {
		t.Fatal(err)
	}
	from, until, last := b.clock.now().Add(-time.Minute), b.clock.now().Add(time.Hour), b.clock.now().Add(2*time.Hour)
	ca, err := b.ring.Create(t.Context(), admin(), NewKey{Purpose: CA, Alg: algES256, SignsFrom: from, SignsUntil: until, VerifiesUntil: last})
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start()
	for _, k := range made {
		got, s, err := b.ring.Signer(Token, k.Alg)
		if err != nil || got.ID != k.ID {
			t.Fatalf("Signer(%s) = %v, %v", k.Alg, got.ID, err)
		}
		verify(t, s, k.Public)
		want, err := thumbprint(k.Public)
		if err != nil || k.ID != want || len(k.ID) != 43 {
			t.Errorf("kid %q is not the thumbprint %q", k.ID, want)
		}
	}
	if k, _, err := b.ring.Signer(Audit, algES256); err != nil || k.ID != auditKeys[0].ID {
		t.Errorf("audit signer: %v, %v", k.ID, err)
	}
	s, err := b.ring.SignerByID(ca[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, s, ca[0].Public)
	k, ok := b.ring.Key(ca[0].ID)
	if !ok || !k.SignsFrom.Equal(from) || !k.SignsUntil.Equal(until) || !k.VerifiesUntil.Equal(last) {
		t.Errorf("times of the ca key: %+v", k)
	}
	want := []string{"key.created intent", "key.created ok", "key.created intent", "key.created ok", "key.created intent", "key.created ok"}
	if got := b.events(); !slices.Equal(got, want) {
		t.Errorf("events %v", got)
	}
	if bits := made[1].Public.(*rsa.PublicKey).N.BitLen(); bits != 2048 {
		t.Errorf("the RS256 key has %d bits", bits)
	}
}

func TestCreateRefuses(t *testing.T) {
	b := newBench(t)
	b.init()
	now := b.clock.now()
	for _, tt := range []struct {
		name string
		keys []NewKey
		code countersign.Code
	}{
		{"nothing", nil, countersign.CodeParameter},
		{"too many", make([]NewKey, 33), countersign.CodeParameter},
		{"unknown purpose", []NewKey{{Purpose: "svids", Alg: algES256}}, countersign.CodePurpose},
		{"unknown algorithm", []NewKey{{Purpose: CA, Alg: "HS256"}}, countersign.CodeParameter},
		{"no algorithm", []NewKey{{Purpose: CA}}, countersign.CodeParameter},
		{"ends before it begins", []NewKey{{Purpose: CA, Alg: algES256, SignsUntil: now}}, countersign.CodeParameter},
		{"verifies for less than it signs", []NewKey{{Purpose: CA, Alg: algES256, SignsUntil: now.Add(2), VerifiesUntil: now.Add(1)}}, countersign.CodeParameter},
		{"signs for ever, verifies not", []NewKey{{Purpose: CA, Alg: algES256, VerifiesUntil: now.Add(1)}}, countersign.CodeParameter},
		{"an svid key of another algorithm", []NewKey{{Purpose: SVID, Alg: algRS256}}, countersign.CodeParameter},
		{"second token keys", []NewKey{{Purpose: Token, Alg: algES256}}, countersign.CodeKeyInUse},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := b.ring.Create(t.Context(), admin(), tt.keys...)
			wantCode(t, err, tt.code)
		})
	}
	if got := len(b.ring.snap.Load().ordered); got != 2 {
		t.Errorf("%d keys after refusals, want 2", got)
	}
}

func TestSignerByIDMindsThePurposeAndTheTimes(t *testing.T) {
	b := newBench(t)
	token := b.init()[0]
	ca, err := b.ring.Create(t.Context(), admin(), NewKey{
		Purpose: CA, Alg: algES256, SignsUntil: b.clock.now().Add(time.Hour), VerifiesUntil: b.clock.now().Add(2 * time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.ring.SignerByID(token.ID)
	wantCode(t, err, countersign.CodePurpose)
	_, err = b.ring.SignerByID("nobody")
	wantCode(t, err, countersign.CodeNoKey)
	b.clock.add(2 * time.Hour)
	_, err = b.ring.SignerByID(ca[0].ID)
	wantCode(t, err, countersign.CodeNoKey)
	_, _, err = b.ring.Signer(CA, algES256)
	wantCode(t, err, countersign.CodeNoKey)
	_, _, err = b.ring.Signer(Token, "EdDSA")
	wantCode(t, err, countersign.CodeNoKey)
}

func TestSealedStart(t *testing.T) {
	b := newBench(t)
	made := b.init()
	node := b.open(nil)
	if !node.Sealed() {
		t.Fatal("not sealed without a KEK")
	}
	if got := node.Keys(Token); len(got) != 2 || got[0].State(b.clock.now()) != Active {
		t.Errorf("public halves while sealed: %+v", got)
	}
	_, _, err := node.Signer(Token, algES256)
	wantCode(t, err, countersign.CodeSealed)
	if !errors.Is(err, ErrSealed) {
		t.Error("CodeSealed does not match ErrSealed")
	}
	_, err = node.SignerByID(made[0].ID)
	wantCode(t, err, countersign.CodeSealed)
	_, err = node.Create(t.Context(), admin(), NewKey{Purpose: CA, Alg: algES256})
	wantCode(t, err, countersign.CodeSealed)
	_, err = node.Rotate(t.Context(), admin(), Token, RotateOptions{})
	wantCode(t, err, countersign.CodeSealed)

	changed := node.Changed()
	if err := node.Unseal(NewKEK()); !errors.Is(err, ErrKEK) || !node.Sealed() {
		t.Fatalf("foreign KEK: %v, sealed %v", err, node.Sealed())
	}
	for _, short := range [][]byte{nil, {}, b.kek[:31], append(slices.Clone(b.kek), 0)} {
		if err := node.Unseal(short); !errors.Is(err, ErrKEK) {
			t.Errorf("KEK of %d bytes: %v", len(short), err)
		}
	}
	if err := node.Unseal(b.kek); err != nil {
		t.Fatal(err)
	}
	<-changed
	_, s, err := node.Signer(Token, algES256)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, s, made[0].Public)
	if err := node.Unseal(b.kek); err != nil {
		t.Errorf("the same KEK again: %v", err)
	}
	if err := node.Unseal(NewKEK()); !errors.Is(err, ErrKEK) || node.Sealed() {
		t.Errorf("another KEK on an unsealed ring: %v, sealed %v", err, node.Sealed())
	}
}

func TestForeignKEKIsRefusedAndChangesNothing(t *testing.T) {
	b := newBench(t) // no key yet: the check value alone must refuse
	for _, kek := range [][]byte{NewKEK(), b.kek[:16], {}, make([]byte, 32)} {
		if _, err := Open(t.Context(), b.config(kek)); !errors.Is(err, ErrKEK) {
			t.Errorf("KEK of %d bytes: %v", len(kek), err)
		}
	}
	made := b.init()
	if _, err := Open(t.Context(), b.config(NewKEK())); !errors.Is(err, ErrKEK) {
		t.Fatalf("foreign KEK: %v", err)
	}
	if got := b.open(b.kek).Keys(Token); len(got) != 2 || got[0].ID != made[0].ID {
		t.Errorf("keys after a foreign KEK: %+v", got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]func(*Config){
		"no store":                    func(c *Config) { c.Store = nil },
		"no audit log":                func(c *Config) { c.Audit = nil },
		"negative lead":               func(c *Config) { c.Lead = -time.Hour },
		"lead in nanoseconds":         func(c *Config) { c.Lead = 5 },
		"lifetime in nanoseconds":     func(c *Config) { c.MaxTTL = 5 },
		"rotates within its own lead": func(c *Config) { c.Lead, c.RotateEvery = 2*time.Hour, time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := b.config(b.kek)
			change(&cfg)
			if _, err := Open(t.Context(), cfg); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// canaries are pieces of every private key of the ring, and the KEK, in the encodings in which they could leak.
func canaries(t *testing.T, b *bench) []string {
	t.Helper()
	var secrets [][]byte
	for id := range b.ring.snap.Load().signers {
		inner := b.ring.snap.Load().signers[id].(*signer).key
		der, err := x509.MarshalPKCS8PrivateKey(inner)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, der)
		switch k := inner.(type) {
		case *ecdsa.PrivateKey:
			d, err := k.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			secrets = append(secrets, d)
		case *rsa.PrivateKey:
			secrets = append(secrets, k.Primes[0].Bytes(), k.Primes[1].Bytes())
		}
	}
	secrets = append(secrets, b.kek)
	var texts []string
	for _, s := range secrets {
		texts = append(texts, string(s), hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s)[:40], base64.RawURLEncoding.EncodeToString(s)[:40])
	}
	return texts
}

func TestNothingPrivateLeaves(t *testing.T) {
	b := newBench(t)
	b.init()
	plan := b.rotate(b.ring, RotateOptions{})
	_, s, err := b.ring.Signer(Token, algES256)
	if err != nil {
		t.Fatal(err)
	}
	secrets := canaries(t, b)
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, v := range []any{b.ring.Keys(Token), plan, b.records(), s} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(text)
	}
	fmt.Fprintf(&out, "%v %+v %#v %s %x %d", s, s, s, s, s, s)
	for _, dir := range []string{b.dir, filepath.Join(b.dir, "audit")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !e.Type().IsRegular() {
				continue
			}
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			out.Write(content)
		}
	}
	text := out.String()
	if !strings.Contains(text, plan.Keys[0].ID) {
		t.Fatal("the kid is not in what was searched: the search finds nothing")
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("private material %.8q... left the ring", secret)
		}
	}
}

// metrics are all values of reg: "name{label,label} value".
func metrics(t *testing.T, reg *prometheus.Registry) []string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			got = append(got, fmt.Sprintf("%s{%s} %.0f", f.GetName(), strings.Join(labels, ","), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return got
}

func TestMetrics(t *testing.T) {
	b := newBench(t)
	reg := prometheus.NewPedanticRegistry()
	cfg := b.config(nil)
	cfg.Registerer = reg
	node, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"countersign_key_rotations_total{} 0", "countersign_keyring_sealed{} 1"}
	if got := metrics(t, reg); !slices.Equal(got, want) {
		t.Errorf("sealed: %q", got)
	}
	if err := node.Unseal(b.kek); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Create(t.Context(), admin(), NewKey{Purpose: Token, Alg: algES256}); err != nil {
		t.Fatal(err)
	}
	b.clock.add(time.Minute)
	b.rotate(node, RotateOptions{})
	want = []string{
		"countersign_key_age_seconds{ES256,token} 60", "countersign_key_rotations_total{} 1",
		fmt.Sprintf("countersign_key_signs_until_timestamp_seconds{ES256,token} %d", b.clock.now().Add(time.Hour).Unix()),
		"countersign_keyring_sealed{} 0",
	}
	if got := metrics(t, reg); !slices.Equal(got, want) {
		t.Errorf("unsealed: %q", got)
	}
	if _, err := Open(t.Context(), cfg); err == nil {
		t.Error("a second ring on one registry was accepted silently")
	}
}

func TestLookUpsRaceWithChanges(t *testing.T) {
	b := newBench(t)
	b.init()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				k, _, err := b.ring.Signer(Token, algES256)
				if err != nil {
					t.Error(err)
					return
				}
				if !slices.ContainsFunc(b.ring.Keys(Token), func(p Key) bool { return p.ID == k.ID }) {
					t.Errorf("key %s signs and is not published", k.ID)
					return
				}
			}
		})
	}
	for range 3 {
		b.clock.add(time.Second)
		b.rotate(b.ring, RotateOptions{Now: true})
	}
	stop()
	wg.Wait()
}
