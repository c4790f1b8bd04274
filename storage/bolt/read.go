package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/countersign/countersign/storage"
)

// Bounds of one page besides its limit, so that a read transaction stays short.
const (
	maxPageBytes   = 8 << 20
	maxPageScanned = 10_000 // records, expired ones included
)

// view runs read in a read transaction and returns when what it saw is durable. Everything that read keeps is a copy.
func (s *Store) view(ctx context.Context, read func(*bbolt.Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	id, err := s.snapshot(read)
	if errors.Is(err, storage.ErrCorrupt) {
		s.log.Error("store: damaged", "err", err)
	}
	if err != nil && id == 0 {
		return err
	}
	if waitErr := s.gate.wait(ctx, id); waitErr != nil {
		return waitErr // "not found" is an answer too, and waits likewise
	}
	return err
}

func (s *Store) snapshot(read func(*bbolt.Tx) error) (id int, err error) {
	defer protect(&err)()
	since := s.gate.last()
	tx, err := s.begin(false)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() //nolint:errcheck // of a read transaction
	if id = tx.ID(); id < since {
		return 0, fmt.Errorf("%w: transaction %d was durable, now it is %d: a meta page is lost", storage.ErrCorrupt, since, id)
	}
	return id, read(tx)
}

// Get reads one record.
func (s *Store) Get(ctx context.Context, table, key string) (storage.Item, error) {
	if err := checkName(table, key); err != nil {
		return storage.Item{}, err
	}
	var item storage.Item
	err := s.view(ctx, func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(table))
		if bucket == nil {
			return storage.ErrNotFound
		}
		raw := bucket.Get([]byte(key))
		if raw == nil {
			return storage.ErrNotFound
		}
		r, err := decodeRecord(table, key, raw)
		if err != nil {
			return err
		}
		if !r.live(s.now()) {
			return storage.ErrNotFound
		}
		item = r.item([]byte(key))
		return nil
	})
	if err != nil {
		return storage.Item{}, err
	}
	return item, nil
}

// List reads one page. It may be shorter than the limit although there is a next one: a page also ends after 8 MiB of
// values and after 10,000 records of which the rest has expired.
func (s *Store) List(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error) {
	if err := checkList(table, o); err != nil {
		return storage.Page{}, err
	}
	var page storage.Page
	err := s.view(ctx, func(tx *bbolt.Tx) (err error) {
		if bucket := tx.Bucket([]byte(table)); bucket != nil {
			page, err = s.list(bucket.Cursor(), table, o)
		}
		return err
	})
	if err != nil {
		return storage.Page{}, err
	}
	return page, nil
}

func (s *Store) list(c *bbolt.Cursor, table string, o storage.ListOptions) (storage.Page, error) {
	page, now, size, last := storage.Page{}, s.now(), 0, ""
	k, v := c.Seek([]byte(max(o.Prefix, o.After)))
	for scanned := 0; k != nil && bytes.HasPrefix(k, []byte(o.Prefix)); k, v = c.Next() {
		if string(k) <= o.After {
			continue
		}
		r, err := decodeRecord(table, string(k), v)
		if err != nil {
			return storage.Page{}, err
		}
		live := r.live(now)
		if live && (len(page.Items) == o.Limit || size > 0 && size+len(r.value) > maxPageBytes) || scanned == maxPageScanned {
			page.Next = last
			break
		}
		last = string(k)
		scanned++
		if live {
			page.Items = append(page.Items, r.item(k))
			size += len(k) + len(r.value)
		}
	}
	return page, nil
}
