package countersign

import (
	"slices"
	"time"
)

// SubjectMode says how an issuer's `sub` becomes the relay token's.
type SubjectMode string

// The subject modes of policy.md.
const (
	SubjectKeep   SubjectMode = "keep"
	SubjectPrefix SubjectMode = "prefix" // "<issuer name>:<sub>"
)

// IssuerUse says whose tokens an issuer's are. An issuer has exactly one use.
type IssuerUse string

// The uses of policy.md that this version knows.
const (
	UseUsers     IssuerUse = "users"     // subject tokens at entry points
	UseWorkloads IssuerUse = "workloads" // client assertions of services (RFC 7523)
)

// The ways in which tokens for a service are bound to the client that got them.
const (
	BindNone = "none"
	BindMTLS = "mtls" // cnf.x5t#S256 (RFC 8705 3.1)
)

// DefaultMaxHops is how many services a chain may hold if the policy does not say.
const DefaultMaxHops = 8

// Condition is a compiled `when`. It is pure, bounded in cost and safe for concurrent use. An error denies.
type Condition interface {
	Holds(ConditionInput) (bool, error)
}

// ConditionInput is what a [Condition] may look at. Everything in it is verified, except what the request asks for.
type ConditionInput struct {
	Subject  map[string]any // the claims of the verified subject token; empty for client_credentials
	Caller   Service        // the authenticated client
	Audience string         // the name of the service that the token would be for
	Scopes   []string       // that would be granted
	Machine  bool           // client_credentials
	Now      time.Time
}

// Policy is the call graph in force: immutable, made by [NewPolicy] from a document that was found free of faults.
// Its look-ups are pure and cost a map access.
type Policy struct {
	Version     int       `json:"version"` // from 1
	TrustDomain string    `json:"trust_domain"`
	MaxHops     int       `json:"max_hops"` // services that a chain may hold, 1 to 16
	Issuers     []Issuer  `json:"issuers"`
	Services    []Service `json:"services"`
	Calls       []Call    `json:"calls"`

	Frozen Frozen `json:"frozen,omitzero"` // state in the store, no part of the document

	issuerByURL map[string]*Issuer
	serviceBy   map[string]*Service
	serviceByNS map[string]*Service // by DNS name
	callBy      map[[2]string]*Call
	callsFrom   map[string][]*Call
	callsTo     map[string][]*Call
}

// Issuer is an external OIDC or OAuth issuer whose user tokens are accepted as subject tokens.
type Issuer struct {
	Name       string      `json:"name"`
	Use        IssuerUse   `json:"use"`
	URL        string      `json:"issuer"` // compared exactly with `iss`
	Algorithms []string    `json:"algorithms"`
	JWKSURI    string      `json:"jwks_uri,omitempty"` // "": by discovery
	JWKS       string      `json:"jwks,omitempty"`     // the keys themselves, instead of JWKSURI and discovery
	CAPEM      string      `json:"ca,omitempty"`       // "": the system's roots
	Tokens     []string    `json:"tokens"`             // of "access" and "id"
	Scopes     []string    `json:"scopes"`             // the only ones that it may assert
	ScopeClaim string      `json:"scope_claim"`        // "scope" or "scp"
	Subject    SubjectMode `json:"subject"`
	Carry      []string    `json:"carry"` // claims that relay tokens keep
}

// Service is a workload of the policy.
type Service struct {
	ID       ID       `json:"id"`
	Name     string   `json:"name"`
	DNS      []string `json:"dns"`
	Accepts  []Accept `json:"accepts,omitempty"` // not empty: an entry point
	TTL      Duration `json:"certificate_ttl"`   // 0: the daemon's default
	KeyTypes []string `json:"certificate_keys"`  // of "P-256" "P-384" "Ed25519" "RSA-2048" "RSA-3072" "RSA-4096"; never empty
	Alg      string   `json:"token_alg"`         // ES256 or RS256: of the tokens addressed to it
	Typ      string   `json:"token_typ"`         // at+jwt or JWT
	Bind     string   `json:"token_bind"`        // BindNone or BindMTLS: of the tokens addressed to it

	// Besides its certificate, a service proves itself as an OAuth client by an assertion (RFC 7523): with a key of
	// ClientKeys, or with a token of a workloads issuer that Enrol names.
	ClientKeys string  `json:"client_keys,omitempty"` // a JWK set of public keys, as JSON
	Enrol      []Enrol `json:"enrol,omitempty"`

	Disabled *Disabled `json:"disabled,omitempty"`

	// VoidBefore is when the service was last disabled or enabled again: join tokens for it that were made at or before
	// this instant are void. Enabling moves it too, because a token could be made while the disabling was on its way. It is
	// state in the store, like Disabled.
	VoidBefore time.Time `json:"void_before,omitzero"`
}

// Enrol names the workload tokens that prove a service: the `iss`, by the issuer's name in the policy, and the exact `sub`.
type Enrol struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
}

// Duration is a time.Duration that reads and writes as "24h0m0s" in JSON.
type Duration time.Duration

// MarshalText writes d as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error {
	parsed, err := time.ParseDuration(string(b))
	*d = Duration(parsed)
	return err
}

// Accept makes a service an entry point for one issuer's tokens.
type Accept struct {
	Issuer    string   `json:"issuer"`    // its name in the policy
	Audiences []string `json:"audiences"` // one of them must be in the token's `aud`
}

// Disabled is the state that `service disable` sets. It is no part of the document: no rollback undoes it.
type Disabled struct {
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
}

// What can be frozen.
const (
	FreezeTokens       = "tokens"       // every exchange, client_credentials, JWT-SVIDs
	FreezeCertificates = "certificates" // all but the daemon's own
	FreezeAll          = "all"
)

// Frozen is the state that `freeze` sets, like Disabled: no rollback undoes it. The zero value is nothing.
type Frozen struct {
	Tokens       *Disabled `json:"tokens,omitempty"`
	Certificates *Disabled `json:"certificates,omitempty"`
}

// Same tells whether the same is frozen, by the same change.
func (f Frozen) Same(g Frozen) bool {
	same := func(a, b *Disabled) bool {
		return a == b || a != nil && b != nil && a.Reason == b.Reason && a.By == b.By && a.At.Equal(b.At)
	}
	return same(f.Tokens, g.Tokens) && same(f.Certificates, g.Certificates)
}

// RefuseTokens is why no token may be issued now: CodeTokensFrozen, or nil.
func (f Frozen) RefuseTokens() *Error { return f.Tokens.refuse(CodeTokensFrozen, FreezeTokens) }

// RefuseCertificates is why no certificate may be issued now: CodeCertsFrozen, or nil.
func (f Frozen) RefuseCertificates() *Error {
	return f.Certificates.refuse(CodeCertsFrozen, FreezeCertificates)
}

func (d *Disabled) refuse(code Code, what string) *Error {
	if d == nil {
		return nil
	}
	return Errorf(code, "%s are frozen since %s by %s: %s", what, d.At.UTC().Format(time.RFC3339), d.By, d.Reason).
		WithHint("an admin ends that: countersign thaw %s", what).After(frozenAgain)
}

// frozenAgain is when who was refused may ask again: a freeze lasts minutes or hours.
const frozenAgain = 15 * time.Second

// Call is a directed edge of the graph.
type Call struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Scopes  []Scope  `json:"scopes"`            // empty: mTLS only, no token
	TTL     Duration `json:"ttl"`               // of tokens; 10 s to 1 h
	Machine []string `json:"machine,omitempty"` // the scopes that need no user
	Default bool     `json:"default,omitempty"` // settles the audience when a client sends none
	Reenter bool     `json:"reenter,omitempty"` // a service may occur twice in the chain
	When    string   `json:"when,omitempty"`    // the source of Condition

	Condition Condition `json:"-"` // nil: none
}

// Scope is a scope of a call and what the subject token must hold for it.
type Scope struct {
	Name    string   `json:"name"`
	Needs   []string `json:"needs,omitempty"` // one of them; empty only when AnyUser
	AnyUser bool     `json:"any_user,omitempty"`
}

// NewPolicy indexes the parts, which it keeps and which must not change afterwards. MaxHops is [DefaultMaxHops]; who makes
// the policy may set another before anybody else sees it.
func NewPolicy(version int, trustDomain string, issuers []Issuer, services []Service, calls []Call) *Policy {
	p := &Policy{
		Version: version, TrustDomain: trustDomain, MaxHops: DefaultMaxHops, Issuers: issuers, Services: services, Calls: calls,
		issuerByURL: make(map[string]*Issuer, len(issuers)),
		serviceBy:   make(map[string]*Service, len(services)),
		serviceByNS: make(map[string]*Service),
		callBy:      make(map[[2]string]*Call, len(calls)),
		callsFrom:   make(map[string][]*Call),
		callsTo:     make(map[string][]*Call),
	}
	for i := range issuers {
		p.issuerByURL[issuers[i].URL] = &issuers[i]
	}
	for i := range services {
		p.serviceBy[services[i].Name] = &services[i]
		for _, name := range services[i].DNS {
			p.serviceByNS[name] = &services[i]
		}
	}
	for i := range calls {
		c := &calls[i]
		p.callBy[[2]string{c.From, c.To}] = c
		p.callsFrom[c.From] = append(p.callsFrom[c.From], c)
		p.callsTo[c.To] = append(p.callsTo[c.To], c)
	}
	return p
}

// WithVersion is p under another version number; the rest is shared.
func (p *Policy) WithVersion(version int) *Policy {
	q := *p
	q.Version = version
	return &q
}

// WithServices is p with services in the place of its own; all else, also what [NewPolicy] does not ask for, is the same.
func (p *Policy) WithServices(services []Service) *Policy {
	q := NewPolicy(p.Version, p.TrustDomain, p.Issuers, services, p.Calls)
	q.MaxHops, q.Frozen = p.MaxHops, p.Frozen
	return q
}

// WithFrozen is p while f is frozen; the rest is shared.
func (p *Policy) WithFrozen(f Frozen) *Policy {
	if p.Frozen == f {
		return p
	}
	q := *p
	q.Frozen = f
	return &q
}

// Issuer finds the issuer whose identifier is exactly url.
func (p *Policy) Issuer(url string) (*Issuer, bool) { i, ok := p.issuerByURL[url]; return i, ok }

// Service finds a service by its name.
func (p *Policy) Service(name string) (*Service, bool) { s, ok := p.serviceBy[name]; return s, ok }

// ServiceByID finds a service by its ID.
func (p *Policy) ServiceByID(id ID) (*Service, bool) {
	if id.Kind() != ServiceID || id.TrustDomain() != p.TrustDomain {
		return nil, false
	}
	return p.Service(id.Name())
}

// ServiceByDNS finds the one service that has this DNS name, in lower case.
func (p *Policy) ServiceByDNS(name string) (*Service, bool) {
	s, ok := p.serviceByNS[name]
	return s, ok
}

// Call finds the edge between two services, by their names.
func (p *Policy) Call(from, to string) (*Call, bool) {
	c, ok := p.callBy[[2]string{from, to}]
	return c, ok
}

// CallsFrom are the edges that leave a service, in the document's order.
func (p *Policy) CallsFrom(name string) []*Call { return p.callsFrom[name] }

// CallsTo are the edges that lead to a service, in the document's order.
func (p *Policy) CallsTo(name string) []*Call { return p.callsTo[name] }

// AudiencesFor are the audiences by which service takes tokens of the issuer named issuer; none: it does not.
func (s *Service) AudiencesFor(issuer string) []string {
	for _, a := range s.Accepts {
		if a.Issuer == issuer {
			return a.Audiences
		}
	}
	return nil
}

// Scope finds a scope of the call by its name.
func (c *Call) Scope(name string) (*Scope, bool) {
	i := slices.IndexFunc(c.Scopes, func(s Scope) bool { return s.Name == name })
	if i < 0 {
		return nil, false
	}
	return &c.Scopes[i], true
}
