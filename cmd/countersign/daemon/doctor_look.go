package daemon

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/countersign/countersign/ca/identity"
	"github.com/countersign/countersign/cmd/countersign/daemon/archive"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
	"github.com/countersign/countersign/storage/keyring"
)

// maxLooked bounds how many files of the directory are looked at; an audit log of 400 days has fewer segments.
const maxLooked = 100_000

// Look collects what `doctor` judges of the directory. It changes nothing. running tells whether a daemon answers: without one, the
// store is opened, under its lock, to hold the audit log to it; that reads all of the store once.
func Look(ctx context.Context, dir Dir, now time.Time, config error, running bool) Facts {
	f := Facts{Now: now, Dir: dir, Config: config, Free: -1}
	if own, err := identity.Load(dir.server()); err != nil {
		f.OwnErr = err
	} else {
		f.Own = own.Chain
	}
	f.Roots = readRootFile(dir.Root())
	f.Modes, f.Backups, f.Newest = lookAtFiles(string(dir))
	var stat syscall.Statfs_t
	if err := syscall.Statfs(string(dir), &stat); err == nil {
		f.Free = int64(stat.Bavail) * stat.Bsize //nolint:gosec // below 2^63 bytes
	}
	if info, err := os.Stat(dir.database()); err == nil {
		f.Database = info.Size()
	}
	kek, err := keyring.ReadKEK(string(dir))
	clear(kek)
	f.KEK = err
	if !running {
		f.lookAtStore(ctx)
	}
	return f
}

func readRootFile(path string) (roots []*x509.Certificate) {
	body, err := readBounded(path, maxConfigFile)
	if err != nil {
		return nil
	}
	for block, rest := pem.Decode(body); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			roots = append(roots, cert)
		}
	}
	return roots
}

// lookAtStore holds the audit log to the store that nobody has open.
func (f *Facts) lookAtStore(ctx context.Context) {
	if f.Lock = bolt.Probe(f.Dir.database()); f.Lock != nil {
		return
	}
	store, err := bolt.Open(bolt.Config{Path: f.Dir.database(), Fatal: func(error) {}})
	if err != nil {
		f.Lock = err
		return
	}
	defer store.Close() //nolint:errcheck // nothing was written
	f.AuditSeen = true
	head, err := audit.LoadHead(ctx, store)
	if errors.Is(err, storage.ErrNotFound) {
		err = errors.New("the store remembers no audit log")
	}
	if err == nil {
		head, err = audit.ReadEnd(ctx, f.Dir.audit(), head)
	}
	f.Audit, f.AuditSeq = err, head.Seq
}

// lookAtFiles finds files that others may read or write, and backups that lie in the directory. Certificates are public, as are the
// links of identity directories. newest is when the audit log was last written to.
func lookAtFiles(dir string) (faults []ModeFault, backups []string, newest time.Time) {
	looked := 0
	var owner uint32
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if looked++; err != nil || looked > maxLooked {
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				faults = append(faults, ModeFault{path, "can't be read: " + err.Error(), "run this as the daemon's user or root"})
			}
			return nil
		}
		info, err := entry.Info()
		if err != nil || info.Mode()&fs.ModeSymlink != 0 {
			return nil // it went away, or is judged where it leads
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if ok && path == dir {
			owner = stat.Uid
		}
		if what, next := judgeMode(path, info.Mode(), path == dir, ok && stat.Uid != owner && stat.Uid != 0); what != "" {
			faults = append(faults, ModeFault{path, what, next})
		}
		if filepath.Dir(path) == filepath.Join(dir, "audit") && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
		if info.Mode().IsRegular() && archive.Is(path) {
			backups = append(backups, path)
		}
		return nil
	})
	return faults, backups, newest
}

// judgeMode says what is wrong with the rights of a file or directory of ours. Directories below the top one are closed by it.
func judgeMode(path string, mode fs.FileMode, top, foreign bool) (what, next string) {
	forbidden := fs.FileMode(0o077)
	if mode.IsDir() && !top || strings.HasSuffix(path, ".pem") || strings.HasSuffix(path, ".crt") || strings.HasSuffix(path, "identity.json") || strings.HasSuffix(path, "truststore.p12") {
		forbidden = 0o022
	}
	switch {
	case foreign:
		return "belongs to another user than the directory", "chown it to the daemon's user, after asking who put it there"
	case mode.Perm()&forbidden == 0:
		return "", ""
	}
	return fmt.Sprintf("has mode %04o: others than its owner may use it", mode.Perm()), fmt.Sprintf("chmod go-%s %s", map[bool]string{true: "w", false: "rwx"}[forbidden == 0o022], path)
}
