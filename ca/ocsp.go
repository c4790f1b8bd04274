package ca

import (
	"container/list"
	"context"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	ocspTTL  = time.Hour   // from an answer to its nextUpdate
	ocspKeep = ocspTTL / 2 // how long a signed answer is given again, as long as it is true
	ocspWait = time.Second // for a place to sign; then: try later
	maxKept  = 4096        // signed answers of about 900 bytes
)

// The statuses of a response (RFC 6960 4.2.1).
const (
	OCSPSuccessful   = "successful"
	OCSPMalformed    = "malformedRequest"
	OCSPInternal     = "internalError"
	OCSPTryLater     = "tryLater"
	OCSPUnauthorized = "unauthorized"
)

// OCSPResponse is the answer to one request. It is read only.
type OCSPResponse struct {
	DER    []byte
	Status string
	Shared bool // without a nonce: others may get it too, as RFC 5019 has it

	ProducedAt, ThisUpdate, NextUpdate time.Time // of OCSPSuccessful
}

func newResponders() *responders {
	// Half of the machine is left for those who are known, whatever strangers ask for.
	r := &responders{slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)), kept: &keptAnswers{at: map[string]*list.Element{}}}
	r.inUse.Store(&map[string]responder{})
	return r
}

// OCSP answers an OCSP request (RFC 6960) of anybody. All certificates in it must be of one issuer: a signature is good for
// one (4.2.2.2), and who asks for several issuers, or for one that is not ours, is unauthorized. So is who asks for what
// our root made while the root's key is offline and its last responder has ended. A serial that the issuer never made is
// unknown. What is said is read from the records at that moment; only the signature of an answer is kept, for as long as
// the records say the same. It never fails: an error is an answer too.
func (a *Authority) OCSP(ctx context.Context, request []byte) *OCSPResponse {
	answer, signed := a.answerOCSP(ctx, request)
	a.metrics.ocsp.WithLabelValues(answer.Status, strconv.FormatBool(signed)).Inc()
	return answer
}

// OCSPRefusal is the answer to what is not looked at: for [OCSPMalformed], [OCSPTryLater], and so on.
func (a *Authority) OCSPRefusal(status string) *OCSPResponse {
	answer := refusedOCSP(status)
	a.metrics.ocsp.WithLabelValues(answer.Status, "false").Inc()
	return answer
}

func refusedOCSP(status string) *OCSPResponse {
	der := ocsp.InternalErrorErrorResponse
	switch status {
	case OCSPMalformed:
		der = ocsp.MalformedRequestErrorResponse
	case OCSPTryLater:
		der = ocsp.TryLaterErrorResponse
	case OCSPUnauthorized:
		der = ocsp.UnauthorizedErrorResponse
	default:
		status = OCSPInternal
	}
	return &OCSPResponse{DER: der, Status: status}
}

func (a *Authority) answerOCSP(ctx context.Context, request []byte) (answer *OCSPResponse, signed bool) {
	asks, err := parseOCSP(request)
	if err != nil {
		return refusedOCSP(OCSPMalformed), false
	}
	by, ok := a.issuers.Load().asked(asks.asked)
	if !ok {
		return refusedOCSP(OCSPUnauthorized), false
	}
	now := a.cfg.Now()
	r, ok := (*a.ocsp.inUse.Load())[by.serial]
	if !ok || !now.Before(r.cert.NotAfter.Add(-second)) {
		if !a.online(by) {
			return refusedOCSP(OCSPUnauthorized), false
		}
		return refusedOCSP(OCSPTryLater), false // it is not made yet
	}
	is := make([]standing, 0, len(asks.asked))
	for _, id := range asks.asked {
		s, err := a.standingOf(ctx, by, id)
		if err != nil {
			return a.failedOCSP(err), false
		}
		is = append(is, s)
	}
	// A serial that is not ours is no reason to keep anything: there are as many of them as strangers like.
	keep := asks.nonce == nil && len(is) == 1 && is[0].known
	if keep {
		if kept := a.ocsp.kept.get(asks.asked[0].raw, r.KeyID, is[0], now); kept != nil {
			return kept, false
		}
	}
	answer, err = a.signOCSP(ctx, by, r, asks, is, now)
	if err != nil {
		return a.failedOCSP(err), false
	}
	if answer.Status == OCSPSuccessful && keep {
		a.ocsp.kept.put(keptAnswer{asked: asks.asked[0].raw, keyID: r.KeyID, standing: is[0], answer: answer})
	}
	return answer, answer.Status == OCSPSuccessful
}

// asked is the issuer that all of ids name. ok is false if there is none.
func (s *issuers) asked(ids []certID) (found issuer, ok bool) {
	for _, i := range append(s.published(ProfileIntermediate), s.published(ProfileRoot)...) {
		_, bits, err := keyBits(i.cert.RawSubjectPublicKeyInfo)
		if err != nil {
			continue
		}
		all := true
		for _, id := range ids {
			all = all && id.hash != otherHash && id.key == string(digestFor(id.hash, bits)) && id.name == string(digestFor(id.hash, i.cert.RawSubject))
		}
		if all {
			return i, true
		}
	}
	return issuer{}, false
}

// failedOCSP tells of a failure in the log, once a minute: strangers can't fill it.
func (a *Authority) failedOCSP(err error) *OCSPResponse {
	if unavailable(err) {
		return refusedOCSP(OCSPTryLater)
	}
	now := time.Now().Unix()
	if last := a.ocsp.told.Load(); now-last >= 60 && a.ocsp.told.CompareAndSwap(last, now) {
		a.cfg.Logger.Error("an OCSP answer", "err", err)
	}
	return refusedOCSP(OCSPInternal)
}

// signOCSP makes and signs an answer, when there is a place: so strangers take half of the machine at most.
func (a *Authority) signOCSP(ctx context.Context, by issuer, r responder, asks ocspRequest, is []standing, now time.Time) (*OCSPResponse, error) {
	select {
	case a.ocsp.slots <- struct{}{}:
	default:
		timer := time.NewTimer(ocspWait)
		defer timer.Stop()
		select {
		case a.ocsp.slots <- struct{}{}:
		case <-timer.C:
			return refusedOCSP(OCSPTryLater), nil
		case <-ctx.Done():
			return refusedOCSP(OCSPTryLater), nil
		}
	}
	defer func() { <-a.ocsp.slots }()
	signer, err := a.cfg.Keys.SignerByID(r.KeyID)
	if err != nil {
		return nil, err
	}
	p := planResponse(by, r, asks, is, now)
	checked, err := prepareResponse(p)
	if err != nil {
		return nil, err
	}
	der, err := checked.sign(signer)
	if err != nil {
		return nil, err
	}
	return &OCSPResponse{
		DER: der, Status: OCSPSuccessful, Shared: asks.nonce == nil,
		ProducedAt: p.producedAt, ThisUpdate: p.thisUpdate, NextUpdate: p.nextUpdate,
	}, nil
}

// planResponse is what an answer is to say. As a list's, its interval begins a minute back, for clocks that are behind, and
// revocations of that minute are dated back with it; and it does not outlive its responder. It is pure.
func planResponse(by issuer, r responder, asks ocspRequest, is []standing, now time.Time) responsePlan {
	p := responsePlan{
		issuer: by.cert, responder: r.cert, keyHash: r.keyHash, asked: asks.asked, nonce: asks.nonce,
		producedAt: now.UTC().Truncate(second), standing: make([]standing, 0, len(is)),
	}
	p.thisUpdate, p.nextUpdate = p.producedAt.Add(-backdate), p.producedAt.Add(ocspTTL)
	if p.nextUpdate.After(r.cert.NotAfter) {
		p.nextUpdate = r.cert.NotAfter
	}
	for _, s := range is {
		if s.revoked && s.at.After(p.thisUpdate) {
			s.at = p.thisUpdate
		}
		p.standing = append(p.standing, s)
	}
	return p
}

// keptAnswers are signed answers without a nonce, the most recently used ones. Each is found only by what is true now.
type keptAnswers struct {
	mu    sync.Mutex
	at    map[string]*list.Element
	order list.List // of keptAnswer, the most recently used first
}

type keptAnswer struct {
	asked    string // the CertID as it was sent
	keyID    string // of the responder
	standing standing
	answer   *OCSPResponse
}

// get is the answer that was signed with the key for what is said now, if it is not too old.
func (k *keptAnswers) get(asked, keyID string, is standing, now time.Time) *OCSPResponse {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.at[asked]
	if !ok {
		return nil
	}
	has := e.Value.(keptAnswer)
	age := now.Sub(has.answer.ProducedAt)
	if has.keyID != keyID || has.standing != is || age < 0 || age >= ocspKeep || !now.Before(has.answer.NextUpdate.Add(-second)) {
		return nil
	}
	k.order.MoveToFront(e)
	return has.answer
}

func (k *keptAnswers) put(one keptAnswer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.at[one.asked]; ok {
		e.Value = one
		k.order.MoveToFront(e)
		return
	}
	k.at[one.asked] = k.order.PushFront(one)
	if k.order.Len() > maxKept {
		delete(k.at, k.order.Remove(k.order.Back()).(keptAnswer).asked)
	}
}
