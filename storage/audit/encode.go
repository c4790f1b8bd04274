package audit

import (
	"encoding/json"
	"unicode/utf8"

	countersign "github.com/countersign/countersign"
)

// Appender is a Detail that writes itself: what is recorded with every token is worth more than reflection. It must append
// exactly what encoding/json makes of the same values without the escapes for HTML.
type Appender interface {
	AppendJSON(b []byte) ([]byte, error)
}

// addEvent encodes e as one more frame: the same bytes as add makes of its payload, which a test holds it to.
func (r *request) addEvent(e Event) error {
	begin := len(r.buf)
	r.buf = append(r.buf, make([]byte, frameHead)...)
	b := append(r.buf, `{"type":`...)
	b = AppendString(b, e.Type)
	b = append(b, `,"outcome":`...)
	b = AppendString(b, string(e.Outcome))
	b = append(b, `,"by":`...)
	b = appendBy(b, e.By)
	b = appendMember(b, ',', `"subject":`, e.Subject)
	b = appendMember(b, ',', `"code":`, string(e.Code))
	b = appendMember(b, ',', `"request_id":`, e.By.RequestID)
	r.buf = b
	if e.Detail != nil {
		r.buf = append(r.buf, `,"detail":`...)
		if err := r.addDetail(e.Detail); err != nil {
			return err
		}
	}
	r.buf = append(r.buf, '}')
	return r.end(begin)
}

func (r *request) addDetail(detail any) (err error) {
	if a, ok := detail.(Appender); ok {
		r.buf, err = a.AppendJSON(r.buf)
		return err
	}
	return r.encode(detail)
}

// appendBy keeps what identifies the caller and nothing that could be used as a credential.
func appendBy(b []byte, c countersign.Caller) []byte {
	begin := len(b)
	b = appendMember(b, '{', `"name":`, c.Name)
	b = appendMember(b, ',', `"method":`, c.Method.String())
	b = appendMember(b, ',', `"id":`, c.ID.String())
	if c.Role != countersign.RoleNone {
		b = appendMember(b, ',', `"role":`, c.Role.String())
	}
	b = appendMember(b, ',', `"serial":`, c.Serial)
	b = appendMember(b, ',', `"proxy":`, c.Proxy.String())
	b = appendMember(b, ',', `"assertion":`, c.Assertion)
	switch addr := c.Addr.Unmap(); {
	case addr.Zone() != "":
		b = appendMember(b, ',', `"addr":`, addr.String())
	case addr.IsValid():
		b = append(b, `,"addr":"`...)
		b = append(addr.AppendTo(b), '"')
	}
	b = appendMember(b, ',', `"join_token":`, c.JoinToken)
	b[begin] = '{' // whichever member was the first: method always is there
	return append(b, '}')
}

// appendMember appends a member unless its value is empty.
func appendMember(b []byte, before byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, before)
	b = append(b, name...)
	return AppendString(b, value)
}

// AppendString appends s as encoding/json writes a string without the escapes for HTML.
func AppendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return appendEscaped(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendEscaped(b []byte, s string) []byte {
	var w plainWriter // not b, which could live on no stack then
	e := json.NewEncoder(&w)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string can always be written
	return append(b, w[:len(w)-1]...)
}

// plainWriter appends what is written to it.
type plainWriter []byte

func (w *plainWriter) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	return len(b), nil
}
