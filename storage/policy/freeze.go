package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// freeze is the record of what is frozen. There is one, so that both parts change in one Apply.
type freeze struct {
	countersign.Frozen
	Last     freezeChange `json:"last"`
	Recorded bool         `json:"recorded"` // as in pointer

	rev storage.Rev
}

// freezeChange is the Detail of authority.frozen and authority.thawed.
type freezeChange struct {
	What      string    `json:"what"`
	Thaw      bool      `json:"thaw,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	At        time.Time `json:"at,omitzero"`
	Recovered bool      `json:"recovered,omitempty"` // as in stateDetail
}

const freezeKey = "freeze" // among those that wait

func freezes() storage.Table[freeze] { return storage.Table[freeze]{Name: "freeze"} }

func (c freezeChange) event(by countersign.Caller) audit.Event {
	e := audit.Event{Type: "authority.frozen", By: by, Subject: c.What, Detail: c}
	if c.Thaw {
		e.Type = "authority.thawed"
	}
	return e
}

// after is what is frozen after the change, or why there is nothing to change. What is frozen already keeps its first reason.
func (c freezeChange) after(before countersign.Frozen, by string) (countersign.Frozen, *countersign.Error) {
	after, known, changed := before, false, false
	for _, part := range []struct {
		name string
		at   **countersign.Disabled
	}{{countersign.FreezeTokens, &after.Tokens}, {countersign.FreezeCertificates, &after.Certificates}} {
		if c.What != part.name && c.What != countersign.FreezeAll {
			continue
		}
		known = true
		if (*part.at == nil) != c.Thaw {
			changed = true
			*part.at = nil
			if !c.Thaw {
				*part.at = &countersign.Disabled{Reason: c.Reason, By: by, At: c.At}
			}
		}
	}
	switch {
	case !known:
		return before, countersign.Errorf(countersign.CodeParameter, "%s can't be frozen: tokens, certificates and all can", quoted(c.What))
	case !changed && c.Thaw:
		return before, countersign.Errorf(countersign.CodeFreezeState, "it is not frozen")
	case !changed:
		return before, countersign.Errorf(countersign.CodeFreezeState, "it is frozen already")
	}
	return after, nil
}

// SetFrozen freezes tokens, certificates or all, or thaws them. Like a disabled service this is no part of the document: no
// apply and no rollback undoes it. Errors: CodeRole if by is no admin, CodeParameter for an unknown what or for a reason over
// 256 bytes or with characters that do not print, CodeFreezeState if nothing would change, CodePolicyConflict, and those of the
// store and the audit log.
func (b *Book) SetFrozen(ctx context.Context, by countersign.Caller, what, reason string, frozen bool) (countersign.Frozen, error) {
	c := freezeChange{What: what, Thaw: !frozen, Reason: reason, At: b.now().UTC()}
	none := countersign.Frozen{}
	refuse := func(e *countersign.Error) (countersign.Frozen, error) {
		event := c.event(by)
		event.Subject, event.Detail = "", nil // it may be anything
		return none, b.deny(ctx, event, e)
	}
	if len(reason) > maxReason || !plain(reason) {
		return refuse(countersign.Errorf(countersign.CodeParameter, "the reason must be printable text of at most %d bytes", maxReason))
	}
	if by.Role < countersign.RoleAdmin {
		return refuse(countersign.Errorf(countersign.CodeRole, "freezing and thawing needs the role admin, not %s", by.Role))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(ctx, false); err != nil {
		return none, err
	}
	before := b.freeze
	after, denial := c.after(before.Frozen, by.Name)
	if denial != nil {
		return refuse(denial)
	}
	next := freeze{Frozen: after, Last: c}
	put := func(f freeze, cond storage.Cond) storage.Op {
		return mustPut(freezes().Put(currentKey, f, time.Time{}, cond))
	}
	err := b.commit(ctx, change{
		event: c.event(by),
		ops:   []storage.Op{put(next, storage.Cond{Rev: before.rev, Absent: before.rev == 0})},
		recorded: func(rev storage.Rev) storage.Op {
			done := next
			done.Recorded = true
			return put(done, storage.Cond{Rev: rev})
		},
		undo: func(rev storage.Rev) []storage.Op {
			if before.rev == 0 {
				return []storage.Op{freezes().Delete(currentKey, storage.Cond{Rev: rev})}
			}
			return []storage.Op{put(before, storage.Cond{Rev: rev})}
		},
	})
	if err != nil {
		return none, err
	}
	b.freeze = next
	b.publish()
	return after, nil
}

// refreshFreeze makes b.freeze what the store has, as refreshStates does. b.mu is held.
func (b *Book) refreshFreeze(ctx context.Context, patient bool) error {
	const key = freezeKey
	entry, err := freezes().Get(ctx, b.store, currentKey)
	if errors.Is(err, storage.ErrNotFound) {
		delete(b.waiting, key)
		if b.freeze.Recorded {
			return storeError(fmt.Errorf("%w: the record of what is frozen is gone", storage.ErrCorrupt))
		}
		b.freeze = freeze{}
		return nil
	}
	if err != nil {
		return storeError(err)
	}
	now := entry.Value
	now.rev = entry.Rev
	if !now.Recorded {
		if patient && !b.overdue(key, entry.Rev) {
			return nil
		}
		c := now.Last
		c.Recovered = true
		now.Recorded = true
		now.rev, err = b.recover(ctx, c.event(countersign.Caller{}), mustPut(freezes().Put(currentKey, now, time.Time{}, storage.Cond{Rev: entry.Rev})))
		if err != nil {
			return err
		}
	}
	delete(b.waiting, key)
	b.freeze = now
	return nil
}
