package filter

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/countersign/countersign/sts/relay/observe"
)

// orders is a route whose requests are held against a document.
func orders(file string) Route {
	return Route{
		Name: "orders", Methods: []string{"GET", "POST", "DELETE", "PUT"}, Path: "/api/{rest...}", Body: 64 << 10,
		OpenAPI: OpenAPI{File: file, Depth: 8},
	}
}

const uuid = "0193f0a0-1111-7222-8333-444455556666"

type requestCase struct {
	method, target, body string
	header               []string
	want                 string // the code and a part of the fault; "": it gets through
}

// requests are judged alike by both versions.
func requests() map[string]requestCase {
	json := []string{"Content-Type: application/json"}
	tenant := []string{"X-Tenant: acme"}
	form := []string{"Content-Type: application/x-www-form-urlencoded"}
	post := func(body, want string) requestCase { return requestCase{"POST", "/api/orders", body, json, want} }
	get := func(query, want string) requestCase {
		return requestCase{"GET", "/api/orders" + query, "", tenant, want}
	}
	return map[string]requestCase{
		"body":                   post(`{"sku":"ab","quantity":1,"note":null,"when":"2026-01-02T03:04:05Z"}`, ""),
		"body of a union":        post(`{"sku":"ab","quantity":1,"pay":{"card":"1234"}}`, ""),
		"body with charset":      {"POST", "/api/orders", `{"sku":"ab","quantity":1}`, []string{"Content-Type: application/json; charset=UTF-8"}, ""},
		"no body":                post("", "CS7038 body  is missing"),
		"missing member":         post(`{"sku":"ab"}`, "CS7038 body "),
		"unknown member":         post(`{"sku":"ab","quantity":1,"hunter2":1}`, "CS7038 body "),
		"wrong type":             post(`{"sku":"hunter2","quantity":"hunter2"}`, "CS7038 body /quantity must be integer"),
		"not whole":              post(`{"sku":"ab","quantity":1.5}`, "CS7038 body /quantity must be integer"),
		"too large a number":     post(`{"sku":"ab","quantity":100}`, "CS7038 body /quantity is over 99"),
		"beyond 2^53":            post(`{"sku":"ab","quantity":9007199254740993}`, "CS7038 body /quantity is over 99"),
		"too long":               post(`{"sku":"hunter2hunter2","quantity":1}`, "CS7038 body /sku is longer than 12"),
		"too short":              post(`{"sku":"a","quantity":1}`, "CS7038 body /sku is shorter than 2"),
		"not of the enum":        post(`{"sku":"ab","quantity":1,"secret":"hunter2"}`, `CS7038 body /secret breaks the rule "enum"`),
		"not of the format":      post(`{"sku":"ab","quantity":1,"when":"hunter2"}`, "CS7038 body /when is not of the format date-time"),
		"deep pointer":           post(`{"sku":"ab","quantity":1,"lines":[{},{"a/b":"hunter2"}]}`, "CS7038 body /lines/1/a~1b must be number"),
		"none of the union":      post(`{"sku":"ab","quantity":1,"pay":{"card":"hunter2"}}`, "CS7038 body /pay"),
		"not an object":          post(`["hunter2"]`, "CS7038 body  must be object"),
		"null":                   post(`null`, "CS7038 body "),
		"no JSON":                post(`{"sku":"hunter2"`, "CS7036"),
		"two values":             post(`{"sku":"ab","quantity":1} {}`, "CS7036"),
		"member twice":           post(`{"sku":"ab","quantity":1,"quantity":5}`, "CS7036"),
		"member twice, escaped":  post(`{"sku":"ab","quantity":1,"quan\u0074ity":5}`, "CS7036"),
		"no UTF-8":               post("{\"sku\":\"a\xff\",\"quantity\":1}", "CS7036"),
		"no double":              post(`{"sku":"ab","quantity":1e999999999}`, "CS7036"),
		"no double, small":       post(`{"sku":"ab","quantity":1e-999999999}`, "CS7036"),
		"long number":            post(`{"sku":"ab","quantity":1`+strings.Repeat("0", 70)+`}`, "CS7036"),
		"too deep":               {"POST", "/api/trees", strings.Repeat(`{"children":[`, 5) + strings.Repeat(`]}`, 5), json, "CS7036"},
		"deep":                   {"POST", "/api/trees", strings.Repeat(`{"children":[`, 4) + strings.Repeat(`]}`, 4), json, ""},
		"body may be missing":    {"POST", "/api/trees", "", nil, ""},
		"too many values":        {"POST", "/api/trees", `{"children":[` + strings.Repeat("1,", 30_000) + `1]}`, json, "CS7038 body /children/0 must be object"},
		"no content type":        {"POST", "/api/orders", `{}`, nil, "CS7035"},
		"other type":             {"POST", "/api/orders", `{}`, []string{"Content-Type: application/xml"}, "CS7035"},
		"type not validated":     {"POST", "/api/orders", `a,b`, []string{"Content-Type: text/csv"}, "CS7035"},
		"two types":              {"POST", "/api/orders", `{}`, []string{"Content-Type: application/json", "Content-Type: text/csv"}, "CS7035"},
		"other charset":          {"POST", "/api/orders", `{}`, []string{"Content-Type: application/json; charset=utf-16"}, "CS7035"},
		"encoded body":           {"POST", "/api/orders", `{}`, append(json[:1:1], "Content-Encoding: gzip"), "CS7035"},
		"form":                   {"POST", "/api/orders", "note=abc", form, ""},
		"form too long":          {"POST", "/api/orders", "note=hunter2", form, "CS7038 body /note is longer than 5"},
		"form without a field":   {"POST", "/api/orders", "x=hunter2", form, "CS7038 body"},
		"broken form":            {"POST", "/api/orders", "note=%zz", form, "CS7036"},
		"query":                  get("?limit=100&tag=a&tag=b&other=1", ""),
		"header missing":         {"GET", "/api/orders", "", nil, "CS7038 header X-Tenant is missing"},
		"header wrong":           {"GET", "/api/orders", "", []string{"X-Tenant: HUNTER2"}, "CS7038 header X-Tenant does not match the pattern"},
		"header twice":           {"GET", "/api/orders", "", []string{"X-Tenant: acme", "X-Tenant: acme"}, "CS7038 header X-Tenant stands more than once"},
		"query over the maximum": get("?limit=101", "CS7038 query limit is over 100"),
		"query no number":        get("?limit=hunter2", "CS7038 query limit is not of the form"),
		"query empty":            get("?limit=", "CS7038 query limit"),
		"query twice":            get("?limit=1&limit=2", "CS7038 query limit stands more than once"),
		"query of many":          get("?tag=a&tag=b&tag=c&tag=d", `CS7038 query tag breaks the rule "maxItems"`),
		"query, item":            get("?tag=a&tag=hunter2hunter2", "CS7038 query tag /1 is longer than 8"),
		"cookie":                 {"GET", "/api/orders", "", append(tenant[:1:1], "Cookie: session=hunter2"), "CS7038 cookie session is longer than 4"},
		"cookie twice":           {"GET", "/api/orders", "", append(tenant[:1:1], "Cookie: session=a; session=b"), "CS7038 cookie session stands more than once"},
		"path":                   {"GET", "/api/orders/" + uuid, "", nil, ""},
		"path wrong":             {"GET", "/api/orders/hunter2", "", nil, "CS7038 path order-id is not of the format uuid"},
		"path, head":             {"HEAD", "/api/orders/" + uuid, "", nil, ""},
		"body of none":           {"DELETE", "/api/orders/" + uuid, "hunter2", json, "CS7038 body  the operation has none"},
		"no such path":           {"GET", "/api/other", "", nil, "CS7030"},
		"path without base":      {"GET", "/api/api/orders", "", nil, "CS7030"},
		"no such method":         {"PUT", "/api/orders", "", nil, "CS7031"},
	}
}

func TestRequestsAgainstTheDocument(t *testing.T) {
	for _, file := range []string{"orders-3.0.yaml", "orders-3.1.yaml"} {
		a := &app{}
		server := relay(t, a, "testdata", orders(file))
		for name, c := range requests() {
			for protocol, client := range map[string]*http.Client{"h2": server.Client(), "h1": http1(server)} {
				before := len(a.took())
				// Without a known length the body is chunked.
				for kind, body := range map[string]io.Reader{"length": strings.NewReader(c.body), "chunked": io.MultiReader(strings.NewReader(c.body))} {
					if c.body == "" && kind == "chunked" {
						continue
					}
					response, p, text := send(t, client, c.method, server.URL+c.target, body, c.header...)
					where := strings.Join([]string{file, name, protocol, kind}, ", ")
					if c.want == "" {
						if after := a.took(); response.StatusCode != http.StatusOK || len(after) != before+1 || after[before] != c.method+" "+c.target+" "+c.body {
							t.Errorf("%s: %d %s, %v", where, response.StatusCode, text, after[before:])
						}
						before = len(a.took())
						continue
					}
					got := p.Code
					for _, f := range p.Errors {
						got += " " + strings.TrimSpace(f.In+" "+f.Name) + " " + f.Pointer + " " + f.Reason
					}
					if !strings.HasPrefix(flat(got), flat(c.want)) {
						t.Errorf("%s: %d %q, want %q", where, response.StatusCode, got, c.want)
					}
					if strings.Contains(strings.ToLower(text), "hunter2") && !strings.Contains(c.want, "unknown") {
						t.Errorf("%s: a value is told: %s", where, text)
					}
					if len(a.took()) != before {
						t.Errorf("%s: it came through: %v", where, a.took()[before:])
					}
				}
			}
		}
	}
}

// flat leaves single spaces.
func flat(s string) string { return strings.Join(strings.Fields(s), " ") }

// What only one of the versions has.
func TestRulesOfOneVersion(t *testing.T) {
	header := "Content-Type: application/json"
	a := &app{}
	old, young := relay(t, a, "testdata", orders("orders-3.0.yaml")), relay(t, a, "testdata", orders("orders-3.1.yaml"))
	body := func(s string) io.Reader { return strings.NewReader(`{"sku":"ab","quantity":1,` + s + `}`) }
	if _, p, _ := send(t, old.Client(), "POST", old.URL+"/api/orders", body(`"id":"x"`), header); p.Code != "CS7038" {
		t.Errorf("readOnly of 3.0: %v", p)
	}
	if _, p, _ := send(t, young.Client(), "POST", young.URL+"/api/orders", body(`"kind":"other"`), header); p.Code != "CS7038" {
		t.Errorf("const of 3.1: %v", p)
	}
	for server, want := range map[*httptest.Server]observe.Fault{
		old:   {In: "body", Pointer: "/quantity", Reason: "is missing"},
		young: {In: "body", Reason: "a required member is missing: quantity"},
	} {
		if _, p, _ := send(t, server.Client(), "POST", server.URL+"/api/orders", strings.NewReader(`{"sku":"ab"}`), header); len(p.Errors) != 1 || p.Errors[0] != want {
			t.Errorf("%v, want %v", p, want)
		}
	}
	if response, p, _ := send(t, young.Client(), "POST", young.URL+"/api/orders", body(`"kind":"order"`), header); response.StatusCode != http.StatusOK {
		t.Errorf("const of 3.1: %v", p)
	}
}

// A large body that is wrong everywhere is told by a few places.
func TestFaultsAreBounded(t *testing.T) {
	for _, file := range []string{"orders-3.0.yaml", "orders-3.1.yaml"} {
		r := orders(file)
		r.Body = 1 << 20
		server := relay(t, &app{}, "testdata", r)
		body := `{"children":[` + strings.Repeat("1,", maxValues-100) + `1]}`
		if _, p, text := send(t, server.Client(), "POST", server.URL+"/api/trees", strings.NewReader(body), "Content-Type: application/json"); p.Code != "CS7038" || len(p.Errors) == 0 || len(text) > 4096 {
			t.Errorf("%s: %.200s", file, text)
		}
		body = `{"children":[` + strings.Repeat("{},", maxValues) + `{}]}`
		if _, p, _ := send(t, server.Client(), "POST", server.URL+"/api/trees", strings.NewReader(body), "Content-Type: application/json"); p.Code != "CS7036" {
			t.Errorf("%s: over %d values: %v", file, maxValues, p)
		}
	}
}

// Documents that can't be held against are found at the start, and nothing is fetched for them.
func TestDocumentsAreChecked(t *testing.T) {
	good, err := os.ReadFile(filepath.Join("testdata", "orders-3.1.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "other.yaml"), []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	change := func(from, to string) []byte {
		if !bytes.Contains(good, []byte(from)) {
			t.Fatalf("the document has no %q", from)
		}
		return bytes.ReplaceAll(good, []byte(from), []byte(to))
	}
	ref := `"#/components/schemas/Tree"`
	for name, doc := range map[string][]byte{
		"empty":              nil,
		"no YAML":            []byte("a: [b"),
		"not OpenAPI":        []byte("a: b"),
		"swagger 2":          []byte("swagger: '2.0'\ninfo: {title: a, version: '1'}\npaths: {}"),
		"3.2":                change("openapi: 3.1.0", "openapi: 3.2.0"),
		"no paths":           []byte("openapi: 3.1.0\ninfo: {title: a, version: '1'}\npaths: {}"),
		"dangling reference": change(ref, `"#/components/schemas/None"`),
		"file reference":     change(ref, `"other.yaml"`),
		"file URL":           change(ref, `"file://`+dir+`/other.yaml"`),
		"network reference":  change(ref, `"http://127.0.0.1:1/other.yaml"`),
		"schema id":          change("{const: order}", `{$ref: "http://127.0.0.1:1/other.json"}`),
		"dynamic reference":  change("{const: order}", `{$dynamicRef: "http://127.0.0.1:1/other.json"}`),
		"dynamic file":       change("{const: order}", `{$dynamicRef: "file://`+dir+`/other.yaml"}`),
		"lookahead":          change("^[0-9]{4}$", "^(?=x)[0-9]{4}$"),
		"lookahead, header":  change("^[a-z]{3,8}$", "^(?=x)[a-z]$"),
		"part of a segment":  change("/orders/{order-id}", "/orders/x{order-id}"),
		"two bases":          change("servers: [", "servers: [{url: /v2}, "),
		"server variables":   change("https://shop.example/api", "https://{host}/api"),
		"overlap":            change("  /trees:", "  /{a}/x: {get: {parameters: [{name: a, in: path, required: true, schema: {type: string}}], responses: {'200': {description: ok}}}}\n  /trees:"),
		"impossible path":    change("  /trees:", "  /a/../b:"),
		"wrong type":         change("type: number", "type: numb"),
		"too large":          append(good[:len(good):len(good)], bytes.Repeat([]byte("#\n"), maxDocument/2)...),
	} {
		path := filepath.Join(dir, "doc.yaml")
		if err := os.WriteFile(path, doc, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewValidator(orders("doc.yaml"), dir); err == nil || len(err.Error()) > 600 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewValidator(orders("none.yaml"), dir); err == nil {
		t.Error("a file that is not there is no fault")
	}
	if v, err := NewValidator(Route{}, dir); err != nil || v != nil {
		t.Errorf("a route without a document: %v, %v", v, err)
	}
}

// What is read at the start is what counts.
func TestDocumentIsReadOnce(t *testing.T) {
	dir := t.TempDir()
	good, err := os.ReadFile(filepath.Join("testdata", "orders-3.0.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "doc.yaml")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{}
	server := relay(t, a, dir, orders("doc.yaml"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if response, p, _ := send(t, server.Client(), "GET", server.URL+"/api/orders/"+uuid, nil); response.StatusCode != http.StatusOK {
		t.Errorf("%d %v", response.StatusCode, p)
	}
}

// Where the configuration says the base, servers do not matter.
func TestBaseOfTheConfiguration(t *testing.T) {
	r := orders("orders-3.0.yaml")
	r.OpenAPI.Base, r.Path = "/v1", "/{rest...}"
	server := relay(t, &app{}, "testdata", r)
	if response, p, _ := send(t, server.Client(), "GET", server.URL+"/v1/orders/"+uuid, nil); response.StatusCode != http.StatusOK {
		t.Errorf("%d %v", response.StatusCode, p)
	}
	if _, p, _ := send(t, server.Client(), "GET", server.URL+"/api/orders/"+uuid, nil); p.Code != "CS7030" {
		t.Errorf("the document's own base: %v", p)
	}
}

func FuzzDocument(f *testing.F) {
	for _, file := range []string{"orders-3.0.yaml", "orders-3.1.yaml"} {
		doc, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc, []byte(`{"sku":"ab","quantity":1}`))
	}
	f.Fuzz(func(t *testing.T, doc, body []byte) {
		d, err := parseDocument(doc, OpenAPI{})
		if (d == nil) == (err == nil) {
			t.Fatalf("%v, %v", d, err)
		}
		_, _ = parseJSON(body, DefaultDepth)
	})
}
