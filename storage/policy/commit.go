package policy

import (
	"bytes"
	"context"
	"errors"

	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// change is one change of the store with the event that tells of it.
type change struct {
	event    audit.Event
	ops      []storage.Op                   // the first one writes the guarded record, not recorded yet
	recorded func(storage.Rev) storage.Op   // marks the guarded record, which has this revision, as recorded
	undo     func(storage.Rev) []storage.Op // takes ops back while the guarded record has this revision
}

// commit makes a change that is recorded before it is in force, here or on another node. Where it may crash:
//
//	after the intent:   the audit log tells of an attempt; nothing changed.
//	after the change:   the record in the store says that it is not recorded. No node puts it in force. The next Open,
//	                    or another node after `patience`, appends the event (marked recovered) and marks the record.
//	after the event:    the same; the event is then there twice, the second one marked recovered.
//	after the marking:  all is done; only the answer is missing.
//
// If the event can't be appended the change is taken back, so that a failed audit write fails the call. b.mu is held.
func (b *Book) commit(ctx context.Context, c change) error {
	c.event.Outcome = audit.Intent
	if _, err := b.audit.Append(ctx, c.event); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // from here on the caller may leave, but the change must not stay half done
	rev, err := b.store.Apply(ctx, c.ops...)
	if errors.Is(err, storage.ErrUnknown) {
		rev, err = b.look(ctx, c.ops[0], err)
	}
	if err != nil {
		refusal := storeError(err)
		c.event.Outcome, c.event.Code = audit.Failed, refusal.Code
		if _, err := b.audit.Append(ctx, c.event); err != nil {
			b.log.ErrorContext(ctx, "policy: the failure of a change is not in the audit log", "type", c.event.Type, "err", err)
		}
		return refusal
	}
	c.event.Outcome = audit.OK
	if _, err := b.audit.Append(ctx, c.event); err != nil {
		if _, undone := b.store.Apply(ctx, c.undo(rev)...); undone != nil {
			b.log.ErrorContext(ctx, "policy: a change that could not be recorded was not taken back; it waits for its record",
				"type", c.event.Type, "subject", c.event.Subject, "err", undone)
		}
		return err
	}
	if _, err := b.store.Apply(ctx, c.recorded(rev)); err != nil {
		b.log.WarnContext(ctx, "policy: a change is recorded but not marked so; it will be recorded again",
			"type", c.event.Type, "subject", c.event.Subject, "err", err)
	}
	return nil
}

// look finds out whether a change of unknown outcome was made: whether the guarded record is what it wrote.
func (b *Book) look(ctx context.Context, guard storage.Op, unknown error) (storage.Rev, error) {
	item, err := b.store.Get(ctx, guard.Table, guard.Key)
	switch {
	case err == nil && bytes.Equal(item.Value, guard.Value):
		return item.Rev, nil
	case err == nil || errors.Is(err, storage.ErrNotFound):
		return 0, &storage.ConflictError{Found: item.Rev}
	}
	return 0, errors.Join(unknown, err)
}
