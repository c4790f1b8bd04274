package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

func TestConcurrentUse(t *testing.T) {
	const writers, each = 16, 40
	b := newBench(t)
	reg := prometheus.NewRegistry()
	b.open(func(c *audit.Config) { c.Registerer = reg })
	ctx, stop := context.WithCancel(context.Background())
	var readers, writing sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for ctx.Err() == nil {
				last := uint64(0)
				for rec, err := range b.log.Records(context.Background(), 0) {
					if err != nil || rec.Seq <= last {
						t.Errorf("record %d after %d: %v", rec.Seq, last, err)
						return
					}
					last = rec.Seq
				}
				if report, err := b.log.Verify(context.Background(), b.keys); err != nil || !report.OK() {
					t.Errorf("verify: %+v %v", report.Faults, err)
				}
				if _, err := b.log.Search(context.Background(), audit.Query{Newest: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var mu sync.Mutex
	acked := make(map[uint64]string)
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				e := event(w*each + i)
				if i%10 == 9 {
					if err := b.log.AppendAll(ctx, bulky(), e, e); err != nil {
						t.Error(err)
					}
					continue
				}
				rec, err := b.log.Append(ctx, e)
				if err != nil {
					t.Error(err)
				}
				b.log.Stranger(countersign.CodeNoCredential, netip.AddrFrom4([4]byte{10, byte(w), byte(i), 1}))
				mu.Lock()
				acked[rec.Seq] = rec.Hash
				mu.Unlock()
			}
		})
	}
	writing.Wait()
	stop()
	readers.Wait()
	if len(acked) != writers*each*9/10 {
		t.Errorf("%d different sequences", len(acked))
	}
	b.close()
	report := b.verifyDir()
	strangers := writers * each * 9 / 10
	if want := uint64(writers*each*9/10 + writers*each/10*3 + strangers); !report.OK() || report.Records != want {
		t.Errorf("%d records, want %d; faults %q", report.Records, want, report.Faults)
	}
	b.open(func(c *audit.Config) { c.Registerer = reg })
	for _, rec := range b.records() {
		if h, ok := acked[rec.Seq]; ok && h == rec.Hash {
			delete(acked, rec.Seq)
		}
	}
	if len(acked) != 0 {
		t.Errorf("%d acknowledged records are not there", len(acked))
	}
}

func TestGroupIsTogether(t *testing.T) {
	b := newBench(t)
	b.open()
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			e := event(g)
			if err := b.log.AppendAll(context.Background(), e, e, e, e); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for four := range slices.Chunk(b.records(), 4) {
		for _, rec := range four {
			if rec.Subject != four[0].Subject {
				t.Errorf("record %d of %s stands between those of %s", rec.Seq, rec.Subject, four[0].Subject)
			}
		}
	}
	if err := b.log.AppendAll(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestUnrecordable(t *testing.T) {
	b := newBench(t)
	b.open()
	for name, e := range map[string]audit.Event{
		"no type":        {Outcome: audit.OK},
		"one word":       {Type: "token", Outcome: audit.OK},
		"upper case":     {Type: "token.Issued", Outcome: audit.OK},
		"the log's own":  {Type: "audit.pruned", Outcome: audit.OK},
		"no outcome":     {Type: "a.b"},
		"no JSON":        {Type: "a.b", Outcome: audit.OK, Detail: json.RawMessage("{")},
		"too large":      {Type: "a.b", Outcome: audit.OK, Detail: string(make([]byte, 200<<10))},
		"can't be coded": {Type: "a.b", Outcome: audit.OK, Detail: func() {}},
	} {
		_, err := b.log.Append(context.Background(), e)
		t.Log(name)
		wantCode(t, err, countersign.CodeInternal)
		wantCode(t, b.log.AppendAll(context.Background(), event(1), e), countersign.CodeInternal)
	}
	many := slices.Repeat([]audit.Event{bulky()}, 8)
	wantCode(t, b.log.AppendAll(context.Background(), many...), countersign.CodeInternal)
	if recs := b.records(); len(recs) != 0 {
		t.Errorf("%d records", len(recs))
	}
}

func TestEndedRequest(t *testing.T) {
	b := newBench(t)
	b.open()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := b.log.Append(ctx, event(1))
	wantCode(t, err, countersign.CodeAudit)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the cause is not told: %v", err)
	}
	if recs := b.records(); len(recs) != 0 {
		t.Errorf("%d records", len(recs))
	}
}

// Whoever's request ends while it waits learns what really happened.
func TestEndingRequestsKnowTheTruth(t *testing.T) {
	b := newBench(t)
	b.open()
	told := make(map[string]bool)
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*10*time.Microsecond)
			defer cancel()
			_, err := b.log.Append(ctx, event(i))
			mu.Lock()
			defer mu.Unlock()
			told[event(i).Subject] = err == nil
		})
	}
	group.Wait()
	for _, rec := range b.records() {
		if !told[rec.Subject] {
			t.Errorf("%s is recorded, and its caller was told that it is not", rec.Subject)
		}
		delete(told, rec.Subject)
	}
	for subject, recorded := range told {
		if recorded {
			t.Errorf("%s is not recorded, and its caller was told that it is", subject)
		}
	}
}

func TestQueueFull(t *testing.T) {
	b := newBench(t)
	b.open(func(c *audit.Config) { c.Queue = 1 })
	var full atomic.Pointer[countersign.Error]
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for i := 0; full.Load() == nil; i++ { // ends: one of sixteen finds another one waiting
				_, err := b.log.Append(context.Background(), event(i))
				var e *countersign.Error
				if errors.As(err, &e) {
					full.Store(e)
				}
			}
		})
	}
	group.Wait()
	if e := full.Load(); e.Code != countersign.CodeAuditFull || e.RetryAfter != time.Second || e.Kind != countersign.Unavailable {
		t.Errorf("got %+v", e)
	}
}

func TestClosed(t *testing.T) {
	b := newBench(t)
	b.open()
	recs := b.append(3)
	b.close()
	_, err := b.log.Append(context.Background(), event(1))
	wantCode(t, err, countersign.CodeAudit)
	if err := b.log.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if head := b.head(); head != b.log.Head() || head.Seq != recs[2].Seq+1 {
		t.Errorf("the store remembers %+v, the log ended with %+v", head, b.log.Head())
	}
}

func TestOneLogAtATime(t *testing.T) {
	b := newBench(t)
	b.open()
	cfg := b.config()
	if second, err := audit.Open(context.Background(), cfg); err == nil {
		t.Error("a second log of the same directory", second.Close())
	}
	b.append(1)
}

func TestConfigRanges(t *testing.T) {
	b := newBench(t)
	for name, change := range map[string]func(*audit.Config){
		"no directory":   func(c *audit.Config) { c.Dir = "" },
		"no store":       func(c *audit.Config) { c.Store = nil },
		"tiny segments":  func(c *audit.Config) { c.Segment = 1 << 19 },
		"huge segments":  func(c *audit.Config) { c.Segment = 1 << 31 },
		"negative queue": func(c *audit.Config) { c.Queue = -1 },
	} {
		if _, err := b.tryOpen(change); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAppended(t *testing.T) {
	b := newBench(t)
	b.open()
	wait := b.log.Appended()
	select {
	case <-wait:
		t.Fatal("closed before anything was appended")
	default:
	}
	recs := b.append(1)
	<-wait
	if got := records(t, b.log, recs[0].Seq); len(got) != 1 {
		t.Errorf("%d records", len(got))
	}
}

// In a bubble, a second passes when everybody waits; what is done in it has been done when Sleep returns.
func TestSecondsAndMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		var sealed atomic.Bool
		sealed.Store(true)
		b.open(func(c *audit.Config) {
			c.Sign = func(payload []byte) (string, []byte, error) {
				if sealed.Load() {
					return "", nil, errors.New("sealed")
				}
				return b.sign(payload)
			}
		})
		b.append(3)
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		if head := b.head(); head.Seq != 3 || head != b.log.Head() {
			t.Errorf("after a second the store remembers %+v, want %+v", head, b.log.Head())
		}
		if report, err := b.log.Verify(context.Background(), b.keys); err != nil || report.Unsigned != 3 || !report.OK() {
			t.Errorf("sealed: %+v %v", report, err)
		}
		sealed.Store(false)
		time.Sleep(time.Second)
		synctest.Wait()
		report, err := b.log.Verify(context.Background(), b.keys)
		if err != nil || report.Unsigned != 0 || report.Checkpoints != 1 || !report.OK() {
			t.Errorf("unsealed: %+v %v", report, err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if head := b.log.Head(); head.Seq != 4 {
			t.Errorf("an idle log went on to %d", head.Seq)
		}
		b.log.SetSigner(nil)
		b.append(1)
		time.Sleep(2 * time.Second)
		b.log.SetSigner(b.sign)
		b.close()
		if report := b.verifyDir(); report.Unsigned != 0 || report.Checkpoints != 2 {
			t.Errorf("closed: %+v", report)
		}
	})
}

func TestCheckpointAfterManyRecords(t *testing.T) {
	b := newBench(t)
	signed := make(chan struct{}, 16)
	b.open(func(c *audit.Config) {
		c.Sign = func(payload []byte) (string, []byte, error) {
			signed <- struct{}{}
			return b.sign(payload)
		}
	})
	events := slices.Repeat([]audit.Event{{Type: "a.b", Outcome: audit.OK}}, 1024)
	for range 4 {
		if err := b.log.AppendAll(context.Background(), events...); err != nil {
			t.Fatal(err)
		}
	}
	<-signed
}

func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.open()
		begin := time.Now().UTC()
		for i := range 100 {
			b.log.Stranger(countersign.CodeNoCredential, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
			b.log.Stranger(countersign.CodeNoCredential, netip.MustParseAddr(fmt.Sprintf("2001:db8:0:7::%x", i+1)))
		}
		b.log.Stranger(countersign.CodeRateAddress, netip.MustParseAddr("::ffff:192.0.2.9"))
		b.log.Stranger(countersign.CodeRateAddress, netip.Addr{})
		if recs := b.records(); len(recs) != 0 {
			t.Errorf("%d records at once", len(recs))
		}
		time.Sleep(61 * time.Second)
		synctest.Wait()
		want := []string{
			"CS1010 192.0.2.0/24 100", "CS1010 2001:db8:0:7::/64 100", "CS1021 192.0.2.0/24 1", "CS1021 none 1",
		}
		recs := b.records()
		if got := refusals(t, recs); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		var detail struct{ First, Last time.Time }
		if err := json.Unmarshal(recs[0].Detail, &detail); err != nil || !detail.First.Equal(begin) || !detail.Last.Equal(begin) {
			t.Errorf("%s, %v", recs[0].Detail, err)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := len(b.records()); n != 4 {
			t.Errorf("%d records after quiet minutes", n)
		}
		for i := range 5000 { // of as many networks
			b.log.Stranger(countersign.CodeNoCredential, netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}))
		}
		b.close()
		b.open()
		rest := refusals(t, b.records()[4:])
		if len(rest) != 1025 || rest[1024] != "CS1010 other 3976" {
			t.Errorf("%d events, the last %q", len(rest), rest[len(rest)-1])
		}
	})
}

func refusals(t *testing.T, recs []audit.Record) []string {
	t.Helper()
	var all []string
	for _, rec := range recs {
		var detail struct {
			Prefix string
			Count  int
		}
		if err := json.Unmarshal(rec.Detail, &detail); err != nil {
			t.Fatal(err)
		}
		if rec.Type != "request.refused" || rec.Outcome != audit.Denied || rec.Subject != detail.Prefix {
			t.Errorf("%+v", rec)
		}
		all = append(all, fmt.Sprintf("%s %s %d", rec.Code, detail.Prefix, detail.Count))
	}
	return all
}

func TestRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		change := func(c *audit.Config) { c.Keep = 24 * time.Hour }
		b.open(change)
		b.fill(4)
		time.Sleep(23 * time.Hour)
		b.append(1)
		if n := len(b.segments()); n != 4 {
			t.Fatalf("%d segments", n)
		}
		whole := len(b.records())
		time.Sleep(time.Hour + 90*time.Second) // one round: one of them may go
		synctest.Wait()
		if n := len(b.segments()); n != 3 {
			t.Errorf("%d segments after one round", n)
		}
		recs := b.records()
		pruned := recs[len(recs)-1]
		if pruned.Type != "audit.pruned" || len(recs) >= whole {
			t.Errorf("%d of %d records, the last is %+v", len(recs), whole, pruned)
		}
		report, err := b.log.Verify(context.Background(), b.keys)
		if err != nil || !report.OK() || report.First == 1 {
			t.Errorf("verify: %+v %v", report, err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := len(b.segments()); n != 1 {
			t.Errorf("%d segments at the end", n)
		}
		b.close()
		if report := b.verifyDir(); !report.OK() || report.First == 1 || report.Last < report.First {
			t.Errorf("verify: %+v", report)
		}
		b.open(change)
		b.append(1)
	})
}

// A crash between the event of a removal and the removal leaves a segment more than the event says. That is no fault; the
// next round removes it.
func TestRetentionCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		change := func(c *audit.Config) { c.Keep = time.Hour }
		b.open(change)
		b.fill(4)
		segs := b.segments()
		second, err := os.ReadFile(segs[1])
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + 150*time.Second) // two rounds, one segment each
		synctest.Wait()
		if left := b.segments(); !slices.Equal(left, segs[2:]) {
			t.Fatalf("left: %q of %q", left, segs)
		}
		b.close()
		b.write(segs[1], second)
		if report := b.verifyDir(); !report.OK() {
			t.Errorf("faults %q", report.Faults)
		}
		b.open(change)
		if report, err := b.log.Verify(context.Background(), b.keys); err != nil || !report.OK() {
			t.Errorf("faults %q, %v", report.Faults, err)
		}
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if _, err := os.Stat(segs[1]); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the segment is not removed: %v", err)
		}
	})
}

// The oldest segment may leave only through retention.
func TestOldestSegmentStolen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		change := func(c *audit.Config) { c.Keep = time.Hour }
		b.open(change)
		b.fill(2)
		time.Sleep(2 * time.Hour)
		b.fill(3)
		b.close()
		remove(b, b.segments()[0])
		if report := b.verifyDir(); report.OK() {
			t.Error("verify finds nothing")
		}
		var tampered *audit.TamperedError
		if _, err := b.tryOpen(change); !errors.As(err, &tampered) {
			t.Errorf("got %v, want a TamperedError", err)
		}
	})
}

// A log that somebody removed or replaced must not go on taking records that nobody can read.
func TestRemovedWhileOpen(t *testing.T) {
	for name, replace := range map[string]bool{"removed": false, "replaced": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.open()
				b.append(2)
				path := b.segment()
				content, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				remove(b, path)
				if replace {
					b.write(path, content)
				}
				time.Sleep(2 * time.Second)
				_, err = b.log.Append(context.Background(), event(3))
				wantCode(t, err, countersign.CodeAudit)
				if b.log.Err() == nil {
					t.Error("ready all the same")
				}
				time.Sleep(5 * time.Second)
				_, err = b.log.Append(context.Background(), event(3))
				wantCode(t, err, countersign.CodeAudit)
			})
		})
	}
}
