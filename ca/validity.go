package ca

import (
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"time"

	"github.com/countersign/countersign"
)

const (
	backdate = time.Minute // for clocks that are behind ours
	second   = time.Second
)

// validity is the interval of a certificate that is to live for ttl: it begins up to a minute before now (a tenth of a
// lifetime under ten minutes, which would else be over at once), is made of whole seconds, and as both of its ends count
// (RFC 5280 4.1.2.5) NotAfter - NotBefore + 1 s is the lifetime. It never leaves the issuer's own interval: the lifetime
// is cut for that, down to half of what was asked, and below that the certificate is refused.
func validity(now time.Time, ttl time.Duration, issuer *x509.Certificate) (notBefore, notAfter time.Time, err error) {
	ttl = ttl.Truncate(second)
	notBefore = now.UTC().Truncate(second).Add(-min(backdate, ttl/10).Truncate(second))
	if issuer == nil {
		return notBefore, notBefore.Add(ttl - second), nil
	}
	if notBefore.Before(issuer.NotBefore) {
		notBefore = issuer.NotBefore.UTC()
	}
	notAfter = notBefore.Add(ttl - second)
	if !notAfter.After(issuer.NotAfter) {
		return notBefore, notAfter, nil
	}
	notAfter = issuer.NotAfter.UTC()
	if left := notAfter.Sub(notBefore) + second; left < ttl/2 || !now.Before(notAfter) {
		return time.Time{}, time.Time{}, countersign.Errorf(countersign.CodeIssuerExpiring,
			"the issuing certificate ends at %s, so that less than half of the %s asked for is left",
			notAfter.Format(time.RFC3339), ttl).
			WithHint("an operator makes a new one: `countersign ca rotate %s`; until then ask for a shorter lifetime, as with --ttl", successor(issuer))
	}
	return notBefore, notAfter, nil
}

// successor is what is to be rotated when issuer ends: itself.
func successor(issuer *x509.Certificate) Profile {
	if issuer.MaxPathLenZero {
		return ProfileIntermediate
	}
	return ProfileRoot
}

// renewal is the window in which to renew: from half of the lifetime to 67 % of it.
func renewal(notBefore, notAfter time.Time) (after, before time.Time) {
	lifetime := notAfter.Sub(notBefore) + second
	after = notBefore.Add(lifetime * 50 / 100)
	before = notBefore.Add(lifetime / 100 * 67)
	return after.Truncate(second), before.Truncate(second)
}

// lifetime is what is to be issued when asked was asked for (0: most), and policy or profile allow most.
func lifetime(asked, most time.Duration) (time.Duration, error) {
	if asked == 0 {
		return most, nil
	}
	if asked < minTTL || asked > most {
		return 0, countersign.Errorf(countersign.CodeTTL, "the lifetime asked for is %s; from %s to %s may be issued", asked, minTTL, most).
			WithHint("ask for none to get %s, or raise certificate.ttl of the service in the policy", most)
	}
	return asked, nil
}

// newSerial draws 128 random bits: positive, and at most 17 octets as an INTEGER (RFC 5280 4.1.2.2 allows 20).
func newSerial() (*big.Int, error) {
	var b [16]byte
	for {
		if _, err := rand.Read(b[:]); err != nil {
			return nil, fmt.Errorf("draw a serial: %w", err)
		}
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n, nil
		}
	}
}

// serialText is the one spelling of a serial in records, files and the API: 32 lower-case hex digits.
func serialText(n *big.Int) string { return fmt.Sprintf("%032x", n) }
