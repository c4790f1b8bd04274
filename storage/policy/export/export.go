// Package export says the call graph in the words of others: Kubernetes, Istio, Envoy, nginx and Mermaid.
//
// Every export denies by default and allows the calls of the policy. What a format can't say (scopes by path, conditions,
// who is a service and who an operator) stands in its comments, so nothing is wider than the policy without saying so. The
// package never reads or writes a file, never decides about a token, and never names a call of a disabled service.
package export

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/countersign/countersign"
)

// Options of an export. The zero value of each has a default, but Issuer has none: istio and envoy need it.
type Options struct {
	Issuer      string // our issuer identifier
	JWKSURI     string // default: <Issuer>/.well-known/jwks.json
	Namespace   string // kubernetes, istio; default "default"
	AppLabel    string // the label whose value is the service's name; default "app"
	Port        int    // kubernetes: of the services; 0: every port
	JWKSCluster string // envoy: the cluster that reaches JWKSURI; default "countersign"
	Principal   string // istio: {trust_domain}, {namespace} and {name} are replaced; must hold {name} and no *; default: our IDs, "{trust_domain}/{name}"
}

// Formats are the names of the formats.
func Formats() []string { return []string{"kubernetes", "istio", "envoy", "nginx", "mermaid"} }

// ErrIssuer is returned where tokens are checked and Options.Issuer is not known.
var ErrIssuer = errors.New("the issuer of our tokens is not known")

// ErrPrincipal is returned for an Options.Principal that would name more callers than one.
var ErrPrincipal = errors.New("the principal does not name one caller")

// Export writes the policy in a format. It is pure and deterministic. An error is an unknown format, a missing option or
// [ErrPrincipal].
func Export(p *countersign.Policy, format string, o Options) ([]byte, error) {
	e := &exporter{p: p, o: o.withDefaults()}
	// Istio takes a * at either end as a wildcard; without {name} each rule would let every caller in.
	if !strings.Contains(e.o.Principal, "{name}") || strings.Contains(e.principal("name"), "*") {
		return nil, ErrPrincipal
	}
	switch format {
	case "kubernetes":
		e.kubernetes()
	case "istio", "envoy":
		if o.Issuer == "" {
			return nil, ErrIssuer
		}
		if format == "istio" {
			e.istio()
		} else {
			e.envoy()
		}
	case "nginx":
		e.nginx()
	case "mermaid":
		e.mermaid()
	default:
		return nil, fmt.Errorf("there is no format %.40q: there are %s", format, strings.Join(Formats(), ", "))
	}
	return e.b.Bytes(), nil
}

func (o Options) withDefaults() Options {
	set := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	set(&o.JWKSURI, o.Issuer+"/.well-known/jwks.json")
	set(&o.Namespace, "default")
	set(&o.AppLabel, "app")
	set(&o.JWKSCluster, "countersign")
	set(&o.Principal, "{trust_domain}/{name}")
	return o
}

type exporter struct {
	p *countersign.Policy
	o Options
	b bytes.Buffer
}

// line writes one line. Values come from a policy that was found free of faults, or are quoted.
func (e *exporter) line(format string, args ...any) { fmt.Fprintf(&e.b, format+"\n", args...) }

// note writes a comment; the text may hold anything that a policy may.
func (e *exporter) note(prefix, format string, args ...any) {
	text := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029' || r == '\u0085' {
			return ' '
		}
		return r
	}, fmt.Sprintf(format, args...))
	e.line("%s%s", prefix, text)
}

// active are the services that may be called or call.
func (e *exporter) active() []*countersign.Service {
	var out []*countersign.Service
	for i := range e.p.Services {
		if e.p.Services[i].Disabled == nil {
			out = append(out, &e.p.Services[i])
		}
	}
	return out
}

// open are the calls between services that are not disabled.
func (e *exporter) open(which func(c *countersign.Call) bool) []*countersign.Call {
	var out []*countersign.Call
	for i := range e.p.Calls {
		c := &e.p.Calls[i]
		from, okFrom := e.p.Service(c.From)
		to, okTo := e.p.Service(c.To)
		if okFrom && okTo && from.Disabled == nil && to.Disabled == nil && which(c) {
			out = append(out, c)
		}
	}
	return out
}

func (e *exporter) callsTo(name string) []*countersign.Call {
	return e.open(func(c *countersign.Call) bool { return c.To == name })
}

func (e *exporter) callsFrom(name string) []*countersign.Call {
	return e.open(func(c *countersign.Call) bool { return c.From == name })
}

// disabled says which services are left out, and why.
func (e *exporter) disabled(prefix string) {
	for i := range e.p.Services {
		if s := &e.p.Services[i]; s.Disabled != nil {
			e.note(prefix, "The service %s is disabled: every call from and to it is left out.", s.Name)
		}
	}
}

// notes says of a call what the format does not enforce.
func (e *exporter) notes(prefix string, c *countersign.Call, tokens bool) {
	switch {
	case len(c.Scopes) == 0:
		e.note(prefix, "%s -> %s: mTLS only, no token.", c.From, c.To)
	case tokens:
		e.note(prefix, "%s -> %s: a token with scope %s. Which scope which path needs, the service checks.", c.From, c.To, strings.Join(scopeNames(c), " or "))
	default:
		e.note(prefix, "%s -> %s: NOT CHECKED HERE: a token with scope %s. The service checks it.", c.From, c.To, strings.Join(scopeNames(c), " or "))
	}
	if c.When != "" {
		e.note(prefix, "%s -> %s: NOT CHECKED HERE: when %s. The authority checks it when it mints the token.", c.From, c.To, c.When)
	}
}

func scopeNames(c *countersign.Call) []string {
	names := make([]string, 0, len(c.Scopes))
	for _, s := range c.Scopes {
		names = append(names, s.Name)
	}
	return names
}

// principal is how Istio names a service.
func (e *exporter) principal(name string) string {
	return strings.NewReplacer("{trust_domain}", e.p.TrustDomain, "{namespace}", e.o.Namespace, "{name}", name).Replace(e.o.Principal)
}

// q is s as a YAML scalar in double quotes: JSON's strings are YAML's.
func q(s string) string { return strconv.QuoteToASCII(s) }

// entries are the services that users' tokens enter at.
func (e *exporter) entries() []string {
	var names []string
	for _, s := range e.active() {
		if len(s.Accepts) > 0 {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	return names
}
