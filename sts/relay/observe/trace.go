package observe

import (
	"crypto/rand"
	"encoding/hex"
	mathrand "math/rand/v2"
	"net/http"
	"strings"
)

// Trace is the W3C trace context that a request carries on: https://www.w3.org/TR/trace-context/.
type Trace struct {
	ID     string // 32 lower-case hex digits
	Parent string // span id of who asked us; "": the trace begins here
	Span   string // our own, 16 lower-case hex digits: what is asked on from here has it as its parent
	Flags  byte   // sampled (1) and random (2), the ones that Level 2 defines
	State  string // tracestate, as it came; "": none, or one that was malformed
}

const (
	flagSampled = 1
	flagRandom  = 2
)

// String is the traceparent for the next hop, of version 00.
func (t Trace) String() string {
	return "00-" + t.ID + "-" + t.Span + "-" + hex.EncodeToString([]byte{t.Flags})
}

// parseTraceparent reads a traceparent strictly (section 3.2): the trace's id, the caller's span and the flags.
func parseTraceparent(s string) (Trace, bool) {
	const size = 55
	if len(s) < size || len(s) > 256 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return Trace{}, false
	}
	version, id, parent, flags := s[:2], s[3:35], s[36:52], s[53:55]
	for _, part := range []string{version, id, parent, flags} {
		if !isHex(part) {
			return Trace{}, false
		}
	}
	switch {
	case version == "ff", version == "00" && len(s) != size, len(s) > size && s[size] != '-': // a later version may say more, after a dash
		return Trace{}, false
	case strings.Trim(id, "0") == "", strings.Trim(parent, "0") == "":
		return Trace{}, false
	}
	bits, _ := hex.DecodeString(flags) // isHex
	return Trace{ID: id, Parent: parent, Flags: bits[0] & (flagSampled | flagRandom)}, true
}

// isHex knows lower-case digits only: others are malformed (section 3.2.2).
func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseTracestate joins and checks a tracestate (section 3.3): at most 32 members, unique keys, at most 512 characters.
// A malformed one is dropped as a whole, as section 3.3.1.2 wants.
func parseTracestate(values []string) (string, bool) {
	joined := strings.Join(values, ",")
	if joined == "" || len(joined) > 512 {
		return "", false
	}
	seen := map[string]bool{}
	for member := range strings.SplitSeq(joined, ",") {
		member = strings.Trim(member, " \t")
		if member == "" { // allowed, and it says nothing
			continue
		}
		key, value, ok := strings.Cut(member, "=")
		if !ok || !isStateKey(key) || !isStateValue(value) || seen[key] {
			return "", false
		}
		seen[key] = true
	}
	if len(seen) == 0 || len(seen) > 32 {
		return "", false
	}
	return joined, true
}

func isStateKey(key string) bool {
	tenant, system, multi := strings.Cut(key, "@")
	if !multi {
		return isKeyPart(key, 256, false)
	}
	return isKeyPart(tenant, 241, true) && isKeyPart(system, 14, false)
}

// isKeyPart knows the characters of keys; only a tenant's may begin with a digit.
func isKeyPart(s string, most int, digitFirst bool) bool {
	if s == "" || len(s) > most || !digitFirst && (s[0] < 'a' || s[0] > 'z') {
		return false
	}
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_-*/", rune(c))) {
			return false
		}
	}
	return true
}

func isStateValue(s string) bool {
	if s == "" || len(s) > 256 || strings.HasSuffix(s, " ") {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == ',' || c == '=' {
			return false
		}
	}
	return true
}

// readTrace carries a trusted trace on, or begins one. share of the begun ones are sampled, 0 to 1.
func readTrace(h http.Header, trust bool, share float64) Trace {
	if trust {
		// Two headers can't both be right, and there is no rule which one is: that is malformed.
		if values := h.Values("Traceparent"); len(values) == 1 {
			if t, ok := parseTraceparent(values[0]); ok {
				t.State, _ = parseTracestate(h.Values("Tracestate"))
				t.Span = randomHex(8)
				return t
			}
		}
	}
	t := Trace{ID: randomHex(16), Span: randomHex(8), Flags: flagRandom}
	if mathrand.Float64() < share {
		t.Flags |= flagSampled
	}
	return t
}

// write puts the trace into the header that is forwarded. From a side that is not trusted nothing else that tracers read
// goes through either: its baggage and its B3 headers would be believed inside.
func (t Trace) write(h http.Header, trust bool) {
	if !trust {
		for name := range h {
			if name == "Baggage" || name == "B3" || strings.HasPrefix(name, "X-B3-") {
				delete(h, name)
			}
		}
	}
	h.Set("Traceparent", t.String())
	if t.State == "" {
		h.Del("Tracestate")
	} else {
		h.Set("Tracestate", t.State)
	}
}

// randomHex is n random bytes; all zero, which no id may be, does not happen.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
