package filter

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

// Limits holds a request against the sizes and content types of its route, from what is cheapest on. A body that says how
// long it is is refused at once; of one that does not, reading fails at the limit, and [observe.Request.Failed] says why to the
// one who forwards it.
func Limits(r Route) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
			if err := r.check(request); err != nil {
				observe.Refuse(w, request, err)
				return
			}
			if request.Body != nil && request.Body != http.NoBody {
				request.Body = &limitedBody{
					ReadCloser: http.MaxBytesReader(w, request.Body, r.bodyLimit(request.Method)),
					request:    observe.From(request.Context()),
				}
			}
			next.ServeHTTP(w, request)
		})
	}
}

// bodyLimit is what the route says, and if it says nothing no body for the methods that have none (RFC 9110 9.3).
func (r *Route) bodyLimit(method string) int64 {
	if r.Body == 0 {
		switch method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
			return 0
		}
	}
	return r.Body.or(DefaultBody)
}

func (r *Route) check(request *http.Request) error {
	if err := r.checkHeader(request.Header, request.Host); err != nil {
		return err
	}
	if err := r.checkQuery(request.URL.RawQuery); err != nil {
		return err
	}
	if request.ContentLength == 0 {
		return nil
	}
	if most := r.bodyLimit(request.Method); request.ContentLength > most {
		return tooLarge(most)
	}
	if len(r.ContentTypes) == 0 {
		return nil
	}
	_, err := checkContentType(request.Header, r.ContentTypes)
	return err
}

func (r *Route) checkHeader(h http.Header, host string) error {
	bytes, count := int64(len("Host")+len(host)), 1
	for name, values := range h {
		for _, v := range values {
			bytes += int64(len(name) + len(v))
			count++
		}
	}
	if most := r.Headers.Bytes.or(DefaultHeaderBytes); bytes > most {
		return countersign.Errorf(countersign.CodeRelayHeader, "the header has over %d bytes", most)
	}
	if most := orCount(r.Headers.Count); count > most {
		return countersign.Errorf(countersign.CodeRelayHeader, "the header has over %d fields", most)
	}
	return nil
}

// checkQuery also refuses what can't be read in one way: a proxy of net/http drops such parameters silently.
func (r *Route) checkQuery(raw string) error {
	if raw == "" {
		return nil
	}
	if most := r.Query.Bytes.or(DefaultQueryBytes); int64(len(raw)) > most {
		return countersign.Errorf(countersign.CodeRelayQuery, "the query has over %d bytes", most)
	}
	if most := orCount(r.Query.Count); strings.Count(raw, "&") >= most {
		return countersign.Errorf(countersign.CodeRelayQuery, "the query has over %d parameters", most)
	}
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c >= 0x7f || c == '#' {
			return countersign.Errorf(countersign.CodeRelayPath, "the query is not forwarded: it has characters that must be percent-encoded")
		}
	}
	if _, err := url.ParseQuery(raw); err != nil { // its text quotes the query
		return countersign.Errorf(countersign.CodeRelayPath, "the query is not forwarded: it has a semicolon or a broken percent-encoding")
	}
	return nil
}

func orCount(n int) int {
	if n == 0 {
		return DefaultCount
	}
	return n
}

func tooLarge(most int64) error {
	if most == 0 {
		return countersign.Errorf(countersign.CodeRelayTooLarge, "the route takes no body with this method")
	}
	return countersign.Errorf(countersign.CodeRelayTooLarge, "the body has over %d bytes", most)
}

// checkContentType reads the one Content-Type and holds it against media ranges; none: any.
func checkContentType(h http.Header, ranges []string) (mediaType string, err error) {
	want := strings.Join(ranges, ", ")
	if want == "" {
		want = "any"
	}
	values := h.Values("Content-Type")
	if len(values) != 1 {
		return "", countersign.Errorf(countersign.CodeRelayContentType, "the body needs one Content-Type, of: %.200s", want)
	}
	mediaType, parameters, err := mime.ParseMediaType(values[0])
	if err != nil || !isMediaRange(mediaType) || strings.HasSuffix(mediaType, "/*") {
		return "", countersign.Errorf(countersign.CodeRelayContentType, "the Content-Type can't be read; the route takes: %.200s", want)
	}
	if isJSON(mediaType) && parameters["charset"] != "" && !strings.EqualFold(parameters["charset"], "utf-8") {
		return "", countersign.Errorf(countersign.CodeRelayContentType, "JSON is UTF-8 (RFC 8259 8.1)")
	}
	for _, one := range ranges {
		kind, all := strings.CutSuffix(one, "/*")
		if one == mediaType || all && strings.HasPrefix(mediaType, kind+"/") {
			return mediaType, nil
		}
	}
	if len(ranges) > 0 {
		return "", countersign.Errorf(countersign.CodeRelayContentType, "the route takes bodies of: %.200s", want)
	}
	return mediaType, nil
}

func isJSON(mediaType string) bool {
	return mediaType == "application/json" || strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json")
}

// limitedBody tells the request's record why reading it failed.
type limitedBody struct {
	io.ReadCloser
	request *observe.Request
}

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		b.request.Fail(tooLarge(over.Limit))
	case errors.Is(err, os.ErrDeadlineExceeded): // the listener's, on a pause
		b.request.Fail(countersign.Errorf(countersign.CodeRelayStalled, "the body did not come in time").Because(err))
	case err != nil && err != io.EOF:
		b.request.Fail(countersign.Errorf(countersign.CodeRelayBody, "the body ended early or could not be read").
			Because(fmt.Errorf("read the body: %w", err)))
	}
	return n, err
}
