package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
)

const (
	maxDepth     = 16 // of nested JSON
	maxParameter = 1024
)

// readQuery reads the route's parameters. One that is unknown, empty or sent twice is refused, so that a misspelt filter
// does not silently choose everything.
func readQuery(rq *http.Request, r route) (map[string]string, error) {
	if !r.strict() || rq.URL.RawQuery == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(rq.URL.RawQuery)
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeParameter, "the query can't be read")
	}
	query := make(map[string]string, len(values))
	for name, sent := range values {
		switch {
		case !slices.Contains(r.query, name):
			e := countersign.Errorf(countersign.CodeParameter, "the query parameter %.64q is unknown here", name)
			if near := countersign.Nearest(name, r.query); near != "" {
				return nil, e.WithHint("did you mean %s?", near)
			}
			return nil, e
		case len(sent) > 1:
			return nil, countersign.Errorf(countersign.CodeParameter, "the query parameter %s was sent %d times", name, len(sent))
		case sent[0] == "" || len(sent[0]) > maxParameter || !utf8.ValidString(sent[0]):
			return nil, countersign.Errorf(countersign.CodeParameter, "the query parameter %s must have 1 to %d bytes of UTF-8", name, maxParameter)
		}
		query[name] = sent[0]
	}
	return query, nil
}

// readBody reads what the route allows and not a byte more. The media type is judged before.
func readBody(w http.ResponseWriter, rq *http.Request, r route, room *room) ([]byte, error) {
	if r.body > 0 {
		if err := checkMedia(rq.Header, r); err != nil {
			return nil, err
		}
	}
	if rq.ContentLength > r.body {
		w.Header().Set("Connection", "close") // rather than read it all away
		return nil, tooLarge(r.body)
	}
	room.told = max(rq.ContentLength, 0)
	body, err := room.read(rq.Context(), http.MaxBytesReader(w, rq.Body, r.body))
	var over *http.MaxBytesError
	var waited *countersign.Error
	switch {
	case errors.As(err, &waited):
		return nil, err
	case errors.As(err, &over):
		return nil, tooLarge(r.body)
	case err != nil:
		return nil, countersign.Errorf(countersign.CodeBody, "the body ended early or came too slowly").Because(err)
	}
	return body, nil
}

func tooLarge(limit int64) error {
	if limit == 0 {
		return countersign.Errorf(countersign.CodeTooLarge, "this path takes no body")
	}
	return countersign.Errorf(countersign.CodeTooLarge, "the body has over %d bytes", limit)
}

// checkMedia takes the route's media type, with no parameter but charset=utf-8.
func checkMedia(h http.Header, r route) error {
	sent := h.Values("Content-Type")
	if len(sent) == 1 {
		media, params, err := mime.ParseMediaType(sent[0])
		charset, given := params["charset"]
		if err == nil && media == r.media && (!given || strings.EqualFold(charset, "utf-8")) {
			return nil
		}
	}
	if len(h.Values("Content-Encoding")) > 0 {
		return countersign.Errorf(countersign.CodeContentType, "this path takes no encoded body")
	}
	return countersign.Errorf(countersign.CodeContentType, "this path takes %s", r.media).WithHint("send Content-Type: %s", r.media)
}

// decodeJSON reads the body into out, a pointer to a flat struct of package wire: one object, its members named exactly
// as the struct's and none twice. An empty body is an empty object where all members may be absent.
func (rq *request) decodeJSON(out any) error {
	if err := decodeJSON(rq.body, out); err != nil {
		return countersign.Errorf(countersign.CodeBody, "the body is not the JSON that this path takes: %v", err)
	}
	return nil
}

func decodeJSON(body []byte, out any) error {
	if !utf8.Valid(body) {
		return errors.New("it is no UTF-8")
	}
	if err := checkJSON(body, members(out)); err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return fmt.Errorf("%q can't be a %s", kind.Field, kind.Value)
		}
		return errors.New("a value is malformed")
	}
	return nil
}

// members are the names of out's JSON members.
func members(out any) []string {
	t := reflect.TypeOf(out).Elem()
	names := make([]string, 0, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// checkJSON refuses what encoding/json lets pass: two members of one name, names that differ in case only from a known
// one, unknown ones, nesting without end, and data after the object.
func checkJSON(body []byte, known []string) error {
	d := json.NewDecoder(bytes.NewReader(body))
	first, err := d.Token()
	if err != nil || first != json.Delim('{') {
		return errors.New("it is no object")
	}
	if err := checkObject(d, known, 1); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}

// checkObject reads to the end of an object whose brace was read. Nil known allows every name.
func checkObject(d *json.Decoder, known []string, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return errors.New("it is malformed")
		}
		name, _ := token.(string)
		switch {
		case seen[name]:
			return fmt.Errorf("the member %.64q occurs twice", name)
		case known != nil && !slices.Contains(known, name):
			if near := countersign.Nearest(strings.ToLower(name), known); near != "" {
				return fmt.Errorf("the member %.64q is unknown; did you mean %q?", name, near)
			}
			return fmt.Errorf("the member %.64q is unknown", name)
		}
		seen[name] = true
		if err := checkValue(d, depth); err != nil {
			return err
		}
	}
	return closing(d)
}

func checkValue(d *json.Decoder, depth int) error {
	token, err := d.Token()
	if err != nil {
		return errors.New("it is malformed")
	}
	delim, nested := token.(json.Delim)
	switch {
	case !nested:
		return nil
	case depth == maxDepth:
		return fmt.Errorf("it is nested deeper than %d", maxDepth)
	case delim == '{':
		return checkObject(d, nil, depth+1)
	}
	for d.More() {
		if err := checkValue(d, depth+1); err != nil {
			return err
		}
	}
	return closing(d)
}

func closing(d *json.Decoder) error {
	if _, err := d.Token(); err != nil {
		return errors.New("it is malformed")
	}
	return nil
}

// number reads a decimal query parameter from least to most; absent gives otherwise.
func (rq *request) number(name string, least, most, otherwise int) (int, error) {
	text, ok := rq.query[name]
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, countersign.Errorf(countersign.CodeParameter, "%s must be a number from %d to %d", name, least, most)
	}
	return n, nil
}

// flag reads a query parameter that is "true" or "false"; absent is false.
func (rq *request) flag(name string) (bool, error) {
	switch rq.query[name] {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, countersign.Errorf(countersign.CodeParameter, "%s must be true or false", name)
}

// instant reads an RFC 3339 query parameter; absent is the zero time.
func (rq *request) instant(name string) (time.Time, error) {
	text, ok := rq.query[name]
	if !ok {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, countersign.Errorf(countersign.CodeParameter, "%s must be a time like 2026-11-24T02:00:00Z (RFC 3339)", name)
	}
	return t, nil
}

// choice reads a query parameter that is one of few words; absent is "".
func (rq *request) choice(name string, words ...string) (string, error) {
	text := rq.query[name]
	if text != "" && !slices.Contains(words, text) {
		return "", countersign.Errorf(countersign.CodeParameter, "%s must be one of %s", name, strings.Join(words, ", "))
	}
	return text, nil
}

// serial is the path's serial in its one spelling: a record must not be found under several.
func (rq *request) serial() (string, error) {
	s := rq.Param("serial")
	if len(s) == 0 || len(s) > 40 || strings.Trim(s, "0123456789abcdef") != "" {
		return "", countersign.Errorf(countersign.CodeParameter, "a serial is up to 40 lower-case hex digits")
	}
	return s, nil
}

// service is the path's name of a service.
func (rq *request) service() (string, error) {
	name := rq.Param("name")
	if err := countersign.CheckName(name); err != nil {
		return "", countersign.Errorf(countersign.CodeParameter, "%v", err)
	}
	return name, nil
}

// ttl is a lifetime that a body asks for; 0 asks for none in particular.
func ttl(d countersign.Duration) (time.Duration, error) {
	if d < 0 {
		return 0, countersign.Errorf(countersign.CodeTTL, "a lifetime can't be negative")
	}
	return time.Duration(d), nil
}

// answer writes v as JSON.
func (rq *request) answer(status int, v any) error {
	encoded, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return rq.Blob(status, wire.JSON, append(encoded, '\n'))
}
