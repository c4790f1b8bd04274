package ca

import (
	"cmp"
	"context"
	"crypto/x509"
	"slices"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/storage"
)

// The states of an authority's own certificate, computed from the clock.
const (
	AuthorityPending   = "pending"   // published; an intermediate of it, or it, is to sign later
	AuthoritySigning   = "signing"   // the intermediate that signs leaves, and its root
	AuthorityVerifying = "verifying" // signs no more; what it signed is good
	AuthorityWithdrawn = "withdrawn" // rolled back: as verifying
	AuthorityExpired   = "expired"
	AuthorityRetired   = "retired" // not published any more
)

// Issuer is a certificate of the authority itself as [Authority.Status] shows it.
type Issuer struct {
	Cert      *x509.Certificate
	Role      Profile
	Serial    string // lower-case hex, 32 digits
	State     string
	KeyID     string    // in the keyring
	SignsFrom time.Time // of intermediates that were to wait; zero: since NotBefore
	By        string    // the serial of the root that certified it; "": itself
	Own       bool      // a root that was brought, or signed by one elsewhere
	Offline   bool      // of a root: its key is not in the keyring
}

// Status is the state of the authority.
type Status struct {
	Issuers []Issuer // roots, then intermediates, oldest first; retired ones are left out
	Issued  uint64   // by this process
	Denied  uint64   // by this process
}

// Status tells what signs, until when, and how much was done since the start. Its cost does not grow with the inventory.
func (a *Authority) Status(context.Context) (Status, error) {
	out := Status{Issued: a.metrics.issuedCount.Load(), Denied: a.metrics.deniedCount.Load()}
	s, now := a.issuers.Load(), a.cfg.Now()
	for _, i := range append(s.published(ProfileRoot), s.published(ProfileIntermediate)...) {
		d := s.describe(i, now)
		d.Offline = i.Role == ProfileRoot && !a.online(i)
		out.Issuers = append(out.Issuers, d)
	}
	return out, nil
}

func (s *issuers) describe(i issuer, now time.Time) Issuer {
	d := Issuer{Cert: i.cert, Role: i.Role, Serial: i.serial, State: s.state(i, now), KeyID: i.KeyID, SignsFrom: i.SignsFrom, Own: i.Own}
	if root, ok := s.rootOf(i.cert); ok && i.Role != ProfileRoot {
		d.By = root.serial
	}
	return d
}

// state is what i is good for at now.
func (s *issuers) state(i issuer, now time.Time) string {
	if !i.Retired.IsZero() {
		return AuthorityRetired
	}
	if now.After(i.cert.NotAfter) {
		return AuthorityExpired
	}
	signing, _ := s.signing(now)
	pending, waits := s.pending(now)
	switch {
	case !i.Withdrawn.IsZero():
		return AuthorityWithdrawn
	case i.serial == signing.serial || i.Role == ProfileRoot && signs(i, signing):
		return AuthoritySigning
	case waits && (i.serial == pending.serial || i.Role == ProfileRoot && signs(i, pending)):
		return AuthorityPending
	}
	return AuthorityVerifying
}

// signs tells whether the key of root made the certificate of i.
func signs(root, i issuer) bool {
	return i.cert != nil && slices.Equal(root.cert.SubjectKeyId, i.cert.AuthorityKeyId)
}

// Holder is an owner of live certificates under one intermediate.
type Holder struct {
	ID    countersign.ID `json:"id"`
	Count int            `json:"count"`
	Until time.Time      `json:"until"` // when the last of them ends
}

// Holders are who still holds live certificates of each intermediate, by its serial; sorted by owner. It reads the whole
// inventory: about a second for each 100,000 certificates.
func (a *Authority) Holders(ctx context.Context) (map[string][]Holder, error) {
	type place struct {
		issuer string
		id     countersign.ID
	}
	found, now := map[place]*Holder{}, a.cfg.Now()
	for entry, err := range certificatesTable().All(ctx, a.cfg.Store, "") {
		if err != nil {
			return nil, storeError(err)
		}
		r := entry.Value
		if r.State != StateValid || now.After(r.NotAfter) {
			continue
		}
		h := found[place{r.Issuer, r.ID}]
		if h == nil {
			h = &Holder{ID: r.ID}
			found[place{r.Issuer, r.ID}] = h
		}
		h.Count++
		if r.NotAfter.After(h.Until) {
			h.Until = r.NotAfter
		}
	}
	out := map[string][]Holder{}
	for at, h := range found {
		out[at.issuer] = append(out[at.issuer], *h)
	}
	for _, holders := range out {
		slices.SortFunc(holders, func(x, y Holder) int { return cmp.Compare(x.ID.String(), y.ID.String()) })
	}
	return out, nil
}

// heldUntil is when the last live certificate under an intermediate ends; zero: there is none.
func (a *Authority) heldUntil(ctx context.Context, serial string) (until time.Time, holders []Holder, err error) {
	all, err := a.Holders(ctx)
	for _, h := range all[serial] {
		if h.Until.After(until) {
			until = h.Until
		}
	}
	return until, all[serial], err
}

// generation counts the changes of the authority's own certificates, so that two nodes never make two at once.
type generation struct {
	N int `json:"n"`
}

const generationKey = "authorities"

func generationTable() storage.Table[generation] { return storage.Table[generation]{Name: "ca_state"} }
