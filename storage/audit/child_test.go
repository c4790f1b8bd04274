package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	countersign "github.com/countersign/countersign"
	"go.uber.org/goleak"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// The tests of this file need a process of their own: one that is killed, that strace watches, or whose limits change.
// They run this test binary again, with what it shall do in childVar.
const (
	childVar  = "AUDIT_TEST_CHILD"
	exitFatal = 74
)

func TestMain(m *testing.M) {
	dir, job := os.Getenv(childVar+"_DIR"), os.Getenv(childVar)
	switch job {
	case "":
		goleak.VerifyTestMain(m) // ends the process
	case "append":
		childAppend(dir, 8, math.MaxInt)
	case "append-one":
		childAppend(dir, 1, 40)
	case "full":
		childFull(dir)
	case "torn":
		childTorn(dir)
	case "files":
		childFiles(dir)
	default:
		os.Exit(2)
	}
	os.Exit(0)
}

func childOpen(dir string) (*audit.Log, storage.Store) {
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "store.db")})
	if err == nil {
		var log *audit.Log
		log, err = audit.Open(context.Background(), audit.Config{
			Dir: filepath.Join(dir, "audit"), Store: store, Segment: 1 << 20, Reserve: 256 << 10,
			Fatal: func(err error) { fmt.Println("fatal", err); os.Exit(exitFatal) },
		})
		if err == nil {
			return log, store
		}
	}
	fmt.Println("open:", err)
	os.Exit(1)
	return nil, nil
}

// childAppend appends, with each writer, up to limit events, and says what was acknowledged.
func childAppend(dir string, writers, limit int) {
	log, _ := childOpen(dir)
	fmt.Println("open")
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range limit {
				rec, err := log.Append(context.Background(), event(w*1_000_000+i))
				if err != nil {
					fmt.Println("error", err)
					return
				}
				fmt.Printf("ack %d %s\n", rec.Seq, rec.Hash)
			}
		})
	}
	group.Wait()
}

// child is this binary with a job, behind the words of wrap.
func child(t *testing.T, dir, job string, wrap ...string) *exec.Cmd {
	t.Helper()
	words := append(wrap, os.Args[0])
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(os.Environ(), childVar+"="+job, childVar+"_DIR="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// acks reads what a child acknowledged: sequence to hash. It calls on with each line's number until the output ends.
func acks(t *testing.T, cmd *exec.Cmd, on func(line int)) map[uint64]string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := make(map[uint64]string)
	lines := bufio.NewScanner(out)
	for n := 1; lines.Scan(); n++ {
		var seq uint64
		var hash string
		if _, err := fmt.Sscanf(lines.Text(), "ack %d %s", &seq, &hash); err == nil && len(hash) == 64 {
			acked[seq] = hash // a line that the kill tore is none
		}
		on(n)
	}
	return acked
}

// checkAcked opens what a child left and wants all that it acknowledged.
func checkAcked(t *testing.T, dir string, acked map[uint64]string) {
	t.Helper()
	log, store := childOpen(dir)
	defer store.Close()
	defer log.Close()
	for _, rec := range records(t, log, 0) {
		if hash, ok := acked[rec.Seq]; ok {
			if hash != rec.Hash {
				t.Errorf("record %d is another one", rec.Seq)
			}
			delete(acked, rec.Seq)
		}
	}
	if len(acked) > 0 {
		t.Errorf("%d acknowledged records are gone", len(acked))
	}
	report, err := log.Verify(context.Background(), noKeys)
	if err != nil || !report.OK() {
		t.Errorf("verify: %v %q", err, report.Faults)
	}
}

func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	all := make(map[uint64]string)
	for range 10 {
		cmd := child(t, dir, "append")
		after := 1 + rand.IntN(300)
		acked := acks(t, cmd, func(line int) {
			if line == after {
				_ = cmd.Process.Kill()
			}
		})
		if err := cmd.Wait(); err == nil || len(acked) == 0 && after > 10 {
			t.Fatalf("the child ended with %v after %d acks", err, len(acked))
		}
		for seq, hash := range acked {
			all[seq] = hash
		}
		again := make(map[uint64]string, len(all))
		for seq, hash := range all {
			again[seq] = hash
		}
		checkAcked(t, dir, again)
	}
}

// A failed fsync ends the process, without an answer to anybody whose record it was about.
func TestFailedSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begin(t, dir)
	segment := filepath.Join(dir, "audit", "00000000000000000001.segment")
	cmd := child(t, dir, "append", "strace", "-f", "-qq", "-o", os.DevNull, "-P", segment,
		"-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=8")
	acked := acks(t, cmd, func(int) {})
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitFatal {
		t.Fatalf("exit status %d after %d acks, want %d", code, len(acked), exitFatal)
	}
	checkAcked(t, dir, acked)
}

// A disk that can't be read is no tampering, and is not called that.
func TestUnreadableIsNotTampered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begin(t, dir)
	segment := filepath.Join(dir, "audit", "00000000000000000001.segment")
	cmd := child(t, dir, "append-one", "strace", "-f", "-qq", "-o", os.DevNull, "-P", segment,
		"-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=1")
	out, _ := cmd.Output()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !bytes.Contains(out, []byte("input/output error")) ||
		bytes.Contains(out, []byte("tampered")) {
		t.Errorf("exit status %d: %s", code, out)
	}
}

// begin makes an empty log, so that its files are there.
func begin(t *testing.T, dir string) {
	t.Helper()
	log, store := childOpen(dir)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOrder sees with the kernel's eyes that each acknowledgement comes after a write and a finished fdatasync of its own.
func TestOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begin(t, dir)
	trace := filepath.Join(dir, "trace")
	cmd := child(t, dir, "append-one", "strace", "-f", "-qq", "-y", "-s", "16", "-o", trace,
		"-e", "trace=pwrite64,fdatasync,write")
	acked := acks(t, cmd, func(int) {})
	if err := cmd.Wait(); err != nil || len(acked) != 40 {
		t.Fatalf("%d acks, %v", len(acked), err)
	}
	content, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if n := checkOrder(t, content); n != 40 {
		t.Errorf("%d acks in the trace", n)
	}
}

// TestNewDirectoryIsDurable: the directory's own name must not be lost after a record in it was acknowledged.
func TestNewDirectoryIsDurable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := child(t, dir, "append-one", "strace", "-f", "-qq", "-y", "-s", "64", "-o", trace,
		"-e", "trace=mkdirat,fsync,write")
	acks(t, cmd, func(int) {})
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	_, made, ok := bytes.Cut(content, []byte("/audit\", 0700"))
	before, _, told := bytes.Cut(made, []byte(`"ack `))
	if !ok || !told || !bytes.Contains(before, []byte("<"+dir+">)")) {
		t.Errorf("made: %v, told: %v, and between them no fsync of %s", ok, told, dir)
	}
}

var (
	tracedWrite = regexp.MustCompile(`^(\d+) +pwrite64\(\d+<[^>]*\.segment>`)
	tracedSync  = regexp.MustCompile(`^(\d+) +fdatasync\(\d+<[^>]*\.segment>`)
	tracedEnd   = regexp.MustCompile(`^(\d+) +<\.\.\. fdatasync resumed>.*= 0`)
	tracedAck   = regexp.MustCompile(`^\d+ +write\(1.*"ack `)
)

// checkOrder walks a trace: written, then synced, then told.
func checkOrder(t *testing.T, trace []byte) (told int) {
	t.Helper()
	var written, syncing, synced int
	syncer := ""
	for line := range bytes.Lines(trace) {
		switch text := string(line); {
		case tracedWrite.MatchString(text):
			written++
		case tracedSync.MatchString(text):
			syncing = written
			if strings.Contains(text, "= 0") {
				synced = syncing
			} else {
				syncer = tracedSync.FindStringSubmatch(text)[1]
			}
		case tracedEnd.MatchString(text) && tracedEnd.FindStringSubmatch(text)[1] == syncer:
			synced, syncer = syncing, ""
		case tracedAck.MatchString(text):
			if told++; synced < told {
				t.Fatalf("acknowledgement %d after %d durable writes: %s", told, synced, text)
			}
		}
	}
	return told
}

// TestDiskFull lets a child's file size limit stand in for the disk: EFBIG takes the way that ENOSPC and EDQUOT take.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	cmd := child(t, t.TempDir(), "full")
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

// must ends a child whose expectation does not hold.
func must(ok bool, format string, args ...any) {
	if !ok {
		fmt.Printf(format+"\n", args...)
		os.Exit(1)
	}
}

// limit sets a limit of this process as far as it binds; RLIM_INFINITY lifts it.
func limit(what int, to uint64) {
	var now unix.Rlimit
	must(unix.Getrlimit(what, &now) == nil, "no limit %d", what)
	err := unix.Setrlimit(what, &unix.Rlimit{Cur: min(to, now.Max), Max: now.Max})
	must(err == nil, "limit %d: %v", what, err)
}

// appendBig appends an event of which three, and no four, fit into the segment of a child.
func appendBig(log *audit.Log) error {
	_, err := log.Append(context.Background(), audit.Event{Type: "a.b", Outcome: audit.OK, Detail: strings.Repeat("x", 300<<10)})
	return err
}

// eventually tries again, as a log that has met trouble does.
func eventually(do func() error) (err error) {
	for range 100 {
		if err = do(); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// wantRecorded ends the child unless the log is whole, now and after another start, and has events of these types.
func wantRecorded(dir string, log *audit.Log, store storage.Store, want ...string) {
	for _, round := range []string{"before", "after"} {
		var types []string
		for rec, err := range log.Records(context.Background(), 0) {
			must(err == nil, "%s the restart: read: %v", round, err)
			types = append(types, rec.Type)
		}
		must(slices.Equal(types, want), "%s the restart: recorded %v, want %v", round, types, want)
		report, err := log.Verify(context.Background(), noKeys)
		must(err == nil && report.OK(), "%s the restart: verify: %v %+v", round, err, report)
		must(log.Close() == nil && store.Close() == nil, "close")
		if round == "before" {
			log, store = childOpen(dir)
		}
	}
}

// TestTornWrite: a write that the kernel cut short is taken back, so that none of it shows behind later records.
func TestTornWrite(t *testing.T) {
	t.Parallel()
	cmd := child(t, t.TempDir(), "torn")
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func childTorn(dir string) {
	signal.Ignore(unix.SIGXFSZ)
	log, store := childOpen(dir)
	must(appendBig(log) == nil, "append")
	segment := filepath.Join(dir, "audit", "00000000000000000001.segment")
	whole, err := audit.Frames(segment)
	must(err == nil && len(whole) == 1, "%d frames, %v", len(whole), err)
	// The zeros are there, and of what comes over them 100 KiB are let through.
	limit(unix.RLIMIT_FSIZE, uint64(whole[0].End)+100<<10)
	err = appendBig(log)
	must(countersign.AsError(err).Code == countersign.CodeAudit, "the write was not cut short: %v", err)
	after, err := audit.Frames(segment)
	must(err == nil && len(after) == 2 && after[0] == whole[0], "%d frames, %v", len(after), err)
	content, err := os.ReadFile(segment)
	must(err == nil, "read: %v", err)
	rest := len(bytes.TrimRight(content[after[1].End:], "\x00"))
	must(rest == 0, "%d bytes of the cut write stand behind the last record", rest)
	limit(unix.RLIMIT_FSIZE, unix.RLIM_INFINITY)
	err = eventually(func() error { return appendBig(log) })
	must(err == nil, "there is space again, and: %v", err)
	wantRecorded(dir, log, store, "a.b", "audit.disk-full", "audit.resumed", "a.b")
}

// TestNoMoreFiles: a process that may open no more files begins no segment, or all of one. One that has its name and is
// not written on would be a hole in the log: no later start would take it.
func TestNoMoreFiles(t *testing.T) {
	t.Parallel()
	cmd := child(t, t.TempDir(), "files")
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func childFiles(dir string) {
	log, store := childOpen(dir)
	want := []string{"a.b", "a.b", "a.b"}
	for range want {
		must(appendBig(log) == nil, "append")
	}
	for more := range 3 { // files that may still be opened when the next segment is due
		next, err := os.Open(os.DevNull)
		must(err == nil, "open: %v", err)
		free := uint64(next.Fd())
		must(next.Close() == nil, "close")
		limit(unix.RLIMIT_NOFILE, free+uint64(more))
		err = appendBig(log)
		limit(unix.RLIMIT_NOFILE, unix.RLIM_INFINITY)
		if err == nil {
			must(more > 0, "a segment was begun without a file")
			want = append(want, "a.b")
			break
		}
		err = eventually(func() error { _, err := log.Append(context.Background(), event(1)); return err })
		must(err == nil, "there are files again, and: %v", err)
		want = append(want, "audit.resumed", "token.issued")
	}
	err := eventually(func() error { return appendBig(log) })
	must(err == nil, "the next segment: %v", err)
	wantRecorded(dir, log, store, append(want, "a.b")...)
}

func childFull(dir string) {
	signal.Ignore(unix.SIGXFSZ)
	log, store := childOpen(dir)
	ctx := context.Background()
	segment := filepath.Join(dir, "audit", "00000000000000000001.segment")
	for i := range 3 {
		err := appendBig(log)
		must(err == nil, "append %d: %v", i, err)
	}
	// The next one needs a new segment, which is not to be had; for the log's own event there is room in the old one.
	limit(unix.RLIMIT_FSIZE, 1<<20-1000)
	before := log.Head()
	err := appendBig(log)
	must(countersign.AsError(err).Code == countersign.CodeAudit, "on a full disk: %v", err)
	must(countersign.AsError(err).RetryAfter == time.Second, "no time to come again: %v", err)
	_, err = log.Append(ctx, event(1))
	must(countersign.AsError(err).Code == countersign.CodeAudit, "still full: %v", err)
	must(log.Err() != nil, "ready on a full disk")
	must(log.Head().Seq == before.Seq+1, "the full disk is not recorded: %+v", log.Head())
	_, err = os.Stat(filepath.Join(dir, "audit", "reserve"))
	must(err == nil, "reserve: %v", err)
	time.Sleep(1200 * time.Millisecond) // a round that does not help
	must(log.Err() != nil, "ready on a full disk")
	limit(unix.RLIMIT_FSIZE, unix.RLIM_INFINITY)
	err = eventually(func() error { return appendBig(log) })
	must(err == nil, "there is space again, and: %v", err)
	info, err := os.Stat(filepath.Join(dir, "audit", "reserve"))
	must(err == nil && info.Size() == 256<<10, "the reserve is not made again: %v %v", info, err)
	wantRecorded(dir, log, store, "a.b", "a.b", "a.b", "audit.disk-full", "audit.resumed", "a.b")
	_, err = os.Stat(segment)
	must(err == nil, "segment: %v", err)
}

func noKeys(string) (crypto.PublicKey, bool) { return nil, false }
