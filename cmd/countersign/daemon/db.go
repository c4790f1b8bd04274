package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
	"github.com/countersign/countersign/storage/bolt"
)

// DBAudit is how a database and the audit log beside it fit.
type DBAudit struct {
	Segments int        `json:"segments"`
	Bytes    int64      `json:"bytes"`
	Stored   audit.Head `json:"stored"` // the head that the database remembers
	Log      audit.Head `json:"log"`    // where the log ends
}

// DBReport is what [CheckDB] found.
type DBReport struct {
	bolt.Inspection
	Audit DBAudit `json:"audit"`
}

// CheckDB reads all of the database of a directory that no daemon has open (else a *bolt.LockedError), and holds the end of the
// audit log to it. It changes nothing. What is wrong is in Faults.
func CheckDB(ctx context.Context, dir Dir, now time.Time, progress func(records int64)) (DBReport, error) {
	found, err := bolt.Inspect(ctx, dir.database(), now, progress)
	r := DBReport{Inspection: found}
	if err != nil {
		return r, err
	}
	entries, err := os.ReadDir(dir.audit())
	if err != nil {
		r.Faults = append(r.Faults, fmt.Sprintf("the audit log can't be read: %v", err))
		return r, nil
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && audit.ValidSegment(e.Name()) {
			r.Audit.Segments, r.Audit.Bytes = r.Audit.Segments+1, r.Audit.Bytes+info.Size()
		}
	}
	if len(r.Faults) > 0 {
		return r, nil // what a damaged database remembers proves nothing
	}
	return r, r.heads(ctx, dir, now)
}

// heads holds the log to the head that the database remembers.
func (r *DBReport) heads(ctx context.Context, dir Dir, now time.Time) (err error) {
	store, err := bolt.Open(bolt.Config{Path: dir.database(), Now: func() time.Time { return now }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	switch r.Audit.Stored, err = audit.LoadHead(ctx, store); {
	case errors.Is(err, storage.ErrNotFound):
		r.Faults = append(r.Faults, "the database remembers no audit log")
		return nil
	case err != nil:
		return err
	}
	var tampered *audit.TamperedError
	if r.Audit.Log, err = audit.ReadEnd(ctx, dir.audit(), r.Audit.Stored); errors.As(err, &tampered) {
		r.Faults = append(r.Faults, tampered.Error())
		return nil
	}
	return err
}

// CompactDB writes the database anew without free pages: see [bolt.Compact].
func CompactDB(ctx context.Context, dir Dir, progress func(records int64)) (bolt.Compacted, error) {
	return bolt.Compact(ctx, dir.database(), bolt.CompactOptions{Progress: progress})
}
