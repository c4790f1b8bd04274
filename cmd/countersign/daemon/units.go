package daemon

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time in the configuration: "90s", "24h", "30d". A number without a unit is refused, because
// viper and YAML would read it as nanoseconds.
type Duration time.Duration

const day = 24 * time.Hour

// ParseDuration reads what time.ParseDuration reads, and whole or fractional days as "30d".
func ParseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n < 100_000 {
			return time.Duration(n * float64(day)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		if _, plain := strconv.ParseFloat(s, 64); plain == nil {
			return 0, fmt.Errorf("%q has no unit: write %ss, %sm, %sh or %sd", s, s, s, s, s)
		}
		return 0, fmt.Errorf("%q is no duration: write for example 90s, 15m, 24h or 30d", s)
	}
	return d, nil
}

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	parsed, err := ParseDuration(string(b))
	*d = Duration(parsed)
	return err
}

// MarshalText writes the shortest form that UnmarshalText reads back.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is whole days where it can, else time.Duration's form without zero parts.
func (d Duration) String() string {
	t := time.Duration(d)
	if t >= 2*day && t%day == 0 {
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := t.String()
	s = strings.Replace(s, "m0s", "m", 1)
	return strings.Replace(s, "h0m", "h", 1)
}

// Size is a number of bytes in the configuration: "64MiB".
type Size int64

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// UnmarshalText reads a whole number followed by KiB, MiB or GiB.
func (s *Size) UnmarshalText(b []byte) error {
	for _, u := range []struct {
		name string
		size int64
	}{{"KiB", kib}, {"MiB", mib}, {"GiB", gib}} {
		number, ok := strings.CutSuffix(string(b), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 32)
		if err != nil || n < 0 {
			break
		}
		*s = Size(n * u.size)
		return nil
	}
	return fmt.Errorf("%q is no size: write for example 64MiB", b)
}

// MarshalText writes the form that UnmarshalText reads back.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is the size in the largest unit that divides it.
func (s Size) String() string {
	switch n := int64(s); {
	case n != 0 && n%gib == 0:
		return fmt.Sprintf("%dGiB", n/gib)
	case n%mib == 0:
		return fmt.Sprintf("%dMiB", n/mib)
	default:
		return fmt.Sprintf("%dKiB", n/kib)
	}
}
