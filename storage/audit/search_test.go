package audit_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	countersign "github.com/countersign/countersign"
	"github.com/countersign/countersign/storage/audit"
)

// TestSearch holds each field of a query to what a plain filter over all records finds, in both directions.
func TestSearch(t *testing.T) {
	b := newBench(t)
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	begin := now
	b.open(func(c *audit.Config) {
		c.Now = func() time.Time { now = now.Add(time.Second); return now } // one writer calls it
		c.Sign = nil
	})
	for i := range 60 {
		e := event(i)
		if i%3 == 0 {
			e.Type, e.Outcome, e.Code = "token.denied", audit.Denied, countersign.CodeNoCall
			e.By = countersign.Caller{Method: countersign.BySocket, Name: `uid 0 "root" <x>`, RequestID: "req"}
		}
		if i%5 == 0 {
			e = bulky()
			e.Subject = fmt.Sprintf("version-%d", i)
		}
		if _, err := b.log.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	all := b.records()
	tests := map[string]struct {
		q    audit.Query
		want func(audit.Record) bool
	}{
		"all":         {audit.Query{}, func(audit.Record) bool { return true }},
		"after":       {audit.Query{After: 20}, func(r audit.Record) bool { return r.Seq > 20 }},
		"before":      {audit.Query{Before: 20}, func(r audit.Record) bool { return r.Seq < 20 }},
		"between":     {audit.Query{After: 9, Before: 12}, func(r audit.Record) bool { return r.Seq > 9 && r.Seq < 12 }},
		"since":       {audit.Query{Since: all[30].Time}, func(r audit.Record) bool { return r.Seq >= 31 }},
		"until":       {audit.Query{Until: all[30].Time}, func(r audit.Record) bool { return r.Seq <= 31 }},
		"long ago":    {audit.Query{Until: begin.AddDate(-500, 0, 0)}, func(audit.Record) bool { return false }},
		"type":        {audit.Query{Type: "token.denied"}, func(r audit.Record) bool { return r.Type == "token.denied" }},
		"area":        {audit.Query{Type: "token."}, func(r audit.Record) bool { return r.Type != "policy.applied" }},
		"half a type": {audit.Query{Type: "token"}, func(audit.Record) bool { return false }},
		"subject":     {audit.Query{Subject: "orders-7"}, func(r audit.Record) bool { return r.Subject == "orders-7" }},
		"by":          {audit.Query{By: `uid 0 "root" <x>`}, func(r audit.Record) bool { return r.By.Method == "socket" }},
		"serial":      {audit.Query{By: "0a0b"}, func(r audit.Record) bool { return r.By.Serial == "0a0b" }},
		"request":     {audit.Query{RequestID: "req"}, func(r audit.Record) bool { return r.RequestID == "req" }},
		"text":        {audit.Query{Text: "<all> &"}, func(r audit.Record) bool { return r.By.Serial == "0a0b" || r.Type == "token.denied" }},
		"outcome":     {audit.Query{Outcome: audit.Denied}, func(r audit.Record) bool { return r.Outcome == audit.Denied }},
		"limit":       {audit.Query{Limit: 7}, func(audit.Record) bool { return true }},
		"and":         {audit.Query{Outcome: audit.Denied, After: 40, Limit: 2}, func(r audit.Record) bool { return r.Outcome == audit.Denied && r.Seq > 40 }},
	}
	for name, test := range tests {
		for _, newest := range []bool{false, true} {
			want := slices.DeleteFunc(slices.Clone(all), func(r audit.Record) bool { return !test.want(r) })
			if newest {
				slices.Reverse(want)
			}
			if test.q.Limit > 0 {
				want = want[:min(len(want), test.q.Limit)]
			}
			test.q.Newest = newest
			got, err := b.log.Search(context.Background(), test.q)
			if err != nil || !slices.Equal(sequences(got), sequences(want)) {
				t.Errorf("%s, newest %v: got %v %v, want %v", name, newest, sequences(got), err, sequences(want))
			}
		}
	}
}

func sequences(recs []audit.Record) []uint64 {
	all := []uint64{}
	for _, rec := range recs {
		all = append(all, rec.Seq)
	}
	return all
}

func TestBadQueries(t *testing.T) {
	b := newBench(t)
	b.open()
	b.append(1)
	now := time.Now()
	for _, q := range []audit.Query{
		{Limit: -1}, {Limit: audit.MaxSearch + 1}, {Outcome: "maybe"}, {Since: now, Until: now.Add(-1)},
	} {
		_, err := b.log.Search(context.Background(), q)
		wantCode(t, err, countersign.CodeAuditQuery)
	}
}

// Who wants the newest does not pay for the history: the old segments are gone here, and nobody notices.
func TestNewestReadsFromTheEnd(t *testing.T) {
	b := newBench(t)
	b.open()
	b.fill(3)
	recs, err := b.log.Search(context.Background(), audit.Query{Newest: true, Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range b.segments()[:2] {
		remove(b, old)
	}
	again, err := b.log.Search(context.Background(), audit.Query{Newest: true, Limit: 2})
	if err != nil || !slices.Equal(sequences(again), sequences(recs)) {
		t.Errorf("got %v %v, want %v", sequences(again), err, sequences(recs))
	}
	if _, err := b.log.Search(context.Background(), audit.Query{Limit: 2}); err == nil {
		t.Error("the oldest are found though they are gone")
	}
	for _, err := range b.log.Records(context.Background(), 1) {
		if err == nil {
			t.Error("the oldest are read though they are gone")
		}
	}
}

func TestDamageWhileReading(t *testing.T) {
	b := newBench(t)
	b.open()
	b.append(5)
	b.edit(b.segment(), func(c []byte, f []audit.FrameAt) []byte { c[f[2].Offset+100]++; return c })
	n := 0
	for _, err := range b.log.Records(context.Background(), 0) {
		if n++; n == 3 {
			wantCode(t, err, countersign.CodeDamaged)
		} else if err != nil {
			t.Errorf("record %d: %v", n, err)
		}
	}
	if n != 3 {
		t.Errorf("%d steps", n)
	}
	_, err := b.log.Search(context.Background(), audit.Query{})
	wantCode(t, err, countersign.CodeDamaged)
}
