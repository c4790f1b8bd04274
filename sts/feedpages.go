package sts

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign"
)

const (
	maxPages   = 32 // that are kept
	maxGranted = 64 // cursors that are remembered: honest pollers are seconds behind
	maxOdd     = 64 // requests with other cursors that wait
)

// feedPages keeps the pages that were made, and answers in two lanes. Verifiers ask with 0 or with a cursor that they were
// given, so with the same few: these pages are kept, and nobody waits long for one. Any other number costs a page of its own,
// which is not kept: whoever asks with many waits for himself, and for those who come with the cursor of another node or of
// before a restart, which is granted then.
type feedPages struct {
	mu      sync.Mutex // held while a page is made
	pages   map[int64]*madePage
	granted []int64 // the newest last

	odd   sync.Mutex // held while a page for another number is made; before mu
	waits atomic.Int32
}

// Feed is the page of revocations that follow since, the cursor of an earlier page; 0: from the beginning. It holds what
// verifiers of our tokens need: names until all tokens with them are over, what counts by time for as long as a token of
// ours lives. A page is made at most once a second, and signed anew every 10 s, so that its exp is never near.
// Codes: those of the keyring (sealed, clock), CodeRevocations, CodeBusy for a since that nobody was given lately.
//
// Nothing is missed: what is being stored while a page is made has its made already, and the page's cursor stays before it;
// what other nodes store late is found because a page begins 5 s before its since.
func (s *Service) Feed(since int64) (FeedPage, error) {
	if _, _, err := s.revocations.find(countersign.TokenFacts{}); err != nil {
		return FeedPage{}, err
	}
	if page, known, err := s.grantedPage(since); known {
		return page, err
	}
	if !s.feed.wait() {
		return FeedPage{}, countersign.Errorf(countersign.CodeBusy, "too many ask for revocations since a time that is no cursor").After(time.Second)
	}
	defer s.feed.leave()
	s.feed.odd.Lock()
	defer s.feed.odd.Unlock()
	p, cursor, err := s.makePage(since, s.feedBasis(), s.cfg.Now())
	if err != nil {
		return FeedPage{}, err
	}
	if !p.more { // else it would be one of as many as there are numbers
		s.feed.mu.Lock()
		defer s.feed.mu.Unlock()
		s.feed.grant(cursor)
	}
	return p.FeedPage, nil
}

// grantedPage answers who asks with 0 or a cursor that was given lately.
func (s *Service) grantedPage(since int64) (page FeedPage, known bool, err error) {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	if !s.feed.knows(since) {
		return FeedPage{}, false, nil
	}
	basis, now := s.feedBasis(), s.cfg.Now()
	if p, ok := s.feed.pages[since]; ok && s.stands(*p, basis, now) {
		p.asked = now
		return p.FeedPage, true, nil
	}
	p, cursor, err := s.makePage(since, basis, now)
	if err != nil {
		return FeedPage{}, true, err
	}
	s.feed.keep(since, &p)
	s.feed.grant(cursor)
	return p.FeedPage, true, nil
}

func (s *Service) feedBasis() feedBasis {
	list, whole := s.revocations.byMade()
	basis := feedBasis{list: list, count: len(list), whole: whole}
	if len(list) > 0 {
		basis.newest = list[len(list)-1].made
	}
	return basis
}

// makePage makes and signs a page, and tells its cursor.
func (s *Service) makePage(since int64, basis feedBasis, now time.Time) (madePage, int64, error) {
	claims, err := feedClaimsOf(basis.list, basis.whole, since, now)
	if err != nil {
		return madePage{}, 0, err
	}
	claims.Issuer = s.cfg.Issuer
	p, err := s.signPage(claims)
	if err != nil {
		return madePage{}, 0, err
	}
	basis.list = nil // the page is made; the list may be old
	p.basis, p.made, p.asked, p.more = basis, now, now, claims.More
	return p, claims.Cursor, nil
}

// knows tells whether since is 0 or was granted. mu is held.
func (f *feedPages) knows(since int64) bool { return since == 0 || slices.Contains(f.granted, since) }

// grant remembers a cursor as given. mu is held.
func (f *feedPages) grant(cursor int64) {
	if i := slices.Index(f.granted, cursor); i >= 0 {
		f.granted = slices.Delete(f.granted, i, i+1)
	}
	if f.granted = append(f.granted, cursor); len(f.granted) > maxGranted {
		delete(f.pages, f.granted[0])
		f.granted = slices.Delete(f.granted, 0, 1)
	}
}

// keep keeps a page, in the place of the one that nobody asked for the longest. mu is held.
func (f *feedPages) keep(since int64, p *madePage) {
	if f.pages == nil {
		f.pages = map[int64]*madePage{}
	}
	if _, ok := f.pages[since]; !ok && len(f.pages) >= maxPages {
		oldest, found := int64(0), false
		for c, page := range f.pages {
			if !found || page.asked.Before(f.pages[oldest].asked) {
				oldest, found = c, true
			}
		}
		delete(f.pages, oldest)
	}
	f.pages[since] = p
}

// wait takes a place in the queue for odd, if there is one.
func (f *feedPages) wait() bool {
	if f.waits.Add(1) <= maxOdd {
		return true
	}
	f.leave()
	return false
}

func (f *feedPages) leave() { f.waits.Add(-1) }
