package conf

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time: "90s", "15m", "24h". A number without a unit is refused.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	parsed, err := time.ParseDuration(string(b))
	if err != nil {
		if _, plain := strconv.ParseFloat(string(b), 64); plain == nil {
			return fmt.Errorf("%.32q has no unit: write %ss or %sm", b, b, b)
		}
		return fmt.Errorf("%.32q is no duration: write for example 90s, 15m or 24h", b)
	}
	*d = Duration(parsed)
	return nil
}

// MarshalText writes the shortest form that UnmarshalText reads back.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is time.Duration's form without zero parts.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes: "64KiB", "1MiB". A number without a unit is refused, but for 0.
type Size int64

// The units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

// UnmarshalText reads a whole number followed by B, KiB, MiB or GiB, or 0.
func (s *Size) UnmarshalText(b []byte) error {
	if string(b) == "0" {
		*s = 0
		return nil
	}
	for _, u := range []struct {
		name string
		size Size
	}{{"KiB", KiB}, {"MiB", MiB}, {"GiB", GiB}, {"B", 1}} {
		number, ok := strings.CutSuffix(string(b), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil {
			break
		}
		*s = Size(n) * u.size
		return nil
	}
	return fmt.Errorf("%.32q is no size: write for example 512B, 64KiB or 1MiB", b)
}

// MarshalText writes the largest unit that fits.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is a whole number of the largest unit that fits.
func (s Size) String() string {
	switch {
	case s == 0:
		return "0"
	case s%GiB == 0:
		return strconv.FormatInt(int64(s/GiB), 10) + "GiB"
	case s%MiB == 0:
		return strconv.FormatInt(int64(s/MiB), 10) + "MiB"
	case s%KiB == 0:
		return strconv.FormatInt(int64(s/KiB), 10) + "KiB"
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}
