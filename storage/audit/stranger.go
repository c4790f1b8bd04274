package audit

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	countersign "github.com/countersign/countersign"
)

const (
	maxStrangers  = 1024 // prefixes of a minute; further ones are counted together, by code
	strangerBatch = 256  // events of one write
	otherPrefix   = "other"
	noPrefix      = "none" // a caller without an address: a socket
)

// strangerKey is what refusals of unauthenticated callers are counted by.
type strangerKey struct {
	code   countersign.Code
	prefix string
}

// strangerCount is the Detail of a "request.refused" event.
type strangerCount struct {
	Prefix string    `json:"prefix"`
	Count  uint64    `json:"count"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

// strangers counts in bounded memory, so that nobody without a credential can fill the disk or the heap.
type strangers struct {
	mu     sync.Mutex
	counts map[strangerKey]strangerCount
}

func (s *strangers) init() { s.counts = make(map[strangerKey]strangerCount) }

// Stranger notes the refusal of a caller who did not prove who it is. It costs no write: once a minute, and at Close,
// each code and address prefix (/24 of IPv4, /64 of IPv6) becomes one "request.refused" event with a count. A crash
// loses at most the counts of a minute.
func (l *Log) Stranger(code countersign.Code, addr netip.Addr) {
	now := l.cfg.Now().UTC()
	l.strangers.add(strangerKey{code, prefixOf(addr)}, strangerCount{Count: 1, First: now, Last: now})
}

func prefixOf(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 24
	}
	prefix, err := addr.Prefix(bits)
	if err != nil || !addr.IsValid() {
		return noPrefix
	}
	return prefix.String()
}

func (s *strangers) add(key strangerKey, c strangerCount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.counts[key]
	if !ok && len(s.counts) >= maxStrangers {
		key.prefix = otherPrefix // at most one more for each code there is
		known, ok = s.counts[key]
	}
	if ok {
		c.Count += known.Count
		if known.First.Before(c.First) {
			c.First = known.First
		}
		if known.Last.After(c.Last) {
			c.Last = known.Last
		}
	}
	c.Prefix = key.prefix
	s.counts[key] = c
}

// drain empties the counts and returns them in a stable order.
func (s *strangers) drain() []strangerEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := make([]strangerEntry, 0, len(s.counts))
	for k, c := range s.counts {
		entries = append(entries, strangerEntry{k, c})
	}
	clear(s.counts)
	slices.SortFunc(entries, func(a, b strangerEntry) int {
		return cmp.Or(cmp.Compare(a.key.code, b.key.code), cmp.Compare(a.key.prefix, b.key.prefix))
	})
	return entries
}

type strangerEntry struct {
	key   strangerKey
	count strangerCount
}

// flushStrangers records the counts. Those that can't be recorded are kept for the next time.
func (l *Log) flushStrangers(ctx context.Context) error {
	var failed error
	for batch := range slices.Chunk(l.strangers.drain(), strangerBatch) {
		if failed == nil {
			failed = l.appendOwn(ctx, refusals(batch)...)
		}
		if failed != nil {
			for _, e := range batch {
				l.strangers.add(e.key, e.count)
			}
		}
	}
	return failed
}

func refusals(entries []strangerEntry) []Event {
	events := make([]Event, len(entries))
	for i, e := range entries {
		events[i] = Event{
			Type: "request.refused", Outcome: Denied, Subject: e.key.prefix, Code: e.key.code, Detail: e.count,
		}
	}
	return events
}
