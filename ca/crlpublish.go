package ca

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/storage"
)

const (
	crlTick = time.Second             // how often schedule and issuers are looked at; revocations wake it
	crlRest = 1500 * time.Millisecond // the longest pause after a build, whatever that took: a revocation is listed within 5 s
)

// publisher makes lists from the index of what is revoked. It belongs to one goroutine; nobody waits for it. What it knows is
// only added to, until a certificate is over: that the index has no entry says nothing.
type publisher struct {
	a      *Authority
	known  map[serialNumber]time.Time // what the index had; when the certificate ends
	scopes map[string]*scope          // by the issuer's serial
	damage []revoked                  // of certificates whose issuer can't be read: they are listed under each
	number int64                      // the last one
	behind bool                       // the index is to be read again
	forget time.Time                  // when to look for what is over
}

// scope is what one issuer revoked.
type scope struct {
	issuer  issuer                        // its cert is nil as long as it is not known
	entries [256]map[serialNumber]revoked // by the first byte: the shard
	stale   map[string]bool               // lists that are to be made, by shard
	due     time.Time                     // when all are to be made
}

// revoked is an entry, and when its certificate ends.
type revoked struct {
	crlEntry
	notAfter time.Time
}

func newPublisher(a *Authority) *publisher {
	return &publisher{a: a, known: map[serialNumber]time.Time{}, scopes: map[string]*scope{}, behind: true}
}

// PublishCRLs keeps the lists of [Authority.CRL] up to date until ctx ends: within 5 s of each revocation, by any node, and
// on schedule. A revocation never waits for it. What it can't make it logs and tries again; until then the last list is served.
func (a *Authority) PublishCRLs(ctx context.Context) error {
	p, told := newPublisher(a), time.Time{}
	for {
		changed, begun := a.Revoked(), time.Now()
		if err := p.step(ctx); err != nil && ctx.Err() == nil && time.Since(told) > time.Minute {
			told = time.Now()
			a.cfg.Logger.Warn("certificate revocation lists", "err", err)
		}
		// A list of 200,000 takes a second of a core: a volley of revocations gets one list for many.
		if !pause(ctx, min(time.Since(begun), crlRest), nil) {
			return nil
		}
		select {
		case <-changed:
			p.behind = true
			continue
		default:
		}
		if !pause(ctx, crlTick, changed) {
			return nil
		}
		select {
		case <-changed:
			p.behind = true
		default:
		}
	}
}

// pause waits for d, or until wake is closed; false: ctx ended.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-wake:
	}
	return true
}

// step brings every list up to date. It may fail anywhere and be repeated: what was not made stays stale.
func (p *publisher) step(ctx context.Context) error {
	now := p.a.cfg.Now()
	p.follow(now)
	var failed error
	if p.behind {
		p.behind = false
		if failed = p.read(ctx); failed != nil {
			p.behind = true
		}
	}
	for _, s := range p.scopes {
		if s.issuer.cert != nil && p.a.online(s.issuer) && ctx.Err() == nil { // a root that is offline has its owner publish
			failed = errors.Join(failed, p.publish(ctx, s, now))
		}
	}
	p.tidy(now)
	return failed
}

// follow takes up new issuers, lets go of those that are retired or over, and puts under each root what it certified and is
// retired: nobody holds a certificate of that any more, and its key is gone.
func (p *publisher) follow(now time.Time) {
	all := p.a.issuers.Load()
	live := map[string]bool{}
	for _, i := range all.all {
		if i.Role == profileCross || !i.Retired.IsZero() || now.After(i.cert.NotAfter) {
			continue
		}
		live[i.serial] = true
		s := p.scope(i.serial)
		if s.issuer.cert == nil {
			s.due = now
		}
		s.issuer = i
		if i.Role != ProfileRoot {
			continue
		}
		for _, gone := range all.all {
			is := authorityStanding(i, gone)
			if !is.revoked || now.After(gone.cert.NotAfter) {
				continue
			}
			if serial, ok := parseSerial(gone.serial); ok {
				s.add(revoked{crlEntry{serial, is.at, is.reason}, gone.cert.NotAfter})
			}
		}
	}
	for serial, s := range p.scopes {
		if s.issuer.cert != nil && !live[serial] {
			p.a.lists.drop(hex.EncodeToString(s.issuer.cert.SubjectKeyId))
			delete(p.scopes, serial)
		}
	}
}

// scope is that of the issuer with the serial; a new one begins with what is listed everywhere.
func (p *publisher) scope(issuer string) *scope {
	s := p.scopes[issuer]
	if s == nil {
		s = &scope{stale: map[string]bool{}}
		for _, r := range p.damage {
			s.add(r)
		}
		p.scopes[issuer] = s
	}
	return s
}

// add puts an entry into its lists, if it is not there.
func (s *scope) add(r revoked) {
	part := &s.entries[r.serial[0]]
	if _, ok := (*part)[r.serial]; ok {
		return
	}
	if *part == nil {
		*part = map[serialNumber]revoked{}
	}
	(*part)[r.serial] = r
	s.stale[hex.EncodeToString(r.serial[:1])], s.stale[""] = true, true
}

// read takes up what the index has and the publisher does not know.
func (p *publisher) read(ctx context.Context) error {
	for entry, err := range revokedTable().All(ctx, p.a.cfg.Store, "") {
		if err != nil {
			return fmt.Errorf("read what is revoked: %w", err)
		}
		name := entry.Key[strings.LastIndexByte(entry.Key, '/')+1:]
		if !strings.HasSuffix(strings.TrimSuffix(entry.Key, name), "/"+revokedSerial) {
			continue // a key: its certificates stand there by themselves
		}
		serial, ok := parseSerial(name)
		if !ok {
			return fmt.Errorf("the index of revocations has the key %q: %w", entry.Key, storage.ErrCorrupt)
		}
		if _, ok := p.known[serial]; ok {
			continue
		}
		if err := p.take(ctx, name, serial, entry.Expires.Add(-keepRevoked)); err != nil {
			return err
		}
	}
	return nil
}

// take reads the record of a revoked certificate. If that is damaged the certificate is revoked all the same: it is listed
// under every issuer, whose serials are never each other's.
func (p *publisher) take(ctx context.Context, name string, serial serialNumber, notAfter time.Time) error {
	record, err := certificatesTable().Get(ctx, p.a.cfg.Store, name)
	switch {
	case err == nil && record.Value.Issuer != "":
		r := record.Value
		is := leafStanding(r, nil, nil)
		p.scope(r.Issuer).add(revoked{crlEntry{serial, is.at, is.reason}, notAfter})
	case err == nil || errors.Is(err, storage.ErrCorrupt) || errors.Is(err, storage.ErrNotFound):
		r := revoked{crlEntry{serial, p.a.cfg.Now().UTC(), 0}, notAfter}
		p.damage = append(p.damage, r)
		for _, s := range p.scopes {
			s.add(r)
		}
	default:
		return fmt.Errorf("read what is revoked: %w", err)
	}
	p.known[serial] = notAfter
	return nil
}

// publish makes the lists of one issuer that are stale or due, shards first: the list of everything may take long.
func (p *publisher) publish(ctx context.Context, s *scope, now time.Time) error {
	due := !now.Before(s.due)
	var failed error
	for _, shard := range p.a.shards(s.issuer) {
		if !due && !s.stale[shard] {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := p.make(s, shard, now); err != nil {
			s.stale[shard] = true
			failed = err
			break // the next one fares no better: sealed, or a clock that is not believed
		}
		delete(s.stale, shard)
	}
	if failed != nil || !due {
		return failed
	}
	s.due = now.Add(s.every())
	return nil
}

// every is how often the lists of s are made without cause.
func (s *scope) every() time.Duration {
	if s.issuer.Role == ProfileRoot {
		return rootCRLSign
	}
	return crlEvery
}

// tidy forgets certificates that are over. RFC 5280 3.3: an entry stays until it was on a list that was made on schedule after
// its certificate ended. The index doesn't have it any more by then.
func (p *publisher) tidy(now time.Time) {
	if now.Before(p.forget) {
		return
	}
	p.forget = now.Add(crlEvery)
	over := func(notAfter time.Time, every time.Duration) bool {
		return now.After(notAfter.Add(keepRevoked + every + time.Minute))
	}
	for _, s := range p.scopes {
		for _, part := range s.entries {
			maps.DeleteFunc(part, func(_ serialNumber, r revoked) bool { return over(r.notAfter, s.every()) })
		}
	}
	maps.DeleteFunc(p.known, func(_ serialNumber, notAfter time.Time) bool { return over(notAfter, crlEvery) })
	p.damage = slices.DeleteFunc(p.damage, func(r revoked) bool { return over(r.notAfter, crlEvery) })
}

// make makes one list and serves it.
func (p *publisher) make(s *scope, shard string, now time.Time) error {
	signer, err := p.a.cfg.Keys.SignerByID(s.issuer.KeyID)
	if err != nil {
		return fmt.Errorf("the lists of %s: %w", s.issuer.serial, err)
	}
	plan := p.plan(s, shard, now)
	checked, err := prepareList(plan)
	if err != nil {
		return fmt.Errorf("the list %q of %s: %w", shard, s.issuer.serial, err)
	}
	der, err := checked.sign(signer)
	if err != nil {
		return fmt.Errorf("the list %q of %s: %w", shard, s.issuer.serial, err)
	}
	p.a.lists.put(listName{hex.EncodeToString(s.issuer.cert.SubjectKeyId), shard},
		&CRL{DER: der, Number: plan.number, ThisUpdate: plan.thisUpdate, NextUpdate: plan.nextUpdate})
	return nil
}

// plan is what a list is to say. It begins a minute back, as certificates do, for clocks that are behind; and as no
// revocation may be later than its list, those of the last minute are dated back with it.
func (p *publisher) plan(s *scope, shard string, now time.Time) listPlan {
	p.number = max(p.number+1, now.UnixMicro())
	plan := listPlan{
		issuer: s.issuer.cert, number: p.number, shard: shard,
		thisUpdate: now.UTC().Truncate(second).Add(-backdate), nextUpdate: now.UTC().Truncate(second).Add(crlTTL),
	}
	if s.issuer.Role == ProfileRoot {
		plan.nextUpdate = now.UTC().Truncate(second).Add(rootCRLTTL)
	}
	if shard != "" {
		plan.url = crlURL(p.a.cfg.PKI, hex.EncodeToString(s.issuer.cert.SubjectKeyId), shard)
	}
	for first, part := range s.entries {
		if shard != "" && hex.EncodeToString([]byte{byte(first)}) != shard {
			continue
		}
		for _, r := range part {
			e := r.crlEntry
			if e.at.After(plan.thisUpdate) {
				e.at = plan.thisUpdate
			}
			plan.entries = append(plan.entries, e)
		}
	}
	slices.SortFunc(plan.entries, func(x, y crlEntry) int { return bytes.Compare(x.serial[:], y.serial[:]) })
	return plan
}

// parseSerial reads a serial as serialText spells it.
func parseSerial(text string) (n serialNumber, ok bool) {
	if len(text) != 2*len(n) || strings.ToLower(text) != text {
		return n, false
	}
	_, err := hex.Decode(n[:], []byte(text))
	return n, err == nil
}
