package filter

import (
	"fmt"
	"strconv"
	"strings"
)

// Route is one row of the relay's table: which requests there are, and what they may look like. The relay's own
// configuration of a route embeds it (`yaml:",inline"`). All of it is strict: what no route names is refused.
type Route struct {
	Name         string   `yaml:"name"`          // unique; stands in metrics and log: letters, digits, - _ . and at most 64
	Methods      []string `yaml:"methods"`       // at least one, upper case; GET takes HEAD along. Never CONNECT, never TRACE
	Path         string   `yaml:"path"`          // see [Router]
	Body         Size     `yaml:"body"`          // largest body; default 1MiB, and none for GET, HEAD and OPTIONS
	Headers      Headers  `yaml:"headers"`       //
	Query        Query    `yaml:"query"`         //
	ContentTypes []string `yaml:"content_types"` // media types of bodies: type/subtype or type/*; none: any
	OpenAPI      OpenAPI  `yaml:"openapi"`       // none: requests are not held against a document
}

// Headers limit the header of a request. The server's own limit (http.Server.MaxHeaderBytes) comes first.
type Headers struct {
	Bytes Size `yaml:"bytes"` // names and values together; default 16KiB
	Count int  `yaml:"count"` // fields; default 64, at most 1000
}

// Query limits the query of the URL.
type Query struct {
	Bytes Size `yaml:"bytes"` // default 8KiB
	Count int  `yaml:"count"` // parameters; default 64, at most 1000
}

// OpenAPI names the document that requests are held against; see [Validator].
type OpenAPI struct {
	File  string `yaml:"file"`  // OpenAPI 3.0 or 3.1, JSON or YAML; relative to the configuration file
	Base  string `yaml:"base"`  // what stands before the document's paths; default: the path of its one server
	Depth int    `yaml:"depth"` // of JSON bodies; default 32, at most 100
}

// Size is a number of bytes, written with its unit: 512B, 64KiB, 1MiB; or none for no bytes at all. The zero value is "not said".
type Size int64

// NoBytes is the Size that lets nothing through.
const NoBytes Size = -1

// UnmarshalText reads a size of 1B to 1023GiB.
func (s *Size) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*s = NoBytes
		return nil
	}
	for _, unit := range []struct {
		name  string
		bytes uint64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"B", 1}} {
		digits, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 30)
		if err != nil || n == 0 || n > 1<<40/unit.bytes {
			break
		}
		*s = Size(n * unit.bytes)
		return nil
	}
	return fmt.Errorf("%.32q is no size: write for example 512B, 64KiB, 1MiB, or none", text)
}

// or is s, or what is taken when nothing is said; never negative.
func (s Size) or(otherwise Size) int64 {
	if s == 0 {
		s = otherwise
	}
	return int64(max(s, 0))
}
