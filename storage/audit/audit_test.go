package audit_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// bench is a log and the parts it stands on, which outlive it.
type bench struct {
	t     testing.TB
	dir   string
	store storage.Store
	key   *ecdsa.PrivateKey
	log   *audit.Log
	lines *lines
}

// lines collects what the log says to the operator.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newBench(t testing.TB) *bench {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return benchIn(t, t.TempDir(), key)
}

// copy is a bench of its own with all that b, which is closed, has on disk: cheaper than to write it again.
func (b *bench) copy(t testing.TB) *bench {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(b.dir))); err != nil {
		t.Fatal(err)
	}
	return benchIn(t, dir, b.key)
}

func benchIn(t testing.TB, dir string, key *ecdsa.PrivateKey) *bench {
	t.Helper()
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, dir: filepath.Join(dir, "audit"), store: store, key: key, lines: new(lines)}
	t.Cleanup(func() {
		if b.log != nil {
			_ = b.log.Close()
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bench) config() audit.Config {
	return audit.Config{
		Dir: b.dir, Store: b.store, Segment: 1 << 20, Reserve: 1 << 20, Sign: b.sign,
		Logger: slog.New(slog.NewTextHandler(b.lines, nil)),
	}
}

func (b *bench) sign(payload []byte) (string, []byte, error) {
	sig, err := audit.Sign(b.key, payload)
	return "k1", sig, err
}

func (b *bench) keys(kid string) (crypto.PublicKey, bool) { return b.key.Public(), kid == "k1" }

func (b *bench) open(change ...func(*audit.Config)) *audit.Log {
	b.t.Helper()
	log, err := b.tryOpen(change...)
	if err != nil {
		b.t.Fatalf("open: %v", err)
	}
	return log
}

func (b *bench) tryOpen(change ...func(*audit.Config)) (*audit.Log, error) {
	cfg := b.config()
	for _, f := range change {
		f(&cfg)
	}
	log, err := audit.Open(context.Background(), cfg)
	if err == nil {
		b.log = log
	}
	return log, err
}

func (b *bench) close() {
	b.t.Helper()
	if err := b.log.Close(); err != nil {
		b.t.Fatalf("close: %v", err)
	}
}

func (b *bench) append(n int) []audit.Record {
	b.t.Helper()
	recs := make([]audit.Record, n)
	for i := range recs {
		rec, err := b.log.Append(context.Background(), event(i))
		if err != nil {
			b.t.Fatalf("append %d: %v", i, err)
		}
		recs[i] = rec
	}
	return recs
}

func (b *bench) head() audit.Head {
	b.t.Helper()
	head, err := audit.LoadHead(context.Background(), b.store)
	if err != nil {
		b.t.Fatal(err)
	}
	return head
}

func (b *bench) verifyDir() audit.Report {
	b.t.Helper()
	report, err := audit.VerifyDir(context.Background(), b.dir, b.head(), b.keys)
	if err != nil {
		b.t.Fatal(err)
	}
	return report
}

func (b *bench) records() []audit.Record { return records(b.t, b.log, 0) }

func records(t testing.TB, log *audit.Log, from uint64) []audit.Record {
	t.Helper()
	var recs []audit.Record
	for rec, err := range log.Records(context.Background(), from) {
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, rec)
	}
	return recs
}

// segment is the path of the newest segment file.
func (b *bench) segment() string {
	b.t.Helper()
	files := b.segments()
	return files[len(files)-1]
}

func (b *bench) segments() []string {
	b.t.Helper()
	files, err := filepath.Glob(filepath.Join(b.dir, "*.segment"))
	if err != nil || len(files) == 0 {
		b.t.Fatalf("no segments: %v", err)
	}
	return files
}

func event(i int) audit.Event {
	return audit.Event{
		Type: "token.issued", Outcome: audit.OK, Subject: fmt.Sprintf("orders-%d", i),
		By: countersign.Caller{
			Method: countersign.ByCertificate, Name: "spiffe://test/gateway", Serial: "0a0b",
			Addr: netip.MustParseAddr("192.0.2.7"), RequestID: fmt.Sprintf("req-%d", i),
		},
		Detail: map[string]any{"n": i, "scope": "read <all> & more"},
	}
}

func wantCode(t *testing.T, err error, code countersign.Code) *countersign.Error {
	t.Helper()
	var e *countersign.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got error %v, want %s", err, code)
	}
	return e
}

func TestAppendAndRead(t *testing.T) {
	b := newBench(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	b.open(func(c *audit.Config) { c.Now = func() time.Time { return now } })
	recs := b.append(20)
	want := audit.Record{
		Seq: 1, Time: now, Type: "token.issued", Outcome: audit.OK, Subject: "orders-0", RequestID: "req-0",
		By:     audit.By{Name: "spiffe://test/gateway", Method: "certificate", Serial: "0a0b", Addr: "192.0.2.7"},
		Detail: []byte(`{"n":0,"scope":"read <all> & more"}`), Hash: recs[0].Hash,
	}
	if diff := cmp.Diff(want, recs[0]); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(recs, b.records()); diff != "" {
		t.Errorf("what is read differs from what was appended (-appended +read):\n%s", diff)
	}
	if diff := cmp.Diff(recs[10:], records(t, b.log, recs[10].Seq)); diff != "" {
		t.Errorf("from the middle (-appended +read):\n%s", diff)
	}
	b.close()
	report := b.verifyDir()
	if !report.OK() || report.Records != 20 || report.Checkpoints == 0 || report.Unsigned != 0 || report.Torn != "" {
		t.Errorf("report %+v", report)
	}
	b.open()
	if diff := cmp.Diff(recs, b.records()); diff != "" {
		t.Errorf("after opening again (-appended +read):\n%s", diff)
	}
	if more := b.append(1); more[0].Seq <= recs[19].Seq {
		t.Errorf("sequence %d after %d", more[0].Seq, recs[19].Seq)
	}
	for _, f := range append(b.segments(), filepath.Join(b.dir, "reserve"), filepath.Join(b.dir, "lock")) {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, info.Mode(), err)
		}
	}
}
