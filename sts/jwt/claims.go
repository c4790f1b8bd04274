package jwt

import (
	"encoding/json"
	"iter"
	"math"
	"strconv"
	"time"
)

// MaxSkew is the most that clocks are allowed to differ.
const MaxSkew = time.Minute

// maxTime is the end of the year 9999, the last second that RFC 3339 can write.
const maxTime = 253402300799

// Claims are the members of a JSON object, by their exact names: "SUB" is not "sub". A claim that is there but null
// is there, and of the wrong type for every reader. The zero Claims is empty.
type Claims struct {
	members []member
	index   map[string]int // of members, once they are many; nil before
}

type member struct {
	name string
	raw  json.RawMessage
}

// many is from when on looking through all members costs more than a map; it also bounds what an object of thousands of
// members costs.
const many = 32

// add puts a member at the end; false: the name is taken.
func (c *Claims) add(name string, raw json.RawMessage) bool {
	if c.find(name) >= 0 {
		return false
	}
	if c.members == nil {
		c.members = make([]member, 0, 8)
	}
	c.members = append(c.members, member{name, raw})
	switch n := len(c.members); {
	case n == many:
		c.index = make(map[string]int, 2*many)
		for i, m := range c.members {
			c.index[m.name] = i
		}
	case n > many:
		c.index[name] = n - 1
	}
	return true
}

// find is the place of name; -1: it is not there.
func (c *Claims) find(name string) int {
	if c.index != nil {
		if i, ok := c.index[name]; ok {
			return i
		}
		return -1
	}
	for i := range c.members {
		if c.members[i].name == name {
			return i
		}
	}
	return -1
}

// ParseClaims reads a JSON object as strictly as [Parse] reads a payload, of at most [MaxToken] bytes.
func ParseClaims(b []byte) (Claims, error) {
	if len(b) > MaxToken {
		return Claims{}, refuse(ReasonSize, "claims of more than %d bytes", MaxToken)
	}
	return parseObject(b)
}

// Has tells whether the claim is there, whatever its value.
func (c Claims) Has(name string) bool { return c.find(name) >= 0 }

// Names are the names of the claims, in the token's order.
func (c Claims) Names() []string {
	names := make([]string, len(c.members))
	for i, m := range c.members {
		names[i] = m.name
	}
	return names
}

// All are the claims in the token's order, each as its JSON stands in the token, which must not be changed.
func (c Claims) All() iter.Seq2[string, json.RawMessage] {
	return func(yield func(string, json.RawMessage) bool) {
		for _, m := range c.members {
			if !yield(m.name, m.raw) {
				return
			}
		}
	}
}

// Raw is the claim's JSON as it stands in the token. It must not be changed.
func (c Claims) Raw(name string) (json.RawMessage, bool) {
	if i := c.find(name); i >= 0 {
		return c.members[i].raw, true
	}
	return nil, false
}

// String reads a claim that is a string; false: it is not there.
func (c Claims) String(name string) (string, bool, error) {
	raw, ok := c.Raw(name)
	if !ok {
		return "", false, nil
	}
	s, err := unquote(raw)
	if err != nil {
		return "", true, refuse(ReasonClaim, "%.40q is not a string", name)
	}
	return s, true, nil
}

// Strings reads a claim that is an array of strings; false: it is not there.
func (c Claims) Strings(name string) ([]string, bool, error) {
	raw, ok := c.Raw(name)
	if !ok {
		return nil, false, nil
	}
	var elements []json.RawMessage // not []string, which would read null as ""
	if raw[0] != '[' || json.Unmarshal(raw, &elements) != nil {
		return nil, true, notStrings(name)
	}
	list := make([]string, len(elements))
	for i, e := range elements {
		s, err := unquote(e)
		if err != nil {
			return nil, true, notStrings(name)
		}
		list[i] = s
	}
	return list, true, nil
}

func notStrings(name string) error {
	return refuse(ReasonClaim, "%.40q is not an array of strings", name)
}

// Audience reads "aud", a string or an array of strings (RFC 7519 4.1.3); none if it is not there. Where exactly one
// string is demanded, String("aud") is the reader.
func (c Claims) Audience() ([]string, error) {
	raw, ok := c.Raw("aud")
	if !ok {
		return nil, nil
	}
	if s, err := unquote(raw); err == nil {
		return []string{s}, nil
	}
	list, _, err := c.Strings("aud")
	if err != nil {
		return nil, refuse(ReasonClaim, `"aud" is neither a string nor an array of strings`)
	}
	return list, nil
}

// Object reads a claim that is an object; false: it is not there.
func (c Claims) Object(name string) (Claims, bool, error) {
	raw, ok := c.Raw(name)
	if !ok {
		return Claims{}, false, nil
	}
	if raw[0] != '{' {
		return Claims{}, true, refuse(ReasonClaim, "%.40q is not an object", name)
	}
	inner, err := parseInner(raw)
	return inner, true, err
}

// Objects reads a claim that is an array of objects; false: it is not there.
func (c Claims) Objects(name string) ([]Claims, bool, error) {
	raw, ok := c.Raw(name)
	if !ok {
		return nil, false, nil
	}
	wrong := func() error { return refuse(ReasonClaim, "%.40q is not an array of objects", name) }
	var elements []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &elements) != nil {
		return nil, true, wrong()
	}
	list := make([]Claims, len(elements))
	for i, e := range elements {
		if e[0] != '{' {
			return nil, true, wrong()
		}
		var err error
		if list[i], err = parseInner(e); err != nil {
			return nil, true, err
		}
	}
	return list, true, nil
}

// Integer reads a claim that is a whole number from 0 to 2^53-1, which every JSON reader reads alike (RFC 8259 6), in
// digits alone; false: it is not there.
func (c Claims) Integer(name string) (int64, bool, error) {
	raw, ok := c.Raw(name)
	if !ok {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(string(raw), 10, 53)
	if err != nil {
		return 0, true, refuse(ReasonClaim, "%.40q is not a whole number of digits alone", name)
	}
	return int64(n), true, nil
}

// Bool reads a claim that is true or false; false: it is not there.
func (c Claims) Bool(name string) (value, ok bool, err error) {
	raw, ok := c.Raw(name)
	if ok && string(raw) != "true" && string(raw) != "false" {
		return false, true, refuse(ReasonClaim, "%.40q is neither true nor false", name)
	}
	return string(raw) == "true", ok, nil
}

// Time reads a NumericDate (RFC 7519 2): a number of seconds from 1970 to 9999, fractions allowed; false: it is not
// there.
func (c Claims) Time(name string) (time.Time, bool, error) {
	raw, ok := c.Raw(name)
	if !ok {
		return time.Time{}, false, nil
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if !numeric(raw[0]) || err != nil || f < 0 || f > maxTime {
		return time.Time{}, true, refuse(ReasonClaim, "%.40q is not a number of seconds between the years 1970 and 9999", name)
	}
	seconds, fraction := math.Modf(f)
	return time.Unix(int64(seconds), int64(fraction*float64(time.Second))).UTC(), true, nil
}

// CheckTimes judges exp, nbf and iat at now. exp must be there: a token without it would live forever. It is over
// when now is at or after exp. nbf and iat, where they are there, must not be after now. skew, cut to 0 to [MaxSkew],
// is allowed on each of the three.
func (c Claims) CheckTimes(now time.Time, skew time.Duration) error {
	skew = min(max(skew, 0), MaxSkew)
	exp, ok, err := c.Time("exp")
	if err != nil {
		return err
	}
	if !ok {
		return refuse(ReasonClaim, `"exp" is missing`)
	}
	nbf, _, err := c.Time("nbf")
	if err != nil {
		return err
	}
	iat, _, err := c.Time("iat")
	if err != nil {
		return err
	}
	latest := now.Add(skew)
	switch {
	case !now.Before(exp.Add(skew)):
		return refuse(ReasonExpired, "expired at %s", exp.Format(time.RFC3339))
	case nbf.After(latest):
		return refuse(ReasonNotYet, "not valid before %s", nbf.Format(time.RFC3339))
	case iat.After(latest):
		return refuse(ReasonFuture, "issued in the future, at %s", iat.Format(time.RFC3339))
	}
	return nil
}
