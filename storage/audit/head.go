package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/countersign/countersign/storage"
)

// The records that the log keeps in the store.
const (
	headTable = "audit_head"
	headKey   = "head" // Head: the newest end, at most a second old
	baseKey   = "base" // base: where the oldest segment begins, once some were removed
)

// base says which records must still be there.
type base struct {
	First uint64 `json:"first"`
}

func heads() storage.Table[Head]     { return storage.Table[Head]{Name: headTable} }
func baseTable() storage.Table[base] { return storage.Table[base]{Name: headTable} }

// LoadHead reads the head that the store remembers, for [VerifyDir]. errors.Is(err, storage.ErrNotFound) holds when
// no log was ever opened with this store.
func LoadHead(ctx context.Context, s storage.Store) (Head, error) {
	entry, err := heads().Get(ctx, s, headKey)
	if err != nil {
		return Head{}, err
	}
	if _, err := parseHash(entry.Value.Hash); err != nil {
		return Head{}, fmt.Errorf("%w: the head of the audit log: %w", storage.ErrCorrupt, err)
	}
	return entry.Value, nil
}

func loadBase(ctx context.Context, s storage.Store) (base, error) {
	entry, err := baseTable().Get(ctx, s, baseKey)
	if errors.Is(err, storage.ErrNotFound) {
		return base{First: 1}, nil
	}
	return entry.Value, err
}

// putHead stores h, whatever is stored: there is one writer.
func putHead(ctx context.Context, s storage.Store, h Head) error {
	op, err := heads().Put(headKey, h, time.Time{}, storage.Cond{})
	if err != nil {
		return err
	}
	_, err = s.Apply(ctx, op)
	return err
}

func putBase(ctx context.Context, s storage.Store, b base) error {
	op, err := baseTable().Put(baseKey, b, time.Time{}, storage.Cond{})
	if err != nil {
		return err
	}
	_, err = s.Apply(ctx, op)
	return err
}
