package api

import (
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/api/wire"
	"github.com/countersign/countersign/sts"
)

// maxPairs bounds a token request's parameters. An honest one has about ten.
const (
	maxPairs   = 256
	usualPairs = 16 // for which room is made
)

// token is RFC 6749 3.2: who the client is was settled before.
func (s *Server) token(rq *request) error {
	parsed, err := sts.ParseRequest(rq.form)
	if err != nil {
		return s.refused(rq.Context, rq.caller, err) // a second credential in the form is a refusal, and is recorded
	}
	parsed.Still = rq.still
	response, err := s.STS.Token(rq.Request().Context(), rq.caller, parsed)
	if err != nil {
		return err
	}
	answer, _ := s.answers.Get().(*[]byte)
	if answer == nil {
		answer = new([]byte)
	}
	*answer = append(response.AppendJSON((*answer)[:0]), '\n')
	err = rq.Blob(http.StatusOK, wire.JSON, *answer)
	s.answers.Put(answer) // what was written is copied or sent
	return err
}

// readForm reads the form of an OAuth endpoint, once, from the body alone.
func readForm(rq *request) (url.Values, error) {
	if rq.Request().URL.RawQuery != "" || rq.Request().URL.ForceQuery {
		return nil, countersign.Errorf(countersign.CodeParameter, "parameters belong into the body, not into the URL (RFC 6749 3.2)")
	}
	return parseForm(rq.body)
}

// parseForm reads a form; which parameters may stand in it, sts.ParseRequest judges.
func parseForm(body []byte) (url.Values, error) {
	pairs := 1
	for _, b := range body {
		if b == '&' {
			pairs++
		}
	}
	if pairs > maxPairs {
		return nil, countersign.Errorf(countersign.CodeBody, "the form has over %d parameters", maxPairs)
	}
	return parsePairs(string(body), pairs)
}

// parsePairs reads what url.ParseQuery reads, with one array for all values instead of one for each. A test holds it to that.
func parsePairs(text string, pairs int) (url.Values, error) {
	wrong := func(msg string) (url.Values, error) { return nil, countersign.Errorf(countersign.CodeBody, "%s", msg) }
	form, all := make(url.Values, min(pairs, usualPairs)), make([]string, 0, min(pairs, usualPairs))
	for text != "" {
		var pair string
		pair, text, _ = strings.Cut(text, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, badName := unescape(name)
		value, badValue := unescape(value)
		if badName != nil || badValue != nil || strings.IndexByte(pair, ';') >= 0 {
			return wrong("the body is no form")
		}
		if !utf8.ValidString(name) || !utf8.ValidString(value) {
			return wrong("the form is no UTF-8")
		}
		if before, ok := form[name]; ok {
			form[name] = append(before, value)
			continue
		}
		all = append(all, value)                           // one that grows leaves its old array to those that have it
		form[name] = all[len(all)-1 : len(all) : len(all)] // what is appended to it goes elsewhere
	}
	return form, nil
}

// unescape is url.QueryUnescape, which looks at each byte twice.
func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}
