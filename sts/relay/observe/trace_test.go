package observe

import (
	"net/http"
	"strings"
	"testing"
)

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
)

// The cases of the W3C's text and test suite: what is malformed begins a new trace.
func traceparents() map[string]bool {
	return map[string]bool{
		"00-" + traceID + "-" + spanID + "-01":        true,
		"00-" + traceID + "-" + spanID + "-00":        true,
		"00-" + traceID + "-" + spanID + "-ff":        true, // unknown flags are not handed on
		"cc-" + traceID + "-" + spanID + "-01":        true, // a later version
		"cc-" + traceID + "-" + spanID + "-01-more.x": true,

		"":                                     false,
		"00-" + traceID + "-" + spanID:         false,
		"00-" + traceID + "-" + spanID + "-1":  false,
		"00-" + traceID + "-" + spanID + "-0g": false,
		"00-" + traceID + "-" + spanID + "-01-more":                         false, // version 00 has no more
		"00-" + traceID + "-" + spanID + "-01.":                             false,
		"cc-" + traceID + "-" + spanID + "-01.more":                         false,
		"ff-" + traceID + "-" + spanID + "-01":                              false,
		"0g-" + traceID + "-" + spanID + "-01":                              false,
		"00-" + strings.ToUpper(traceID) + "-" + spanID + "-01":             false,
		"00-" + traceID + "-" + strings.ToUpper(spanID) + "-01":             false,
		"00-" + strings.Repeat("0", 32) + "-" + spanID + "-01":              false,
		"00-" + traceID + "-" + strings.Repeat("0", 16) + "-01":             false,
		"00-" + traceID[1:] + "-" + spanID + "-01":                          false,
		"00_" + traceID + "-" + spanID + "-01":                              false,
		" 00-" + traceID + "-" + spanID + "-01":                             false,
		"cc-" + traceID + "-" + spanID + "-01-" + strings.Repeat("a", 1000): false,
	}
}

func TestTraceparent(t *testing.T) {
	for text, want := range traceparents() {
		for _, trust := range []bool{true, false} {
			h := http.Header{"Traceparent": {text}, "Tracestate": {"a=1,b=2"}}
			got := readTrace(h, trust, 0)
			got.write(h, trust)
			if carried := got.ID == traceID; carried != (want && trust) {
				t.Errorf("%.80q, trusted %v: the trace goes on: %v", text, trust, carried)
			}
			if want && trust && (got.Parent != spanID || h.Get("Tracestate") != "a=1,b=2") || !(want && trust) && (got.Parent != "" || len(h.Values("Tracestate")) > 0) {
				t.Errorf("%.80q, trusted %v: %+v", text, trust, got)
			}
			next, ok := parseTraceparent(h.Get("Traceparent"))
			if !ok || !strings.HasPrefix(h.Get("Traceparent"), "00-") || next.Parent != got.Span || next.Parent == spanID || next.ID != got.ID {
				t.Errorf("%.80q, trusted %v: handed on as %q", text, trust, h.Get("Traceparent"))
			}
		}
	}
	two := http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01", "00-" + traceID + "-" + spanID + "-01"}}
	if readTrace(two, true, 0).ID == traceID {
		t.Error("one of two traceparents is carried on")
	}
}

func TestFlags(t *testing.T) {
	for in, want := range map[string]string{"00": "00", "01": "01", "02": "02", "03": "03", "ff": "03", "fc": "00"} {
		got := readTrace(http.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-" + in}}, true, 1).String()
		if !strings.HasSuffix(got, "-"+want) {
			t.Errorf("flags %s are handed on as %s", in, got)
		}
	}
	if never, always := readTrace(nil, true, 0), readTrace(nil, true, 1); never.Flags != flagRandom || always.Flags != flagRandom|flagSampled {
		t.Errorf("begun: %x and %x", never.Flags, always.Flags)
	}
}

func TestTracestate(t *testing.T) {
	long := func(n int) string {
		members := make([]string, n)
		for i := range members {
			members[i] = "k" + strings.Repeat("x", i) + "=v"
		}
		return strings.Join(members, ",")
	}
	for text, want := range map[string]string{
		"a=1": "a=1", "a=1, b=2 ": "a=1, b=2 ", "a=1,,b=2": "a=1,,b=2", "t0@sys=1": "t0@sys=1", "0t@sys=1": "0t@sys=1", "a_-*/9=x y!~": "a_-*/9=x y!~",
		"": "", ",": "", "a": "", "=1": "", "a=": "", "A=1": "", "0a=1": "", "a=1,a=2": "", "a=1=2": "", "a= ": "", "a=\x01": "", "a=ü": "", "a b=1": "",
		"t@=1": "", "@s=1": "", "t@S=1": "", "t@0s=1": "", "t@" + strings.Repeat("s", 15) + "=1": "", "a@b@c=1": "", "_a=1": "",
		strings.Repeat("k", 257) + "=1": "", "k=" + strings.Repeat("v", 257): "",
	} {
		if got, _ := parseTracestate([]string{text}); got != want {
			t.Errorf("%.60q: %q, want %q", text, got, want)
		}
	}
	if got, _ := parseTracestate([]string{"a=1", "b=2"}); got != "a=1,b=2" {
		t.Errorf("two headers: %q", got)
	}
	members := make([]string, 33)
	for i := range members {
		members[i] = string(rune('a'+i%26)) + strings.Repeat("z", i/26) + "=1"
	}
	if got, ok := parseTracestate(members[:32]); !ok || got == "" {
		t.Error("32 members are refused")
	}
	if _, ok := parseTracestate(members); ok {
		t.Error("33 members are taken")
	}
	if got, _ := parseTracestate([]string{long(30)}); got != "" {
		t.Error("over 512 characters are taken")
	}
}

// From outside nothing that a tracer inside would believe gets through.
func TestForeignTracersAreStripped(t *testing.T) {
	h := http.Header{"Baggage": {"user=root"}, "B3": {"1"}, "X-B3-Traceid": {"1"}, "X-B3-Sampled": {"1"}, "X-Other": {"1"}}
	trusted := h.Clone()
	readTrace(h, false, 0).write(h, false)
	readTrace(trusted, true, 0).write(trusted, true)
	if len(h) != 2 || h.Get("X-Other") != "1" {
		t.Errorf("from outside: %v", h)
	}
	if len(trusted) != 6 {
		t.Errorf("from inside: %v", trusted)
	}
}

func TestRequestIDs(t *testing.T) {
	ours := strings.Repeat("0a", 16)
	for id, want := range map[string]bool{
		ours: true, "0193f0a0-1111-7222-8333-444455556666": true, "0193F0A0-1111-7222-8333-44445555666A": true,
		"": false, ours[1:]: false, ours + "0": false, strings.ToUpper(ours): false, "0193f0a0-1111-7222-8333-44445555666g": false,
		"0193f0a0x1111-7222-8333-444455556666": false, "0193f0a0-1111-7222-8333-44445555666": false, "a\nb": false, strings.Repeat("a", 1000): false,
	} {
		for _, trust := range []bool{true, false} {
			got := readRequestID(http.Header{RequestID: {id}}, trust)
			if (got == id) != (want && trust) || !isOurs(got) && !isUUID(got) {
				t.Errorf("%.40q, trusted %v: %q", id, trust, got)
			}
		}
	}
	if got := readRequestID(http.Header{RequestID: {ours, ours}}, true); got == ours {
		t.Error("one of two ids is taken")
	}
}

func FuzzTrace(f *testing.F) {
	for text := range traceparents() {
		f.Add(text, "a=1,b=2")
	}
	f.Fuzz(func(t *testing.T, parent, state string) {
		h := http.Header{"Traceparent": {parent}, "Tracestate": {state}}
		got := readTrace(h, true, 0)
		got.write(h, true)
		if next, ok := parseTraceparent(h.Get("Traceparent")); !ok || next.ID != got.ID || next.Parent != got.Span {
			t.Fatalf("%q is handed on as %q", parent, h.Get("Traceparent"))
		}
		if got.ID != "" && got.Parent != "" && !strings.Contains(parent, got.ID+"-"+got.Parent) {
			t.Fatalf("%q is read as %+v", parent, got)
		}
		if s := h.Get("Tracestate"); s != "" && (s != state || len(s) > 512 || strings.ContainsAny(s, "\r\n\x00")) {
			t.Fatalf("%q is handed on as %q", state, s)
		}
	})
}
