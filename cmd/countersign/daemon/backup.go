package daemon

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path/filepath"
	"sync"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/cmd/countersign/daemon/archive"
	"github.com/countersign/countersign/storage/audit"
)

const (
	eventBackup  = "daemon.backup"
	eventRestore = "daemon.restored"
)

// backupAPI makes backups of the running daemon, one at a time.
type backupAPI struct {
	*parts
	one sync.Mutex
}

// Write writes a backup: the database as it is at one moment, then the audit log up to a moment after that, the configuration
// and the root. Nothing in it is secret in clear: keys are sealed in the database, and the key-encryption key, the daemon's own
// TLS key and the operators' identities have no place in it. Codes: CodeBackupRunning, CodeBusy, CodeAudit, CodeDamaged.
func (b *backupAPI) Write(ctx context.Context, by countersign.Caller, w io.Writer) error {
	if !b.one.TryLock() {
		return countersign.Errorf(countersign.CodeBackupRunning, "another backup is being made")
	}
	defer b.one.Unlock()
	event := audit.Event{Type: eventBackup, Outcome: audit.Intent, By: by, Subject: b.cfg.Domain}
	if _, err := b.audit.Append(ctx, event); err != nil {
		return err
	}
	m, err := b.write(ctx, w)
	event.Outcome, event.Detail = audit.OK, map[string]any{"files": len(m.Files), "audit_seq": m.Audit.Seq}
	if err != nil {
		event.Outcome, event.Code, event.Detail = audit.Failed, countersign.AsError(err).Code, nil
	}
	if _, untold := b.audit.Append(context.WithoutCancel(ctx), event); untold != nil {
		return untold
	}
	return err
}

func (b *backupAPI) write(ctx context.Context, w io.Writer) (archive.Manifest, error) {
	// What comes before the database is held back, so that a copy that can't begin is an error and not half an answer.
	held := bufio.NewWriterSize(w, 64<<10)
	a, err := archive.NewWriter(held)
	if err != nil {
		return archive.Manifest{}, err
	}
	m := archive.Manifest{Made: b.now().UTC(), Software: b.version, Domain: b.cfg.Domain, Issuer: b.cfg.Issuer}
	for _, root := range b.ca.Roots() {
		sum := sha256.Sum256(root.Raw)
		m.Roots = append(m.Roots, hex.EncodeToString(sum[:]))
	}
	store := func() error {
		// An outcome is recorded after its change, so what is recorded here is in the copy. The log goes on while that is sent.
		m.Store = b.audit.Head().Seq
		return a.Add(archive.Database, func(w io.Writer) error { return b.store.Backup(ctx, w) })
	}
	head, err := b.audit.Copy(ctx, store, func(name string, write func(io.Writer) error) error {
		return a.Add(archive.Audit+name, write)
	})
	if err != nil {
		return archive.Manifest{}, err
	}
	m.Audit = archive.End(head)
	for _, path := range []string{b.dir.Root(), b.dir.config()} {
		body, err := readBounded(path, maxConfigFile)
		if err != nil {
			return archive.Manifest{}, err
		}
		if err := a.Add(filepath.Base(path), func(w io.Writer) error { _, err := io.Copy(w, bytes.NewReader(body)); return err }); err != nil {
			return archive.Manifest{}, err
		}
	}
	if err := a.Finish(m); err != nil {
		return archive.Manifest{}, err
	}
	m.Files = a.Files()
	return m, held.Flush()
}
