package mtls

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"time"
)

// The schedule is pure: times in, times out (research/workload.md 2.2).
const (
	firstFraction = 0.50 // of the lifetime: the window in which to renew when the authority names none
	lastFraction  = 0.67
	emergencyPart = 20 // below 1/20 of the lifetime left, no window counts

	firstRetry = time.Second
	longRetry  = 5 * time.Minute

	// However near the end, or long past it, nobody asks more often than once in 25 to 50 s when the first quick tries were in
	// vain: when the authority returns, each of a fleet is back within a minute, and they come spread over most of it.
	slowLeast = 25 * time.Second
	slowMost  = 50 * time.Second

	recheck  = 30 * time.Second // the wall clock is looked at so often: machines sleep, clocks are set
	watching = time.Second      // Dir is looked at so often by a ReadOnly source

	skewSaid = 30 * time.Second // from here on clocks differ enough to be told
)

// window is the time in which to renew: the authority's, when it names one within the certificate's life.
func window(notBefore, notAfter, after, before time.Time) (time.Time, time.Time) {
	if !after.IsZero() && !before.Before(after) && !after.Before(notBefore) && before.Before(notAfter) {
		return after, before
	}
	life := notAfter.Sub(notBefore)
	return notBefore.Add(part(life, firstFraction)), notBefore.Add(part(life, lastFraction))
}

func part(d time.Duration, f float64) time.Duration { return time.Duration(float64(d) * f) }

// renewAt draws the time of the renewal: uniform in the window, seeded by the serial alone, so that neither a restart nor
// another look draws again. (Drawing at each look makes the earliest draw win, and a fleet renew all at once.) It is never
// later than 1/20 of the lifetime before the end.
func renewAt(serial string, notBefore, notAfter, after, before time.Time) time.Time {
	from, to := window(notBefore, notAfter, after, before)
	at := from.Add(part(to.Sub(from), unit(serial)))
	if last := emergency(notBefore, notAfter); at.After(last) {
		return last
	}
	return at
}

// emergency is when 1/20 of the lifetime is left.
func emergency(notBefore, notAfter time.Time) time.Time {
	return notAfter.Add(-notAfter.Sub(notBefore) / emergencyPart)
}

// unit maps a serial to [0, 1).
func unit(serial string) float64 {
	sum := sha256.Sum256([]byte("countersign renewal " + serial))
	return float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
}

// unhurried is the first wait of who has a certificate with left to go: the quick tries of a whole fleet, each a second after
// its first failure, would all come in the second in which the authority returns.
func unhurried(left time.Duration) time.Duration { return min(max(left/2, firstRetry), slowLeast) }

// retry is how long to wait after a failure: decorrelated jitter, from first to min(5 min, left/20), where left is the
// certificate's remaining life, but at least to a time between slowLeast and slowMost, which is the wait when left is 0 or
// less. u and v are uniform in [0, 1), last is the wait before (0: none).
func retry(last, left, first time.Duration, u, v float64) time.Duration {
	slow := slowLeast + part(slowMost-slowLeast, v)
	if left <= 0 {
		return slow
	}
	next := first + part(3*max(last, first)-first, u)
	return min(next, longRetry, max(left/emergencyPart, slow))
}

// afterBusy is how long to wait when the authority named a time: one try per window, at a random point of the next one, so
// that those who were told the same do not come back together. An authority that names hours is not let outlast the
// certificate.
func afterBusy(named, left time.Duration, u float64) time.Duration {
	most := longRetry
	if left > 0 {
		most = max(left/2, firstRetry)
	}
	named = min(named, most)
	return named + part(named, u)
}

// afterPlace is how long to wait when the authority named a time for this one caller: Retry-After is cut to seconds, so who has a
// place in the same second comes at another point of the next.
func afterPlace(named, left time.Duration, u float64) time.Duration {
	most := longRetry
	if left > 0 {
		most = max(left/2, firstRetry)
	}
	return min(named, most) + part(time.Second, u)
}

// nextWait is how long to wait after err. last is the wait before, left the certificate's remaining life; none: there is no
// certificate yet.
func nextWait(err error, last, left time.Duration, none bool, u, v float64) time.Duration {
	named := busyFor(err)
	switch {
	case named > 0 && hasPlace(err):
		return afterPlace(named, left, u)
	case named > 0:
		return afterBusy(named, left, u)
	case none: // the first certificate: somebody waits for it, so it begins with a second
		return retry(last, longRetry, firstRetry, u, v)
	}
	return retry(last, left, unhurried(left), u, v)
}

// random is the u of the functions above.
func random() float64 { return rand.Float64() }
