package filter

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"

	"github.com/countersign/countersign"
	"github.com/countersign/countersign/sts/relay/observe"
)

const formMedia = "application/x-www-form-urlencoded"

// Validator holds the requests of a route against an OpenAPI document: its operation has to be there, its parameters and its
// body valid. The answer to one that is not says where (a parameter's name, a JSON pointer) and which rule, and never quotes a
// value.
//
// The document is read once, at the start. It is one file: references out of it are a fault, and so is every schema or pattern
// that can't be compiled. Bodies are JSON (OpenAPI 3.0 by kin-openapi, 3.1 by a JSON Schema 2020-12 validator) or HTML forms; all
// others, encoded ones (Content-Encoding) and bodies of operations that have none are refused. A parameter of one value stands once.
// Formats that are checked: date, date-time, uuid, ipv4, ipv6, byte, int32, int64; of 3.1 those of JSON Schema too.
//
// A schema that comes back to itself through several branches of anyOf or oneOf can cost branches ^ depth: the operator who writes
// such a document sets openapi.depth as low as its bodies need, and a rate limit.
//
// What it does not do: security requirements are not looked at (the relay's scopes are the rule), query parameters and headers
// that the document does not name pass, nothing is filled in or changed, answers are not checked. readOnly is enforced in 3.0.
type Validator struct{ doc *document }

// NewValidator reads the document that the route names, relative to dir. A route that names none has a nil Validator, which
// lets everything through.
func NewValidator(r Route, dir string) (*Validator, error) {
	if r.OpenAPI.File == "" {
		return nil, nil
	}
	if err := r.OpenAPI.validate(r.Body); err != nil {
		return nil, err
	}
	doc, err := loadDocument(dir, r.OpenAPI)
	if err != nil {
		return nil, err
	}
	return &Validator{doc: doc}, nil
}

// Middleware goes inside of [Limits], which bounds the body that is held in memory here, and after the layers that say who
// asks and what he may: they are cheaper.
func (v *Validator) Middleware(next http.Handler) http.Handler {
	if v == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allow, err := v.check(r)
		if allow != "" {
			w.Header().Set("Allow", allow)
		}
		if err != nil {
			observe.Refuse(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// check judges the request and leaves it with the body that it judged.
func (v *Validator) check(r *http.Request) (allow string, err error) {
	o, path, allow := v.doc.find(r.Method, r.URL)
	switch {
	case o == nil && allow != "":
		return allow, countersign.Errorf(countersign.CodeRelayMethod, "the document has %s for this path", allow)
	case o == nil:
		return "", countersign.Errorf(countersign.CodeRelayRoute, "the route's OpenAPI document has no such path")
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // Limits
		return "", countersign.Errorf(countersign.CodeRelayPath, "the query can't be read")
	}
	faults := o.checkParameters(r, path, query, v.doc.formats)
	body, err := readBody(r)
	if err != nil {
		return "", err
	}
	more, err := o.checkBody(r, body, v.doc.depth)
	if err != nil {
		return "", err
	}
	faults = append(faults, more...)
	if len(faults) > 0 {
		return "", &observe.FaultsError{
			Err:    countersign.Errorf(countersign.CodeRelayDocument, "the request is not as the route's OpenAPI document has it"),
			Faults: faults[:min(len(faults), maxFaults)],
		}
	}
	return "", nil
}

// readBody reads the whole body and puts it back.
func readBody(r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		if failed := observe.From(r.Context()).Failed(); failed != nil {
			return nil, failed
		}
		return nil, countersign.Errorf(countersign.CodeRelayBody, "the body ended early or could not be read").Because(err)
	}
	_ = r.Body.Close() // it is read
	r.Body, r.ContentLength, r.TransferEncoding = http.NoBody, int64(len(body)), nil
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return body, nil
}

func (o *operation) input(r *http.Request, path map[string]string, query url.Values, formats openapi3.SchemaValidationOption) *openapi3filter.RequestValidationInput {
	return &openapi3filter.RequestValidationInput{
		Request: r, PathParams: path, QueryParams: query, Route: o.route,
		Options: &openapi3filter.Options{
			AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, SkipSettingDefaults: true,
			SchemaValidationOptions: []openapi3.SchemaValidationOption{formats},
		},
	}
}

// checkParameters holds all parameters against the document, those of the path item that the operation does not have itself too.
func (o *operation) checkParameters(r *http.Request, path map[string]string, query url.Values, formats openapi3.SchemaValidationOption) []observe.Fault {
	input := o.input(r, path, query, formats)
	var faults []observe.Fault
	own := o.route.Operation.Parameters
	for i, ref := range slices.Concat(o.route.PathItem.Parameters, own) {
		p := ref.Value
		if i < len(o.route.PathItem.Parameters) && own.GetByInAndName(p.In, p.Name) != nil {
			continue
		}
		at := observe.Fault{In: p.In, Name: short(p.Name)}
		if !isList(p) && timesOf(r, query, p) > 1 {
			at.Reason = "stands more than once"
			faults = append(faults, at)
		} else if err := openapi3filter.ValidateParameter(r.Context(), input, p); err != nil {
			faults = append(faults, kinFaults(at, err)...)
		}
	}
	return faults
}

// isList tells whether a parameter may stand several times: which of them an application takes is anyone's guess otherwise.
func isList(p *openapi3.Parameter) bool {
	if p.Schema == nil || p.Schema.Value == nil {
		return false
	}
	return p.Schema.Value.Type.Permits("array") || p.Schema.Value.Type.Permits("object")
}

func timesOf(r *http.Request, query url.Values, p *openapi3.Parameter) int {
	switch p.In {
	case openapi3.ParameterInQuery:
		return len(query[p.Name])
	case openapi3.ParameterInHeader:
		return len(r.Header.Values(p.Name))
	case openapi3.ParameterInCookie:
		return len(r.CookiesNamed(p.Name))
	}
	return 1
}

// checkBody holds the body against the document.
func (o *operation) checkBody(r *http.Request, body []byte, depth int) ([]observe.Fault, error) {
	at := observe.Fault{In: "body"}
	if len(body) == 0 {
		if o.body != nil && o.body.Required {
			at.Reason = "is missing"
			return []observe.Fault{at}, nil
		}
		return nil, nil
	}
	if o.body == nil {
		at.Reason = "the operation has none"
		return []observe.Fault{at}, nil
	}
	if encoding := r.Header.Values("Content-Encoding"); len(encoding) > 0 && !(len(encoding) == 1 && strings.EqualFold(encoding[0], "identity")) {
		return nil, countersign.Errorf(countersign.CodeRelayContentType, "an encoded body can't be held against the document: send it as it is")
	}
	mediaType, err := checkContentType(r.Header, nil)
	if err != nil {
		return nil, err
	}
	name, media := mediaOf(o.body.Content, mediaType)
	if media == nil || !isJSON(mediaType) && mediaType != formMedia {
		return nil, countersign.Errorf(countersign.CodeRelayContentType, "the document has no JSON or form of this type here; it has: %.200s",
			strings.Join(slices.Sorted(maps.Keys(o.body.Content)), ", "))
	}
	if mediaType == formMedia {
		return o.checkForm(r, body)
	}
	value, err := parseJSON(body, depth)
	if err != nil {
		return nil, countersign.Errorf(countersign.CodeRelayBody, "the body: %s", err.Error())
	}
	if check := o.bodies[name]; check != nil {
		return check(value), nil
	}
	return nil, nil
}

// mediaOf is the most specific entry of the document for a media type: itself, type/*, */*.
func mediaOf(content openapi3.Content, mediaType string) (string, *openapi3.MediaType) {
	kind, _, _ := strings.Cut(mediaType, "/")
	for _, want := range []string{mediaType, kind + "/*", "*/*"} {
		for name, media := range content {
			plain, _, _ := strings.Cut(name, ";")
			if strings.EqualFold(strings.TrimSpace(plain), want) && media != nil {
				return name, media
			}
		}
	}
	return "", nil
}

// checkForm leaves forms to kin-openapi, on a copy of the request.
func (o *operation) checkForm(r *http.Request, body []byte) ([]observe.Fault, error) {
	if form, err := url.ParseQuery(string(body)); err != nil || len(form) > maxCount {
		return nil, countersign.Errorf(countersign.CodeRelayBody, "the form can't be read, or has over %d fields", maxCount)
	}
	copied := r.Clone(context.WithoutCancel(r.Context()))
	copied.Body = io.NopCloser(bytes.NewReader(body))
	copied.GetBody = nil
	if err := openapi3filter.ValidateRequestBody(r.Context(), o.input(copied, nil, nil, formats()), o.body); err != nil {
		return kinFaults(observe.Fault{In: "body"}, err), nil
	}
	return nil, nil
}
