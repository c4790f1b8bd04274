package sts

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/countersign/countersign"
)

const (
	typFeed = "revocations+jwt"

	feedPage    = 360 << 10       // bytes of a page's payload: signed and encoded it stays under 512 KiB
	feedValid   = 5 * time.Minute // exp - iat
	feedRenew   = 10 * time.Second
	feedOverlap = 5 * time.Second // by which another node's record may come late
	maxPages    = 32              // that are kept
)

// feedEntry is a revocation as verifiers of our tokens get it.
type feedEntry struct {
	Kind   countersign.RevocationKind `json:"kind"`
	Value  string                     `json:"value"`
	Before int64                      `json:"before"` // NumericDate
	Until  int64                      `json:"until"`  // NumericDate: it may be forgotten then
}

// feedClaims is the payload of a page. It has no sub, aud or txn, and a typ of its own: it is no access token, and an access
// token is no page (RFC 8725 3.11).
type feedClaims struct {
	Issuer      string            `json:"iss"`
	IssuedAt    int64             `json:"iat"`
	Expires     int64             `json:"exp"`
	Since       int64             `json:"since"`
	Cursor      int64             `json:"cursor"` // to ask with next
	More        bool              `json:"more"`   // ask at once
	Revocations []json.RawMessage `json:"revocations"`
}

// FeedPage is an answer of the feed of revocations: a compact JWS. Body must not be changed.
type FeedPage struct {
	Body []byte
	ETag string // quoted
}

// madePage is a page, and what it was made from: while that stays, so does the page.
type madePage struct {
	FeedPage
	kid   string
	made  time.Time
	basis feedBasis
}

type feedBasis struct {
	count         int
	newest, whole int64
}

// feedPages keeps the pages that were made, by since. Verifiers ask mostly with the same few; who asks with others costs a
// signature each time, as often as limits.address allows.
type feedPages struct {
	mu    sync.Mutex
	pages map[int64]madePage
}

// Feed is the page of revocations that follow since, the cursor of an earlier page; 0: from the beginning. It holds what
// verifiers of our tokens need: names until all tokens with them are over, what counts by time for as long as a token of
// ours lives. A page is made at most once a second, and signed anew every 10 s, so that its exp is never near.
// Codes: those of the keyring (sealed, clock), CodeRevocations.
//
// Nothing is missed: what is being stored while a page is made has its made already, and the page's cursor stays before it;
// what other nodes store late is found because a page begins 5 s before its since.
func (s *Service) Feed(since int64) (FeedPage, error) {
	if _, _, err := s.revocations.find(countersign.TokenFacts{}); err != nil {
		return FeedPage{}, err
	}
	list, whole := s.revocations.byMade()
	basis, now := feedBasis{count: len(list), whole: whole}, s.cfg.Now()
	if len(list) > 0 {
		basis.newest = list[len(list)-1].made
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	if p, ok := s.feed.pages[since]; ok && s.stands(p, basis, now) {
		return p.FeedPage, nil
	}
	claims, err := feedClaimsOf(list, whole, since, now)
	if err != nil {
		return FeedPage{}, err
	}
	claims.Issuer = s.cfg.Issuer
	p, err := s.signPage(claims)
	if err != nil {
		return FeedPage{}, err
	}
	p.basis, p.made = basis, now
	if s.feed.pages == nil || len(s.feed.pages) >= maxPages {
		s.feed.pages = map[int64]madePage{}
	}
	s.feed.pages[since] = p
	return p.FeedPage, nil
}

// stands tells whether a page is still the answer: nothing changed, or less than a second ago; and its key is published.
func (s *Service) stands(p madePage, basis feedBasis, now time.Time) bool {
	age := now.Sub(p.made)
	keys, err := s.keys.get()
	return age >= 0 && age < feedRenew && (p.basis == basis || age < time.Second) && err == nil && keys.set.Has(p.kid)
}

// feedClaimsOf makes a page of a list by made, of which nothing is missing up to whole. It is pure.
func feedClaimsOf(list []kept, whole, since int64, now time.Time) (feedClaims, error) {
	claims := feedClaims{
		IssuedAt: now.Unix(), Expires: now.Add(feedValid).Unix(), Since: since, Cursor: whole, Revocations: []json.RawMessage{},
	}
	from := since - feedOverlap.Microseconds()
	if since > max(whole, now.UnixMicro())+2*feedOverlap.Microseconds() {
		from = 0 // no cursor of ours: it begins again
	}
	// Nothing older is shown, so nobody can make us walk over what is kept for the exchange only.
	from = max(from, now.Add(-lifetime(countersign.RevokeJTI)-margin).UnixMicro())
	first, _ := slices.BinarySearchFunc(list, from+1, func(k kept, made int64) int { return cmp.Compare(k.made, made) })
	size, last := 0, int64(0)
	for _, k := range list[first:] {
		entry, live := k.entry(now)
		if !live {
			continue
		}
		raw, err := json.Marshal(entry)
		if err != nil {
			return feedClaims{}, fmt.Errorf("write a revocation: %w", err)
		}
		if size += len(raw) + 1; size > feedPage {
			// The next page begins just behind this one: its overlap is taken off here. Beyond whole something may still be
			// missing: then it begins at whole, when that has moved on.
			if last <= whole {
				claims.More, claims.Cursor = true, last+feedOverlap.Microseconds()
			}
			break
		}
		claims.Revocations, last = append(claims.Revocations, raw), k.made
	}
	return claims, nil
}

// entry is the revocation as verifiers need it, as long as they do.
func (k kept) entry(now time.Time) (feedEntry, bool) {
	until := k.Until
	if end := k.Before.Add(longestLife + skew + margin); k.Kind != countersign.RevokeJTI && k.Kind != countersign.RevokeTransaction && end.Before(until) {
		until = end
	}
	return feedEntry{k.Kind, k.Value, k.Before.Unix(), until.Unix()}, now.Before(until)
}

func (s *Service) signPage(claims feedClaims) (madePage, error) {
	key, signer, err := s.signer("ES256")
	if err != nil {
		return madePage{}, err
	}
	payload, err := marshal(claims)
	if err != nil {
		return madePage{}, fmt.Errorf("write the feed of revocations: %w", err)
	}
	ready, err := s.signers.get(key, signer, typFeed)
	if err != nil {
		return madePage{}, err
	}
	compact, err := ready.SignDocument(payload)
	if err != nil {
		return madePage{}, err
	}
	sum := sha256.Sum256([]byte(compact))
	return madePage{FeedPage: FeedPage{Body: []byte(compact), ETag: `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`}, kid: key.ID}, nil
}
