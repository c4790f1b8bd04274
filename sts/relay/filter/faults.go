package filter

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/countersign/countersign/sts/relay/observe"
)

// checkJSON holds a value against a schema. Faults name the place in the value and the rule of the schema, never the value;
// none: it is valid.
type checkJSON func(value any) []observe.Fault

const maxFaults = 10

// formats are checked by all documents, beside those that kin-openapi knows (date, date-time, byte, int32, int64).
func formats() openapi3.SchemaValidationOption {
	return openapi3.WithStringFormatValidators(map[string]openapi3.StringFormatValidator{
		"uuid": openapi3.NewRegexpFormatValidator(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`),
		"ipv4": openapi3.NewIPValidator(true),
		"ipv6": openapi3.NewIPValidator(false),
	})
}

// kinCheck is of OpenAPI 3.0. It stops at the first fault: a list of all of a large body could be many times its size.
func kinCheck(schema *openapi3.Schema) checkJSON {
	options := formats()
	return func(value any) []observe.Fault {
		err := schema.VisitJSON(value, openapi3.VisitAsRequest(), options)
		if err == nil {
			return nil
		}
		return kinFaults(observe.Fault{In: "body"}, err)
	}
}

// kinFaults reads what kin-openapi says. Its messages quote values, so they are made anew from the rule and the schema.
func kinFaults(at observe.Fault, err error) []observe.Fault {
	var schema *openapi3.SchemaError
	var parse *openapi3filter.ParseError
	switch {
	case errors.Is(err, openapi3filter.ErrInvalidRequired):
		at.Reason = "is missing"
	case errors.Is(err, openapi3filter.ErrInvalidEmptyValue):
		at.Reason = "must not be empty"
	case errors.As(err, &schema):
		// Of allOf, oneOf and anyOf the cause is more telling, if there is one.
		for {
			var inner *openapi3.SchemaError
			if schema.Origin == nil || !errors.As(schema.Origin, &inner) {
				break
			}
			schema = inner // whose pointer is that of the outer ones, continued
		}
		at.Pointer = pointerOf(schema.JSONPointer())
		at.Reason = kinReason(schema)
	case errors.As(err, &parse):
		at.Reason = "is not of the form that its schema and style say"
	default:
		at.Reason = "is not as the document has it"
	}
	at.Pointer = short(at.Pointer)
	return []observe.Fault{at}
}

// kinReason names the rule, and where it is plain its value; both are the document's.
func kinReason(e *openapi3.SchemaError) string {
	s := e.Schema
	if s == nil {
		return fmt.Sprintf("breaks the rule %q", e.SchemaField)
	}
	switch e.SchemaField {
	case "type":
		return "must be " + strings.Join(s.Type.Slice(), " or ")
	case "required":
		if at := e.JSONPointer(); len(at) > 0 && slices.Contains(s.Required, at[len(at)-1]) {
			return "is missing"
		}
		return "a required member is missing: " + short(strings.Join(s.Required, ", "))
	case "properties", "additionalProperties":
		return "has a member that the document does not know"
	case "maxLength":
		if s.MaxLength != nil {
			return fmt.Sprintf("is longer than %d", *s.MaxLength)
		}
	case "minLength":
		return fmt.Sprintf("is shorter than %d", s.MinLength)
	case "maximum":
		if s.Max != nil {
			return fmt.Sprintf("is over %v", *s.Max)
		}
	case "minimum":
		if s.Min != nil {
			return fmt.Sprintf("is under %v", *s.Min)
		}
	case "format":
		return "is not of the format " + short(s.Format)
	case "pattern":
		return "does not match the pattern " + short(s.Pattern)
	}
	return fmt.Sprintf("breaks the rule %q", e.SchemaField)
}

// schemaCheck is of OpenAPI 3.1.
func schemaCheck(schema *jsonschema.Schema) checkJSON {
	return func(value any) []observe.Fault {
		err := schema.Validate(value)
		if err == nil {
			return nil
		}
		var invalid *jsonschema.ValidationError
		if !errors.As(err, &invalid) {
			return []observe.Fault{{In: "body", Reason: "is not as the document has it"}}
		}
		faults := leaves(nil, invalid)
		slices.SortFunc(faults, func(a, b observe.Fault) int { return strings.Compare(a.Pointer+a.Reason, b.Pointer+b.Reason) })
		return slices.CompactFunc(faults, func(a, b observe.Fault) bool { return a == b })
	}
}

// leaves are the innermost causes, a few of them.
func leaves(found []observe.Fault, e *jsonschema.ValidationError) []observe.Fault {
	if len(e.Causes) == 0 && len(found) < maxFaults {
		return append(found, observe.Fault{In: "body", Pointer: short(pointerOf(e.InstanceLocation)), Reason: schemaReason(e.ErrorKind)})
	}
	for _, cause := range e.Causes {
		if len(found) >= maxFaults {
			break
		}
		found = leaves(found, cause)
	}
	return found
}

func schemaReason(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *kind.Type:
		return "must be " + strings.Join(k.Want, " or ")
	case *kind.Required:
		return "a required member is missing: " + short(strings.Join(k.Missing, ", "))
	case *kind.AdditionalProperties, *kind.FalseSchema:
		return "has a member that the document does not know"
	case *kind.MaxLength:
		return fmt.Sprintf("is longer than %d", k.Want)
	case *kind.MinLength:
		return fmt.Sprintf("is shorter than %d", k.Want)
	case *kind.Maximum:
		return "is over " + k.Want.RatString()
	case *kind.Minimum:
		return "is under " + k.Want.RatString()
	case *kind.Format:
		return "is not of the format " + short(k.Want)
	case *kind.Pattern:
		return "does not match the pattern " + short(k.Want)
	}
	if path := k.KeywordPath(); len(path) > 0 {
		return fmt.Sprintf("breaks the rule %q", path[0])
	}
	return "is not as the document has it"
}

// pointerOf is a JSON pointer (RFC 6901) of its tokens.
func pointerOf(tokens []string) string {
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(t))
	}
	return b.String()
}

// short bounds what comes from names in the request or the document.
func short(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
