package mtls

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawLife draws a certificate's interval and a window, which may be any nonsense.
func drawLife(t *rapid.T) (serial string, notBefore, notAfter, after, before time.Time) {
	notBefore = time.Unix(rapid.Int64Range(1e9, 4e9).Draw(t, "notBefore"), 0)
	notAfter = notBefore.Add(time.Duration(rapid.Int64Range(int64(time.Minute), int64(90*24*time.Hour)).Draw(t, "life")))
	if rapid.Bool().Draw(t, "told") {
		after = notBefore.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(91*24*time.Hour)).Draw(t, "after")))
		before = after.Add(time.Duration(rapid.Int64Range(-int64(time.Hour), int64(91*24*time.Hour)).Draw(t, "width")))
	}
	return rapid.StringMatching("[0-9a-f]{32}").Draw(t, "serial"), notBefore, notAfter, after, before
}

func TestRenewalTimeHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		serial, notBefore, notAfter, after, before := drawLife(t)
		at := renewAt(serial, notBefore, notAfter, after, before)
		if at != renewAt(serial, notBefore, notAfter, after, before) {
			t.Fatal("a second look draws another time")
		}
		life := notAfter.Sub(notBefore)
		if at.Before(notBefore) || at.After(notAfter.Add(-life/emergencyPart)) {
			t.Fatalf("%s is not in the certificate's life, or less than 1/20 of it would be left", at)
		}
		switch good := !after.IsZero() && !before.Before(after) && !after.Before(notBefore) && before.Before(notAfter); {
		case good && (at.Before(after) && at.Before(emergency(notBefore, notAfter)) || at.After(before)):
			t.Fatalf("%s is outside of the authority's window %s to %s", at, after, before)
		case !good && (at.Before(notBefore.Add(life/2)) || at.After(notBefore.Add(part(life, 0.67)))):
			t.Fatalf("%s is outside of 0.50 to 0.67 of the lifetime", at)
		}
	})
}

func TestRetryHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u, v := rapid.Float64Range(0, 0.999999).Draw(t, "u"), rapid.Float64Range(0, 0.999999).Draw(t, "v")
		left := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(90*24*time.Hour)).Draw(t, "left"))
		last := time.Duration(rapid.Int64Range(0, int64(longRetry)).Draw(t, "last"))
		first := rapid.SampledFrom([]time.Duration{firstRetry, unhurried(left)}).Draw(t, "first")
		got := retry(last, left, first, u, v)
		switch {
		case got < firstRetry, got > longRetry:
			t.Fatalf("%s is outside of 1 s to 5 min", got)
		case left <= 0 && (got < 25*time.Second || got > 50*time.Second):
			t.Fatalf("%s, when the certificate is over", got)
		case got > max(left/emergencyPart, slowMost):
			t.Fatalf("%s, when %s are left", got, left)
		case last == 0 && left > 0 && got > 3*first:
			t.Fatalf("the first retry is after %s", got)
		}
		named := time.Duration(rapid.Int64Range(int64(time.Second), int64(24*time.Hour)).Draw(t, "named"))
		if busy := afterBusy(named, left, u); busy < min(named, longRetry) && left <= 0 || left > 2*time.Second && busy > left {
			t.Fatalf("after Retry-After %s with %s left it waits %s", named, left, busy)
		}
	})
}

// The research's trap: jitter that is drawn at each look is nearly none. Here 1 % to 99 % of a fleet's renewals take at least
// nine tenths of the window.
func TestJitterIsWide(t *testing.T) {
	notBefore := time.Unix(1.8e9, 0)
	life := 24 * time.Hour
	var at []time.Duration
	for i := range 2000 {
		at = append(at, renewAt(fmt.Sprintf("%032x", i*7919), notBefore, notBefore.Add(life), time.Time{}, time.Time{}).Sub(notBefore))
	}
	slices.Sort(at)
	spread, nominal := at[len(at)*99/100]-at[len(at)/100], part(life, lastFraction-firstFraction)
	if float64(spread) < 0.9*float64(nominal) {
		t.Errorf("p1 to p99 are %s apart, and the window is %s", spread, nominal)
	}
}
