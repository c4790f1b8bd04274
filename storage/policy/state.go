package policy

import (
	"context"
	"maps"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

const maxReason = 256

// stateDetail is the Detail of service.disabled and service.enabled.
type stateDetail struct {
	Reason    string    `json:"reason,omitempty"`
	At        time.Time `json:"at,omitzero"`
	Recovered bool      `json:"recovered,omitempty"` // appended after a crash, by Open or another node
}

// SetDisabled disables a service of the policy in force, or enables it again. This is no part of the document: no apply
// and no rollback undoes it, and a service that leaves the policy and comes back is still disabled. Errors: CodeRole if
// by is below operator, CodeNoService, CodeServiceState, CodeParameter for a reason over 256 bytes or with characters
// that do not print, CodePolicyConflict, and those of the store and the audit log.
func (b *Book) SetDisabled(ctx context.Context, by countersign.Caller, service, reason string, disabled bool) error {
	event := audit.Event{Type: "service.enabled", By: by, Subject: service, Detail: stateDetail{Reason: reason}}
	if disabled {
		event.Type = "service.disabled"
	}
	if countersign.CheckName(service) != nil {
		event.Subject = "" // no name that could ever have been a service's; it may be anything
	}
	if len(reason) > maxReason || !plain(reason) {
		event.Detail = nil
		return b.deny(ctx, event, countersign.Errorf(countersign.CodeParameter, "the reason must be printable text of at most %d bytes", maxReason))
	}
	if by.Role < countersign.RoleOperator {
		return b.deny(ctx, event, countersign.Errorf(countersign.CodeRole, "disabling and enabling services needs the role operator, not %s", by.Role))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refresh(ctx, false); err != nil {
		return err
	}
	if _, ok := b.base.Service(service); !ok {
		return b.deny(ctx, event, countersign.Errorf(countersign.CodeNoService, "the policy in force has no service %s", quoted(service)).
			WithHint("countersign service list shows them"))
	}
	before := b.states[service]
	if before.Disabled == disabled {
		return b.deny(ctx, event, alreadyThere(service, before))
	}
	after := state{Disabled: disabled, Reason: reason, By: by.Name, At: b.now().UTC()}
	after.VoidBefore = after.At // both ways: see countersign.Service
	event.Detail = stateDetail{Reason: reason, At: after.At}
	return b.setState(ctx, event, service, before, after)
}

func alreadyThere(service string, s state) *countersign.Error {
	if !s.Disabled {
		return countersign.Errorf(countersign.CodeServiceState, "%s is not disabled", service)
	}
	return countersign.Errorf(countersign.CodeServiceState, "%s is disabled already, since %s", service, s.At.Format(time.RFC3339))
}

// setState changes the state on condition that neither it nor the policy changed in the meantime. b.mu is held.
func (b *Book) setState(ctx context.Context, event audit.Event, service string, before, after state) error {
	put := func(s state, cond storage.Cond) storage.Op {
		return mustPut(serviceStates().Put(service, s, time.Time{}, cond))
	}
	err := b.commit(ctx, change{
		event: event,
		ops: []storage.Op{
			put(after, storage.Cond{Rev: before.rev, Absent: before.rev == 0}),
			currents().Check(currentKey, storage.Cond{Rev: b.baseRev}),
		},
		recorded: func(rev storage.Rev) storage.Op {
			done := after
			done.Recorded = true
			return put(done, storage.Cond{Rev: rev})
		},
		undo: func(rev storage.Rev) []storage.Op {
			if before.rev == 0 {
				return []storage.Op{serviceStates().Delete(service, storage.Cond{Rev: rev})}
			}
			return []storage.Op{put(before, storage.Cond{Rev: rev})}
		},
	})
	if err != nil {
		return err
	}
	states := maps.Clone(b.states)
	states[service] = after
	b.states = states
	b.publish()
	return nil
}

// deny records a refusal and gives it; if it can't be recorded, that error instead.
func (b *Book) deny(ctx context.Context, event audit.Event, refusal *countersign.Error) error {
	event.Outcome, event.Code = audit.Denied, refusal.Code
	if _, err := b.audit.Append(ctx, event); err != nil {
		return err
	}
	return refusal
}
