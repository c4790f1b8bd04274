package filter

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// The defaults of a route.
const (
	DefaultBody        Size = 1 << 20
	DefaultHeaderBytes Size = 16 << 10
	DefaultQueryBytes  Size = 8 << 10
	DefaultCount            = 64
	DefaultDepth            = 32
)

const (
	maxCount        = 1000
	maxJSONDepth    = 100
	maxOpenAPIBody  = 16 << 20 // such a body is held in memory
	maxContentTypes = 32
)

// Validate tells the first fault of a route by itself; how routes go together is [NewRouter]'s, and the OpenAPI document
// [NewValidator]'s.
func (r *Route) Validate() error {
	if !isRouteName(r.Name) {
		return errors.New("name must be 1 to 64 letters, digits, - _ or . and not none")
	}
	if err := checkMethods(r.Methods); err != nil {
		return err
	}
	if _, err := parsePattern(r.Path); err != nil {
		return err
	}
	for name, count := range map[string]int{"headers.count": r.Headers.Count, "query.count": r.Query.Count} {
		if count < 0 || count > maxCount {
			return fmt.Errorf("%s is %d: it must be 1 to %d", name, count, maxCount)
		}
	}
	for name, size := range map[string]Size{"headers.bytes": r.Headers.Bytes, "query.bytes": r.Query.Bytes} {
		if size < 0 && name == "headers.bytes" || size > 1<<20 {
			return fmt.Errorf("%s must be 1B to 1MiB", name)
		}
	}
	if len(r.ContentTypes) > maxContentTypes {
		return fmt.Errorf("content_types has over %d", maxContentTypes)
	}
	for _, t := range r.ContentTypes {
		if !isMediaRange(t) {
			return fmt.Errorf("content_types has %.64q: write type/subtype or type/*, in lower case and without parameters", t)
		}
	}
	return r.OpenAPI.validate(r.Body)
}

func (o OpenAPI) validate(body Size) error {
	switch {
	case o.File == "" && (o.Base != "" || o.Depth != 0):
		return errors.New("openapi has no file")
	case o.File != "" && body > maxOpenAPIBody:
		return fmt.Errorf("body must be at most 16MiB where requests are held against an OpenAPI document: they are kept in memory")
	case o.Depth < 0 || o.Depth > maxJSONDepth:
		return fmt.Errorf("openapi.depth is %d: it must be 1 to %d", o.Depth, maxJSONDepth)
	case o.Base != "" && o.Base != "/" && (!strings.HasPrefix(o.Base, "/") || strings.HasSuffix(o.Base, "/")):
		return fmt.Errorf("openapi.base %.64q must begin with a slash and not end in one", o.Base)
	}
	return nil
}

// isRouteName knows what may be a label of metrics; none is what requests without a route are counted under.
func isRouteName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != "" && s != "none" && len(s) <= 64
}

func checkMethods(methods []string) error {
	if len(methods) == 0 {
		return errors.New("methods is empty: name those that the route takes")
	}
	known := []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
	}
	for i, m := range methods {
		if !slices.Contains(known, m) {
			return fmt.Errorf("methods has %.32q: there are %s", m, strings.Join(known, ", "))
		}
		if slices.Contains(methods[:i], m) {
			return fmt.Errorf("methods has %s twice", m)
		}
	}
	return nil
}

// isMediaRange knows type/subtype and type/* of RFC 9110 8.3.1, in lower case.
func isMediaRange(s string) bool {
	kind, sub, ok := strings.Cut(s, "/")
	return ok && isToken(kind) && (sub == "*" || isToken(sub)) && len(s) <= 127
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$&-^_.+", c) < 0 {
			return false
		}
	}
	return s != ""
}
