package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// revokedRecord is a place in the index of what is revoked; all that it says stands in its key.
type revokedRecord struct{}

// revokedTable is the index of revoked certificates and compromised keys by owner, written in the Apply that revokes. It is
// a table of its own, so that its changes are revocations and nothing else. Credentials are never judged by it: an absent
// entry says nothing there (see storage.md), the states in the records do.
func revokedTable() storage.Table[revokedRecord] {
	return storage.Table[revokedRecord]{Name: "revoked_by_owner"}
}

const (
	revokedSerial = "serial/"
	revokedKey    = "key/"

	// keepRevoked is for peers whose clock is behind: to them the certificate isn't over yet.
	keepRevoked = 10 * time.Minute

	indexedKey = "revoked_indexed" // in stateTable: the index is whole
)

// revokedOps are the index entries of one revocation. key is the record of the certificate's key after it.
func revokedOps(r Record, key keyRecord) ([]storage.Op, error) {
	prefix := ownerPrefix(r.Kind, r.ID.Name())
	put, err := revokedTable().Put(prefix+revokedSerial+r.Serial, revokedRecord{}, r.NotAfter.Add(keepRevoked), storage.Cond{})
	if err != nil || key.Revoked != reasonKeyCompromise {
		return []storage.Op{put}, err
	}
	// No certificate with that key is made any more, so the newest one of them is the last.
	putKey, err := revokedTable().Put(prefix+revokedKey+r.SPKI, revokedRecord{}, key.NotAfter.Add(keepRevoked), storage.Cond{})
	return []storage.Op{put, putKey}, err
}

// indexRevoked makes the index of a store in which certificates were revoked before there was one. Entries are put
// without conditions, so that what is revoked meanwhile, or an end in the middle, does no harm.
func (a *Authority) indexRevoked(ctx context.Context) error {
	_, err := stateTable().Get(ctx, a.cfg.Store, indexedKey)
	if err == nil || !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	now, pending := a.cfg.Now(), []storage.Op(nil)
	for entry, err := range certificatesTable().All(ctx, a.cfg.Store, "") {
		if err != nil {
			return err
		}
		if r := entry.Value; r.State == StateRevoked && now.Before(r.NotAfter.Add(keepRevoked)) {
			ops, err := a.indexOps(ctx, r)
			if err != nil {
				return err
			}
			for _, op := range ops { // several certificates may have one compromised key
				if !slices.ContainsFunc(pending, func(o storage.Op) bool { return o.Key == op.Key }) {
					pending = append(pending, op)
				}
			}
		}
		if len(pending) >= storage.MaxOps-3 {
			if _, err := a.cfg.Store.Apply(ctx, pending...); err != nil {
				return err
			}
			pending = pending[:0]
		}
	}
	done, err := stateTable().Put(indexedKey, mark{}, time.Time{}, storage.Cond{})
	if err != nil {
		return err
	}
	_, err = a.cfg.Store.Apply(ctx, append(pending, done)...)
	return err
}

func (a *Authority) indexOps(ctx context.Context, r Record) ([]storage.Op, error) {
	key, err := keysTable().Get(ctx, a.cfg.Store, r.SPKI)
	if err != nil {
		return nil, fmt.Errorf("the key of the revoked certificate %s: %w", r.Serial, err)
	}
	return revokedOps(r, key.Value)
}

// revokedOf adds what is revoked of one service to serials and keys, which may together have at most most entries.
func (a *Authority) revokedOf(ctx context.Context, name string, most int, serials, keys []string) ([]string, []string, error) {
	prefix := ownerPrefix(string(ProfileService), name)
	for entry, err := range revokedTable().All(ctx, a.cfg.Store, prefix) {
		if err != nil {
			return nil, nil, storeError(err)
		}
		if len(serials)+len(keys) == most {
			return nil, nil, countersign.Errorf(countersign.CodeRevokedMany,
				"over %d certificates and keys of the callers are revoked and not over yet", most)
		}
		kind, value, _ := strings.Cut(strings.TrimPrefix(entry.Key, prefix), "/")
		switch kind + "/" {
		case revokedSerial:
			serials = append(serials, value)
		case revokedKey:
			keys = append(keys, value)
		default:
			return nil, nil, storeError(fmt.Errorf("the index of revocations has the key %q: %w", entry.Key, storage.ErrCorrupt))
		}
	}
	return serials, keys, nil
}
