package ca

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/countersign/countersign"
)

// Name constraints (RFC 5280 4.2.1.10): the DNS names that certificates below an authority may bear. They are critical, of
// permitted dNSNames only, and stand in the root, in cross certificates and in intermediates: OpenSSL and Go hold a leaf
// against those of the root too, Java takes nothing from a trust anchor but its name and key. IP addresses are another
// form of name, which a constraint of DNS names does not speak of; so are the URIs of IDs (adr/0029).

var oidNameConstraints = asn1.ObjectIdentifier{2, 5, 29, 30}

// maxPermit bounds the suffixes of one authority: each is held against each name wherever a chain is verified.
const maxPermit = 32

// CheckPermit tells why suffixes can't be name constraints: each is a lower-case DNS name without a dot or star before it,
// once, and there are at most 32. None is right: no constraint.
func CheckPermit(suffixes []string) error {
	if len(suffixes) > maxPermit {
		return fmt.Errorf("there are %d suffixes; at most %d may be permitted", len(suffixes), maxPermit)
	}
	for i, s := range suffixes {
		if bare := strings.TrimPrefix(strings.TrimPrefix(s, "*"), "."); bare != s && bare != "" {
			return fmt.Errorf("write %.100q without what stands before it: a suffix permits the name itself and all names under it", bare)
		}
		if countersign.CheckTrustDomain(s) != nil { // the same alphabet: lower-case labels
			return fmt.Errorf("%.100q is no lower-case DNS name", s)
		}
		if slices.Contains(suffixes[:i], s) {
			return fmt.Errorf("%q stands twice", s)
		}
	}
	return nil
}

// Permits tells whether a DNS name is one of the suffixes or under one. Without suffixes all are permitted.
func Permits(suffixes []string, name string) bool {
	name = strings.ToLower(name)
	return len(suffixes) == 0 || slices.ContainsFunc(suffixes, func(s string) bool { return under(name, strings.ToLower(s)) })
}

// under: zero or more labels were added on the left. A suffix with a dot before it, which only an authority of others
// has, wants one at least.
func under(name, suffix string) bool {
	return name == suffix || strings.HasSuffix(name, "."+strings.TrimPrefix(suffix, "."))
}

// checkPermitted refuses names that no verifier would take: outside of what is configured, or of what one of the
// certificates above says, which may be of another time or another's.
func checkPermitted(names, permit []string, above []*x509.Certificate) error {
	for _, name := range names {
		if !Permits(permit, name) {
			return errOutside(name, "ca.permit, which names "+strings.Join(permit, ", ")).
				WithHint("take the name out of the policy, or give the authority another ca.permit and a new root: docs/authority.md")
		}
		for _, c := range above {
			if !Permits(c.PermittedDNSDomains, name) ||
				slices.ContainsFunc(c.ExcludedDNSDomains, func(s string) bool { return under(strings.ToLower(name), strings.ToLower(s)) }) {
				return errOutside(name, "the name constraints of the authority's certificate "+serialText(c.SerialNumber)).
					WithHint("take the name out of the policy; a new root gets the constraints of ca.permit: countersign ca rotate root")
			}
		}
	}
	return nil
}

func errOutside(name, of string) *countersign.Error {
	return countersign.Errorf(countersign.CodeNameConstraint, "the DNS name %.100q is outside of %s: nobody would take a certificate with it", name, of)
}

// permitted refuses an order whose names the authority's certificates do not permit: those of the chain that is to sign,
// and every root that somebody may still have as his only one.
func (a *Authority) permitted(dns []string) error {
	s := a.issuers.Load()
	above := certificates(s.published(ProfileRoot))
	if signing, ok := s.signing(a.cfg.Now()); ok {
		above = append(above, s.chain(signing)...)
	}
	return checkPermitted(dns, a.cfg.Permit, above)
}

// constrain puts the permitted suffixes into an authority's template.
func constrain(t *x509.Certificate, permit []string) {
	if len(permit) > 0 {
		t.PermittedDNSDomains, t.PermittedDNSDomainsCritical = permit, true
	}
}

// checkConstraints: those of an authority are the configured ones and no other; a leaf has none, and names that fit the
// configured ones and its issuer's. It shares no code with constrain and checkPermitted.
func checkConstraints(p Profile, s Subject, c *x509.Certificate) error {
	others := len(c.ExcludedDNSDomains) + len(c.PermittedIPRanges) + len(c.ExcludedIPRanges) + len(c.PermittedEmailAddresses) +
		len(c.ExcludedEmailAddresses) + len(c.PermittedURIDomains) + len(c.ExcludedURIDomains)
	var want []string
	if p.signs() {
		want = s.Permit
	}
	if others != 0 || !slices.Equal(c.PermittedDNSDomains, want) || c.PermittedDNSDomainsCritical != (len(want) > 0) {
		return errors.New("name constraints")
	}
	limits := [][]string{s.Permit}
	if s.Issuer != nil {
		limits = append(limits, s.Issuer.PermittedDNSDomains)
	}
	for _, name := range c.DNSNames {
		for _, limit := range limits {
			fits := len(limit) == 0
			for _, suffix := range limit {
				fits = fits || strings.HasSuffix("."+name, "."+strings.TrimPrefix(suffix, "."))
			}
			if !fits {
				return fmt.Errorf("the DNS name %.100q is outside the name constraints", name)
			}
		}
	}
	return nil
}
