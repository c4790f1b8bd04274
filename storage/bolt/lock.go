package bolt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const lockRetry = 20 * time.Millisecond

// LockedError says that another process has the store open.
type LockedError struct {
	Path string
	PID  int // 0: not known
}

// Error names the file and, if known, the process.
func (e *LockedError) Error() string {
	if e.PID == 0 {
		return e.Path + " is held by another process"
	}
	return fmt.Sprintf("%s is held by pid %d", e.Path, e.PID)
}

// lock takes the lock that bbolt takes. It belongs to the open file, so bbolt then finds it taken by itself.
func lock(f *os.File, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; time.Sleep(lockRetry) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock: %w", err)
		}
		if !time.Now().Before(deadline) {
			return &LockedError{Path: f.Name(), PID: holder(f)}
		}
	}
}

// holder asks the kernel who has f locked; 0 if it does not say (no Linux, or a process of another namespace).
func holder(f *os.File) int {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer locks.Close() //nolint:errcheck // only read
	return holderIn(locks, stat.Ino)
}

// holderIn finds the one process with an exclusive flock on the inode in the format of proc_locks(5):
// "1: FLOCK ADVISORY WRITE 10458 fe:00:9978002 0 EOF". The device is not compared: some file systems show another one.
func holderIn(locks io.Reader, inode uint64) int {
	found := 0
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" || fields[3] != "WRITE" {
			continue
		}
		if _, at, ok := cutLast(fields[5], ":"); !ok || at != strconv.FormatUint(inode, 10) {
			continue
		}
		pid, err := strconv.Atoi(fields[4])
		if err != nil || pid <= 0 || found != 0 {
			return 0
		}
		found = pid
	}
	return found
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Probe tells whether another process has the store at path open: then it is a [*LockedError]. It changes nothing; it
// holds the lock for an instant, which is less than [Open] waits.
func Probe(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read; closing lets go of the lock
	return lock(f, 0)
}
