package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"
)

// Table is a typed view of one table: values are JSON. It adds no guarantee to those of [Store].
type Table[T any] struct {
	Name string // [a-z_]{1,32}
}

// Entry is one decoded record.
type Entry[T any] struct {
	Key     string
	Value   T
	Rev     Rev
	Expires time.Time
}

// Get reads and decodes one record. A record that is no JSON of T is ErrCorrupt.
func (t Table[T]) Get(ctx context.Context, s Store, key string) (Entry[T], error) {
	item, err := s.Get(ctx, t.Name, key)
	if err != nil {
		return Entry[T]{}, fmt.Errorf("read %s %s: %w", t.Name, key, err)
	}
	return t.decode(item)
}

// Put is the operation that writes v under key if cond holds; expires may be zero.
func (t Table[T]) Put(key string, v T, expires time.Time, cond Cond) (Op, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return Op{}, fmt.Errorf("encode %s %s: %w", t.Name, key, err)
	}
	return Op{Kind: Put, Table: t.Name, Key: key, Value: value, Expires: expires, If: cond}, nil
}

// Delete is the operation that removes key if cond holds.
func (t Table[T]) Delete(key string, cond Cond) Op {
	return Op{Kind: Delete, Table: t.Name, Key: key, If: cond}
}

// Check is the operation that only demands cond of key.
func (t Table[T]) Check(key string, cond Cond) Op {
	return Op{Kind: Check, Table: t.Name, Key: key, If: cond}
}

// Page reads one page, decoded, and the After of the next one.
func (t Table[T]) Page(ctx context.Context, s Store, o ListOptions) ([]Entry[T], string, error) {
	page, err := s.List(ctx, t.Name, o)
	if err != nil {
		return nil, "", fmt.Errorf("list %s: %w", t.Name, err)
	}
	entries := make([]Entry[T], 0, len(page.Items))
	for _, item := range page.Items {
		entry, err := t.decode(item)
		if err != nil {
			return nil, "", err
		}
		entries = append(entries, entry)
	}
	return entries, page.Next, nil
}

// All walks the records with the given key prefix, page by page; it is no snapshot. It ends after the first error.
func (t Table[T]) All(ctx context.Context, s Store, prefix string) iter.Seq2[Entry[T], error] {
	return func(yield func(Entry[T], error) bool) {
		for after := ""; ; {
			entries, next, err := t.Page(ctx, s, ListOptions{Prefix: prefix, After: after, Limit: MaxPage})
			if err != nil {
				yield(Entry[T]{}, err)
				return
			}
			for _, entry := range entries {
				if !yield(entry, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			after = next
		}
	}
}

func (t Table[T]) decode(item Item) (Entry[T], error) {
	entry := Entry[T]{Key: item.Key, Rev: item.Rev, Expires: item.Expires}
	if err := json.Unmarshal(item.Value, &entry.Value); err != nil {
		return Entry[T]{}, fmt.Errorf("decode %s %s: %w (%w)", t.Name, item.Key, ErrCorrupt, err)
	}
	return entry, nil
}
