package policy

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/diff"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// ApplyOptions say on what condition a document is applied.
type ApplyOptions struct {
	IfVersion int  // the version that must be in force; 0: none yet; -1: any
	DryRun    bool // check, compare and warn, but change and record nothing
}

// Applied is what an apply or a rollback did, or would do.
type Applied struct {
	Version   int      `json:"version"`            // in force now
	Previous  int      `json:"previous"`           // in force before; 0: none
	Diff      string   `json:"diff,omitempty"`     // unified, of the documents
	Warnings  []string `json:"warnings,omitempty"` // see Warnings
	Unchanged bool     `json:"unchanged"`          // the document is the one in force: no new version
}

// FaultsError is a refused document.
type FaultsError struct {
	Err    *countersign.Error // of CodePolicyFaults
	Faults []Fault            // in the order of their positions; never empty
}

// Error tells how many faults there are, and the first.
func (e *FaultsError) Error() string { return e.Err.Error() }

// Unwrap gives what a caller is told.
func (e *FaultsError) Unwrap() error { return e.Err }

func newFaultsError(what string, faults []Fault) *FaultsError {
	count := fmt.Sprintf("%d faults, the first in %s", len(faults), faults[0])
	if len(faults) == 1 {
		count = "a fault in " + faults[0].String()
	}
	return &FaultsError{Faults: faults, Err: countersign.Errorf(countersign.CodePolicyFaults, "%s has %s", what, count).
		WithHint("mend the document and apply it again; the policy in force stays")}
}

// submission is a document on its way in.
type submission struct {
	by       countersign.Caller
	doc      []byte
	sum      string
	event    string // the type
	comment  string
	rollback int // the version that it comes from, else 0
	options  ApplyOptions
}

// Apply checks a document and puts it in force as a new version. Errors: *[FaultsError]; CodePolicyConflict if
// another version than IfVersion is in force, or another apply was faster; CodeRole if by is no admin; and those of the
// store and the audit log, after which the old version is in force.
func (b *Book) Apply(ctx context.Context, by countersign.Caller, doc []byte, o ApplyOptions) (Applied, error) {
	return b.submit(ctx, submission{by: by, doc: doc, event: "policy.applied", options: o})
}

// Rollback puts the document of an old version in force again, as a new version. The document is checked again: it may
// have faults for this binary or this daemon. What `service disable` did stays.
func (b *Book) Rollback(ctx context.Context, by countersign.Caller, version int) (Applied, error) {
	s := submission{
		by: by, event: "policy.rolled-back", rollback: version, options: ApplyOptions{IfVersion: -1},
		comment: fmt.Sprintf("rollback to %d", version),
	}
	if by.Role >= countersign.RoleAdmin {
		_, doc, err := b.read(ctx, version)
		if err != nil {
			return Applied{}, b.refuse(ctx, s, err, nil)
		}
		s.doc = doc
	}
	return b.submit(ctx, s)
}

func (b *Book) submit(ctx context.Context, s submission) (Applied, error) {
	s.sum = sumOf(s.doc)
	if s.by.Role < countersign.RoleAdmin {
		err := countersign.Errorf(countersign.CodeRole, "changing the policy needs the role admin, not %s", s.by.Role)
		return Applied{}, b.refuse(ctx, s, err, nil)
	}
	next, faults := Parse(s.doc, b.env)
	if len(faults) > 0 {
		return Applied{}, b.refuse(ctx, s, newFaultsError("the policy", faults), faults)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(ctx, false); err != nil {
		return Applied{}, err
	}
	prev := b.base
	if want := s.options.IfVersion; want >= 0 && want != prev.Version {
		err := countersign.Errorf(countersign.CodePolicyConflict, "version %d of the policy is in force, not %d", prev.Version, want).
			WithHint("look at the changes since: countersign policy history")
		return Applied{}, b.refuse(ctx, s, err, nil)
	}
	if s.sum == b.sum {
		return Applied{Version: prev.Version, Previous: prev.Version, Unchanged: true}, nil
	}
	done, err := b.compare(ctx, s, next)
	if err != nil || s.options.DryRun {
		return done, err
	}
	if err := b.put(ctx, s, next.WithVersion(done.Version)); err != nil {
		return Applied{}, err
	}
	return done, nil
}

// compare says what the submission will change. b.mu is held.
func (b *Book) compare(ctx context.Context, s submission, next *countersign.Policy) (Applied, error) {
	prev := b.base
	var old []byte
	if prev.Version > 0 {
		var err error
		if _, old, err = b.read(ctx, prev.Version); err != nil {
			return Applied{}, err
		}
	}
	return Applied{
		Version: prev.Version + 1, Previous: prev.Version, Warnings: Warnings(prev, next),
		Diff: Diff(fmt.Sprintf("version %d", prev.Version), old, fmt.Sprintf("version %d", prev.Version+1), s.doc),
	}, nil
}

// Diff compares two documents line by line, as `diff -u` does; "" if they are the same. Time O(n log n).
func Diff(oldName string, old []byte, newName string, new []byte) string {
	return string(diff.Diff(oldName, old, newName, new))
}

// appliedDetail is the Detail of policy.applied and policy.rolled-back.
type appliedDetail struct {
	Version   int    `json:"version"`
	Previous  int    `json:"previous"`
	SHA256    string `json:"sha256"`
	Rollback  int    `json:"rollback_to,omitempty"`
	Issuers   int    `json:"issuers,omitempty"`
	Services  int    `json:"services,omitempty"`
	Calls     int    `json:"calls,omitempty"`
	Recovered bool   `json:"recovered,omitempty"` // appended after a crash, by Open or another node
}

// put stores next as the new version and puts it in force. b.mu is held, and b.base is what the store has.
func (b *Book) put(ctx context.Context, s submission, next *countersign.Policy) error {
	key, prev := versionKey(next.Version), b.base.Version
	now := pointer{Version: next.Version, SHA256: s.sum}
	cond := storage.Cond{Rev: b.baseRev, Absent: b.baseRev == 0}
	set, err := currents().Put(currentKey, now, time.Time{}, cond)
	if err != nil {
		return storeError(err)
	}
	version := Version{Version: next.Version, At: b.now().UTC(), By: s.by.Name, SHA256: s.sum, Comment: s.comment}
	describe, err := versions().Put(key, version, time.Time{}, storage.Cond{Absent: true})
	if err != nil {
		return storeError(err)
	}
	ops := []storage.Op{set, describe, {Kind: storage.Put, Table: documents, Key: key, Value: s.doc, If: storage.Cond{Absent: true}}}
	if old := next.Version - keepNewest; old > 0 {
		ops = append(ops, versions().Delete(versionKey(old), storage.Cond{}),
			storage.Op{Kind: storage.Delete, Table: documents, Key: versionKey(old)})
	}
	err = b.commit(ctx, change{
		event: audit.Event{Type: s.event, By: s.by, Subject: strconv.Itoa(next.Version), Detail: appliedDetail{
			Version: next.Version, Previous: prev, SHA256: s.sum, Rollback: s.rollback,
			Issuers: len(next.Issuers), Services: len(next.Services), Calls: len(next.Calls),
		}},
		ops: ops,
		recorded: func(rev storage.Rev) storage.Op {
			return markPointer(now, rev)
		},
		undo: func(rev storage.Rev) []storage.Op { return b.undoPut(next.Version, rev) },
	})
	if err != nil {
		return err
	}
	b.base, b.sum, b.baseRev = next, s.sum, 0 // the revision is read again before it is needed
	b.publish()
	return nil
}

// undoPut points back to the version in force and removes the new one.
func (b *Book) undoPut(version int, rev storage.Rev) []storage.Op {
	ops := []storage.Op{
		versions().Delete(versionKey(version), storage.Cond{}),
		{Kind: storage.Delete, Table: documents, Key: versionKey(version)},
	}
	if b.base.Version == 0 {
		return append(ops, currents().Delete(currentKey, storage.Cond{Rev: rev}))
	}
	back := pointer{Version: b.base.Version, SHA256: b.sum}
	return append(ops, markPointer(back, rev))
}

func markPointer(p pointer, rev storage.Rev) storage.Op {
	p.Recorded = true
	return mustPut(currents().Put(currentKey, p, time.Time{}, storage.Cond{Rev: rev}))
}

// mustPut is for records of plain fields, which always encode.
func mustPut(op storage.Op, err error) storage.Op {
	if err != nil {
		panic(err)
	}
	return op
}

// refusedDetail is the Detail of policy.refused: what was sent, but nothing of its contents.
type refusedDetail struct {
	SHA256   string `json:"sha256"`
	Bytes    int    `json:"bytes"`
	Faults   int    `json:"faults,omitempty"`
	Rollback int    `json:"rollback_to,omitempty"`
}

// refuse records that a submission was refused and gives the refusal; if it can't be recorded, that error instead.
func (b *Book) refuse(ctx context.Context, s submission, refusal error, faults []Fault) error {
	if s.options.DryRun {
		return refusal
	}
	_, err := b.audit.Append(ctx, audit.Event{
		Type: "policy.refused", Outcome: audit.Denied, By: s.by, Code: countersign.AsError(refusal).Code,
		Detail: refusedDetail{SHA256: s.sum, Bytes: len(s.doc), Faults: len(faults), Rollback: s.rollback},
	})
	if err != nil {
		return err
	}
	return refusal
}
