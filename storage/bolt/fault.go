package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/countersign/countersign/storage"
)

// protect turns a panic, and a fault while reading the map (pages past the end of a cut file, an unreadable sector),
// into storage.ErrCorrupt: `defer protect(&err)()`.
func protect(err *error) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w: %v", storage.ErrCorrupt, p)
		}
	}
}

func isFullErrno(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// writeWasRefused says whether a commit failed because a write found no room. A write's error is a *fs.PathError; the
// bare errno of a failed fdatasync is none, and is never taken for a full disk: the kernel may have dropped pages.
func writeWasRefused(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && path.Op == "write" && isFullErrno(path.Err)
}

// growWasRefused says whether a commit failed in making the file longer, which is before its first write. bbolt hides
// the cause there (db.go, grow), so the caller has to find out by trying.
func growWasRefused(err error) bool {
	return strings.HasPrefix(err.Error(), "file resize error:")
}
