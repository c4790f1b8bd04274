package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// signedToken is a signature as a token carries it: a verifier finds its key by the kid among those that are published.
type signedToken struct {
	kid     string
	sig     []byte
	expires time.Time
}

// A year of Run itself, on real parts and a simulated clock: what is signed each hour, and at each instant at which a
// key's state changes, verifies with the published keys until it expires.
func TestAYearOfRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, _, cfg := bubble(t)
		cfg.Lead, cfg.RotateEvery, cfg.MaxTTL = time.Hour, 30*24*time.Hour, time.Hour
		r, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Create(t.Context(), admin(), NewKey{Purpose: Token, Alg: algES256}, NewKey{Purpose: Token, Alg: algRS256}); err != nil {
			t.Fatal(err)
		}
		defer run(t, r)()
		synctest.Wait()
		start := time.Now()
		w := &witness{t: t, lead: time.Hour - time.Second, ttl: cfg.MaxTTL}
		sum := sha256.Sum256([]byte("payload"))
		var live []signedToken
		signs := map[string]bool{}
		ending := false // this look is for the end of tokens only: signing here too would double the looks each hour
		for end := start.AddDate(1, 0, 0); time.Now().Before(end); {
			now := time.Now()
			w.look(now, r)
			for _, token := range live {
				wantVerified(t, r, token, sum[:])
			}
			live = slices.DeleteFunc(live, func(s signedToken) bool { return !now.Before(s.expires) })
			for _, alg := range algsOf(Token) {
				if ending {
					break
				}
				// An RSA signature costs as much as twenty of the others: one a day, and each new key's first.
				k, signer, err := r.Signer(Token, alg)
				if err != nil {
					t.Fatal(err)
				}
				if alg == algRS256 && signs[k.ID] && now.Sub(start)%(24*time.Hour) >= time.Hour {
					continue
				}
				signs[k.ID] = true
				sig, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
				if err != nil {
					t.Fatal(err)
				}
				live = append(live, signedToken{k.ID, sig, now.Add(cfg.MaxTTL)})
			}
			next := start.Add(now.Sub(start).Truncate(time.Hour) + time.Hour)
			if at := nextBoundary(r.snap.Load().ordered, now); !at.IsZero() && at.Before(next) {
				next = at
			}
			// To the end of the hour, or of a token, less an instant: it must verify there still.
			ending = false
			for _, token := range live {
				if last := token.expires.Add(-1); last.After(now) && last.Before(next) {
					next, ending = last, true
				}
			}
			time.Sleep(next.Sub(now))
			synctest.Wait()
		}
		// The first pair, then one each 30 days.
		if got := len(signs); got != 2*(1+365/30) {
			t.Errorf("%d keys signed in a year", got)
		}
	})
}

// wantVerified fails unless a key that is published now verifies token.
func wantVerified(t *testing.T, r *Ring, token signedToken, sum []byte) {
	t.Helper()
	if !time.Now().Before(token.expires) {
		return
	}
	for _, k := range r.Keys(Token) {
		if k.ID != token.kid {
			continue
		}
		ok := false
		switch pub := k.Public.(type) {
		case *ecdsa.PublicKey:
			ok = ecdsa.VerifyASN1(pub, sum, token.sig)
		case *rsa.PublicKey:
			ok = rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum, token.sig) == nil
		}
		if !ok {
			t.Fatalf("%s: a token of key %s does not verify, it lives until %s", time.Now(), k.ID, token.expires)
		}
		return
	}
	t.Fatalf("%s: key %s is gone, a token of it lives until %s", time.Now(), token.kid, token.expires)
}
