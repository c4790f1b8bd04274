package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/ca"
	"github.com/countersign/countersign/storage/audit"
)

// lost is what the log tells of behind a backup.
type lost struct {
	disabled    map[string]bool // services that were disabled, and not enabled since
	policies    int
	keys        int
	compromised []string // keys that were retired as such
	authorities int
	frozen      map[string]string // the reason, by what was frozen and not thawed since
	thawed      map[string]bool   // what was thawed and not frozen since
	kek         time.Time         // of the last rotation of the key-encryption key
}

func (p *parts) readLost(ctx context.Context, after uint64) (lost, error) {
	l := lost{disabled: map[string]bool{}, frozen: map[string]string{}, thawed: map[string]bool{}}
	for r, err := range p.audit.Records(ctx, after+1) {
		if err != nil {
			return l, err
		}
		// An intent without an outcome counts where that is the safe side: to withdraw a key, to freeze.
		if r.Outcome == audit.OK || r.Outcome == audit.Intent && (r.Type == "key.retired" || r.Type == "authority.frozen") {
			if err := l.note(r); err != nil {
				return l, fmt.Errorf("the audit record %d: %w", r.Seq, err)
			}
		}
	}
	return l, nil
}

// note takes up one record.
func (l *lost) note(r audit.Record) error {
	switch r.Type {
	case "service.disabled":
		l.disabled[r.Subject] = true
	case "service.enabled":
		delete(l.disabled, r.Subject)
	case "policy.applied":
		l.policies++
	case "key.created", "key.rotated":
		l.keys++
	case "kek.rotated":
		l.kek = r.Time
	case "key.retired":
		var detail struct {
			Compromised bool `json:"compromised"`
		}
		if err := json.Unmarshal(r.Detail, &detail); err != nil {
			return err
		}
		if detail.Compromised && !slices.Contains(l.compromised, r.Subject) {
			l.compromised = append(l.compromised, r.Subject)
		}
	case "authority.frozen":
		var detail struct {
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(r.Detail, &detail); err != nil {
			return err
		}
		for _, part := range frozenParts(r.Subject) {
			l.frozen[part] = detail.Reason
			delete(l.thawed, part)
		}
	case "authority.thawed":
		for _, part := range frozenParts(r.Subject) {
			delete(l.frozen, part)
			l.thawed[part] = true
		}
	case "authority.rotated", "authority.withdrawn", "authority.retired":
		l.authorities++
	}
	return nil
}

// frozenParts are what one freeze or thaw reaches.
func frozenParts(what string) []string {
	if what == countersign.FreezeAll {
		return []string{countersign.FreezeTokens, countersign.FreezeCertificates}
	}
	return []string{what}
}

// freezeAgain freezes what the log has frozen. What it has thawed and the backup has frozen stays so: that is said.
func (p *parts) freezeAgain(ctx context.Context, by countersign.Caller, l lost, done *Restored) error {
	done.Frozen = slices.AppendSeq([]string{}, maps.Keys(l.frozen))
	slices.Sort(done.Frozen)
	for _, what := range done.Frozen {
		_, err := p.book.SetFrozen(ctx, by, what, l.frozen[what], true)
		if err != nil && countersign.AsError(err).Code != countersign.CodeFreezeState { // it is so already
			return err
		}
	}
	return nil
}

// withdrawAgain takes compromised keys out of what the daemon will publish. It needs no key-encryption key.
func (p *parts) withdrawAgain(ctx context.Context, by countersign.Caller, l lost, done *Restored) error {
	done.Withdrawn = []string{}
	for _, kid := range l.compromised {
		was, err := p.keys.Withdraw(ctx, by, kid)
		if err != nil {
			return err
		}
		if was {
			done.Withdrawn = append(done.Withdrawn, kid)
		}
	}
	return nil
}

// unknown says what is not as it was. Without a newer log nobody can tell what of it happened.
func (l lost) unknown(newer bool, replayed ca.Replayed) []string {
	if !newer {
		return []string{
			"certificates that were issued after the backup are refused: their holders join again",
			"revocations of certificates and tokens, blocked lineages and disabled services after the backup are not known: repeat them, or restore again with --audit and the newest audit log",
			"policies, keys and rotations after the backup are not known: apply the newest policy; tokens of later keys are refused",
			"whether the authority was frozen, or a key retired as compromised, after the backup is not known: freeze it, retire the key (countersign key retire --compromised) again",
			"the key-encryption key must be that of the time of the backup, if it was rotated since",
			"join tokens that were used after the backup can be used again until they expire",
		}
	}
	out := []string{}
	say := func(n int, format string, args ...any) {
		if n > 0 {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(replayed.Issued, "%d certificates that were issued after the backup are refused: their holders join again", replayed.Issued)
	say(l.policies, "%d policies that were applied after the backup are not in the log: apply the newest one", l.policies)
	say(l.keys, "%d changes of signing keys after the backup are lost: tokens of later keys are refused", l.keys)
	say(l.authorities, "%d changes of roots and intermediates after the backup are lost: make them again", l.authorities)
	for _, part := range slices.Sorted(maps.Keys(l.thawed)) {
		out = append(out, part+" were thawed after the backup: if the backup has them frozen they stay so until countersign thaw "+part)
	}
	if !l.kek.IsZero() {
		out = append(out, "the key-encryption key was rotated after the backup, at "+l.kek.UTC().Format(time.RFC3339)+": the backup needs the one of before")
	}
	return out
}
