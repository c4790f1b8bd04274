package storage

import (
	"context"
	"fmt"
	"sync"
)

// Memo remembers the decoded records of one table, by key and revision, for readers that read the same few records again
// and again. It saves the decoding and nothing else: every [Table.Recall] reads the store, so what it gives is as fresh as
// what [Table.Get] gives. The zero value is ready; it is safe for concurrent use.
type Memo[T any] struct {
	mu sync.RWMutex
	at map[string]Entry[T]
}

// maxMemo bounds a Memo: beyond it, it begins anew.
const maxMemo = 4096

// Recall is [Table.Get] with m. The entry's value is shared: what it points to must not be changed.
func (t Table[T]) Recall(ctx context.Context, s Store, m *Memo[T], key string) (Entry[T], error) {
	item, err := s.Get(ctx, t.Name, key)
	if err != nil {
		return Entry[T]{}, fmt.Errorf("read %s %s: %w", t.Name, key, err)
	}
	m.mu.RLock()
	known, ok := m.at[key]
	m.mu.RUnlock()
	// A revision never repeats for a key, so the same revision is the same record; its expiry is the engine's to judge.
	if ok && known.Rev == item.Rev {
		return known, nil
	}
	entry, err := t.decode(item)
	if err != nil {
		return Entry[T]{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil || len(m.at) >= maxMemo {
		m.at = make(map[string]Entry[T])
	}
	m.at[key] = entry
	return entry, nil
}
