package limit

import (
	"crypto/sha256"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func keyNamed(i int) key { return sha256.Sum256([]byte(strconv.Itoa(i))) }

// However requests of many keys come, and however small the table is: no key gets more than burst + rate * t tokens between
// any two of its requests, and the table never holds more than it may.
func TestNeverMoreThanBurstAndRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{Key: User, ReplenishRate: rapid.IntRange(1, 2000).Draw(t, "rate"), RequestedTokens: rapid.IntRange(1, 5).Draw(t, "cost")}
		cfg.Burst = max(cfg.ReplenishRate, cfg.RequestedTokens) + rapid.IntRange(0, 10).Draw(t, "more")
		if rapid.Bool().Draw(t, "slow") {
			cfg.ReplenishRate, cfg.Burst = 1, cfg.RequestedTokens+rapid.IntRange(0, 3).Draw(t, "few")
		}
		cfg, err := cfg.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		b := newBuckets(cfg, rapid.IntRange(1, 4).Draw(t, "keys"))
		granted := map[int][]time.Duration{}
		var now time.Duration
		for range rapid.IntRange(1, 200).Draw(t, "requests") {
			if rapid.IntRange(0, 3).Draw(t, "pass") == 0 {
				now += time.Duration(rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "time"))
			}
			who := rapid.IntRange(0, 7).Draw(t, "who")
			d := b.take(keyNamed(who), now)
			if d.allowed {
				granted[who] = append(granted[who], now)
			} else if d.retry <= 0 {
				t.Fatalf("refused, and to be repeated in %v", d.retry)
			}
			if d.remaining < 0 || d.remaining > int64(cfg.Burst) {
				t.Fatalf("%d tokens remain of %d", d.remaining, cfg.Burst)
			}
			if len(b.byKey) > b.most {
				t.Fatalf("the table holds %d buckets of %d", len(b.byKey), b.most)
			}
		}
		for who, times := range granted {
			for i := range times {
				for j := i; j < len(times); j++ {
					tokens := float64((j - i + 1) * cfg.RequestedTokens)
					if most := float64(cfg.Burst) + float64(cfg.ReplenishRate)*(times[j]-times[i]).Seconds(); tokens > most+1e-6 {
						t.Fatalf("key %d got %v tokens in %v, at most %v are right", who, tokens, times[j]-times[i], most)
					}
				}
			}
		}
	})
}

// A limit is also no less than it says: a key alone that asks as often as the rate allows is never refused, and a refused one
// that waits as it is told passes.
func TestNeverLessThanTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg, err := Config{Key: User, ReplenishRate: rapid.IntRange(1, most).Draw(t, "rate")}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		b := newBuckets(cfg, 1)
		if b.token*time.Duration(cfg.ReplenishRate) < time.Second {
			t.Fatalf("a token grows in %v: that is more than %d a second", b.token, cfg.ReplenishRate)
		}
		now := time.Duration(rapid.Int64Range(0, 1e15).Draw(t, "start"))
		for range 50 {
			if d := b.take(keyNamed(1), now); !d.allowed {
				t.Fatal("refused at the rate itself")
			}
			now += b.token
		}
		for {
			d := b.take(keyNamed(1), now)
			if d.allowed {
				if cfg.Burst > 1000 {
					return
				}
				continue
			}
			if !b.take(keyNamed(1), now+d.retry).allowed {
				t.Fatalf("refused after waiting %v", d.retry)
			}
			return
		}
	})
}

// Who fills the table with keys gets no second burst out of it: a bucket that is not full is not forgotten.
func TestFillingTheTableGivesNoFreshBurst(t *testing.T) {
	cfg, err := Config{Key: Address, ReplenishRate: 1, Burst: 10}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b := newBuckets(cfg, 100)
	for range 10 {
		if !b.take(keyNamed(0), 0).allowed {
			t.Fatal("the burst was refused")
		}
	}
	passed := 0
	for i := range 10_000 {
		if b.take(keyNamed(1+i), time.Millisecond).allowed {
			passed++
		}
	}
	if b.take(keyNamed(0), 2*time.Millisecond).allowed {
		t.Error("the table forgot an empty bucket")
	}
	// 99 had room, the others shared a burst of 10.
	if passed != 99+10 {
		t.Errorf("%d strangers passed, want 109", passed)
	}
	// Who shared the common bucket goes on from it when there is room: it has 5 of 10 tokens then.
	later := 6 * time.Second
	if d := b.take(keyNamed(5000), later); !d.allowed || d.remaining > 5 {
		t.Errorf("a key that had no room begins with %+v", d)
	}
	if len(b.byKey) > 100 {
		t.Errorf("%d buckets", len(b.byKey))
	}
}

// When the full ones are forgotten there is room again.
func TestIdleBucketsMakeRoom(t *testing.T) {
	cfg, err := Config{Key: Address, ReplenishRate: 10}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b := newBuckets(cfg, 1000)
	for round := range 50 {
		now := time.Duration(round) * 2 * time.Second
		for i := range 1000 {
			if d := b.take(keyNamed(round*1000+i), now); !d.allowed || d.remaining != 9 {
				t.Fatalf("round %d, key %d: %+v", round, i, d)
			}
		}
	}
	if len(b.byKey) > 1000 {
		t.Errorf("%d buckets", len(b.byKey))
	}
}

// A clock that is set back refills nothing and blocks nobody for longer.
func TestClockGoingBack(t *testing.T) {
	cfg, err := Config{Key: User, ReplenishRate: 1}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b := newBuckets(cfg, 10)
	if !b.take(keyNamed(1), time.Hour).allowed {
		t.Error("the first was refused")
	}
	if d := b.take(keyNamed(1), 0); d.allowed || d.retry > time.Second {
		t.Errorf("after the clock went back: %+v", d)
	}
	if !b.take(keyNamed(1), time.Hour+time.Second).allowed {
		t.Error("refused a second later")
	}
}
