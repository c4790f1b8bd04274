package audit

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	countersign "github.com/countersign/countersign"
)

// written is what encoding/json makes of an event: the form that readers of the log rely on.
func written(t interface{ Fatal(...any) }, e Event) []byte {
	by := By{
		Name: e.By.Name, Method: e.By.Method.String(), ID: e.By.ID.String(), Serial: e.By.Serial, Proxy: e.By.Proxy.String(),
		Assertion: e.By.Assertion, JoinToken: e.By.JoinToken,
	}
	if e.By.Addr.IsValid() {
		by.Addr = e.By.Addr.Unmap().String()
	}
	if e.By.Role != countersign.RoleNone {
		by.Role = e.By.Role.String()
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(payload{
		Type: e.Type, Outcome: e.Outcome, By: by, Subject: e.Subject, Code: e.Code, RequestID: e.By.RequestID, Detail: e.Detail,
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func TestEventsAreWrittenAsEncodingJSONWouldWriteThem(t *testing.T) {
	id, err := countersign.NewServiceID("shop.internal", "orders")
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{{}, netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("fe80::1%a\"b"), netip.MustParseAddr("2001:db8::1")}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"<&>", "\u2028", "\xff\xfe", `"\`, "\x7f", "a\nb"}))
		e := Event{
			Type: "token.issued", Outcome: rapid.SampledFrom([]Outcome{OK, Denied, Failed, Intent}).Draw(t, "outcome"),
			By: countersign.Caller{
				Name: text.Draw(t, "name"), Method: countersign.Method(rapid.IntRange(0, 6).Draw(t, "method")),
				ID:   rapid.SampledFrom([]countersign.ID{{}, id}).Draw(t, "id"),
				Role: countersign.Role(rapid.IntRange(0, 3).Draw(t, "role")), Serial: text.Draw(t, "serial"),
				Proxy:     rapid.SampledFrom([]countersign.ID{{}, id}).Draw(t, "proxy"),
				Assertion: text.Draw(t, "assertion"), JoinToken: text.Draw(t, "join"), Addr: rapid.SampledFrom(addrs).Draw(t, "addr"),
				RequestID: text.Draw(t, "request"),
			},
			Subject: text.Draw(t, "subject"), Code: countersign.Code(text.Draw(t, "code")),
			Detail: rapid.SampledFrom([]any{nil, map[string]any{"a": "<b>"}, struct{ A int }{1}, []string(nil)}).Draw(t, "detail"),
		}
		var r request
		if err := r.addEvent(e); err != nil {
			t.Fatal(err)
		}
		if got, want := r.buf[frameHead:], written(t, e); !bytes.Equal(got, want) {
			t.Fatalf("written:\n%s\nencoding/json:\n%s", got, want)
		}
	})
}
