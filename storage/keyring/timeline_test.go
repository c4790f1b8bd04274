package keyring

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/countersign/countersign"
)

func TestState(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(h int) time.Time { return t0.Add(time.Duration(h) * time.Hour) }
	full := Key{Published: at(0), SignsFrom: at(1), SignsUntil: at(10), VerifiesUntil: at(12)}
	open := Key{Published: at(0), SignsFrom: at(1)}
	noRetirement := Key{SignsFrom: at(1), SignsUntil: at(10)}
	for _, tt := range []struct {
		name string
		key  Key
		now  time.Time
		want State
	}{
		{"before it is published", full, at(-1), Pending},
		{"published", full, at(0), Pending},
		{"last instant before signing", full, at(1).Add(-1), Pending},
		{"first instant of signing", full, at(1), Active},
		{"last instant of signing", full, at(10).Add(-1), Active},
		{"first instant of retirement", full, at(10), Retired},
		{"last instant of verifying", full, at(12).Add(-1), Retired},
		{"first instant of expiry", full, at(12), Expired},
		{"years later", full, at(1e5), Expired},
		{"open, first instant", open, at(1), Active},
		{"open, years later", open, at(1e5), Active},
		{"verifies for ever", noRetirement, at(1e5), Retired},
		{"another time zone", full, at(1).In(time.FixedZone("", 7200)), Active},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.key.State(tt.now); got != tt.want {
				t.Errorf("State(%s) = %s, want %s", tt.now, got, tt.want)
			}
		})
	}
}

func TestStateNames(t *testing.T) {
	var got []string
	for _, s := range []State{Pending, Active, Retired, Expired} {
		got = append(got, s.String())
	}
	if want := []string{"pending", "active", "retired", "expired"}; !slices.Equal(got, want) {
		t.Errorf("names %v, want %v", got, want)
	}
}

// world is a timeline of token keys without store and keys: only times.
type world struct {
	keys []Key
	now  time.Time
	made int
}

func (w *world) make(r rotation) {
	for _, m := range r.moved {
		i := slices.IndexFunc(w.keys, func(k Key) bool { return k.ID == m.ID })
		w.keys[i] = m
	}
	for _, alg := range r.algs {
		k := r.fresh(Token, alg)
		w.made++
		k.ID = fmt.Sprintf("k%04d", w.made)
		w.keys = append(w.keys, k)
	}
}

// signers are the active keys for alg.
func (w *world) signers(alg string) (active []Key) {
	for _, k := range w.keys {
		if k.Alg == alg && k.State(w.now) == Active {
			active = append(active, k)
		}
	}
	return active
}

// Whatever is rotated when: exactly one key per algorithm signs at each instant; what it signs verifies until it expires,
// also by a clock that is behind or ahead by the skew; without --now it was published for the lead before it signed.
func TestTimelineProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		lead := time.Duration(rapid.Int64Range(2, 7*24*3600).Draw(t, "lead")) * time.Second
		maxTTL := time.Duration(rapid.Int64Range(10, 3600).Draw(t, "ttl")) * time.Second
		every := lead + time.Duration(rapid.Int64Range(0, 60*24*3600).Draw(t, "every"))*time.Second
		w := &world{now: start}
		w.make(rotation{at: start, signsFrom: start, algs: algsOf(Token)})
		type token struct {
			kid     string
			expires time.Time
		}
		var tokens []token
		hurried := map[string]bool{} // keys that --now made sign
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				for _, alg := range algsOf(Token) {
					signers := w.signers(alg)
					if len(signers) != 1 {
						t.Fatalf("%d keys sign %s at %s: %+v", len(signers), alg, w.now, w.keys)
					}
					k := signers[0]
					if !hurried[k.ID] && k.Published != start && k.SignsFrom.Sub(k.Published) < lead {
						t.Fatalf("key %s was published only %s before it signed", k.ID, k.SignsFrom.Sub(k.Published))
					}
					tokens = append(tokens, token{k.ID, w.now.Add(maxTTL)})
				}
				tokens = slices.DeleteFunc(tokens, func(tok token) bool { return !w.now.Before(tok.expires.Add(skew)) })
				for _, tok := range tokens {
					i := slices.IndexFunc(w.keys, func(k Key) bool { return k.ID == tok.kid })
					if w.keys[i].State(w.now) == Expired {
						t.Fatalf("key %s lost at %s, its token lives until %s", tok.kid, w.now, tok.expires)
					}
				}
			},
			"wait": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.Int64Range(1, int64(every+maxTTL)).Draw(t, "d")))
			},
			"wait until a boundary": func(t *rapid.T) {
				if at := nextBoundary(w.keys, w.now); !at.IsZero() {
					w.now = at.Add(time.Duration(rapid.Int64Range(-1, 1).Draw(t, "off")))
				}
			},
			"rotate": func(t *rapid.T) {
				now := rapid.Bool().Draw(t, "now")
				r, err := planRotation(w.keys, w.now, lead, maxTTL, now)
				if err != nil {
					code := countersign.AsError(err).Code
					if code != countersign.CodeKeysMany && (now || code != countersign.CodeRotationPending) {
						t.Fatal(err)
					}
					return
				}
				before := len(w.keys)
				w.make(r)
				for _, k := range w.keys[before:] {
					hurried[k.ID] = now
				}
				for _, k := range r.moved {
					hurried[k.ID] = hurried[k.ID] || now
				}
			},
			"schedule": func(t *rapid.T) {
				due := dueAt(w.keys, w.now, every, lead)
				if due.IsZero() || w.now.Before(due) {
					return
				}
				r, err := planRotation(w.keys, w.now, lead, maxTTL, false)
				if err != nil {
					if countersign.AsError(err).Code != countersign.CodeKeysMany {
						t.Fatalf("due, but %v", err)
					}
					return
				}
				w.make(r)
			},
		})
	})
}

func TestPlanRotation(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const lead, ttl = time.Hour, 30 * time.Minute
	old := func(alg string) Key {
		return Key{ID: "old " + alg, Purpose: Token, Alg: alg, Published: t0, SignsFrom: t0}
	}
	now := t0.Add(100 * time.Hour)

	t.Run("with the lead", func(t *testing.T) {
		r, err := planRotation([]Key{old(algES256), old(algRS256)}, now, lead, ttl, false)
		if err != nil {
			t.Fatal(err)
		}
		if !r.signsFrom.Equal(now.Add(lead)) || !slices.Equal(r.algs, algsOf(Token)) || len(r.moved) != 2 {
			t.Fatalf("%+v", r)
		}
		for _, k := range r.moved {
			if !k.SignsUntil.Equal(r.signsFrom) || !k.VerifiesUntil.Equal(r.signsFrom.Add(ttl+time.Minute)) {
				t.Errorf("%+v", k)
			}
		}
	})
	t.Run("now, with a pending pair", func(t *testing.T) {
		w := &world{keys: []Key{old(algES256), old(algRS256)}, now: now}
		first, err := planRotation(w.keys, now, lead, ttl, false)
		if err != nil {
			t.Fatal(err)
		}
		w.make(first)
		_, err = planRotation(w.keys, now.Add(time.Minute), lead, ttl, false)
		wantCode(t, err, countersign.CodeRotationPending)
		at := now.Add(time.Minute)
		r, err := planRotation(w.keys, at, lead, ttl, true)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.algs) != 0 || len(r.moved) != 4 || !r.signsFrom.Equal(at) {
			t.Fatalf("%+v", r)
		}
		w.make(r)
		for _, k := range w.keys {
			want := Active
			if k.Published.Equal(t0) {
				want = Retired
			}
			if k.State(at) != want {
				t.Errorf("%s is %s, want %s", k.ID, k.State(at), want)
			}
		}
	})
	t.Run("now, with a pending key of one algorithm", func(t *testing.T) {
		pending := Key{ID: "p", Purpose: Token, Alg: algES256, Published: now, SignsFrom: now.Add(lead)}
		r, err := planRotation([]Key{old(algES256), old(algRS256), pending}, now, lead, ttl, true)
		if err != nil || !slices.Equal(r.algs, []string{algRS256}) {
			t.Fatalf("%+v, %v", r, err)
		}
	})
	t.Run("nothing to rotate", func(t *testing.T) {
		_, err := planRotation(nil, now, lead, ttl, true)
		wantCode(t, err, countersign.CodeNoKey)
	})
	t.Run("as many keys as a set may hold", func(t *testing.T) {
		w := &world{keys: []Key{old(algES256), old(algRS256)}, now: now}
		for range 100 {
			r, err := planRotation(w.keys, now, lead, ttl, true)
			if err != nil {
				wantCode(t, err, countersign.CodeKeysMany)
				break
			}
			w.make(r)
			now = now.Add(time.Second)
		}
		if len(w.keys) != maxVerifying {
			t.Errorf("%d keys, want %d", len(w.keys), maxVerifying)
		}
	})
}

func TestDueAt(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const every, lead = 30 * 24 * time.Hour, time.Hour
	active := Key{SignsFrom: t0}
	younger := Key{SignsFrom: t0.Add(time.Hour)}
	pending := Key{SignsFrom: t0.Add(100 * 24 * time.Hour)}
	retired := Key{SignsFrom: t0.Add(-time.Hour), SignsUntil: t0}
	for _, tt := range []struct {
		name string
		keys []Key
		want time.Time
	}{
		{"none", nil, time.Time{}},
		{"active", []Key{active}, t0.Add(every - lead)},
		{"the oldest counts", []Key{younger, active}, t0.Add(every - lead)},
		{"retired don't count", []Key{retired, active}, t0.Add(every - lead)},
		{"pending", []Key{active, pending}, time.Time{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := dueAt(tt.keys, t0.Add(2*time.Hour), every, lead); !got.Equal(tt.want) {
				t.Errorf("due at %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDeletable(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	key := func(i int, p Purpose, until time.Time) Key {
		return Key{ID: fmt.Sprint(p, i), Purpose: p, SignsFrom: t0, SignsUntil: until, VerifiesUntil: until}
	}
	expired := t0.Add(time.Hour)
	kept := expired.Add(keepExpired)
	var keys []Key
	for i := range 20 {
		keys = append(keys, key(i, Token, expired), key(i, CA, expired), key(i, Audit, expired))
	}
	if got := deletable(keys, kept.Add(-1)); len(got) != 0 {
		t.Errorf("deleted too early: %v", got)
	}
	got := deletable(keys, kept)
	if len(got) != maxDeleted {
		t.Fatalf("%d deleted in one step, want %d", len(got), maxDeleted)
	}
	for _, id := range got {
		if id[:5] != "token" {
			t.Errorf("deleted %s", id)
		}
	}
	for i := 20; i < maxRecorded; i++ {
		keys = append(keys, key(i, Token, expired.Add(time.Duration(i))))
	}
	if got := deletable(keys, expired.Add(time.Minute)); len(got) != maxDeleted || got[0] != "token0" {
		t.Errorf("surplus: %v", got)
	}
	for i := range keys {
		keys[i].VerifiesUntil = time.Time{}
	}
	if got := deletable(keys, kept.Add(1e6*time.Hour)); len(got) != 0 {
		t.Errorf("deleted keys that verify: %v", got)
	}
}
