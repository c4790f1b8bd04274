package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/bolt"
)

// What a child process of the tests does, by COUNTERSIGN_BOLT_CHILD, on the store COUNTERSIGN_BOLT_PATH.
const (
	childEnv, pathEnv = "COUNTERSIGN_BOLT_CHILD", "COUNTERSIGN_BOLT_PATH"
	exitFatal         = 74
)

func TestMain(m *testing.M) {
	children := map[string]func(path string) error{
		"write": childWrite, "write-one": childWriteOne, "outlive": childOutlive, "full": childFull, "hold": childHold,
	}
	mode := os.Getenv(childEnv)
	if mode == "" {
		goleak.VerifyTestMain(m) // ends the process
	}
	if err := children[mode](os.Getenv(pathEnv)); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// child is a command that runs this test binary as a child, behind wrapper (strace and its options) if there is one.
func child(t *testing.T, mode, path string, wrapper ...string) *exec.Cmd {
	t.Helper()
	args := append(wrapper, os.Args[0])
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+mode, pathEnv+"="+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func put(key, value string) storage.Op {
	return storage.Op{Kind: storage.Put, Table: "things", Key: key, Value: []byte(value), If: storage.Cond{Absent: true}}
}

// valueOf is long enough to need several pages.
func valueOf(key string) string { return strings.Repeat(key+"-", 100) }

// writeUnder writes records of which the keys begin with prefix, and tells of each when it is answered.
func writeUnder(s *bolt.Store, prefix string, n int) error {
	for i := range n {
		key := fmt.Sprint(prefix, "-", i)
		rev, err := s.Apply(context.Background(), put(key, valueOf(key)))
		if err != nil {
			return err
		}
		if _, err := fmt.Printf("ack %s %d\n", key, rev); err != nil {
			return err
		}
	}
	return nil
}

func exitOnFatal(err error) {
	fmt.Println("fatal:", err)
	os.Exit(exitFatal)
}

// childWrite writes from eight goroutines until it is killed.
func childWrite(path string) error {
	s, err := bolt.Open(bolt.Config{Path: path, Fatal: exitOnFatal})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := writeUnder(s, fmt.Sprintf("%d-%d", os.Getpid(), i), 1_000_000); err != nil {
				fmt.Println("error:", err)
			}
		})
	}
	wg.Wait()
	return nil
}

// childWriteOne writes 50 records, one after the other.
func childWriteOne(path string) error {
	s, err := bolt.Open(bolt.Config{Path: path, Fatal: exitOnFatal})
	if err != nil {
		return err
	}
	return errors.Join(writeUnder(s, "one", 50), s.Close())
}

// childOutlive has a Fatal that returns, and tells what callers get then.
func childOutlive(path string) error {
	var calls atomic.Int32
	s, err := bolt.Open(bolt.Config{Path: path, Fatal: func(error) { calls.Add(1) }})
	if err != nil {
		return err
	}
	err = writeUnder(s, "one", 50)
	_, apply := s.Apply(context.Background(), put("later", "v"))
	_, get := s.Get(context.Background(), "things", "one-0")
	fmt.Println("unknown:", errors.Is(err, storage.ErrUnknown), "apply closed:", errors.Is(apply, storage.ErrClosed),
		"get closed:", errors.Is(get, storage.ErrClosed), "calls:", calls.Load())
	return s.Close()
}

// childHold keeps the store open until its input ends.
func childHold(path string) error {
	s, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		return err
	}
	fmt.Println("open")
	_, _ = os.Stdin.Read(make([]byte, 1))
	return s.Close()
}

// childFull meets the limit of a file's size, first where bbolt writes, then where it makes the file longer.
func childFull(path string) error {
	s, err := bolt.Open(bolt.Config{Path: path, Fatal: exitOnFatal})
	if err != nil {
		return err
	}
	n := 0
	next := func() error {
		_, err := s.Apply(context.Background(), put(fmt.Sprint("full-", n), strings.Repeat("x", 100_000)))
		if err == nil {
			n++
		}
		return err
	}
	for _, name := range []string{"write", "grow"} {
		limit := uint64(1 << 20) // inside the file, where the next pages go
		if name == "grow" {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			limit = uint64(info.Size()) //nolint:gosec // a size
		}
		if err := limitFile(limit); err != nil {
			return err
		}
		for err = nil; err == nil && n < 1000; {
			err = next()
		}
		if !errors.Is(err, storage.ErrBusy) {
			return fmt.Errorf("%s: record %d: got %w, want ErrBusy", name, n, err)
		}
		if _, err := s.Get(context.Background(), "things", fmt.Sprint("full-", n)); !errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("%s: refused, but there: %w", name, err)
		}
		if err := limitFile(1 << 40); err != nil {
			return err
		}
		for range 5 {
			if err := next(); err != nil {
				return fmt.Errorf("%s: with room again: %w", name, err)
			}
		}
	}
	fmt.Println("records:", n)
	return s.Close()
}

func limitFile(size uint64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	limit.Cur = min(size, limit.Max)
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit)
}
