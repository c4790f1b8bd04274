package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"time"

	countersign "github.com/countersign/countersign"
)

// MaxSearch is the largest Limit of a [Query].
const MaxSearch = 1000

const defaultSearch = 100

// Query chooses events: those to which every field that is set applies.
type Query struct {
	After, Before uint64    // sequences, both exclusive; Before 0: no bound
	Since, Until  time.Time // both inclusive
	Type          string    // exactly, or all of an area: "token."
	Subject       string    // exactly
	By            string    // exactly a caller's name, ID, serial, proxy or join token
	RequestID     string    // exactly
	Text          string    // occurs anywhere in the event's JSON
	Outcome       Outcome
	Limit         int  // 1 to MaxSearch; 0: 100
	Newest        bool // the newest first; else the oldest first
}

// Search finds events that are durable when it begins. The newest first, it reads backwards no farther than it must;
// segments outside Since and Until are not read. Its memory is bounded by Limit. A query that can't be is
// CodeAuditQuery, a damaged record CodeDamaged.
func (l *Log) Search(ctx context.Context, q Query) ([]Record, error) {
	m, err := newMatcher(q)
	if err != nil {
		return nil, err
	}
	head := l.head.Load().seq
	segs := l.index.all()
	found := make([]Record, 0, min(m.q.Limit, defaultSearch))
	for n := range segs {
		i := n
		if q.Newest {
			i = len(segs) - 1 - n
		}
		if len(found) == m.q.Limit {
			break
		}
		if !m.mayHold(segs, i, head) {
			continue
		}
		if err := l.searchSegment(ctx, m, segs, i, head, &found); err != nil && !l.removed(segs[i].first, err) {
			return nil, err
		}
	}
	return found, nil
}

// searchSegment adds to found what matches in segs[i], block by block in the direction of the query.
func (l *Log) searchSegment(ctx context.Context, m *matcher, segs []segmentInfo, i int, head uint64, found *[]Record) error {
	blocks := segs[i].marks
	if len(blocks) == 0 {
		blocks = []mark{{segs[i].first, headerSize}}
	}
	last := lastOf(segs, i, head)
	for n := range blocks {
		b := n
		if m.q.Newest {
			b = len(blocks) - 1 - n
		}
		end := last
		if b+1 < len(blocks) {
			end = min(last, blocks[b+1].seq-1)
		}
		if blocks[b].seq > end || m.outside(blocks[b].seq, end) {
			continue
		}
		if err := l.searchBlock(ctx, m, segs[i], blocks[b], end, found); err != nil {
			return err
		}
		if len(*found) == m.q.Limit {
			return nil
		}
	}
	return nil
}

// searchBlock reads one block forwards. When the newest are wanted, only the last matches of it are kept.
func (l *Log) searchBlock(ctx context.Context, m *matcher, seg segmentInfo, from mark, end uint64, found *[]Record) error {
	want := m.q.Limit - len(*found)
	var matches []Record
	var bad error
	err := l.scan(ctx, seg, from, end, func(f frame, sum hash) bool {
		rec, ok, err := m.match(f, sum)
		if err != nil {
			bad = damaged(seg.first, from.offset, f.seq, err)
			return false
		}
		if !ok {
			return true
		}
		matches = append(matches, rec)
		if m.q.Newest && len(matches) >= 2*want {
			matches = slices.Delete(matches, 0, len(matches)-want)
		}
		return m.q.Newest || len(matches) < want
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return err
	}
	if m.q.Newest {
		slices.Reverse(matches)
	}
	*found = append(*found, matches[:min(want, len(matches))]...)
	return nil
}

// matcher is a query, prepared.
type matcher struct {
	q            Query
	since, until int64    // Unix nanoseconds
	needles      [][]byte // must occur in the payload; what does not have them is not decoded
}

func newMatcher(q Query) (*matcher, error) {
	if q.Limit == 0 {
		q.Limit = defaultSearch
	}
	if q.Limit < 0 || q.Limit > MaxSearch {
		return nil, badQuery("the limit is %d; it can be 1 to %d", q.Limit, MaxSearch)
	}
	if q.Outcome != "" && !validOutcome(q.Outcome) {
		return nil, badQuery("there is no outcome %q: ok, denied, failed and intent are", q.Outcome)
	}
	m := &matcher{q: q, since: minTime, until: maxTime}
	if !q.Since.IsZero() {
		m.since = clampTime(q.Since)
	}
	if !q.Until.IsZero() {
		m.until = clampTime(q.Until)
	}
	if m.since > m.until {
		return nil, badQuery("the time begins after it ends")
	}
	for _, s := range []string{q.Subject, q.By, q.RequestID} {
		if s == "" {
			continue
		}
		needle, err := quoted(s)
		if err != nil {
			return nil, badQuery("%q can't be searched for", s)
		}
		m.needles = append(m.needles, needle)
	}
	for _, s := range []string{q.Type, string(q.Outcome), q.Text} {
		if s != "" {
			m.needles = append(m.needles, []byte(s))
		}
	}
	return m, nil
}

const (
	minTime = -1 << 63
	maxTime = 1<<63 - 1
)

// clampTime is t in Unix nanoseconds, which reach from 1677 to 2262.
func clampTime(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, minTime)):
		return minTime
	case t.After(time.Unix(0, maxTime)):
		return maxTime
	}
	return t.UnixNano()
}

func badQuery(format string, args ...any) error {
	return countersign.Errorf(countersign.CodeAuditQuery, format, args...)
}

// quoted is s as the payload has it.
func quoted(s string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(s)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// mayHold tells whether segs[i] can have a match by its sequences and times.
func (m *matcher) mayHold(segs []segmentInfo, i int, head uint64) bool {
	s := segs[i]
	last := lastOf(segs, i, head)
	if last < s.first || m.outside(s.first, last) {
		return false
	}
	return s.newest >= m.since && s.oldest <= m.until
}

// outside tells whether no sequence from first to last is asked for.
func (m *matcher) outside(first, last uint64) bool {
	return last <= m.q.After || m.q.Before != 0 && first >= m.q.Before
}

func (m *matcher) match(f frame, sum hash) (Record, bool, error) {
	if f.kind != kindEvent || m.outside(f.seq, f.seq) || f.wall < m.since || f.wall > m.until {
		return Record{}, false, nil
	}
	for _, needle := range m.needles {
		if !bytes.Contains(f.payload, needle) {
			return Record{}, false, nil
		}
	}
	rec, err := decodeRecord(f.seq, f.wall, f.payload, sum)
	if err != nil {
		return Record{}, false, err
	}
	return rec, m.fits(rec), nil
}

func (m *matcher) fits(r Record) bool {
	q := m.q
	return (q.Type == "" || r.Type == q.Type || q.Type[len(q.Type)-1] == '.' && bytes.HasPrefix([]byte(r.Type), []byte(q.Type))) &&
		(q.Subject == "" || r.Subject == q.Subject) &&
		(q.RequestID == "" || r.RequestID == q.RequestID) &&
		(q.Outcome == "" || r.Outcome == q.Outcome) &&
		(q.By == "" || slices.Contains([]string{r.By.Name, r.By.ID, r.By.Serial, r.By.Proxy, r.By.JoinToken}, q.By))
}
