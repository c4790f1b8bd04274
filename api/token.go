package api

import (
	"net/http"
	"net/url"
	"slices"
	"unicode/utf8"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts"
)

// maxPairs bounds a token request's parameters. An honest one has about ten.
const maxPairs = 256

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
	return rq.answer(http.StatusOK, response)
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
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeBody, "the body is no form")
	}
	for name, values := range form {
		if !utf8.ValidString(name) || slices.ContainsFunc(values, func(s string) bool { return !utf8.ValidString(s) }) {
			return nil, countersign.Errorf(countersign.CodeBody, "the form is no UTF-8")
		}
	}
	return form, nil
}
