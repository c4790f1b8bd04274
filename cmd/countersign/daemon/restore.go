package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/cmd/countersign/daemon/archive"
	"github.com/countersign/countersign/storage/audit"
)

// RestoreOptions say what to restore, and where.
type RestoreOptions struct {
	Dir     Dir    // must be empty or not exist
	File    string // the backup
	Audit   string // the directory of a newer audit log of the same authority; "": there is none
	Version string
}

// Restored is what a restore did, and what it could not know.
type Restored struct {
	Dir         string      `json:"dir"`
	TrustDomain string      `json:"trust_domain"`
	Issuer      string      `json:"issuer"`
	Made        time.Time   `json:"made"` // the backup
	Roots       []string    `json:"roots"`
	Backup      audit.Head  `json:"backup_audit"` // where the log of the backup ends
	Audit       audit.Head  `json:"audit"`        // where the log ended that was put in its place
	Replayed    ca.Replayed `json:"replayed"`
	Disabled    []string    `json:"disabled"`  // services that the newer log has disabled
	Frozen      []string    `json:"frozen"`    // what the newer log has frozen: tokens, certificates
	Withdrawn   []string    `json:"withdrawn"` // token keys that the newer log has retired as compromised, and that the backup published
	Unknown     []string    `json:"unknown"`   // what may have happened after the backup and is not in force now
}

// unfinished is the configuration's name until all else is whole: a directory without a configuration is none of a daemon.
const unfinished = ConfigFile + ".new"

// Restore puts the backup into a directory that is empty or does not exist. All of the backup is checked before anything is
// written. A newer audit log takes the place of the backup's: it must continue that one, and its revocations are put in force
// again. The key-encryption key comes from elsewhere; without it the authority is restored, and sealed.
//
// Crash points: the configuration has the name unfinished first of all, and gets its own last, so a directory with the one and without
// the other is known to be unfinished, and may be removed. After an error, what was written is removed.
func Restore(ctx context.Context, o RestoreOptions) (done Restored, err error) {
	m, err := archive.Check(o.File)
	if err != nil {
		return Restored{}, err
	}
	newer := audit.Head(m.Audit)
	if o.Audit != "" {
		if newer, err = audit.ReadEnd(ctx, o.Audit, newer); err != nil {
			return Restored{}, fmt.Errorf("the audit log in %s does not continue the backup's: %w", o.Audit, err)
		}
	}
	if err := emptyDir(o.Dir); err != nil {
		return Restored{}, err
	}
	defer func() {
		var fatal *FatalError
		if err != nil && !errors.As(err, &fatal) {
			err = errors.Join(err, clearDir(string(o.Dir)))
		}
	}()
	if err := os.WriteFile(filepath.Join(string(o.Dir), unfinished), nil, 0o600); err != nil {
		return Restored{}, err
	}
	if err := unpack(o, m); err != nil {
		return Restored{}, err
	}
	if newer != audit.Head(m.Audit) {
		if err := takeSegments(o.Audit, o.Dir.audit()); err != nil {
			return Restored{}, err
		}
	}
	if err := syncDir(o.Dir.audit()); err != nil {
		return Restored{}, err
	}
	done = Restored{Dir: string(o.Dir), TrustDomain: m.Domain, Issuer: m.Issuer, Made: m.Made, Roots: m.Roots, Backup: audit.Head(m.Audit), Audit: newer}
	if err := settleRestored(ctx, o, m, &done); err != nil {
		return Restored{}, err
	}
	if err := os.Rename(filepath.Join(string(o.Dir), unfinished), o.Dir.config()); err != nil {
		return Restored{}, err
	}
	return done, syncDir(string(o.Dir))
}

// NotEmptyError says that a directory can't be restored into, because something is in it.
type NotEmptyError struct {
	Dir, Found string
	Unfinished bool // an init or a restore before was ended in the middle, and nobody used the directory
}

// Error names what was found.
func (e *NotEmptyError) Error() string {
	if e.Unfinished {
		return e.Dir + " holds a restore that did not end"
	}
	return e.Dir + " is not empty: it holds " + e.Found
}

// emptyDir makes the directory, or makes sure that nothing is in it.
func emptyDir(dir Dir) error {
	if err := os.MkdirAll(string(dir), 0o700); err != nil {
		return err
	}
	if err := checkOurs(string(dir), os.Stat); err != nil {
		return err
	}
	entries, err := os.ReadDir(string(dir))
	if err == nil && len(entries) > 0 {
		holds := func(name string) bool {
			return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
		}
		err = &NotEmptyError{Dir: string(dir), Found: entries[0].Name(), Unfinished: holds(unfinished) && !holds(ConfigFile)}
	}
	return err
}

// clearDir removes everything in a directory that was empty.
func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// unpack writes the files of the backup, which was checked: m is what that found, and must be found again.
func unpack(o RestoreOptions, m archive.Manifest) error {
	if err := os.Mkdir(o.Dir.audit(), 0o700); err != nil {
		return err
	}
	f, err := os.Open(o.File)
	if err != nil {
		return err
	}
	defer f.Close()
	again, err := archive.Read(f, func(name string) (io.WriteCloser, error) {
		mode, how := fs.FileMode(0o600), os.O_EXCL
		switch name {
		case ConfigFile:
			name, how = unfinished, os.O_TRUNC
		case archive.Root:
			mode = 0o644
		}
		out, err := os.OpenFile(filepath.Join(string(o.Dir), filepath.FromSlash(name)), os.O_WRONLY|os.O_CREATE|how, mode)
		return syncedFile{out}, err
	})
	if err == nil && !reflect.DeepEqual(again, m) {
		err = archive.Bad("it changed while it was read")
	}
	return err
}

// syncedFile is durable when it is closed.
type syncedFile struct{ *os.File }

// Close syncs and closes.
func (f syncedFile) Close() error { return errors.Join(f.Sync(), f.File.Close()) }

// takeSegments copies the segments of a newer log over those of the backup: it was found to continue them. Older ones that the
// newer log does not have any more stay.
func takeSegments(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !audit.ValidSegment(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		in, err := os.Open(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		out, err := os.OpenFile(filepath.Join(to, e.Name()), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err == nil {
			_, err = io.Copy(out, in)
			err = errors.Join(err, syncedFile{out}.Close())
		}
		if err = errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	return nil
}

// settleRestored opens what was written as the daemon would, which checks all of it, puts in force what the newer log tells of,
// and records the restore.
func settleRestored(ctx context.Context, o RestoreOptions, m archive.Manifest, done *Restored) error {
	path := filepath.Join(string(o.Dir), unfinished)
	doc, err := readBounded(path, maxConfigFile)
	if err != nil {
		return err
	}
	loaded, err := parse(path, doc, LoadOptions{})
	if err != nil {
		return err
	}
	if loaded.Config.Domain != m.Domain || loaded.Config.Issuer != m.Issuer {
		return archive.Bad("its configuration is another authority's than its manifest says")
	}
	p, err := open(ctx, Options{Dir: o.Dir, Config: loaded.Config, Version: o.Version})
	if err != nil {
		return err
	}
	err = p.unlessFatal(func() error {
		if err := p.openAuthority(ctx); err != nil {
			return err
		}
		if err := p.replay(ctx, o, m, done); err != nil {
			return err
		}
		return p.close()
	})
	if err != nil {
		return p.giveUp(err)
	}
	return nil
}

// replay puts in force again what the log tells of behind the database, and says what can't be. The backup's own log reaches farther than
// its database, by all that came while the database was sent.
func (p *parts) replay(ctx context.Context, o RestoreOptions, m archive.Manifest, done *Restored) error {
	by := countersign.Daemon("restore")
	lost, err := p.readLost(ctx, m.Store)
	if err != nil {
		return err
	}
	if done.Replayed, err = p.ca.Replay(ctx, by, m.Store); err != nil {
		return err
	}
	done.Disabled = []string{}
	for _, service := range slices.Sorted(maps.Keys(lost.disabled)) {
		err := p.book.SetDisabled(ctx, by, service, "it was before the database was restored", true)
		if code := countersign.AsError(err).Code; err != nil && code != countersign.CodeServiceState && code != countersign.CodeNoService {
			return err
		}
		done.Disabled = append(done.Disabled, service)
	}
	if err := p.freezeAgain(ctx, by, lost, done); err != nil {
		return err
	}
	if err := p.withdrawAgain(ctx, by, lost, done); err != nil {
		return err
	}
	done.Unknown = append(lost.unknown(o.Audit != "", done.Replayed), p.outside()...)
	_, err = p.audit.Append(ctx, audit.Event{
		Type: eventRestore, Outcome: audit.OK, By: by, Subject: m.Domain, Detail: map[string]any{
			"made": m.Made, "backup_seq": m.Audit.Seq, "store_seq": m.Store, "audit_seq": done.Audit.Seq, "replayed": done.Replayed, "disabled": done.Disabled,
			"frozen": done.Frozen, "withdrawn": done.Withdrawn,
		},
	})
	return err
}
