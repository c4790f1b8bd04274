package ca

import (
	"context"
	"errors"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// Query chooses records. The zero Query is the first page of all.
type Query struct {
	Service string // the service's name; "": of all services, operators and the daemon
	State   string // valid, revoked or expired; "": any
	After   string // of the next page, as Certificates told it
	Limit   int    // 1 to 1000; 0: 100
}

const (
	defaultPage = 100
	maxScanned  = 5000 // index entries looked at for one page, so that a rare state costs no unbounded time
)

// Certificate is the record of one certificate. Code: CodeNoCertificate.
func (a *Authority) Certificate(ctx context.Context, serial string) (Record, error) {
	entry, err := a.record(ctx, strings.ToLower(serial))
	if err != nil {
		return Record{}, err
	}
	return entry.Value.at(a.cfg.Now()), nil
}

// Certificates is a page of records, by owner and then newest first, and the After of the next page, "" at the end. A
// page may have fewer records than Limit, also none, before the end. Code: CodeParameter.
func (a *Authority) Certificates(ctx context.Context, q Query) ([]Record, string, error) {
	prefix, err := q.check()
	if err != nil {
		return nil, "", err
	}
	now, records, after := a.cfg.Now(), []Record{}, q.After
	for scanned := 0; scanned < maxScanned; {
		entries, next, err := ownersTable().Page(ctx, a.cfg.Store, storage.ListOptions{
			Prefix: prefix, After: after, Limit: q.Limit,
		})
		if err != nil {
			return nil, "", storeError(err)
		}
		for _, entry := range entries {
			scanned++
			after = entry.Key
			found, err := a.record(ctx, after[strings.LastIndexByte(after, '-')+1:])
			if absent(err) {
				continue // it expired between the two reads
			}
			if err != nil {
				return nil, "", err
			}
			if r := found.Value.at(now); q.State == "" || q.State == r.State {
				records = append(records, r)
			}
			if len(records) == q.Limit {
				return records, after, nil
			}
		}
		if next == "" {
			return records, "", nil
		}
		after = next
	}
	return records, after, nil
}

// check fills the defaults and tells the prefix of the index.
func (q *Query) check() (prefix string, err error) {
	if q.Limit == 0 {
		q.Limit = defaultPage
	}
	if q.Limit < 1 || q.Limit > storage.MaxPage {
		return "", countersign.Errorf(countersign.CodeParameter, "a page has 1 to %d records", storage.MaxPage)
	}
	switch q.State {
	case "", StateValid, StateRevoked, StateExpired:
	default:
		return "", countersign.Errorf(countersign.CodeParameter, "%.40q is no state: valid, revoked and expired are", q.State)
	}
	if q.Service != "" {
		if err := countersign.CheckName(q.Service); err != nil {
			return "", countersign.Errorf(countersign.CodeParameter, "%v", err)
		}
		prefix = ownerPrefix(string(ProfileService), q.Service)
	}
	if len(q.After) > storage.MaxKey || (q.After != "" && !strings.HasPrefix(q.After, prefix)) {
		return "", countersign.Errorf(countersign.CodeParameter, "the page's beginning is none that this listing told")
	}
	return prefix, nil
}

// record reads one record; serial is in lower case.
func (a *Authority) record(ctx context.Context, serial string) (storage.Entry[Record], error) {
	if len(serial) != 32 || strings.Trim(serial, "0123456789abcdef") != "" {
		return storage.Entry[Record]{}, errNoCertificate(serial)
	}
	entry, err := certificatesTable().Get(ctx, a.cfg.Store, serial)
	if errors.Is(err, storage.ErrNotFound) {
		return entry, errNoCertificate(serial)
	}
	if err != nil {
		return entry, storeError(err)
	}
	return entry, nil
}

func errNoCertificate(serial string) error {
	return countersign.Errorf(countersign.CodeNoCertificate, "there is no certificate %.40q on record", shortened(serial)).
		WithHint("a serial has 32 hex digits; `countersign cert list` shows them")
}

func absent(err error) bool {
	var e *countersign.Error
	return errors.As(err, &e) && e.Code == countersign.CodeNoCertificate
}

// shortened bounds what a caller can write into the audit log and into messages.
func shortened(s string) string { return s[:min(len(s), 40)] }
