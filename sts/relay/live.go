package relay

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"sync"
	"time"

	"github.com/countersign/countersign/sts/verify"
)

// admitted is a verified token with what it needs to be verified again: it was seen with the proof of its key once, on the
// connection that it came over, and that connection is not the one over which the application sends it back.
type admitted struct {
	token    string
	claims   *verify.Claims
	verifier *verify.Verifier
	peer     *x509.Certificate // whose key the caller proved; nil: at the public listener
	proved   bool              // a DPoP proof of this request was good
}

type sum [sha256.Size]byte

// live are the tokens of the requests that are being served, by handle and by token. A handle ends with its request and the
// time that is allowed after it: at most max of them are kept, those that are over leave first, and with max requests in flight
// no other is admitted. Lookups are by hash, so the time that one takes tells nothing about the handles that there are.
type live struct {
	max    int
	linger time.Duration
	now    func() time.Time

	mu      sync.Mutex
	handles map[sum]*entry
	tokens  map[sum]*entry // the youngest request with the token; the others hang on it
	over    list.List      // of *entry: those whose request is over, the oldest first
}

type entry struct {
	*admitted
	handle, token sum
	older, newer  *entry        // with the same token: callers send theirs as long as it is good
	ends          time.Time     // zero: its request is being served
	at            *list.Element // in over
}

func newLive(most int, linger time.Duration, now func() time.Time) *live {
	return &live{max: most, linger: linger, now: now, handles: map[sum]*entry{}, tokens: map[sum]*entry{}}
}

// admit gives a new handle for the token of a request; done says that the request is over. false: there are too many.
func (l *live) admit(a *admitted) (handle string, done func(), ok bool) {
	var random [16]byte
	rand.Read(random[:]) // never fails
	handle = base64.RawURLEncoding.EncodeToString(random[:])
	e := &entry{admitted: a, handle: sha256.Sum256([]byte(handle)), token: sha256.Sum256([]byte(a.token))}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire()
	if len(l.handles) >= l.max {
		oldest := l.over.Front()
		if oldest == nil {
			return "", nil, false
		}
		l.drop(oldest.Value.(*entry))
	}
	if e.older = l.tokens[e.token]; e.older != nil {
		e.older.newer = e
	}
	l.handles[e.handle], l.tokens[e.token] = e, e
	return handle, sync.OnceFunc(func() { l.end(e) }), true
}

func (l *live) end(e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.linger <= 0 {
		l.drop(e)
		return
	}
	e.ends = l.now().Add(l.linger)
	e.at = l.over.PushBack(e)
	l.expire()
}

// expire drops what is over. All linger equally long, so the list is in the order of its ends.
func (l *live) expire() {
	now := l.now()
	for front := l.over.Front(); front != nil; front = l.over.Front() {
		e := front.Value.(*entry)
		if e.ends.After(now) {
			return
		}
		l.drop(e)
	}
}

// drop forgets e. Its token is found as long as another request has it.
func (l *live) drop(e *entry) {
	delete(l.handles, e.handle)
	if e.older != nil {
		e.older.newer = e.newer
	}
	switch {
	case e.newer != nil:
		e.newer.older = e.older
	case e.older != nil:
		l.tokens[e.token] = e.older
	default:
		delete(l.tokens, e.token)
	}
	if e.at != nil {
		l.over.Remove(e.at)
		e.at = nil
	}
}

func (l *live) byHandle(handle string) (*admitted, bool) { return l.find(l.handles, handle) }
func (l *live) byToken(token string) (*admitted, bool)   { return l.find(l.tokens, token) }

func (l *live) find(in map[sum]*entry, key string) (*admitted, bool) {
	hashed := sum(sha256.Sum256([]byte(key)))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expire()
	e, ok := in[hashed]
	if !ok {
		return nil, false
	}
	return e.admitted, true
}

func (l *live) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.handles)
}
