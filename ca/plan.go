package ca

import (
	"slices"
	"time"

	"github.com/countersign/countersign"
)

// Rotation asks for a successor of the signing intermediate, or of its root together with the intermediate.
type Rotation struct {
	Role   Profile   // ProfileIntermediate or ProfileRoot
	At     time.Time // when the successor begins to sign; zero: an intermediate at once, a root after the lead
	Now    bool      // of a root: it need not wait for the lead; who trusts only older roots relies on the cross certificate
	DryRun bool      // decide only
}

// planned is a decided rotation.
type planned struct {
	role      Profile
	signsFrom time.Time
	signing   issuer // whose successor is made
	root      issuer // its root
}

// planRotation decides r. lead is how long a new root must have been published before it signs. It is pure.
func planRotation(s *issuers, r Rotation, now time.Time, lead time.Duration) (planned, error) {
	p := planned{role: r.Role, signsFrom: r.At}
	if r.Role != ProfileRoot && r.Role != ProfileIntermediate {
		return p, countersign.Errorf(countersign.CodeParameter, "there is no successor of a %.20q: root and intermediate have one", string(r.Role))
	}
	if i, waits := s.pending(now); waits {
		return p, countersign.Errorf(countersign.CodeRotationPending, "the intermediate %s takes over at %s already", i.serial, i.SignsFrom.UTC().Format(time.RFC3339)).
			WithHint("wait for that, or take it back: countersign ca rollback")
	}
	var ok bool
	if p.signing, ok = s.signing(now); !ok {
		return p, countersign.Errorf(countersign.CodeInternal, "no intermediate signs")
	}
	if p.root, ok = s.rootOf(p.signing.cert); !ok {
		return p, countersign.Errorf(countersign.CodeDamaged, "the root of the intermediate %s is not on record", p.signing.serial)
	}
	earliest := now
	if r.Role == ProfileRoot && !r.Now {
		earliest = now.Add(lead)
	}
	if r.Role == ProfileRoot && p.root.Own { // who made it makes its successor
		return p, countersign.Errorf(countersign.CodeOwnSuccessor, "the root %s was brought, and so must its successor be", p.root.serial)
	}
	if p.signsFrom.IsZero() {
		p.signsFrom = earliest
	}
	p.signsFrom = p.signsFrom.UTC().Truncate(second)
	if p.signsFrom.Before(earliest.Add(-second)) {
		return p, countersign.Errorf(countersign.CodeParameter, "the successor may sign from %s on, not from %s",
			earliest.UTC().Format(time.RFC3339), p.signsFrom.Format(time.RFC3339)).
			WithHint("a new root must reach everybody first; --now does not wait for that")
	}
	if end := p.signing.cert.NotAfter; p.signsFrom.After(end) && !now.After(end) {
		return p, countersign.Errorf(countersign.CodeParameter, "the intermediate ends at %s; nothing would sign from then until %s",
			end.UTC().Format(time.RFC3339), p.signsFrom.Format(time.RFC3339)).
			WithHint("rotate the intermediate first, or the root with --now")
	}
	return p, nil
}

// planRollback decides which intermediate is taken back. It is pure.
func planRollback(s *issuers, now time.Time) (newest issuer, err error) {
	if i, waits := s.pending(now); waits {
		return i, nil
	}
	newest, ok := s.signing(now)
	if !ok {
		return newest, countersign.Errorf(countersign.CodeInternal, "no intermediate signs")
	}
	rest := &issuers{all: slices.DeleteFunc(slices.Clone(s.all), func(i issuer) bool { return i.serial == newest.serial })}
	before, ok := rest.signing(now)
	switch {
	case !ok:
		return newest, countersign.Errorf(countersign.CodeNoRollback, "there is no older intermediate that could sign again")
	case now.After(before.cert.NotAfter):
		return newest, countersign.Errorf(countersign.CodeNoRollback, "the intermediate before, %s, ended at %s", before.serial, before.cert.NotAfter.UTC().Format(time.RFC3339)).
			WithHint("countersign ca rotate intermediate makes a new one")
	}
	return newest, nil
}

// planRetirement tells what goes when the one with the serial is retired: itself and the cross certificates that hang on it.
// Live certificates are counted elsewhere. It is pure.
func planRetirement(s *issuers, serial string, now time.Time) (gone []issuer, err error) {
	i, ok := s.find(serial)
	if !ok || i.Role == profileCross {
		return nil, countersign.Errorf(countersign.CodeNoCertificate, "there is no root or intermediate %.40q", shortened(serial)).
			WithHint("`countersign ca status` shows their serials")
	}
	inUse := func(format string, args ...any) ([]issuer, error) {
		return nil, countersign.Errorf(countersign.CodeIssuerInUse, format, args...)
	}
	switch state := s.state(i, now); {
	case state == AuthorityRetired:
		return nil, countersign.Errorf(countersign.CodeNoCertificate, "%s is retired already", i.serial)
	case state == AuthoritySigning:
		return inUse("%s signs now; rotate first", i.serial)
	case state == AuthorityPending:
		return inUse("%s is to sign later; `countersign ca rollback` takes it back", i.serial)
	}
	gone = []issuer{i}
	if i.Role == ProfileIntermediate {
		if newest, _ := s.signing(now); newest.serial == i.serial {
			return inUse("%s is the newest intermediate; rotate first", i.serial)
		}
		return gone, nil
	}
	for _, below := range s.published(ProfileIntermediate) {
		if signs(i, below) {
			return inUse("the intermediate %s of this root is not retired yet", below.serial)
		}
	}
	for _, cross := range s.published(profileCross) {
		if signs(i, cross) || cross.KeyID == i.KeyID {
			gone = append(gone, cross)
		}
	}
	return gone, nil
}

// withRoot are a pending intermediate that is taken back, and its root with the cross certificates if nothing else is
// under that.
func withRoot(s *issuers, i issuer) []issuer {
	gone := []issuer{i}
	root, ok := s.rootOf(i.cert)
	if !ok {
		return gone
	}
	for _, other := range s.published(ProfileIntermediate) {
		if other.serial != i.serial && signs(root, other) {
			return gone
		}
	}
	gone = append(gone, root)
	for _, cross := range s.published(profileCross) {
		if cross.KeyID == root.KeyID {
			gone = append(gone, cross)
		}
	}
	return gone
}

// scheduled is the rotation that is due by the clock, if one is: of the intermediate when a third of its life is left, of
// the root when less is left than two intermediates live, a fifth of its life at least and half of it at most.
func scheduled(s *issuers, now time.Time, intermediateTTL time.Duration) (Rotation, bool) {
	if _, waits := s.pending(now); waits {
		return Rotation{}, false
	}
	signing, ok := s.signing(now)
	if !ok {
		return Rotation{}, false
	}
	if root, ok := s.rootOf(signing.cert); ok {
		life, left := lived(root, now)
		if left < min(max(life/5, 2*intermediateTTL), life/2) {
			return Rotation{Role: ProfileRoot}, true
		}
	}
	return Rotation{Role: ProfileIntermediate}, intermediateDue(signing, now)
}

// intermediateDue tells whether less than a third of an intermediate's life is left.
func intermediateDue(signing issuer, now time.Time) bool {
	life, left := lived(signing, now)
	return left < life/3
}

// lived is the whole life of i, and what is left of it.
func lived(i issuer, now time.Time) (life, left time.Duration) {
	return i.cert.NotAfter.Sub(i.cert.NotBefore) + second, i.cert.NotAfter.Sub(now)
}
