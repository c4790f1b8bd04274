package filter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/routers"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const maxDocument = 4 << 20

// document is an OpenAPI document, made ready: every schema is compiled.
type document struct {
	paths   *http.ServeMux // of pathOperations, under the base
	depth   int
	formats openapi3.SchemaValidationOption
}

// pathOperations are the operations of one path template.
type pathOperations struct {
	names    []string // of the parameters, by segment; "": literal
	byMethod map[string]*operation
	allow    string
}

func (*pathOperations) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusNotFound)
}

type operation struct {
	route  *routers.Route
	body   *openapi3.RequestBody // nil: it has none
	bodies map[string]checkJSON  // of JSON bodies, by the media type as the document has it
}

// loadDocument reads the file, once.
func loadDocument(dir string, cfg OpenAPI) (*document, error) {
	path := cfg.File
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxDocument+1))
	if err != nil {
		return nil, err
	}
	d, err := parseDocument(raw, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// parseDocument makes the document ready, or says why it can't be one to hold requests against. References stay within it.
func parseDocument(raw []byte, cfg OpenAPI) (d *document, err error) {
	defer func() { // libraries have met fewer documents than there are
		if p := recover(); p != nil {
			d, err = nil, errors.New("it can't be read")
		}
	}()
	if len(raw) > maxDocument {
		return nil, fmt.Errorf("it has over %d bytes", maxDocument)
	}
	loader := openapi3.NewLoader() // follows no reference to other files and none over the network
	doc, err := loader.LoadFromData(raw)
	if err != nil {
		return nil, oneLine(err)
	}
	if v := doc.OpenAPIMajorMinor(); v != "3.0" && v != "3.1" {
		return nil, fmt.Errorf("openapi is %.20q: 3.0 and 3.1 are taken", doc.OpenAPI)
	}
	if err := doc.Validate(context.Background(), openapi3.DisableExamplesValidation()); err != nil {
		return nil, oneLine(err)
	}
	if doc.Paths.Len() == 0 {
		return nil, errors.New("it has no paths")
	}
	base, err := baseOf(doc, cfg.Base)
	if err != nil {
		return nil, err
	}
	d = &document{paths: http.NewServeMux(), depth: cfg.Depth, formats: formats()}
	if d.depth == 0 {
		d.depth = DefaultDepth
	}
	c, err := newCompiler(doc)
	if err != nil {
		return nil, err
	}
	for _, template := range doc.Paths.InMatchingOrder() {
		if err := d.addPath(doc, c, base, template); err != nil {
			return nil, fmt.Errorf("path %.100q: %w", template, err)
		}
	}
	return d, nil
}

// oneLine keeps the first line of what a library says: the rest is dumps of schemas.
func oneLine(err error) error {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return fmt.Errorf("%.300s", first)
}

// baseOf is what stands before the paths: what the configuration says, or the path that all servers of the document have.
func baseOf(doc *openapi3.T, configured string) (string, error) {
	if configured != "" {
		return strings.TrimSuffix(configured, "/"), nil
	}
	base := ""
	for i, server := range doc.Servers {
		u, err := url.Parse(server.URL)
		if err != nil || strings.Contains(server.URL, "{") {
			return "", errors.New("a server of it has variables or no URL: say openapi.base")
		}
		path := strings.TrimSuffix(u.Path, "/")
		if i > 0 && path != base {
			return "", errors.New("its servers have different paths: say openapi.base")
		}
		base = path
	}
	return base, nil
}

func (d *document) addPath(doc *openapi3.T, c *compiler, base, template string) error {
	item := doc.Paths.Value(template)
	// Wildcards of OpenAPI may have any name: they go by their place.
	ops := &pathOperations{byMethod: map[string]*operation{}}
	pattern, err := templatePattern(base, template, ops)
	if err != nil {
		return err
	}
	if len(item.Servers) > 0 {
		return errors.New("servers of a path are not followed")
	}
	for method, op := range item.Operations() {
		if op.Servers != nil && len(*op.Servers) > 0 {
			return fmt.Errorf("%s: servers of an operation are not followed", method)
		}
		o := &operation{
			route: &routers.Route{Spec: doc, Path: template, PathItem: item, Method: method, Operation: op}, bodies: map[string]checkJSON{},
		}
		pointer := "#/paths/" + escapePointer(template)
		if err := c.parameters(pointer+"/parameters/", item.Parameters); err != nil {
			return err
		}
		pointer += "/" + strings.ToLower(method)
		if err := c.parameters(pointer+"/parameters/", op.Parameters); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		if err := o.addBody(c, pointer, op.RequestBody); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		ops.byMethod[method] = o
		ops.allow = strings.Join(slices.Sorted(slices.Values(append(strings.FieldsFunc(ops.allow, isSeparator), method))), ", ")
	}
	return registerPath(d.paths, pattern, ops)
}

func isSeparator(r rune) bool { return r == ',' || r == ' ' }

// addBody compiles the JSON bodies. Those of other types are judged when they come.
func (o *operation) addBody(c *compiler, pointer string, ref *openapi3.RequestBodyRef) error {
	if ref == nil || ref.Value == nil {
		return nil
	}
	o.body = ref.Value
	pointer += "/requestBody"
	if ref.Ref != "" {
		pointer = ref.Ref
	}
	for name, media := range ref.Value.Content {
		if media == nil || media.Schema == nil {
			continue
		}
		check, err := c.compile(pointer+"/content/"+escapePointer(name)+"/schema", media.Schema)
		if err != nil {
			return fmt.Errorf("body %.100q: %w", name, err)
		}
		o.bodies[name] = check
	}
	return nil
}

// templatePattern makes a pattern of net/http of a path template, whose parameters must be whole segments.
func templatePattern(base, template string, ops *pathOperations) (string, error) {
	var b strings.Builder
	whole := base + template
	parts := strings.Split(strings.TrimPrefix(whole, "/"), "/")
	for i, part := range parts {
		switch name, ok := strings.CutPrefix(part, "{"); {
		case part == "" && i == len(parts)-1:
			b.WriteString("/{$}")
		case ok && strings.HasSuffix(name, "}") && !strings.ContainsAny(name[:len(name)-1], "{}"):
			ops.names = append(ops.names, strings.TrimSuffix(name, "}"))
			b.WriteString("/{w" + strconv.Itoa(i) + "}")
		case strings.ContainsAny(part, "{}"):
			return "", errors.New("a parameter must be a whole segment")
		default:
			literal, err := url.PathUnescape(part)
			if err != nil || checkSegment(literal) != "" {
				return "", errors.New("no request with this path gets through")
			}
			ops.names = append(ops.names, "")
			b.WriteString("/" + url.PathEscape(literal))
		}
	}
	return b.String(), nil
}

func registerPath(mux *http.ServeMux, pattern string, h http.Handler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("it overlaps another path of the document, and neither is more specific")
		}
	}()
	mux.Handle(pattern, h)
	return nil
}

// find is the operation of a request, its path's parameters, and the methods that there are; nil: the document has none.
func (d *document) find(method string, u *url.URL) (o *operation, parameters map[string]string, allow string) {
	handler, _ := d.paths.Handler(&http.Request{Method: http.MethodGet, URL: u})
	ops, ok := handler.(*pathOperations)
	if !ok {
		return nil, nil, ""
	}
	if o = ops.byMethod[method]; o == nil && method == http.MethodHead {
		o = ops.byMethod[http.MethodGet]
	}
	if o == nil {
		return nil, nil, ops.allow
	}
	parameters = map[string]string{}
	for i, segment := range strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/") {
		if i < len(ops.names) && ops.names[i] != "" {
			parameters[ops.names[i]], _ = url.PathUnescape(segment) // checkPath
		}
	}
	return o, parameters, ""
}

// escapePointer makes a token of a JSON pointer in a URI fragment (RFC 6901 6).
func escapePointer(s string) string {
	return url.PathEscape(strings.NewReplacer("~", "~0", "/", "~1").Replace(s))
}

// schemaURL is where the document stands for the compiler; nothing is ever fetched from there.
const schemaURL = "urn:countersign:openapi"

// compiler compiles the schemas of OpenAPI 3.1, which are JSON Schema 2020-12, at the start: kin-openapi would compile them
// anew for each request, and go on with the rules of 3.0 where that fails. Those of 3.0 it checks by itself.
type compiler struct {
	json *jsonschema.Compiler // nil: the document is 3.0
}

func newCompiler(doc *openapi3.T) (*compiler, error) {
	if !doc.IsOpenAPI31OrLater() {
		return &compiler{}, nil
	}
	encoded, err := doc.MarshalJSON()
	if err != nil {
		return nil, oneLine(err)
	}
	plain, err := jsonschema.UnmarshalJSON(bytes.NewReader(encoded))
	if err != nil {
		return nil, oneLine(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(noLoader{})
	if err := c.AddResource(schemaURL, plain); err != nil {
		return nil, oneLine(err)
	}
	return &compiler{json: c}, nil
}

// noLoader refuses references out of the document.
type noLoader struct{}

func (noLoader) Load(string) (any, error) {
	return nil, errors.New("references to other documents are not followed")
}

// compile makes the check of values under one schema.
func (c *compiler) compile(pointer string, ref *openapi3.SchemaRef) (checkJSON, error) {
	if c.json == nil {
		return kinCheck(ref.Value), nil
	}
	schema, err := c.json.Compile(schemaURL + pointer)
	if err != nil {
		return nil, oneLine(err)
	}
	return schemaCheck(schema), nil
}

// parameters makes sure that kin-openapi will be able to compile what it is going to.
func (c *compiler) parameters(pointer string, list openapi3.Parameters) error {
	if c.json == nil {
		return nil
	}
	for i, p := range list {
		at := pointer + strconv.Itoa(i)
		if p.Ref != "" {
			at = p.Ref
		}
		if p.Value == nil || p.Value.Schema == nil {
			continue
		}
		if _, err := c.compile(at+"/schema", p.Value.Schema); err != nil {
			return fmt.Errorf("parameter %.100q: %w", p.Value.Name, err)
		}
	}
	return nil
}
