package ca

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
	"github.com/countersign/countersign/storage/audit"
)

// counted is a store that counts what is read of it: gets, and records of lists.
type counted struct {
	storage.Store
	gets, listed atomic.Int64
}

func (c *counted) Get(ctx context.Context, table, key string) (storage.Item, error) {
	c.gets.Add(1)
	return c.Store.Get(ctx, table, key)
}

func (c *counted) List(ctx context.Context, table string, o storage.ListOptions) (storage.Page, error) {
	page, err := c.Store.List(ctx, table, o)
	c.listed.Add(int64(len(page.Items)))
	return page, err
}

// past puts n certificates on record like the one given, each with all that an issuance writes, ended for the given time; every
// tenth of them was revoked. n is the number of the first.
func (h *house) past(like Record, first, n int, ended time.Duration) {
	h.t.Helper()
	var ops []storage.Op
	add := func(more []storage.Op, err error) {
		h.must(err)
		if len(ops)+len(more) > storage.MaxOps {
			_, err := h.bolt.Apply(h.t.Context(), ops...)
			h.must(err)
			ops = nil
		}
		ops = append(ops, more...)
	}
	for i := first; i < first+n; i++ {
		r := like
		r.Serial, r.SPKI = fmt.Sprintf("%032x", i), fmt.Sprintf("%064x", i)
		r.Lineage, r.NotAfter = r.Serial, h.clock.now().Add(-ended)
		key := keyRecord{ID: r.ID, NotAfter: r.NotAfter}
		if i%10 == 0 {
			r.State, r.Reason, r.RevokedAt, key.Revoked = StateRevoked, reasonKeyCompromise, r.IssuedAt, reasonKeyCompromise
			add(revokedOps(r, key))
		}
		add(recordOps(r))
		put, err := keysTable().Put(r.SPKI, key, key.expires(), storage.Cond{})
		add([]storage.Op{put}, err)
		seen, err := seenTable().Put(r.Serial, struct{}{}, r.NotAfter.Add(keepExpired), storage.Cond{})
		add([]storage.Op{seen}, err)
	}
	_, err := h.bolt.Apply(h.t.Context(), ops...)
	h.must(err)
}

// TestStartReadsNoHistory: what a start reads of the store does not depend on how many certificates there were, whether they live,
// have ended, or are to be removed or were; nor does it read the audit log of before the last settled record: that may even be damaged.
func TestStartReadsNoHistory(t *testing.T) {
	start := func(n int) (gets, listed int64) {
		h := newHouse(t, nil)
		record, err := h.Certificate(t.Context(), h.join("orders", newKey(t, "")).Serial)
		h.must(err)
		h.past(record, 1, n/4, keepExpired+time.Minute)
		h.must(h.housekeep(t.Context(), 0, 0)) // these are removed
		h.past(record, n, n/4, keepExpired+time.Minute)
		h.past(record, 2*n, n/4, day)
		h.past(record, 3*n, n/4, -time.Hour)
		for range 12 {
			events := make([]audit.Event, n/20+1)
			for i := range events {
				events[i] = audit.Event{
					Type: "test.past", Outcome: audit.OK, By: countersign.Daemon("test"), Subject: "past", Detail: string(bytes.Repeat([]byte("x"), 1000)),
				}
			}
			h.must(h.log.AppendAll(t.Context(), events...))
		}
		h.must(h.housekeep(t.Context(), h.log.Head().Seq, 0)) // the daemon's tick of two seconds
		h.past(record, 4*n, n/4, keepExpired+time.Minute)
		h.close()
		spoilOldest(t, filepath.Join(h.dir, "audit"), n > 1000)
		c := new(counted)
		h.wrap = func(s storage.Store) storage.Store { c.Store = s; return c }
		h.open(false)
		if entry, err := stateTable().Get(t.Context(), h.bolt, markKey); err != nil || entry.Value.Seq != h.log.Head().Seq {
			t.Errorf("the mark is %d, and the log ends with %d: %v", entry.Value.Seq, h.log.Head().Seq, err)
		}
		return c.gets.Load(), c.listed.Load()
	}
	fewGets, fewListed := start(12)
	manyGets, manyListed := start(3000)
	if fewGets != manyGets || fewListed != manyListed || fewGets == 0 {
		t.Errorf("after 12 certificates a start reads %d and lists %d records, after 3,000 %d and %d", fewGets, fewListed, manyGets, manyListed)
	}
	t.Logf("%d gets, %d records listed", manyGets, manyListed)
}

// spoilOldest damages a record in the middle of the oldest segment of several.
func spoilOldest(t *testing.T, dir string, several bool) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "*.segment"))
	if err != nil || several != (len(segments) > 1) {
		t.Fatalf("segments %v, %v", segments, err)
	}
	if !several {
		return
	}
	body, err := os.ReadFile(segments[0])
	if err == nil {
		body[len(body)/2] ^= 1
		err = os.WriteFile(segments[0], body, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
