package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/api/client"
	"github.com/countersign/countersign/cmd/countersign/daemon"
	"github.com/countersign/countersign/cmd/countersign/daemon/archive"
	"github.com/countersign/countersign/storage/audit"
)

// shownBackup is what backup prints.
type shownBackup struct {
	File  string     `json:"file"`
	Bytes int64      `json:"bytes"`
	Made  time.Time  `json:"made"`
	Files int        `json:"files"`
	Roots []string   `json:"roots"`
	Audit audit.Head `json:"audit"`
}

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "copy a running daemon's database and audit log into one file", Args: exactArgs("FILE"),
		Long: `Writes one file with the database at one moment, the audit log, the configuration and the root, while the daemon goes on. The
file has mode 0600, is checked to its end, and appears under its name only when it is durable; it replaces nothing.

No key is in it in clear. The key-encryption key is not in it, and must not lie beside it: keep that elsewhere. It needs the role admin.`,
		Example: "  countersign backup /mnt/backups/countersign-2026-11-24",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkBackupPlace(args[0]); err != nil {
				return err
			}
			return a.withDaemon(func(c *client.Client) error {
				shown, err := takeBackup(cmd.Context(), c, args[0])
				if err != nil {
					return err
				}
				return a.show(shown, func(w *tabwriter.Writer) {
					row(w, "file", shown.File)
					row(w, "bytes", fmt.Sprint(shown.Bytes))
					row(w, "audit log", fmt.Sprintf("to record %d", shown.Audit.Seq))
				})
			})
		},
	}
}

// checkBackupPlace keeps a backup from the key-encryption key, and from what is there already.
func (a *app) checkBackupPlace(path string) error {
	beside := filepath.Dir(path)
	in, err := filepath.Abs(beside)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(a.dir)
	if err != nil {
		return err
	}
	_, kek := os.Lstat(filepath.Join(beside, "kek"))
	if in == dir || strings.HasPrefix(in, dir+string(filepath.Separator)) || kek == nil {
		return &failure{Exit: exitCondition, What: "a backup must not lie beside the key-encryption key", Why: "who copies " + beside + " would have the keys in clear",
			Next: "name a file in a directory that holds no kek, best on another machine"}
	}
	if _, err := os.Lstat(path); err == nil {
		return &failure{Exit: exitCondition, What: path + " exists", Why: "a backup replaces nothing", Next: "name a file that does not exist yet"}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return cantWrite(path, err)
	}
	return nil
}

func cantWrite(path string, err error) error {
	return &failure{Exit: exitLocal, What: "can't write " + path, Why: cause(err), err: err,
		Next: "name a file in a directory that you may write to, on a disk with room for the database and the audit log"}
}

// takeBackup writes beside the file's name, checks what came, and gives it its name when it is durable. Crash points: before
// that there is at most a file with a name that ends with .new.
func takeBackup(ctx context.Context, c *client.Client, path string) (shownBackup, error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*.new") // mode 0600
	if err != nil {
		return shownBackup{}, cantWrite(path, err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	to := bufio.NewWriterSize(file, 1<<20)
	if err := c.Backup(ctx, to); err != nil {
		if local := new(fs.PathError); errors.As(err, &local) && local.Path == file.Name() {
			return shownBackup{}, cantWrite(path, local)
		}
		return shownBackup{}, err
	}
	if err := errors.Join(to.Flush(), file.Sync()); err != nil {
		return shownBackup{}, cantWrite(path, err)
	}
	m, err := archive.Check(file.Name())
	if err != nil {
		return shownBackup{}, badAnswer(err)
	}
	info, err := file.Stat()
	if err == nil {
		err = os.Link(file.Name(), path) // unlike a rename it replaces nothing
	}
	if err == nil {
		err = syncDirectory(filepath.Dir(path))
	}
	if err != nil {
		return shownBackup{}, cantWrite(path, err)
	}
	return shownBackup{File: path, Bytes: info.Size(), Made: m.Made, Files: len(m.Files), Roots: m.Roots, Audit: audit.Head(m.Audit)}, nil
}

func syncDirectory(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (a *app) restoreCommand() *cobra.Command {
	var o daemon.RestoreOptions
	c := &cobra.Command{
		Use: "restore FILE", Short: "put a backup into an empty directory", Args: exactArgs("FILE"),
		Long: `Puts a backup into --dir, which must be empty or not exist. All of the backup is checked before anything is written. Afterwards keys,
JWKS, roots and serials are those of the backup; put the key-encryption key beside them and start the daemon.

With --audit, the directory of a newer audit log of the same authority (audit/ of the machine that was lost), that log takes the place of
the backup's: certificates that were revoked, lineages that were blocked, services that were disabled, what was frozen and keys that were
retired as compromised after the backup are so again, and token revocations come back at the start. What can't be known is said. Stop the daemon whose log it is first.`,
		Example: "  countersign restore /mnt/backups/countersign-2026-11-24 --dir /var/lib/countersign --audit /mnt/lost/audit",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Dir, o.File, o.Version = daemon.Dir(a.dir), args[0], versionText()
			done, err := daemon.Restore(cmd.Context(), o)
			if err != nil {
				return explainRestore(o, err)
			}
			err = a.show(done, func(w *tabwriter.Writer) {
				row(w, "directory", done.Dir)
				row(w, "trust domain", done.TrustDomain)
				row(w, "backup of", a.moment(done.Made))
				row(w, "revoked again", fmt.Sprintf("%d certificates, %d lineages", done.Replayed.Revoked, done.Replayed.Blocked))
				row(w, "disabled again", dash(strings.Join(done.Disabled, ", ")))
				row(w, "frozen again", dash(strings.Join(done.Frozen, ", ")))
				row(w, "keys withdrawn", dash(strings.Join(done.Withdrawn, ", ")))
				for _, unknown := range done.Unknown {
					row(w, "not restored", unknown)
				}
			})
			a.say("\nnext: put the key-encryption key there (%s, mode 0400), then countersign serve --dir %s", filepath.Join(done.Dir, "kek"), shellWord(done.Dir))
			return err
		},
	}
	c.Flags().StringVar(&o.Audit, "audit", "", "directory of a newer audit log, whose revocations are put in force again")
	return c
}

// explainRestore finds words for what only a restore meets.
func explainRestore(o daemon.RestoreOptions, err error) error {
	var (
		used     *daemon.NotEmptyError
		tampered *audit.TamperedError
	)
	switch {
	case errors.As(err, &used) && used.Unfinished:
		return &failure{Exit: exitCondition, What: "a backup is restored into an empty directory", Why: used.Error(), err: err,
			Next: "nothing in it was ever in use: remove " + used.Dir + " and run this again"}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &failure{Exit: exitLocal, What: "there is no room for what is in " + o.File, Why: err.Error(), err: err,
			Next: "make space on the disk of " + string(o.Dir) + ", or name another --dir, and run this again: nothing of it is left there"}
	case errors.As(err, &used):
		return &failure{Exit: exitCondition, What: "a backup is restored into an empty directory", Why: used.Error(), err: err,
			Next: "name another --dir, or move away what is there: nothing is overwritten"}
	case errors.As(err, &tampered):
		return &failure{Exit: exitCondition, What: "audit log and backup do not belong together", Why: err.Error(), err: err,
			Next: "--audit takes the audit log that the backed up daemon went on to write; without it the backup's own serves"}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		return &failure{Exit: exitLocal, What: "can't restore " + o.File, Why: err.Error(), Next: mendFile(err), err: err}
	}
	return err
}
