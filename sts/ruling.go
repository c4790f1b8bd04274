package sts

import (
	lru "container/list"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/jwt"
)

// The bounds of what is remembered of rulings.
const (
	maxRulings      = 4096
	maxRulingsBytes = 4 << 20 // of their drafts and subject tokens
)

// ruling is a grant for a request that may come again: the same client with the same certificate, the same verified subject
// token and the same parameters, under the same policy. A service exchanges a user's token once for each call that it makes
// for this user, so most requests do. All that decides is in its key or judged again by [Service.recall], so that a ruling
// never gives what a fresh judgement would not. It is never changed.
type ruling struct {
	policy  *countersign.Policy // the very one
	subject *Subject
	token   *jwt.Token // that subject was read from
	mayAct  string
	grant   Grant                  // but for its times
	facts   countersign.TokenFacts // of what is minted, but for its time of issue
	claims  *draft
	record  *recordDraft
}

func (r *ruling) size() int { return r.claims.size() + r.record.size() + 2*len(r.subject.Payload) }

// rulingKey is a hash of all that a request consists of: see [rulingOf].
type rulingKey [sha256.Size]byte

// rulingOf is the key of a request by the holder of a certificate for the token with the given digest. Each part is bounded by
// its length, so no two requests have the same text. false: requests of this kind are judged anew each time.
func rulingOf(by countersign.Caller, r Request, token [sha256.Size]byte) (rulingKey, bool) {
	if by.Method != countersign.ByCertificate || by.ID.Kind() != countersign.ServiceID || r.GrantType != GrantExchange || r.ActorToken != "" {
		return rulingKey{}, false
	}
	var room [1 << 10]byte
	b := append(room[:0], token[:]...)
	b = append(b, by.Thumbprint[:]...)
	for _, word := range []string{by.ID.String(), r.ClientID, r.SubjectTokenType, r.ActorTokenType, r.RequestedTokenType} {
		b = appendPart(b, word)
	}
	for _, words := range [][]string{r.Audiences, r.Resources, r.Scopes} {
		b = binary.AppendUvarint(b, uint64(len(words)))
		for _, word := range words {
			b = appendPart(b, word)
		}
	}
	return sha256.Sum256(b), true
}

func appendPart(b []byte, word string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(word))), word...)
}

// rulings are those given most recently, of one policy. The zero value is ready; it is safe for concurrent use.
type rulings struct {
	mu     sync.Mutex
	policy *countersign.Policy // of all in at
	at     map[rulingKey]*lru.Element
	order  lru.List // of *keptRuling, the most recently used first
	bytes  int
}

type keptRuling struct {
	key rulingKey
	*ruling
}

// get is the ruling that was given under p, nil if there is none.
func (s *rulings) get(p *countersign.Policy, key rulingKey) *ruling {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.policy != p {
		return nil
	}
	e, ok := s.at[key]
	if !ok {
		return nil
	}
	s.order.MoveToFront(e)
	return e.Value.(keptRuling).ruling
}

func (s *rulings) put(key rulingKey, r *ruling) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.policy != r.policy || s.at == nil { // nothing of a policy that is not in force is kept, nor the policy itself
		s.policy, s.at, s.bytes = r.policy, make(map[rulingKey]*lru.Element), 0
		s.order.Init()
	}
	if old, ok := s.at[key]; ok {
		s.forget(old)
	}
	s.at[key] = s.order.PushFront(keptRuling{key, r})
	s.bytes += r.size()
	for len(s.at) > maxRulings || s.bytes > maxRulingsBytes {
		s.forget(s.order.Back())
	}
}

// forget drops an entry. s.mu is held.
func (s *rulings) forget(e *lru.Element) {
	gone := s.order.Remove(e).(keptRuling)
	delete(s.at, gone.key)
	s.bytes -= gone.size()
}

// recall takes x through all steps at once if the same request was granted before. It never denies: whatever is not as it was
// is judged from the beginning, by [Service.judge], which finds the reason. Judged here are all things that may have changed
// under one policy: the clock, the key that signed the subject token, its times, its revocation, the lifetime that is left.
func (s *Service) recall(x *exchange) bool {
	if x.request.GrantType != GrantExchange {
		return false
	}
	key, ok := rulingOf(x.by, x.request, x.subjectDigest())
	if !ok {
		return false
	}
	x.key, x.keyed = key, true
	r := s.rulings.get(x.policy, key)
	if r == nil || s.cfg.Keys.Guard() != nil || !s.stillSigned(r) {
		return false
	}
	now := s.cfg.Now()
	if r.subject.stillTimely(r.token, now) != nil || s.revoked(r.subject.Facts) != nil {
		return false
	}
	grant := r.grant
	if grant.live(now, r.subject); grant.Expires.Sub(now) < minLeft {
		return false
	}
	x.now, x.subject, x.mayAct, x.grant, x.granted, x.ruling = now, r.subject, r.mayAct, grant, true, r
	return true
}

// stillSigned tells whether the key that verified the subject token is still the one that its issuer publishes for it. It waits
// for nothing.
func (s *Service) stillSigned(r *ruling) bool {
	from := r.subject.External
	if from == nil {
		return s.verifyOwn(r.token) == nil
	}
	set, ok := s.issuers.ready(r.policy, from, r.token.KID)
	return ok && s.verified.Verify(r.token, set, from.Algorithms) == nil
}

// remember keeps what was granted, if the subject token came before: of those that come once nothing would be gained. A `when`
// may ask for the time, so calls with one are judged anew each time.
func (s *Service) remember(x *exchange) {
	if !x.keyed || x.ruling != nil || !x.from.again || x.grant.Call.When != "" || x.grant.Call.Condition != nil {
		return
	}
	s.rulings.put(x.key, &ruling{
		policy: x.policy, subject: x.subject, token: x.from.token, mayAct: x.mayAct, grant: x.grant, facts: x.grant.facts(), claims: x.claims, record: x.record,
	})
}
