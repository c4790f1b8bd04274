package keyring

import (
	"context"
	"errors"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// Drop deletes keys of the purposes [CA] and [OCSP], the only ones that are deleted here (else CodePurpose), for good: package ca says
// when nothing depends on them any more. Ids that are not there (any more) are no error. It is CodeSealed without a KEK.
func (r *Ring) Drop(ctx context.Context, by countersign.Caller, ids ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kek == nil {
		return sealedError()
	}
	for range conflictTries {
		st, err := load(ctx, r.cfg.Store)
		if err != nil {
			return storeError(err)
		}
		var drop []string
		for _, id := range ids {
			e, ok := st.entries[id]
			if !ok {
				continue
			}
			if !e.key.Purpose.named() {
				return countersign.Errorf(countersign.CodePurpose, "key %q is of purpose %s: only keys of the purposes %s and %s are deleted by their id", id, e.key.Purpose, CA, OCSP)
			}
			drop = append(drop, id)
		}
		if len(drop) == 0 {
			return nil
		}
		err = r.commit(ctx, by, st, change{
			event: eventDeleted, subject: strings.Join(drop, ","), drop: drop, detail: detail{Deleted: drop},
		})
		if err == nil {
			r.bury(ctx)
		}
		if !errors.Is(err, storage.ErrConflict) {
			return err
		}
	}
	return storeError(storage.ErrConflict)
}
