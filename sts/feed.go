package sts

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/countersign/countersign"
)

const (
	typFeed = "revocations+jwt"

	feedPage    = 360 << 10       // bytes of a page's payload: signed and encoded it stays under 512 KiB
	feedValid   = 5 * time.Minute // exp - iat
	feedRenew   = 10 * time.Second
	feedOverlap = 5 * time.Second // by which another node's record may come late
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
	asked time.Time // for the last time
	more  bool
	basis feedBasis
}

// feedBasis is what a page is made from. Of a page that was made, list is nil.
type feedBasis struct {
	list          []kept // by made
	count         int
	newest, whole int64
}

// same tells whether a page would be made from the same.
func (b feedBasis) same(c feedBasis) bool {
	return b.count == c.count && b.newest == c.newest && b.whole == c.whole
}

// stands tells whether a page is still the answer: nothing changed, or less than a second ago; and its key is published.
func (s *Service) stands(p madePage, basis feedBasis, now time.Time) bool {
	age := now.Sub(p.made)
	keys, err := s.keys.get()
	return age >= 0 && age < feedRenew && (p.basis.same(basis) || age < time.Second) && err == nil && keys.set.Has(p.kid)
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
