package api

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

func TestDecodeJSON(t *testing.T) {
	deep := `{"service": ` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`
	for _, tc := range []struct{ name, body, want string }{
		{"good", `{"service": "orders", "ttl": "10m"}`, ""},
		{"empty object", `{}`, ""},
		{"empty", ``, "no object"},
		{"null", `null`, "no object"},
		{"array", `[]`, "no object"},
		{"string", `"service"`, "no object"},
		{"unknown member", `{"service": "orders", "role": "admin"}`, `"role" is unknown`},
		{"other case", `{"Service": "orders"}`, `did you mean "service"`},
		{"twice", `{"service": "orders", "service": "admin"}`, "twice"},
		{"twice, escaped", `{"service": "orders", "\u0073ervice": "admin"}`, "twice"},
		{"trailing object", `{"service": "orders"}{}`, "follows"},
		{"trailing word", `{"service": "orders"} x`, "follows"},
		{"cut", `{"service": "ord`, "malformed"},
		{"cut after a value", `{"service": "orders"`, "malformed"},
		{"wrong type", `{"service": 7}`, `"service" can't be a number`},
		{"no unit", `{"service": "orders", "ttl": "10"}`, "malformed"},
		{"deep", deep, "deeper"},
		{"no UTF-8", "{\"service\": \"\xff\"}", "UTF-8"},
	} {
		err := decodeJSON([]byte(tc.body), &wire.JoinTokenRequest{})
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: error %v, want one with %q", tc.name, err, tc.want)
		}
	}
}

// FuzzJSON: what is accepted has the same meaning for a reader that is strict about nothing.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(`{"service": "orders", "ttl": "10m"}`))
	f.Add([]byte(`{"service":"a","service":"b"}`))
	f.Add([]byte(`{"ttl":null}`))
	f.Add([]byte(`{"service": [[[[]]]]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var got wire.JoinTokenRequest
		if decodeJSON(body, &got) != nil {
			return
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			t.Fatalf("accepted what is no JSON: %v", err)
		}
		var service string
		if raw, ok := members["service"]; ok {
			if err := json.Unmarshal(raw, &service); err != nil {
				t.Fatal(err)
			}
		}
		delete(members, "service")
		delete(members, "ttl")
		if len(members) > 0 || service != got.Service {
			t.Fatalf("%q was read as %+v", body, got)
		}
	})
}

// FuzzForm: no form makes the parser panic, and what it gives is what was sent.
func FuzzForm(f *testing.F) {
	f.Add([]byte("grant_type=client_credentials&scope=a+b&scope=c"))
	f.Add([]byte("a;b=c&%zz=1"))
	f.Add([]byte(strings.Repeat("&", maxPairs)))
	f.Fuzz(func(t *testing.T, body []byte) {
		form, err := parseForm(body)
		if std, stdErr := url.ParseQuery(string(body)); err == nil && (stdErr != nil || form.Encode() != std.Encode()) {
			t.Fatalf("%q was read as %v; net/url reads %v, %v", body, form, std, stdErr)
		}
		if err != nil {
			if asError(err).Kind != countersign.Invalid {
				t.Fatalf("a malformed form is answered as %v", err)
			}
			return
		}
		again, err := parseForm([]byte(form.Encode()))
		if err != nil || again.Encode() != form.Encode() {
			t.Fatalf("%q was read as %v and written as what is read as %v, %v", body, form, again, err)
		}
	})
}

func TestReadQuery(t *testing.T) {
	strict := route{path: "/v1/certificates", query: []string{"service", "limit"}}
	for _, tc := range []struct {
		r          route
		query      string
		want, hint string
	}{
		{strict, "", "", ""},
		{strict, "service=orders&limit=5", "", ""},
		{strict, "servce=orders", "unknown", "service"},
		{strict, "service=a&service=b", "2 times", ""},
		{strict, "service=", "1 to 1024", ""},
		{strict, "service=" + strings.Repeat("a", maxParameter+1), "1 to 1024", ""},
		{strict, "service=%ff", "UTF-8", ""},
		{strict, "service=%zz", "can't be read", ""},
		{strict, "service=a;limit=1", "can't be read", ""},
		{route{path: "/.well-known/jwks.json"}, "cache=1", "", ""},
	} {
		rq, err := http.NewRequest(http.MethodGet, "https://x"+tc.r.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		rq.URL.RawQuery = tc.query
		_, err = readQuery(rq, tc.r)
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%q: %v", tc.query, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%q: %v, want an error with %q", tc.query, err, tc.want)
		case tc.hint != "" && !strings.Contains(asError(err).Hint, tc.hint):
			t.Errorf("%q: hint %q, want one with %q", tc.query, asError(err).Hint, tc.hint)
		}
	}
}

func TestIfMatch(t *testing.T) {
	for _, tc := range []struct {
		headers []string
		want    int
		bad     bool
	}{
		{nil, -1, false},
		{[]string{`"0"`}, 0, false},
		{[]string{`"12"`}, 12, false},
		{[]string{`12`}, 0, true},
		{[]string{`*`}, 0, true},
		{[]string{`W/"12"`}, 0, true},
		{[]string{`"1", "2"`}, 0, true},
		{[]string{`"1"`, `"2"`}, 0, true},
		{[]string{`"-1"`}, 0, true},
		{[]string{`"+1"`}, 0, true},
		{[]string{`"01"`}, 0, true},
		{[]string{`""`}, 0, true},
		{[]string{`"4294967296"`}, 0, true},
	} {
		got, err := ifMatch(tc.headers)
		if (err != nil) != tc.bad || got != tc.want {
			t.Errorf("If-Match %q: %d, %v", tc.headers, got, err)
		}
	}
}

func TestMatches(t *testing.T) {
	for header, want := range map[string]bool{
		`"a"`: true, `W/"a"`: true, `"b", "a"`: true, `*`: true, `"b"`: false, `a`: false, ``: false,
	} {
		if got := matches([]string{header}, `"a"`); got != want {
			t.Errorf("If-None-Match %s: %v", header, got)
		}
	}
}

func TestTTL(t *testing.T) {
	if _, err := ttl(countersign.Duration(-time.Second)); err == nil {
		t.Error("a negative lifetime was taken")
	}
}

func TestSaneID(t *testing.T) {
	for id, want := range map[string]bool{
		"a-B_9.": true, "": false, "a b": false, "a\nb": false, `a"`: false, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false,
	} {
		if saneID(id) != want {
			t.Errorf("saneID(%q) = %v", id, !want)
		}
	}
}
